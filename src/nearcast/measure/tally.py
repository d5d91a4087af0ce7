"""Measures of a whole table, added up part by part during the write: fill, coverage, exposure, scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearcast.types import EMPTY_POSITION, FloatArray, IntArray

__all__ = ["Tally", "gini", "overlap_per_query"]

SCORE_SAMPLE = 1 << 20  # scores sampled for quantiles: three digits at 1% and 99%


def gini(counts: IntArray) -> float:
    """Compute the Gini coefficient of items' appearances: 0 if all are equal, near 1 if one item has all."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def overlap_per_query(old: IntArray, new: IntArray) -> npt.NDArray[np.float64]:
    """Return (n,) the share of each old list, (n, k_old) positions, that the new list, (n, k_new), still holds.

    Both use the same positions; -1 is an empty slot. An empty old list gives NaN.
    """
    n = len(old)
    if n == 0:
        return np.empty(0)
    span = int(max(old.max(initial=0), new.max(initial=0))) + 1
    keys_old = np.arange(n)[:, None] * span + old
    keys_new = (np.arange(n)[:, None] * span + new)[new != EMPTY_POSITION]
    still_listed = np.isin(keys_old, keys_new) & (old != EMPTY_POSITION)
    lengths = np.count_nonzero(old != EMPTY_POSITION, axis=1)
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = np.count_nonzero(still_listed, axis=1) / np.where(
            lengths == 0, np.nan, lengths
        )
    return shares


@dataclass(slots=True)
class Tally:
    """Sums over the rows of a table, from which its measures are computed."""

    n_items: int
    k: int
    n_input_queries: int  # rows of the query input, dropped ones included
    fill_at: int | None = None  # candidates that a list should have
    n_rows: int = 0  # rows of the table
    filled: int = 0
    covered: int = 0
    short: int = 0
    sufficient: int = 0
    _appearances: IntArray = field(init=False)
    _scores: list[FloatArray] = field(default_factory=list)
    _best: list[FloatArray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._appearances = np.zeros(self.n_items, np.int64)

    def add(self, positions: IntArray, scores: FloatArray, n_rows: int, total_rows: int) -> None:
        """Add rows, (n, k), of a table that will have `total_rows`."""
        filled = positions != EMPTY_POSITION
        lengths = np.count_nonzero(filled, axis=1)
        self.n_rows += n_rows
        self.filled += int(lengths.sum())
        self.covered += int(np.count_nonzero(lengths))
        self.short += int(np.count_nonzero(lengths < self.k)) + n_rows - len(positions)
        self.sufficient += int(np.count_nonzero(lengths >= (self.fill_at or 0)))
        self._appearances += np.bincount(positions[filled], minlength=self.n_items)
        step = max(1, total_rows * self.k // SCORE_SAMPLE)
        self._scores.append(scores[::step][filled[::step]])
        self._best.append(scores[::step, 0][filled[::step, 0]])

    def measures(self) -> dict[str, float]:
        """Return the measures of all rows added."""
        counts = self._appearances
        top = max(1, self.n_items // 100)
        heaviest = np.partition(counts, self.n_items - top)[self.n_items - top :] if self.n_items else counts
        return {
            "fill_rate": self.filled / max(1, self.n_rows * self.k),
            "query_coverage": self.covered / max(1, self.n_input_queries),
            "short_lists": self.short,
            **({} if self.fill_at is None else {"fill_at_m": self.sufficient / max(1, self.n_rows)}),
            "item_coverage": float(np.count_nonzero(counts)) / max(1, self.n_items),
            "exposure_gini": gini(counts),
            "exposure_top1": float(heaviest.sum()) / max(1, self.filled),
            **self._score_quantiles(),
        }

    def _score_quantiles(self) -> dict[str, float]:
        scores = np.concatenate(self._scores) if self._scores else np.empty(0, np.float32)
        if len(scores) == 0:
            return {}
        low, middle, high = (float(q) for q in np.quantile(scores.astype(np.float64), (0.01, 0.5, 0.99)))
        best = float(np.median(np.concatenate(self._best)))
        return {"score_p01": low, "score_p50": middle, "score_p99": high, "best_score_p50": best}
