"""From candidates and their ads to the k best ads that a request may see: stage after stage, each counted.

    candidates -> with ads -> in flight -> targeted -> in budget -> after caps -> returned

Arrays in, arrays out. Knows nothing of stores, and takes the time from its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.ads.sum_scores import merged
from nearcast.ads.targeting import AdFilter
from nearcast.table.ad_columns import Column
from nearcast.table.ad_set import LiveAds
from nearcast.table.expansion_settings import AdSettings, Roles
from nearcast.types import IntArray

__all__ = ["STAGES", "Chosen", "Stage", "choose"]

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

STAGES = ("candidates", "with_ads", "in_flight", "targeted", "in_budget", "after_caps", "returned")


@dataclass(frozen=True, slots=True)
class Stage:
    """What is left after a stage."""

    name: str
    candidates: int  # that still have an ad; all of them at the first stage
    ads: int  # different ones


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The ads of an answer, best first."""

    positions: IntArray  # (k or fewer,) of ads
    candidates: IntArray  # place of the candidate that each is shown for
    scores: Float64Array
    stages: tuple[Stage, ...]


def choose(
    scores: Float64Array,
    places: IntArray,
    positions: IntArray,
    live: LiveAds,
    eligible: AdFilter,
    request: Mapping[str, Any],
    settings: AdSettings,
    *,
    k: int,
    now: float,
) -> Chosen:
    """The k best ads.

    scores: (n,) of the candidates, from 0 on. places, positions: (pairs,) candidates, and an ad of each.
    """
    ads, of_pairs = np.unique(positions, return_inverse=True)  # conditions are asked once of each ad
    columns, roles = live.columns, settings.columns
    conditions: tuple[Callable[[IntArray], BoolArray] | None, ...] = (
        None if live.paused is None else lambda rows: _not_paused(live, rows),
        lambda rows: _in_flight(columns, roles, rows, now),
        lambda rows: eligible.among(request, columns, rows),
        lambda rows: _in_budget(columns, roles, rows),
    )
    passed = np.zeros(len(ads), np.int64)  # how many conditions, one after the other
    left, counts = np.arange(len(ads)), []
    for condition in conditions:
        if condition is not None:
            left = left[condition(ads[left])]
        passed[left] += 1
        counts.append(len(left))
    of_pairs_passed = passed[of_pairs]
    stages = [
        Stage(STAGES[0], len(scores), 0),
        *map(Stage, STAGES[1:], _candidates_left(places, of_pairs_passed, len(scores), len(conditions)), counts),
    ]
    pairs = np.flatnonzero(of_pairs_passed == len(conditions))
    groups = np.searchsorted(left, of_pairs[pairs])
    return _best(scores, places[pairs], groups, ads[left], live, settings, stages, k)


def _candidates_left(places: IntArray, passed: IntArray, n: int, conditions: int) -> list[int]:
    """How many of n candidates still have an ad after each condition: as far as their best one has come."""
    furthest = np.zeros(n, np.int64)
    np.maximum.at(furthest, places, passed)
    reached: list[int] = np.cumsum(np.bincount(furthest, minlength=conditions + 1)[:0:-1])[::-1].tolist()
    return reached


def _not_paused(live: LiveAds, rows: IntArray) -> BoolArray:
    assert live.paused is not None
    return ~live.paused[rows]


def _in_flight(columns: Mapping[str, Column], roles: Roles, rows: IntArray, now: float) -> BoolArray:
    passes = np.ones(len(rows), np.bool_)
    begin, end = columns.get(roles.starts), columns.get(roles.ends)
    if begin is not None:
        passes &= begin.missing[rows] | (begin.values[rows] <= now)
    if end is not None:
        passes &= end.missing[rows] | (end.values[rows] > now)
    return passes


def _in_budget(columns: Mapping[str, Column], roles: Roles, rows: IntArray) -> BoolArray:
    limit, used = columns.get(roles.budget), columns.get(roles.spent)
    if limit is None:
        return np.ones(len(rows), np.bool_)
    gone = 0 if used is None else np.where(used.missing[rows], 0, used.values[rows])
    passes: BoolArray = limit.missing[rows] | (limit.values[rows] > gone)
    return passes


def _best(
    scores: Float64Array,
    places: IntArray,
    groups: IntArray,
    ads: IntArray,
    live: LiveAds,
    settings: AdSettings,
    stages: list[Stage],
    k: int,
) -> Chosen:
    """Every ad once, in order, under the caps. groups: (pairs,) which of the ads each pair has."""
    if len(ads) == 0:
        empty = [Stage(name, 0, 0) for name in STAGES[5:]]
        return Chosen(ads, ads, np.empty(0), (*stages, *empty))
    totals, members = merged(groups, len(ads), scores[places], settings.items)
    shown, bid = places[members], live.columns.get(settings.columns.bid)
    if settings.order == "similarity_times_bid" and bid is not None:
        totals = totals * np.where(bid.missing[ads], 0.0, bid.values[ads])
    order = np.argsort(-totals, kind="stable")  # equal ones by their ads' ids
    if settings.caps:
        order = order[_under_caps(settings.caps, live.columns, ads[order], shown[order])]
    for name, left in ((STAGES[5], order), (STAGES[6], order[:k])):
        stages.append(Stage(name, _distinct(shown[left]), len(left)))
    order = order[:k]
    return Chosen(ads[order], shown[order], totals[order], tuple(stages))


def _under_caps(caps: Mapping[str, int], columns: Mapping[str, Column], ads: IntArray, shown: IntArray) -> list[int]:
    """Places of those that are kept, the better ones being served first. What an ad has no value of is not counted."""
    limits = [(_keys_of(name, columns, ads, shown), most, dict[Any, int]()) for name, most in caps.items()]
    kept = []
    for place in range(len(ads)):
        for keys, most, seen in limits:
            if seen.get(keys[place], 0) >= most:
                break
        else:
            kept.append(place)
            for keys, _, seen in limits:
                if (key := keys[place]) is not None:
                    seen[key] = seen.get(key, 0) + 1
    return kept


def _keys_of(name: str, columns: Mapping[str, Column], ads: IntArray, shown: IntArray) -> list[Any]:
    """What a cap counts by, None where it does not count."""
    if name == "item":
        return list(shown.tolist())
    values, missing = columns[name].values[ads].tolist(), columns[name].missing[ads].tolist()
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


def _distinct(places: IntArray) -> int:
    return int(np.count_nonzero(np.bincount(places)))
