"""Measures of a whole table from sums over its rows: fill, coverage, exposure, scores.

Sums of parts add up to those of the table, so the measures are the same however it is cut. Arrays in, figures out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from nearcast.types import EMPTY_POSITION, FloatArray, IntArray

__all__ = ["CountHistogram", "PartSums", "TableShape", "compute_measures", "gini", "overlap_per_query"]

SCORE_SAMPLE = 1 << 20  # scores sampled for quantiles: three digits at 1% and 99%
MOST_SCORES = 1 << 23  # of the sample, if one row of each row group has more scores than SCORE_SAMPLE


@dataclass(frozen=True, slots=True)
class CountHistogram:
    """The number of items by their count of appearances."""

    counts: IntArray  # (d,) ascending, distinct
    items: IntArray  # (d,) number of items with each count

    @classmethod
    def of_counts(cls, counts: IntArray) -> CountHistogram:
        """Return the histogram of (n,) counts."""
        return cls(*np.unique(counts, return_counts=True))

    @property
    def n_items(self) -> int:
        """Return the number of items."""
        return int(self.items.sum())

    @property
    def appearances(self) -> int:
        """Return the sum of all counts."""
        return sum(count * items for count, items in self._pairs())

    @property
    def n_appearing(self) -> int:
        """Return the number of items with a count above 0."""
        return int(self.items[self.counts > 0].sum())

    def gini(self) -> float:
        """Compute the Gini coefficient of the counts: 0 if all are equal, near 1 if one item has all.

        sum over ascending counts x_i of (2 i - n - 1) x_i, divided by n times their sum: in integers, rounded once.
        """
        n, total = self.n_items, self.appearances
        if total == 0:
            return 0.0
        weighted = before = 0
        for count, items in self._pairs():
            weighted += count * items * (2 * before + items - n)
            before += items
        return weighted / (n * total)

    def heaviest(self, n: int) -> int:
        """Return the sum of the `n` largest counts."""
        total = 0
        for count, items in reversed(list(self._pairs())):
            taken = min(n, items)
            total, n = total + count * taken, n - taken
        return total

    def _pairs(self) -> zip[tuple[int, int]]:
        return zip(self.counts.tolist(), self.items.tolist(), strict=True)


def gini(counts: IntArray) -> float:
    """Compute the Gini coefficient of items' appearances: 0 if all are equal, near 1 if one item has all."""
    return CountHistogram.of_counts(counts).gini()


def overlap_per_query(old: IntArray, new: IntArray) -> npt.NDArray[np.float64]:
    """Return (n,) the share of each old list, (n, k_old) positions, that the new list, (n, k_new), still holds.

    Both use the same positions, and repeat none; -1 is an empty slot. An empty old list gives NaN.
    """
    if len(old) == 0:
        return np.empty(0)
    marked = np.sort(np.concatenate([2 * old, 2 * new + 1], axis=1), axis=1)  # an item of both has neighboring numbers
    still_listed = (marked[:, 1:] - marked[:, :-1] == 1) & (marked[:, 1:] % 2 == 1) & (marked[:, 1:] > 0)
    lengths = np.count_nonzero(old != EMPTY_POSITION, axis=1)
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = np.count_nonzero(still_listed, axis=1) / np.where(
            lengths == 0, np.nan, lengths
        )
    return shares


@dataclass(frozen=True, slots=True)
class TableShape:
    """The size of a whole candidate table, which decides what scores are sampled."""

    n_rows: int
    n_items: int
    k: int
    group_rows: int  # rows of a row group
    fill_at: int | None = None  # candidates that a list should have

    @property
    def row_step(self) -> int:
        """Return the step between the sampled rows of a row group."""
        return max(1, self.n_rows * self.k // SCORE_SAMPLE)

    @property
    def group_step(self) -> int:
        """Return the step between the sampled row groups."""
        groups = -(-self.n_rows // self.group_rows)
        return max(1, groups * self.k // MOST_SCORES)


@dataclass(frozen=True, slots=True)
class PartSums:
    """Sums over the rows of a part of a table."""

    rows: int = 0
    slots: int = 0  # candidates that the lists should have
    filled: int = 0  # candidates that they have
    covered: int = 0  # rows with a candidate
    short: int = 0  # rows with fewer candidates than they should have
    sufficient: int = 0  # rows with at least `fill_at` candidates

    @classmethod
    def of_lists(cls, positions: IntArray, n_rows: int, targets: IntArray, shape: TableShape) -> PartSums:
        """Sum up `n_rows` rows. positions: (rows with a vector, k). targets: candidates that each list should have."""
        lengths = np.count_nonzero(positions != EMPTY_POSITION, axis=1)
        without_vector = n_rows - len(positions)
        return cls(
            rows=n_rows,
            slots=int(targets.sum()) + without_vector * shape.k,
            filled=int(lengths.sum()),
            covered=int(np.count_nonzero(lengths)),
            short=int(np.count_nonzero(lengths < targets)) + without_vector,
            sufficient=int(np.count_nonzero(lengths >= (shape.fill_at or 0))),
        )

    def __add__(self, other: PartSums) -> PartSums:
        """Return the sums of both parts."""
        mine, others = asdict(self), asdict(other)
        return PartSums(**{name: value + others[name] for name, value in mine.items()})


def compute_measures(
    shape: TableShape,
    n_input_queries: int,
    sums: PartSums,
    counts: CountHistogram,
    scores: FloatArray,
    best: FloatArray,
) -> dict[str, float]:
    """Return the measures of a table.

    n_input_queries: rows of the query input, dropped ones included. scores, best: sampled scores of all candidates, and
    of the first ones.
    """
    return {
        "fill_rate": sums.filled / max(1, sums.slots),
        "query_coverage": sums.covered / max(1, n_input_queries),
        "short_lists": sums.short,
        **({} if shape.fill_at is None else {"fill_at_m": sums.sufficient / max(1, sums.rows)}),
        "item_coverage": counts.n_appearing / max(1, shape.n_items),
        "exposure_gini": counts.gini(),
        "exposure_top1": counts.heaviest(max(1, shape.n_items // 100)) / max(1, sums.filled),
        **_score_quantiles(scores, best),
    }


def _score_quantiles(scores: FloatArray, best: FloatArray) -> dict[str, float]:
    if len(scores) == 0:
        return {}
    low, middle, high = (float(q) for q in np.quantile(scores.astype(np.float64), (0.01, 0.5, 0.99)))
    return {"score_p01": low, "score_p50": middle, "score_p99": high, "best_score_p50": float(np.median(best))}
