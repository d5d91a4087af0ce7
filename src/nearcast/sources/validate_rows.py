"""The checks on both sides of a join: what is wrong with the rows, how often, and what is done about it.

`scan` reads a source once; `judge` turns what it saw into a report under the policies of the spec. Bad rows
are found here, before the join, or nowhere. Knows nothing of engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import InputError
from nearcast.sources.ids import order_of, repeats
from nearcast.sources.matrix import (
    RowState,
    common_dtype,
    lengths_and_states,
    list_lengths,
    to_matrix,
)
from nearcast.sources.row_source import RowSource
from nearcast.spec import GeneratorSpec, allowed_policies
from nearcast.types import FloatArray, IntArray, Progress, no_progress

__all__ = [
    "Kept",
    "Problem",
    "Report",
    "Scan",
    "TableReport",
    "check_id_types",
    "judge",
    "judge_side",
    "kept_rows",
    "norm_summary",
    "scan",
    "stop_on_errors",
]

EXAMPLES = 3
NORM_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

MEANINGS = {
    RowState.NULL_VECTOR: ("null_vector", "no vector"),
    RowState.WRONG_DIMENSION: ("wrong_dimension", "a vector whose length is not {dim}, the length of most"),
    RowState.NOT_FINITE: ("not_finite", "a vector with NaN, infinity or null in it (or longer than 1e18)"),
    RowState.ZERO_VECTOR: ("zero_vector", "a vector of zeros, which has no direction"),
}
WAYS_OUT = {
    "embedding": "embed both sides with one model",
    "k_above_items": "lower k or add items",
}


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a source has seen. Row i is the i-th row of all its parts."""

    source: RowSource
    ids: pa.Array  # (n,) int64 or large_string
    states: npt.NDArray[np.uint8]  # (n,) RowState of each row's vector
    lengths: FloatArray  # (n,) Euclidean length of each row's vector
    order: IntArray  # (n,) the rows in the order of their ids
    repeated: npt.NDArray[np.bool_]  # (n,) the id has occurred before
    dim: int  # of most vectors
    dtype: np.dtype[Any]  # what the vectors are kept as


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of trouble on one side, with up to three examples."""

    side: str  # "items", "queries" or "join"
    kind: str  # a field of spec.Checks
    count: int
    policy: str  # "error", "drop" or "keep"
    text: str
    examples: tuple[str, ...] = ()
    first_places: tuple[str, ...] = ()  # with duplicate ids: where the ids of the examples occur first

    def sentence(self) -> str:
        """The problem in words, with its examples and the way out."""
        if not self.examples:
            return self.text
        lead = ": " if len(self.examples) == self.count else ", for example "
        first = f"; first: {'; '.join(self.first_places)}; again" if self.first_places else ""
        return f"{self.text}{first}{lead}{'; '.join(self.examples)}"


@dataclass(frozen=True, slots=True)
class TableReport:
    """One side in figures: rows, vectors kept, and the lengths of its vectors."""

    rows: int
    vectors: int  # rows that take part in the join
    listed: int  # rows that the snapshot knows: the vectors, and rows kept without one
    dim: int
    dtype: str
    norms: dict[str, float]
    problems: tuple[Problem, ...]

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> TableReport:
        """The inverse of dataclasses.asdict."""
        lists = ("examples", "first_places")
        problems = (Problem(**p | {name: tuple(p.get(name, ())) for name in lists}) for p in facts["problems"])
        return cls(**{**facts, "problems": tuple(problems)})


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of all checks. A join of a set with itself has the same report on both sides."""

    items: TableReport
    queries: TableReport
    between: tuple[Problem, ...]  # what is wrong between the sides

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every problem, once."""
        own = self.items.problems if self.queries is self.items else self.items.problems + self.queries.problems
        return own + self.between

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems whose policy stops the run."""
        return tuple(p for p in self.problems if p.policy == "error")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Kept:
    """Which rows go on, in the order of their ids."""

    vector_rows: IntArray  # rows that take part in the join
    listed_rows: IntArray  # those, and rows kept in the table without a usable vector


def scan(source: RowSource, *, memory_bytes: int, side: str, progress: Progress = no_progress) -> Scan:
    """Read ids and vectors of a source, in batches, and mark every row.

    The dimension is that of most vectors. It is taken from the first one; should that have been an odd one,
    the source is read once more.
    """
    lengths: Counter[int] = Counter()
    seen = _scan_as(source, None, lengths, memory_bytes, side, progress)
    common = max(lengths, key=lambda length: lengths[length], default=seen.dim)
    return seen if common == seen.dim else _scan_as(source, common, Counter(), memory_bytes, side, progress)


def _scan_as(
    source: RowSource, dim: int | None, lengths: Counter[int], memory_bytes: int, side: str, progress: Progress
) -> Scan:
    """One pass, with vectors of `dim` components taken as good; counts the lengths of all into `lengths`."""
    ids: list[pa.Array] = []
    states: list[npt.NDArray[np.uint8]] = []
    norms: list[FloatArray] = []
    done = 0
    for batch in source.batches(vectors=True, attributes=False, memory_bytes=memory_bytes):
        found = list_lengths(batch.vectors)
        found = found[found > 0]
        lengths.update(dict(zip(*(part.tolist() for part in np.unique(found, return_counts=True)), strict=True)))
        dim = int(found[0]) if dim is None and len(found) else dim
        matrix, marks = to_matrix(batch.vectors, dim or 1)
        norm, marks = lengths_and_states(matrix, marks)
        ids.append(batch.ids)
        states.append(marks)
        norms.append(norm)
        done += len(marks)
        progress(f"check {side}", done, source.n_rows)
    all_ids = pa.concat_arrays(ids) if ids else pa.array([], source.id_type)
    order = order_of(all_ids)
    return Scan(
        source,
        all_ids,
        np.concatenate(states) if states else np.empty(0, np.uint8),
        np.concatenate(norms) if norms else np.empty(0, np.float32),
        order,
        repeats(all_ids, order),
        dim or 0,
        common_dtype({part.vector_type.value_type for part in source.parts}),
    )


def kept_rows(seen: Scan, spec: GeneratorSpec) -> Kept:
    """Apply the policies: which rows of a scan take part in the join, and which are listed without a vector."""
    identified = seen.ids.is_valid().to_numpy(zero_copy_only=False) & ~seen.repeated
    joined, listed = identified.copy(), identified.copy()
    for state, (kind, _) in MEANINGS.items():
        marked = seen.states == state
        keeps = spec.checks.policy(kind, spec.metric) == "keep"
        if not keeps:
            listed &= ~marked
        if not (keeps and state is RowState.ZERO_VECTOR):  # a kept zero vector is a vector like any other
            joined &= ~marked
    return Kept(seen.order[joined[seen.order]], seen.order[listed[seen.order]])


def judge_side(side: str, seen: Scan, spec: GeneratorSpec) -> TableReport:
    """Hold the rows of one side against the policies of the spec. Raises nothing."""
    kept = kept_rows(seen, spec)
    return TableReport(
        rows=len(seen.states),
        vectors=len(kept.vector_rows),
        listed=len(kept.listed_rows),
        dim=seen.dim,
        dtype=seen.dtype.name,
        norms=norm_summary(seen.lengths[kept.vector_rows]),
        problems=tuple(_row_problems(side, seen, spec)),
    )


def judge(items: TableReport, queries: TableReport, spec: GeneratorSpec) -> Report:
    """Hold the two sides against each other. Raises nothing: see `stop_on_errors`."""
    return Report(items, queries, tuple(_join_problems(items, queries, spec)))


def stop_on_errors(report: Report) -> None:
    """Raise InputError with every problem whose policy is "error"."""
    if report.errors:
        lines = [f"{p.side}: {p.sentence()} [{p.kind}]" for p in report.errors]
        raise InputError("the inputs did not pass the checks.\n  " + "\n  ".join(lines) + _policy_hint(report.errors))


def _policy_hint(errors: tuple[Problem, ...]) -> str:
    """Which policies would let each kind pass, where one would."""
    ways = []
    for kind in dict.fromkeys(p.kind for p in errors if p.side != "join" or p.kind != "wrong_dimension"):
        others = [word for word in ("drop", "keep") if word in allowed_policies(kind)]
        if others:
            ways.append(f"{kind} can be set to {' or '.join(others)}")
    return f"\nMend the data, or see [checks] in the spec: {'; '.join(ways)}." if ways else "\nMend the data."


def _row_problems(side: str, seen: Scan, spec: GeneratorSpec) -> Iterator[Problem]:
    masks = [(kind, text, seen.states == state) for state, (kind, text) in MEANINGS.items()]
    masks.append(("null_id", "no id", seen.ids.is_null().to_numpy(zero_copy_only=False)))
    masks.append(("duplicate_id", "an id that has occurred before", seen.repeated))
    for kind, text, mask in masks:
        count = int(np.count_nonzero(mask))
        if count:
            rows = "1 row has" if count == 1 else f"{count:,} rows have"
            what = f"{rows} {text.format(dim=seen.dim)}"
            if kind == "wrong_dimension" and seen.dim == 0:
                what = f"all vectors are empty: {rows} a vector without components"
            rows_shown = [int(row) for row in np.flatnonzero(mask)[:EXAMPLES]]
            examples = tuple(_example(seen, row, kind) for row in rows_shown)
            firsts = dict.fromkeys(_first_of(seen, row) for row in rows_shown) if kind == "duplicate_id" else {}
            places = tuple(_example(seen, row, kind) for row in firsts)
            yield Problem(side, kind, count, spec.checks.policy(kind, spec.metric), what, examples, places)


def _example(seen: Scan, row: int, kind: str) -> str:
    name = seen.ids[row].as_py()
    where = seen.source.where(row)
    return where if kind == "null_id" else f"{name!r} ({where})"


def _first_of(seen: Scan, row: int) -> int:
    """The first row with the id of this one: equal ids are side by side in the order, in the order of their rows."""
    place = int(np.flatnonzero(seen.order == row)[0])
    while seen.repeated[seen.order[place]]:
        place -= 1
    return int(seen.order[place])


def norm_summary(lengths: FloatArray) -> dict[str, float]:
    """Euclidean lengths of vectors in a few figures."""
    if len(lengths) == 0:
        return {}
    wide = lengths.astype(np.float64)
    summary = {"mean": float(wide.mean()), "min": float(wide.min()), "max": float(wide.max())}
    for q, value in zip(NORM_QUANTILES, np.quantile(wide, NORM_QUANTILES), strict=True):
        summary[f"p{round(q * 100):02d}"] = float(value)
    summary["unit_share"] = float(np.mean(np.abs(wide - 1) < 1e-2))
    return {name: round(value, 6) for name, value in summary.items()}


def _join_problems(items: TableReport, queries: TableReport, spec: GeneratorSpec) -> Iterator[Problem]:
    checks = spec.checks
    for side, report in (("items", items), ("queries", queries)):
        if report.vectors == 0 and not (side == "queries" and spec.queries is None):
            yield Problem(side, "empty_input", 1, checks.empty_input, _empty_text(report))
    if items.dim != queries.dim and items.vectors and queries.vectors:
        text = f"items have {items.dim} components and queries {queries.dim}: {WAYS_OUT['embedding']}"
        yield Problem("join", "wrong_dimension", 1, "error", text)
    reachable = items.vectors - (1 if spec.exclude_self and spec.queries is None else 0)
    if spec.k > reachable and items.vectors:
        reach = f"only {reachable:,} {'item is' if reachable == 1 else 'items are'} within a query's reach"
        text = f"k is {spec.k}, but {reach}: {WAYS_OUT['k_above_items']}"
        yield Problem("join", "k_above_items", 1, checks.k_above_items, text)
    of_items, of_queries = spec.items.embedding, spec.query_source.embedding
    if of_items != of_queries:
        yield Problem("join", "embedding", 1, checks.embedding, _embedding_text(of_items, of_queries))


def _empty_text(report: TableReport) -> str:
    if report.rows == 0:
        return "the source has no rows; check its path"
    if report.dim == 0 and any(problem.kind == "wrong_dimension" for problem in report.problems):
        return "all vectors are empty: none has a component; check the job that wrote them"
    rows = "the 1 row" if report.rows == 1 else f"the {report.rows:,} rows"
    return f"none of {rows} read can be joined; what was found wrong with them says why"


def _embedding_text(of_items: str | None, of_queries: str | None) -> str:
    if of_items is not None and of_queries is not None:
        return f"items are of embedding {of_items!r} and queries of {of_queries!r}: {WAYS_OUT['embedding']}"
    side, other = ("items", "queries") if of_queries is None else ("queries", "items")
    return (
        f"{side} declare embedding {of_items or of_queries!r} and {other} declare none; "
        f"add the same line to [{other}] if one model made both"
    )


def check_id_types(items: RowSource, queries: RowSource, *, exclude_self: bool) -> None:
    """Raise InputError where self-exclusion compares ids of two types, which would exclude nobody."""
    if exclude_self and items.id_type != queries.id_type:
        raise InputError(
            "exclude_self compares the ids of queries and items, but one side has strings and the other integers; "
            "write them as one type, or set exclude_self = false"
        )
