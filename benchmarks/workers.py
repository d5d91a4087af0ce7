"""Measure `nearcast serve` with one process and with two workers on two cores, and answers as JSON and as Arrow.

    python benchmarks/workers.py [--parts one_key many_keys] [--quick]

wrk asks, with one thread, always for the same key, which takes it the least time. It needs a part of a core itself, so
on two cores two workers cannot have both whole: each row has the processor time per request of the service and of wrk.
`times` is measured; `times_alone` is what two workers would reach if wrk ran elsewhere. The services run at once and in
turn, many times for two seconds, so that other work on the machine disturbs all alike; `of_best` compares the repeats
that were disturbed the least. Writes results/workers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import servers
import tables
from nearcast import machine
from nearcast.publishing.publish import publish_snapshot
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store

RESULTS = Path(__file__).parent / "results" / "workers.json"
LUA = Path(__file__).parent / "requests.lua"
GENERATOR = "made-up"
KEYS, K, ITEMS = 200_000, 50, 50_000
CONNECTIONS = 32
PAUSING = 128  # connections at half of the load: each pauses between its requests
BATCH = 1_000
SERVICES = {"one process": (), "--workers 2": ("--workers", 2)}
TYPES = {"JSON": "application/json", "Arrow": "application/vnd.apache.arrow.stream"}
Row = dict[str, Any]


def ask(server: servers.Server, path: str, seconds: float, connections: int, *arguments: object) -> Row:
    """Ask with wrk for some seconds. arguments: of requests.lua."""
    before, own = server.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", LUA]
    command += [f"http://{servers.HERE}:{server.port}{path}", "--", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wrk = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    return {
        **row,
        "requests_per_second": row["requests"] / row["seconds"],
        "cpu_seconds_per_million": (server.cpu_seconds() - before) / row["requests"] * 1e6,
        "wrk_cpu_seconds_per_million": wrk / row["requests"] * 1e6,
        "load_average": os.getloadavg()[0],
    }


def middle(rows: Sequence[Row], name: str) -> float:
    """The median of a figure over repeats."""
    return float(statistics.median(row[name] for row in rows))


def measure_one_key(running: dict[str, servers.Server], path: str, seconds: float, repeats: int) -> Row:
    """The most requests per second, and the response times at half of them."""
    most: dict[str, list[Row]] = {name: [] for name in running}
    half: dict[str, list[Row]] = {name: [] for name in running}
    for seed in range(repeats):
        for name, server in running.items():
            most[name].append(ask(server, path, seconds, CONNECTIONS, "-", seed))
    for seed in range(repeats):
        for name, server in running.items():
            pause = 1000 * PAUSING / (middle(most[name], "requests_per_second") / 2) - 0.5
            half[name].append(ask(server, path, seconds, PAUSING, "-", seed, f"{pause:.3f}"))
    found: Row = {}
    for name in running:
        names = ("requests_per_second", "cpu_seconds_per_million", "wrk_cpu_seconds_per_million")
        found[name] = {what: middle(most[name], what) for what in names}
        found[name]["half"] = {what: middle(half[name], what) for what in ("requests_per_second", "p50_ms", "p99_ms")}
        found[name]["errors"] = sum(row["errors"] for row in (*most[name], *half[name]))
        found[name] |= {"most_repeats": most[name], "half_repeats": half[name]}
    one, two = found["one process"], found["--workers 2"]
    best = {name: max(row["requests_per_second"] for row in rows) for name, rows in most.items()}
    least = {name: min(row["p99_ms"] for row in rows) for name, rows in half.items()}
    return {
        "services": found,
        "best_requests_per_second": best,
        "times_of_best": best["--workers 2"] / best["one process"],
        "least_p99_ms_at_half": least,
        "times": two["requests_per_second"] / one["requests_per_second"],
        "times_alone": 2 * one["cpu_seconds_per_million"] / two["cpu_seconds_per_million"],
        "times_possible": 2
        * one["cpu_seconds_per_million"]
        / (two["cpu_seconds_per_million"] + two["wrk_cpu_seconds_per_million"]),
        "p99_ratio_at_half": two["half"]["p99_ms"] / one["half"]["p99_ms"],
    }


def measure_many_keys(server: servers.Server, file: Path, seconds: float, repeats: int) -> Row:
    """Lists per second of requests for 1,000 keys, by the type of the answer."""
    rows: dict[str, list[Row]] = {name: [] for name in TYPES}
    for seed in range(repeats):
        for name, media in TYPES.items():
            rows[name].append(ask(server, "", seconds, 4, file, seed, 0, media))
    found: Row = {
        name: {
            "lists_per_second": BATCH * middle(each, "requests_per_second"),
            "cpu_seconds_per_million_lists": middle(each, "cpu_seconds_per_million") / BATCH,
            "p99_ms": middle(each, "p99_ms"),
            "errors": sum(row["errors"] for row in each),
            "repeats": each,
        }
        for name, each in rows.items()
    }
    return {"types": found, "times": found["Arrow"]["lists_per_second"] / found["JSON"]["lists_per_second"]}


def commit() -> str:
    """Of this checkout, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent).stdout.strip()


def main() -> None:
    """Publish a synthetic table, start the services, and ask them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("one_key", "many_keys"), default=("one_key", "many_keys"))
    parser.add_argument("--quick", action="store_true", help="one second each: to see that the script works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed (apt-get install wrk)")
    seconds, repeats, n_keys = (1, 2, 20_000) if given.quick else (2, 8, KEYS)
    result: Row = {"machine": machine.describe(), "commit": commit(), "keys": n_keys, "k": K}
    result["real_time"] = os.sched_getscheduler(0) != os.SCHED_OTHER  # other work on the machine then waits
    result |= {"seconds": seconds, "connections": CONNECTIONS, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"lmdb:{folder / 'store'}"
        snapshot = tables.make_snapshot(folder / "out", GENERATOR, 1, n_keys=n_keys, k=K, n_items=ITEMS)
        store = open_store(url)
        publish_snapshot(snapshot, store, PublishSpec(), AuditSpec())
        store.close()
        rng, keys = np.random.default_rng(6), tables.key_ids(n_keys)
        path = f"/v1/generators/{GENERATOR}/candidates"
        one, many = f"{path}/{keys[0]}", folder / "many_keys.txt"
        bodies = [json.dumps({"keys": rng.choice(keys, BATCH, replace=False).tolist()}) for _ in range(50)]
        many.write_text("".join(f"{path}\t{body}\n" for body in bodies))
        words = (GENERATOR, "--store", url, "--out", folder / "out", "--no-samples")
        running = {
            name: stack.enter_context(servers.nearcast_server((*words, *more), folder, None, f"serve{len(more)}"))
            for name, more in SERVICES.items()
        }
        for server in running.values():  # to warm up
            ask(server, one, 2, CONNECTIONS, "-")
        if "one_key" in given.parts:
            result["one_key"] = measure_one_key(running, one, seconds, repeats)
        if "many_keys" in given.parts:
            result["many_keys"] = measure_many_keys(running["one process"], many, seconds, repeats)
    result["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    given.results.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def show(result: Row) -> None:
    """Print the figures without the repeats."""
    for part in ("one_key", "many_keys"):
        for name, row in {**result.get(part, {}).get("services", {}), **result.get(part, {}).get("types", {})}.items():
            print(part, name, {what: value for what, value in row.items() if "repeats" not in what})
        print(
            part,
            {
                what: value
                for what, value in result.get(part, {}).items()
                if what.startswith(("times", "p99", "best", "least"))
            },
        )


if __name__ == "__main__":
    main()
