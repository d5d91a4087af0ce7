"""`nearcast plan`: compute what a run costs before anything runs, and plan it for workers on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nearcast.api.arguments import load_spec
from nearcast.api.cost_estimates import JobNumbers, estimate_costs, estimate_spec, parse_prices
from nearcast.api.distributed import plan_run
from nearcast.api.shared_runs import store_costs
from nearcast.cli.common import OutLocation, console, json_option, parse_memory, pass_options, print_json
from nearcast.cli.progress import show_progress
from nearcast.cli.render_plan import build_cost_table
from nearcast.errors import SpecError
from nearcast.settings.parse_spec import parse_model
from nearcast.settings.run_tables import RunSpec
from nearcast.storage.locations import Location

__all__ = ["PlanOptions", "plan"]

NUMBERS = tuple(JobNumbers.model_fields)


class Count(click.ParamType[int]):
    """Whole number, which may be written with an exponent: 100e6."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the number. Raises BadParameter for one that is not whole."""
        try:
            number = float(str(value).replace("_", ""))
        except ValueError:
            number = 0.5
        if not number.is_integer():
            self.fail(f"{value!r} is not a whole number; write it like 100e6", param, ctx)
        return int(number)


class Price(click.ParamType[tuple[str, float]]):
    """Price in the form NAME=NUMBER."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Split name and number. Raises BadParameter for other text."""
        name, _, number = str(value).partition("=")
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if not 0 <= amount < float("inf"):
            self.fail(f"{value!r} is not a price; write it like core-hour=0.04", param, ctx)
        return name, amount


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Options of `nearcast plan` that decide where and at what price a run happens."""

    workers: int | None
    shards: int | None
    worker_memory: int | None
    rates: Path | None
    price: tuple[tuple[str, float], ...]


@click.command()
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--work",
    type=OutLocation(),
    metavar="LOCATION",
    help="Write the plan of SPEC to this folder or bucket, for `nearcast work`.",
)
@click.option("--items", type=Count(), metavar="COUNT", help="Number of items, for example 100e6.")
@click.option("--queries", type=Count(), metavar="COUNT", help="Number of queries.")
@click.option("--dim", type=int, help="Dimensions of the vectors.")
@click.option("--k", type=int, help="Candidates per query.")
@click.option("--recall", type=float, help="Recall target. [default: 1]")
@click.option("--dtype", help="Type of a stored component: float16, float32 or float64. [default: float32]")
@click.option("--cores", type=int, help="Cores of a worker. Default: the cores of this machine.")
@click.option("--workers", type=int, metavar="N", help="Number of workers. [default: 1]")
@click.option("--shards", type=int, metavar="N", help="Parts of the items. Default: by the memory of a worker.")
@click.option(
    "--worker-memory",
    callback=parse_memory,
    metavar="BYTES",
    help='Memory of a worker, for example "64GB". Default: half of the free memory of this machine.',
)
@click.option(
    "--price",
    type=Price(),
    multiple=True,
    metavar="NAME=NUMBER",
    help="Price per core-hour, gb-month or million-requests. Repeatable.",
)
@click.option(
    "--rates", type=click.Path(path_type=Path), metavar="FILE", help="Rates of another machine: benchmarks/scale.py."
)
@json_option
@pass_options(PlanOptions)
def plan(spec: Path | None, work: Location | None, options: PlanOptions, as_json_: bool, **numbers: Any) -> None:
    """Compute what a run costs before anything runs, and plan it for workers on other machines.

    Prints stages, tasks, core-hours, memory of a worker, storage and requests, and the cost if prices are given. Of a
    SPEC: by the row counts of its inputs and a short trial on its items. Without a SPEC: by the sizes --items,
    --queries, --dim and --k, at rates that were measured once.

    With --work the plan is written to LOCATION; then start `nearcast work LOCATION` on any number of machines, and
    `nearcast gather LOCATION` at the end.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    table = {name: getattr(options, name) for name in ("workers", "shards", "worker_memory")}
    changes = {name: value for name, value in table.items() if value is not None}
    if spec is None:
        if work is not None:
            raise SpecError("--work plans the run of a spec: give SPEC, too")
        run = parse_model(RunSpec, changes, "options")
        costs = estimate_costs(given, run, rates=options.rates, prices=parse_prices(dict(options.price)))
    else:
        cores = given.pop("cores", None)
        if given:
            raise SpecError(f"--{next(iter(given))} is for a plan without a SPEC; remove it, or SPEC")
        changed, base = load_spec(spec).with_run(**changes), spec.absolute().parent
        prices = dict(options.price)
        costs = estimate_spec(changed, base=base, cores=cores, rates=options.rates, prices=prices)
        if work is not None:
            with show_progress(quiet=as_json_) as listener:
                plan_run(changed, work, base=base, listener=listener)
            store_costs(work, costs)
    if as_json_:
        print_json(costs.as_dict() | ({} if work is None else {"work": str(work)}))
        return
    screen = console()
    screen.print(build_cost_table(costs))
    if work is not None:
        screen.print(
            f"\nthe plan is at {work}: start `nearcast work {work}` on each worker, then `nearcast gather {work}`",
            soft_wrap=True,
        )
