"""Survival estimated from counts: how often each candidate was looked up, and how often it survived.

A hierarchical beta-binomial model: the rate of an item is shrunk to the rate of its group, and the rate of a group to
the overall rate. The fewer look-ups, the stronger the shrinkage; its strength is estimated by the method of moments.
Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearcast.errors import InputError
from nearcast.overfetch.survivor_probability import Float64Array
from nearcast.types import IntArray

__all__ = ["SurvivalEstimate", "learn_survival", "shrink"]

WEAKEST, STRONGEST = 1.0, 1e6  # bounds of the strength, in look-ups: with less, a single look-up decides
UNSEEN_RATE = 0.5  # without a single look-up
KEPT_OPEN = 1e-6  # distance of a rate from 0 and 1, since both can change


@dataclass(frozen=True, slots=True, eq=False)
class SurvivalEstimate:
    """Estimated probabilities of survival, and the parameters of the model."""

    survival: Float64Array  # (m,) of each item
    overall: float  # of all look-ups together
    item_strength: float  # weight of the group's rate in an item's rate, in look-ups
    group_strength: float  # weight of the overall rate in a group's rate, in look-ups


def learn_survival(survived: IntArray, seen: IntArray, groups: IntArray | None = None) -> SurvivalEstimate:
    """Estimate the survival of m items from their look-ups (m,) `seen` and survivals (m,) `survived`.

    groups: (m,) group of each item, -1 for none. An item without look-ups gets the rate of its group.
    Raises InputError if an item survived more often than it was seen.
    """
    bad = np.flatnonzero((survived < 0) | (survived > seen))
    if len(bad):
        raise InputError(f"item {bad[0]} survived {survived[bad[0]]:,} of {seen[bad[0]]:,} look-ups; count both again")
    total = int(seen.sum())
    overall = _clip_rates(np.array([survived.sum() / total]))[0] if total else UNSEEN_RATE
    above, group_strength = np.full(len(seen), overall), STRONGEST
    if groups is not None:
        n_groups = int(groups.max(initial=-1)) + 1
        inside = groups >= 0
        group_seen = np.bincount(groups[inside], seen[inside], minlength=n_groups)
        group_survived = np.bincount(groups[inside], survived[inside], minlength=n_groups)
        rates, group_strength = shrink(group_survived, group_seen, np.full(n_groups, overall))
        above = np.append(rates, overall)[groups]
    rates, item_strength = shrink(survived, seen, above)
    return SurvivalEstimate(rates, float(overall), item_strength, group_strength)


def shrink(
    survived: npt.NDArray[np.number], seen: npt.NDArray[np.number], above: Float64Array
) -> tuple[Float64Array, float]:
    """Return rates that are shrunk to the rates `above` with the weight of `strength` look-ups, and the strength.

    The strength is that of a beta distribution with the variance of these rates: the smaller the variance, the larger.
    """
    above = _clip_rates(above)
    strength = _estimate_strength(np.asarray(survived, np.float64), np.asarray(seen, np.float64), above)
    return _clip_rates((survived + strength * above) / (seen + strength)), strength


def _estimate_strength(survived: Float64Array, seen: Float64Array, above: Float64Array) -> float:
    """Estimate by moments: E[(survived - n q)^2] = n q (1 - q) (1 + (n - 1) / (strength + 1)) for n look-ups."""
    several = seen > 1
    n, q = seen[several], above[several]
    room = float((n - 1).sum())
    if not room:
        return STRONGEST
    errors = (survived[several] - n * q) ** 2 / (n * q * (1 - q))
    correlation = (float(errors.sum()) - len(n)) / room
    return float(np.clip(1 / correlation - 1, WEAKEST, STRONGEST)) if correlation > 0 else STRONGEST


def _clip_rates(rates: npt.NDArray[np.number]) -> Float64Array:
    return np.clip(np.asarray(rates, np.float64), KEPT_OPEN, 1 - KEPT_OPEN)
