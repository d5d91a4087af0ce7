"""The difference of two snapshots: candidates that came and went on sampled queries, counted by cause.

Uses the snapshots alone: their lists, attributes and specs. A changed vector shows in the scores: with its old score
the candidate would still be in the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility import Rule, collect_columns, failing
from nearcast.engines import ENGINES
from nearcast.errors import InputError
from nearcast.join.compile_constraints import parse_rules
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.table.snapshot import Snapshot
from nearcast.times import to_rows

__all__ = ["Change", "Diff", "Went", "diff_snapshots"]

EXAMPLES = 3
NO_EFFECT = ("memory", "threads", "out", "publish", "audit", "serve", "monitor")  # settings without effect on lists

Id = str | int


class Went(StrEnum):
    """Why a candidate is in one list and not in the other. For a candidate that came, the other list is the older."""

    ITEM = "item"  # the item itself is only in one of the snapshots
    RULE = "rule"  # a rule of the other snapshot makes the pair ineligible
    CROWDED = "crowded"  # its score does not reach the other list: better items fill it
    CAPPED = "capped"  # its score reaches the other list, and better items of its group fill a cap there
    RANKED = "ranked"  # a ranking model has ordered one of the lists
    EXPOSED = "exposed"  # neither vector changed, and the other list has an exposure cap
    MISSED = "missed"  # neither vector changed, and the other, approximate join did not find the item
    RESCORED = "rescored"  # its vector or the query's changed, or the score terms
    UNCLEAR = "unclear"  # the other join is approximate, and no list shows whether a vector changed


@dataclass(frozen=True, slots=True)
class Change:
    """Candidates that came or went for one cause."""

    cause: str  # of Went; "rule NAME" for a rule
    candidates: int
    share: float  # of all that came, or went
    examples: tuple[tuple[Id, Id], ...]  # query and item


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences of the newer of two snapshots."""

    generator: str
    before: str
    after: str
    settings: tuple[str, ...]  # that changed, in words
    queries: int  # of both snapshots, that were compared
    queries_came: int  # of the sample of the newer one, not in the older
    kept: float  # share of the older lists' candidates that are still there, over the compared queries
    unchanged: float  # share of the compared queries whose lists hold the same
    came: tuple[Change, ...]
    went: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _List:
    """One query's list in one snapshot."""

    ids: tuple[Id, ...]
    scores: tuple[float, ...]
    k: int

    @property
    def threshold(self) -> float:
        """Score that a candidate must exceed to be in the list; -inf for a short list."""
        return self.scores[-1] if len(self.scores) >= self.k else -np.inf


class _SnapshotSample:
    """One of the two snapshots: its spec, and its lists of the sampled queries."""

    def __init__(self, snapshot: Snapshot, queries: Sequence[Id]) -> None:
        self.snapshot = snapshot
        self.spec = parse_model(GeneratorSpec, snapshot.manifest.spec, f"the spec of {snapshot.name}", recorded=True)
        self.queries = queries

    @cached_property
    def rules(self) -> list[Rule]:
        return parse_rules(self.spec)

    @property
    def approximate(self) -> bool:
        """Whether the join may have missed items."""
        engine = self.snapshot.manifest.engine
        return not ENGINES[engine.name].is_exact(engine.params)

    @cached_property
    def lists(self) -> dict[Id, _List]:
        """Lists of the sampled queries that the snapshot has."""
        dataset = self.snapshot.dataset("candidates")
        queries = pa.array(self.queries).cast(dataset.schema.field("query_id").type)
        columns = ["query_id", "candidate_ids", "scores"]
        rows = dataset.to_table(columns=columns, filter=pc.field("query_id").isin(queries), use_threads=False)
        return {
            row["query_id"]: _List(tuple(row["candidate_ids"]), tuple(row["scores"]), self.spec.k)
            for row in rows.to_pylist()
        }

    def read_attributes(self, folder: str, names: Sequence[str], ids: Iterable[Id]) -> dict[Id, dict[str, Any]]:
        """Read attributes by id, for the ids that the snapshot has."""
        dataset = self.snapshot.dataset(folder if self.snapshot.has(folder) else "items")
        known = [name for name in names if name in dataset.schema.names]
        keys = pa.array(sorted(ids)).cast(dataset.schema.field("id").type)
        table = dataset.to_table(columns=["id", *known], filter=pc.field("id").isin(keys), use_threads=False)
        return {row["id"]: row for row in to_rows(table)}


def diff_snapshots(older: Snapshot, newer: Snapshot, sample: int = 2000) -> Diff:
    """Compare the lists of evenly spread queries. Raises InputError if the snapshots' ids have different types."""
    rows = np.unique(np.linspace(0, max(0, newer.n_rows - 1), min(sample, newer.n_rows)).astype(np.int64))
    sampled = newer.rows(rows).column("query_id").to_pylist()
    kinds = [snapshot.dataset("candidates").schema for snapshot in (older, newer)]
    if any(kinds[0].field(name).type != kinds[1].field(name).type for name in ("query_id", "candidate_ids")):
        raise InputError(f"{older.name} and {newer.name} have ids of different types: nothing can be compared")
    before, after = _SnapshotSample(older, sampled), _SnapshotSample(newer, sampled)
    both = [query for query in sampled if query in before.lists]
    kept, unchanged, total = 0, 0, 0
    came: list[tuple[Id, Id]] = []
    went: list[tuple[Id, Id]] = []
    for query in both:
        old, new = set(before.lists[query].ids), set(after.lists[query].ids)
        kept, total, unchanged = kept + len(old & new), total + len(old), unchanged + (old == new)
        went += [(query, item) for item in before.lists[query].ids if item not in new]
        came += [(query, item) for item in after.lists[query].ids if item not in old]
    vectors = _Vectors.compare(before, after, both)
    return Diff(
        newer.generator,
        older.name,
        newer.name,
        tuple(_describe_settings(before.spec.model_dump(mode="json"), after.spec.model_dump(mode="json"))),
        len(both),
        len(sampled) - len(both),
        kept / total if total else 1.0,
        unchanged / len(both) if both else 1.0,
        _count_by_cause(came, there=after, other=before, vectors=vectors),
        _count_by_cause(went, there=before, other=after, vectors=vectors),
    )


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Queries and items whose vectors are proven equal, or changed, by the scores of both snapshots."""

    kept_queries: frozenset[Id]
    kept_items: frozenset[Id]
    moved_queries: frozenset[Id]
    moved_items: frozenset[Id]

    @classmethod
    def compare(cls, before: _SnapshotSample, after: _SnapshotSample, queries: Sequence[Id]) -> _Vectors:
        """Compare pairs of both snapshots: equal scores prove equal vectors; other scores, that a partner changed."""
        same: list[tuple[Id, Id]] = []
        other: list[tuple[Id, Id]] = []
        for query in queries:
            then, now = (dict(zip(s.lists[query].ids, s.lists[query].scores, strict=True)) for s in (before, after))
            for item in then.keys() & now.keys():
                (same if then[item] == now[item] else other).append((query, item))
        kept_queries, kept_items = frozenset(q for q, _ in same), frozenset(i for _, i in same)
        return cls(
            kept_queries,
            kept_items,
            frozenset(q for q, i in other if i in kept_items),
            frozenset(i for q, i in other if q in kept_queries),
        )

    def has_moved(self, query: Id, item: Id) -> bool | None:
        """Return whether one of the two has another vector; None if the scores do not show it."""
        if query in self.moved_queries or item in self.moved_items:
            return True
        return False if query in self.kept_queries and item in self.kept_items else None


def _count_by_cause(
    pairs: Sequence[tuple[Id, Id]], *, there: _SnapshotSample, other: _SnapshotSample, vectors: _Vectors
) -> tuple[Change, ...]:
    """Count pairs of one snapshot's lists by the cause that the other snapshot's lists lack them."""
    item_columns, query_columns, _ = collect_columns(other.rules)
    capped = [cap.by for cap in other.spec.caps if cap.by is not None]
    ids = {item for _, item in pairs}
    if capped:
        ids |= {item for query, _ in pairs for item in other.lists[query].ids}
    items = other.read_attributes("items", list(dict.fromkeys([*item_columns, *capped])), ids) if pairs else {}
    queries = other.read_attributes("queries", query_columns, {query for query, _ in pairs}) if pairs else {}
    counts: Counter[str] = Counter()
    examples: dict[str, list[tuple[Id, Id]]] = {}
    for query, item in pairs:
        cause = _find_cause(query, item, there, other, items, queries)
        if cause == Went.RESCORED:
            cause = str(_find_close_cause(query, item, there, other, items, vectors))
        counts[cause] += 1
        if len(examples.setdefault(cause, [])) < EXAMPLES:
            examples[cause].append((query, item))
    return tuple(Change(cause, n, n / len(pairs), tuple(examples[cause])) for cause, n in counts.most_common())


def _find_cause(
    query: Id,
    item: Id,
    there: _SnapshotSample,
    other: _SnapshotSample,
    items: Mapping[Id, dict[str, Any]],
    queries: Mapping[Id, dict[str, Any]],
) -> str:
    if item not in items:
        return str(Went.ITEM)
    rule = failing(other.rules, queries.get(query, {"id": query}), items[item]) if other.rules else None
    if rule is not None:
        return f"{Went.RULE} {rule}"
    listed = there.lists[query]
    score = listed.scores[listed.ids.index(item)]
    return str(Went.CROWDED if score <= other.lists[query].threshold else Went.RESCORED)


def _find_close_cause(
    query: Id,
    item: Id,
    there: _SnapshotSample,
    other: _SnapshotSample,
    items: Mapping[Id, dict[str, Any]],
    vectors: _Vectors,
) -> Went:
    """Find why an item is not in a list that its score would reach."""
    for cap in other.spec.caps:
        if cap.by is not None and (group := items[item].get(cap.by)) is not None:
            members = sum(items.get(one, {}).get(cap.by) == group for one in other.lists[query].ids)
            if members >= cap.max_per_list:
                return Went.CAPPED
    if there.spec.rank is not None or other.spec.rank is not None:
        return Went.RANKED
    moved = vectors.has_moved(query, item)
    if moved or there.spec.score != other.spec.score:
        return Went.RESCORED
    if moved is False and other.spec.exposure is not None:
        return Went.EXPOSED
    if not other.approximate:
        return Went.CAPPED if any(cap.near_duplicate_cosine is not None for cap in other.spec.caps) else Went.RESCORED
    return Went.UNCLEAR if moved is None else Went.MISSED


def _describe_settings(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Describe the settings that differ."""
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old == new or (not prefix and key in NO_EFFECT):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _describe_settings(old, new, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} was {old!r} and is {new!r}"
