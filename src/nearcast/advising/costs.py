"""Cost model: the cost of a day with offline lists, with an online index, and with a mix of both.

    offline  a list for every key: runs, publishes and look-ups. A key without a list is not answered.
    online   an index over the items, rebuilt at an interval, and a search for every request.
    mix      lists for the head keys, and a search for all other requests.

Arithmetic on rates and traffic; measures and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.advising.rates import Rates
from nearcast.errors import SpecError

__all__ = ["CostModel", "DailyCost", "UseCase", "compute_staleness"]

Float64Array = npt.NDArray[np.float64]

HOURS_PER_DAY, DAYS_PER_MONTH, SECONDS_PER_HOUR = 24.0, 30.0, 3600.0
HEADS = 200  # sizes of the head that are tried for the mix, from one key to all keys
HNSW_LINK_BYTES = 2 * 32 * 4 + 16  # per item: 64 links on the lowest layer, and the links of the upper layers


@dataclass(frozen=True, slots=True)
class UseCase:
    """A use case in numbers. The field names are a format (JSON of `advise`)."""

    keys: int
    items: int
    requests_per_day: float
    shares: Float64Array  # (keys,) shares of the traffic, largest first; their sum is 1
    new_share: float = 0.0  # share of the traffic for keys without a list
    churn_per_day: float = 0.0  # share of the items that change or are removed in a day
    refresh_hours: float = 24.0  # between two runs
    online_refresh_hours: float = 24.0  # between two builds of the online index
    min_coverage: float = 0.95  # share of the requests that offline lists must answer
    max_stale: float = 0.05  # mean share of a list that may be out of date
    price_core_hour: float | None = None
    price_gb_month: float | None = None
    versions_kept: int = 3

    def validate(self) -> None:
        """Raise SpecError if a number is outside its range."""
        checks = [
            (self.keys < 1, f"keys must be at least 1, got {self.keys}"),
            (self.items < 1, f"items must be at least 1, got {self.items}"),
            (self.requests_per_day < 0, f"requests per day must be at least 0, got {self.requests_per_day:g}"),
            (not 0 <= self.churn_per_day < 1, f"churn must be in [0, 1), got {self.churn_per_day:g}"),
            (not 0 <= self.new_share <= 1, f"the share of new keys must be in [0, 1], got {self.new_share:g}"),
            (self.refresh_hours <= 0, f"refresh hours must be above 0, got {self.refresh_hours:g}"),
            (
                self.online_refresh_hours <= 0,
                f"online refresh hours must be above 0, got {self.online_refresh_hours:g}",
            ),
        ]
        for wrong, text in checks:
            if wrong:
                raise SpecError(text)


@dataclass(frozen=True, slots=True)
class DailyCost:
    """The cost of one day with one variant. The field names are a format (JSON of `advise`)."""

    way: str  # variant: offline, online or mix
    keys: int  # keys with a list
    cpu_seconds: Mapping[str, float]  # by task
    gigabytes: float  # published versions on disk and the index in memory
    coverage: float  # share of the requests that are answered
    stale: float  # mean share of a list that is out of date
    money: float | None  # None without prices

    @property
    def total_cpu_seconds(self) -> float:
        """Processor seconds of all tasks."""
        return sum(self.cpu_seconds.values())

    @property
    def expense(self) -> float:
        """The measure for comparing variants: money if there are prices, else processor seconds."""
        return self.total_cpu_seconds if self.money is None else self.money

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "total_cpu_seconds": self.total_cpu_seconds}


def compute_staleness(churn_per_day: float, hours: float) -> float:
    """Return the share of a list that has changed or been removed, averaged over the time between two refreshes.

    Assumes that changing items are in lists as often as other items; if newer items are shown more, it is more.
    """
    days, unchanged = hours / HOURS_PER_DAY, 1 - churn_per_day
    if churn_per_day == 0 or days == 0:
        return 0.0
    return float(1 - (1 - unchanged**days) / (-math.log(unchanged) * days))


class CostModel:
    """A use case with the rates of a machine: processor seconds for any number of lists and any traffic."""

    def __init__(self, case: UseCase, rates: Rates, engine: str) -> None:
        self.case, self.rates, self.engine = case, rates, engine
        self.refreshes = HOURS_PER_DAY / case.refresh_hours
        self.search, self.lookup = rates.search_seconds(engine, case.items), rates.lookup_seconds
        self.heads = [int(n) for n in np.unique(np.geomspace(1, case.keys, HEADS).round().astype(np.int64))]
        self.list_costs = {n: sum(self.estimate_lists(n).values()) for n in self.heads}
        self.index = HOURS_PER_DAY / case.online_refresh_hours * rates.index_seconds(engine, case.items)

    def estimate_lists(self, keys: int) -> dict[str, float]:
        """Estimate the processor seconds of a day's refreshes for this number of lists, by task."""
        if keys == 0:
            return {}
        run, publish = (f(keys, self.case.items) for f in (self.rates.run_seconds, self.rates.publish_seconds))
        return {"join": self.refreshes * run, "publish": self.refreshes * publish}

    @property
    def list_seconds(self) -> float:
        """Processor seconds a day for one more list."""
        n = self.case.keys
        few = max(1, n // 2)
        return (sum(self.estimate_lists(n).values()) - sum(self.estimate_lists(few).values())) / max(1, n - few)

    def estimate_tasks(self, way: str, keys: int, covered: float, requests: float) -> dict[str, float]:
        """Estimate the processor seconds of a day by task. covered: share of the requests for keys with a list."""
        if way == "online":
            return {"index": self.index, "search": requests * self.search}
        tasks = {**self.estimate_lists(keys), "look-up": requests * self.lookup}
        if way == "mix":
            tasks |= {"index": self.index, "search": requests * (1 - covered) * self.search}
        return tasks

    def estimate_cost(self, way: str, keys: int, covered: Float64Array) -> DailyCost:
        """Estimate the cost of a day with lists for the first `keys` keys. covered: (keys,) cumulative shares."""
        case = self.case
        share = min(1.0, float(covered[keys - 1])) * (1 - case.new_share) if keys else 0.0  # sums may round above 1
        tasks = self.estimate_tasks(way, keys, share, case.requests_per_day)
        index = 0.0 if way == "offline" else case.items * (4 * self.rates.dim + HNSW_LINK_BYTES) / 1e9
        table = case.versions_kept * keys * self.rates.key_bytes / 1e9
        intervals = {"offline": case.refresh_hours, "online": case.online_refresh_hours}
        return DailyCost(
            way=way,
            keys=keys,
            cpu_seconds=tasks,
            gigabytes=index + table,
            coverage=share if way == "offline" else 1.0,
            stale=compute_staleness(case.churn_per_day, intervals.get(way, case.refresh_hours)),
            money=self.estimate_money(sum(tasks.values()), index + table),
        )

    def estimate_money(self, cpu_seconds: float, gigabytes: float) -> float | None:
        """Return the price of a day; None without a price of a core-hour."""
        if self.case.price_core_hour is None:
            return None
        storage = gigabytes * (self.case.price_gb_month or 0.0) / DAYS_PER_MONTH
        return cpu_seconds / SECONDS_PER_HOUR * self.case.price_core_hour + storage

    def find_best_mix(self, covered: Float64Array) -> DailyCost:
        """Return the cost of the mix with the cheapest size of the head."""
        return min((self.estimate_cost("mix", n, covered) for n in self.heads), key=lambda cost: cost.expense)

    def find_cheapest_head(self, covered: Float64Array, requests: float) -> tuple[float, int]:
        """Return the processor seconds of the cheapest mix, and the size of its head."""
        known = 1 - self.case.new_share
        searched = [1 - min(1.0, float(covered[n - 1])) * known for n in self.heads]
        spent = [
            self.list_costs[n] + requests * share * self.search for n, share in zip(self.heads, searched, strict=True)
        ]
        mixes = [(self.index + requests * self.lookup + each, n) for each, n in zip(spent, self.heads, strict=True)]
        return min(mixes)

    def find_offline_break_even(self) -> float:
        """Return the requests per key and day from which lists for all keys cost less than the online index.

        0: always; infinity: never.
        """
        saved = self.search - self.lookup
        if saved <= 0:
            return math.inf
        return max(0.0, (sum(self.estimate_lists(self.case.keys).values()) - self.index) / (self.case.keys * saved))

    def find_mix_break_even(self, covered: Float64Array) -> float:
        """Return the requests per key and day from which the best mix saves more searches than its lists cost."""
        known = 1 - self.case.new_share
        least = math.inf
        for n in self.heads:
            saved = float(covered[n - 1]) * known * self.search - self.lookup  # by each request
            if saved > 0:
                least = min(least, self.list_costs[n] / saved)
        return least / self.case.keys
