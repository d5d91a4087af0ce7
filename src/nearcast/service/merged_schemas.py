"""The shapes of a request for several keys at once, and of its answer, as OpenAPI describes them.

Knows how a request becomes a `MergeQuery`; how that is answered is `merged.py`'s to say.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nearcast.serve.merged_lookup import MergeQuery
from nearcast.serve.resolvers import MOST_KEYS, MOST_WEIGHT
from nearcast.service.schemas import MOST_FIELDS, FieldName, Finite, Key, Length, RequestValues

__all__ = ["Merge", "MergedCandidates", "mix_of"]

MOST_KNOWN = 1000  # of a list: keys engaged with, or items that are not wanted
LONGEST_PHRASE = 1000  # characters
OLDEST_SECONDS = 1e10

Weight = Annotated[float, Field(gt=0, le=MOST_WEIGHT)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Weighed(_Asked):
    """A key, and what it counts."""

    key: Key
    weight: Weight = 1.0


class Engagement(_Asked):
    """A key that was engaged with."""

    key: Key
    seconds_ago: Annotated[float, Field(ge=0, le=OLDEST_SECONDS)]
    weight: Weight = Field(1.0, description="what this kind of engagement counts")


class Known(_Asked):
    """What a request knows. Each that leads to any keys counts alike; what is null or left out is not known."""

    viewed: Key | None = Field(None, description="the key in view")
    recent: Annotated[list[Key], Field(max_length=MOST_KNOWN)] | None = Field(
        None, description="the last keys that were engaged with, newest first; ten of them count"
    )
    session: Annotated[list[Engagement], Field(max_length=MOST_KNOWN)] | None = Field(
        None, description="engagements with their ages; one counts half of one half an hour younger"
    )
    phrase: Annotated[str, Field(max_length=LONGEST_PHRASE)] | None = Field(
        None, description="a search phrase: its most engaged keys, by the generator's table `phrases`"
    )
    person: Key | None = Field(None, description="a person: their keys, by the generator's table `people`")


class Merge(_Asked):
    """Keys, outright or by what is known, whose candidates are wanted as one list."""

    keys: list[Weighed] = Field([], max_length=MOST_KEYS, description="keys with their weights")
    context: Known = Field(Known(), description="what the request knows")
    k: Length | None = Field(None, description="candidates at most; the generator's k")
    by: Literal["rank", "score"] = Field("rank", description="what lists are merged by")
    min_score: Finite | None = Field(None, description="leave out candidates with a lower score in their key's list")
    exclude: list[Key] = Field([], max_length=MOST_KNOWN, description="items that are not wanted")
    fields: list[FieldName] = Field([], max_length=MOST_FIELDS, description="item columns to send along")
    request: RequestValues | None = Field(None, description="what rules may know of the request")


class Share(_Told):
    """A key of the request, and its part in the answer."""

    key: str | int
    weight: float = Field(description="those of all keys add up to 1")
    origins: list[Literal["keys", "viewed", "recent", "session", "phrase", "person"]] = Field(
        description="what has led to it; keys where it was given outright"
    )
    found: bool = Field(description="whether the table has this key")
    candidates: int = Field(description="that it has to offer")
    promised: int = Field(description="of the k places: so many of its best are in the answer, or all that it has")
    given: int = Field(description="candidates of the answer that it has")


class MergedCandidate(BaseModel):
    """An item, with the keys that have it and the columns that were asked for."""

    model_config = ConfigDict(extra="allow")

    id: str | int
    score: float = Field(description="what it is worth over all keys; comparable within one answer")
    keys: list[str | int] = Field(description="that have it among their candidates, the heaviest first")


class MergedCandidates(_Told):
    """The candidates of several keys as one list."""

    snapshot: str = Field(description="the snapshot that answered")
    age_seconds: float = Field(description="since that snapshot was made")
    removed: int = Field(description="candidates of these keys that the overlay took out")
    barred: dict[str, int] = Field(description="candidates of these keys that a rule barred, by the first that did")
    keys: list[Share] = Field(description=f"the {MOST_KEYS} heaviest, the heaviest first")
    candidates: list[MergedCandidate] = Field(description="best first")


def mix_of(body: Merge) -> MergeQuery:
    """A request as the question that it asks."""
    known: dict[str, Any] = {name: getattr(body.context, name) for name in Known.model_fields}
    if body.context.session is not None:
        known["session"] = [(event.key, event.seconds_ago, event.weight) for event in body.context.session]
    return MergeQuery(
        keys=[(each.key, each.weight) for each in body.keys],
        context={name: value for name, value in known.items() if value is not None},
        k=body.k,
        by=body.by,
        min_score=body.min_score,
        exclude=body.exclude,
        fields=tuple(dict.fromkeys(body.fields)),
        request=body.request,
    )
