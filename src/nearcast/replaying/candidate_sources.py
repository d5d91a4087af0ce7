"""Two ways to the candidates of a request: looked up in a version of the table, or searched for in an online index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nearcast.join.single_search import OnlineIndex
from nearcast.serve.lookup_data import LookupOptions, convert_key
from nearcast.serve.view import View
from nearcast.sources.ingest import Inputs
from nearcast.stores.value_format import IdType, id_type
from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["Lists", "LookUp", "OnlineWay", "Way", "online_way"]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Candidates of some keys: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    offsets: IntArray
    ids: pa.Array
    scores: FloatArray
    found: int  # keys that are known


class Way(Protocol):
    """How candidates are come by."""

    @property
    def name(self) -> str:
        """Such as offline."""
        ...

    @property
    def metric(self) -> Metric:
        """Of the scores."""
        ...

    @property
    def item_ids(self) -> IdType:
        """Type of the ids of what is found."""
        ...

    def candidates(self, keys: Sequence[Any], k: int | None) -> Lists:
        """The k best of each key; of one that is not known none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LookUp:
    """Looked up, in one version of a table."""

    name: str
    view: View

    @property
    def metric(self) -> Metric:
        """Of the scores."""
        return Metric(self.view.version.facts.metric or Metric.COSINE)

    @property
    def item_ids(self) -> IdType:
        """Type of the ids of candidates."""
        return self.view.version.item_ids

    def candidates(self, keys: Sequence[Any], k: int | None) -> Lists:
        """The k best of each key."""
        found = self.view.get_many(keys, LookupOptions(k))
        return Lists(found.offsets, found.ids, found.scores, int(np.count_nonzero(found.found)))


@dataclass(frozen=True, slots=True, eq=False)
class OnlineWay:
    """Searched for, by the keys' own vectors, when the request is there."""

    name: str
    metric: Metric
    index: OnlineIndex
    k: int
    vectors: AnyArray  # of all keys
    rows: Mapping[Any, int]  # of a key
    without_self: bool
    ids: IdType = field(default="string")  # type of the keys
    item_ids: IdType = field(default="string")  # type of what is found, which may be another

    def candidates(self, keys: Sequence[Any], k: int | None) -> Lists:
        """The k best of each key."""
        wanted = self.k if k is None else k
        rows = [self.rows.get(convert_key(key, self.ids), -1) for key in keys]
        known = [row for row in rows if row >= 0]
        ids: Sequence[Sequence[Any]] = ()
        scores: Sequence[Sequence[float]] = ()
        if known:
            vectors = np.asarray(self.vectors[known], np.float32)
            ids, scores = self.index.search(vectors, wanted + self.without_self)
        found = iter(zip(ids, scores, strict=True))
        lists = [
            self._own(key, *next(found), wanted) if row >= 0 else ([], []) for key, row in zip(keys, rows, strict=True)
        ]
        offsets = np.array([0, *accumulate(len(names) for names, _ in lists)], np.int64)
        kind = pa.int64() if self.item_ids == "int64" else pa.string()
        flat = pa.array([name for names, _ in lists for name in names], kind)
        return Lists(offsets, flat, np.array([s for _, row in lists for s in row], np.float32), len(known))

    def _own(
        self, key: Any, ids: Sequence[Any], scores: Sequence[float], k: int
    ) -> tuple[Sequence[Any], Sequence[float]]:
        """The first k, without the key itself where the generator leaves it out."""
        if self.without_self and self.ids == self.item_ids:
            own = convert_key(key, self.ids)
            kept = [place for place, item in enumerate(ids) if item != own]
            ids, scores = [ids[place] for place in kept], [scores[place] for place in kept]
        return ids[:k], scores[:k]


def online_way(index: OnlineIndex, inputs: Inputs, metric: Metric, k: int, *, without_self: bool) -> OnlineWay:
    """Search in an open index, with the vectors of the generator's queries."""
    ids, items = inputs.queries.ids, inputs.items.ids
    return OnlineWay(
        name="online",
        metric=metric,
        index=index,
        k=k,
        vectors=inputs.queries.vectors.whole(),
        rows={key: row for row, key in enumerate(ids.to_pylist())},
        without_self=without_self,
        ids=id_type(ids.type),
        item_ids=id_type(items.type),
    )
