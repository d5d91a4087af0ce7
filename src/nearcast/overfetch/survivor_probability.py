"""The probability that enough of a list's first candidates survive, exactly.

Survivors of independent candidates follow the Poisson-binomial distribution; it is built up candidate by candidate and
cut off at the number asked for. Candidates of one group can survive or fail together. Knows nothing of what to do
with the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.errors import InputError, SpecError
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray

__all__ = ["Offer", "best_of_group", "blocks", "offer", "reach", "reach_at"]

Float64Array = npt.NDArray[np.float64]

BLOCK_BYTES = 32 << 20  # of curves and of states, so that a block stays in a processor's last cache


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """What can be stored for n queries: k candidates each, best first, and how likely each survives.

    With groups, the candidates of a group are lost together when the group is; a candidate of a group that lives
    survives with `survival / group_survival`, on its own. So `survival` stays what each candidate survives with,
    whatever the groups.
    """

    survival: Float64Array  # (n, k) of each candidate; 0 where a slot is empty
    lengths: IntArray  # (n,) filled slots
    groups: IntArray | None = None  # (n, k) group of each candidate; -1 for one that depends on no other
    group_survival: Float64Array | None = None  # (n, k) of the candidate's group: at least its own

    def of_queries(self, rows: slice) -> Offer:
        """The same for some of the queries."""
        groups = None if self.groups is None else self.groups[rows]
        alive = None if self.group_survival is None else self.group_survival[rows]
        return Offer(self.survival[rows], self.lengths[rows], groups, alive)


def offer(
    positions: IntArray, survival: AnyArray, groups: IntArray | None = None, group_survival: AnyArray | None = None
) -> Offer:
    """The offer that lists (n, k) of item positions make; -1 is an empty slot, and empty slots come last.

    survival: (m,) of each item, or (n, k) of each slot. groups: (m,) group of each item, -1 for none; its items are
    lost together. group_survival: (m,) probability that the item's group lives; without it a group lives as its best
    item does, so that items of equal survival all survive or all fail.
    """
    filled = positions != EMPTY_POSITION
    rates = _checked(np.asarray(survival, np.float64))
    slots = rates if rates.ndim == 2 else np.append(rates, 0.0)[positions]
    found = Offer(np.where(filled, slots, 0.0), np.count_nonzero(filled, axis=1).astype(np.int64))
    if groups is None:
        return found
    if group_survival is None:
        if rates.ndim == 2:
            raise SpecError("survival of each slot with groups needs group_survival; give it, or survival of each item")
        group_survival = best_of_group(rates, groups)
    alive = np.append(_checked(np.asarray(group_survival, np.float64)), 1.0)[positions]
    own = np.append(groups, -1)[positions]
    alone = own < 0
    return replace(found, groups=own, group_survival=np.where(alone, 1.0, np.maximum(alive, found.survival)))


def best_of_group(rates: Float64Array, groups: IntArray) -> Float64Array:
    """(m,) the largest survival in each item's group."""
    best = np.zeros(int(groups.max(initial=-1)) + 2)
    np.maximum.at(best, groups, rates)
    best[-1] = 1.0  # of -1: no group
    return best[groups]


def _checked(rates: Float64Array) -> Float64Array:
    bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))
    if len(bad):
        raise InputError(f"a survival is {rates.flat[bad[0]]:g}; it is a probability, from 0 to 1")
    return rates


def blocks(n: int, row_bytes: int) -> Iterator[slice]:
    """Slices over n rows, so that a block of them takes about BLOCK_BYTES."""
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    yield from (slice(start, min(n, start + rows)) for start in range(0, n, rows))


def reach(offered: Offer, at_least: int) -> Float64Array:
    """(n, k + 1) the probability that at least so many of the first 0, 1, ... k candidates survive.

    Never falls along a row. Costs n * k * at_least additions without groups, and k times that with them.
    """
    n, k = offered.survival.shape
    if offered.groups is not None:
        every = [reach_at(offered, at_least, np.full(n, length)) for length in range(k + 1)]
        return np.maximum.accumulate(np.stack(every, axis=1), axis=1)
    states = _nobody(n, at_least)
    curve = np.empty((n, k + 1))
    curve[:, 0] = states[:, at_least]
    for rank in range(k):
        _add(states, offered.survival[:, rank])
        curve[:, rank + 1] = states[:, at_least]
    return np.minimum(curve, 1.0)


def reach_at(offered: Offer, at_least: int, lengths: IntArray) -> Float64Array:
    """(n,) the probability that at least so many of each query's first `lengths` candidates survive.

    Exact with groups too: their candidates are added up one group after the other, once for a group that lives.
    """
    n, k = offered.survival.shape
    survival = np.where(np.arange(k) < lengths[:, None], offered.survival, 0.0)
    lost = _nobody(n, at_least)  # the survivors if the group at hand is lost
    if offered.groups is None:
        for rank in range(k):
            _add(lost, survival[:, rank])
        return np.minimum(lost[:, at_least], 1.0)
    assert offered.group_survival is not None
    order = np.argsort(offered.groups, axis=1, kind="stable")
    groups = np.take_along_axis(offered.groups, order, 1)
    alive = np.take_along_axis(offered.group_survival, order, 1)
    survival = np.take_along_axis(survival, order, 1)
    given = np.divide(survival, alive, out=np.zeros_like(survival), where=alive > 0)
    living = lost.copy()  # the survivors if it lives
    for column in range(k):
        if column:
            fresh = groups[:, column] != groups[:, column - 1]
            closed = _either(lost[fresh], living[fresh], alive[fresh, column - 1])
            lost[fresh], living[fresh] = closed, closed
        _add(living, given[:, column])
    return np.minimum(_either(lost, living, alive[:, -1])[:, at_least] if k else lost[:, at_least], 1.0)


def _nobody(n: int, at_least: int) -> Float64Array:
    """(n, at_least + 1) the distribution of survivors before any candidate; the last column is "so many or more"."""
    if at_least < 1:
        raise SpecError(f"at_least is {at_least}; ask for at least 1 survivor")
    states = np.zeros((n, at_least + 1))
    states[:, 0] = 1.0
    return states


def _add(states: Float64Array, survival: Float64Array) -> None:
    """One more candidate, in place. What has arrived in the last column stays there, so the sum only grows."""
    moved = states[:, :-1] * survival[:, None]
    states[:, :-1] -= moved
    states[:, 1:] += moved


def _either(lost: Float64Array, living: Float64Array, alive: Float64Array) -> Float64Array:
    return lost + alive[:, None] * (living - lost)
