"""Validation of the query and item tables: which rows are bad, how many, and which policy applies.

Turns scans into a report under the policies of the spec. Bad rows are found here, before the join. Knows nothing of
engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nearcast.errors import InputError
from nearcast.sources.matrix import RowState
from nearcast.sources.row_source import RowSource
from nearcast.sources.scan_rows import CHECK_OF_STATE, Scan, select_rows
from nearcast.spec import GeneratorSpec, allowed_policies
from nearcast.types import FloatArray

__all__ = [
    "Problem",
    "Report",
    "TableReport",
    "raise_on_errors",
    "report_inputs",
    "report_table",
    "require_same_id_types",
    "summarize_norms",
]

EXAMPLES = 3
NORM_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
# the problem of the rows in each state, in words
STATE_TEXTS = {
    RowState.NULL_VECTOR: "no vector",
    RowState.WRONG_DIMENSION: "a vector whose length is not {dim}, the length of most",
    RowState.NOT_FINITE: "a vector with NaN, infinity or null in it (or longer than 1e18)",
    RowState.ZERO_VECTOR: "a vector of zeros, which has no direction",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem in one table, with up to three examples."""

    side: str  # "items", "queries" or "join"; the name of a key in manifests
    kind: str  # a check of the spec
    count: int
    policy: str  # "error", "drop" or "keep"
    text: str
    examples: tuple[str, ...] = ()
    first_places: tuple[str, ...] = ()  # of duplicate ids: the first rows with the ids of the examples

    def sentence(self) -> str:
        """Return the problem in words, with its examples."""
        if not self.examples:
            return self.text
        lead = ": " if len(self.examples) == self.count else ", for example "
        first = f"; first: {'; '.join(self.first_places)}; again" if self.first_places else ""
        return f"{self.text}{first}{lead}{'; '.join(self.examples)}"


@dataclass(frozen=True, slots=True)
class TableReport:
    """Figures of one table: rows, kept vectors, norms, problems."""

    rows: int
    vectors: int  # rows that take part in the join
    listed: int  # rows in the snapshot: the vectors, and rows kept without one
    dim: int
    dtype: str
    norms: dict[str, float]
    problems: tuple[Problem, ...]

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> TableReport:
        """Build a report from the data that dataclasses.asdict returns."""
        lists = ("examples", "first_places")
        problems = (Problem(**p | {name: tuple(p.get(name, ())) for name in lists}) for p in facts["problems"])
        return cls(**{**facts, "problems": tuple(problems)})


@dataclass(frozen=True, slots=True)
class Report:
    """The result of all checks. A join of a table with itself has one report for items and queries."""

    items: TableReport
    queries: TableReport
    between: tuple[Problem, ...]  # problems of the two tables together

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, each once."""
        own = self.items.problems if self.queries is self.items else self.items.problems + self.queries.problems
        return own + self.between

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems whose policy stops the run."""
        return tuple(p for p in self.problems if p.policy == "error")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def report_table(table: str, scan: Scan, spec: GeneratorSpec) -> TableReport:
    """Report the rows of one table under the policies of the spec. Raises nothing."""
    kept = select_rows(scan, spec)
    return TableReport(
        rows=len(scan.states),
        vectors=len(kept.vector_rows),
        listed=len(kept.listed_rows),
        dim=scan.dim,
        dtype=scan.dtype.name,
        norms=summarize_norms(scan.lengths[kept.vector_rows]),
        problems=tuple(_find_row_problems(table, scan, spec)),
    )


def report_inputs(items: TableReport, queries: TableReport, spec: GeneratorSpec) -> Report:
    """Report both tables, and problems between them. Raises nothing: see `raise_on_errors`."""
    return Report(items, queries, tuple(_find_join_problems(items, queries, spec)))


def raise_on_errors(report: Report) -> None:
    """Raise InputError with every problem whose policy is "error"."""
    if report.errors:
        lines = [f"{p.side}: {p.sentence()} [{p.kind}]" for p in report.errors]
        raise InputError("the inputs did not pass the checks.\n  " + "\n  ".join(lines) + _policy_hint(report.errors))


def require_same_id_types(items: RowSource, queries: RowSource, *, exclude_self: bool) -> None:
    """Raise InputError if self-exclusion would compare ids of two types, which are never equal."""
    if exclude_self and items.id_type != queries.id_type:
        raise InputError(
            "exclude_self compares the ids of queries and items, but one table has strings and the other integers; "
            "write them as one type, or set exclude_self = false"
        )


def summarize_norms(lengths: FloatArray) -> dict[str, float]:
    """Summarize Euclidean lengths, (n,): mean, extremes, quantiles, and the share of unit vectors."""
    if len(lengths) == 0:
        return {}
    wide = lengths.astype(np.float64)
    summary = {"mean": float(wide.mean()), "min": float(wide.min()), "max": float(wide.max())}
    for q, value in zip(NORM_QUANTILES, np.quantile(wide, NORM_QUANTILES), strict=True):
        summary[f"p{round(q * 100):02d}"] = float(value)
    summary["unit_share"] = float(np.mean(np.abs(wide - 1) < 1e-2))
    return {name: round(value, 6) for name, value in summary.items()}


def _policy_hint(errors: tuple[Problem, ...]) -> str:
    """Name the policies under which each kind of problem would pass."""
    hints = []
    for kind in dict.fromkeys(p.kind for p in errors if p.side != "join" or p.kind != "wrong_dimension"):
        others = [word for word in ("drop", "keep") if word in allowed_policies(kind)]
        if others:
            hints.append(f"{kind} can be set to {' or '.join(others)}")
    return f"\nMend the data, or see [checks] in the spec: {'; '.join(hints)}." if hints else "\nMend the data."


def _find_row_problems(table: str, scan: Scan, spec: GeneratorSpec) -> Iterator[Problem]:
    masks = [(check, STATE_TEXTS[state], scan.states == state) for state, check in CHECK_OF_STATE.items()]
    masks.append(("null_id", "no id", scan.ids.is_null().to_numpy(zero_copy_only=False)))
    masks.append(("duplicate_id", "an id that has occurred before", scan.repeated))
    for kind, text, mask in masks:
        count = int(np.count_nonzero(mask))
        if count:
            rows = "1 row has" if count == 1 else f"{count:,} rows have"
            sentence = f"{rows} {text.format(dim=scan.dim)}"
            if kind == "wrong_dimension" and scan.dim == 0:
                sentence = f"all vectors are empty: {rows} a vector without components"
            rows_shown = [int(row) for row in np.flatnonzero(mask)[:EXAMPLES]]
            examples = tuple(_describe_row(scan, row, kind) for row in rows_shown)
            firsts = dict.fromkeys(_first_row_of_id(scan, row) for row in rows_shown) if kind == "duplicate_id" else {}
            first_places = tuple(_describe_row(scan, row, kind) for row in firsts)
            policy = spec.checks.policy(kind, spec.metric)
            yield Problem(table, kind, count, policy, sentence, examples, first_places)


def _describe_row(scan: Scan, row: int, kind: str) -> str:
    where = scan.source.where(row)
    return where if kind == "null_id" else f"{scan.ids[row].as_py()!r} ({where})"


def _first_row_of_id(scan: Scan, row: int) -> int:
    """Return the first row with the id of this row. Rows of equal ids are adjacent in the order, first row first."""
    rank = int(np.flatnonzero(scan.order == row)[0])
    while scan.repeated[scan.order[rank]]:
        rank -= 1
    return int(scan.order[rank])


def _find_join_problems(items: TableReport, queries: TableReport, spec: GeneratorSpec) -> Iterator[Problem]:
    # the texts are stored in manifests: equal inputs give equal bytes across versions
    checks = spec.checks
    for table, report in (("items", items), ("queries", queries)):
        if report.vectors == 0 and not (table == "queries" and spec.queries is None):
            yield Problem(table, "empty_input", 1, checks.empty_input, _describe_empty(report))
    if items.dim != queries.dim and items.vectors and queries.vectors:
        text = f"items have {items.dim} components and queries {queries.dim}: embed both tables with one model"
        yield Problem("join", "wrong_dimension", 1, "error", text)
    available = items.vectors - (1 if spec.exclude_self and spec.queries is None else 0)
    if spec.k > available and items.vectors:
        count = f"only {available:,} {'item is' if available == 1 else 'items are'} within a query's reach"
        text = f"k is {spec.k}, but {count}: lower k or add items"
        yield Problem("join", "k_above_items", 1, checks.k_above_items, text)
    if spec.items.embedding != spec.query_source.embedding:
        text = _describe_embeddings(spec.items.embedding, spec.query_source.embedding)
        yield Problem("join", "embedding", 1, checks.embedding, text)


def _describe_empty(report: TableReport) -> str:
    if report.rows == 0:
        return "the source has no rows; check its path"
    if report.dim == 0 and any(problem.kind == "wrong_dimension" for problem in report.problems):
        return "all vectors are empty: none has a component; check the job that wrote them"
    rows = "the 1 row" if report.rows == 1 else f"the {report.rows:,} rows"
    return f"none of {rows} read can be joined; see the other problems for the causes"


def _describe_embeddings(items: str | None, queries: str | None) -> str:
    if items is not None and queries is not None:
        return f"items are of embedding {items!r} and queries of {queries!r}: embed both sides with one model"
    table, other = ("items", "queries") if queries is None else ("queries", "items")
    return (
        f"{table} declare embedding {items or queries!r} and {other} declare none; "
        f"add the same line to [{other}] if one model made both"
    )
