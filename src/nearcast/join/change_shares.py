"""How much of the change of a figure each cause made, between two snapshots. Shares add up to the whole change.

Each candidate that came or went in a list is charged to what changed for it. One that is crowded out is charged to what
brought the candidates that took its slot, and one that fills a free slot to what freed it, both in equal parts. What no
evidence decides is UNEXPLAINED. Knows no snapshots but their lists.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.join.candidate_causes import Id, MovedVectors, Pair, SnapshotSample
from nearcast.join.cause_decider import ChangeCause, PairCauses, open_decider

__all__ = ["ChangedCandidates", "FigureChange", "compute_figures", "share_out", "sum_figure"]

ROUNDING = 1e-9


Weights = Mapping[ChangeCause, float]


@dataclass(frozen=True, slots=True)
class FigureChange:
    """The change of one figure, by cause."""

    figure: str  # overlap, fill_rate, hit_rate or recall
    before: float
    after: float
    causes: Mapping[str, float]  # by ChangeCause; their sum is after - before
    queries: int  # that it was measured on

    @property
    def change(self) -> float:
        """Return the whole change."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class ChangedCandidates:
    """The candidates of one query that came and went, each with the weights of its causes."""

    came: Mapping[Id, Weights]
    went: Mapping[Id, Weights]


def share_out(
    before: SnapshotSample,
    after: SnapshotSample,
    causes: PairCauses,
    vectors: MovedVectors,
    scores_now: Mapping[Pair, float],
) -> dict[Id, ChangedCandidates]:
    """Return the changed candidates of each query.

    causes: of the pairs that came, and of those that went, as `find_causes` names them. scores_now: scores of pairs of
    the older lists by the newer snapshot's vectors.
    """
    decider = open_decider(before, after, causes, vectors, scores_now)
    direct: dict[Id, tuple[dict[Id, ChangeCause | None], dict[Id, ChangeCause | None]]] = defaultdict(lambda: ({}, {}))
    for number, pairs in enumerate(causes):
        for (query, item), cause in pairs.items():
            direct[query][number][item] = decider.decide(query, item, cause, came=number == 0)
    shared = {}
    for query, (came, went) in direct.items():
        by_came, by_went = _average(came.values()), _average(went.values())
        unknown = {ChangeCause.UNEXPLAINED: 1.0}
        shared[query] = ChangedCandidates(
            {item: by_went or by_came or unknown if cause is None else {cause: 1.0} for item, cause in came.items()},
            {item: by_came or by_went or unknown if cause is None else {cause: 1.0} for item, cause in went.items()},
        )
    return shared


def _average(causes: Iterable[ChangeCause | None]) -> Weights:
    """Return the mean weights of candidates with a cause of their own; empty without one."""
    known = [cause for cause in causes if cause is not None]
    return {cause: known.count(cause) / len(known) for cause in dict.fromkeys(known)}


def compute_figures(
    before: SnapshotSample,
    after: SnapshotSample,
    queries: Sequence[Id],
    changed: Mapping[Id, ChangedCandidates],
    labels: Mapping[Id, frozenset[Id]] | None = None,
) -> list[FigureChange]:
    """Return the changes of overlap and fill_rate, and of hit_rate if there are labels, over queries of both snapshots.

    A figure without any query is left out.

    labels: the items that count as hits, by query of both; they may be other queries.
    """
    lists = [(before.lists[query], after.lists[query], changed.get(query)) for query in queries]
    old_k, new_k = before.spec.k, after.spec.k
    overlap = []
    fill = []
    for old, new, candidates in lists:
        parts = _charge(candidates, came=0.0, went=-1 / len(old.ids)) if old.ids else {}
        if old.ids:
            overlap.append((1.0, len(set(old.ids) & set(new.ids)) / len(old.ids), parts))
        cut = max(0, len(old.ids) - new_k) if new_k < old_k and len(old.ids) <= old_k else 0  # by the smaller k alone
        slots = _charge_length(candidates, len(new.ids) - len(old.ids), new_k, cut)
        slots[ChangeCause.SETTINGS] += (len(old.ids) - cut) / new_k - len(old.ids) / old_k
        fill.append((len(old.ids) / old_k, len(new.ids) / new_k, slots))
    figures = [sum_figure(name, parts) for name, parts in (("overlap", overlap), ("fill_rate", fill)) if parts]
    if labels:
        hits = [
            _compare_hits(before.lists[query].ids, after.lists[query].ids, changed.get(query), items)
            for query, items in labels.items()
        ]
        figures.append(sum_figure("hit_rate", hits))
    return figures


Part = tuple[float, float, Mapping[ChangeCause, float]]  # of one query: before, after, change by cause


def _charge(candidates: ChangedCandidates | None, *, came: float, went: float) -> dict[ChangeCause, float]:
    """Add up a value for each candidate that came, and for each that went, by cause."""
    parts: dict[ChangeCause, float] = defaultdict(float)
    if candidates is not None:
        for value, found in ((came, candidates.came), (went, candidates.went)):
            for weights in found.values():
                for cause, weight in weights.items():
                    parts[cause] += value * weight
    return parts


def _charge_length(candidates: ChangedCandidates | None, change: int, k: int, cut: int) -> dict[ChangeCause, float]:
    """Charge the change of a list's length, in shares of k slots, to the causes by which more went than came, or less.

    A cause that took as many candidates as it brought has not changed the length. cut: candidates that a smaller k
    alone has taken; their slots are gone, too.
    """
    net, change = _charge(candidates, came=1.0, went=-1.0), change + cut
    net[ChangeCause.SETTINGS] += cut
    same_sign = {cause: value for cause, value in net.items() if value * change > 0}
    total = math.fsum(same_sign.values())
    scaled = {cause: value * change / (total * k) for cause, value in same_sign.items()} if change else {}
    return defaultdict(float, scaled)


def _compare_hits(
    old: Sequence[Id], new: Sequence[Id], candidates: ChangedCandidates | None, hits: frozenset[Id]
) -> Part:
    """Return whether a query has a hit, before and after. Labelled candidates that came, or went, share a change."""
    then, now = float(not hits.isdisjoint(old)), float(not hits.isdisjoint(new))
    if then == now or candidates is None:
        return then, now, {}
    moved: Mapping[Any, Weights] = candidates.came if now > then else candidates.went
    chosen = {item: weights for item, weights in moved.items() if item in hits}
    share = (now - then) / len(chosen)
    return then, now, _charge(ChangedCandidates(chosen, {}), came=share, went=0.0)


def sum_figure(name: str, parts: Sequence[Part]) -> FigureChange:
    """Return the mean of a figure over queries. What the causes do not add up to is UNEXPLAINED."""
    n = max(1, len(parts))
    before, after = math.fsum(part[0] for part in parts) / n, math.fsum(part[1] for part in parts) / n
    sums = {cause: math.fsum(part[2].get(cause, 0.0) for part in parts) / n for cause in ChangeCause}
    rest = (after - before) - math.fsum(sums.values())
    if abs(rest) > ROUNDING:
        sums[ChangeCause.UNEXPLAINED] += rest
    found = {str(cause): value for cause, value in sums.items() if abs(value) > ROUNDING}
    return FigureChange(name, before, after, found, len(parts))
