"""Measure what a live canary costs look-ups: of one key, and of 1,000 keys, in a store on this machine.

    python benchmarks/canary.py [--quick]

Both versions hold the same lists. Each state of the pointer is measured in turn, repeat by repeat. The figures are
processor time of the thread that asks, so other work on the machine disturbs them little. The polling thread runs as in
a service, and measures keys of the share on both arms. Takes about half a minute: a measurement ends after twice its
time on the clock, and no repeat begins after MOST_SECONDS. Prints each state as a ratio to that without a canary;
writes results/canary.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import nearcast
import tables
from nearcast import machine
from nearcast.publishing.move_canary import start_canary
from nearcast.publishing.publish import publish_snapshot
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.stores.base import Pointer
from nearcast.stores.canary_share import CanaryMode

RESULTS = Path(__file__).parent / "results" / "canary.json"
GENERATOR = "made-up"
KEYS, K, ITEMS = 50_000, 50, 50_000
BATCH = 1_000
MOST_SECONDS = 30.0  # on the clock, for all repeats but the first two
STATES: dict[str, tuple[CanaryMode, float] | None] = {
    "no canary": None,
    "canary of 5%": ("canary", 0.05),
    "canary of all keys": ("canary", 1.0),
    "shadow of all keys": ("shadow", 1.0),
}


def measure(ask: Callable[[Any], object], requests: list[Any], seconds: float) -> float:
    """Mean processor seconds of a request, in the thread that asks."""
    began, count, end = time.thread_time(), 0, time.monotonic() + 2 * seconds
    while (now := time.thread_time()) - began < seconds and (not count or time.monotonic() < end):
        some = [requests[(count + number) % len(requests)] for number in range(20)]
        for request in some:
            ask(request)
        count += len(some)
    return (now - began) / count


def set_canary(store: Any, state: tuple[CanaryMode, float] | None) -> None:
    """Give the pointer this canary, or none."""
    with store.lock(GENERATOR) as lock:
        before = store.pointer(GENERATOR)
        plain = Pointer(1, before.serial + 1)
        store.point(GENERATOR, plain, lock)
        if state is not None:
            start_canary(store, GENERATOR, plain, 2, state, lock)


def main() -> None:
    """Publish a synthetic table twice, and look keys up in each state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that the script works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    seconds, repeats, n_keys = (0.05, 2, 5_000) if given.quick else (0.3, 5, KEYS)
    rng = np.random.default_rng(1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    result: dict[str, Any] = {"machine": machine.describe(), "commit": commit.stdout.strip(), "keys": n_keys, "k": K}
    result |= {"seconds": seconds, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        store = open_store(f"lmdb:{folder / 'store'}")
        for version in (1, 2):
            snapshot = tables.make_snapshot(folder / "out", GENERATOR, version, n_keys=n_keys, k=K, n_items=ITEMS)
            publish_snapshot(snapshot, store, PublishSpec(), AuditSpec())
        keys = tables.key_ids(n_keys)[rng.integers(n_keys, size=20_000)]
        requests = {"one key": keys.tolist(), "1,000 keys": list(keys.reshape(-1, BATCH))}
        rows: dict[str, dict[str, list[float]]] = {kind: {state: [] for state in STATES} for kind in requests}
        with nearcast.open(store, GENERATOR) as lookup:
            asks: dict[str, Callable[[Any], object]] = {"one key": lookup.get, "1,000 keys": lookup.get_many}
            lookup.get_many(tables.key_ids(n_keys))
            end = time.monotonic() + MOST_SECONDS
            for repeat in range(repeats):
                if repeat > 1 and time.monotonic() > end:
                    break
                for state, canary in STATES.items():
                    set_canary(store, canary)
                    lookup.refresh()
                    for kind, ask in asks.items():
                        rows[kind][state].append(1e6 * measure(ask, requests[kind], seconds))
        store.close()
    result["microseconds"] = {
        kind: {
            state: {
                "median": statistics.median(repeated),
                "times": statistics.median(one / none for one, none in zip(repeated, states["no canary"], strict=True)),
                "repeats": repeated,
            }
            for state, repeated in states.items()
        }
        for kind, states in rows.items()
    }
    given.results.write_text(json.dumps(result, indent=1) + "\n")
    for kind, states in result["microseconds"].items():
        for state, figures in states.items():
            print(f"{kind}, {state}: {figures['median']:,.1f} us, {figures['times']:.2f} times that without a canary")


if __name__ == "__main__":
    main()
