"""Put the figures of benchmarks/results/tuning.json into docs/tuning.md, between its markers.

python benchmarks/tuning.py; python docs/fill_tuning.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HEADS = ("data", "recall target", "of all queries", "suggested", "cost", "best of the sweep", "cost", "times", "tuning")


def main() -> None:
    """Replace what stands between the markers."""
    page = ROOT / "docs" / "tuning.md"
    result = json.loads((ROOT / "benchmarks" / "results" / "tuning.json").read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    body = f"<!-- tuning -->\n{table(result)}<!-- /tuning -->"
    page.write_text(re.sub(r"<!-- tuning -->\n.*?<!-- /tuning -->", lambda _: body, text, flags=re.S), encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """Return a row per data set and recall target, and a line about the machine."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}", *(line(row) for row in result["rows"])]
    facts = result["machine"]
    machine = ", ".join(f"{value}" for value in (facts.get("processor"), f"instruction set {result['isa']}") if value)
    worst = max((row["times_best"] for row in result["rows"]), default=0.0)
    missed = sum(row["recall"] < row["promise"] for row in result["rows"])
    words = (
        f"{machine}. Targets missed: {missed} of {len(result['rows'])}. "
        f"Largest cost against the best of the sweep: {worst:.2f} times."
    )
    return "\n".join([*lines, "", words, ""])


def line(row: dict[str, Any]) -> str:
    """Return one row."""
    best = row["sweep"][row["best"]]["seconds"]
    cells = (
        row["data"],
        f"{row['promise']:g}",
        f"{row['recall']:.4f}",
        row["suggested"],
        f"{row['run']['seconds']:.1f} s",
        row["best"],
        f"{best:.1f} s",
        f"{row['times_best']:.2f}",
        f"{row['tuning_seconds']:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
