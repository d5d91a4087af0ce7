"""The cache of truth: exact neighbors of sampled queries, updated incrementally when items change.

Gives the same bits as `find_truth`. Cached lists are longer than requested. An update removes items that were deleted
or changed, and joins only new and changed items. A query whose list becomes too short to be proven exact is joined with
all items. Items are read in blocks. The caller holds a lock on the folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.files import fingerprint
from nearcast.knn.exact_join import exact_join
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.knn.update_lists import KnownLists, bound_lists, concat_lists, move_lists, update_lists
from nearcast.measure.sampled_recall import find_truth, resolve_request
from nearcast.measure.truth_folders import (
    FORMAT,
    CachedLists,
    Note,
    cached_lists,
    ensure_state,
    lists_folder,
    open_lists,
    open_state,
    prune,
    write_lists,
)
from nearcast.sources.changes import TableChanges, compare_tables, hash_rows
from nearcast.sources.ids import find_positions, find_sorted_numbers
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.types import EMPTY_POSITION, AnyArray, FloatArray, IntArray, Neighbors, PartOfVectors, Progress, Vectors
from nearcast.version import __version__

__all__ = ["TruthCache", "cached_width"]

SLOT_BYTES = 12
COPIES = 6  # of all lists, at the peak of an update
LISTS_SHARE = 4  # these copies take so much of the memory, 1/n: other parts of a run take the rest
FRESH_SHARE = 0.5  # of the items: with more new ones, joining all lists again costs no more
FRESH_BYTES = 32  # of an update, per new item


def cached_width(k: int) -> int:
    """Return the length of a cached list for k requested slots: it is joined again after losing about half of it."""
    return max(2 * k, k + 32)


@dataclass(frozen=True, slots=True)
class TruthCache:
    """A folder of exact neighbors of sampled queries. The caller holds a lock on the folder."""

    home: Path
    note: Note  # called with messages about damaged entries

    def find(
        self, inputs: Inputs, rows: IntArray, request: JoinRequest, resources: Resources, progress: Progress
    ) -> Neighbors:
        """Return the exact neighbors of the queries at these positions, from the cache as far as it holds them.

        Updates the cache. Tables must be as `ingest` writes them: in id order, in a folder that its inputs name.
        Joined without the cache: lists under constraints, lists whose cached form would not fit the memory, and lists
        of items in several ranges, since an update compares all items of two days.
        """
        k = request.k
        large = len(rows) * cached_width(k) * SLOT_BYTES * COPIES > resources.memory_bytes // LISTS_SHARE
        large |= inputs.items.ranges is not None
        if len(rows) == 0 or large or not request.constraints.free:
            return find_truth(inputs, rows, request, resources, progress)
        sample = _sample_queries(inputs, rows, request, resources, progress)
        best = _find_lists(self.home, sample, self.note).best
        return Neighbors(np.ascontiguousarray(best.positions[:, :k]), np.ascontiguousarray(best.scores[:, :k]))


@dataclass(frozen=True, slots=True)
class _TruthSample:
    """Sampled queries 0..n-1 with their request; the cache holds exact lists of them."""

    items: IngestedTable
    vectors: AnyArray  # (n, dim)
    ids: pa.Array  # (n,)
    hashes: npt.NDArray[np.uint8]  # (n, HASH_BYTES) of the vectors
    request: JoinRequest  # for these queries
    decides: dict[str, Any]  # everything that a list depends on besides its query and the items
    resources: Resources
    progress: Progress

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts that name the cached lists."""
        sample = fingerprint([[str(one) for one in self.ids.to_pylist()], self.hashes.tobytes().hex()])
        return {
            "decides": self.decides,
            "items": self.items.fingerprint,
            "sample": sample,
            "width": cached_width(self.request.k),
        }

    def join(
        self, chosen: IntArray, positions: IntArray | None = None, thresholds: FloatArray | None = None
    ) -> Neighbors:
        """Return exact lists of some of the queries, among all items or those at ascending `positions`.

        thresholds: (chosen,) scores that an item needs.
        """
        items: Vectors = self.items.vectors if positions is None else PartOfVectors(self.items.vectors, positions)
        request = replace(self.request.of_queries(chosen), k=cached_width(self.request.k), thresholds=thresholds)
        if request.exclude is not None and positions is not None:
            request = replace(request, exclude=find_sorted_numbers(request.exclude, positions))
        lists = exact_join(self.vectors[chosen], items, request, self.resources, self.progress)
        if positions is not None:
            slots = lists.positions != EMPTY_POSITION
            lists.positions[slots] = positions[lists.positions[slots]]
        return lists


def _sample_queries(
    inputs: Inputs, rows: IntArray, request: JoinRequest, resources: Resources, progress: Progress
) -> _TruthSample:
    items, queries = inputs.items, inputs.queries
    vectors = queries.vectors.take(rows)
    decides = {
        "metric": str(request.metric),
        "exclude_self": request.exclude_self,
        "dim": items.vectors.dim,
        "types": [str(kind) for kind in (queries.vectors.dtype, items.vectors.dtype, queries.ids.type, items.ids.type)],
        "nearcast": [__version__, FORMAT],
    }
    ids, hashes = queries.ids.take(pa.array(rows)), hash_rows(vectors)
    resolved = resolve_request(request, inputs, rows)
    return _TruthSample(items, vectors, ids, hashes, resolved, decides, resources, progress)


def _find_lists(home: Path, sample: _TruthSample, note: Note) -> KnownLists:
    """Return the lists of the sample, the first k of each exact, from the cache or made with its help."""
    cached = open_lists(lists_folder(home, sample.facts), note)
    if cached is not None:
        return cached.known
    known = _complete_lists(home, sample, note)
    state = ensure_state(home, sample.items, note)
    write_lists(home, CachedLists(sample.facts, sample.ids, sample.hashes, known, state.name))
    prune(home)
    return known


def _complete_lists(home: Path, sample: _TruthSample, note: Note) -> KnownLists:
    """Return updated cached lists, and lists joined with all items for the other queries."""
    rows, known = _update_cached(home, sample, note)
    good = known.complete(sample.request.k)
    rows, known = rows[good], known.rows(good)
    missing = np.setdiff1d(np.arange(len(sample.ids)), rows)
    if not len(missing):
        return known
    if not len(rows):
        return bound_lists(sample.join(missing))
    return concat_lists([known, bound_lists(sample.join(missing))], np.argsort(np.concatenate([rows, missing])))


def _update_cached(home: Path, sample: _TruthSample, note: Note) -> tuple[IntArray, KnownLists]:
    """Return the queries of the sample with cached lists, ascending, and these lists among the current items."""
    width = cached_width(sample.request.k)
    nothing = np.empty(0, np.int64), bound_lists(Neighbors.empty(0, width))
    nearest = _find_nearest(home, sample, note)
    if nearest is None:
        return nothing
    cached, rows, cached_rows = nearest
    known = cached.known.rows(cached_rows)
    slots = known.best.positions != EMPTY_POSITION
    listed, listed_of = np.unique(known.best.positions[slots], return_inverse=True)
    edges, edge_of = np.unique(known.bound_edges, return_inverse=True)
    changes = _find_changes(home, cached, sample, listed, edges, note)
    if changes is None:
        return nothing
    positions = np.full(slots.shape, EMPTY_POSITION, np.int64)
    positions[slots] = changes.now[listed_of]
    known = move_lists(known, positions, changes.before[edge_of])
    none = Neighbors.empty(len(rows), width)
    fresh = sample.join(rows, changes.fresh, known.bound_scores) if len(changes.fresh) else none
    return rows, update_lists(known, fresh, width)


def _find_nearest(home: Path, sample: _TruthSample, note: Note) -> tuple[CachedLists, IntArray, IntArray] | None:
    """Return the cached lists with most queries of the sample, these queries' rows in the sample, and in the lists."""
    best: tuple[CachedLists, IntArray, IntArray] | None = None
    for cached in cached_lists(home, note):
        if cached.facts["decides"] != sample.decides:
            continue
        cached_rows = find_positions(sample.ids, cached.ids)
        rows = np.flatnonzero(cached_rows >= 0)
        rows = rows[(cached.hashes[cached_rows[rows]] == sample.hashes[rows]).all(axis=1)]
        if len(rows) > (0 if best is None else len(best[1])):
            best = cached, rows, cached_rows[rows]
    return best


def _find_changes(
    home: Path, cached: CachedLists, sample: _TruthSample, listed: IntArray, edges: IntArray, note: Note
) -> TableChanges | None:
    """Return the changes of the listed items and the edges; None if a join with all items costs no more."""
    if cached.facts["items"] == sample.items.fingerprint:
        return TableChanges(listed, edges, np.empty(0, np.int64))
    old = open_state(home / cached.state, note)
    if old is None:
        return None
    new = open_state(ensure_state(home, sample.items, note), note)
    assert new is not None
    most = min(int(FRESH_SHARE * len(new.ids)), sample.resources.memory_bytes // FRESH_BYTES)
    return compare_tables(old, new, listed, edges, most=most)
