"""Recommend a serving variant: from a spec, a log or a few numbers to a use case, its rates and the advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from nearcast import machine
from nearcast.advising.cost_advice import Advice, advise
from nearcast.advising.costs import UseCase
from nearcast.advising.head_keys import find_head
from nearcast.advising.measure_rates import measure_rates
from nearcast.advising.rates import Rates, read_rates, write_rates
from nearcast.advising.sample_data import READ_BYTES, SampledTables, SyntheticTable, open_tables
from nearcast.advising.skew import fit_zipf, zipf_shares
from nearcast.advising.traffic import Traffic
from nearcast.errors import SpecError
from nearcast.files import fingerprint
from nearcast.join.listener import Listener
from nearcast.spec import GeneratorSpec, MeasureSpec, parse_model
from nearcast.types import Metric

__all__ = ["AdviceQuestion", "Numbers", "Recommendation", "recommend"]

FEW_UNKNOWN = 0.1  # share of requests for keys without a query that needs no warning
SIZE_STEP = 1.25  # rates of a size are used for sizes within this factor


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
class AdviceQuestion:
    """A use case to advise on: a generator, numbers or a log of requests, and where the rates come from."""

    spec: GeneratorSpec | None
    base: Path  # folder that the paths of the spec are relative to
    numbers: Numbers  # override the spec and the log
    traffic: Traffic | None  # of the log
    engine: str  # of the online index
    rates_file: Path | None  # rates to use as they are; written if the file is missing
    cache: Path  # folder of rates that were measured before, for about the same sizes on the same machine


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A use case with its rates and the advice."""

    case: UseCase
    rates: Rates
    rates_file: Path
    advice: Advice
    skew: float  # Zipf exponent: from the numbers, or fitted to the log

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, without the shares of single keys."""
        case = {name: value for name, value in asdict(self.case).items() if name != "shares"}
        rates = {"file": str(self.rates_file), **self.rates.as_dict()}
        return {"case": {**case, "skew": self.skew}, "rates": rates, "advice": self.advice.as_dict()}


def recommend(question: AdviceQuestion, listener: Listener) -> Recommendation:
    """Build the use case, read or measure the rates, and recommend a variant."""
    numbers, traffic, engine = question.numbers, question.traffic, question.engine
    tables = _open_tables(question.spec, question.base, numbers)
    case, skew = _make_case(tables, numbers, traffic)
    timed = _make_timed_spec(question.spec, numbers)
    size = _describe_tables(timed, tables)
    made_of = [machine.describe()["processor"], machine.default_threads(), size, engine, timed.recall]
    path = question.rates_file or question.cache / f"rates-{fingerprint(made_of)[:16]}.json"
    rates = read_rates(path, None if question.rates_file else made_of) if path.is_file() else None
    if rates is None:
        rates = measure_rates(timed, tables, engines=(engine,), recall=timed.recall, listener=listener)
        write_rates(rates, path, made_of)
    elif question.rates_file is None:
        listener.note(f"rates of this machine were measured before: {path}; remove it to measure again")
    advice = advise(case, rates, engine)
    warning = None if traffic is None else _warn_about_unknown_keys(tables, traffic)
    if warning is not None:
        advice = replace(advice, warnings=(*advice.warnings, warning))
    return Recommendation(case, rates, path, advice, skew)


def _warn_about_unknown_keys(tables: SampledTables, traffic: Traffic) -> str | None:
    """Return a warning if many logged requests are for keys that are no queries of the spec: they get no lists."""
    table = tables.items if tables.queries is None else tables.queries
    if isinstance(table, SyntheticTable):
        return None
    keys, known = traffic.keys.cast(pa.large_string()), np.zeros(len(traffic.keys), np.bool_)
    for batch in table.batches(vectors=False, attributes=False, memory_bytes=READ_BYTES):
        in_batch = pc.is_in(keys, value_set=batch.ids.cast(pa.large_string()))
        known |= in_batch.to_numpy(zero_copy_only=False)
    missing = 1 - float(traffic.requests[known].sum()) / max(traffic.total, 1e-9)
    if missing <= FEW_UNKNOWN:
        return None
    return (
        f"{missing:.0%} of the logged requests are for keys that are no queries of the spec, for example "
        f"{traffic.keys[int(np.flatnonzero(~known)[0])].as_py()!r}: without vectors they get no lists, but the figures "
        "count them as keys with lists; check --key, or add them to the queries"
    )


def _open_tables(spec: GeneratorSpec | None, base: Path, numbers: Numbers) -> SampledTables:
    if spec is not None:
        return open_tables(spec, base)
    missing = [name for name in ("keys", "items", "dim") if getattr(numbers, name) is None]
    if missing:
        raise SpecError(f"without a spec, {' and '.join(missing)} must be given, for example --{missing[0]} 100000")
    assert numbers.keys is not None
    assert numbers.items is not None
    assert numbers.dim is not None
    return SampledTables(
        SyntheticTable(numbers.items, numbers.dim), SyntheticTable(numbers.keys, numbers.dim), numbers.dim
    )


def _make_timed_spec(spec: GeneratorSpec | None, numbers: Numbers) -> GeneratorSpec:
    """Return the spec of the generator that is timed: the spec with these numbers, or one of synthetic vectors."""
    overrides = {
        name: getattr(numbers, name) for name in ("k", "metric", "recall") if getattr(numbers, name) is not None
    }
    if spec is not None:
        return spec.model_copy(update=overrides)
    tables = {"name": "rates", "metric": "inner_product", "k": 50, "recall": 0.95, **overrides}
    sources = {"items": {"path": "items.parquet"}, "queries": {"path": "queries.parquet"}}
    return parse_model(GeneratorSpec, {**tables, **sources, "measure": MeasureSpec()}, "the numbers")


def _make_case(tables: SampledTables, numbers: Numbers, traffic: Traffic | None) -> tuple[UseCase, float]:
    keys = numbers.keys or (len(traffic.requests) if traffic else tables.n_queries)
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
    case = UseCase(
        keys=keys,
        items=numbers.items or tables.n_items,
        requests_per_day=requests,
        shares=np.asarray(shares, np.float64),
        new_share=_estimate_new_share(numbers, traffic, keys),
        churn_per_day=numbers.churn_per_day,
        refresh_hours=numbers.refresh_hours,
        online_refresh_hours=numbers.online_refresh_hours,
        min_coverage=numbers.min_coverage,
        max_stale=numbers.max_stale,
        price_core_hour=numbers.price_core_hour,
        price_gb_month=numbers.price_gb_month,
    )
    return case, skew


def _estimate_new_share(numbers: Numbers, traffic: Traffic | None, keys: int) -> float:
    """Estimate the share of a future day's traffic for keys without a list, from the held-out days."""
    if numbers.new_share is not None:
        return numbers.new_share
    if traffic is None or len(traffic.days) < 2:
        return 0.0
    new = find_head(traffic, 1.0).new_share or 0.0
    beyond = 1 - float(traffic.requests[:keys].sum() / traffic.total)
    return min(1.0, new + beyond)


def _describe_tables(spec: GeneratorSpec, tables: SampledTables) -> dict[str, Any]:
    """Return the facts that rates depend on: settings, and sizes in steps of 25%."""
    real = "made up" if isinstance(tables.items, SyntheticTable) else spec.items.shown
    steps = [round(float(np.log(n) / np.log(SIZE_STEP))) for n in (tables.n_items, tables.n_queries)]
    settings = [spec.engine, spec.engine_settings, str(spec.metric), spec.k, spec.recall]
    return {"data": real, "dim": tables.dim, "sizes": steps, "settings": settings}
