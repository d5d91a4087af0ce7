"""Figures of the Euclidean lengths of a table's vectors: exact for one range of ids, merged from those of several.

Count, mean, extremes and the share of unit vectors are exact. Quantiles of a table in several ranges are those of a
sample: the vectors whose ids have the smallest hashes, about NORM_SAMPLE of them, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.sources.ids import hash_ids
from nearcast.types import FloatArray

__all__ = ["measure_lengths", "merge_lengths", "summarize_norms"]

NORM_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
NORM_SAMPLE = 1 << 16  # lengths


def summarize_norms(lengths: FloatArray) -> dict[str, float]:
    """Summarize Euclidean lengths, (n,): mean, extremes, quantiles, and the share of unit vectors."""
    if len(lengths) == 0:
        return {}
    wide = lengths.astype(np.float64)
    ends = {"mean": float(wide.mean()), "min": float(wide.min()), "max": float(wide.max())}
    return _summarize(ends, lengths, float(np.mean(np.abs(wide - 1) < 1e-2)))


def measure_lengths(ids: pa.Array, lengths: FloatArray, table_rows: int) -> dict[str, Any]:
    """Return the figures of one range, as plain data for `merge_lengths`. table_rows: rows of the whole table."""
    wide = lengths.astype(np.float64)
    if table_rows > NORM_SAMPLE:
        limit = np.uint64(NORM_SAMPLE / table_rows * 2**64)
        sample = lengths[hash_ids(ids) < limit]
    else:
        sample = lengths
    return {
        "count": len(lengths),
        "sum": float(wide.sum()),
        "min": float(wide.min(initial=np.inf)),
        "max": float(wide.max(initial=-np.inf)),
        "unit": int(np.count_nonzero(np.abs(wide - 1) < 1e-2)),
        "sample": sample.tolist(),
    }


def merge_lengths(ranges: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarize the lengths of a whole table from the figures of its ranges, as `summarize_norms` does."""
    ranges = [one for one in ranges if one["count"]]
    count = sum(one["count"] for one in ranges)
    if count == 0:
        return {}
    ends = {
        "mean": sum(one["sum"] for one in ranges) / count,
        "min": min(one["min"] for one in ranges),
        "max": max(one["max"] for one in ranges),
    }
    sample = np.array([length for one in ranges for length in one["sample"]], np.float32)
    return _summarize(ends, sample, sum(one["unit"] for one in ranges) / count)


def _summarize(ends: dict[str, float], sample: FloatArray, unit_share: float) -> dict[str, float]:
    summary = dict(ends)
    if len(sample):
        for q, value in zip(NORM_QUANTILES, np.quantile(sample.astype(np.float64), NORM_QUANTILES), strict=True):
            summary[f"p{round(q * 100):02d}"] = float(value)
    summary["unit_share"] = unit_share
    return {name: round(value, 6) for name, value in summary.items()}
