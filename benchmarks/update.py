"""Live updates: 1,000 new items into 1 million lists of 50, and a day of small updates with a reader under load.

    python benchmarks/update.py --folder /tmp/update                     # 100,000 lists, 48 updates of the day
    python benchmarks/update.py --folder /tmp/update --queries 1000000 --updates 1440

Prints one JSON object. `update_seconds` is a call of `nearcast.update` in a process without state, `again_seconds` one
that has it, with the processor seconds of both; `visible_seconds` is the time from the end of an update until another
process has it. The reader asks for 100 keys at a time: see `measure_day`. `--updates 0` leaves the day out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import nearcast
from nearcast import machine
from nearcast.storage.locations import parse_location
from nearcast.stores import open_store
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.update import Updater, UpdateRequest, undo_patches

DIM, CENTRES = 128, 2_000
QUIET_SECONDS = 20.0
KEYS = 100
COPY_UPDATES = 100
PHASES = ("alone", "updates_elsewhere", "day", "after")


def main() -> None:
    options = parse_options()
    folder = options.folder
    spec = {
        "name": "lists",
        "out": str(folder / "out"),
        "metric": "inner_product",
        "k": 50,
        "recall": options.recall,
        "items": {"path": "-"},
        "queries": {"path": "-"},
        "publish": {"store": f"lmdb:{folder / 'store'}"},
        "audit": {"max_lists_changed": 1.0},
        "measure": {"sample": 200},
    }
    if not (folder / "out" / "lists" / "snapshots").is_dir():
        tables = {"items": make_table(0, options.items, 1), "queries": make_table(0, options.queries, 2)}
        nearcast.run(spec, **tables)
        nearcast.publish(spec)
    figures = {
        "machine": machine.describe(),
        "queries": options.queries,
        "items": options.items,
        "k": 50,
        **measure_update(folder, options),
        **(measure_day(folder, options) if options.updates else {}),
    }
    print(json.dumps(figures, indent=2))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--recall", type=float, default=1.0)
    parser.add_argument("--new", type=int, default=1_000)
    parser.add_argument("--updates", type=int, default=48)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1440, help="End the day after so long.")
    parser.add_argument("--pause", type=float, default=0.2, help="Seconds between updates of the day.")
    return parser.parse_args()


def make_table(first: int, n: int, seed: int) -> pa.Table:
    """Return vectors around common centres, with ids from `first` on."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIM)).astype(np.float32)
    vectors = centres[rng.integers(CENTRES, size=n)] + rng.normal(scale=0.5, size=(n, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), DIM)
    return pa.table({"id": np.arange(first, first + n), "vector": column})


def measure_update(folder: Path, options: argparse.Namespace) -> dict:
    """Time one update of new items, without and with the state of an earlier one, until a reader has it."""
    found = {}
    with open_closing(folder) as store:
        updater = Updater(store, "lists", parse_location(folder / "out"))
        for number, name in enumerate(("update", "again")):
            rows = make_table(options.items + number * options.new, options.new, 100 + number)
            started, used = time.perf_counter(), time.process_time()
            done = updater.apply(UpdateRequest(BatchInputs(rows), 1.0))
            found[f"{name}_seconds"] = round(time.perf_counter() - started, 3)
            found[f"{name}_processor_seconds"] = round(time.process_time() - used, 3)
            found[f"{name}_lists"] = done.counts["lists"]
    return found


def measure_day(folder: Path, options: argparse.Namespace) -> dict:
    """Apply many small updates while a reader in another process looks keys up.

    Before that the reader reads a version without patches: with nothing else running, and while the same updates go to
    a copy of the store, so that they cost the reader processor time alone.
    """
    with open_closing(folder) as store:
        undo_patches(store, "lists", 0)
    copy_folder(folder, folder / "copy")
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    phase = context.Value("i", 0)
    target = context.Value("q", -1)
    seen = context.Value("d", 0.0)
    reader = context.Process(
        target=read, args=(str(folder / "store"), options.queries, stop, results, phase, target, seen)
    )
    reader.start()
    time.sleep(QUIET_SECONDS)
    phase.value = 1
    for _ in apply_updates(folder / "copy", min(options.updates, COPY_UPDATES), options):
        pass
    shutil.rmtree(folder / "copy")
    phase.value = 2
    seconds, visible, sizes, deadline_of_day = [], [], [], time.time() + 60 * options.minutes
    for number, (done, took, ended) in enumerate(apply_updates(folder, options.updates, options)):
        seconds.append(took)
        with seen.get_lock():
            seen.value = 0.0
        target.value = done.patch
        deadline = time.time() + 10
        while seen.value == 0.0 and time.time() < deadline:
            time.sleep(0.005)
        visible.append((seen.value or time.time()) - ended)
        if time.time() > deadline_of_day:
            break
        if number % 60 == 59:
            sizes.append([count_bytes(folder / path) for path in ("store", "out/lists/updates")])
    phase.value = 3
    time.sleep(QUIET_SECONDS)
    stop.set()
    latencies = results.get(timeout=60)
    reader.join()
    p50, p99 = (
        {name: quantile_ms(part, share) for name, part in zip(PHASES, latencies["seconds"], strict=True)}
        for share in (0.5, 0.99)
    )
    return {
        "updates": len(seconds),
        "each": options.each,
        "update_p50_seconds": round(float(np.median(seconds)), 3),
        "update_p99_seconds": round(float(np.quantile(seconds, 0.99)), 3),
        "visible_p50_seconds": round(float(np.median(visible)), 3),
        "visible_p99_seconds": round(float(np.quantile(visible, 0.99)), 3),
        "reader_errors": latencies["errors"],
        "reader_calls": {name: len(part) for name, part in zip(PHASES, latencies["seconds"], strict=True)},
        "reader_p50_ms": p50,
        "reader_p99_ms": p99,
        "reader_p99_ms_by_hour": [quantile_ms(part, 0.99) for part in np.array_split(latencies["seconds"][2], 24)],
        "reader_rss_bytes": latencies["rss"],
        "updater_rss_bytes": peak_bytes(),
        "disk_bytes_by_hour": {"store": [size[0] for size in sizes], "journal": [size[1] for size in sizes]},
    }


def apply_updates(folder: Path, count: int, options: argparse.Namespace):
    """Yield the result of each update, its seconds, and when it ended."""
    with open_closing(folder) as store:
        updater = Updater(store, "lists", parse_location(folder / "out"))
        for number in range(count):
            first = options.items + 2 * options.new + number * options.each
            started = time.perf_counter()
            done = updater.apply(UpdateRequest(BatchInputs(make_table(first, options.each, 200 + number)), 1.0))
            yield done, time.perf_counter() - started, time.time()
            time.sleep(options.pause)


def copy_folder(folder: Path, target: Path) -> None:
    """Copy the store, the snapshot and its tables."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("store", "out"):
        shutil.copytree(folder / name, target / name)


def quantile_ms(seconds, share: float) -> float | None:
    """Return a quantile in milliseconds; None of nothing."""
    return round(float(np.quantile(seconds, share)) * 1e3, 3) if len(seconds) else None


def read(store, queries, stop, results, phase, target, seen) -> None:
    """Look up random keys until `stop`, and note when the patch `target` is seen."""
    rng = np.random.default_rng(5)
    times: tuple[list[float], ...] = tuple([] for _ in PHASES)
    errors, noted = 0, -1
    with nearcast.open(store, "lists", refresh_seconds=0.2) as lookup, open_closing(Path(store).parent) as opened:
        log = opened.patches("lists")
        while not stop.is_set():
            keys = rng.integers(0, queries, KEYS).tolist()
            started = time.perf_counter()
            try:
                answers = lookup.get_many(keys)
                errors += not answers.found.all()
            except Exception:
                errors += 1
            times[phase.value].append(time.perf_counter() - started)
            if target.value > noted:
                newest = log.state(1).newest
                if newest is not None and newest.number >= target.value:
                    noted, seen.value = target.value, time.time()
            time.sleep(0.002)
    results.put({"seconds": times, "errors": errors, "rss": peak_bytes()})


def peak_bytes() -> int:
    """Return the largest memory of this process so far; `ru_maxrss` of a child begins with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def open_closing(folder: Path):
    return contextlib.closing(open_store(f"lmdb:{folder / 'store'}"))


def count_bytes(folder: Path) -> int:
    """Sum the disk use of a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
