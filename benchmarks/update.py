"""Live updates: 1,000 new items into 1 million lists of 50, and a day of small updates with readers under load.

    python benchmarks/update.py --folder /tmp/update                     # 20,000 lists; a day in at most 20 minutes
    python benchmarks/update.py --folder /tmp/million --queries 1000000 --updates 0

Prints one JSON object, also if the day is ended early by Ctrl-C, SIGTERM, an error or `--minutes`: `updates` says how
far it came. `update_seconds` is a call of `nearcast.update` in a process without state, `again_seconds` one that has
it, with the processor seconds of both; `visible_seconds` is the time from the end of an update until a look-up of
another process shows it. The day: two readers, each in a process of its own, look up 100 keys at a time, one in the
store that is updated, the other in a copy of it without patches. Both run all the time, beside the same updates, so a
busy machine disturbs both alike; compare their quantiles. `--updates 0` leaves the day out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import nearcast
from nearcast import machine
from nearcast.errors import NearcastError
from nearcast.storage.locations import parse_location
from nearcast.stores import open_store
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.update import Updater, UpdateRequest, undo_patches

DIM, CENTRES = 128, 2_000
WARM_SECONDS = 5.0
KEYS = 100
PAUSE_SECONDS = 0.002  # of a reader, on average
HOURS = 24
WARM, STOPPED = -1, HOURS


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
    for left in (folder / "store", folder / "out/lists/updates"):  # of an earlier measurement
        shutil.rmtree(left, ignore_errors=True)
    nearcast.publish(spec)
    figures = {"machine": machine.describe(), "queries": options.queries, "items": options.items, "k": 50}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        figures |= measure_update(folder, options)
        figures |= measure_day(folder, options) if options.updates else {}
    except KeyboardInterrupt:
        figures["interrupted"] = True
    print(json.dumps(figures, indent=2))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--recall", type=float, default=1.0)
    parser.add_argument("--new", type=int, default=1_000)
    parser.add_argument("--updates", type=int, default=1_440, help="Of the day; 0 for no day.")
    parser.add_argument("--each", type=int, default=100, help="New items of each update of the day.")
    parser.add_argument("--gone", type=int, default=0, help="Removed items of each update of the day.")
    parser.add_argument("--minutes", type=float, default=20, help="Spread the day over so long, and end it then.")
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
    """Time one update of new items, without and with the state of an earlier one."""
    found = {}
    with open_closing(folder / "store") as store:
        updater = Updater(store, "lists", parse_location(folder / "out"))
        for number, name in enumerate(("update", "again")):
            rows = make_table(options.items + number * options.new, options.new, 100 + number)
            started, used = time.perf_counter(), time.process_time()
            done = updater.apply(UpdateRequest(BatchInputs(rows), 1.0))
            found[f"{name}_seconds"] = round(time.perf_counter() - started, 3)
            found[f"{name}_processor_seconds"] = round(time.process_time() - used, 3)
            found[f"{name}_lists"] = done.counts["lists"]
    return found


@dataclass
class Readers:
    """Two processes that look keys up, and what they share with this one."""

    hour: Any  # of the day now; WARM before it, STOPPED after it
    target: Any  # number of the patch to wait for
    seen: Any  # when a look-up showed it
    processes: dict[str, Any]
    results: dict[str, Any]


def measure_day(folder: Path, options: argparse.Namespace) -> dict:
    """Apply many small updates while one reader looks keys up in this store, and one in a copy without patches."""
    with open_closing(folder / "store") as store:
        undo_patches(store, "lists", 0)
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "store", folder / "copy")
    readers = start_readers({"patched": folder / "store", "unpatched": folder / "copy"}, options.queries)
    try:
        time.sleep(WARM_SECONDS)
        seconds, visible, used, by_hour = run_day(folder, options, readers)
        readers.hour.value = STOPPED
        found = {name: results.get(timeout=60) for name, results in readers.results.items()}
    except queue.Empty:
        return {"updates": len(seconds), "reader_errors": "a reader has died; see its traceback", **by_hour}
    finally:
        readers.hour.value = STOPPED
        for process in readers.processes.values():
            process.join(60)
    if not seconds:
        return {"updates": 0}
    day = {name: np.concatenate(figures["seconds"]) for name, figures in found.items()}
    pairs = [pair for pair in zip(*(figures["seconds"] for figures in found.values()), strict=True) if all(pair)]
    return {
        "updates": len(seconds),
        "each": options.each,
        "gone": options.gone,
        "update_p50_seconds": quantile(seconds, 0.5),
        "update_p99_seconds": quantile(seconds, 0.99),
        "update_processor_seconds": round(used / len(seconds), 3),
        "visible_p50_seconds": quantile(visible, 0.5),
        "visible_p99_seconds": quantile(visible, 0.99),
        "reader_errors": {name: figures["errors"] for name, figures in found.items()},
        "reader_calls": {name: len(part) for name, part in day.items()},
        "reader_p50_ms": {name: quantile(part, 0.5, 1e3) for name, part in day.items()},
        "reader_p99_ms": {name: quantile(part, 0.99, 1e3) for name, part in day.items()},
        "p50_ratio": round(quantile(day["patched"], 0.5, 1e3) / quantile(day["unpatched"], 0.5, 1e3), 3),
        "p99_ratio": round(quantile(day["patched"], 0.99, 1e3) / quantile(day["unpatched"], 0.99, 1e3), 3),
        "p99_ratio_by_hour": [round(quantile(a, 0.99, 1e3) / quantile(b, 0.99, 1e3), 2) for a, b in pairs],
        **{f"{name}_by_hour": values for name, values in by_hour.items()},
    }


def run_day(folder: Path, options: argparse.Namespace, readers: Readers) -> tuple[list, list, float, dict]:
    """Apply the updates of a day. Return their seconds, the seconds until seen, processor seconds, figures by hour."""
    seconds, visible = [], []
    by_hour: dict[str, list] = {name: [] for name in ("store_bytes", "journal_bytes", "reader_rss", "updater_rss")}
    begun, used, length = time.time(), time.process_time(), 60 * options.minutes
    try:
        for number, (done, took, ended) in enumerate(apply_updates(folder, options, begun, length), 1):
            seconds.append(took)
            visible.append(wait_until_seen(readers, done.patch, ended))
            hour = number * HOURS // options.updates
            if hour > max(0, readers.hour.value):
                by_hour["store_bytes"].append(count_bytes(folder / "store"))
                by_hour["journal_bytes"].append(count_bytes(folder / "out/lists/updates"))
                by_hour["reader_rss"].append(read_rss(readers.processes["patched"].pid))
                by_hour["updater_rss"].append(read_rss("self"))
                print(f"hour {hour}, update {number}, {time.time() - begun:.0f} s", file=sys.stderr, flush=True)
            readers.hour.value = min(hour, HOURS - 1)
            if time.time() > begun + length:
                break
    except (KeyboardInterrupt, NearcastError) as error:
        print(f"the day ends early: {error!r}", file=sys.stderr, flush=True)
    return seconds, visible, time.process_time() - used, by_hour


def wait_until_seen(readers: Readers, patch: int, ended: float) -> float:
    """Return the seconds from the end of an update until a look-up shows its patch; more than 10 if none does."""
    readers.target.value = patch
    readers.seen.value = 0.0
    deadline = time.time() + 10
    while readers.seen.value == 0.0 and time.time() < deadline:
        time.sleep(0.005)
    return max(0.0, (readers.seen.value or time.time()) - ended)


def apply_updates(folder: Path, options: argparse.Namespace, begun: float, length: float):
    """Yield the result of each update, its seconds, and when it ended. Begins each at its time, or late."""
    rng = np.random.default_rng(9)
    left = rng.permutation(options.items)
    with open_closing(folder / "store") as store:
        updater = Updater(store, "lists", parse_location(folder / "out"))
        for number in range(options.updates):
            time.sleep(max(0.0, begun + number * length / options.updates - time.time()))
            first = options.items + 2 * options.new + number * options.each
            rows = make_table(first, options.each, 200 + number)
            gone = left[number * options.gone : (number + 1) * options.gone].tolist() or None
            started = time.perf_counter()
            done = updater.apply(UpdateRequest(BatchInputs(rows, gone), 1.0))
            yield done, time.perf_counter() - started, time.time()


def start_readers(stores: dict[str, Path], queries: int) -> Readers:
    """Start a process per store that looks keys up."""
    context = multiprocessing.get_context("spawn")
    readers = Readers(context.Value("i", WARM), context.Value("q", 1 << 60), context.Value("d", 0.0), {}, {})
    for name, store in stores.items():
        readers.results[name] = context.Queue()
        shared = (readers.hour, readers.target, readers.seen) if name == "patched" else (readers.hour, None, None)
        process = context.Process(target=read, args=(str(store), queries, readers.results[name], *shared), daemon=True)
        process.start()
        readers.processes[name] = process
    return readers


def read(store: str, queries: int, results, hour, target, seen) -> None:
    """Look up random keys until the day has ended; note when a look-up shows the patch `target`."""
    for ended in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ended, signal.SIG_IGN)  # also sent to the whole group: the day ends first
    parent = os.getppid()
    rng = np.random.default_rng(5)
    seconds: list[list[float]] = [[] for _ in range(HOURS)]
    errors = 0
    with nearcast.open(store, "lists", refresh_seconds=0.2) as lookup:
        while (now := hour.value) != STOPPED and os.getppid() == parent:
            keys = rng.integers(0, queries, KEYS).tolist()
            started = time.perf_counter()
            try:
                answers = lookup.get_many(keys)
                errors += not answers.found.all()
            except Exception:
                errors += 1
            took = time.perf_counter() - started
            if now != WARM:
                seconds[now].append(took)
            if target is not None and seen.value == 0.0 and lookup.state.patch >= target.value:
                seen.value = time.time()
            time.sleep(rng.uniform(0, 2 * PAUSE_SECONDS))
    results.put({"seconds": seconds, "errors": errors})


def quantile(values, share: float, scale: float = 1.0) -> float:
    """Return a quantile, rounded."""
    return round(float(np.quantile(values, share)) * scale, 3)


def read_rss(process: int | str) -> int:
    """Return the memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def open_closing(store: Path):
    return contextlib.closing(open_store(f"lmdb:{store}"))


def count_bytes(folder: Path) -> int:
    """Sum the disk use of a folder, while another process may remove files."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total


if __name__ == "__main__":
    main()
