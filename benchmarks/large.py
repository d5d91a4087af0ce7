"""Run a join that is larger than its memory budget, with each of some budgets, and watch the memory from outside.

    python benchmarks/large.py --data DIR --items 5e6 --queries 1e6 --memory 1GB 8GB --folder /large/disk
    python benchmarks/large.py --data DIR --items 10e6 --queries 10e6 --memory 20GB --folder /large/disk

Items and queries are mixed from those of DIR (items.parquet, queries.parquet) with noise, float16, and written in
bounded memory; rows that an earlier call wrote into --folder are used again. Each budget is a `nearcast run` of its own
with an empty output folder. `peak_bytes` is the largest sum over the process tree of memory that the system cannot take
back: anonymous and shared pages (RssAnon + RssShmem of /proc), read every 100 ms. Pages of mapped files are left out:
they are dropped when another process needs the memory. `with_files_bytes` counts them too. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from driver_memory import list_children
from nearcast import machine

RESULT = Path(__file__).parent / "results" / "large.json"
FILE_ROWS, GROUP_ROWS = 1 << 20, 1 << 16
NOISE = 0.25  # of a component's standard deviation
LEVELS, GROUPS = 100, 10_000  # values of the attributes "level" and "group", for rules and caps
POLL_SECONDS = 0.1  # a look costs milliseconds of processor time
LIMIT_SECONDS = 4 * 3600


@dataclass(frozen=True, slots=True)
class TreePeak:
    """The memory of a process and its descendants: largest sums over one look at all of them."""

    peak_bytes: int  # anonymous and shared pages
    with_files_bytes: int  # and pages of mapped files


def main() -> int:
    """Write the tables, run every budget, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of items.parquet and queries.parquet")
    parser.add_argument("--items", type=float, default=5e6)
    parser.add_argument("--queries", type=float, default=1e6)
    parser.add_argument("--dim", type=int, default=128, help="first components of the vectors")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--memory", nargs="+", default=["1GB", "8GB"], help="budgets, one run each")
    parser.add_argument("--runner", default="local")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("large"), help="holds tables and runs")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    for table, rows in (("items", int(options.items)), ("queries", int(options.queries))):
        write_mixed(options.data / f"{table}.parquet", options.folder / table, rows, options.dim)
    runs = []
    for _ in range(options.repeats):
        for memory in options.memory:
            runs.append(run_budget(options, memory))
            print(json.dumps(runs[-1]), flush=True)
    sizes = {name: getattr(options, name) for name in ("items", "queries", "dim", "k", "recall", "runner")}
    options.out.write_text(json.dumps({"sizes": sizes, "runs": runs, "machine": machine.describe()}, indent=1) + "\n")
    return 0


def run_budget(options: argparse.Namespace, memory: str) -> dict[str, Any]:
    """Run the generator with one budget, and return its peak, times and estimate."""
    spec = (
        f'metric = "inner_product"\nk = {options.k}\nrecall = {options.recall}\n'
        f'[items]\npath = "items/*.parquet"\n[queries]\npath = "queries/*.parquet"\n'
        f'[run]\nrunner = "{options.runner}"\n'
    )
    return run_measured(options.folder, f'name = "large"\nmemory = "{memory}"\n{spec}') | {"memory": memory}


def run_measured(folder: Path, spec: str) -> dict[str, Any]:
    """Run the spec of a generator in a folder; return its peak, times, recall and estimate. Removes its output."""
    shutil.rmtree(folder / "nearcast", ignore_errors=True)
    (folder / "run.toml").write_text(spec, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("nearcast")), "run", "run.toml", "--quiet", "--json"]
    started, load = time.perf_counter(), os.getloadavg()[0]
    with (folder / "out.json").open("w") as out, (folder / "log.txt").open("w") as log:
        driver = psutil.Popen(command, cwd=folder, stdout=out, stderr=log)
        peak = watch_tree(driver, started + LIMIT_SECONDS)
    seconds, code = time.perf_counter() - started, driver.wait()
    found = {"exit_code": code, "seconds": round(seconds, 1), "load": load, "peak_bytes": peak.peak_bytes}
    found["with_files_bytes"] = peak.with_files_bytes
    if code not in (0, 4):  # 4: below the recall target, and finished
        return found | {"error": (folder / "log.txt").read_text()[-2000:]}
    facts = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    run = facts["run"]
    shutil.rmtree(folder / "nearcast")
    return found | {
        "shards": run["estimate"].get("shards", 1),
        "recall": {name: facts["measures"][name] for name in ("recall", "recall_low", "recall_high")},
        "target_kept": facts["promise"]["kept"],
        "stage_seconds": run["seconds"],
        "stage_cpu_seconds": run["cpu_seconds"],
        "own_peak_bytes": run["peak_memory_bytes"],
        "estimate": run["estimate"],
    }


def watch_tree(driver: psutil.Popen, until: float) -> TreePeak:
    """Return the peak of a process and its descendants until it ends. Kills it at the time limit."""
    peak = whole = 0
    while driver.poll() is None:
        if time.perf_counter() > until:
            driver.kill()
            raise SystemExit(f"the run took more than {LIMIT_SECONDS} seconds")
        sums = [read_pages(process.pid) for process in [driver, *list_children(driver)]]
        peak = max(peak, sum(own for own, _ in sums))
        whole = max(whole, sum(own + files for own, files in sums))
        time.sleep(POLL_SECONDS)
    return TreePeak(peak, whole)


def read_pages(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process that are its own, and those of mapped files. Linux only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Rss")}
    return values.get("RssAnon", 0) + values.get("RssShmem", 0), values.get("RssFile", 0)


def write_mixed(source: Path, folder: Path, rows: int, dim: int) -> None:
    """Write rows vectors that are mixed from those of a file, a file of FILE_ROWS at a time, with ids in no order.

    A vector is a weighted mean of two, as long as the first, with noise. Keeps files that an earlier call wrote.
    """
    done = folder / "done.json"
    wanted = {"source": source.name, "rows": rows, "dim": dim, "noise": NOISE}
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = read_vectors(source)[:, :dim]
    spread = NOISE * base[:: max(1, len(base) // 10_000)].astype(np.float32).std(axis=0)
    step = 2_654_435_761  # a prime
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        rng = np.random.default_rng([len(source.name), number])
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", table_schema(dim), compression="none") as writer:
            for first in range(start, min(rows, start + FILE_ROWS), GROUP_ROWS):
                last = min(rows, start + FILE_ROWS, first + GROUP_ROWS)
                vectors = mix(base, spread, last - first, rng)
                ids = pa.array(np.arange(first, last) * step % (1 << 40))
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
                levels = pa.array(rng.integers(0, LEVELS, last - first, np.int32))
                groups = pa.array(rng.integers(0, GROUPS, last - first, np.int32))
                table = pa.table([ids, column, levels, groups], schema=table_schema(dim))
                writer.write_table(table, row_group_size=GROUP_ROWS)
    done.write_text(json.dumps(wanted))


def mix(base: np.ndarray[Any, Any], spread: np.ndarray[Any, Any], n: int, rng: np.random.Generator) -> Any:
    """Return (n, dim) float16 vectors mixed from those of `base`."""
    one, other = (base[rng.integers(0, len(base), n)].astype(np.float32) for _ in range(2))
    weight = rng.uniform(0.6, 1.0, (n, 1)).astype(np.float32)
    mixed = weight * one + (1 - weight) * other
    lengths = np.linalg.norm(one, axis=1, keepdims=True) / np.maximum(
        np.linalg.norm(mixed, axis=1, keepdims=True), 1e-9
    )
    mixed = mixed * lengths + spread * rng.standard_normal(mixed.shape, np.float32)
    return mixed.astype(np.float16)


def read_vectors(path: Path) -> np.ndarray[Any, Any]:
    """Read the column "vector" of a Parquet file as one float16 matrix."""
    column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    flat = column.values.to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(column), -1), np.float16)


def table_schema(dim: int) -> pa.Schema:
    """Return the columns of both tables."""
    attributes = [("level", pa.int32()), ("group", pa.int32())]
    return pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float16(), dim)), *attributes])


if __name__ == "__main__":
    raise SystemExit(main())
