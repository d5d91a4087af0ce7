"""Search by vector in an online index, under the overlay and the rules of a view.

`OnlineSearch` is the contract of an online index. Knows nothing of its engine, of how it was built, or of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from nearcast.serve.lookup_data import LookupOptions
from nearcast.serve.view import View
from nearcast.types import FloatArray, as_score

__all__ = ["CandidateList", "Key", "OnlineSearch", "SearchResult", "read_columns", "search_online"]

MIN_EXTRA = 1000  # candidates that a search may over-fetch at least to replace ineligible ones

Key = str | int


class OnlineSearch(Protocol):
    """An index of a generator's items that is searched by vector. Safe to use from many threads."""

    @property
    def name(self) -> str:
        """The name of the engine."""
        ...

    @property
    def dim(self) -> int:
        """Dimensions of its vectors."""
        ...

    @property
    def recall(self) -> float:
        """The recall that it is calibrated for."""
        ...

    def search(self, vectors: FloatArray, k: int) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """Return the ids and scores of the k best items of each of these (n, dim) float32 vectors.

        One sequence per vector, best first; shorter than k if the index has fewer items.
        """
        ...


@dataclass(frozen=True, slots=True)
class CandidateList:
    """Candidates of any source, without the items that the overlay has removed."""

    ids: Sequence[Key]
    scores: Sequence[float | None]
    removed: int = 0
    key: Key | None = None  # the key that the list belongs to
    reason: str | None = None
    stored: int = 0
    barred: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The candidates of each vector of a search, with the requested item columns."""

    lists: list[CandidateList]
    columns: list[dict[str, list[object]]]
    snapshot: str


def search_online(
    view: View,
    online: OnlineSearch,
    vectors: FloatArray,
    options: LookupOptions,
    keys: Sequence[Key | None] | None = None,
) -> list[CandidateList]:
    """Return the nearest eligible items of each of these (n, dim) vectors.

    If removed and ineligible items leave fewer than k, the search doubles its k up to a limit.
    keys: the queries that the rules apply to; without a key, the request brings the columns of the query.
    """
    k = options.k or view.version.facts.k
    keys = keys if keys is not None else [None] * len(vectors)
    extra = max(MIN_EXTRA, 4 * k)
    if view.version.rule_columns is None:
        extra = min(len(view.overlay.tombstones), extra)
        if options.request:
            view.rule_context(None, options.request)  # raises: there are no rules that read a request
    lists = [CandidateList((), ())] * len(vectors)
    short, fetched, limit = list(range(len(vectors))), k, k + extra
    while short:
        ids, scores = online.search(vectors[short], fetched)
        for position, row_ids, row_scores in zip(short, ids, scores, strict=True):
            lists[position] = _filter_row(view, keys[position], row_ids, row_scores, k, options)
        if fetched >= limit:
            break
        has_more = [len(row) >= fetched for row in ids]
        short = [
            position for position, more in zip(short, has_more, strict=True) if more and len(lists[position].ids) < k
        ]
        fetched = min(limit, 2 * fetched)
    return [_drop_low_scores(candidates, options.min_score) for candidates in lists]


def read_columns(view: View, lists: Sequence[Sequence[Key]], fields: Sequence[str]) -> list[dict[str, list[object]]]:
    """Return columns of the items of each list. All lists are read with one call of the store."""
    rows = iter(view.items([item for ids in lists for item in ids], fields))
    columns = []
    for ids in lists:
        here = [next(rows) for _ in ids]
        columns.append({name: [row[name] for row in here] for name in fields})
    return columns


def _filter_row(
    view: View, key: Key | None, ids: Sequence[Key], scores: Sequence[float], k: int, options: LookupOptions
) -> CandidateList:
    """Return the first k eligible items of a list."""
    kept: Sequence[int] = range(len(ids))
    removed = 0
    if view.overlay.removes_any(ids):
        gone = view.removed(ids)
        kept = [position for position, is_gone in enumerate(gone) if not is_gone]
        # removed items after the k-th candidate displace nothing, so they are not counted
        removed = sum(gone[: kept[k - 1] + 1] if len(kept) >= k else gone)
    barred: Mapping[str, int] = {}
    if view.version.rule_columns is not None:
        eligible, barred = view.filter_by_rules(key, [ids[position] for position in kept], options.request, time.time())
        kept = [kept[position] for position in eligible]
    kept = kept[:k]
    return CandidateList(
        [ids[position] for position in kept], [scores[position] for position in kept], removed, barred=barred
    )


def _drop_low_scores(candidates: CandidateList, min_score: float | None) -> CandidateList:
    if min_score is None:
        return candidates
    threshold = float(as_score(min_score))
    n = sum(score is not None and score >= threshold for score in candidates.scores)
    return replace(candidates, ids=candidates.ids[:n], scores=candidates.scores[:n])
