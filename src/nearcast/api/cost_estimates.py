"""Functions that compute what a run costs before anything runs: from sizes alone, or from a spec and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from nearcast import machine
from nearcast.api.arguments import SpecLike, resolve_spec
from nearcast.errors import SpecError
from nearcast.join.cost_rates import PACKAGE_RATES, read_rates
from nearcast.join.cost_table import CostTable, JobSizes, Prices, compute_costs, cost_of_shard, fit_shards
from nearcast.join.listener import Listener
from nearcast.join.plan_costs import estimate_generator
from nearcast.settings.base_table import Share, SpecTable, Whole
from nearcast.settings.parse_spec import parse_model
from nearcast.settings.run_tables import RunSpec

__all__ = ["JobNumbers", "estimate_costs", "estimate_spec", "parse_prices"]

PRICE_NAMES = ("core-hour", "gb-month", "million-requests")
FLOAT_BYTES = {"float16": 2, "float32": 4, "float64": 8}


class JobNumbers(SpecTable):
    """Sizes of a run that is planned without a spec."""

    items: Whole = Field(ge=1, description="Number of items, for example 100e6.")
    queries: Whole = Field(ge=1, description="Number of queries.")
    dim: Whole = Field(ge=1, description="Dimensions of the vectors.")
    k: Whole = Field(ge=1, le=10_000, description="Candidates per query.")
    recall: Share = Field(1.0, gt=0, le=1, description="Recall target.")
    dtype: str = Field("float32", description="Type of a stored component: float16, float32 or float64.")
    cores: Whole | None = Field(None, ge=1, description="Cores of a worker. Default: the cores of this machine.")


def estimate_costs(
    numbers: Mapping[str, Any],
    run: RunSpec | None = None,
    *,
    rates: str | Path | None = None,
    prices: Prices | None = None,
) -> CostTable:
    """Compute the cost table of a run from its sizes: fields of JobNumbers.

    run: workers, shards and memory of a worker. rates: file of `benchmarks/scale.py`; default: those of the package.
    Raises SpecError for numbers that do not fit.
    """
    sizes, run = parse_model(JobNumbers, numbers, "the sizes"), run or RunSpec()
    if sizes.dtype not in FLOAT_BYTES:
        raise SpecError(f"dtype is {sizes.dtype!r}; write one of {', '.join(FLOAT_BYTES)}")
    job = JobSizes(
        sizes.items,
        sizes.queries,
        sizes.dim,
        sizes.k,
        sizes.recall,
        FLOAT_BYTES[sizes.dtype],
        workers=run.workers or 1,
        cores=sizes.cores or machine.default_threads(),
    )
    job = replace(job, shards=count_shards(job, run))
    known = read_rates(Path(rates) if rates else PACKAGE_RATES)
    return compute_costs(job, cost_of_shard(job, known), known, prices)


def estimate_spec(
    spec: SpecLike,
    *,
    base: str | Path | None = None,
    cores: int | None = None,
    rates: str | Path | None = None,
    prices: Mapping[str, float] | None = None,
    listener: Listener | None = None,
) -> CostTable:
    """Compute the cost table of a generator from the row counts of its inputs and a short trial on its items.

    prices: by name (core-hour, gb-month, million-requests); default: those of the spec.
    """
    parsed, folder = resolve_spec(spec, base, None, None)
    known = read_rates(Path(rates) if rates else PACKAGE_RATES)
    return estimate_generator(
        parsed,
        folder,
        known,
        parse_prices(prices, parsed.run),
        workers=parsed.run.workers or 1,
        cores=cores,
        listener=listener,
    )


def count_shards(sizes: JobSizes, run: RunSpec) -> int:
    """Return the number of shards: as given, or as many as the memory of a worker needs."""
    if run.shards is not None:
        return run.shards
    if run.shard_bytes is not None:
        return max(1, -(-sizes.n_items * sizes.vector_bytes // run.shard_bytes))
    return fit_shards(sizes, run.worker_memory or machine.available_memory() // 2)


def parse_prices(words: Mapping[str, float] | None, run: RunSpec | None = None) -> Prices:
    """Return prices by name (core-hour, gb-month, million-requests); those that are missing are the spec's."""
    run, words = run or RunSpec(), dict(words or {})
    for name in words:
        if name not in PRICE_NAMES:
            raise SpecError(f"there is no price {name!r}; prices are {', '.join(PRICE_NAMES)}")
    of_spec = {name: getattr(run, f"price_{name.replace('-', '_')}") for name in PRICE_NAMES}
    return Prices(*(words.get(name, of_spec[name]) for name in PRICE_NAMES))
