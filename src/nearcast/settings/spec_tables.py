"""The tables of a generator's spec, one class each, with the description and default of every key.

A description says what happens, then the default where it is not a plain value.
"""

from __future__ import annotations

import re
from typing import Literal, Self, get_args

from pydantic import Field, field_serializer, model_validator

from nearcast.settings.base_table import Name, Rate, Share, SpecTable, Whole
from nearcast.types import Metric
from nearcast.webhook import parse_webhook, shorten_url

__all__ = [
    "CHECK_KINDS",
    "AuditSpec",
    "CapSpec",
    "ChecksSpec",
    "ExposureSpec",
    "MeasureSpec",
    "MonitorSpec",
    "OverfetchSpec",
    "Policy",
    "PublishSpec",
    "RankSpec",
    "RuleSpec",
    "ScoreSpec",
    "ServeSpec",
    "SourceSpec",
    "allowed_policies",
]

Policy = Literal["error", "drop", "keep"]


class SourceSpec(SpecTable):
    """Source of the query table or the item table."""

    path: str = Field(description="Parquet file, folder or glob, or one .npy file of vectors. Relative to this file.")
    id: str = Field("id", description="Column of the ids: strings or integers.")
    vector: str = Field("vector", description="Column of the vectors: lists of float16, float32 or float64.")
    ids: str | None = Field(
        None,
        description="File of the ids of .npy vectors: .npy, .txt with one id per line, or .parquet. Required for .npy.",
    )
    only: str | None = Field(
        None,
        description="Parquet file of ids, in a column named like `id`; other rows are skipped. `nearcast head` writes "
        "one. Default: all rows.",
    )
    attributes: tuple[str, ...] = Field((), description="Columns copied into the snapshot.")
    display: tuple[str, ...] = Field((), description="Columns that a look-up shows to people.")
    embedding: str | None = Field(
        None,
        description="Version of the embedding model; queries and items must declare the same. Default: not checked.",
    )
    weight: str | None = Field(
        None, description="Column of the traffic of a query, for recall weighted by requests. Default: not measured."
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes, display columns and the weight: each once, in the order of the spec."""
        return tuple(dict.fromkeys((*self.attributes, *self.display, *((self.weight,) if self.weight else ()))))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path.strip():
            raise ValueError("path is empty; name a file, a folder or a glob")
        if self.path.endswith(".npy") and self.ids is None:
            raise ValueError(f'{self.path} holds vectors without ids; name their file: ids = "ids.npy"')
        if not self.path.endswith(".npy") and self.ids is not None:
            raise ValueError(f"ids goes with a .npy file of vectors; {self.path} has its ids in a column")
        for reserved in {self.id, self.vector} & set(self.columns):
            raise ValueError(f"{reserved!r} is the id or vector column already; remove it from the attributes")
        if "id" in self.columns:
            raise ValueError("a snapshot calls its ids 'id'; rename the attribute 'id' in the source")
        return self


class ChecksSpec(SpecTable):
    """Policy for each kind of bad input: stop the run (error), skip the rows (drop), or accept them (keep)."""

    not_finite: Policy = Field("error", description="A vector holds NaN, infinity or null.")
    zero_vector: Policy | None = Field(
        None, description="A vector is all zeros. Default: error for cosine, keep for the other metrics."
    )
    wrong_dimension: Policy = Field("error", description="A vector is shorter or longer than the first one.")
    null_vector: Policy = Field("error", description="A row has an id but no vector.")
    duplicate_id: Literal["error", "drop"] = Field("error", description="An id occurs again; drop keeps the first row.")
    null_id: Literal["error", "drop"] = Field("error", description="A row has no id.")
    id_type: Literal["error"] = Field("error", description="Files have different types of ids.")
    empty_input: Literal["error"] = Field("error", description="No row is left to join.")
    k_above_items: Literal["error", "keep"] = Field("error", description="k is above the number of items.")
    embedding: Literal["error", "keep"] = Field(
        "error", description="Queries and items declare different embedding versions."
    )

    def policy(self, kind: str, metric: Metric) -> Policy:
        """Return the policy of a kind; fill in the default that depends on the metric."""
        policy: Policy | None = getattr(self, kind)
        if policy is not None:
            return policy
        return "error" if metric is Metric.COSINE else "keep"


CHECK_KINDS = tuple(ChecksSpec.model_fields)


def allowed_policies(kind: str) -> tuple[str, ...]:
    """Return the policies that a kind of bad input can have."""
    annotation = ChecksSpec.model_fields[kind].annotation
    options = [a for a in get_args(annotation) if a is not type(None)]
    return tuple(w for a in options for w in (get_args(a) or (a,)))


class RuleSpec(SpecTable):
    """Eligibility rule: a pair of query and item is kept if the expression is true."""

    name: Name = Field(description="Name of the rule in measures and explanations.")
    keep: str = Field(description='Expression, for example "item.countries has query.country". See docs/rules.md.')


class MeasureSpec(SpecTable):
    """Settings of the quality measurement of a snapshot."""

    sample: Whole = Field(2000, ge=1, description="Queries whose lists are compared with the exact neighbors.")
    calibration: Whole = Field(
        1000,
        ge=20,
        description="Queries that search parameters are chosen on; as many others check the choice.",
    )
    fill_at: Whole | None = Field(
        None,
        ge=1,
        description="Reports the share of lists with at least this many candidates. Default: not reported.",
    )
    slices: tuple[str, ...] = Field((), description="Attributes of the queries; recall is also reported per value.")


class ScoreSpec(SpecTable):
    """Score terms: attributes of an item that change its scores inside the join."""

    add: str | None = Field(
        None, description="Numeric item attribute added to every score, times `weight`. Default: none."
    )
    weight: float = Field(1.0, allow_inf_nan=False, description="Factor of `add`.")
    multiply: str | None = Field(
        None, description="Numeric item attribute that scores are multiplied by; not allowed for l2. Default: none."
    )
    missing: float | None = Field(
        None, allow_inf_nan=False, description="Value used for null. Default: a null is an error."
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes that the terms need; empty without score terms."""
        return tuple(name for name in (self.add, self.multiply) if name is not None)


class CapSpec(SpecTable):
    """Cap: a limit of the items of one group in one list."""

    by: str | None = Field(None, description="Item attribute; items with equal values are a group.")
    near_duplicate_cosine: Share | None = Field(
        None,
        gt=0,
        le=1,
        serialization_alias="alike",
        description="Items with at least this cosine are a group of near-duplicates; instead of `by`.",
    )
    max_per_list: Whole = Field(
        1, ge=1, serialization_alias="most", description="Items of a group that one list may hold."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.by is None) == (self.near_duplicate_cosine is None):
            raise ValueError(
                "a cap is by an attribute or for near-duplicates; write one of by and near_duplicate_cosine"
            )
        return self


class OverfetchSpec(SpecTable):
    """Over-fetch: store more candidates per query, so that enough survive until the request. `k` is the maximum."""

    at_least: Whole = Field(ge=1, description="Candidates that should survive until the request.")
    probability: Share = Field(
        0.95, gt=0, le=1, description="Probability with which they should survive. More slots are not used."
    )
    survival: str | None = Field(None, description="Item attribute: the probability that the item survives.")
    log: str | None = Field(
        None,
        description="Parquet log of look-ups to learn survival from, with columns item and survived; instead of "
        "`survival`.",
    )
    smoothing_group: str | None = Field(
        None,
        serialization_alias="like",
        description="Item attribute, with `log`: the survival of an item with few look-ups is estimated from its "
        "group. Default: from all items.",
    )
    correlated_group: str | None = Field(
        None,
        serialization_alias="together",
        description="Item attribute, for example the advertiser: items with equal values become unavailable together. "
        "Default: items are independent.",
    )
    slots: float | None = Field(
        None,
        ge=1,
        description="Average number of stored candidates per query; fixes the size of the table. Default: as many "
        "as needed.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.survival is None) == (self.log is None):
            raise ValueError(
                "survival is an attribute of the items or learned from a log; write one of survival and log"
            )
        if self.smoothing_group is not None and self.log is None:
            raise ValueError("smoothing_group goes with a log; add log, or remove smoothing_group")
        if self.slots is not None and self.slots < self.at_least:
            raise ValueError(
                f"{self.slots:g} slots per query cannot leave {self.at_least} survivors; give at least {self.at_least}"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Item attributes that over-fetch needs."""
        names = (self.survival, self.smoothing_group, self.correlated_group)
        return tuple(name for name in names if name is not None)


class ExposureSpec(SpecTable):
    """Exposure cap: a limit of the number of lists that one item is in."""

    max_lists_per_item: Whole = Field(ge=1, serialization_alias="most", description="Lists that one item may be in.")
    candidates_per_query: Whole = Field(
        ge=1,
        le=10_000,
        serialization_alias="per_query",
        description="Candidates that the join finds for each query; its k are chosen from them. At least k.",
    )


PASSWORD_IN_URL = re.compile(r"^([A-Za-z0-9+.-]+://[^:/?#@]*):.*@", re.DOTALL)


class PublishSpec(SpecTable):
    """Settings of publishing. They do not change the candidates."""

    store: str = Field("lmdb:store", description="Store: lmdb:PATH relative to `out`, or redis://host:port/db.")
    keep: Whole = Field(3, ge=1, le=100, description="Versions kept in the store, the current one included.")
    keep_snapshots: Whole | None = Field(
        None, ge=1, description="Newest snapshots kept on disk after a publish. Default: all."
    )
    max_bytes_per_second: Rate | None = Field(
        None, description='Limits the speed of the copy, for example "50MB". Default: no limit.'
    )

    @field_serializer("store", when_used="json")
    def _hide_password(self, store: str) -> str:
        """Return the URL for a manifest, with *** in place of a password."""
        return PASSWORD_IN_URL.sub(r"\1:***@", store)


class AuditSpec(SpecTable):
    """Audit: limits that a snapshot must meet to be published. Some compare it with the current version."""

    min_recall: Share | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum of the lower end of recall's confidence interval. Default: the recall target.",
    )
    min_fill_rate: Share = Field(0.9, ge=0, le=1, description="Minimum share of slots that hold a candidate.")
    min_fill_at: Share = Field(
        0.9, ge=0, le=1, description="Minimum share of lists with `measure.fill_at` candidates, if that is set."
    )
    min_query_coverage: Share = Field(0.95, ge=0, le=1, description="Minimum share of queries with a candidate.")
    min_queries_kept: Share = Field(0.9, ge=0, le=1, description="Minimum share of current keys that the snapshot has.")
    min_keys: Whole = Field(1, ge=0, description="Minimum number of keys.")
    max_keys_lost: Share = Field(0.1, ge=0, le=1, description="Maximum decrease of the number of keys, as a share.")
    min_overlap: Share = Field(0.3, ge=0, le=1, description="Minimum overlap@k with the current lists. Finds a mix-up.")
    max_age_hours: float = Field(48.0, gt=0, description="Maximum age of the snapshot.")
    max_size_change: float = Field(2.0, ge=1, description="Maximum factor by which its bytes grow or shrink.")
    max_items_lost: Share = Field(0.1, ge=0, le=1, description="Maximum decrease of the number of items, as a share.")
    max_items_gained: float = Field(0.5, ge=0, description="Maximum increase of the number of items, as a share.")
    min_items_kept: Share = Field(0.7, ge=0, le=1, description="Minimum share of served items that the snapshot has.")
    max_bad_rows: Share = Field(0.05, ge=0, le=1, description="Maximum rise of the share of rows that fail a check.")
    max_empty: Share = Field(
        0.1, ge=0, le=1, description="Maximum rise of the share of null or empty values in a column."
    )
    max_drift: float = Field(0.25, ge=0, description="Maximum PSI between a column's values and the served ones.")
    skip_columns: tuple[str, ...] = Field((), description="Columns that are not compared.")
    max_values_changed: Share = Field(
        0.5, ge=0, le=1, description="Maximum share of common rows whose text or flag differs."
    )
    max_values_scaled: Share = Field(
        0.25, ge=0, le=1, description="Maximum share of common rows whose number grew or fell 3 times."
    )
    max_pairs_drift: float = Field(0.25, ge=0, description="Maximum PSI of the share of pairs that a rule keeps.")
    max_vectors_changed: Share = Field(0.2, ge=0, le=1, description="Maximum share of common ids whose vector differs.")
    max_length_change: float = Field(
        1.5, ge=1, description="Maximum factor of change of the median vector length; not checked for cosine."
    )


class ServeSpec(SpecTable):
    """Settings of a service that answers for this generator."""

    default_keys: tuple[str | int, ...] = Field(
        (), description="Keys whose lists are returned for an unknown key, in this order."
    )
    default_items: tuple[str | int, ...] = Field((), description="Items returned when every other fallback is empty.")
    online_recall: Share = Field(0.95, gt=0, le=1, description="Recall target of searches by vector.")


class MonitorSpec(SpecTable):
    """Settings and limits of `nearcast monitor`. They do not change the candidates."""

    sample: Whole = Field(1000, ge=20, description="Served lists that are compared with today's items.")
    window_hours: float = Field(24.0, gt=0, description="Look-ups of this many last hours are sampled.")
    min_recall_today: Share | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum recall of served lists among today's items. Default: 0.9 times the recall target.",
    )
    max_dead: Share = Field(0.1, ge=0, le=1, description="Maximum share of served candidates that are not items today.")
    webhook: str | None = Field(None, description="URL that alerts are posted to as JSON. Default: none.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.webhook is not None:
            parse_webhook(self.webhook)  # raises ValueError with the correction
        return self

    @field_serializer("webhook", when_used="json")
    def _hide_secrets(self, webhook: str | None) -> str | None:
        """Return the URL for a manifest, without its path: a chat service's URL is a secret."""
        return None if webhook is None else shorten_url(webhook)


class RankSpec(SpecTable):
    """Ranking model: the join finds `fetch` candidates per query, and the k best by the model are stored."""

    function: str | None = Field(
        None,
        description='Model as "module:function": a module beside this file, or an installed one. See docs/ranking.md.',
    )
    model: str | None = Field(
        None, description="Model as an ONNX file, relative to this file; instead of `function`. Needs nearcast[onnx]."
    )
    fetch: Whole = Field(ge=1, le=10_000, description="Candidates that the join finds for each query. At least k.")
    version: str = Field("", description="Change it when the model changes but its own file does not.")
    batch: Whole = Field(16_384, ge=1, description="Pairs of query and candidate in one call; whole queries only.")
    timeout_seconds: float = Field(60.0, gt=0, description="Maximum duration of one call.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.function is None) == (self.model is None):
            raise ValueError('rank needs one of the two: function = "module:function" or model = "file.onnx"')
        if self.function is not None and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f'function is {self.function!r}: write it as "module:function"')
        return self
