"""Measure the memory of the driver and the workers of a sharded run, from outside, at two sizes. Prints JSON.

    python benchmarks/driver_memory.py --millions 1 16 --shards 4 --folder /large/disk

As many queries as items, 16 dimensions, k = 10, recall 0.8, runner `processes`. Each run is a command of its own. Peaks
are the kernel's high-water marks of resident memory (VmHWM); `anonymous` leaves out mapped files, which need no memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast import machine

DIM, K, RECALL = 16, 10, 0.8
FILE_ROWS = 1 << 20
CLUSTERS = 1_000
POLL_SECONDS = 0.02
LIMIT_SECONDS = 4 * 3600


def main() -> int:
    """Run all sizes and print their peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", nargs="+", type=float, default=[1.0, 16.0], help="items of each run, in millions")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--worker-memory", default="2GB", help="budget of a worker")
    parser.add_argument("--runner", default="processes")
    parser.add_argument("--folder", type=Path, default=Path("driver-memory"), help="holds inputs and runs; removed")
    options = parser.parse_args()
    runs = [measure_run(options, int(millions * 1e6)) for millions in options.millions]
    first, last = (one["driver"]["peak_bytes"] for one in (runs[0], runs[-1]))
    settings = {"dim": DIM, "k": K, "recall": RECALL, "shards": options.shards, "workers": options.workers}
    settings |= {"runner": options.runner, "worker_memory": options.worker_memory}
    report = {
        "settings": settings,
        "runs": runs,
        "driver_growth": round(last / first - 1, 4),
        "machine": machine.describe(),
    }
    print(json.dumps(report, indent=2))
    return 0


def measure_run(options: argparse.Namespace, n: int) -> dict[str, Any]:
    """Write inputs of n rows a table, run, and return the peaks of all processes."""
    folder = options.folder / f"{n}"
    shutil.rmtree(folder, ignore_errors=True)
    for seed, table in enumerate(("items", "queries")):
        write_table(folder / table, n, seed)
    (folder / "run.toml").write_text(
        f'name = "memory"\nmetric = "inner_product"\nk = {K}\nrecall = {RECALL}\nmemory = "{options.worker_memory}"\n'
        '[items]\npath = "items/*.parquet"\n[queries]\npath = "queries/*.parquet"\n'
        f'[run]\nrunner = "{options.runner}"\nworkers = {options.workers}\nshards = {options.shards}\n'
        f'worker_memory = "{options.worker_memory}"\n',
        encoding="utf-8",
    )
    command = [str(Path(sys.executable).with_name("nearcast")), "run", "run.toml", "--quiet", "--json"]
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        driver = psutil.Popen(command, cwd=folder, stdout=log, stderr=log)
        peaks = watch(driver, started + LIMIT_SECONDS)
    code = driver.wait()
    if code not in (0, 4):  # 4: below the recall target, and finished
        raise SystemExit(f"the run of {n:,} ended with {code}: {(folder / 'log.txt').read_text()[-2000:]}")
    (manifest,) = (folder / "nearcast" / "memory" / "snapshots").glob("*/manifest.json")
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    own = peaks.pop(driver.pid)
    workers = sorted(peaks.values(), key=lambda peak: -peak["peak_bytes"])
    shutil.rmtree(folder)
    return {
        "items": n,
        "queries": n,
        "driver": own,
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 1),
        "recall": facts["measures"]["recall"],
        "stages": facts["run"]["seconds"],
    }


def write_table(folder: Path, n: int, seed: int) -> None:
    """Write n clustered vectors with shuffled ids, a file of FILE_ROWS at a time; both tables share the clusters."""
    folder.mkdir(parents=True)
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIM)).astype(np.float32)
    step = 2_654_435_761  # coprime to n up to a prime factor: ids in no order
    for number, start in enumerate(range(0, n, FILE_ROWS)):
        rows = min(n, start + FILE_ROWS) - start
        rng = np.random.default_rng([seed, number])
        vectors = centres[rng.integers(0, CLUSTERS, rows)] + 0.5 * rng.standard_normal((rows, DIM), np.float32)
        ids = (np.arange(start, start + rows) * step) % (1 << 40)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
        table = pa.table({"id": pa.array(ids), "vector": column})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=1 << 16, compression="none")


def watch(driver: psutil.Popen, until: float) -> dict[int, dict[str, int]]:
    """Return the peaks of a process and its descendants, by process id, until it ends."""
    peaks: dict[int, dict[str, int]] = {}
    while driver.poll() is None:
        if time.perf_counter() > until:
            driver.kill()
            raise SystemExit(f"the run took more than {LIMIT_SECONDS} seconds")
        for process in [driver, *list_children(driver)]:
            note_peak(peaks, process.pid)
        time.sleep(POLL_SECONDS)
    return peaks


def list_children(driver: psutil.Popen) -> list[psutil.Process]:
    """Return the descendants of a process that live now."""
    try:
        found: list[psutil.Process] = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def note_peak(peaks: dict[int, dict[str, int]], pid: int) -> None:
    """Read the marks of a process from the kernel. Linux only."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    if len(values) == 2:  # a zombie has none
        known = peaks.setdefault(pid, {"peak_bytes": 0, "anonymous_bytes": 0})
        known["peak_bytes"] = max(known["peak_bytes"], int(values["VmHWM"]) << 10)
        known["anonymous_bytes"] = max(known["anonymous_bytes"], int(values["RssAnon"]) << 10)


if __name__ == "__main__":
    raise SystemExit(main())
