"""Head keys: the fewest keys that cover a share of the traffic, and their coverage of later days.

A head covers the days that it was chosen on too well. Its coverage of later days is measured on held-out days: for each
of the last days, the head of the days before is compared with the traffic of that day.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.advising.skew import Zipf, fit_zipf
from nearcast.advising.traffic import Traffic
from nearcast.errors import InputError
from nearcast.files import bucket_url
from nearcast.sources.bucket_files import open_bucket, parse_bucket_path
from nearcast.sources.user_files import shown_path
from nearcast.types import IntArray

__all__ = ["CoveragePoint", "Head", "HeldOut", "find_head", "write_head"]

Float64Array = npt.NDArray[np.float64]

COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)  # reported beside the requested coverage
CURVE_POINTS = 120
THOUSAND = 1_000
HELD_OUT_DAYS = 7  # a week has every weekday
ROUNDING = 1e-12  # a cumulative share of 0.9 may be a little below 0.9


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """The coverage of the n most requested keys."""

    keys: int
    coverage: float  # share of the log's traffic
    tomorrow: float | None  # mean share of the traffic of the held-out days
    next_thousand: float  # share of the log's traffic of the next 1,000 keys


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The coverage of a held-out day by the head of the days before."""

    day: str
    keys: int  # that cover the requested share of the days before
    coverage: float  # of the day
    new: float  # share of the day's traffic for keys without earlier requests: no head covers it


@dataclass(frozen=True, slots=True)
class Head:
    """The keys to make lists for, with the coverage of other numbers of keys."""

    asked: float  # requested coverage
    by_tomorrow: bool  # the requested coverage is that of later days
    chosen: CoveragePoint
    table: tuple[CoveragePoint, ...]  # at round coverages
    curve: tuple[CoveragePoint, ...]
    held_out: tuple[HeldOut, ...]  # empty without times, or with one day only
    n_keys: int
    requests: float
    days: int
    zipf: Zipf

    @property
    def tomorrow(self) -> tuple[float, float, float] | None:
        """Expected coverage of a later day: the mean over the held-out days, the least and the most."""
        found = [day.coverage for day in self.held_out]
        return (sum(found) / len(found), min(found), max(found)) if found else None

    @property
    def new_share(self) -> float | None:
        """Mean share of a day's traffic for keys without earlier requests."""
        return sum(day.new for day in self.held_out) / len(self.held_out) if self.held_out else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "tomorrow": self.tomorrow, "new_share": self.new_share}


def find_head(
    traffic: Traffic, coverage: float, *, by_tomorrow: bool = False, held_out_days: int = HELD_OUT_DAYS
) -> Head:
    """Find the fewest keys that cover a share of the traffic.

    by_tomorrow: the coverage is that of the held-out days. Costs a pass over the counts for each held-out day. Raises
    InputError if no head covers that much, or the log has fewer than two days.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be in (0, 1], got {coverage:g}; write 0.9 for 90%")
    cumulative = np.cumsum(traffic.requests) / traffic.total
    days = list(_measure_held_out_days(traffic, coverage, held_out_days))
    shares = [share for share, _ in days]
    after = np.mean(shares, axis=0) if shares else None
    n = _count_keys_by_tomorrow(after, coverage) if by_tomorrow else _count_keys(cumulative, coverage)
    grid = np.unique(np.append(np.geomspace(1, len(cumulative), CURVE_POINTS).astype(np.int64), n))
    return Head(
        asked=coverage,
        by_tomorrow=by_tomorrow,
        chosen=_make_point(n, cumulative, after),
        table=tuple(_make_point(_count_keys(cumulative, share), cumulative, after) for share in COVERAGES),
        curve=tuple(_make_point(int(keys), cumulative, after) for keys in grid),
        held_out=tuple(day for _, day in days),
        n_keys=len(cumulative),
        requests=traffic.total,
        days=len(traffic.days),
        zipf=fit_zipf(traffic.requests),
    )


def write_head(traffic: Traffic, head: Head, path: Path | str, *, column: str = "id") -> None:
    """Write the keys with their requests, most requested first, to a Parquet file or a URL for `[queries] only`.

    Raises InputError if the file cannot be written, StorageError for a URL.
    """
    n = head.chosen.keys
    keys = traffic.keys[:n]
    table = pa.table(
        {
            column: keys.cast(pa.string()) if keys.type == pa.large_string() else keys,
            "requests": traffic.requests[:n],
            "share": traffic.requests[:n] / traffic.total,
        }
    )
    if url := bucket_url(path):
        _upload_head(table, url)
        return
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(os.fsencode(path), "wb") as file:  # bytes: a name need not be UTF-8
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise InputError(f"{shown_path(path)} cannot be written: {error.strerror or error}") from error


def _upload_head(table: pa.Table, url: str) -> None:
    location = parse_bucket_path(url)
    if not location.name or location.name.endswith("/"):
        raise InputError(f"{url} names no object; write it like {url.rstrip('/')}/keys.parquet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "keys.parquet")
        pq.write_table(table, path, compression="zstd")
        open_bucket(location.bucket).upload(location.name, path)


def _count_keys(cumulative: Float64Array, share: float) -> int:
    """Return the fewest first keys whose cumulative share is at least `share`."""
    return min(len(cumulative), int(np.searchsorted(cumulative, share - ROUNDING)) + 1)


def _count_keys_by_tomorrow(after: Float64Array | None, coverage: float) -> int:
    if after is None:
        raise InputError("coverage of later days needs times: name the log's column of times, with at least two days")
    if after[-1] < coverage - ROUNDING:
        raise InputError(
            f"no head covers {coverage:.1%} of later days: all keys of the log cover {after[-1]:.1%} of them, the rest "
            "is new keys; use a smaller coverage, and search online for new keys"
        )
    return _count_keys(after, coverage)


def _make_point(n: int, cumulative: Float64Array, after: Float64Array | None) -> CoveragePoint:
    further = min(len(cumulative), n + THOUSAND)
    added = float(cumulative[further - 1] - cumulative[n - 1])
    return CoveragePoint(n, float(cumulative[n - 1]), None if after is None else float(after[n - 1]), added)


def _measure_held_out_days(traffic: Traffic, coverage: float, days: int) -> Iterator[tuple[Float64Array, HeldOut]]:
    """Yield for each of the last days the coverage by the first n keys of the days before, for every n."""
    size, before = len(traffic.requests), np.zeros(len(traffic.requests))
    first = max(1, len(traffic.days) - days)
    for number, day in enumerate(traffic.days):
        if number >= first:
            today = np.bincount(day.keys, weights=day.requests, minlength=size)
            order = _rank_keys(before)
            covered = np.cumsum(today[order]) / today.sum()
            known = int(np.count_nonzero(before))
            covered[known:] = covered[known - 1]  # new keys are in no head
            head = _count_keys(np.cumsum(before[order]) / before.sum(), coverage)
            new = float(1 - covered[known - 1])
            yield covered, HeldOut(day.name, head, float(covered[head - 1]), max(0.0, new))
        before += np.bincount(day.keys, weights=day.requests, minlength=size)


def _rank_keys(requests: Float64Array) -> IntArray:
    order: IntArray = np.argsort(-requests, kind="stable")
    return order
