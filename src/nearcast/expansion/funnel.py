"""From candidates and their ads to the k best ads that a request may see: stage after stage, each counted.

    candidates -> with ads -> in flight -> targeted -> in budget -> after caps -> returned

Arrays in, arrays out. Knows nothing of stores, and takes the time from its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.expansion.ads import LiveAds
from nearcast.expansion.columns import Column
from nearcast.expansion.merging import merged
from nearcast.expansion.settings import Serving
from nearcast.expansion.targeting import Eligible
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


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Candidates and their ads that are still in."""

    places: IntArray  # (pairs,) of candidates
    ads: IntArray  # (pairs,) positions

    def keep(self, mask: BoolArray) -> _Pairs:
        """Those that pass."""
        return self if mask.all() else _Pairs(self.places[mask], self.ads[mask])

    def stage(self, name: str) -> Stage:
        """What is left."""
        return Stage(name, _distinct(self.places), _distinct(self.ads))


def choose(
    scores: Float64Array,
    places: IntArray,
    positions: IntArray,
    live: LiveAds,
    eligible: Eligible,
    request: Mapping[str, Any],
    settings: Serving,
    *,
    k: int,
    now: float,
) -> Chosen:
    """The k best ads.

    scores: (n,) of the candidates, from 0 on. places, positions: (pairs,) candidates, ascending, and an ad of each.
    """
    pairs = _Pairs(places, positions)
    if live.paused is not None:
        pairs = pairs.keep(~live.paused[positions])
    stages = [Stage(STAGES[0], len(scores), 0), pairs.stage(STAGES[1])]
    roles = settings.columns
    for name, passes in (
        (STAGES[2], lambda rows: _in_flight(live.columns, roles.starts, roles.ends, rows, now)),
        (STAGES[3], lambda rows: eligible.among(request, live.columns, rows)),
        (STAGES[4], lambda rows: _in_budget(live.columns, roles.budget, roles.spent, rows)),
    ):
        pairs = pairs.keep(passes(pairs.ads))
        stages.append(pairs.stage(name))
    return _best(scores, pairs, live.columns, settings, stages, k)


def _in_flight(columns: Mapping[str, Column], starts: str, ends: str, rows: IntArray, now: float) -> BoolArray:
    passes = np.ones(len(rows), np.bool_)
    begin, end = columns.get(starts), columns.get(ends)
    if begin is not None:
        passes &= begin.missing[rows] | (begin.values[rows] <= now)
    if end is not None:
        passes &= end.missing[rows] | (end.values[rows] > now)
    return passes


def _in_budget(columns: Mapping[str, Column], budget: str, spent: str, rows: IntArray) -> BoolArray:
    limit, used = columns.get(budget), columns.get(spent)
    if limit is None:
        return np.ones(len(rows), np.bool_)
    gone = 0 if used is None else np.where(used.missing[rows], 0, used.values[rows])
    passes: BoolArray = limit.missing[rows] | (limit.values[rows] > gone)
    return passes


def _best(
    scores: Float64Array, pairs: _Pairs, columns: Mapping[str, Column], settings: Serving, stages: list[Stage], k: int
) -> Chosen:
    """Every ad once, in order, under the caps."""
    ads, groups = np.unique(pairs.ads, return_inverse=True)
    if len(ads) == 0:
        empty = [Stage(name, 0, 0) for name in STAGES[5:]]
        return Chosen(ads, ads, np.empty(0), (*stages, *empty))
    totals, members = merged(groups, len(ads), scores[pairs.places], settings.items)
    shown = pairs.places[members]
    bid = columns.get(settings.columns.bid)
    if settings.order == "similarity_times_bid" and bid is not None:
        totals = totals * np.where(bid.missing[ads], 0.0, bid.values[ads])
    order = np.argsort(-totals, kind="stable")  # equal ones by their ads' ids
    if settings.caps:
        order = order[_under_caps(settings.caps, columns, ads[order], shown[order])]
    for name, left in ((STAGES[5], order), (STAGES[6], order[:k])):
        stages.append(Stage(name, _distinct(shown[left]), len(left)))
    order = order[:k]
    return Chosen(ads[order], shown[order], totals[order], tuple(stages))


def _under_caps(
    caps: Mapping[str, int], columns: Mapping[str, Column], ads: IntArray, shown: IntArray
) -> list[int]:
    """Places of those that are kept, the better ones first to be served. An ad without a value is not counted."""
    limits = []
    for name, most in caps.items():
        if name == "item":
            limits.append((shown.tolist(), most, {}))
        else:
            column = columns[name]
            keys = [None if gone else key for key, gone in zip(column.values[ads].tolist(), column.missing[ads], strict=True)]
            limits.append((keys, most, {}))
    kept = []
    for place in range(len(ads)):
        counts: list[tuple[dict[Any, int], Any]] = []
        for keys, most, seen in limits:
            key = keys[place]
            if key is not None and seen.get(key, 0) >= most:
                break
            counts.append((seen, key))
        else:
            for seen, key in counts:
                seen[key] = seen.get(key, 0) + 1
            kept.append(place)
    return kept


def _distinct(values: IntArray) -> int:
    return len(np.unique(values))
