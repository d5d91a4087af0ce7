"""The head of the traffic: the keys that cover a share of it, what more keys would add, and what they cover tomorrow.

A head that was chosen on days covers those days too well. What it will cover is measured on days that it was not chosen
on: for each of the last days, the head of the days before against the traffic of that day.
"""

from __future__ import annotations

import os
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
from nearcast.sources.user_files import shown_path
from nearcast.types import IntArray

__all__ = ["Head", "HeldOut", "Point", "find_head", "write_head"]

Float64Array = npt.NDArray[np.float64]

COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)  # told beside the one that is asked for
CURVE_POINTS = 120
THOUSAND = 1_000
HELD_OUT_DAYS = 7  # a week has every day of one
ROUNDING = 1e-12  # a cumulative share of 0.9 may come out a hair below


@dataclass(frozen=True, slots=True)
class Point:
    """What the n most asked keys cover."""

    keys: int
    coverage: float  # share of the log's traffic
    tomorrow: float | None  # share of the traffic of days after those that they were chosen on, averaged
    next_thousand: float  # share of the log's traffic that the next thousand keys would add


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The head of the days before a day, against the traffic of that day."""

    day: str
    keys: int  # that cover the asked share of the days before
    coverage: float  # of the day
    new: float  # share of the day's traffic for keys that were never asked for before: no head covers that


@dataclass(frozen=True, slots=True)
class Head:
    """The keys to make lists for."""

    asked: float  # the coverage that was asked for
    by_tomorrow: bool  # it was asked of tomorrow's traffic
    chosen: Point
    table: tuple[Point, ...]  # at round coverages
    curve: tuple[Point, ...]
    held_out: tuple[HeldOut, ...]  # none without times, or with one day only
    n_keys: int
    requests: float
    days: int
    zipf: Zipf

    @property
    def tomorrow(self) -> tuple[float, float, float] | None:
        """Expected coverage of tomorrow: the mean over the held-out days, the least and the most."""
        found = [day.coverage for day in self.held_out]
        return (sum(found) / len(found), min(found), max(found)) if found else None

    @property
    def new_share(self) -> float | None:
        """Share of a day's traffic for keys that were never asked for before, averaged."""
        return sum(day.new for day in self.held_out) / len(self.held_out) if self.held_out else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "tomorrow": self.tomorrow, "new_share": self.new_share}


def find_head(
    traffic: Traffic, coverage: float, *, by_tomorrow: bool = False, held_out_days: int = HELD_OUT_DAYS
) -> Head:
    """The fewest keys that cover a share of the traffic.

    by_tomorrow: of the traffic to come, as the held-out days show it; InputError where no head does that, or the log
    has no two days. Costs a pass over the counts for each held-out day.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage is {coverage:g}; it is a share above 0 and at most 1, such as 0.9")
    cumulative = np.cumsum(traffic.requests) / traffic.total
    days = list(_held_out(traffic, coverage, held_out_days))
    shares = [share for share, _ in days]
    after = np.mean(shares, axis=0) if shares else None
    n = _by_tomorrow(after, coverage) if by_tomorrow else _least(cumulative, coverage)
    grid = np.unique(np.append(np.geomspace(1, len(cumulative), CURVE_POINTS).astype(np.int64), n))
    return Head(
        asked=coverage,
        by_tomorrow=by_tomorrow,
        chosen=_point(n, cumulative, after),
        table=tuple(_point(_least(cumulative, share), cumulative, after) for share in COVERAGES),
        curve=tuple(_point(int(keys), cumulative, after) for keys in grid),
        held_out=tuple(day for _, day in days),
        n_keys=len(cumulative),
        requests=traffic.total,
        days=len(traffic.days),
        zipf=fit_zipf(traffic.requests),
    )


def write_head(traffic: Traffic, head: Head, path: Path, *, column: str = "id") -> None:
    """Write the keys, most asked first, with their requests: a file that `[queries] only` takes.

    Raises InputError where it cannot be written.
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(os.fsencode(path), "wb") as file:  # bytes: a name need not be UTF-8
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise InputError(f"{shown_path(path)} cannot be written: {error.strerror or error}") from error


def _least(cumulative: Float64Array, share: float) -> int:
    """The fewest first keys whose cumulative share is at least this."""
    return min(len(cumulative), int(np.searchsorted(cumulative, share - ROUNDING)) + 1)


def _by_tomorrow(after: Float64Array | None, coverage: float) -> int:
    if after is None:
        raise InputError("tomorrow's coverage is measured on later days: name the log's column of times, with two days")
    if after[-1] < coverage - ROUNDING:
        raise InputError(
            f"no head covers {coverage:.1%} of tomorrow: all keys that were ever asked for cover {after[-1]:.1%} of a "
            "day to come, the rest is new keys; ask for less, and search online for what is new"
        )
    return _least(after, coverage)


def _point(n: int, cumulative: Float64Array, after: Float64Array | None) -> Point:
    further = min(len(cumulative), n + THOUSAND)
    added = float(cumulative[further - 1] - cumulative[n - 1])
    return Point(n, float(cumulative[n - 1]), None if after is None else float(after[n - 1]), added)


def _held_out(traffic: Traffic, coverage: float, days: int) -> Iterator[tuple[Float64Array, HeldOut]]:
    """For each of the last days: the share of it that the n first keys of the days before cover, for every n."""
    size, before = len(traffic.requests), np.zeros(len(traffic.requests))
    first = max(1, len(traffic.days) - days)
    for number, day in enumerate(traffic.days):
        if number >= first:
            today = np.bincount(day.keys, weights=day.requests, minlength=size)
            order = _order(before)
            covered = np.cumsum(today[order]) / today.sum()
            known = int(np.count_nonzero(before))
            covered[known:] = covered[known - 1]  # keys that were not there before are in no head
            head = _least(np.cumsum(before[order]) / before.sum(), coverage)
            new = float(1 - covered[known - 1])
            yield covered, HeldOut(day.name, head, float(covered[head - 1]), max(0.0, new))
        before += np.bincount(day.keys, weights=day.requests, minlength=size)


def _order(requests: Float64Array) -> IntArray:
    order: IntArray = np.argsort(-requests, kind="stable")
    return order
