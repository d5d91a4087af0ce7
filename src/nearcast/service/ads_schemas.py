"""The shapes of what is promoted over HTTP, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from nearcast.service.schemas import MOST_FIELDS, FieldName, Finite, Key, Length

__all__ = ["AdsAnswered", "AdsWanted"]

MOST_REQUEST_FIELDS = 100


class AdsWanted(BaseModel):
    """What is known of a request, and how its ads are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: list[Key] = Field(description="keys of the generator whose candidates may be promoted")
    weights: list[Annotated[Finite, Field(ge=0)]] | None = Field(None, description="a weight per key; 1 each")
    expansion: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="the expansion table; needed where several are served"
    )
    request: Annotated[dict[str, Any], Field(max_length=MOST_REQUEST_FIELDS)] = Field(
        {}, description="fields that the table's targeting asks for"
    )
    k: Length | None = Field(None, description="ads at most; the table's own k")
    candidates_per_key: Length | None = Field(None, description="only the first so many candidates of each key")
    fields: list[FieldName] = Field([], max_length=MOST_FIELDS, description="columns of the ads to send along")
    now: Finite | Annotated[str, Field(max_length=50)] | None = Field(
        None, description="the time by which flights are judged: ISO 8601, or seconds since 1970; the present"
    )


class StageTold(BaseModel):
    """How much was left after a stage."""

    name: str
    candidates: int = Field(description="that still have an ad; all of them at the first stage")
    ads: int = Field(description="different ones")


class Ad(BaseModel):
    """An ad, and what it is shown for."""

    ad: str | int
    item: str | int = Field(description="the candidate that it is shown for")
    score: float = Field(description="larger is better")
    columns: dict[str, Any] = Field(description="those that were asked for")


class AdsAnswered(BaseModel):
    """The ads for a request, and how they came about."""

    model_config = ConfigDict(extra="forbid")

    snapshot: str = Field(description="the snapshot that the candidates come from")
    found: int = Field(description="keys that it has")
    table: str = Field(description="the version of the expansion table")
    age_seconds: float = Field(description="since that table was read from its source")
    stages: list[StageTold] = Field(description="how much was left after each stage, in their order")
    ads: list[Ad] = Field(description="best first")
