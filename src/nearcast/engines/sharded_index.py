"""An index over shards of the items: each shard has its own index, and one shard is open at a time.

A join opens the shards one after the other, joins each with the same request, and merges the lists. Operating points,
exactness, cost and scanned items are those of the whole, so that a calibration measures the merged lists. Serves joins
of items that are larger than memory. Any engine may build the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nearcast.engines.base import Index, JoinRequest, Resources, SearchParams
from nearcast.knn.item_shards import ShardLists, merge_lists, place_lists, restrict_request
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray, Neighbors, Progress, no_progress

__all__ = ["SHARD_K", "IndexShard", "ShardedIndex"]

SHARD_K = "shard_k"
"""Search parameter: candidates that the join asks each shard for. Left out: k, which an exact join needs."""

TRUNCATED_SHARE = 0.1  # of the misses that a recall target allows: true neighbors beyond the lists of their shards


@dataclass(frozen=True, slots=True)
class IndexShard:
    """The items start..stop-1, at least one, and how their index is opened."""

    start: int
    stop: int
    open: Callable[[], Index]


@dataclass(frozen=True, slots=True)
class _ShardPoints:
    """Operating points of the whole and of each shard.

    Shards differ by an item or so, and may have fewer points, for example if one needs no cells.
    """

    whole: Sequence[SearchParams]
    shards: Sequence[Sequence[SearchParams]]

    def of_shard(self, number: int, params: SearchParams) -> SearchParams:
        """Return a shard's parameters that stand for those of the whole: its last point for the last."""
        wanted = {name: value for name, value in params.items() if name != SHARD_K}
        points = self.shards[number]
        if wanted not in self.whole:
            return wanted
        point = list(self.whole).index(wanted)
        return points[-1] if point == len(self.whole) - 1 else points[min(point, len(points) - 1)]


def _find_whole(shards: Sequence[Sequence[SearchParams]], exact: Sequence[bool]) -> int:
    """Return the shard whose points are those of the whole: of most points, and rather not exact."""
    return max(range(len(shards)), key=lambda number: (len(shards[number]), not exact[number], -number))


class ShardedIndex:
    """Indexes of disjoint ranges of items that answer as one. Holds one open shard, until it needs another."""

    def __init__(self, shards: Sequence[IndexShard], *, max_scan_share: float = 1.0) -> None:
        self.shards = shards
        self.max_scan_share = max_scan_share  # of the engine
        self._opened: tuple[int, Index] | None = None
        self._points: dict[int, _ShardPoints] = {}  # by k

    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return the operating points of the shard that has most. Point i is point i of every shard."""
        return self._find_points(k).whole

    def params_of_shard(self, number: int, k: int, params: SearchParams) -> SearchParams:
        """Return the parameters of a shard's own index that stand for these of the whole."""
        return self._find_points(k).of_shard(number, params)

    def shorten_lists(
        self, points: Sequence[SearchParams], request: JoinRequest, truth: Neighbors
    ) -> Sequence[SearchParams]:
        """Return the points with the shortest lists per shard that keep nearly all true neighbors of a sample.

        A shard needs all its true neighbors, and no more: about k / shards. The exact point keeps k. Lists under
        constraints keep k too: a query with few eligible items may have all of them in one shard.
        """
        edges = [shard.start for shard in self.shards]
        k, n_shards = request.k, len(self.shards)
        if not request.constraints.free or n_shards == 1:
            return points
        rows, slots = np.nonzero(truth.positions != EMPTY_POSITION)
        of_shard = np.searchsorted(edges, truth.positions[rows, slots], "right") - 1
        counts = np.bincount(rows * n_shards + of_shard, minlength=len(truth.positions) * n_shards)
        allowed = TRUNCATED_SHARE * (1 - request.recall) * len(rows)
        smallest = min(shard.stop - shard.start for shard in self.shards)
        for length in range(-(-k // n_shards), k):
            if np.maximum(counts - length, 0).sum() <= allowed and n_shards * min(length, smallest) >= k:
                return [
                    point if number == len(points) - 1 else {**point, SHARD_K: length}
                    for number, point in enumerate(points)
                ]
        return points

    def is_exact(self, params: SearchParams) -> bool:
        """Return whether every shard is scanned whole and asked for k candidates."""
        if SHARD_K in params:
            return False
        known = next((points for points in self._points.values() if params in points.whole), None)
        return all(
            index.is_exact(params if known is None else known.of_shard(number, params))
            for number, index in self._open_each()
        )

    def join(
        self,
        queries: AnyArray,
        request: JoinRequest,
        params: SearchParams,
        resources: Resources,
        progress: Progress = no_progress,
    ) -> Neighbors:
        """Join the queries with one shard after the other, and merge the lists under the caps."""
        n, points, done_shards = len(queries), self._find_points(request.k), 0

        def report(stage: str, done: int, _total: int) -> None:
            progress(stage, (done_shards * n + done) // len(self.shards), n)

        def join_each() -> Iterator[ShardLists]:
            nonlocal done_shards
            for number, index in self._open_each():
                own = self._restrict(number, request, params)
                lists = index.join(queries, own, points.of_shard(number, params), resources, report)
                done_shards += 1
                yield place_lists(lists, self.shards[number].start, request.constraints)

        return merge_lists(join_each(), request.k, request.constraints.max_per_group)

    def count_found(
        self,
        queries: AnyArray,
        request: JoinRequest,
        truth: Neighbors,
        points: Sequence[SearchParams],
        resources: Resources,
    ) -> IntArray | None:
        """Add up the true neighbours that each shard finds of its own. Lists shorter than k may drop a few of them."""
        total, mapping = np.zeros((len(points), len(queries)), np.int64), self._find_points(request.k)
        for number, index in self._open_each():
            shard = self.shards[number]
            inside = (truth.positions >= shard.start) & (truth.positions < shard.stop)
            held = Neighbors(np.where(inside, truth.positions - shard.start, EMPTY_POSITION), truth.scores)
            own = self._restrict(number, request, points[0])
            own_points = [mapping.of_shard(number, params) for params in points]
            found = index.count_found(queries, own, held, own_points, resources)
            if found is None:
                return None
            total += found
        return total

    def items_scanned(
        self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources
    ) -> float | None:
        """Return the mean number of items scanned per query in all shards; None if the engine does not count."""
        total, points = 0.0, self._find_points(request.k)
        for number, index in self._open_each():
            own = self._restrict(number, request, params)
            scanned = index.items_scanned(queries, own, points.of_shard(number, params), resources)
            if scanned is None:
                return None
            total += scanned
        return total

    def is_cheaper(self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources) -> bool:
        """Return whether all shards together scan few enough items, against an exact join of all shards."""
        if self.is_exact(params) or len(queries) == 0:
            return True
        scanned = self.items_scanned(queries, request, params, resources)
        if scanned is None:
            return True
        exactly: float | None = sum(shard.stop - shard.start for shard in self.shards)
        if not request.constraints.free:  # an exact join skips blocks without an eligible item
            exactly = self.items_scanned(queries, request, self.operating_points(request.k)[-1], resources)
        return exactly is None or scanned < self.max_scan_share * max(1.0, exactly)

    def save(self, folder: Path, resources: Resources) -> None:
        """Write each shard's index into a folder of its own."""
        for number, index in self._open_each():
            target = folder / f"{number:05d}"
            target.mkdir()
            index.save(target, resources)

    def _restrict(self, number: int, request: JoinRequest, params: SearchParams) -> JoinRequest:
        shard = self.shards[number]
        return restrict_request(replace(request, k=params.get(SHARD_K, request.k)), shard.start, shard.stop)

    def _open_each(self) -> Iterator[tuple[int, Index]]:
        """Open the shards one after the other, the one that is open already first; drop each before the next."""
        first = 0 if self._opened is None else self._opened[0]
        for number in (first, *(other for other in range(len(self.shards)) if other != first)):
            if self._opened is None or self._opened[0] != number:
                self._opened = None
                self._opened = number, self.shards[number].open()
            yield self._opened

    def _find_points(self, k: int) -> _ShardPoints:
        if k not in self._points:
            points: dict[int, Sequence[SearchParams]] = {}
            exact: dict[int, bool] = {}
            for number, index in self._open_each():
                points[number] = tuple(index.operating_points(k))
                exact[number] = index.is_exact(points[number][-1])
            numbers = range(len(self.shards))
            ordered = [points[number] for number in numbers]
            whole = _find_whole(ordered, [exact[number] for number in numbers])
            self._points[k] = _ShardPoints(ordered[whole], ordered)
        return self._points[k]
