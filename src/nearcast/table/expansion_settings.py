"""Settings of an expansion table: the files of ads and links, who may see an ad, and how the best ads are selected.

Read from TOML once. A store keeps `AdSettings` with the table, since readers need them. Knows nothing of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nearcast.errors import SpecError
from nearcast.spec import RuleSpec, parse_model, read_tables
from nearcast.storage.locations import location_fault

__all__ = [
    "MONEY_ROLES",
    "TIME_ROLES",
    "AdSettings",
    "AdSource",
    "ExpansionSpec",
    "LinkSource",
    "Roles",
    "Target",
    "load_expansion_spec",
]

MONEY_ROLES, TIME_ROLES = ("bid", "budget", "spent"), ("starts", "ends")  # of `Roles`: numbers, and times

Column = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(_Settings):
    """A condition on a column of the ads and a field of the request. An ad with a null column matches every request."""

    column: Column = Field(description="a column of the ads")
    test: Literal["equals", "in", "has", "overlaps", "at_least", "at_most"] = Field(
        description="how the column is compared with the field: equal to it (equals), a value of its list (in), a list "
        "that holds it (has), a list that shares a value with its list (overlaps), or at least or at most the field"
    )
    request: Column = Field(description="a field of the request; if it is null, only ads for everybody are shown")


class Roles(_Settings):
    """The columns of the ads that have a meaning for every call. A column that the ads lack is no limit."""

    advertiser: Column = Field("advertiser", description="the advertiser of the ad; caps may count by it")
    bid: Column = Field("bid", description="the price offered for showing the ad")
    budget: Column = Field("budget", description="the amount that the ad may spend; null for no limit")
    spent: Column = Field("spent", description="the amount spent so far; null for 0")
    starts: Column = Field("starts", description="time from which the ad is shown; null for no limit")
    ends: Column = Field("ends", description="time until which the ad is shown, not included; null for no limit")


class AdSettings(_Settings):
    """How candidates become ads. A call may ask for another k."""

    k: Count = Field(10, description="number of ads of an answer")
    order: Literal["similarity", "similarity_times_bid"] = Field("similarity", description="the score of an ad")
    keys: Literal["best", "sum"] = Field(
        "best", description="score of a candidate of several keys: the best of its scores, or their sum"
    )
    items: Literal["best", "sum"] = Field(
        "best", description="score of an ad of several candidates: the best of their scores, or their sum"
    )
    caps: dict[Column, Count] = Field({}, description="largest number of ads of an answer with one value of a column")
    columns: Roles = Field(Roles(), description="names of the columns that have a meaning")
    targeting: tuple[Target, ...] = Field((), description="conditions on ads and the request; all must be true")
    rules: tuple[RuleSpec, ...] = Field(
        (), description="rules over ad.NAME and request.NAME with name and keep, see docs/rules.md; all must be true"
    )

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `rules` if there are none: a version without rules stays readable for older readers."""
        tables: dict[str, Any] = serialize(self)
        if not tables.get("rules"):
            tables.pop("rules", None)
        return tables


class AdSource(_Settings):
    """The ads: a Parquet file with a row per ad. Every column can be returned, overlaid and used by rules."""

    path: str = Field(description="a path relative to this file, or a URL")
    id: Column = Field("ad", description="column of the ad's id: whole numbers or text")


class LinkSource(_Settings):
    """The ads of each item: a Parquet file with a row per pair of item and ad."""

    path: str = Field(description="a path relative to this file, or a URL")
    item: Column = Field("item", description="column of the item's id, as in the generator")
    ad: Column = Field("ad", description="column of the ad's id")


class ExpansionSpec(_Settings):
    """An expansion table: item -> ads, many to many."""

    name: Name
    out: str = Field("nearcast", description="folder of the snapshots whose store is used, relative to this file")
    store: str | None = Field(None, description="URL of the store. Default: lmdb:OUT/store")
    keep: Annotated[int, Field(strict=True, ge=2, le=100)] = Field(
        3, description="number of versions that the store keeps"
    )
    ads: AdSource
    links: LinkSource
    serve: AdSettings = AdSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fault := location_fault(self.out):
            raise ValueError(f"out: {fault}")
        return self


def load_expansion_spec(path: Path) -> ExpansionSpec:
    """Read the settings from a TOML file. Raises SpecError with the file, the key and a fix."""
    tables = read_tables(path, "docs/expansion.md shows one to start from")
    if "metric" in tables and "ads" not in tables:
        raise SpecError(
            f"{path} is the spec of a generator, which `nearcast run` takes; docs/expansion.md shows one of ads"
        )
    return parse_model(ExpansionSpec, tables, str(path))
