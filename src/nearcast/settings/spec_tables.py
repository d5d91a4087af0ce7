"""Tables of a generator's spec that decide its candidates, one class each, with the description of every key.

A description states the effect, then the default where it is not a plain value.
"""

from __future__ import annotations

import re
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from nearcast.settings.base_table import Name, Share, SpecTable, Version, Whole
from nearcast.types import Metric

__all__ = [
    "CHECK_KINDS",
    "TABLE_LOCATION",
    "CapSpec",
    "ChecksSpec",
    "ExposureSpec",
    "MeasureSpec",
    "OverfetchSpec",
    "Policy",
    "RankSpec",
    "RuleSpec",
    "ScoreSpec",
    "SourceSpec",
    "allowed_policies",
]

Policy = Literal["error", "drop", "keep"]

TABLE_LOCATION = re.compile(r"(delta|lance):.+|iceberg:[^.]+(\.[^.]+){2,}")


class SourceSpec(SpecTable):
    """Source of the query table or the item table."""

    path: str = Field(
        "",
        description="Parquet file, folder or glob, or one .npy file of vectors. Relative to this file, or an s3://, "
        "gs:// or az:// URL.",
    )
    table: str | None = Field(
        None,
        description="Instead of `path`: a table, delta:PATH, lance:PATH or iceberg:CATALOG.NAMESPACE.TABLE. See "
        "docs/tables.md.",
    )
    at: Version | None = Field(
        None,
        description="Version of the table, or a time: the version that was the newest then. Default: the newest when "
        "the run begins.",
    )
    sql: str | None = Field(None, description="Instead of `path`: a query for DuckDB. Its result must fit the memory.")
    id: str = Field("id", description="Column of the ids: strings or integers.")
    vector: str = Field(
        "vector", description="Column of the vectors: lists of float16, float32, float64, int8 or uint8."
    )
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
    def shown(self) -> str:
        """Where the data is, for messages."""
        return self.table or self.path or "sql"

    @property
    def folder(self) -> str:
        """Path or URL of the data; empty where it has none: for queries, and tables of a catalog."""
        kind, _, location = (self.table or "").partition(":")
        return self.path or ("" if kind == "iceberg" else location)

    def with_data(self, *, path: str = "", table: str | None = None) -> Self:
        """Return the columns with other data, all of it."""
        return self.model_copy(
            update={"path": path, "table": table, "at": None, "sql": None, "ids": None, "only": None}
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes, display columns and the weight: each once, in the order of the spec."""
        return tuple(dict.fromkeys((*self.attributes, *self.display, *((self.weight,) if self.weight else ()))))

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [key for key in ("path", "table", "sql") if (getattr(self, key) or "").strip()]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given)} are given; name one of them"
                if given
                else "path is empty; name a file, a folder or a glob, or give table or sql"
            )
        if self.table is not None and not TABLE_LOCATION.fullmatch(self.table):
            raise ValueError(
                f"table is {self.table!r}; write delta:PATH, lance:PATH or iceberg:CATALOG.NAMESPACE.TABLE"
            )
        if self.at is not None and self.table is None:
            raise ValueError("at is the version of a table; name the table, or remove at")
        if self.sql is not None and self.only is not None:
            raise ValueError("only goes with path and table; select the rows in the query")
        if self.path.endswith(".npy") and self.ids is None:
            raise ValueError(f'{self.path} holds vectors without ids; name their file: ids = "ids.npy"')
        if not self.path.endswith(".npy") and self.ids is not None:
            raise ValueError(f"ids goes with a .npy file of vectors; in {self.shown} the ids are a column")
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
        description="Parquet log of look-ups to learn survival from, with columns item and survived: a path or a URL; "
        "instead of `survival`.",
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


class RankSpec(SpecTable):
    """Ranking model: the join finds `fetch` candidates per query, and the k best by the model are stored."""

    function: str | None = Field(
        None,
        description='Model as "module:function": a module beside this file, or an installed one. See docs/ranking.md.',
    )
    model: str | None = Field(
        None,
        description="Model as an ONNX file, relative to this file, or a URL; instead of `function`. Needs "
        "nearcast[onnx].",
    )
    fetch: Whole = Field(ge=1, le=10_000, description="Candidates that the join finds for each query. At least k.")
    version: str = Field("", description="Change it when the model changes but its own file does not.")
    batch: Whole = Field(16_384, ge=1, description="Pairs in one call: of whole queries, and fewer if memory is small.")
    timeout_seconds: float = Field(60.0, gt=0, description="Maximum duration of one call.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.function is None) == (self.model is None):
            raise ValueError('rank needs one of the two: function = "module:function" or model = "file.onnx"')
        if self.function is not None and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f'function is {self.function!r}: write it as "module:function"')
        return self
