"""Advice on a use case: the cost of each variant, the break-even points, and a recommendation with its reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nearcast.advising.costs import CostModel, DailyCost, UseCase, compute_staleness
from nearcast.advising.rates import Rates
from nearcast.advising.skew import zipf_shares
from nearcast.errors import SpecError

__all__ = ["PER_KEY", "Advice", "BreakEven", "advise"]

SKEWS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5)
PER_KEY = (0.01, 0.1, 1.0, 10.0, 100.0)  # requests per key and day
FASTEST_REFRESH_HOURS = 0.25


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The cheapest variants for one skew of the traffic. The field names are a format (JSON of `advise`)."""

    exponent: float
    mix_pays_from: float  # requests per key and day from which the mix costs less than online; infinity: never
    cheapest: tuple[str, ...]  # variant at each of PER_KEY
    head_keys: tuple[int, ...]  # keys with a list in the mix, at each of PER_KEY
    of_online: tuple[float, ...]  # processor seconds of the cheapest variant / those of online, at each of PER_KEY


@dataclass(frozen=True, slots=True)
class Advice:
    """Costs, break-even points and a recommendation. The field names are a format (JSON of `advise`)."""

    online_engine: str
    costs: tuple[DailyCost, ...]  # offline, online, mix
    offline_pays_from: float  # requests per key and day, over all keys
    list_pays_from: float  # requests a day of one key from which its list costs less than searches, in the mix
    turns: tuple[BreakEven, ...]
    recommended: str
    reason: str
    warnings: tuple[str, ...]

    def cost(self, way: str) -> DailyCost:
        """Return the cost of one variant."""
        return next(cost for cost in self.costs if cost.way == way)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "costs": [cost.as_dict() for cost in self.costs], "per_key": PER_KEY}


def advise(case: UseCase, rates: Rates, engine: str = "faiss-hnsw") -> Advice:
    """Estimate the cost of all three variants and recommend one.

    Raises SpecError for a number outside its range, or an engine without rates.
    """
    case.validate()
    if engine not in rates.online:
        raise SpecError(f"online engine is {engine!r}, and rates were measured for {', '.join(rates.online) or 'none'}")
    model = CostModel(case, rates, engine)
    covered = np.cumsum(case.shares)
    costs = (
        model.estimate_cost("offline", case.keys, covered),
        model.estimate_cost("online", 0, covered),
        model.find_best_mix(covered),
    )
    recommended, reason = _recommend_variant(model, costs)
    return Advice(
        online_engine=engine,
        costs=costs,
        offline_pays_from=model.find_offline_break_even(),
        list_pays_from=model.list_seconds / model.search,
        turns=tuple(_find_break_even(model, exponent) for exponent in SKEWS),
        recommended=recommended,
        reason=reason,
        warnings=tuple(_list_warnings(case, costs)),
    )


def _find_break_even(model: CostModel, exponent: float) -> BreakEven:
    keys = model.case.keys
    covered = np.cumsum(zipf_shares(keys, exponent))
    variants, heads, shares = [], [], []
    for per_key in PER_KEY:
        requests = per_key * keys
        mix, head = model.find_cheapest_head(covered, requests)
        online = sum(model.estimate_tasks("online", 0, 0.0, requests).values())
        offline = sum(model.estimate_tasks("offline", keys, 1.0, requests).values())
        seconds, variant = min((offline, "offline"), (online, "online"), (mix, "mix"))
        variants.append(variant)
        heads.append(head)
        shares.append(seconds / online)
    return BreakEven(exponent, model.find_mix_break_even(covered), tuple(variants), tuple(heads), tuple(shares))


def _recommend_variant(model: CostModel, costs: Sequence[DailyCost]) -> tuple[str, str]:
    """Return the cheapest variant that is fresh enough, or the freshest if none is, with the reason."""
    case = model.case
    enough = [cost for cost in costs if cost.coverage >= case.min_coverage or cost.way != "offline"]
    fresh = [cost for cost in enough if cost.stale <= case.max_stale]
    if fresh:
        best = min(fresh, key=lambda cost: cost.expense)
    else:
        best = min(enough, key=lambda cost: (cost.stale, cost.expense))
    return best.way, ". ".join([*_compare_variants(case, costs, best), *_explain_costs(model, best)]) + "."


def _compare_variants(case: UseCase, costs: Sequence[DailyCost], best: DailyCost) -> Iterator[str]:
    """Yield sentences on the cost of the other variants, and why a cheaper one is not recommended."""
    others = [cost for cost in costs if cost is not best]
    dearer = [cost for cost in others if cost.expense >= best.expense]
    cheaper = [cost for cost in others if cost.expense < best.expense]
    if best.stale > case.max_stale:
        yield (
            f"No variant keeps its lists less than {case.max_stale:.1%} out of date; {best.way} is the freshest that "
            "answers enough requests"
        )
    if dearer:
        least = max(best.expense, 1e-12)
        rank = "costs the least" if not cheaper else "costs less than the rest"
        times = " and ".join(f"{cost.way} costs {cost.expense / least:,.3g} times as much" for cost in dearer)
        yield f"{best.way} {rank}: {times}"
    for cost in cheaper:
        share = cost.expense / max(best.expense, 1e-12)
        if cost.way == "offline" and cost.coverage < case.min_coverage:
            why = f"answers {cost.coverage:.1%} of the requests, where {case.min_coverage:.1%} are required"
        else:
            why = f"is {cost.stale:.1%} out of date on average, against {best.stale:.1%} of {best.way}"
        yield f"{cost.way} would cost {share:.1%} of that, but {why}"


def _explain_costs(model: CostModel, best: DailyCost) -> Iterator[str]:
    """Yield sentences on the cost of one request, and on the traffic from which lists cost less."""
    case, lookup, search = model.case, model.lookup * 1e6, model.search * 1e6
    yield f"A request takes {lookup:,.0f} µs from a list, and {search:,.0f} µs by a search with {model.engine}"
    break_even, per_key = model.find_offline_break_even(), case.requests_per_day / case.keys
    if math.isinf(break_even):
        yield "Lists never cost less here, since a look-up takes as long as a search"
    else:
        yield (
            f"A list is made before any request: lists for all keys cost less from {break_even:,.2f} requests per key "
            f"and day, and there are {per_key:,.2f}"
        )
    if best.way == "mix":
        share = case.shares[: best.keys].sum()
        yield f"The {best.keys:,} most requested keys get a list; they have {share:.1%} of the requests for known keys"


def _list_warnings(case: UseCase, costs: Sequence[DailyCost]) -> list[str]:
    """Return warnings on coverage and freshness of offline lists."""
    offline = costs[0]
    warnings = []
    if offline.coverage < case.min_coverage:
        warnings.append(
            f"lists answer {offline.coverage:.1%} of the requests, and {case.min_coverage:.1%} are required: the "
            "others are for keys without a list; search for those, or give them a fallback"
        )
    if offline.stale > case.max_stale:
        hours = _find_refresh_interval(case)
        warnings.append(
            f"with {case.churn_per_day:.1%} of the items changing in a day, a list is {offline.stale:.1%} out of date "
            f"on average; a refresh every {hours:.3g} hours keeps it at {case.max_stale:.1%}"
            if hours
            else f"a list is {offline.stale:.1%} out of date on average, and no refresh is fast enough for that"
        )
    return warnings


def _find_refresh_interval(case: UseCase) -> float | None:
    """Return the longest refresh interval that is fresh enough, by bisection; None if 15 minutes are too long."""
    if compute_staleness(case.churn_per_day, FASTEST_REFRESH_HOURS) > case.max_stale:
        return None
    low, high = FASTEST_REFRESH_HOURS, case.refresh_hours
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if compute_staleness(case.churn_per_day, middle) <= case.max_stale else (low, middle)
    return low
