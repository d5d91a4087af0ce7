"""From a spec, a log or a few numbers to a case, its rates and the advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from nearcast import machine
from nearcast.advising.costs import Advice, Case, advise
from nearcast.advising.head_keys import find_head
from nearcast.advising.rates import Rates, measure_rates, read_rates, write_rates
from nearcast.advising.sample_data import READ_BYTES, MadeUp, Sides, real_sides
from nearcast.advising.skew import fit_zipf, zipf_shares
from nearcast.advising.traffic import Traffic
from nearcast.errors import SpecError
from nearcast.files import fingerprint
from nearcast.join.listener import Listener
from nearcast.spec import GeneratorSpec, MeasureSpec, parse_model
from nearcast.types import Metric

__all__ = ["Asked", "Numbers", "ask"]

FEW_STRANGERS = 0.1  # share of requests for keys without a query that is not worth a word
SIZE_STEP = 1.25  # rates of a size are good for sizes this near


class Numbers(BaseModel):
    """Numbers of a use case. Missing numbers come from the spec or the log, else from the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: int | None = Field(None, ge=1, description="Number of possible keys. Default: the spec's queries.")
    items: int | None = Field(None, ge=1, description="Number of items. Default: the spec's.")
    dim: int | None = Field(None, ge=1, le=65_536, description="Dimension of a vector. Default: the spec's.")
    k: int | None = Field(None, ge=1, le=10_000, description="Candidates per request. Default: the spec's, else 50.")
    metric: Metric | None = Field(None, description="Metric. Default: the spec's, else inner_product.")
    recall: float | None = Field(
        None, gt=0, le=1, description="Recall target of lists and searches. Default: the spec's, else 0.95."
    )
    requests_per_day: float | None = Field(
        None, ge=0, description="Requests per day. Default: the log's, else 10 per key."
    )
    skew: float | None = Field(
        None, ge=0, le=5, description="Zipf exponent of the traffic. Default: fitted to the log, else 1."
    )
    new_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the traffic for keys without a list. Default: from held-out days of the log, else 0.",
    )
    churn_per_day: float = Field(0.0, ge=0, lt=1, description="Share of the items that change or are deleted per day.")
    refresh_hours: float = Field(24.0, gt=0, description="Hours between two refreshes of the lists.")
    online_refresh_hours: float = Field(24.0, gt=0, description="Hours between two builds of the online index.")
    min_coverage: float = Field(0.95, ge=0, le=1, description="Minimum share of the requests that get an answer.")
    max_stale: float = Field(0.05, ge=0, le=1, description="Maximum average share of outdated candidates in a list.")
    price_core_hour: float | None = Field(None, ge=0, description="Price of one core for one hour. Default: none.")
    price_gb_month: float | None = Field(
        None, ge=0, description="Price of one gigabyte of memory for one month. Default: none."
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer."""

    case: Case
    rates: Rates
    rates_file: Path
    advice: Advice
    skew: float  # Zipf exponent: given, or fitted to the log

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the traffic of each key."""
        case = {name: value for name, value in asdict(self.case).items() if name != "shares"}
        rates = {"file": str(self.rates_file), **self.rates.as_dict()}
        return {"case": {**case, "skew": self.skew}, "rates": rates, "advice": self.advice.as_dict()}


def ask(
    spec: GeneratorSpec | None,
    base: Path,
    numbers: Numbers,
    traffic: Traffic | None,
    *,
    rates: Path | None,
    kept: Path,
    engine: str,
    listener: Listener,
) -> Asked:
    """Gather the case, have the rates, and advise.

    rates: a file with rates, taken as they are; written where it is not there. kept: folder of rates that were measured
    before, used for cases of about the same size on the same machine.
    """
    sides = _sides(spec, base, numbers)
    case, skew = _case(sides, numbers, traffic)
    like = _spec_like(spec, numbers)
    recall = like.recall
    made_of = [machine.describe()["processor"], machine.default_threads(), _kind(like, sides), engine, recall]
    path = rates or kept / f"rates-{fingerprint(made_of)[:16]}.json"
    found = read_rates(path, None if rates else made_of) if path.is_file() else None
    if found is None:
        found = measure_rates(like, sides, engines=(engine,), recall=recall, listener=listener)
        write_rates(found, path, made_of)
    elif rates is None:
        listener.note(f"rates of this machine were measured before: {path}; remove it to measure again")
    advice = advise(case, found, engine)
    strangers = None if traffic is None else _strangers(sides, traffic)
    if strangers is not None:
        advice = replace(advice, warnings=(*advice.warnings, strangers))
    return Asked(case, found, path, advice, skew)


def _strangers(sides: Sides, traffic: Traffic) -> str | None:
    """A line where many logged requests are for keys that the spec has no query for: no list can be made for them."""
    side = sides.items if sides.queries is None else sides.queries
    if isinstance(side, MadeUp):
        return None
    keys, known = traffic.keys.cast(pa.large_string()), np.zeros(len(traffic.keys), np.bool_)
    for batch in side.batches(vectors=False, attributes=False, memory_bytes=READ_BYTES):
        there = pc.is_in(keys, value_set=batch.ids.cast(pa.large_string()))
        known |= there.to_numpy(zero_copy_only=False)
    missing = 1 - float(traffic.requests[known].sum()) / max(traffic.total, 1e-9)
    if missing <= FEW_STRANGERS:
        return None
    return (
        f"{missing:.0%} of the logged requests are for keys that are no queries of the spec, such as "
        f"{traffic.keys[int(np.flatnonzero(~known)[0])].as_py()!r}: without vectors they get no lists, and the figures "
        "take them for keys that do; check --key, or add them to the queries"
    )


def _sides(spec: GeneratorSpec | None, base: Path, numbers: Numbers) -> Sides:
    if spec is not None:
        return real_sides(spec, base)
    missing = [name for name in ("keys", "items", "dim") if getattr(numbers, name) is None]
    if missing:
        raise SpecError(f"without a spec, {' and '.join(missing)} must be given, such as --{missing[0]} 100000")
    assert numbers.keys is not None
    assert numbers.items is not None
    assert numbers.dim is not None
    return Sides(MadeUp(numbers.items, numbers.dim), MadeUp(numbers.keys, numbers.dim), numbers.dim)


def _spec_like(spec: GeneratorSpec | None, numbers: Numbers) -> GeneratorSpec:
    """The generator that is timed: the spec with the numbers in place, or one of made-up vectors."""
    given = {name: getattr(numbers, name) for name in ("k", "metric", "recall") if getattr(numbers, name) is not None}
    if spec is not None:
        return spec.model_copy(update=given)
    tables = {"name": "rates", "metric": "inner_product", "k": 50, "recall": 0.95, **given}
    sources = {"items": {"path": "items.parquet"}, "queries": {"path": "queries.parquet"}}
    return parse_model(GeneratorSpec, {**tables, **sources, "measure": MeasureSpec()}, "the numbers")


def _case(sides: Sides, numbers: Numbers, traffic: Traffic | None) -> tuple[Case, float]:
    keys = numbers.keys or (len(traffic.requests) if traffic else sides.n_queries)
    logged_days = max(1, len(traffic.days)) if traffic else 1
    requests = numbers.requests_per_day
    if requests is None:
        requests = traffic.total / logged_days if traffic else 10.0 * keys
    if traffic is not None and numbers.skew is None and keys <= len(traffic.requests):
        shares = traffic.requests[:keys] / traffic.requests[:keys].sum()
        skew = fit_zipf(traffic.requests).exponent
    else:
        skew = numbers.skew if numbers.skew is not None else fit_zipf(traffic.requests).exponent if traffic else 1.0
        shares = zipf_shares(keys, skew)
    case = Case(
        keys=keys,
        items=numbers.items or sides.n_items,
        requests_per_day=requests,
        shares=np.asarray(shares, np.float64),
        new_share=_new_share(numbers, traffic, keys),
        churn_per_day=numbers.churn_per_day,
        refresh_hours=numbers.refresh_hours,
        online_refresh_hours=numbers.online_refresh_hours,
        min_coverage=numbers.min_coverage,
        max_stale=numbers.max_stale,
        price_core_hour=numbers.price_core_hour,
        price_gb_month=numbers.price_gb_month,
    )
    return case, skew


def _new_share(numbers: Numbers, traffic: Traffic | None, keys: int) -> float:
    """The share of a day to come for keys without a list, as the held-out days show it."""
    if numbers.new_share is not None:
        return numbers.new_share
    if traffic is None or len(traffic.days) < 2:
        return 0.0
    found = find_head(traffic, 1.0).new_share or 0.0
    beyond = 1 - float(traffic.requests[:keys].sum() / traffic.total)
    return min(1.0, found + beyond)


def _kind(spec: GeneratorSpec, sides: Sides) -> dict[str, Any]:
    """What rates depend on: settings, and sizes to a quarter."""
    real = "made up" if isinstance(sides.items, MadeUp) else spec.items.path
    steps = [round(float(np.log(n) / np.log(SIZE_STEP))) for n in (sides.n_items, sides.n_queries)]
    settings = [spec.engine, spec.engine_settings, str(spec.metric), spec.k, spec.recall]
    return {"data": real, "dim": sides.dim, "sizes": steps, "settings": settings}
