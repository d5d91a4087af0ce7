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
        output = Path(sys.argv[1]).read_text(encoding="utf-8")
        text = _put(text, "demo", _shown(output, "== 3.", "== 5."))
        text = _put(text, "served", _shown(output, "== 6.", "== 8."))
    text = _put(text, "end-to-end", _end_to_end(ROOT / "benchmarks" / "results" / "end_to_end.json"))
    text = _put(text, "join", _join(ROOT / "benchmarks" / "results" / "join.json"))
    serving = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text(encoding="utf-8"))
    text = _put(text, "cheaper", _cheaper(serving))
    text = _put(text, "serving", _serving(serving["parts"]))
    readme.write_text(text, encoding="utf-8")


def _put(text: str, name: str, body: str) -> str:
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + body + m[2], text, flags=re.DOTALL)


def _shown(output: str, first: str, end: str) -> str:
    """The part of the demo's output from one heading to another."""
    shown = output[output.index(first) : output.index(end)]
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


def _cheaper(result: dict[str, Any]) -> str:
    """Processor seconds per million requests: a look-up, and searches by the online indexes."""
    heads = ("per million requests", "look-up", "faiss-hnsw", "faiss-ivf", "a look-up is cheaper")
    table = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    for where, answer in result["answer"].items():
        seconds, times = answer["cpu_seconds_per_million"], answer["times_cheaper"]
        each = " | ".join(f"{seconds[by]:,.0f} s" for by in ("look-up", "faiss-hnsw", "faiss-ivf"))
        table += f"| {where} | {each} | {times['faiss-hnsw']:.0f}x, {times['faiss-ivf']:.0f}x |\n"
    return table


def _serving(parts: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of the made-up table, beside Redis by redis-py."""

    def rate(part: str, **wanted: Any) -> str:
        row = next(row for row in parts[part] if all(row.get(name) == value for name, value in wanted.items()))
        return f"{row['keys_per_second']:,.0f}"

    here = {"part": "lookup", "keys": "uniform", "overlay": 0}
    there = {"part": "redis", "by": "redis-py"}
    web = parts["http"][0]
    rows = [
        (
            "1,000 keys a call, keys per second",
            rate(**here, call="get_many", batch=1000),
            rate("redis", by="nearcast", call="get_many", batch=1000),
            rate(**there, call="MGET, decoded", batch=1000),
        ),
        ("the same with 10,000 items removed", rate(**here | {"overlay": 10_000}, call="get_many", batch=1000), "", ""),
        ("one key a call, keys per second", rate(**here, call="get"), "", rate(**there, call="GET, decoded")),
        (
            "bulk load, keys per second",
            rate("load", store="lmdb"),
            rate("load", store="redis"),
            rate("redis", call="SET, pipelined"),
        ),
        ("file against raw payload", f"{parts['size'][0]['ratio']:.2f}x", "", ""),
        ("over HTTP, requests per second", f"{web['requests_per_second']:,.0f}", "", ""),
        ("over HTTP, p99 at half of that", f"{web['half']['p99_ms']:.1f} ms", "", ""),
    ]
    table = "| one core | nearcast, LMDB | nearcast, Redis | redis-py alone |\n|---|---|---|---|\n"
    return table + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
