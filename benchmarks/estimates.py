"""Compare the estimate of a run, made before its join, with what the run then takes: memory, and time by stage.

    python benchmarks/estimates.py --data DIR --folder /large/disk
    python benchmarks/estimates.py --data DIR --items 4e5 --queries 4e4 --shapes plain rules passes

Prints a line per shape and writes JSON. Memory is the peak of the process tree, as in `large.py`. `ratio`: estimated /
measured. The time of a stage is its processor time, divided by the threads if it uses them, which other work on the
machine changes little; the clock is beside it. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from large import run_measured, write_mixed
from nearcast import machine

RESULT = Path(__file__).parent / "results" / "estimates.json"
RULE = '[[rules]]\nname = "levels"\nkeep = "item.level >= query.level"\n'
CAP = '[[caps]]\nby = "group"\nmax_per_list = 2\n'
EXPOSURE = "[exposure]\nmax_lists_per_item = 200\ncandidates_per_query = 80\n"
SHAPES: dict[str, dict[str, Any]] = {  # settings of the spec, and tables below them
    "plain": {},
    "exact": {"recall": 1.0, "share": 0.25},
    "recall 0.99": {"recall": 0.99},
    "short lists": {"k": 10},
    "few dimensions": {"dim": 32},
    "many queries": {"queries": 4},
    "rules": {"tables": RULE},
    "caps": {"tables": CAP},
    "rules and caps, exact": {"recall": 1.0, "tables": RULE + CAP, "share": 0.25},
    "exposure": {"tables": EXPOSURE},
    "passes": {"memory": "400MB"},
}
STAGES = {  # stages of the estimate: stages of the run
    "read": ("hash", "check", "read"),
    "build": ("build",),
    "calibrate": ("calibrate",),
    "join": ("join",),
    "choose": ("choose",),
    "table": ("table",),
    "measure": ("measure", "profile"),
}
THREADED = ("build", "calibrate", "join", "measure")


def main() -> int:
    """Run all shapes, print and write both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of items.parquet and queries.parquet")
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--queries", type=float, default=1e5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=machine.default_threads())
    parser.add_argument("--folder", type=Path, default=Path("estimates"), help="holds tables and runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = []
    for name in options.shapes:
        rows.append(compare(options, name))
        print(json.dumps(rows[-1]), flush=True)
    result = {"items": options.items, "queries": options.queries, "shapes": rows, "machine": machine.describe()}
    options.out.write_text(json.dumps(result | {"load": os.getloadavg()}, indent=1) + "\n")
    return 0


def compare(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one shape; return its estimate beside the measured memory and time."""
    shape = SHAPES[name]
    share, dim = shape.get("share", 1), shape.get("dim", 128)
    sizes = {"items": int(options.items * share), "queries": int(options.queries * share * shape.get("queries", 1))}
    folder = options.folder / "-".join(str(number) for number in (*sizes.values(), dim))
    for table, count in sizes.items():
        write_mixed(options.data / f"{table}.parquet", folder / table, count, dim)
    attributes = 'attributes = ["level", "group"]'
    found = run_measured(
        folder,
        f'name = "estimate"\nmetric = "inner_product"\nk = {shape.get("k", 50)}\nrecall = {shape.get("recall", 0.95)}\n'
        f'memory = "{shape.get("memory", "8GB")}"\nthreads = {options.threads}\n'
        f'[items]\npath = "items/*.parquet"\n{attributes}\n[queries]\npath = "queries/*.parquet"\n{attributes}\n'
        f"{shape.get('tables', '')}",
    )
    if "error" in found:
        return {"shape": name, "error": found["error"]}
    estimate, cpu = found["estimate"], found["stage_cpu_seconds"]
    seconds = {}
    for stage, parts in STAGES.items():
        measured = sum(cpu.get(part, 0.0) for part in parts) / (options.threads if stage in THREADED else 1)
        guessed = estimate["seconds"].get(stage, 0.0)
        if measured or guessed:
            seconds[stage] = {"estimated": guessed, "processor": round(measured, 2)}
            seconds[stage]["clock"] = round(sum(found["stage_seconds"].get(part, 0.0) for part in parts), 2)
    totals = [sum(one[side] for one in seconds.values()) for side in ("estimated", "processor", "clock")]
    memory = {"estimated": estimate["memory_bytes"], "measured": found["peak_bytes"]}
    return {
        "shape": name,
        "shards": estimate["shards"],
        "memory": memory | {"ratio": round(memory["estimated"] / memory["measured"], 3)},
        "total_seconds": dict(zip(("estimated", "processor", "clock"), (round(t, 1) for t in totals), strict=True)),
        "ratio": round(totals[0] / max(totals[1], 1e-9), 3),
        "clock_ratio": round(totals[0] / max(totals[2], 1e-9), 3),
        "stages": seconds,
    }


if __name__ == "__main__":
    raise SystemExit(main())
