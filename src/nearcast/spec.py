"""The spec of a generator as one frozen value, its example and its JSON schema.

`answer_settings()` holds the settings that decide the candidates and enters the fingerprint. Memory, threads, runners
and output paths are not part of it. Knows nothing of the data: the sources check that files and columns exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from nearcast.errors import SpecError
from nearcast.settings.base_table import ByteCount, Name, Share, SpecTable, Whole, parse_bytes
from nearcast.settings.label_tables import LabelsSpec, Promises, parse_metric
from nearcast.settings.parse_spec import parse_model, read_tables
from nearcast.settings.publish_tables import AuditSpec, CanarySpec, MonitorSpec, PublishSpec, ServeSpec
from nearcast.settings.run_tables import SHARD_KEYS, RunSpec
from nearcast.settings.spec_tables import (
    CHECK_KINDS,
    CapSpec,
    ChecksSpec,
    ExposureSpec,
    MeasureSpec,
    OverfetchSpec,
    Policy,
    RankSpec,
    RuleSpec,
    ScoreSpec,
    SourceSpec,
    allowed_policies,
)
from nearcast.storage.locations import location_fault
from nearcast.types import Metric

__all__ = [
    "CHECK_KINDS",
    "AuditSpec",
    "CanarySpec",
    "CapSpec",
    "ChecksSpec",
    "ExposureSpec",
    "GeneratorSpec",
    "LabelsSpec",
    "MeasureSpec",
    "MonitorSpec",
    "OverfetchSpec",
    "Policy",
    "PublishSpec",
    "RankSpec",
    "RuleSpec",
    "RunSpec",
    "ScoreSpec",
    "ServeSpec",
    "SourceSpec",
    "SpecTable",
    "allowed_policies",
    "example",
    "json_schema",
    "load_spec",
    "parse_bytes",
    "parse_model",
    "read_tables",
]

SHOWN: dict[str, type[BaseModel]] = {
    "items": SourceSpec,
    "queries": SourceSpec,
    "checks": ChecksSpec,
    "score": ScoreSpec,
    "measure": MeasureSpec,
    "run": RunSpec,
    "publish": PublishSpec,
    "audit": AuditSpec,
    "canary": CanarySpec,
    "serve": ServeSpec,
    "monitor": MonitorSpec,
}
OPTIONAL: dict[str, type[BaseModel]] = {
    "rank": RankSpec,
    "overfetch": OverfetchSpec,
    "exposure": ExposureSpec,
    "labels": LabelsSpec,
}
PROMISES = (  # a table whose keys are names of metrics
    "",
    "# [promise]   # minimum of a metric of [labels], at any depth; a publish below it is refused",
    "#   hit_rate_at_10 = 0.2".ljust(34) + "# Kinds: hit_rate, recall, precision, mrr, ndcg. See docs/evaluate.md.",
)
VALUES = {"name": '"similar-items"', "metric": '"cosine"', "k": "50"}
PATHS = {"items": '"items.parquet"', "queries": '"queries/*.parquet"'}
COMMENTS = {"queries": "   # leave this table out to join the items with themselves"}


class GeneratorSpec(SpecTable):
    """Settings of a generator: everything that one candidate table depends on."""

    name: Name = Field(
        description="Names the folder and the store keys: lower-case letters, digits and - _ . are allowed."
    )
    metric: Metric = Field(description="inner_product, cosine or l2.")
    k: Whole = Field(ge=1, le=10_000, description="Candidates per query.")
    recall: Share = Field(1.0, gt=0, le=1, description="Recall target: the minimum recall@k of the snapshot.")
    engine: str = Field("auto", description="auto, dense, exact, faiss-hnsw or faiss-ivf.")
    engine_settings: dict[str, Any] = Field(default_factory=dict, description="Settings of the named engine.")
    exclude_self: bool = Field(False, description="Never give a query the item with the same id.")
    seed: Whole = Field(0, ge=0, description="Seed of every random choice.")
    memory: ByteCount | None = Field(
        None,
        description='Memory budget, for example "4GB". Larger items are joined in passes. Default: half of the free.',
    )
    threads: Whole | None = Field(None, ge=1, le=1024, description="Worker threads. Default: all cores.")
    out: str = Field(
        "nearcast",
        description="Location of the snapshots: a folder relative to this file, or s3://, gs://, az://BUCKET/FOLDER.",
    )
    items: SourceSpec = Field(description="Item table: the candidates.")
    queries: SourceSpec | None = Field(None, description="Query table. Default: the items are the queries.")
    min_score: float | None = Field(
        None, allow_inf_nan=False, description="Minimum score of a candidate. Default: no minimum."
    )
    caps: tuple[CapSpec, ...] = Field(
        (), description="Limits of the items of one group in a list: [[caps]] tables, see docs/rules.md."
    )
    rules: tuple[RuleSpec, ...] = Field(
        (), description="Which items a query may get: [[rules]] tables with name and keep, see docs/rules.md."
    )
    overfetch: OverfetchSpec | None = Field(
        None,
        serialization_alias="surplus",
        description="Stores more candidates, so that enough survive until the request. Default: off.",
    )
    exposure: ExposureSpec | None = Field(None, description="Limits how many lists an item is in. Default: no limit.")
    score: ScoreSpec = ScoreSpec()
    rank: RankSpec | None = Field(None, description="Ranks the join's candidates by a model. Default: off.")
    checks: ChecksSpec = ChecksSpec()
    measure: MeasureSpec = MeasureSpec()
    run: RunSpec = RunSpec()
    labels: LabelsSpec | None = Field(
        None, description="Labels that the lists are measured by. Nothing learns from them. Default: none."
    )
    promise: Promises = Field(
        default_factory=dict, description="Minimum of metrics of [labels], for example hit_rate_at_10 = 0.2."
    )
    publish: PublishSpec = PublishSpec()
    audit: AuditSpec = AuditSpec()
    canary: CanarySpec = CanarySpec()
    serve: ServeSpec = ServeSpec()
    monitor: MonitorSpec = MonitorSpec()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fault := location_fault(self.out):
            raise ValueError(f"out: {fault}")
        for fault in (*_list_attribute_faults(self), *_list_count_faults(self), *_list_conflicts(self)):
            raise ValueError(fault)
        return self

    @property
    def join_k(self) -> int:
        """Candidates that the join finds per query: k, or more where a model or an exposure cap chooses from them."""
        if self.rank is not None:
            return self.rank.fetch
        return self.k if self.exposure is None else self.exposure.candidates_per_query

    @property
    def query_source(self) -> SourceSpec:
        """Source of the queries: the items if the spec has no [queries]."""
        return self.queries or self.items

    def as_recorded(self) -> dict[str, Any]:
        """Return plain data for a manifest, with the earlier names of renamed keys.

        Of [run] it has what changes the candidates, so that every runner writes the same manifest.
        """
        unset = {"canary": self.canary == CanarySpec(), "labels": self.labels is None, "promise": not self.promise}
        left_out = {"run", *(name for name, is_unset in unset.items() if is_unset)}  # as manifests of earlier releases
        return self.model_dump(mode="json", by_alias=True, exclude=left_out) | self._answer_settings_of_run()

    def as_planned(self) -> dict[str, Any]:
        """Return plain data for the plan of a run: `as_recorded` with all of [run]."""
        return self.as_recorded() | {"run": self.run.model_dump(mode="json")}

    def answer_settings(self) -> dict[str, Any]:
        """Return the settings that decide the candidates as plain data, for the fingerprint."""
        settings = self.model_dump(
            mode="json",
            by_alias=True,
            exclude={
                "memory": True,
                "threads": True,
                "out": True,
                "run": True,
                "labels": True,
                "promise": True,
                "publish": True,
                "audit": True,
                "canary": True,
                "serve": True,
                "monitor": True,
                "overfetch": {"log"},  # the fingerprint has the hash of its contents instead of its path
                "rank": {"model", "timeout_seconds"},
                "items": {"path", "table", "at", "sql", "ids", "only"},  # the fingerprint has the hash of the rows
                "queries": {"path", "table", "at", "sql", "ids", "only"},
            },
        )
        return settings | self._answer_settings_of_run()

    def with_run(self, **changes: Any) -> Self:
        """Return the spec with other settings of [run]. Raises SpecError for values that do not fit.

        A number of shards replaces `shard_bytes`, and the other way round.
        """
        tables = self.run.model_dump()
        if any(key in changes for key in SHARD_KEYS):
            tables |= dict.fromkeys(SHARD_KEYS)
        return self.model_copy(update={"run": parse_model(RunSpec, tables | changes, "run")})

    def _answer_settings_of_run(self) -> dict[str, Any]:
        settings = self.run.answer_settings(self.recall)
        return {"run": settings} if settings else {}


def load_spec(path: Path) -> GeneratorSpec:
    """Read a spec from a TOML file. Raises SpecError that names the file, the key and the correction."""
    tables = read_tables(path, "`nearcast init` drafts one from your files, `nearcast spec` prints an example")
    if "ads" in tables and "metric" not in tables:
        raise SpecError(
            f"{path} is the spec of an expansion table, which `nearcast expand` takes; give the spec of a generator"
        )
    return parse_model(GeneratorSpec, tables, str(path))


def _list_attribute_faults(spec: GeneratorSpec) -> Iterator[str]:
    """Yield a fault for every setting that names an attribute which [items] or [queries] does not declare."""
    if spec.queries is not None and spec.items.weight is not None:
        yield "weight is the traffic of queries: write it in [queries]"
    named = [("score names", name) for name in spec.score.columns]
    named += [("a cap is by", cap.by) for cap in spec.caps if cap.by is not None]
    if spec.labels is not None and spec.labels.popular_by is not None:
        named.append(("labels.popular_by names", spec.labels.popular_by))
    named += [("overfetch names", name) for name in (spec.overfetch.columns if spec.overfetch else ())]
    for what, name in named:
        if name not in spec.items.columns:
            yield f"{what} {name!r}; add it to the attributes of [items]"
    columns = (*spec.items.columns, *spec.query_source.columns)
    for name in spec.audit.skip_columns:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns are {', '.join(columns) or 'none'}"
            yield f"audit.skip_columns names {name!r}; {hint}"
    table = "queries" if spec.queries is not None else "items"
    for name in spec.measure.slices:
        if name not in spec.query_source.columns:
            yield f"measure.slices names {name!r}; add it to the attributes of [{table}]"


def _list_count_faults(spec: GeneratorSpec) -> Iterator[str]:
    """Yield a fault for every count that does not fit k."""
    k = spec.k
    if spec.overfetch and spec.overfetch.at_least > k:
        yield f"overfetch.at_least is {spec.overfetch.at_least}, and a list holds k = {k}; raise k"
    if spec.exposure and spec.exposure.candidates_per_query < k:
        count = spec.exposure.candidates_per_query
        yield f"exposure.candidates_per_query is {count}: find at least k = {k} for each query"
    if spec.rank is not None and spec.rank.fetch < k:
        yield f"rank.fetch is {spec.rank.fetch}, and k is {k}: fetch at least k candidates"
    for name in spec.promise:
        if parse_metric(name)[1] > k:
            yield f"promise names {name}, and a list holds k = {k}; lower its depth, or raise k"
    if spec.measure.fill_at is not None and spec.measure.fill_at > k:
        yield f"measure.fill_at is {spec.measure.fill_at}, and a list holds k = {k}; lower it"


def _list_conflicts(spec: GeneratorSpec) -> Iterator[str]:
    """Yield a fault for settings that exclude each other, and for rules of one name."""
    names = [rule.name for rule in spec.rules]
    for name in names:
        if names.count(name) > 1:
            yield f"{names.count(name)} rules are called {name!r}; give each a different name"
    if spec.promise and spec.labels is None:
        yield f"promise names {', '.join(spec.promise)}, which labels measure; add [labels] with their path"
    if spec.rank is not None and spec.caps:
        yield "caps are applied by the join, before the ranking model; remove caps or rank"
    if spec.rank is not None and (spec.overfetch or spec.exposure):
        other = "overfetch" if spec.overfetch else "exposure"
        yield f"{other} uses the scores of the join, and rank orders by a model's; remove {other} or rank"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a spec, for editors."""
    return GeneratorSpec.model_json_schema()


def example() -> str:
    """Return a commented spec with every setting: required ones with a value, the others with their defaults."""
    lines = [
        "# A generator: the k best items for every query. `nearcast run generator.toml` makes a snapshot.",
        "",
    ]
    for key, field in GeneratorSpec.model_fields.items():
        if key not in SHOWN and key not in OPTIONAL and key != "promise":
            lines.append(_format_line(key, field.description or "", VALUES.get(key), field.default))
    for table, model in SHOWN.items():
        lines += ["", f"[{table}]" + COMMENTS.get(table, "")]
        for key, field in model.model_fields.items():
            value = PATHS.get(table) if key == "path" else None
            lines.append(_format_line(key, field.description or "", value, field.default))
    for table, model in OPTIONAL.items():
        lines += ["", f"# [{table}]   # off unless the table is there"]
        for key, field in model.model_fields.items():
            default = None if field.is_required() else field.default
            lines.append(f"#   {key} = {_format_value(default)}".ljust(34) + f"# {field.description}")
    return "\n".join((*lines, *PROMISES)) + "\n"


def _format_line(key: str, description: str, value: str | None, default: object) -> str:
    written = f"{key} = {value}" if value is not None else f"# {key} = {_format_value(default)}"
    return written.ljust(34) + f"# {description}"


def _format_value(value: object) -> str:
    if value is None:
        return "..."
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_format_value(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else ("{}" if "Undefined" in repr(value) else str(value))
