"""What a day costs offline, online and as a mix, where the balance turns, and what is the better choice and why.

    offline  a list for every key: runs and publishes, then look-ups. A key without a list is not answered.
    online   an index over the items, made anew now and then, and a search for every request.
    mix      lists for the head of the traffic, and the index for all other requests.

Arithmetic on rates and traffic; measures and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.advising.rates import Rates
from nearcast.advising.skew import zipf_shares
from nearcast.errors import SpecError

__all__ = ["PER_KEY", "Advice", "Case", "Cost", "Turn", "advise"]

Float64Array = npt.NDArray[np.float64]

HOURS_PER_DAY, DAYS_PER_MONTH, SECONDS_PER_HOUR = 24.0, 30.0, 3600.0
SKEWS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5)
PER_KEY = (0.01, 0.1, 1.0, 10.0, 100.0)
HEADS = 200  # heads that are tried for the mix, from one key to all
HNSW_LINK_BYTES = 2 * 32 * 4 + 16  # per item: 64 links on the lowest layer, and what the others take
FASTEST_REFRESH_HOURS = 0.25


@dataclass(frozen=True, slots=True)
class Case:
    """A use case in numbers."""

    keys: int
    items: int
    requests_per_day: float
    shares: Float64Array  # (keys,) of the traffic, largest first; they sum to 1
    new_share: float = 0.0  # of the traffic, for keys that have no list yet
    churn_per_day: float = 0.0  # share of the items that change or go in a day
    refresh_hours: float = 24.0  # between two runs
    online_refresh_hours: float = 24.0  # between two times that the online index is made anew
    min_coverage: float = 0.95  # of the requests, that lists must answer for offline to be enough
    max_stale: float = 0.05  # share of a list that may be out of date on average
    price_core_hour: float | None = None
    price_gb_month: float | None = None
    versions_kept: int = 3

    def check(self) -> None:
        """SpecError for a number that cannot be."""
        faults = [
            (self.keys < 1, f"keys is {self.keys}; it is at least 1"),
            (self.items < 1, f"items is {self.items}; it is at least 1"),
            (self.requests_per_day < 0, f"requests per day are {self.requests_per_day:g}; they are 0 or more"),
            (not 0 <= self.churn_per_day < 1, f"churn is {self.churn_per_day:g}; it is a share of the items, below 1"),
            (not 0 <= self.new_share <= 1, f"the share of new keys is {self.new_share:g}; it is from 0 to 1"),
            (self.refresh_hours <= 0, f"a refresh every {self.refresh_hours:g} hours; it is above 0"),
            (self.online_refresh_hours <= 0, f"an online refresh every {self.online_refresh_hours:g} hours; above 0"),
        ]
        for wrong, text in faults:
            if wrong:
                raise SpecError(text)


@dataclass(frozen=True, slots=True)
class Cost:
    """A day of one way to do it."""

    way: str  # offline, online or mix
    keys: int  # that have a list
    cpu_seconds: Mapping[str, float]  # of a day, by what they are spent on
    gigabytes: float  # that are held: the published versions, or the index in memory
    coverage: float  # share of the requests that are answered
    stale: float  # share of a list that is out of date on average
    money: float | None  # of a day; None without prices

    @property
    def total_cpu_seconds(self) -> float:
        """Of a day."""
        return sum(self.cpu_seconds.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "total_cpu_seconds": self.total_cpu_seconds}


@dataclass(frozen=True, slots=True)
class Turn:
    """One skew: the mix against the other two, at several amounts of traffic."""

    exponent: float
    mix_pays_from: float  # requests per key and day from which the mix is cheaper than online; infinity for never
    cheapest: tuple[str, ...]  # at PER_KEY requests per key and day
    head_keys: tuple[int, ...]  # of the mix there
    of_online: tuple[float, ...]  # the cheapest way's processor seconds as a share of online's there


@dataclass(frozen=True, slots=True)
class Advice:
    """Costs, break-even lines and a recommendation."""

    online_engine: str
    costs: tuple[Cost, ...]  # offline, online, mix
    offline_pays_from: float  # requests per key and day, over all keys
    list_pays_from: float  # requests a day of one key from which its list pays in the mix
    turns: tuple[Turn, ...]
    recommended: str
    reason: str
    warnings: tuple[str, ...]

    def cost(self, way: str) -> Cost:
        """The cost of one way."""
        return next(cost for cost in self.costs if cost.way == way)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "costs": [cost.as_dict() for cost in self.costs], "per_key": PER_KEY}


def advise(case: Case, rates: Rates, engine: str = "faiss-hnsw") -> Advice:
    """Reckon all three ways, and say which. SpecError for a case that cannot be, or an engine without rates."""
    case.check()
    if engine not in rates.online:
        raise SpecError(f"online engine is {engine!r}, and rates were measured for {', '.join(rates.online) or 'none'}")
    model = _Model(case, rates, engine)
    covered = np.cumsum(case.shares)
    costs = (model.cost("offline", case.keys, covered), model.cost("online", 0, covered), model.best_mix(covered))
    recommended, reason = _choice(case, costs, engine, model)
    return Advice(
        online_engine=engine,
        costs=costs,
        offline_pays_from=model.offline_pays_from(),
        list_pays_from=model.list_seconds / model.search,
        turns=tuple(_turn(model, exponent) for exponent in SKEWS),
        recommended=recommended,
        reason=reason,
        warnings=tuple(_warnings(case, costs)),
    )


def staleness(churn_per_day: float, hours: float) -> float:
    """The share of a list that has changed or gone, averaged over the time between two refreshes.

    As if items that change were in lists as often as others: if newer ones are shown more, it is more.
    """
    days, kept = hours / HOURS_PER_DAY, 1 - churn_per_day
    if churn_per_day == 0 or days == 0:
        return 0.0
    return float(1 - (1 - kept**days) / (-math.log(kept) * days))


class _Model:
    """A case with its rates: seconds for any number of lists, any traffic."""

    def __init__(self, case: Case, rates: Rates, engine: str) -> None:
        self.case, self.rates, self.engine = case, rates, engine
        self.refreshes = HOURS_PER_DAY / case.refresh_hours
        self.search, self.lookup = rates.search_seconds(engine, case.items), rates.lookup_seconds
        self.heads = _heads(case.keys)
        self.list_costs = {n: sum(self.lists(n).values()) for n in self.heads}
        self.index = HOURS_PER_DAY / case.online_refresh_hours * rates.index_seconds(engine, case.items)

    def lists(self, keys: int) -> dict[str, float]:
        """Of a day's refreshes with so many lists."""
        if keys == 0:
            return {}
        run, publish = (f(keys, self.case.items) for f in (self.rates.run_seconds, self.rates.publish_seconds))
        return {"join": self.refreshes * run, "publish": self.refreshes * publish}

    @property
    def list_seconds(self) -> float:
        """Of a day, for one list more."""
        n = self.case.keys
        few = max(1, n // 2)
        return (sum(self.lists(n).values()) - sum(self.lists(few).values())) / max(1, n - few)

    def parts(self, way: str, keys: int, covered: float, requests: float) -> dict[str, float]:
        """Processor seconds of a day. covered: share of the requests for keys with a list."""
        if way == "online":
            return {"index": self.index, "search": requests * self.search}
        parts = {**self.lists(keys), "look-up": requests * self.lookup}
        if way == "mix":
            parts |= {"index": self.index, "search": requests * (1 - covered) * self.search}
        return parts

    def cost(self, way: str, keys: int, covered: Float64Array) -> Cost:
        """The cost of a day with lists for the first keys."""
        case = self.case
        share = min(1.0, float(covered[keys - 1])) * (1 - case.new_share) if keys else 0.0  # sums may round above 1
        parts = self.parts(way, keys, share, case.requests_per_day)
        index = 0.0 if way == "offline" else case.items * (4 * self.rates.dim + HNSW_LINK_BYTES) / 1e9
        table = case.versions_kept * keys * self.rates.key_bytes / 1e9
        fresh = {"offline": case.refresh_hours, "online": case.online_refresh_hours}
        return Cost(
            way=way,
            keys=keys,
            cpu_seconds=parts,
            gigabytes=index + table,
            coverage=share if way == "offline" else 1.0,
            stale=staleness(case.churn_per_day, fresh.get(way, case.refresh_hours)),
            money=self.money(sum(parts.values()), index + table),
        )

    def money(self, cpu_seconds: float, gigabytes: float) -> float | None:
        """Of a day; None without a price of a core-hour."""
        if self.case.price_core_hour is None:
            return None
        held = gigabytes * (self.case.price_gb_month or 0.0) / DAYS_PER_MONTH
        return cpu_seconds / SECONDS_PER_HOUR * self.case.price_core_hour + held

    def best_mix(self, covered: Float64Array) -> Cost:
        """The mix with the head that makes it cheapest."""
        return min((self.cost("mix", n, covered) for n in self.heads), key=_expense)

    def mix_seconds(self, covered: Float64Array, requests: float) -> tuple[float, int]:
        """Processor seconds of the cheapest mix, and its head."""
        known = 1 - self.case.new_share
        searched = [1 - min(1.0, float(covered[n - 1])) * known for n in self.heads]
        spent = [
            self.list_costs[n] + requests * share * self.search for n, share in zip(self.heads, searched, strict=True)
        ]
        tried = [(self.index + requests * self.lookup + each, n) for each, n in zip(spent, self.heads, strict=True)]
        return min(tried)

    def offline_pays_from(self) -> float:
        """Requests per key and day from which lists for all keys are cheaper than the online index; 0 for always."""
        saved = self.search - self.lookup
        if saved <= 0:
            return math.inf
        return max(0.0, (sum(self.lists(self.case.keys).values()) - self.index) / (self.case.keys * saved))


def _heads(keys: int) -> list[int]:
    return [int(n) for n in np.unique(np.geomspace(1, keys, HEADS).round().astype(np.int64))]


def _expense(cost: Cost) -> float:
    return cost.total_cpu_seconds if cost.money is None else cost.money


def _turn(model: _Model, exponent: float) -> Turn:
    keys = model.case.keys
    covered = np.cumsum(zipf_shares(keys, exponent))
    ways, heads, shares = [], [], []
    for per_key in PER_KEY:
        requests = per_key * keys
        mix, head = model.mix_seconds(covered, requests)
        online = sum(model.parts("online", 0, 0.0, requests).values())
        offline = sum(model.parts("offline", keys, 1.0, requests).values())
        seconds, way = min((offline, "offline"), (online, "online"), (mix, "mix"))
        ways.append(way)
        heads.append(head)
        shares.append(seconds / online)
    return Turn(exponent, _mix_pays_from(model, covered), tuple(ways), tuple(heads), tuple(shares))


def _mix_pays_from(model: _Model, covered: Float64Array) -> float:
    """Requests per key and day at which the best of all heads saves as many searches as its lists and look-ups cost."""
    known = 1 - model.case.new_share
    least = math.inf
    for n in model.heads:
        saved = float(covered[n - 1]) * known * model.search - model.lookup  # by each request
        if saved > 0:
            least = min(least, model.list_costs[n] / saved)
    return least / model.case.keys


def _choice(case: Case, costs: Sequence[Cost], engine: str, model: _Model) -> tuple[str, str]:
    """The cheapest way that answers enough and is fresh enough; where none is, the freshest that answers enough."""
    enough = [cost for cost in costs if cost.coverage >= case.min_coverage or cost.way != "offline"]
    fresh = [cost for cost in enough if cost.stale <= case.max_stale]
    best = min(fresh, key=_expense) if fresh else min(enough, key=lambda cost: (cost.stale, _expense(cost)))
    return best.way, ". ".join([*_against_others(case, costs, best), *_why_so_much(case, best, engine, model)]) + "."


def _against_others(case: Case, costs: Sequence[Cost], best: Cost) -> Iterator[str]:
    """Compare with the other ways: what they cost, and why a cheaper one is not recommended."""
    others = [cost for cost in costs if cost is not best]
    dearer = [cost for cost in others if _expense(cost) >= _expense(best)]
    cheaper = [cost for cost in others if _expense(cost) < _expense(best)]
    if best.stale > case.max_stale:
        yield (
            f"{best.way} is the freshest of the ways that answer enough requests: no way keeps its lists less than "
            f"{case.max_stale:.1%} out of date"
        )
    if dearer:
        most = "costs the least" if not cheaper else "costs less than the rest"
        least = max(_expense(best), 1e-12)
        times = " and ".join(f"{cost.way} costs {_expense(cost) / least:,.3g} times as much" for cost in dearer)
        yield f"{best.way} {most}: {times}"
    for cost in cheaper:
        share = _expense(cost) / max(_expense(best), 1e-12)
        if cost.way == "offline" and cost.coverage < case.min_coverage:
            why = f"answers {cost.coverage:.1%} of the requests, where {case.min_coverage:.1%} are wanted"
        else:
            why = f"is {cost.stale:.1%} out of date on average, against {best.stale:.1%} of {best.way}"
        yield f"{cost.way} would cost {share:.1%} of that, but {why}"


def _why_so_much(case: Case, best: Cost, engine: str, model: _Model) -> Iterator[str]:
    """Say where the costs come from: one request, and from how many requests lists are worth their making."""
    lookup, search = model.lookup * 1e6, model.search * 1e6
    yield f"Answering a request takes {lookup:,.0f} µs from a list, and {search:,.0f} µs by a search with {engine}"
    pays, per_key = model.offline_pays_from(), case.requests_per_day / case.keys
    if math.isinf(pays):
        yield "Lists never pay here, since a look-up takes as long as a search"
    else:
        yield (
            f"A list has to be made before anybody asks: lists for all keys pay from {pays:,.2f} requests per key and "
            f"day, and there are {per_key:,.2f}"
        )
    if best.way == "mix":
        share = case.shares[: best.keys].sum()
        yield f"The {best.keys:,} keys asked for most get a list; they have {share:.1%} of the requests for known keys"


def _warnings(case: Case, costs: Sequence[Cost]) -> list[str]:
    offline = costs[0]
    found = []
    if offline.coverage < case.min_coverage:
        found.append(
            f"lists answer {offline.coverage:.1%} of the requests, and {case.min_coverage:.1%} are wanted: the others "
            "are for keys without a list; search for those, or give them a fallback"
        )
    if offline.stale > case.max_stale:
        hours = _fresh_enough(case)
        found.append(
            f"with {case.churn_per_day:.1%} of the items changing in a day, a list is {offline.stale:.1%} out of date "
            f"on average; a refresh every {hours:.3g} hours keeps it at {case.max_stale:.1%}"
            if hours
            else f"a list is {offline.stale:.1%} out of date on average, and no refresh is fast enough for that"
        )
    return found


def _fresh_enough(case: Case) -> float | None:
    """The longest refresh interval that is fresh enough, by halving; None where a quarter of an hour is too long."""
    if staleness(case.churn_per_day, FASTEST_REFRESH_HOURS) > case.max_stale:
        return None
    low, high = FASTEST_REFRESH_HOURS, case.refresh_hours
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if staleness(case.churn_per_day, middle) <= case.max_stale else (low, middle)
    return low
