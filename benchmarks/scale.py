"""Measure runs of growing size, fit the rates of `nearcast plan` to them, and say how far the model is off.

    python benchmarks/scale.py --items 1e6 4e6 16e6 --dim 16 --recall 0.95 --write-rates rates.json

Each size is a `nearcast run` in a process of its own: as many queries as items, vectors around random centers, k = 10.
The seconds of a stage are processor time of all threads. Rates are fitted to the smallest size alone, the growth of the
pruned join and the rate of the table to all sizes, so that the larger sizes check the model: `ratio` is measured /
predicted. Writes results/scale.json. For the docs, run it on a quiet machine. `--rows` fits to the runs of an earlier
result, and measures only the rates of pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast import kernels, machine
from nearcast.engines.base import JoinRequest, Resources
from nearcast.join.cost_rates import CostRates, read_rates
from nearcast.join.cost_table import JobSizes, compute_costs, cost_of_shard
from nearcast.kernels.quantize import pad_width
from nearcast.knn.exact_join import exact_join
from nearcast.settings.parse_spec import parse_model
from nearcast.types import ArrayVectors, Metric

RESULTS = Path(__file__).parent / "results" / "scale.json"
K = 10
CENTERS = 1_000
ROWS_AT_ONCE = 1 << 18
TRIAL_QUERIES, TRUTH_QUERIES, TRIAL_ITEMS = 4_096, 512, 262_144
TRIAL_DIMS = (16, 32, 64, 128, 256)
STAGES = {  # stages of the cost table: stages that a manifest has
    "ingest": ("hash", "check", "read"),
    "index": ("build",),
    "calibrate": ("calibrate",),
    "join": ("join",),
    "table": ("table",),
    "measure": ("measure",),
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--items", type=float, nargs="+", default=[1e6, 4e6, 16e6])
    arguments.add_argument("--dim", type=int, default=16)
    arguments.add_argument("--recall", type=float, default=0.95)
    arguments.add_argument("--memory", default="16GB")
    arguments.add_argument("--folder", type=Path, help="for the data; 16 million x 16 need about 6 GB")
    arguments.add_argument("--rows", type=Path, metavar="FILE", help="an earlier result: use its runs")
    arguments.add_argument("--write-rates", type=Path, metavar="FILE", help="write the fitted rates")
    given = arguments.parse_args()
    rows = json.loads(given.rows.read_text())["rows"] if given.rows else measure_all(given)
    rates = fit(rows)
    for row in rows:
        row["predicted"] = predict(row, rates)
        row["ratio"] = {s: round(row["cpu_seconds"][s] / p, 3) for s, p in row["predicted"].items() if p}
        print(f"{row['items']:>12,} measured / predicted: {row['ratio']}")
    result = {"machine": machine.describe(), "commit": commit(), "load": os.getloadavg(), "rows": rows}
    result["rates"] = rates.model_dump()
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if given.write_rates is not None:
        given.write_rates.write_text(json.dumps(rates.model_dump(), indent=1) + "\n")


def measure_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every size; return the measured runs, smallest first."""
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for items in sorted(int(n) for n in given.items):
            rows.append(measure(Path(folder), items, given.dim, given.recall, given.memory))
            print(f"{items:,} items: {rows[-1]['cpu_seconds']}", flush=True)
    return rows


def measure(folder: Path, items: int, dim: int, recall: float, memory: str) -> dict[str, Any]:
    """Run a generator with as many queries as items; return its processor seconds by stage."""
    home = folder / f"{items}"
    home.mkdir()
    for seed, name in enumerate(("items", "queries")):
        write_table(home / f"{name}.parquet", items, dim, seed)
    spec = home / "scale.toml"
    tables = "".join(f'[{name}]\npath = "{name}.parquet"\n' for name in ("items", "queries"))
    spec.write_text(
        f'name = "scale"\nmetric = "inner_product"\nk = {K}\nrecall = {recall}\nmemory = "{memory}"\n{tables}'
    )
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("nearcast")), "run", str(spec), "--quiet", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 4):
        sys.exit(done.stderr)
    manifest = json.loads(done.stdout)
    spent = manifest["run"]["cpu_seconds"]
    for path in home.rglob("*.parquet"):
        path.unlink()
    return {
        "items": items,
        "queries": items,
        "dim": dim,
        "recall": recall,
        "measured_recall": manifest["measures"]["recall"],
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": manifest["run"]["peak_memory_bytes"],
        "cpu_seconds": {stage: sum(spent.get(part, 0.0) for part in parts) for stage, parts in STAGES.items()},
    }


def write_table(path: Path, n: int, dim: int, seed: int) -> None:
    """Write vectors around centers that both tables share, piece by piece."""
    centers = np.random.default_rng(99).normal(size=(CENTERS, dim))
    rng = np.random.default_rng(seed)
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, n - start)
            block = centers[rng.integers(CENTERS, size=rows)] + 0.5 * rng.normal(size=(rows, dim))
            flat = pa.array(block.astype(np.float32).ravel())
            ids = pa.array(np.arange(start, start + rows))
            writer.write_table(pa.table([ids, pa.FixedSizeListArray.from_arrays(flat, dim)], schema=schema))


def fit(rows: list[dict[str, Any]]) -> CostRates:
    """Measure the rates of pairs by trials, and fit the others to the smallest run."""
    first = rows[0]
    scan_pair, scan_component = fit_line({pad_width(dim): time_scan(dim) for dim in TRIAL_DIMS})
    truth_pair, truth_component = fit_line({dim: time_truth(dim) for dim in TRIAL_DIMS})
    plain = read_rates().model_dump() | {
        "measured_on": describe(),
        "scan_pair": scan_pair,
        "scan_component": scan_component,
        "truth_pair": truth_pair,
        "truth_component": truth_component,
        "build_factor": 1.0,
        "join_factor": 1.0,
        "join_growth": 0.0,
        "join_items": float(first["items"]),
    }
    rates = parse_model(CostRates, plain, "rates")
    n, spent = first["items"], first["cpu_seconds"]
    bytes_of_row = 4 * first["dim"]
    per_row = spent["ingest"] / (2 * n)
    fitted = plain | {
        "ingest_row": per_row / 2,
        "ingest_byte": per_row / 2 / bytes_of_row,
        "table_slot": sum(row["cpu_seconds"]["table"] for row in rows) / sum(row["queries"] * K for row in rows),
    }
    model = predict(first, rates)
    if spent["index"] and model["index"]:
        fitted["build_factor"] = spent["index"] / model["index"]
    ratios = [
        (math.log(row["items"]), math.log(row["cpu_seconds"]["join"] / predict(row, rates)["join"])) for row in rows
    ]
    fitted["join_factor"] = math.exp(ratios[0][1])
    if len(rows) > 1 and first["recall"] < 1:
        fitted["join_growth"] = float(np.polyfit(*zip(*ratios, strict=True), 1)[0])
    return parse_model(CostRates, fitted, "rates")


def fit_line(seconds: dict[int, float]) -> tuple[float, float]:
    """Return seconds of a pair, and of each of its components, from seconds by dimension."""
    slope, start = np.polyfit(list(seconds), list(seconds.values()), 1)
    return max(0.0, float(start)), max(0.0, float(slope))


def time_scan(dim: int) -> float:
    """Return core-seconds of a pair in an exact 8-bit join."""
    vectors = np.random.default_rng(dim).normal(size=(TRIAL_ITEMS, dim)).astype(np.float32)
    request, resources = JoinRequest(Metric.INNER_PRODUCT, K), Resources(machine.default_threads())
    started = time.process_time()
    kernels.join_exact(vectors[:TRIAL_QUERIES], vectors, request, resources)
    return (time.process_time() - started) / (TRIAL_QUERIES * TRIAL_ITEMS)


def time_truth(dim: int) -> float:
    """Return core-seconds of a pair in the reference join."""
    vectors = np.random.default_rng(dim).normal(size=(TRIAL_ITEMS, dim)).astype(np.float32)
    request, resources = JoinRequest(Metric.INNER_PRODUCT, K), Resources(machine.default_threads())
    started = time.process_time()
    exact_join(vectors[:TRUTH_QUERIES], ArrayVectors(vectors), request, resources)
    return (time.process_time() - started) / (TRUTH_QUERIES * TRIAL_ITEMS)


def predict(row: dict[str, Any], rates: CostRates) -> dict[str, float]:
    """Return the core-seconds of each stage by the model, without transfers: files are local."""
    sizes = JobSizes(row["items"], row["queries"], row["dim"], K, row["recall"])
    local = rates.model_copy(update={"transfer_byte": 0.0, "task": 0.0})
    costs = compute_costs(replace(sizes, cores=1), cost_of_shard(sizes, local), local)
    return {stage.stage: stage.core_seconds for stage in costs.stages if stage.stage in STAGES}


def describe() -> str:
    facts = machine.describe()
    return f"{facts['processor']}, {facts['cores']} cores, commit {commit()}"


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
