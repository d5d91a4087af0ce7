"""Run generators end to end on the packages data, and compare their measures with an independent computation.

    python benchmarks/end_to_end.py --data ../shared/data/packages

For each engine: `nearcast run` in a separate process, its peak memory by the kernel, the recall that the
snapshot states, and the recall of the written Parquet against faiss' own exact search on other queries.
Prints a table and writes results/end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nearcast import machine

RESULTS = Path(__file__).parent / "results" / "end_to_end.json"
JOBS = (("dense", 1.0), ("dense", 0.95), ("exact", 1.0), ("faiss-ivf", 0.9), ("faiss-hnsw", 0.9))
K = 50
SAMPLE = 20_000


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, required=True, help="folder with items.parquet and queries.parquet")
    arguments.add_argument("--memory", default="2GB")
    arguments.add_argument("--engine", action="append", choices=["dense", "exact", "faiss-ivf", "faiss-hnsw"])
    given = arguments.parse_args()
    if not (given.data / "items.parquet").is_file():
        sys.exit(f"no items.parquet in {given.data}: this benchmark needs the packages data")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for engine, recall in JOBS:
            if given.engine is None or engine in given.engine:
                rows.append(measure(Path(folder), given.data.absolute(), engine, recall, given.memory))
        truth = independent_truth(given.data)  # only now: a child's peak memory counts from its parent's
        for row in rows:
            shares = independent_recall(Path(row.pop("snapshot")), truth)
            row["independent_recall"] = float(np.mean(shares))
            row["independent_error"] = float(1.96 * np.std(shares) / len(shares) ** 0.5)
            show(row)
    result = {"machine": machine.describe(), "k": K, "commit": commit(), "rows": rows}
    if given.engine is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, data: Path, engine: str, recall: float, memory: str) -> dict[str, Any]:
    """Run one generator in a process, and measure its snapshot."""
    name = f"{engine}-{round(recall * 100)}"
    spec = folder / f"{name}.toml"
    spec.write_text(
        f'name = "{name}"\nmetric = "inner_product"\nk = {K}\nrecall = {recall}\nengine = "{engine}"\n'
        f'memory = "{memory}"\n'
        f'[items]\npath = "{data}/items.parquet"\nattributes = ["released"]\n'
        f'[queries]\npath = "{data}/queries.parquet"\nattributes = ["monthly_downloads"]\n'
    )
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("nearcast")), "run", str(spec)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    summary = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    print(summary)
    snapshot = folder / "nearcast" / name / "snapshots" / "000001"
    manifest = json.loads((snapshot / "manifest.json").read_text())
    return {
        "snapshot": str(snapshot),
        "engine": engine,
        "promise": recall,
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "kernel_peak_bytes": usage.ru_maxrss * 1024,
        "budget_bytes": manifest["run"]["estimate"]["budget_bytes"],
        "estimated_bytes": manifest["run"]["estimate"]["memory_bytes"],
        "stated_peak_bytes": manifest["run"]["peak_memory_bytes"],
        "estimated_seconds": manifest["run"]["estimate"]["seconds"],
        "stage_seconds": manifest["run"]["seconds"],
        "effort": manifest["engine"]["effort"],
        "recall": [manifest["measures"][name] for name in ("recall_low", "recall", "recall_high")],
    }


def show(row: dict[str, Any]) -> None:
    low, value, high = row["recall"]
    print(
        f"{row['engine']}: exit {row['exit_code']}, {row['seconds']} s, peak {row['kernel_peak_bytes'] / 1e6:.0f} MB "
        f"of {row['budget_bytes'] / 1e6:.0f} MB given ({row['estimated_bytes'] / 1e6:.0f} estimated); recall stated "
        f"{value:.4f} ({low:.4f} to {high:.4f}), independent {row['independent_recall']:.4f} "
        f"± {row['independent_error']:.4f}\n",
        flush=True,
    )


def independent_truth(data: Path) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ids and scores of the exact neighbors of a sample of queries, by faiss alone."""
    import faiss
    import pyarrow.parquet as pq

    items, queries = (
        pq.read_table(data / f"{side}.parquet", columns=["id", "vector"]) for side in ("items", "queries")
    )
    chosen = np.sort(np.random.default_rng(12345).choice(len(queries), SAMPLE, replace=False))
    flat = faiss.IndexFlatIP(128)
    flat.add(matrix(items))
    scores, positions = flat.search(matrix(queries)[chosen], K)
    item_ids = np.array(items["id"].to_pylist(), dtype=object)
    return queries["id"].take(chosen).to_pylist(), item_ids[positions], scores


def matrix(table: Any) -> np.ndarray[Any, Any]:
    vectors = table["vector"].combine_chunks()
    return np.ascontiguousarray(vectors.values.to_numpy(zero_copy_only=False).reshape(len(vectors), -1), np.float32)


def independent_recall(snapshot: Path, truth: Any) -> list[float]:
    """Per-query recall of the written table, read by polars, ids against ids; near-ties at the end count."""
    import polars as pl

    query_ids, true_ids, true_scores = truth
    table = pl.read_parquet(snapshot / "candidates" / "*.parquet").filter(pl.col("query_id").is_in(query_ids))
    lists = {row["query_id"]: row for row in table.iter_rows(named=True)}
    shares = []
    for query, ids, scores in zip(query_ids, true_ids, true_scores, strict=True):
        row = lists[query]
        known = set(ids)
        bar = float(scores[-1]) - 1e-6
        good = sum(c in known or s >= bar for c, s in zip(row["candidate_ids"], row["scores"], strict=True))
        shares.append(good / K)
    return shares


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
