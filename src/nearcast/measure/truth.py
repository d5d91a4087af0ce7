"""The truth that is kept: exact neighbors of sampled queries, updated when items change instead of found anew.

To the bit what `truth_of` finds, whatever is kept. Lists are kept longer than they are asked for: items that have gone
or changed are taken out of them, only items that are new or changed are joined, and a query of whose list too little is
left to be proven is joined with all items. Items are read in blocks. Whoever calls holds a lock on the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.engines.base import Resources
from nearcast.files import fingerprint
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.exact_join import exact_join
from nearcast.knn.update_lists import KnownLists, all_lists, known_lists, moved_lists, renewed_lists
from nearcast.measure.sampled_recall import exclusions, truth_of
from nearcast.measure.truth_folders import (
    FORMAT,
    KeptLists,
    have_state,
    kept_lists,
    lists_folder,
    open_lists,
    open_state,
    prune,
)
from nearcast.measure.truth_folders import write_lists as keep
from nearcast.sources.changes import Changes, changes_between, row_hashes
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray, Metric, Neighbors, PartOfVectors, Progress, Vectors
from nearcast.version import __version__

__all__ = ["kept_truth", "kept_width"]

SLOT_BYTES = 12
COPIES = 8  # of all lists, that an update holds at its peak
FRESH_SHARE = 0.5  # of the items: with more of them new, all lists are as well joined from scratch
FRESH_BYTES = 32  # that an update holds per fresh item


def kept_width(k: int) -> int:
    """How long lists are kept of which k are asked for: about half of one may go until it is joined from scratch."""
    return max(2 * k, k + 32)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the truth is asked for, of queries 0..n-1 of a sample."""

    items: IngestedTable
    vectors: AnyArray  # (n, dim)
    ids: pa.Array  # (n,)
    hashes: npt.NDArray[np.uint8]  # (n, HASH_BYTES) of the vectors
    exclude: IntArray | None  # (n,)
    k: int
    metric: Metric
    decides: dict[str, Any]  # all that a list depends on beside its query and the items
    resources: Resources
    progress: Progress

    @property
    def facts(self) -> dict[str, Any]:
        """What the lists are named by."""
        sample = fingerprint([[str(one) for one in self.ids.to_pylist()], self.hashes.tobytes().hex()])
        return {
            "decides": self.decides,
            "items": self.items.folder.name,
            "sample": sample,
            "width": kept_width(self.k),
        }

    def joined(self, chosen: IntArray, positions: IntArray | None = None) -> Neighbors:
        """Exact lists of some of the queries, among all items or those at ascending `positions`."""
        items: Vectors = self.items.vectors if positions is None else PartOfVectors(self.items.vectors, positions)
        exclude = None if self.exclude is None else self.exclude[chosen]
        if exclude is not None and positions is not None:
            exclude = _places(exclude, positions)
        found = exact_join(
            self.vectors[chosen],
            items,
            kept_width(self.k),
            self.metric,
            exclude=exclude,
            threads=self.resources.threads,
            memory_bytes=self.resources.memory_bytes,
            progress=self.progress,
        )
        if positions is not None:
            slots = found.positions != EMPTY_POSITION
            found.positions[slots] = positions[found.positions[slots]]
        return found


def kept_truth(
    home: Path,
    items: IngestedTable,
    queries: IngestedTable,
    rows: IntArray,
    k: int,
    metric: Metric,
    *,
    exclude_self: bool,
    resources: Resources,
    progress: Progress,
    note: Callable[[str], None],
    constraints: Constraints = FREE,
) -> Neighbors:
    """The exact neighbors of these queries, by way of what is kept in `home`; and they are kept there in turn.

    Sides must be as `ingest` writes them: in id order, in a folder that is named by what decides its contents. Lists
    that must obey something, or whose longer forms would not fit the memory, are joined as ever and not kept.
    """
    large = len(rows) * kept_width(k) * SLOT_BYTES * COPIES > resources.memory_bytes
    if len(rows) == 0 or large or not constraints.free:
        return truth_of(
            items,
            queries,
            rows,
            k,
            metric,
            exclude_self=exclude_self,
            resources=resources,
            progress=progress,
            constraints=constraints,
        )
    vectors = queries.vectors.take(rows)
    decides = {
        "metric": str(metric),
        "exclude_self": exclude_self,
        "dim": items.vectors.dim,
        "types": [str(kind) for kind in (queries.vectors.dtype, items.vectors.dtype, queries.ids.type, items.ids.type)],
        "nearcast": [__version__, FORMAT],
    }
    asked = _Asked(
        items=items,
        vectors=vectors,
        ids=queries.ids.take(pa.array(rows)),
        hashes=row_hashes(vectors),
        exclude=exclusions(items, queries, rows, exclude_self=exclude_self),
        k=k,
        metric=metric,
        decides=decides,
        resources=resources,
        progress=progress,
    )
    best = _lists(home, asked, note).best
    return Neighbors(np.ascontiguousarray(best.positions[:, :k]), np.ascontiguousarray(best.scores[:, :k]))


def _lists(home: Path, asked: _Asked, note: Callable[[str], None]) -> KnownLists:
    """The lists of the sample, the first k of each exact: as they are kept, or made of what is kept."""
    same = open_lists(lists_folder(home, asked.facts), note)
    if same is not None:
        return same.known
    known = _updated(home, asked, note)
    state = have_state(home, asked.items, note)
    keep(home, KeptLists(asked.facts, asked.ids, asked.hashes, known, state.name))
    prune(home)
    return known


def _updated(home: Path, asked: _Asked, note: Callable[[str], None]) -> KnownLists:
    """The lists, by those that are kept as far as they go, and by a join with all items where they do not."""
    here, known = _renewed(home, asked, note)
    good = known.complete(asked.k)
    here, known = here[good], known.rows(good)
    missing = np.setdiff1d(np.arange(len(asked.ids)), here)
    if not len(missing):
        return known
    return all_lists([known, known_lists(asked.joined(missing))], np.argsort(np.concatenate([here, missing])))


def _renewed(home: Path, asked: _Asked, note: Callable[[str], None]) -> tuple[IntArray, KnownLists]:
    """Which queries of the sample have lists that are kept, ascending, and these lists among the items of today."""
    nothing = np.empty(0, np.int64), known_lists(Neighbors.empty(0, kept_width(asked.k)))
    found = _nearest(home, asked, note)
    if found is None:
        return nothing
    kept, here, there = found
    known = kept.known.rows(there)
    slots = known.best.positions != EMPTY_POSITION
    listed, places = np.unique(known.best.positions[slots], return_inverse=True)
    edges, edge_of = np.unique(known.bound_edges, return_inverse=True)
    changes = _changes(home, kept, asked, listed, edges, note)
    if changes is None:
        return nothing
    positions = np.full(slots.shape, EMPTY_POSITION, np.int64)
    positions[slots] = changes.now[places]
    known = moved_lists(known, positions, changes.before[edge_of])
    none = Neighbors.empty(len(here), kept_width(asked.k))
    fresh = asked.joined(here, changes.fresh) if len(changes.fresh) else none
    return here, renewed_lists(known, fresh, kept_width(asked.k))


def _nearest(home: Path, asked: _Asked, note: Callable[[str], None]) -> tuple[KeptLists, IntArray, IntArray] | None:
    """The kept lists that know most queries of the sample; these queries' places in the sample, and among the lists."""
    best: tuple[KeptLists, IntArray, IntArray] | None = None
    for kept in kept_lists(home, note):
        if kept.facts["decides"] != asked.decides:
            continue
        places = positions_of(asked.ids, kept.ids)
        here = np.flatnonzero(places >= 0)
        here = here[(kept.hashes[places[here]] == asked.hashes[here]).all(axis=1)]
        if len(here) > (0 if best is None else len(best[1])):
            best = kept, here, places[here]
    return best


def _changes(
    home: Path, kept: KeptLists, asked: _Asked, listed: IntArray, edges: IntArray, note: Callable[[str], None]
) -> Changes | None:
    """What has become of the listed items and of the edges; None where joining everything is as good."""
    if kept.facts["items"] == asked.items.folder.name:
        return Changes(listed, edges, np.empty(0, np.int64))
    old = open_state(home / kept.state, note)
    if old is None:
        return None
    new = open_state(have_state(home, asked.items, note), note)
    assert new is not None
    most = min(int(FRESH_SHARE * len(new.ids)), asked.resources.memory_bytes // FRESH_BYTES)
    return changes_between(old, new, listed, edges, most=most)


def _places(wanted: IntArray, ordered: IntArray) -> IntArray:
    """Where each wanted number is in an ascending array, -1 where it is not."""
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[places] == wanted, places, EMPTY_POSITION)
