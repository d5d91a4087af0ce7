"""Measure the two-step call, from keys to candidates to ads, over HTTP and in process.

    python benchmarks/two_step.py [--quick]

A synthetic table of 1,000,000 keys × 50 candidates, and 100,000 ads on its items with countries, ages, flights,
budgets, bids and advertisers. `nearcast serve` has one core and the client another: 200 requests a second at random
moments. Three cases: at rest; while budgets are written to the overlay 20 times a second; and while the table of ads is
also published again. Prints a table; writes results/two_step.json, with every repeat.

The host of a virtual machine may take its cores for some milliseconds. So this share is recorded for each repeat, and
repeats continue until enough of them were undisturbed, up to three times as many. If there are none, all of them count.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

import nearcast
import openloop
import servers
import tables
from nearcast import machine
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.publishing.publish import publish_snapshot
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.table.expansion_settings import AdSettings, Target

RESULTS = Path(__file__).parent / "results" / "two_step.json"
GENERATOR, ADS = "made-up", "made-up-ads"
COUNTRIES = ["at", "be", "ch", "de", "dk", "es", "fr", "it", "nl", "pl", "pt", "se"]
DAY = 86_400
RATE = 200.0  # requests per second, as criterion and goal have it
CONNECTIONS = 16
ASKED = 20_000  # different requests
BUDGETS_EVERY = 0.05  # seconds
BUDGETS_AT_ONCE = 20
TABLE_EVERY = 5.0  # seconds
STOLEN = 0.02  # of a core's time, at most, while a repeat counts as left alone

console = Console(width=130)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the benchmark."""

    keys: int = 1_000_000
    k: int = 50
    items: int = 200_000
    ads: int = 100_000
    seconds: float = 20.0
    repeats: int = 3
    calls: int = 5_000  # in process


QUICK = Scale(20_000, 50, 20_000, 10_000, 2.0, 1, 300)

SETTINGS = AdSettings(
    k=10,
    order="similarity_times_bid",
    caps={"advertiser": 2},
    targeting=(
        Target(column="countries", test="has", request="country"),
        Target(column="least_age", test="at_most", request="age"),
        Target(column="device", test="equals", request="device"),
    ),
)


def make_ads(scale: Scale, now: float) -> tuple[pa.Table, pa.Table]:
    """Ads and their links: an item has 0 to 8 ads, two on average; half of the ads are targeted by country."""
    rng = np.random.default_rng(11)
    n = scale.ads
    starts, lengths = now + rng.integers(-30, 5, n) * DAY, rng.integers(10, 60, n) * DAY
    times = pa.timestamp("s")
    ads = pa.table(
        {
            "ad": np.arange(n) + (1 << 33),
            "advertiser": [f"advertiser {i}" for i in rng.integers(max(50, n // 50), size=n)],
            "bid": np.round(rng.lognormal(0, 0.5, n), 2),
            "budget": np.round(rng.lognormal(5, 1, n), 2),
            "spent": np.round(rng.lognormal(4, 1, n), 2),
            "starts": pa.array(starts.astype(np.int64), times),
            "ends": pa.array((starts + lengths).astype(np.int64), times),
            "countries": [
                list(rng.choice(COUNTRIES, 5, replace=False)) if rng.random() < 0.5 else None for _ in range(n)
            ],
            "least_age": pa.array(rng.choice([0, 16, 18, 25], n), mask=rng.random(n) < 0.3),
            "device": pa.array(rng.choice(["phone", "desk"], n), mask=rng.random(n) < 0.6),
        }
    )
    counts = rng.binomial(8, 0.25, scale.items)
    items = np.repeat(tables.item_ids(scale.items), counts)
    links = pa.table({"item": items, "ad": rng.integers(n, size=len(items)) + (1 << 33)})
    return ads, links


def requests_of(keys: np.ndarray[Any, Any]) -> list[Row]:
    """Return request bodies, each with one key and the request fields."""
    rng = np.random.default_rng(12)
    chosen = rng.choice(keys, min(ASKED, len(keys)), replace=False)
    return [
        {
            "keys": [int(key)],
            "request": {
                "country": COUNTRIES[rng.integers(len(COUNTRIES))],
                "age": int(rng.integers(15, 80)),
                "device": "phone" if rng.random() < 0.7 else "desk",
            },
            "fields": ["advertiser", "bid"],
        }
        for key in chosen
    ]


def in_process(url: str, bodies: list[Row], calls: int) -> Row:
    """Calls of the library, one after the other: processor time of each in microseconds, and what they came to."""
    spent, stages = [], []
    with nearcast.open(url, GENERATOR) as shop, nearcast.open_expansion(url, ADS) as ads:
        for number in range(2 * calls):
            body = bodies[number % len(bodies)]
            before = time.thread_time()
            found = ads.ads(shop, body["keys"], request=body["request"], fields=body["fields"])
            if number >= calls:  # the first half warms up
                spent.append(time.thread_time() - before)
                stages.append([(stage.name, stage.candidates, stage.ads) for stage in found.stages])
    means = {
        stage[0][0]: [float(np.mean([s[1] for s in stage])), float(np.mean([s[2] for s in stage]))]
        for stage in zip(*stages, strict=True)
    }
    micros = np.array(spent) * 1e6
    median, late = np.quantile(micros, [0.5, 0.99])
    return {"calls": calls, "cpu_us_median": float(median), "cpu_us_p99": float(late), "stages": means}


def write_budgets(url: str, first: int, n: int, stop: Any) -> None:
    """Write spending to the overlay until stopped."""
    rng = np.random.default_rng(13)
    with nearcast.overlay(url, ADS) as overlay:
        while not stop.wait(BUDGETS_EVERY):
            chosen = (rng.integers(n, size=BUDGETS_AT_ONCE) + first).tolist()
            overlay.update_many([(ad, "spent", float(rng.lognormal(4, 1))) for ad in chosen])


def publish_again(url: str, scale: Scale, now: float, stop: Any) -> None:
    """Publish the same ads again and again."""
    ads, links = make_ads(scale, now)
    store = open_store(url)
    while not stop.wait(TABLE_EVERY):
        publish_expansion(store, ADS, ads, links, SETTINGS)


@contextmanager
def beside(core: int, *jobs: tuple[Any, ...]) -> Iterator[None]:
    """Processes that do something until this is over, on a core."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    started = [context.Process(target=_held, args=(core, job[0], *job[1:], stop), daemon=True) for job in jobs]
    for process in started:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in started:
            process.join(60)


def _held(core: int, function: Any, *arguments: Any) -> None:
    servers.hold(core)
    function(*arguments)


def over_http(server: servers.Server, bodies: list[Row], scale: Scale, core: int) -> Row:
    """At the rate that is asked for, some times over."""
    asked = [openloop.post(f"/v1/generators/{GENERATOR}/ads", json.dumps(body).encode()) for body in bodies]
    repeats: list[Row] = []
    alone: list[Row] = []
    for seed in range(3 * scale.repeats + 1):
        before, stolen = server.cpu_seconds(), servers.stolen_seconds()
        arguments = (server.port, asked, RATE, scale.seconds, CONNECTIONS, seed)
        row = servers.on_core(core, openloop.summary_of, *arguments)
        row["cpu_us_per_request"] = (server.cpu_seconds() - before) / max(1, row["requests"]) * 1e6
        row["stolen"] = (servers.stolen_seconds() - stolen) / row["seconds"]
        repeats.append(row)
        if seed and row["stolen"] <= STOLEN:  # the first one warms up
            alone.append(row)
        if len(alone) == scale.repeats:
            break
    kept = alone or repeats[1:]
    names = ("p50_ms", "p99_ms", "p999_ms", "max_ms", "cpu_us_per_request", "requests_per_second")
    median = {name: statistics.median(row[name] for row in kept) for name in names}
    counts = {"left_alone": len(alone), "errors": sum(row["errors"] for row in repeats)}
    return {**median, **counts, "repeats": repeats}


def check(port: int, bodies: list[Row], k: int) -> None:
    """Stop if an answer lacks candidates or ads."""
    connection = http.client.HTTPConnection(servers.HERE, port)
    ads = 0
    for body in bodies[:50]:
        headers = {"content-type": "application/json"}
        connection.request("POST", f"/v1/generators/{GENERATOR}/ads", json.dumps(body), headers)
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        if reply.status != 200 or answer["stages"][0]["candidates"] != k:
            sys.exit(f"{body} is answered with {reply.status}: {str(answer)[:300]}")
        ads += len(answer["ads"])
    if not ads:
        sys.exit("no request has an ad: there is nothing to be measured")
    connection.close()


def measure(scale: Scale, folder: Path, result: Row, given: argparse.Namespace) -> None:
    """All of it."""
    server_core, asking_core = servers.cores()
    url, now = f"lmdb:{folder / 'store'}", time.time()
    store = open_store(url)
    snapshot = tables.make_snapshot(folder, GENERATOR, 1, n_keys=scale.keys, k=scale.k, n_items=scale.items)
    publish_snapshot(snapshot, store, PublishSpec(), AuditSpec())
    ads, links = make_ads(scale, now)
    done = publish_expansion(store, ADS, ads, links, SETTINGS)
    result["publish"] = done.as_dict() | {"store": "lmdb"}
    bodies = requests_of(tables.key_ids(scale.keys))
    result["in_process"] = servers.on_core(server_core, in_process, url, bodies, scale.calls)
    budgets = (write_budgets, url, 1 << 33, scale.ads)
    states: dict[str, tuple[tuple[Any, ...], ...]] = {
        "at rest": (),
        "budgets": (budgets,),
        "budgets and tables": (budgets, (publish_again, url, scale, now)),
    }
    words = (GENERATOR, ADS, "--store", url, "--no-samples")
    with servers.nearcast_server(words, folder, server_core) as server:
        check(server.port, bodies, scale.k)
        for name, jobs in states.items():
            with beside(asking_core, *jobs):
                result["http"][name] = over_http(server, bodies, scale, asking_core)
            given.results.write_text(json.dumps(result, indent=1) + "\n")


def show(result: Row) -> None:
    """Two tables."""
    console.print(f"in process: {result['in_process']['cpu_us_median']:.0f} µs of a core a call")
    stages = Table("stage", "candidates", "ads", title="left of a request, on average", title_justify="left")
    for name, (candidates, ads) in result["in_process"]["stages"].items():
        stages.add_row(name, f"{candidates:.1f}", f"{ads:.1f}")
    heads = ("meanwhile", "p50 ms", "p99 ms", "p99.9 ms", "µs of a core", "errors", "repeats left alone")
    drawn = Table(*heads, title=f"HTTP, {RATE:.0f} a second")
    for name, row in result["http"].items():
        cells = [f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "p999_ms")]
        left = f"{row['left_alone']} of {len(row['repeats']) - 1}"
        drawn.add_row(name, *cells, f"{row['cpu_us_per_request']:.0f}", str(row["errors"]), left)
    console.print(stages)
    console.print(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: does it run?")
    parser.add_argument("--results", type=Path, default=None, help="file to write; results/two_step.json")
    given = parser.parse_args()
    scale = QUICK if given.quick else Scale()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nearcast-two-step-")))
        if given.results is None:
            given.results = folder / "two_step.json" if given.quick else RESULTS
        result: Row = {
            "machine": machine.describe(),
            "cores": dict(zip(("of what is measured", "of whoever asks"), servers.cores(), strict=True)),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "load_average": os.getloadavg(),
            "command": sys.argv[1:],
            "data": {name: getattr(scale, name) for name in ("keys", "k", "items", "ads")},
            "rate": RATE,
            "http": {},
        }
        measure(scale, folder, result, given)
        show(result)


if __name__ == "__main__":
    main()
