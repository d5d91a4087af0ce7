"""Why a candidate is in the list of one snapshot and not in that of the other.

Uses the snapshots alone: their lists, attributes and specs. A changed vector shows in the scores: with its old score
the candidate would still be in the list.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility import Rule, collect_columns, failing
from nearcast.engines import ENGINES
from nearcast.join.compile_constraints import parse_rules
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.table.snapshot import Snapshot
from nearcast.times import to_rows

__all__ = ["Id", "MovedVectors", "Pair", "QueryList", "SnapshotSample", "Went", "find_causes"]

ENOUGH_ITEMS = 30  # compared items of which none has moved: then the others have not, either

Id = str | int
Pair = tuple[Id, Id]  # query and item


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
class QueryList:
    """One query's list in one snapshot."""

    ids: tuple[Id, ...]
    scores: tuple[float, ...]
    k: int

    @property
    def threshold(self) -> float:
        """Score that a candidate must exceed to be in the list; -inf for a short list."""
        return self.scores[-1] if len(self.scores) >= self.k else -np.inf


class SnapshotSample:
    """One of the two snapshots: its spec, and its lists of the sampled queries."""

    def __init__(self, snapshot: Snapshot, queries: Sequence[Id], blocks: Sequence[tuple[Id, Id]] = ()) -> None:
        self.snapshot = snapshot
        self.blocks = blocks  # first and last id of the ranges that hold the queries; empty: they are anywhere
        self.spec = parse_model(GeneratorSpec, snapshot.manifest.spec, f"the spec of {snapshot.name}", recorded=True)
        self.queries = queries

    @cached_property
    def rules(self) -> list[Rule]:
        """Rules of the snapshot's spec."""
        return parse_rules(self.spec)

    @property
    def approximate(self) -> bool:
        """Whether the join may have missed items."""
        engine = self.snapshot.manifest.engine
        return not ENGINES[engine.name].is_exact(engine.params)

    @cached_property
    def lists(self) -> dict[Id, QueryList]:
        """Lists of the sampled queries that the snapshot has."""
        dataset = self.snapshot.dataset("candidates")
        queries = pa.array(self.queries).cast(dataset.schema.field("query_id").type)
        columns = ["query_id", "candidate_ids", "scores"]
        field = pc.field("query_id")
        chosen = field.isin(queries)
        if self.blocks:  # row groups outside of them are not read
            ranges = [(field >= first) & (field <= last) for first, last in self.blocks]
            chosen = functools.reduce(operator.or_, ranges) & chosen
        rows = dataset.to_table(columns=columns, filter=chosen, use_threads=False)
        return {
            row["query_id"]: QueryList(tuple(row["candidate_ids"]), tuple(row["scores"]), self.spec.k)
            for row in rows.to_pylist()
        }

    def read_attributes(self, folder: str, names: Sequence[str], ids: Iterable[Id]) -> dict[Id, dict[str, Any]]:
        """Read attributes by id, for the ids that the snapshot has."""
        dataset = self.snapshot.dataset(folder if self.snapshot.has(folder) else "items")
        known = [name for name in names if name in dataset.schema.names]
        keys = pa.array(sorted(ids)).cast(dataset.schema.field("id").type)
        table = dataset.to_table(columns=["id", *known], filter=pc.field("id").isin(keys), use_threads=False)
        return {row["id"]: row for row in to_rows(table)}


@dataclass(frozen=True, slots=True)
class MovedVectors:
    """Queries and items whose vectors are proven equal, or changed, by the scores of both snapshots."""

    kept_queries: frozenset[Id]
    kept_items: frozenset[Id]
    moved_queries: frozenset[Id]
    moved_items: frozenset[Id]
    all_kept: bool = False  # both snapshots were made of the same tables, or of equal rows
    scored_again: bool = False  # by the vectors of the newer snapshot: items that moved leave lists

    @classmethod
    def compare(
        cls,
        before: SnapshotSample,
        after: SnapshotSample,
        queries: Sequence[Id],
        scores_now: Mapping[Pair, float],
    ) -> MovedVectors:
        """Compare pairs of the older lists: equal scores prove equal vectors; other scores, that a partner changed.

        scores_now: of pairs of the older lists by the vectors of the newer snapshot, as far as they are known. The
        scores of the newer lists are used beside them. With other scores by the spec, nothing is proven.
        """
        nothing = frozenset[Id]()
        if (before.spec.metric, before.spec.score) != (after.spec.metric, after.spec.score):
            return cls(nothing, nothing, nothing, nothing)
        same: list[Pair] = []
        other: list[Pair] = []
        for query in queries:
            then, now = (dict(zip(s.lists[query].ids, s.lists[query].scores, strict=True)) for s in (before, after))
            for item, score in then.items():
                current = scores_now.get((query, item), now.get(item))
                if current is not None:
                    (same if score == current else other).append((query, item))
        kept_queries, kept_items = frozenset(q for q, _ in same), frozenset(i for _, i in same)
        return cls(
            kept_queries,
            kept_items,
            frozenset(q for q, i in other if i in kept_items),
            frozenset(i for q, i in other if q in kept_queries),
            _list_tables(before) == _list_tables(after) or _has_compared_equal(before, after),
            bool(scores_now),
        )

    def has_moved(self, query: Id, item: Id) -> bool | None:
        """Return whether one of the two has another vector; None if the scores do not show it."""
        if self.all_kept:
            return False
        if query in self.moved_queries or item in self.moved_items:
            return True
        return False if query in self.kept_queries and item in self.kept_items else None

    def seems_kept(self, query: Id) -> bool:
        """Return whether the query's vector is equal, and no item has moved of all that were scored again."""
        enough = len(self.kept_items) >= ENOUGH_ITEMS and not self.moved_items
        return self.scored_again and enough and query in self.kept_queries


def _list_tables(sample: SnapshotSample) -> list[str]:
    """Return the names of the ingested tables, which are hashes of their rows."""
    return sorted(name for name in sample.snapshot.manifest.artifacts if name.startswith(("items-", "queries-")))


def _has_compared_equal(before: SnapshotSample, after: SnapshotSample) -> bool:
    """Return whether the run of the newer snapshot has compared its rows with the older one's, and none has changed."""
    changes = (after.snapshot.manifest.run.incremental or {}).get("changes") or {}
    is_next = after.snapshot.version == before.snapshot.version + 1
    return is_next and bool(changes) and all(table["changed"] == 0 for table in changes.values())


def find_causes(
    pairs: Sequence[Pair], *, there: SnapshotSample, other: SnapshotSample, vectors: MovedVectors
) -> list[str]:
    """Return for each pair of one snapshot's lists the cause that the other's lists lack it: Went, or "rule NAME"."""
    if not pairs:
        return []
    item_columns, query_columns, _ = collect_columns(other.rules)
    capped = [cap.by for cap in other.spec.caps if cap.by is not None]
    ids = {item for _, item in pairs}
    if capped:
        ids |= {item for query, _ in pairs for item in other.lists[query].ids}
    items = other.read_attributes("items", list(dict.fromkeys([*item_columns, *capped])), ids)
    queries = other.read_attributes("queries", query_columns, {query for query, _ in pairs})
    causes: list[str] = []
    for query, item in pairs:
        cause = _find_cause(query, item, there, other, items, queries)
        if cause == Went.RESCORED:
            cause = str(_find_close_cause(query, item, there, other, items, vectors))
        causes.append(cause)
    return causes


def _find_cause(
    query: Id,
    item: Id,
    there: SnapshotSample,
    other: SnapshotSample,
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
    there: SnapshotSample,
    other: SnapshotSample,
    items: Mapping[Id, dict[str, Any]],
    vectors: MovedVectors,
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
