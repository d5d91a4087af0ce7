"""Put the cost table of `nearcast plan`, and how its model was checked, into docs/cluster.md, between markers.

python docs/fill_cluster.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nearcast.api.cost_estimates import estimate_costs
from nearcast.cli.common import format_bytes, format_seconds
from nearcast.cli.render_plan import format_core_hours
from nearcast.join.cost_rates import read_rates
from nearcast.settings.run_tables import RunSpec

PAGE = Path(__file__).parent / "cluster.md"
MEASURED = Path(__file__).parent.parent / "benchmarks" / "results" / "scale.json"
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
    for name, body in (("costs", block()), ("scale", checked_block())):
        marked = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        text = marked.sub(lambda _, body=body, name=name: f"<!-- {name} -->\n{body}\n<!-- /{name} -->", text)  # type: ignore[misc]
    PAGE.write_text(text, encoding="utf-8")


def block() -> str:
    """Return the cost table."""
    rows = [line(name, items, recall) for name, items in CASES for recall in (0.95, 1.0)]
    table = "\n".join([f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}", *rows])
    words = (
        f"100 million queries, 128 dimensions, k = 50, {WORKERS} workers of {CORES} cores and {MEMORY / 1e9:.0f} GB. "
        f"Rates: {read_rates().measured_on}."
    )
    return f"{words}\n\n{table}"


def checked_block() -> str:
    """Return the table of measured runs and of the model's predictions for them."""
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["rows"]
    stages = list(rows[0]["cpu_seconds"])
    lines = [f"| items and queries | {' | '.join(stages)} | all |", f"|{'---|' * (len(stages) + 2)}"]
    for row in rows:
        spent, model = row["cpu_seconds"], row["predicted"]
        pairs = [(spent[stage], model[stage]) for stage in stages]
        pairs.append((sum(spent.values()), sum(model[stage] for stage in stages)))
        cells = " | ".join(f"{seconds:,.1f} / {predicted:,.1f}" for seconds, predicted in pairs)
        lines.append(f"| {row['items']:,} | {cells} |")
    return "\n".join(lines)


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
