"""From candidates and their ads to the k best ads that a request may see, with counts after each stage.

    candidates -> with ads -> in flight -> targeted -> in budget -> after caps -> returned

Arrays in, arrays out. Knows nothing of stores; the caller gives the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.ads.targeting import AdFilter
from nearcast.table.ad_columns import Column
from nearcast.table.ad_set import LiveAds
from nearcast.table.expansion_settings import AdSettings, Roles
from nearcast.types import FloatArray, IntArray, Metric

__all__ = [
    "STAGES",
    "AdQuery",
    "CandidateAds",
    "SelectedAds",
    "Stage",
    "convert_scores",
    "merge_scores",
    "select_ads",
]

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
Filter = Callable[[IntArray], BoolArray]

STAGES = ("candidates", "with_ads", "in_flight", "targeted", "in_budget", "after_caps", "returned")


@dataclass(frozen=True, slots=True)
class Stage:
    """Counts after a stage."""

    name: str
    candidates: int  # candidates with an ad; at the first stage all candidates
    ads: int  # distinct ads


@dataclass(frozen=True, slots=True, eq=False)
class CandidateAds:
    """Candidates, and the pairs of a candidate and an ad of its links."""

    scores: Float64Array  # (n,) of the candidates, 0 or larger
    candidates: IntArray  # (pairs,) index of the candidate
    positions: IntArray  # (pairs,) position of the ad


@dataclass(frozen=True, slots=True)
class AdQuery:
    """The part of a request that filters and ranks ads."""

    request: Mapping[str, Any]  # fields that rules read
    k: int
    now: float  # seconds since 1970


@dataclass(frozen=True, slots=True, eq=False)
class SelectedAds:
    """The ads of an answer, best first."""

    positions: IntArray  # (k or fewer,) of the ads
    candidates: IntArray  # index of the candidate that each ad is shown for
    scores: Float64Array
    stages: tuple[Stage, ...]


def select_ads(
    pairs: CandidateAds, live: LiveAds, eligible: AdFilter, settings: AdSettings, query: AdQuery
) -> SelectedAds:
    """Return the k best ads that pass all filters, and counts after each stage."""
    ads, ad_of_pairs = np.unique(pairs.positions, return_inverse=True)  # each filter runs once for an ad
    filters = _list_filters(live, eligible, settings.columns, query)
    passed = np.zeros(len(ads), np.int64)  # number of filters passed in a row
    left, counts = np.arange(len(ads)), []
    for passes in filters:
        if passes is not None:
            left = left[passes(ads[left])]
        passed[left] += 1
        counts.append(len(left))
    passed_by_pairs = passed[ad_of_pairs]
    candidates_left = _count_candidates(pairs.candidates, passed_by_pairs, len(pairs.scores), len(filters))
    stages = (Stage(STAGES[0], len(pairs.scores), 0), *map(Stage, STAGES[1:], candidates_left, counts))
    kept = np.flatnonzero(passed_by_pairs == len(filters))
    groups = np.searchsorted(left, ad_of_pairs[kept])
    best = _rank_ads(CandidateAds(pairs.scores, pairs.candidates[kept], groups), ads[left], live, settings)
    return _cut(best, live, settings, query.k, stages)


def _list_filters(live: LiveAds, eligible: AdFilter, roles: Roles, query: AdQuery) -> tuple[Filter | None, ...]:
    """Return the filters in the order of STAGES from the second one on; None for one that passes all ads."""
    columns = live.columns
    return (
        None if live.paused is None else lambda rows: _is_running(live, rows),
        lambda rows: _is_in_flight(columns, roles, rows, query.now),
        lambda rows: eligible.among(query.request, columns, rows),
        lambda rows: _is_in_budget(columns, roles, rows),
    )


def _count_candidates(candidates: IntArray, passed: IntArray, n: int, filters: int) -> list[int]:
    """Return the number of candidates that have an ad left after each filter. passed: filters passed by each pair."""
    most_passed = np.zeros(n, np.int64)
    np.maximum.at(most_passed, candidates, passed)
    counts: list[int] = np.cumsum(np.bincount(most_passed, minlength=filters + 1)[:0:-1])[::-1].tolist()
    return counts


def _is_running(live: LiveAds, rows: IntArray) -> BoolArray:
    assert live.paused is not None
    return ~live.paused[rows]


def _is_in_flight(columns: Mapping[str, Column], roles: Roles, rows: IntArray, now: float) -> BoolArray:
    passes = np.ones(len(rows), np.bool_)
    begin, end = columns.get(roles.starts), columns.get(roles.ends)
    if begin is not None:
        passes &= begin.missing[rows] | (begin.values[rows] <= now)
    if end is not None:
        passes &= end.missing[rows] | (end.values[rows] > now)
    return passes


def _is_in_budget(columns: Mapping[str, Column], roles: Roles, rows: IntArray) -> BoolArray:
    limit, used = columns.get(roles.budget), columns.get(roles.spent)
    if limit is None:
        return np.ones(len(rows), np.bool_)
    spent = 0 if used is None else np.where(used.missing[rows], 0, used.values[rows])
    passes: BoolArray = limit.missing[rows] | (limit.values[rows] > spent)
    return passes


def _rank_ads(pairs: CandidateAds, ads: IntArray, live: LiveAds, settings: AdSettings) -> SelectedAds:
    """Return every ad once, best first. pairs: `positions` are indices into `ads`."""
    if len(ads) == 0:
        return SelectedAds(ads, ads, np.empty(0), ())
    totals, members = merge_scores(pairs.positions, len(ads), pairs.scores[pairs.candidates], settings.items)
    bid = live.columns.get(settings.columns.bid)
    if settings.order == "similarity_times_bid" and bid is not None:
        totals = totals * np.where(bid.missing[ads], 0.0, bid.values[ads])
    order = np.argsort(-totals, kind="stable")  # equal scores: the smaller id first
    return SelectedAds(ads[order], pairs.candidates[members][order], totals[order], ())


def _cut(best: SelectedAds, live: LiveAds, settings: AdSettings, k: int, stages: tuple[Stage, ...]) -> SelectedAds:
    """Apply the caps, and return the first k ads."""
    kept: IntArray | slice = slice(None)
    if settings.caps and len(best.positions):
        kept = np.array(_apply_caps(settings.caps, live.columns, best), np.int64)
    ads, candidates, scores = best.positions[kept], best.candidates[kept], best.scores[kept]
    for name, n in ((STAGES[5], len(ads)), (STAGES[6], k)):
        stages = (*stages, Stage(name, _count_distinct(candidates[:n]), len(ads[:n])))
    return SelectedAds(ads[:k], candidates[:k], scores[:k], stages)


def _apply_caps(caps: Mapping[str, int], columns: Mapping[str, Column], best: SelectedAds) -> list[int]:
    """Return the indices of the ads that the caps allow; better ads come first. A null value is not counted."""
    limits = [(_list_cap_values(name, columns, best), most, dict[Any, int]()) for name, most in caps.items()]
    kept = []
    for index in range(len(best.positions)):
        for values, most, counts in limits:
            if counts.get(values[index], 0) >= most:
                break
        else:
            kept.append(index)
            for values, _, counts in limits:
                if (value := values[index]) is not None:
                    counts[value] = counts.get(value, 0) + 1
    return kept


def _list_cap_values(name: str, columns: Mapping[str, Column], best: SelectedAds) -> list[Any]:
    """Return the value of each ad that a cap counts by; None for null."""
    if name == "item":
        return list(best.candidates.tolist())
    column, ads = columns[name], best.positions
    values, missing = column.values[ads].tolist(), column.missing[ads].tolist()
    return [None if null else value for value, null in zip(values, missing, strict=True)]


def _count_distinct(indices: IntArray) -> int:
    return int(np.count_nonzero(np.bincount(indices)))


# ---- scores ----


def convert_scores(scores: FloatArray, metric: Metric) -> Float64Array:
    """Return scores as numbers from 0 on: a score below 0 becomes 0; under l2 the similarity is 1 / (1 + d^2)."""
    wide = scores.astype(np.float64)
    return 1.0 / (1.0 - wide) if metric is Metric.L2 else np.maximum(wide, 0.0)


def merge_scores(groups: IntArray, n: int, scores: Float64Array, how: str) -> tuple[Float64Array, IntArray]:
    """Return (n,) the score of each group, and (n,) the index of its best member, the first of equal members.

    groups: (m,) the group of each member; every group has a member. how: "best" or "sum" of the members' scores.
    """
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    first = order[np.searchsorted(groups[order], np.arange(n))]
    if how == "best":
        return scores[first], first
    sums: Float64Array = np.bincount(groups, scores, n).astype(np.float64, copy=False)
    return sums, first
