"""Put the demo's output and the end-to-end figures into README.md, between their markers.

make demo | tee demo.txt; python docs/fill_readme.py demo.txt
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME -->."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if len(sys.argv) > 1:
        text = _put(text, "demo", _demo(Path(sys.argv[1]).read_text(encoding="utf-8")))
    text = _put(text, "end-to-end", _end_to_end(ROOT / "benchmarks" / "results" / "end_to_end.json"))
    text = _put(text, "join", _join(ROOT / "benchmarks" / "results" / "join.json"))
    readme.write_text(text, encoding="utf-8")


def _put(text: str, name: str, body: str) -> str:
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + body + m[2], text, flags=re.DOTALL)


def _demo(output: str) -> str:
    """The products that are nearest, and the hit rates."""
    shown = output[output.index("== 3.") : output.index("== 5.")]
    lines = [line.rstrip() for line in shown.splitlines()]
    return "```\n" + "\n".join(lines).strip() + "\n```\n"


def _join(path: Path) -> str:
    """A row per engine and recall, the fastest first, with how many times our time it took."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    ours = {row["asked"]: row["seconds"] for row in rows if row["engine"] == "nearcast"}
    heads = ("recall asked", "engine", "whole job", "build", "queries", "recall reached", "against ours")
    table = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    for row in sorted(rows, key=lambda row: (-row["asked"], row["seconds"])):
        name = f"**{row['engine']}**" if row["engine"] == "nearcast" else row["engine"]
        table += (
            f"| {row['asked']:g} | {name} | {row['seconds']:.1f} s | {row['build_seconds']:.1f} s "
            f"| {row['query_seconds']:.1f} s | {row['recall']:.4f} | {row['seconds'] / ours[row['asked']]:.1f}x |\n"
        )
    return table


def _end_to_end(path: Path) -> str:
    """A row per run."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    heads = (
        "engine",
        "recall asked",
        "stated (95% interval)",
        "independent",
        "seconds",
        "peak memory",
        "estimate, budget",
    )
    table = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    for row in rows:
        low, value, high = row["recall"]
        table += (
            f"| `{row['engine']}` | {row['promise']:g} | {value:.4f} ({low:.4f} to {high:.4f}) "
            f"| {row['independent_recall']:.4f} | {row['seconds']:.0f} | {row['kernel_peak_bytes'] / 1e6:.0f} MB "
            f"| {row['estimated_bytes'] / 1e6:.0f} MB, {row['budget_bytes'] / 1e9:g} GB |\n"
        )
    return table


if __name__ == "__main__":
    main()
