"""Survival learned from counts: how often each candidate was looked up, and how often it was still good.

An item that was seen often speaks for itself; one that was hardly seen is held to be like its group, and a group that
was hardly seen like everything. How much a rate is drawn to the one above it follows from how much rates differ at all
(a beta-binomial model, its spread found by moments). Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.errors import InputError
from nearcast.overfetch.survivor_probability import Float64Array
from nearcast.types import IntArray

__all__ = ["Learned", "learn_survival", "shrink"]

WEAKEST, STRONGEST = 1.0, 1e6  # look-ups that the rate above counts for: less would trust an item seen once
UNSEEN_RATE = 0.5  # of anything, before a single look-up
KEPT_OPEN = 1e-6  # a rate that is not 0 or 1 for sure: tomorrow may differ


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Probabilities of survival, and how they came about."""

    survival: Float64Array  # (m,) of each item
    overall: float  # of all look-ups together
    item_strength: float  # look-ups that an item's group counts for, beside its own
    group_strength: float  # look-ups that the overall rate counts for, beside a group's


def learn_survival(survived: IntArray, seen: IntArray, groups: IntArray | None = None) -> Learned:
    """The survival of m items from how often each was seen in look-ups and how often it survived.

    groups: (m,) group of each item, -1 for none; an item is drawn to its group's rate, a group to the overall one.
    Items that nobody has seen have their group's rate. Raises InputError where more survived than were seen.
    """
    bad = np.flatnonzero((survived < 0) | (survived > seen))
    if len(bad):
        raise InputError(f"item {bad[0]} survived {survived[bad[0]]:,} of {seen[bad[0]]:,} look-ups; count both again")
    total = int(seen.sum())
    overall = _open(np.array([survived.sum() / total]))[0] if total else UNSEEN_RATE
    above, group_strength = np.full(len(seen), overall), STRONGEST
    if groups is not None:
        n_groups = int(groups.max(initial=-1)) + 1
        inside = groups >= 0
        group_seen = np.bincount(groups[inside], seen[inside], minlength=n_groups)
        group_survived = np.bincount(groups[inside], survived[inside], minlength=n_groups)
        rates, group_strength = shrink(group_survived, group_seen, np.full(n_groups, overall))
        above = np.append(rates, overall)[groups]
    rates, item_strength = shrink(survived, seen, above)
    return Learned(rates, float(overall), item_strength, group_strength)


def shrink(
    survived: npt.NDArray[np.number], seen: npt.NDArray[np.number], above: Float64Array
) -> tuple[Float64Array, float]:
    """(rates, strength): each rate drawn to the one above it as if that had been seen `strength` times.

    The strength is that of the beta distribution from which such rates differ as much as these do; the more alike
    they are, the larger.
    """
    above = _open(above)
    strength = _strength(np.asarray(survived, np.float64), np.asarray(seen, np.float64), above)
    return _open((survived + strength * above) / (seen + strength)), strength


def _strength(survived: Float64Array, seen: Float64Array, above: Float64Array) -> float:
    """By moments: the squared error of n look-ups is n q (1 - q) (1 + (n - 1) / (strength + 1)) on average."""
    several = seen > 1
    n, q = seen[several], above[several]
    room = float((n - 1).sum())
    if not room:
        return STRONGEST
    errors = (survived[several] - n * q) ** 2 / (n * q * (1 - q))
    correlation = (float(errors.sum()) - len(n)) / room
    return float(np.clip(1 / correlation - 1, WEAKEST, STRONGEST)) if correlation > 0 else STRONGEST


def _open(rates: npt.NDArray[np.number]) -> Float64Array:
    return np.clip(np.asarray(rates, np.float64), KEPT_OPEN, 1 - KEPT_OPEN)
