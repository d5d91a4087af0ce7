"""The exact probability that enough of a list's first candidates survive.

The number of survivors of independent candidates has a Poisson-binomial distribution. It is computed candidate by
candidate and truncated at the wanted number. Candidates of one group can survive or fail together. Knows nothing of
plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.errors import InputError, SpecError
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray

__all__ = [
    "CandidateSurvival",
    "compute_curve",
    "compute_group_survival",
    "compute_probability",
    "gather_survival",
    "split_rows",
]

Float64Array = npt.NDArray[np.float64]

BLOCK_BYTES = 32 << 20  # of a block of curves and states, so that it fits the last-level cache


@dataclass(frozen=True, slots=True, eq=False)
class CandidateSurvival:
    """The candidates of n queries, k each and best first, with the survival probability of each.

    With groups, all candidates of a group fail if the group fails; if the group survives, each of its candidates
    survives independently with `survival / group_survival`. So the marginal probability of a candidate is `survival`
    always.
    """

    survival: Float64Array  # (n, k) of each candidate; 0 for an empty slot
    lengths: IntArray  # (n,) filled slots
    groups: IntArray | None = None  # (n, k) group of each candidate; -1 for none
    group_survival: Float64Array | None = None  # (n, k) of the candidate's group; at least `survival`

    def select(self, rows: slice) -> CandidateSurvival:
        """Return the same for some of the queries."""
        groups = None if self.groups is None else self.groups[rows]
        alive = None if self.group_survival is None else self.group_survival[rows]
        return CandidateSurvival(self.survival[rows], self.lengths[rows], groups, alive)


def gather_survival(
    positions: IntArray, survival: AnyArray, groups: IntArray | None = None, group_survival: AnyArray | None = None
) -> CandidateSurvival:
    """Return the survival of the candidates of lists (n, k) of item positions; -1 is an empty slot, and comes last.

    survival: (m,) of each item, or (n, k) of each slot. groups: (m,) group of each item, -1 for none. group_survival:
    (m,) of the item's group. Default: that of its best item, so that items of equal survival survive or fail together.
    """
    filled = positions != EMPTY_POSITION
    rates = _validate_probabilities(np.asarray(survival, np.float64))
    slots = rates if rates.ndim == 2 else np.append(rates, 0.0)[positions]
    found = CandidateSurvival(np.where(filled, slots, 0.0), np.count_nonzero(filled, axis=1).astype(np.int64))
    if groups is None:
        return found
    if group_survival is None:
        if rates.ndim == 2:
            raise SpecError("survival of each slot with groups needs group_survival; give it, or survival of each item")
        group_survival = compute_group_survival(rates, groups)
    alive = np.append(_validate_probabilities(np.asarray(group_survival, np.float64)), 1.0)[positions]
    own = np.append(groups, -1)[positions]
    alone = own < 0
    return replace(found, groups=own, group_survival=np.where(alone, 1.0, np.maximum(alive, found.survival)))


def compute_group_survival(rates: Float64Array, groups: IntArray) -> Float64Array:
    """Return (m,) the largest survival in each item's group; 1 for an item without a group."""
    best = np.zeros(int(groups.max(initial=-1)) + 2)
    np.maximum.at(best, groups, rates)
    best[-1] = 1.0  # of -1: no group
    return best[groups]


def _validate_probabilities(rates: Float64Array) -> Float64Array:
    bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))
    if len(bad):
        raise InputError(f"a survival is {rates.flat[bad[0]]:g}; it is a probability, from 0 to 1")
    return rates


def split_rows(n: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices over n rows; a block takes about BLOCK_BYTES."""
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    yield from (slice(start, min(n, start + rows)) for start in range(0, n, rows))


def compute_curve(candidates: CandidateSurvival, at_least: int) -> Float64Array:
    """Return (n, k + 1) the probability that `at_least` of the first 0, 1, ... k candidates survive.

    Never falls along a row. Costs n * k * at_least additions without groups, and k times that with groups.
    """
    n, k = candidates.survival.shape
    if candidates.groups is not None:
        every = [compute_probability(candidates, at_least, np.full(n, length)) for length in range(k + 1)]
        return np.maximum.accumulate(np.stack(every, axis=1), axis=1)
    states = _initial_states(n, at_least)
    curve = np.empty((n, k + 1))
    curve[:, 0] = states[:, at_least]
    for rank in range(k):
        _add_candidate(states, candidates.survival[:, rank])
        curve[:, rank + 1] = states[:, at_least]
    return np.minimum(curve, 1.0)


def compute_probability(candidates: CandidateSurvival, at_least: int, lengths: IntArray) -> Float64Array:
    """Return (n,) the probability that `at_least` of each query's first `lengths` candidates survive.

    Exact with groups, too: candidates are added group by group, once for a failed and once for a surviving group.
    """
    n, k = candidates.survival.shape
    survival = np.where(np.arange(k) < lengths[:, None], candidates.survival, 0.0)
    failed = _initial_states(n, at_least)  # the distribution if the current group fails
    if candidates.groups is None:
        for rank in range(k):
            _add_candidate(failed, survival[:, rank])
        return np.minimum(failed[:, at_least], 1.0)
    assert candidates.group_survival is not None
    order = np.argsort(candidates.groups, axis=1, kind="stable")
    groups = np.take_along_axis(candidates.groups, order, 1)
    alive = np.take_along_axis(candidates.group_survival, order, 1)
    survival = np.take_along_axis(survival, order, 1)
    conditional = np.divide(survival, alive, out=np.zeros_like(survival), where=alive > 0)
    surviving = failed.copy()  # the distribution if it survives
    for column in range(k):
        if column:
            fresh = groups[:, column] != groups[:, column - 1]
            closed = _mix_states(failed[fresh], surviving[fresh], alive[fresh, column - 1])
            failed[fresh], surviving[fresh] = closed, closed
        _add_candidate(surviving, conditional[:, column])
    return np.minimum(_mix_states(failed, surviving, alive[:, -1])[:, at_least] if k else failed[:, at_least], 1.0)


def _initial_states(n: int, at_least: int) -> Float64Array:
    """Return (n, at_least + 1) the distribution of survivors of no candidate; the last column is `at_least` or more."""
    if at_least < 1:
        raise SpecError(f"at_least is {at_least}; it must be at least 1")
    states = np.zeros((n, at_least + 1))
    states[:, 0] = 1.0
    return states


def _add_candidate(states: Float64Array, survival: Float64Array) -> None:
    """Add one candidate to the distribution, in place. The last column only grows."""
    moved = states[:, :-1] * survival[:, None]
    states[:, :-1] -= moved
    states[:, 1:] += moved


def _mix_states(failed: Float64Array, surviving: Float64Array, alive: Float64Array) -> Float64Array:
    return failed + alive[:, None] * (surviving - failed)
