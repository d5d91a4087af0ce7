"""Validation of the query and item tables: which rows are bad, how many, and which policy applies.

Turns the facts of a table into a report under the policies of the spec. Bad rows are found before the join. Knows
nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.errors import InputError
from nearcast.sources.row_source import RowSource
from nearcast.sources.table_facts import RowFault, TableFacts
from nearcast.spec import GeneratorSpec, allowed_policies

__all__ = [
    "Problem",
    "Report",
    "TableReport",
    "raise_on_errors",
    "report_inputs",
    "report_table",
    "require_same_id_types",
]

# the problem of the rows with each fault, in words
FAULT_TEXTS = {
    "null_vector": "no vector",
    "wrong_dimension": "a vector whose length is not {dim}, the length of most",
    "not_finite": "a vector with NaN, infinity or null in it (or longer than 1e18)",
    "zero_vector": "a vector of zeros, which has no direction",
    "null_id": "no id",
    "duplicate_id": "an id that has occurred before",
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
    id_bytes: int = 0  # mean length of a listed id, rounded up; 0 if an earlier version ingested the table

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


def report_table(table: str, facts: TableFacts, source: RowSource, spec: GeneratorSpec) -> TableReport:
    """Report the rows of one table under the policies of the spec. Raises nothing."""
    return TableReport(
        rows=facts.rows,
        vectors=facts.vectors,
        listed=facts.listed,
        dim=facts.dim,
        dtype=facts.dtype,
        norms=dict(facts.norms),
        problems=tuple(_make_problem(table, fault, facts.dim, source, spec) for fault in facts.faults),
        id_bytes=facts.id_bytes,
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


def _policy_hint(errors: tuple[Problem, ...]) -> str:
    """Name the policies under which each kind of problem would pass."""
    hints = []
    for kind in dict.fromkeys(p.kind for p in errors if p.side != "join" or p.kind != "wrong_dimension"):
        others = [word for word in ("drop", "keep") if word in allowed_policies(kind)]
        if others:
            hints.append(f"{kind} can be set to {' or '.join(others)}")
    return f"\nMend the data, or see [checks] in the spec: {'; '.join(hints)}." if hints else "\nMend the data."


def _make_problem(table: str, fault: RowFault, dim: int, source: RowSource, spec: GeneratorSpec) -> Problem:
    rows = "1 row has" if fault.count == 1 else f"{fault.count:,} rows have"
    sentence = f"{rows} {FAULT_TEXTS[fault.kind].format(dim=dim)}"
    if fault.kind == "wrong_dimension" and dim == 0:
        sentence = f"all vectors are empty: {rows} a vector without components"
    examples = tuple(_describe_row(source, row, key, fault.kind) for row, key in fault.examples)
    first_places = tuple(_describe_row(source, row, key, fault.kind) for row, key in fault.firsts)
    policy = spec.checks.policy(fault.kind, spec.metric)
    return Problem(table, fault.kind, fault.count, policy, sentence, examples, first_places)


def _describe_row(source: RowSource, row: int, key: str | int | None, kind: str) -> str:
    where = source.where(row)
    return where if kind == "null_id" else f"{key!r} ({where})"


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
