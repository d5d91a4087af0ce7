"""The candidates of several keys as one list, asked of one view: what is answered, and how it comes about.

Every list is under the overlay of the view before they are merged, so shares are shares of what may be shown. The
answer says for each key what it counted and was given, and for each candidate whose it is. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.serve.lookup_data import Answers, LookupOptions, convert_key
from nearcast.serve.merge_lists import By, Merged, merge
from nearcast.serve.resolvers import MOST_KEYS, Key, ReadRow, WeightedKey, weighted_keys
from nearcast.serve.view import View
from nearcast.types import FloatArray, IntArray

__all__ = ["KeyShare", "MergeQuery", "MergedAnswer", "answer_merged"]


@dataclass(frozen=True, slots=True)
class MergeQuery:
    """Which keys a request leads to, and how their candidates are wanted."""

    keys: Sequence[tuple[Key, float]] = ()  # outright, with weights
    context: Mapping[str, Any] = field(default_factory=dict)  # what is known, by the names of resolvers
    k: int | None = None  # None: the generator's
    by: By = "rank"
    min_score: float | None = None  # of a candidate in the list of its key
    exclude: Sequence[Key] = ()  # items that are not wanted: seen already, or the keys themselves
    fields: Sequence[str] = ()
    most_keys: int = MOST_KEYS
    request: Mapping[str, Any] | None = None  # what rules may know of it


@dataclass(frozen=True, slots=True)
class KeyShare:
    """A key of the request, and its part in the answer."""

    key: Key
    weight: float  # of all keys together: 1
    origins: tuple[str, ...]  # the resolvers that led to it; "keys" where it was given outright
    found: bool  # whether the snapshot has it
    candidates: int  # that it has to offer
    promised: int  # of the k places: so many of its best are in the answer, or all it has
    given: int  # candidates of the answer that are its own, or its and others'


@dataclass(frozen=True, slots=True)
class MergedAnswer:
    """Candidates of several keys, best first, as one snapshot and the overlay have them."""

    keys: tuple[KeyShare, ...]  # the heaviest first
    ids: Sequence[Any]
    values: Sequence[float]  # what a candidate is worth over all keys: larger is better, comparable in one answer only
    given_by: Sequence[tuple[int, ...]]  # per candidate the places in `keys` of those that have it
    columns: Mapping[str, Sequence[Any]]
    removed: int  # candidates of these keys that the overlay has taken out
    barred: Mapping[str, int]  # rule: candidates of these keys that it has barred
    snapshot: str
    age_seconds: float

    def __len__(self) -> int:
        return len(self.ids)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: a dictionary per key and per candidate."""
        names = list(self.columns)
        return {
            "snapshot": self.snapshot,
            "age_seconds": round(self.age_seconds, 3),
            "removed": self.removed,
            "barred": dict(self.barred),
            "keys": [{**asdict(share), "origins": list(share.origins)} for share in self.keys],
            "candidates": [
                {"id": item, "score": self.values[at], "keys": [self.keys[place].key for place in self.given_by[at]]}
                | {name: self.columns[name][at] for name in names}
                for at, item in enumerate(self.ids)
            ],
        }


def answer_merged(view: View, query: MergeQuery, read: ReadRow) -> tuple[MergedAnswer, Answers]:
    """The answer, and the lists that it was made of. read: how a row of a table is had.

    Raises SpecError, InputError and NotFoundError as `Lookup.merged` says.
    """
    _check(query)
    k = view.version.facts.k if query.k is None else query.k
    query_ids = view.version.query_ids
    keys = weighted_keys(
        query.keys, query.context, read, most=query.most_keys, same=lambda key: _same(convert_key(key, query_ids), key)
    )
    lists = view.get_many([each.key for each in keys], LookupOptions(None, query.min_score, (), query.request))
    offsets, ids, scores = _without(lists, query.exclude, view)
    numbered = ids.dictionary_encode()
    numbers = numbered.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    weights = np.array([each.weight for each in keys], np.float64)
    merged = merge(offsets, numbers, scores, weights, k, query.by)
    chosen = numbered.dictionary.take(pa.array(merged.items)).to_pylist()
    owners = _owners(offsets, numbers, merged)
    answer = MergedAnswer(
        keys=_shares(keys, lists, offsets, merged, owners),
        ids=chosen,
        values=merged.values.tolist(),
        given_by=owners,
        columns=_columns(view, chosen, query.fields),
        removed=int(lists.removed.sum()),
        barred={rule: int(counts.sum()) for rule, counts in lists.barred.items()},
        snapshot=view.snapshot,
        age_seconds=view.age_seconds,
    )
    return answer, lists


def _check(query: MergeQuery) -> None:
    if query.k is not None and query.k < 1:
        raise InputError(f"k is {query.k}; ask for one candidate at least")
    if query.most_keys < 1:
        raise InputError(f"most_keys is {query.most_keys}; ask for one key at least")
    if query.by not in get_args(By):
        raise InputError(f"by is {query.by!r}: lists are merged by {' or '.join(get_args(By))}")


def _same(typed: Key | None, key: Key) -> Key:
    return key if typed is None else typed


def _without(lists: Answers, exclude: Iterable[Key], view: View) -> tuple[IntArray, pa.Array, FloatArray]:
    """Offsets, ids and scores of the lists without the items that are not wanted."""
    typed = {convert_key(item, view.version.item_ids) for item in exclude} - {None}
    if not typed or len(lists.ids) == 0:
        return lists.offsets, lists.ids, lists.scores
    wanted = pc.invert(pc.is_in(lists.ids, value_set=pa.array(list(typed), lists.ids.type)))
    keep = wanted.to_numpy(zero_copy_only=False)
    return np.append(0, np.cumsum(keep))[lists.offsets], lists.ids.filter(wanted), lists.scores[keep]


def _owners(offsets: IntArray, numbers: IntArray, merged: Merged) -> list[tuple[int, ...]]:
    """Per candidate the lists that hold it, ascending."""
    n = len(merged.items)
    rank = np.full(int(numbers.max(initial=-1)) + 1, n)
    rank[merged.items] = np.arange(n)
    ranks = rank[numbers]
    order = np.argsort(ranks, kind="stable")
    lists = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[order].tolist()
    ends = np.cumsum(np.bincount(ranks, minlength=n)[:n]).tolist()
    return [tuple(lists[start:end]) for start, end in pairwise([0, *ends])]


def _shares(
    keys: Sequence[WeightedKey],
    lists: Answers,
    offsets: IntArray,
    merged: Merged,
    owners: Sequence[tuple[int, ...]],
) -> tuple[KeyShare, ...]:
    given = np.bincount([place for places in owners for place in places], minlength=len(keys)).tolist()
    columns = (lists.found.tolist(), np.diff(offsets).tolist(), merged.promised.tolist(), given)
    return tuple(
        KeyShare(each.key, each.weight, each.origins, *row)
        for each, row in zip(keys, zip(*columns, strict=True), strict=True)
    )


def _columns(view: View, ids: Sequence[Key], fields: Sequence[str]) -> dict[str, list[Any]]:
    rows = view.items(ids, fields) if fields else []
    return {name: [row[name] for row in rows] for name in fields}
