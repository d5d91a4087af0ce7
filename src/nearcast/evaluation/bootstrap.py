"""Confidence intervals of means over queries, by the bootstrap: queries are drawn again, with a seed.

Every figure uses the same draws, so that a difference of two sources is that of the same queries. With more than
`GROUPS` queries, random groups of queries are drawn instead of single ones: the mean has the same spread, to within 2%,
at a cost that does not grow. Arrays in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from nearcast.types import IntArray

__all__ = ["FEW_QUERIES", "Resamples"]

GROUPS = 5000
SAMPLES = 1000
LOW, HIGH = 0.025, 0.975
FEW_QUERIES = 30  # with fewer, the 95% interval is narrower than it should be
FloatArray64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """Draws of queries, the same for every figure."""

    groups: IntArray  # (queries,) group of each query; a group of its own with few queries
    draws: FloatArray64  # (samples, groups) how often a group is drawn

    @classmethod
    def draw(cls, n: int, seed: int = 0) -> Self:
        """Draw samples of n queries."""
        rng = np.random.default_rng([seed, 19])
        count = min(n, GROUPS)
        groups = np.arange(n) if n <= GROUPS else rng.permutation(n) % GROUPS
        draws = np.empty((SAMPLES, count))
        for row in draws:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
        return cls(groups, draws)

    def find_interval(
        self, values: FloatArray64, members: npt.NDArray[np.bool_] | None = None
    ) -> tuple[FloatArray64, FloatArray64]:
        """Return the 95% interval (low, high) of the means of the columns. values: (queries, m)."""
        chosen = slice(None) if members is None else members
        groups, count = self.groups[chosen], self.draws.shape[1]
        sums = [np.bincount(groups, weights=column[chosen], minlength=count) for column in values.T]
        sizes = self.draws @ np.bincount(groups, minlength=count)
        with np.errstate(invalid="ignore"):
            means = (self.draws @ np.array(sums).T) / sizes[:, None]
        low, high = np.nanquantile(means, [LOW, HIGH], axis=0)
        return low, high
