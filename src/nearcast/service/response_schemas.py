"""Response models of the HTTP service, as OpenAPI describes them.

Endpoints build bodies as plain data, because validation costs more than a look-up. Tests compare them with the models.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nearcast.serve.resolvers import MOST_KEYS
from nearcast.stores.value_format import REASONS

__all__ = [
    "AdsResponse",
    "CanaryInfo",
    "ErrorResponse",
    "GeneratorInfo",
    "GeneratorList",
    "HealthResponse",
    "LookupBatchResponse",
    "LookupResponse",
    "MergeResponse",
    "ReadinessResponse",
    "SearchResponse",
]


class _ResponseModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Candidate(BaseModel):
    """An item with the requested columns as further fields; null if the item has no value."""

    model_config = ConfigDict(extra="allow")

    id: str | int
    score: float | None = Field(description="Larger is better. Null for default items, which have no score.")


Source = Literal["table", "fallback_key", "online", "default_key", "default_items", "none"]
Reason = Literal[REASONS]  # type: ignore[valid-type]


class LookupResponse(_ResponseModel):
    """The candidates of a key and their source."""

    key: str | int = Field(description="The requested key.")
    found: bool = Field(description="The table has this key.")
    source: Source = Field(description="Source of the candidates; none if there are none.")
    source_key: str | int | None = Field(description="The key that the list belongs to.")
    snapshot: str = Field(description="The snapshot of this answer.")
    age_seconds: float = Field(description="Age of the snapshot.")
    reason: Reason = Field(description="Why the stored list is short, if it is.")
    stored: int = Field(description="Candidates in the stored lists of the key and its fallbacks.")
    removed: int = Field(description="Candidates removed by the overlay.")
    barred: dict[str, int] = Field(description="Ineligible candidates by rule. The first rule that filters counts.")
    returned: int = Field(description="Candidates in this answer.")
    candidates: list[Candidate] = Field(description="Best first.")


class LookupBatchResponse(_ResponseModel):
    """One answer per key, in the order of the request."""

    answers: list[LookupResponse]


class VectorCandidates(_ResponseModel):
    """The candidates of one vector."""

    removed: int = Field(description="Candidates removed by the overlay.")
    barred: dict[str, int] = Field(description="Ineligible candidates by rule. The first rule that filters counts.")
    candidates: list[Candidate] = Field(description="Best first.")


class SearchResponse(_ResponseModel):
    """The candidates of each vector, in the order of the request."""

    engine: str
    recall: float = Field(description="The recall that the index is calibrated for.")
    snapshot: str = Field(description="The snapshot of the item columns.")
    answers: list[VectorCandidates]


class VersionError(_ResponseModel):
    """Why a newer version is not served. The log of the service has the details."""

    code: str
    message: str


class OnlineIndexInfo(_ResponseModel):
    """An online index."""

    engine: str
    dim: int
    recall: float = Field(description="The recall that the index is calibrated for.")


class GeneratorInfo(_ResponseModel):
    """The version of a generator that is served."""

    name: str
    snapshot: str
    version: int
    created: str = Field(description="When the snapshot was made, UTC.")
    age_seconds: float
    keys: int
    items: int
    k: int
    metric: str
    columns: list[str] = Field(description="Item columns that `fields` may name.")
    overlay: int = Field(description="Overlay entries in force.")
    patch: int = Field(description="Number of the newest patch in force; 0 if there is none.")
    patch_age_seconds: float | None = Field(description="Time since that patch was made.")
    promise: dict[str, Any] = Field(description="Recall target of the snapshot.")
    measures: dict[str, Any] = Field(description="Measures of the snapshot.")
    error: VersionError | None = Field(description="Why the newest version is not served, if it is not.")
    online: OnlineIndexInfo | None


class GeneratorList(_ResponseModel):
    """All generators that are served."""

    generators: list[GeneratorInfo]


class CanaryState(_ResponseModel):
    """A second version beside the current one; see docs/canary.md."""

    version: int
    share: float = Field(description="Share of the keys, chosen by a hash.")
    mode: Literal["canary", "shadow"] = Field(description="canary: it answers its keys; shadow: it is only measured.")
    since: str = Field(description="When it started, in UTC.")


class CanaryArm(_ResponseModel):
    """Measured look-ups of one version."""

    answers: int
    empty: int = Field(description="Answers without a candidate.")
    errors: int = Field(description="Look-ups that failed.")
    fill: float = Field(description="Sum of length / k.")
    latency: list[int] = Field(
        description="Answers by duration: up to 5 microseconds, then 42 buckets with bounds 1.41 times larger each, "
        "then the rest."
    )


class CanaryCounts(_ResponseModel):
    """Figures of a canary in one process. Those of several processes are added."""

    routed: int = Field(description="Look-ups of keys in the share. A sample of them is measured.")
    keys: int = Field(description="Distinct keys that were measured.")
    compared: int = Field(description="Measured pairs of lists.")
    overlap: float = Field(description="Sum of common candidates / length of the longer list.")
    current: CanaryArm
    canary: CanaryArm


class CanaryInfo(_ResponseModel):
    """The canary of a generator in the process that answers."""

    name: str
    snapshot: str = Field(description="The current version.")
    canary: CanaryState | None = Field(description="Null if no canary is open.")
    source: str | None = Field(description="Names the process: its newer figures replace its older ones.")
    figures: CanaryCounts | None
    error: VersionError | None = Field(description="Why a newer version or the canary is not served.")


class HealthResponse(_ResponseModel):
    """The process responds."""

    alive: bool


class ReadinessResponse(_ResponseModel):
    """Whether the service takes requests."""

    ready: bool
    reasons: list[str] = Field(
        description="Causes of not being ready, and warnings on tables served from an old version."
    )


class ErrorDetail(_ResponseModel):
    """An error with a code and a message."""

    code: str = Field(description="Stable code for programs.")
    message: str = Field(description="Text for people.")


class ErrorResponse(_ResponseModel):
    """The body of every error."""

    error: ErrorDetail


class KeyContribution(_ResponseModel):
    """A key of a merged list and its part of the list."""

    key: str | int
    weight: float = Field(description="The weights of all keys add up to 1.")
    origins: list[Literal["keys", "viewed", "recent", "session", "phrase", "person"]] = Field(
        description="Parts of the request that led to the key; `keys` if it was given directly."
    )
    found: bool = Field(description="The table has this key.")
    candidates: int = Field(description="Candidates of the key.")
    promised: int = Field(description="Of the k places, those reserved for the best candidates of this key.")
    given: int = Field(description="Candidates of the answer that are in the list of this key.")


class MergedCandidate(BaseModel):
    """An item of a merged list with the requested columns as further fields."""

    model_config = ConfigDict(extra="allow")

    id: str | int
    score: float = Field(description="Merged score over all keys. Comparable within one answer only.")
    keys: list[str | int] = Field(description="Keys with this candidate, the largest weight first.")


class MergeResponse(_ResponseModel):
    """The candidates of several keys as one list."""

    snapshot: str = Field(description="The snapshot of this answer.")
    age_seconds: float = Field(description="Age of the snapshot.")
    removed: int = Field(description="Candidates of these keys removed by the overlay.")
    barred: dict[str, int] = Field(description="Ineligible candidates by rule. The first rule that filters counts.")
    keys: list[KeyContribution] = Field(description=f"The {MOST_KEYS} keys with the largest weights, in that order.")
    candidates: list[MergedCandidate] = Field(description="Best first.")


class StageCount(BaseModel):
    """How many candidates and ads are left after a stage."""

    name: str
    candidates: int = Field(description="Candidates with at least one ad; all candidates at the first stage.")
    ads: int = Field(description="Distinct ads.")


class PromotedAd(BaseModel):
    """An ad and the candidate that it is shown for."""

    ad: str | int
    item: str | int = Field(description="The candidate that the ad is shown for.")
    score: float = Field(description="Larger is better.")
    columns: dict[str, Any] = Field(description="The requested columns.")


class AdsResponse(BaseModel):
    """The ads of a request, with counts per stage."""

    model_config = ConfigDict(extra="forbid")

    snapshot: str = Field(description="The snapshot of the candidates.")
    found: int = Field(description="Keys that the snapshot has.")
    table: str = Field(description="The version of the expansion table.")
    age_seconds: float = Field(description="Seconds since the expansion table was read from its source.")
    stages: list[StageCount] = Field(description="Counts after each stage, in order.")
    ads: list[PromotedAd] = Field(description="Best first.")
