"""Profiles of a column, and the distance of two profiles: the population stability index (PSI).

    PSI = sum over bins of (now - then) * ln(now / then)

Bins are the deciles of the older profile for numbers and times, and the frequent values for texts. By convention a PSI
below 0.1 is no change, and above 0.2 a large change. Arrays and plain data in, figures out. Knows nothing of files.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ColumnDrift",
    "compare_columns",
    "compute_quantiles",
    "compute_shares",
    "estimate_noise",
    "psi",
    "share_psi",
]

Float64Array = npt.NDArray[np.float64]

QUANTILES = 201  # of a column of numbers: every half percent
STEP = 20  # quantiles per bin: a decile
MEDIAN = QUANTILES // 2
MASS = 10  # equal quantiles: their value has at least 5% of the rows, and its own bin
KEPT_VALUES = 100  # of a column of texts: the most frequent
LEAST_SHARE = 0.002  # of a stored value
OWN_BIN = 0.01  # share of a value, then or now, for its own bin; the others share one bin
EMPTY_BIN = 0.0025  # share that an empty bin counts as: half a step of the quantiles
NOISE_DEVIATIONS = 4.0
DAY = 86_400_000_000  # microseconds
MOST_ADVANCE = 40 * DAY  # that times may advance, beside the time between the two runs
MOST_GROWTH = 2.0  # factor by which a column of numbers may grow or shrink: a weekday, a season, a sale
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """The distance of two profiles of a column."""

    psi: float
    noise: float  # distance of two samples of this size from one distribution
    what: str  # the largest difference in words, for example: median 12.99 -> 0.1299


def compute_quantiles(values: npt.NDArray[Any]) -> list[float] | list[int]:
    """Return 201 quantiles of values, (n,) without NaN; with fewer rows they repeat. Floats keep six digits."""
    ranks = np.ceil(np.linspace(0, 1, QUANTILES) * len(values)).astype(np.int64) - 1
    ordered = np.sort(values)[np.maximum(ranks, 0)]
    if np.issubdtype(ordered.dtype, np.integer):
        return [int(value) for value in ordered]
    return [float(f"{value:.6g}") for value in np.clip(ordered, -LARGEST, LARGEST)]


def compute_shares(counts: Mapping[str, int], total: int) -> dict[str, float]:
    """Return the shares of the most frequent values, the largest first; equal shares by text."""
    frequent = [pair for pair in counts.items() if pair[1] >= LEAST_SHARE * total]
    most = sorted(frequent, key=lambda pair: (-pair[1], pair[0]))[:KEPT_VALUES]
    return {value: round(count / total, 6) for value, count in most}


def psi(then: Float64Array, now: Float64Array) -> float:
    """Compute the PSI of two distributions over the same bins; an empty bin counts as 0.25%."""
    before, after = np.maximum(then, EMPTY_BIN), np.maximum(now, EMPTY_BIN)
    return float(((after - before) * np.log(after / before)).sum())


def share_psi(then: float, now: float) -> float:
    """Compute the PSI of a share and its complement."""
    return psi(np.array([then, 1 - then]), np.array([now, 1 - now]))


def estimate_noise(bins: int, then: int, now: int) -> float:
    """Estimate the PSI that two samples of one distribution, of these sizes, rarely exceed: four deviations.

    PSI is about (1 / then + 1 / now) times a chi-square with bins - 1 degrees of freedom.
    """
    freedom = max(1, bins - 1)
    deviations = freedom + NOISE_DEVIATIONS * math.sqrt(2 * freedom)
    return deviations * (1 / max(1, then) + 1 / max(1, now))


def compare_columns(
    then: Mapping[str, Any], now: Mapping[str, Any], *, elapsed_seconds: float = 0.0
) -> ColumnDrift | None:
    """Compare two profiles of a column from `join.profile_inputs`. Returns None if they cannot be compared.

    elapsed_seconds: between the two runs. Times may all have advanced by that plus 40 days: columns of recent times
    have the same shape each day.
    """
    if then["kind"] != now["kind"] or not then.get("count") or not now.get("count"):
        return None
    drifts = [
        _compare_part(part, then, now, elapsed_seconds)
        for part in ("quantiles", "lengths", "values")
        if part in then and part in now
    ]
    return max(drifts, key=lambda drift: drift.psi - drift.noise, default=None)


def _compare_part(part: str, then: Mapping[str, Any], now: Mapping[str, Any], elapsed_seconds: float) -> ColumnDrift:
    counts = int(then["count"]), int(now["count"])
    if part == "values":
        return _compare_values(then["values"], now["values"], counts)
    of_times = part == "quantiles" and "time" in then["kind"]
    old, new = (np.array(profile[part], np.int64 if of_times else np.float64) for profile in (then, now))
    value, bins = min(_number_psi(*pair) for pair in _align(old, new, of_times, elapsed_seconds))
    what = "median length" if part == "lengths" else "median"
    medians = [_format_median(side[MEDIAN], of_times) for side in (old, new)]
    if medians[0] == medians[1]:
        what, medians = (
            f"{what} {medians[0]}, 90th percentile",
            [_format_median(side[180], of_times) for side in (old, new)],
        )
    return ColumnDrift(value, estimate_noise(bins, *counts), f"{what} {medians[0]} -> {medians[1]}")


def _align(
    old: npt.NDArray[Any], new: npt.NDArray[Any], of_times: bool, elapsed_seconds: float
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield both rows of quantiles unchanged, then with their common change removed.

    Times may all advance; numbers may all grow or shrink, by a factor of 2 at most.
    """
    yield old, new
    before, after = old[MEDIAN], new[MEDIAN]
    if of_times:
        moved = int(after) - int(before)
        if 0 < abs(moved) <= MOST_ADVANCE + abs(elapsed_seconds) * 1e6:
            yield old, new - moved
        return
    with np.errstate(over="ignore"):  # of infinities, which count as the largest number
        if before != after and before * after > 0 and 1 / MOST_GROWTH <= after / before <= MOST_GROWTH:
            yield _six_digits(old), _six_digits(np.clip(new * (before / after), -LARGEST, LARGEST))


def _six_digits(values: Float64Array) -> Float64Array:
    return np.array([float(f"{value:.6g}") for value in values.tolist()])


def _number_psi(then: npt.NDArray[Any], now: npt.NDArray[Any]) -> tuple[float, int]:
    """Compute the PSI of two rows of quantiles over the deciles of the first. Return it and the number of used bins."""
    edges = np.unique(then[STEP:-1:STEP])
    repeats = np.searchsorted(then, edges, "right") - np.searchsorted(then, edges, "left")
    shares = [_bin_shares(side, edges, repeats >= MASS) for side in (then, now)]
    used = int(np.count_nonzero((shares[0] > 0) | (shares[1] > 0)))
    return psi(shares[0], shares[1]), used


def _bin_shares(values: npt.NDArray[Any], edges: npt.NDArray[Any], own_bin: npt.NDArray[np.bool_]) -> Float64Array:
    """Return the share of the values in each bin: between edges, and at edges with their own bin."""
    below = np.searchsorted(edges, values, "left")
    at = np.minimum(below, len(edges) - 1)
    exact = (edges[at] == values) & own_bin[at] & (below < len(edges))
    counts = np.bincount(2 * below + exact, minlength=2 * len(edges) + 2)
    shares: Float64Array = counts / len(values)
    return shares


def _compare_values(then: Mapping[str, float], now: Mapping[str, float], counts: tuple[int, int]) -> ColumnDrift:
    names = [name for name in sorted({*then, *now}) if max(then.get(name, 0.0), now.get(name, 0.0)) >= OWN_BIN]
    old, new = (np.array([side.get(name, 0.0) for name in names]) for side in (then, now))
    shares = [np.append(side, max(0.0, 1.0 - side.sum())) for side in (old, new)]
    value = psi(shares[0], shares[1])
    if not names:
        return ColumnDrift(value, estimate_noise(1, *counts), "no value is frequent")
    before, after = np.maximum(old, EMPTY_BIN), np.maximum(new, EMPTY_BIN)
    most = int(np.argmax((after - before) * np.log(after / before)))
    what = f"{names[most]!r} {old[most]:.1%} -> {new[most]:.1%}"
    return ColumnDrift(value, estimate_noise(len(names) + 1, *counts), what)


def _format_median(value: Any, of_times: bool) -> str:
    """Format a median for people."""
    if not of_times:
        return f"{value:.6g}"
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(value))
    except OverflowError:
        return f"{int(value)} microseconds"
    return str(moment.date()) if int(value) % DAY == 0 else moment.isoformat(" ", "seconds")
