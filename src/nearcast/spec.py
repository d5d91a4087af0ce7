"""The spec of a generator: read from TOML once, checked, frozen, fingerprinted.

`answer_settings()` is what decides the answer and so enters the fingerprint; memory, threads and paths of
output do not. Knows nothing of the data: whether a file or a column is there is the sources' to say.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer, model_validator

from nearcast.errors import SpecError
from nearcast.files import path_fault
from nearcast.types import Metric
from nearcast.webhook import parse_webhook, shorten_url

__all__ = [
    "CHECK_KINDS",
    "Audit",
    "CapOf",
    "Checks",
    "Exposure",
    "GeneratorSpec",
    "Measuring",
    "Monitoring",
    "Policy",
    "Publishing",
    "RuleSpec",
    "Score",
    "Serving",
    "Source",
    "Surplus",
    "allowed_policies",
    "example",
    "json_schema",
    "load_spec",
    "parse_bytes",
    "parse_model",
    "read_tables",
]

Policy = Literal["error", "drop", "keep"]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SMALLEST_BUDGET = 16 << 20
KNOWN_KEYS = "; known keys are "  # before the list of them, in a fault


def parse_bytes(value: object) -> int:
    """Read an amount of memory: a number of bytes, or text such as "4GB" or "512 MiB"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match is None or match[2].upper() not in UNITS:
        raise ValueError('it is not an amount of memory; write it like "4GB" or "512MB"')
    return int(float(match[1]) * UNITS[match[2].upper()])


Whole = Annotated[int, Field(strict=True)]  # true is no number, nor is "50"
Share = Annotated[float, Field(strict=True)]
Model = TypeVar("Model", bound=BaseModel)
ByteCount = Annotated[int, BeforeValidator(parse_bytes), Field(ge=SMALLEST_BUDGET)]
Rate = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=False)


class Source(_Table):
    """Where one side of the join comes from."""

    path: str = Field(description="Parquet file, folder or glob, or one .npy file; relative to this file")
    id: str = Field("id", description="column of the ids: strings or integers")
    vector: str = Field("vector", description="column of the vectors: a list of float16, float32 or float64")
    ids: str | None = Field(
        None, description="with .npy vectors: the file of their ids (.npy, .txt with one a line, or .parquet)"
    )
    only: str | None = Field(
        None, description="Parquet file of the ids to keep (in a column of the same name), as `nearcast head` writes it"
    )
    attributes: tuple[str, ...] = Field((), description="columns that travel along to the snapshot")
    display: tuple[str, ...] = Field((), description="columns that a look-up shows to people")
    embedding: str | None = Field(None, description="version of the model that made these vectors")
    weight: str | None = Field(None, description="column of a query's traffic, for recall as requests see it")

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes, display columns and the weight, each once, in the order given."""
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
            raise ValueError(f"{reserved!r} is the id or vector column already; leave it out of the attributes")
        if "id" in self.columns:
            raise ValueError("a snapshot calls its ids 'id'; rename the attribute 'id' in the source")
        return self


class Checks(_Table):
    """What to do about each kind of bad input: stop (error), leave the rows out (drop), or let them be (keep)."""

    not_finite: Policy = Field("error", description="a vector holds NaN, infinity or null")
    zero_vector: Policy | None = Field(
        None, description="a vector of zeros; without a policy: error for cosine, keep for the other metrics"
    )
    wrong_dimension: Policy = Field("error", description="a vector is shorter or longer than the first one")
    null_vector: Policy = Field("error", description="a row has an id but no vector")
    duplicate_id: Literal["error", "drop"] = Field("error", description="an id occurs again; drop keeps the first")
    null_id: Literal["error", "drop"] = Field("error", description="a row has no id")
    id_type: Literal["error"] = Field("error", description="files disagree on the type of the ids")
    empty_input: Literal["error"] = Field("error", description="no row is left to join")
    k_above_items: Literal["error", "keep"] = Field("error", description="k is above the number of items")
    embedding: Literal["error", "keep"] = Field(
        "error", description="queries and items declare different embedding versions"
    )

    def policy(self, kind: str, metric: Metric) -> Policy:
        """The policy of a kind, with the default that depends on the metric filled in."""
        chosen: Policy | None = getattr(self, kind)
        if chosen is not None:
            return chosen
        return "error" if metric is Metric.COSINE else "keep"


CHECK_KINDS = tuple(Checks.model_fields)


def allowed_policies(kind: str) -> tuple[str, ...]:
    """The policies that a kind of bad input can have."""
    annotation = Checks.model_fields[kind].annotation
    found = [a for a in get_args(annotation) if a is not type(None)]
    return tuple(w for a in found for w in (get_args(a) or (a,)))


class RuleSpec(_Table):
    """Who may see what: pairs of a query and an item for which the expression is true are kept."""

    name: Name = Field(description="what this rule is called where it is told what it removed")
    keep: str = Field(description='such as "item.countries has query.country"; docs/rules.md has the language')


class Measuring(_Table):
    """How the snapshot is measured."""

    sample: Whole = Field(2000, ge=1, description="queries on which recall is measured against exact truth")
    calibration: Whole = Field(
        1000, ge=20, description="other queries: so many to find the effort, as many to check it"
    )
    fill_at: Whole | None = Field(
        None, ge=1, description="candidates that a list should have: how many have them is told"
    )
    slices: tuple[str, ...] = Field((), description="attributes of the queries by whose values recall is told too")


class Score(_Table):
    """What an item's own figures do to its scores, inside the join."""

    add: str | None = Field(None, description="attribute of the items, times `weight`, that is added to every score")
    weight: float = Field(1.0, allow_inf_nan=False, description="what `add` is multiplied by")
    multiply: str | None = Field(None, description="attribute of the items that scores are multiplied by; not under l2")
    missing: float | None = Field(None, allow_inf_nan=False, description="what stands for a null; an error")

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes that it takes; none for scores as the metric has them."""
        return tuple(name for name in (self.add, self.multiply) if name is not None)


class CapOf(_Table):
    """At most so many items of a group in one list."""

    by: str | None = Field(None, description="attribute of the items: at most so many of each of its values")
    alike: Share | None = Field(None, gt=0, le=1, description="or items of at least this cosine, as one group")
    most: Whole = Field(1, ge=1, description="items of a group that a list may hold")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.by is None) == (self.alike is None):
            raise ValueError("a cap is either by an attribute or for items that are alike; write one of by and alike")
        return self


class Surplus(_Table):
    """How many candidates a query stores, so that enough survive until the request. `k` is the most."""

    at_least: Whole = Field(ge=1, description="candidates that should survive until the request")
    probability: Share = Field(0.95, gt=0, le=1, description="with which so many should; more slots are not given")
    survival: str | None = Field(None, description="attribute of the items: the probability that an item survives")
    log: str | None = Field(None, description="or a Parquet log of look-ups to learn it from: item, survived")
    like: str | None = Field(
        None, description="attribute of the items: a hardly seen item is held to be like its group"
    )
    together: str | None = Field(None, description="attribute of the items, such as the advertiser: lost together")
    slots: float | None = Field(None, ge=1, description="size of the table: slots a query on average; as they need")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.survival is None) == (self.log is None):
            raise ValueError(
                "survival is an attribute of the items or learned from a log; write one of survival and log"
            )
        if self.like is not None and self.log is None:
            raise ValueError("like goes with a log: it is where an item that was hardly seen takes its survival from")
        if self.slots is not None and self.slots < self.at_least:
            raise ValueError(f"{self.slots:g} slots a query leave no query {self.at_least} survivors; give more slots")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes of items that it needs."""
        return tuple(name for name in (self.survival, self.like, self.together) if name is not None)


class Exposure(_Table):
    """How many lists an item may be in."""

    most: Whole = Field(ge=1, description="lists that an item may be in")
    per_query: Whole = Field(ge=1, le=10_000, description="candidates found for each query, to choose its k from")


PASSWORD_IN_URL = re.compile(r"^([A-Za-z0-9+.-]+://[^:/?#@]*):.*@", re.DOTALL)


class Publishing(_Table):
    """Where and how snapshots are published. None of it changes the answer."""

    store: str = Field("lmdb:store", description="lmdb:PATH relative to `out`, or redis://host:port/db")
    keep: Whole = Field(3, ge=1, le=100, description="versions that the store keeps, the current one among them")
    keep_snapshots: Whole | None = Field(
        None, ge=1, description="newest snapshots that are kept on disk after a publish; all"
    )
    max_bytes_per_second: Rate | None = Field(None, description='throttle of the copy, such as "50MB"; none')

    @field_serializer("store", when_used="json")
    def _hide_password(self, store: str) -> str:
        """The URL as a manifest keeps it: with *** for a password."""
        return PASSWORD_IN_URL.sub(r"\1:***@", store)


class Audit(_Table):
    """What a snapshot must fulfil to be published: measures with bounds, some against what is current."""

    min_recall: Share | None = Field(
        None, ge=0, le=1, description="for the lower end of recall's interval; the promise"
    )
    min_fill_rate: Share = Field(0.9, ge=0, le=1, description="slots that hold a candidate")
    min_fill_at: Share = Field(
        0.9, ge=0, le=1, description="lists with `measure.fill_at` candidates, where that is set"
    )
    min_query_coverage: Share = Field(0.95, ge=0, le=1, description="queries that have a candidate")
    min_queries_kept: Share = Field(0.9, ge=0, le=1, description="current keys that are in the snapshot too")
    min_keys: Whole = Field(1, ge=0, description="keys of the snapshot")
    max_keys_lost: Share = Field(0.1, ge=0, le=1, description="by how much there may be fewer keys than now")
    min_overlap: Share = Field(0.3, ge=0, le=1, description="overlap@k with the current lists: a mix-up shows here")
    max_age_hours: float = Field(48.0, gt=0, description="since the snapshot was made")
    max_size_change: float = Field(2.0, ge=1, description="factor by which its bytes may grow or shrink")
    max_items_lost: Share = Field(0.1, ge=0, le=1, description="share of the served number of items that may be lost")
    max_items_gained: float = Field(0.5, ge=0, description="growth of the number of items, as a share of the served")
    min_items_kept: Share = Field(0.7, ge=0, le=1, description="share of the served items that the snapshot still has")
    max_bad_rows: Share = Field(0.05, ge=0, le=1, description="rise of the share of rows that fail a check")
    max_empty: Share = Field(0.1, ge=0, le=1, description="rise of the share of null or empty values of a column")
    max_drift: float = Field(0.25, ge=0, description="PSI between a column's values and the served ones")
    skip_columns: tuple[str, ...] = Field((), description="columns that are not compared")
    max_values_changed: Share = Field(0.5, ge=0, le=1, description="share of common rows whose text or flag differs")
    max_values_scaled: Share = Field(
        0.25, ge=0, le=1, description="share of common rows whose number grew or fell 3 times"
    )
    max_pairs_drift: float = Field(0.25, ge=0, description="PSI of the share of pairs that a rule keeps")
    max_vectors_changed: Share = Field(0.2, ge=0, le=1, description="share of common ids whose vector differs")
    max_length_change: float = Field(1.5, ge=1, description="factor of the median vector length; not for cosine")


class Serving(_Table):
    """How a service answers for this generator."""

    default_keys: tuple[str | int, ...] = Field((), description="keys whose lists stand in on a miss, in turn")
    default_items: tuple[str | int, ...] = Field((), description="items that stand in when nothing else does")
    online_recall: Share = Field(0.95, gt=0, le=1, description="recall that searches by vector aim for")


class Monitoring(_Table):
    """What `nearcast monitor` looks at, and what it calls too much. None of it changes the answer."""

    sample: Whole = Field(1000, ge=20, description="served lists that are held against today's items")
    window_hours: float = Field(24.0, gt=0, description="look-ups of so long ago are sampled")
    min_recall_today: Share | None = Field(
        None, ge=0, le=1, description="of served lists among today's items; nine tenths of the promise"
    )
    max_dead: Share = Field(0.1, ge=0, le=1, description="served candidates that are no items any more")
    webhook: str | None = Field(None, description="URL that alerts are posted to as JSON")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.webhook is not None:
            parse_webhook(self.webhook)  # its ValueError says what to write
        return self

    @field_serializer("webhook", when_used="json")
    def _without_secrets(self, webhook: str | None) -> str | None:
        """Leave out what a manifest must not show: a chat service's URL is a secret."""
        return None if webhook is None else shorten_url(webhook)


class Ranking(_Table):
    """A model that ranks what the join has found. The join fetches more, and the best k by the model stay."""

    function: str | None = Field(
        None, description='"module:function", a module beside this file or installed; else `model`. See docs/ranking.md'
    )
    model: str | None = Field(None, description="an ONNX file, relative to this file; needs nearcast[onnx]")
    fetch: Whole = Field(ge=1, le=10_000, description="candidates that the join finds for the model to rank; k or more")
    version: str = Field("", description="change it when the model changes in a way that its own file does not show")
    batch: Whole = Field(16_384, ge=1, description="pairs of query and candidate in a call; whole queries at a time")
    timeout_seconds: float = Field(60.0, gt=0, description="that one call may take")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.function is None) == (self.model is None):
            raise ValueError('rank needs one of the two: function = "module:function" or model = "file.onnx"')
        if self.function is not None and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise ValueError(f'function is {self.function!r}: write it as "module:function"')
        return self


class GeneratorSpec(_Table):
    """A generator: everything that one candidate table depends on."""

    name: Name = Field(description="lower-case letters, digits, - _ . ; names the folder and the store keys")
    metric: Metric = Field(description="inner_product, cosine or l2")
    k: Whole = Field(ge=1, le=10_000, description="candidates per query")
    recall: Share = Field(1.0, gt=0, le=1, description="the recall@k that the snapshot promises")
    engine: str = Field("auto", description="auto, dense, exact, faiss-hnsw or faiss-ivf")
    engine_settings: dict[str, Any] = Field(default_factory=dict, description="settings of the named engine")
    exclude_self: bool = Field(False, description="never give a query the item with its own id")
    seed: Whole = Field(0, ge=0, description="start of every random choice")
    memory: ByteCount | None = Field(None, description='memory budget, such as "4GB"; half of what is free')
    threads: Whole | None = Field(None, ge=1, le=1024, description="worker threads; all cores")
    out: str = Field("nearcast", description="folder of the snapshots of all generators, relative to this file")
    items: Source = Field(description="what may be returned")
    queries: Source | None = Field(None, description="what candidates are wanted for; the items themselves")
    min_score: float | None = Field(None, allow_inf_nan=False, description="a candidate scores at least this; no limit")
    caps: tuple[CapOf, ...] = Field((), description="groups of items of which a list may hold only so many")
    rules: tuple[RuleSpec, ...] = Field(
        (), description="which items a query may get: [[rules]] tables with name and keep, see docs/rules.md"
    )
    surplus: Surplus | None = Field(None, description="how many candidates are stored, so that enough survive")
    exposure: Exposure | None = Field(None, description="how many lists an item may be in")
    score: Score = Score()
    rank: Ranking | None = Field(None, description="a model that ranks what the join has found: see the end; none")
    checks: Checks = Checks()
    measure: Measuring = Measuring()
    publish: Publishing = Publishing()
    audit: Audit = Audit()
    serve: Serving = Serving()
    monitor: Monitoring = Monitoring()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if fault := path_fault(self.out):
            raise ValueError(f"out: {fault}")
        if self.queries is not None and self.items.weight is not None:
            raise ValueError("weight is the traffic of queries: write it in [queries]")
        for column in self.score.columns:
            if column not in self.items.columns:
                raise ValueError(f"score names {column!r}; add it to the attributes of [items]")
        for cap in self.caps:
            if cap.by is not None and cap.by not in self.items.columns:
                raise ValueError(f"a cap is by {cap.by!r}; add it to the attributes of [items]")
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} rules are called {name!r}; give each a name of its own")
        for name in self.surplus.columns if self.surplus else ():
            if name not in self.items.columns:
                raise ValueError(f"surplus names {name!r}; add it to the attributes of [items]")
        if self.surplus and self.surplus.at_least > self.k:
            raise ValueError(f"surplus.at_least is {self.surplus.at_least}, and a list holds k = {self.k}; raise k")
        if self.exposure and self.exposure.per_query < self.k:
            raise ValueError(
                f"exposure.per_query is {self.exposure.per_query}: find at least k = {self.k} for each query"
            )
        if self.rank is not None and self.rank.fetch < self.k:
            raise ValueError(f"rank.fetch is {self.rank.fetch}, and k is {self.k}: fetch at least as many as are kept")
        if self.rank is not None and self.caps:
            raise ValueError("caps are kept by the join, which a ranking model comes after; leave one of the two out")
        if self.rank is not None and (self.surplus or self.exposure):
            other = "surplus" if self.surplus else "exposure"
            raise ValueError(
                f"{other} plans by the join's own scores, and rank orders by a model's; leave one of them out"
            )
        if self.measure.fill_at is not None and self.measure.fill_at > self.k:
            raise ValueError(f"measure.fill_at is {self.measure.fill_at}, and a list holds k = {self.k}; lower it")
        columns = (*self.items.columns, *self.query_source.columns)
        for name in self.audit.skip_columns:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"columns are {', '.join(columns) or 'none'}"
                raise ValueError(f"audit.skip_columns names {name!r}; {hint}")
        side = "queries" if self.queries is not None else "items"
        for name in self.measure.slices:
            if name not in self.query_source.columns:
                raise ValueError(f"measure.slices names {name!r}; add it to the attributes of [{side}]")
        return self

    @property
    def found(self) -> int:
        """Candidates that the join finds for each query: k, or more for a model or an exposure cap to choose from."""
        if self.rank is not None:
            return self.rank.fetch
        return self.k if self.exposure is None else self.exposure.per_query

    @property
    def query_source(self) -> Source:
        """The source of the queries: the items themselves where none is given."""
        return self.queries or self.items

    def answer_settings(self) -> dict[str, Any]:
        """The settings that decide the answer, as plain data: what the fingerprint is made of."""
        return self.model_dump(
            mode="json",
            exclude={
                "memory": True,
                "threads": True,
                "out": True,
                "publish": True,
                "audit": True,
                "serve": True,
                "monitor": True,
                "surplus": {"log"},  # its contents count, not its place
                "rank": {"model", "timeout_seconds"},
                "items": {"path", "ids", "only"},
                "queries": {"path", "ids", "only"},
            },
        )


def load_spec(path: Path) -> GeneratorSpec:
    """Read a spec from a TOML file. SpecError names the file, the key and what would work."""
    tables = read_tables(path, "`nearcast spec` prints an example to start from")
    if "ads" in tables and "metric" not in tables:
        raise SpecError(
            f"{path} is the spec of an expansion table, which `nearcast expand` takes; here goes a generator's"
        )
    return parse_model(GeneratorSpec, tables, str(path))


def read_tables(path: Path, way_out: str) -> dict[str, Any]:
    """The tables of a TOML file; SpecError, with a way out, where it is none that can be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error  # which names the file again
        way_out = path_fault(str(path)) or way_out
        raise SpecError(f"{path} cannot be read: {what}; {way_out}") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from error


def parse_model(model: type[Model], tables: Mapping[str, Any], where: str) -> Model:
    """Check plain data against a model; SpecError lists every fault, unknown keys with a suggestion."""
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        faults = _without_repeated_hints([_fault(model, fault) for fault in error.errors()])
        raise SpecError(f"{where}: " + "; ".join(faults)) from None


def _without_repeated_hints(faults: list[str]) -> list[str]:
    """Return the faults with each list of known keys once."""
    said: set[str] = set()
    shorter = []
    for fault in faults:
        words, _, hint = fault.partition(KNOWN_KEYS)
        shorter.append(words if hint and hint in said else fault)
        said.add(hint)
    return shorter


def json_schema() -> dict[str, Any]:
    """The JSON schema of a spec, for editors."""
    return GeneratorSpec.model_json_schema()


def example() -> str:
    """A commented spec with every setting: required ones filled in, the others with their defaults."""
    lines = [
        "# A generator: the k best items for every query. `nearcast run generator.toml` makes a snapshot.",
        "",
    ]
    filled = {"name": '"similar-items"', "metric": '"cosine"', "k": "50"}
    shown: list[tuple[str, type[BaseModel]]] = [("items", Source), ("queries", Source), ("checks", Checks)]
    shown.append(("score", Score))
    shown += [("measure", Measuring), ("publish", Publishing), ("audit", Audit), ("serve", Serving)]
    shown.append(("monitor", Monitoring))
    off: list[tuple[str, type[BaseModel]]] = [("rank", Ranking), ("surplus", Surplus), ("exposure", Exposure)]
    tables = [table for table, _ in shown + off]
    for key, field in GeneratorSpec.model_fields.items():
        if key not in tables:
            lines += _example_line(key, field.description or "", filled.get(key), field.default)
    paths = {"items": '"items.parquet"', "queries": '"queries/*.parquet"'}
    for table, model in shown:
        lines += ["", f"[{table}]" + _table_comment(table)]
        for key, field in model.model_fields.items():
            given = paths.get(table) if key == "path" else None
            lines += _example_line(key, field.description or "", given, field.default)
    for table, model in off:
        lines += ["", f"# [{table}]   # off unless the table is there"]
        for key, field in model.model_fields.items():
            default = None if field.is_required() else field.default
            lines += [f"#   {key} = {_toml(default)}".ljust(34) + f"# {field.description}"]
    return "\n".join(lines) + "\n"


def _table_comment(table: str) -> str:
    return "   # leave this table out to join the items with themselves" if table == "queries" else ""


def _example_line(key: str, description: str, given: str | None, default: object) -> list[str]:
    if given is not None:
        return [f"{key} = {given}".ljust(34) + f"# {description}"]
    written = _toml(default)
    return [f"# {key} = {written}".ljust(34) + f"# {description}"]


def _toml(value: object) -> str:
    if value is None:
        return "..."
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else ("{}" if "Undefined" in repr(value) else str(value))


def _fault(model: type[BaseModel], fault: Any) -> str:
    """One fault of a spec as a clause that reads well aloud."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        others = _places_of(path[-1]) if model is GeneratorSpec else []
        if others and not difflib.get_close_matches(path[-1], known, n=1, cutoff=0.75):
            return f"unknown key {key!r}; it belongs to {' or '.join(others)}"
        hint = f"did you mean {near[0]!r}?" if near else ""
        return f"unknown key {key!r}" + (f"; {hint}" if hint else KNOWN_KEYS + ", ".join(known))
    if fault["type"] == "missing":
        return f"{key!r} is missing"
    message = _in_words(fault, path)
    if message is None:
        message = str(fault["msg"]).removeprefix("Value error, ")
        message = message[:1].lower() + message[1:] if message.startswith("Input") else message
    given = fault["input"]
    return message if not key or isinstance(given, dict) else f"{key} is {given!r}: {message}"


def _in_words(fault: Any, path: list[str]) -> str | None:
    """Better words for the faults that people make most, or None."""
    kind, limits = fault["type"], fault.get("ctx", {})
    if path[-1:] == ["name"] and kind == "string_pattern_mismatch":
        return "use lower-case letters, digits and - _ . and start with a letter or digit"
    if path == ["memory"] and kind == "greater_than_equal":
        return f"give at least {SMALLEST_BUDGET >> 20} MiB"
    if path == ["recall"] and kind == "less_than_equal":
        return "recall is a share: write 0.95 for 95%"
    if kind in ("model_type", "dict_type"):
        return f"it is a table: write [{'.'.join(path)}] and its settings below"
    if kind == "tuple_type" and path == ["rules"]:
        return "write each rule as a table of its own: [[rules]], with its name and keep below"
    if kind == "tuple_type":
        return f"write it as a list: [{fault['input']!r}]".replace("'", '"')
    if kind == "string_type":
        return "write it as a text, in quotes"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return "write a whole number"
    if kind == "greater_than_equal":
        return f"it is at least {limits['ge']}"
    return f"it is at most {limits['le']}" if kind == "less_than_equal" else None


def _places_of(key: str) -> list[str]:
    """Return the tables of a spec that have this key, as TOML writes them; "the top" for the spec itself."""
    places = ["the top of the file"] if key in GeneratorSpec.model_fields else []
    for name, field in GeneratorSpec.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        tables = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if any(key in table.model_fields for table in tables):
            several = any(getattr(option, "__origin__", option) is tuple for option in options) or (
                getattr(field.annotation, "__origin__", None) is tuple
            )
            places.append(f"[[{name}]]" if several else f"[{name}]")
    return places


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # a place in a list of tables
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
