"""Merge the candidates of several keys into one list, all from one view.

The overlay and the rules filter every list before the merge, so the quotas are of candidates that may be shown. The
answer has the weight and the contribution of each key, and the keys of each candidate. Knows nothing of HTTP.
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
from nearcast.serve.merge_lists import By, MergedList, merge_lists
from nearcast.serve.resolvers import MOST_KEYS, Key, ReadRow, WeightedKey, resolve_keys
from nearcast.serve.view import View
from nearcast.stores.value_format import IdType
from nearcast.types import FloatArray, IntArray

__all__ = ["KeyShare", "MergeQuery", "MergedAnswer", "answer_merged"]


@dataclass(frozen=True, slots=True)
class MergeQuery:
    """Keys with weights, a context from which more keys are derived, and options of the merged list."""

    keys: Sequence[tuple[Key, float]] = ()  # given directly, with weights
    context: Mapping[str, Any] = field(default_factory=dict)  # facts of the request, by resolver name
    k: int | None = None  # None: the generator's
    by: By = "rank"
    min_score: float | None = None  # applies to a candidate in the list of its key
    exclude: Sequence[Key] = ()  # items to leave out: seen before, or the keys themselves
    fields: Sequence[str] = ()
    most_keys: int = MOST_KEYS
    request: Mapping[str, Any] | None = None  # request fields for the rules


@dataclass(frozen=True, slots=True)
class KeyShare:
    """A key of the request and its part of the answer."""

    key: Key
    weight: float  # the weights of all keys add up to 1
    origins: tuple[str, ...]  # resolvers that led to it; "keys" if it was given directly
    found: bool  # the snapshot has the key
    candidates: int  # candidates of the key
    promised: int  # its quota of the k places
    given: int  # candidates of the answer that are in its list


@dataclass(frozen=True, slots=True)
class MergedAnswer:
    """Candidates of several keys, best first, under one state of the overlay.

    From one snapshot, unless a canary answers some of the keys.
    """

    keys: tuple[KeyShare, ...]  # the largest weight first
    ids: Sequence[Any]
    values: Sequence[float]  # merged values: larger is better, comparable within one answer only
    given_by: Sequence[tuple[int, ...]]  # per candidate the indices in `keys` of the keys that have it
    columns: Mapping[str, Sequence[Any]]
    removed: int  # candidates of these keys that the overlay has removed
    barred: Mapping[str, int]  # rule: candidates of these keys that it has filtered out
    snapshot: str  # of the list of the first key
    age_seconds: float

    def __len__(self) -> int:
        return len(self.ids)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: a dictionary per key and per candidate."""
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
    """Return the answer and the lists that were merged. read: returns a row of a weight table.

    Raises the errors of `Lookup.merged`.
    """
    return view.read_arm(view, lambda arm: _merge_from(arm, query, read))


def _merge_from(view: View, query: MergeQuery, read: ReadRow) -> tuple[MergedAnswer, Answers]:
    _validate_query(query)
    k = view.version.facts.k if query.k is None else query.k
    query_ids = view.version.query_ids
    keys = resolve_keys(
        query.keys, query.context, read, most=query.most_keys, normalize=lambda key: _normalize_key(key, query_ids)
    )
    lists = view.get_many([each.key for each in keys], LookupOptions(None, query.min_score, (), query.request))
    offsets, ids, scores = _drop_items(lists, query.exclude)
    numbered = ids.dictionary_encode()
    numbers = numbered.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    weights = np.array([each.weight for each in keys], np.float64)
    merged = merge_lists(offsets, numbers, scores, weights, k, query.by)
    chosen = numbered.dictionary.take(pa.array(merged.items)).to_pylist()
    owners = _find_lists(offsets, numbers, merged)
    snapshots = lists.snapshots or [lists.snapshot] * len(keys)
    answer = MergedAnswer(
        keys=_build_shares(keys, lists, offsets, merged, owners),
        ids=chosen,
        values=merged.values.tolist(),
        given_by=owners,
        columns=_read_columns([view.find_arm(snapshots[places[0]]) for places in owners], chosen, query.fields),
        removed=int(lists.removed.sum()),
        barred={rule: int(counts.sum()) for rule, counts in lists.barred.items()},
        snapshot=lists.snapshot,
        age_seconds=lists.age_seconds,
    )
    return answer, lists


def _validate_query(query: MergeQuery) -> None:
    if query.k is not None and query.k < 1:
        raise InputError(f"k is {query.k}; ask for one candidate at least")
    if query.most_keys < 1:
        raise InputError(f"most_keys is {query.most_keys}; ask for one key at least")
    if query.by not in get_args(By):
        raise InputError(f"by is {query.by!r}: lists are merged by {' or '.join(get_args(By))}")


def _normalize_key(key: Key, ids: IdType) -> Key:
    converted = convert_key(key, ids)
    return key if converted is None else converted


def _drop_items(lists: Answers, exclude: Iterable[Key]) -> tuple[IntArray, pa.Array, FloatArray]:
    """Return offsets, ids and scores of the lists without these items."""
    item_ids: IdType = "int64" if pa.types.is_integer(lists.ids.type) else "string"
    excluded = {convert_key(item, item_ids) for item in exclude} - {None}
    if not excluded or len(lists.ids) == 0:
        return lists.offsets, lists.ids, lists.scores
    kept = pc.invert(pc.is_in(lists.ids, value_set=pa.array(list(excluded), lists.ids.type)))
    keep = kept.to_numpy(zero_copy_only=False)
    return np.append(0, np.cumsum(keep))[lists.offsets], lists.ids.filter(kept), lists.scores[keep]


def _find_lists(offsets: IntArray, numbers: IntArray, merged: MergedList) -> list[tuple[int, ...]]:
    """Return per candidate the lists that hold it, ascending."""
    n = len(merged.items)
    rank = np.full(int(numbers.max(initial=-1)) + 1, n)
    rank[merged.items] = np.arange(n)
    ranks = rank[numbers]
    order = np.argsort(ranks, kind="stable")
    lists = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[order].tolist()
    ends = np.cumsum(np.bincount(ranks, minlength=n)[:n]).tolist()
    return [tuple(lists[start:end]) for start, end in pairwise([0, *ends])]


def _build_shares(
    keys: Sequence[WeightedKey],
    lists: Answers,
    offsets: IntArray,
    merged: MergedList,
    owners: Sequence[tuple[int, ...]],
) -> tuple[KeyShare, ...]:
    given = np.bincount([place for places in owners for place in places], minlength=len(keys)).tolist()
    columns = (lists.found.tolist(), np.diff(offsets).tolist(), merged.quotas.tolist(), given)
    return tuple(
        KeyShare(each.key, each.weight, each.origins, *row)
        for each, row in zip(keys, zip(*columns, strict=True), strict=True)
    )


def _read_columns(arms: Sequence[View], ids: Sequence[Key], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Return columns of the candidates, each from the version of the first list that holds it."""
    columns: dict[str, list[Any]] = {name: [None] * len(ids) for name in fields}
    if not fields:
        return columns
    for arm in {id(arm): arm for arm in arms}.values():
        positions = [at for at, owner in enumerate(arms) if owner is arm]
        for at, row in zip(positions, arm.items([ids[at] for at in positions], fields), strict=True):
            for name in fields:
                columns[name][at] = row[name]
    return columns
