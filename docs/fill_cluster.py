"""Put the cost table of `nearcast plan` into docs/cluster.md, between its markers.

python docs/fill_cluster.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nearcast.api.cost_estimates import estimate_costs
from nearcast.cli.common import format_bytes, format_seconds
from nearcast.cli.render_plan import format_core_hours
from nearcast.join.cost_rates import read_rates
from nearcast.settings.run_tables import RunSpec

PAGE = Path(__file__).parent / "cluster.md"
BLOCK = re.compile(r"<!-- costs -->\n.*?<!-- /costs -->", re.DOTALL)
CASES = (("100 million", 10**8), ("1 billion", 10**9))
WORKERS, CORES, MEMORY = 64, 16, 128 * 10**9
HEADS = (
    "items",
    "recall",
    "shards",
    "tasks",
    "core-hours",
    "time",
    "memory of a worker",
    "stored",
    "during the run",
    "requests",
)


def main() -> None:
    """Replace what stands between the markers."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda _: block(), text), encoding="utf-8")


def block() -> str:
    """Return the text between the markers, with them."""
    rows = [line(name, items, recall) for name, items in CASES for recall in (0.95, 1.0)]
    table = "\n".join([f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}", *rows])
    words = (
        f"100 million queries, 128 dimensions, k = 50, {WORKERS} workers of {CORES} cores and {MEMORY / 1e9:.0f} GB. "
        f"Rates: {read_rates().measured_on}."
    )
    return f"<!-- costs -->\n{words}\n\n{table}\n<!-- /costs -->"


def line(name: str, items: int, recall: float) -> str:
    """Return one row."""
    numbers: dict[str, Any] = {"items": items, "queries": 10**8, "dim": 128, "k": 50, "recall": recall, "cores": CORES}
    costs = estimate_costs(numbers, RunSpec(workers=WORKERS, worker_memory=MEMORY))
    cells = (
        name,
        f"{recall:g}",
        f"{costs.sizes.shards:,}",
        f"{sum(stage.tasks for stage in costs.stages):,}",
        format_core_hours(costs.core_hours),
        format_seconds(costs.wall_seconds),
        format_bytes(costs.memory_bytes),
        format_bytes(costs.kept_bytes),
        format_bytes(costs.work_bytes),
        f"{costs.requests:,}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
