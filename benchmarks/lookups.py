"""Measure one core in process: look-ups from a store, the same keys from plain Redis, searches of an online index.

Each function runs in a separate process on one core, and returns plain rows with every repeat. A repeat requests
batches until its time is over. The first repeat warms the caches and is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import nearcast
from nearcast.stores.base import Reader
from nearcast.stores.value_format import decode_list, decode_lists, encode_keys

BATCHES = (1, 100, 1_000, 10_000)
SINGLES, SEARCHES = 20_000, 2_000
DRAWN = 1 << 20  # keys that a repeat draws from
REDIS_BATCH = 1_000

Row = dict[str, Any]
Keys = np.ndarray[Any, np.dtype[np.int64]]


def drawn_keys(keys: Keys, skewed: bool, seed: int) -> Keys:
    """Return random keys of requests: uniform, or by Zipf's law with weight 1/n for the n-th key."""
    rng = np.random.default_rng(seed)
    if not skewed:
        return keys[rng.integers(len(keys), size=DRAWN)]
    ends = np.cumsum(1 / np.arange(1, len(keys) + 1))
    return rng.permutation(keys)[np.searchsorted(ends, rng.random(DRAWN) * ends[-1])]


def table_lookups(store: str, generator: str, keys: Keys, overlay: int, seconds: float, repeats: int) -> list[Row]:
    """`get_many` by batch and distribution, and `get`, under an overlay of so many entries."""
    rows = []
    with nearcast.open(store, generator) as lookup:
        assert lookup.state.overlay == overlay
        for start in range(0, len(keys), 10_000):  # the whole file is in the page cache then
            lookup.get_many(keys[start : start + 10_000])
        for skewed in (False, True):
            wanted = drawn_keys(keys, skewed, 1)
            about = {"keys": "skewed" if skewed else "uniform", "overlay": overlay}
            for batch in BATCHES:
                measured = rates(batches_of(wanted, batch), lookup.get_many, batch, seconds, repeats)
                rows.append({"call": "get_many", "batch": batch, **about, **measured})
            singles = wanted[:SINGLES].tolist()
            rows.append({"call": "get", "batch": 1, **about, **single_times(singles, lookup.get, repeats)})
    return rows


def plain_redis(url: str, keys: Keys, pid: int, seconds: float, repeats: int) -> list[Row]:
    """GET and MGET of plain keys by redis-py, as they come and decoded; the server's processor time beside ours."""
    import redis

    client = redis.Redis.from_url(url)
    wanted = drawn_keys(keys, False, 1)
    encoded = encode_keys(_arrow(wanted))
    server = psutil.Process(pid)

    def other() -> float:
        times = server.cpu_times()
        return times.user + times.system

    calls: list[tuple[str, int, Callable[[Any], Any]]] = [
        ("GET", 1, lambda some: client.get(some[0])),
        ("GET, decoded", 1, lambda some: decode_list(client.get(some[0]))),
    ]
    for batch in (100, 1_000):
        calls.append(("MGET", batch, client.mget))
        calls.append(("MGET, decoded", batch, lambda some: decode_lists(client.mget(some), "int64")))
    return [
        {"call": call, "batch": batch, **rates(batches_of(encoded, batch), ask, batch, seconds, repeats, other)}
        for call, batch, ask in calls
    ]


def redis_lookups(store: str, generator: str, keys: Keys, pid: int, seconds: float, repeats: int) -> list[Row]:
    """`get_many` from a version that was published to Redis."""
    server = psutil.Process(pid)

    def other() -> float:
        times = server.cpu_times()
        return times.user + times.system

    wanted = drawn_keys(keys, False, 1)
    rows = []
    with nearcast.open(store, generator) as lookup:
        for batch in (1, 100, 1_000):
            measured = rates(batches_of(wanted, batch), lookup.get_many, batch, seconds, repeats, other)
            rows.append({"call": "get_many", "batch": batch, **measured})
    return rows


def fill_redis(url: str, reader: Reader) -> Row:
    """SET every list of a version as a plain key, pipelined, as one would without nearcast."""
    import redis

    from nearcast.stores.base import Space

    client = redis.Redis.from_url(url)
    started, count = time.perf_counter(), 0
    with client.pipeline(transaction=False) as pipe:
        for key, value in reader.pairs(Space.LISTS):
            pipe.set(key, value)
            count += 1
            if count % REDIS_BATCH == 0:
                pipe.execute()
        pipe.execute()
    seconds = time.perf_counter() - started
    used = int(client.info("memory")["used_memory"])  # type: ignore[index]
    return {"keys": count, "seconds": seconds, "keys_per_second": count / seconds, "used_memory_bytes": used}


def same_keys(
    store: str, spec: Path, out: Path, engines: Sequence[str], recall: float, wanted: Path, seconds: float, repeats: int
) -> list[Row]:
    """The same keys by look-up and by searching for their vectors, one at a time and in batches."""
    from nearcast.join.online_index import open_online
    from nearcast.spec import load_spec

    with np.load(wanted, allow_pickle=False) as arrays:
        keys, vectors = arrays["keys"].tolist(), arrays["vectors"]
    parsed = load_spec(spec)
    k = parsed.k
    rows: list[Row] = []
    with nearcast.open(store, parsed.name) as lookup:
        for batch in (1, 1_000):
            measured = rates(batches_of(keys, batch), lookup.get_many, batch, seconds, repeats)
            rows.append({"by": "look-up", "call": "get_many", "batch": batch, **measured})
        rows.append({"by": "look-up", "call": "get", "batch": 1, **single_times(keys[:SINGLES], lookup.get, repeats)})
    for engine in engines:
        online = open_online(parsed, spec.parent, out, engine=engine, recall=recall)
        reached = online.reached.value if online.reached else None
        about = {"by": engine, "effort": dict(online.params), "recall": reached}

        def search(some: Any, online: Any = online) -> Any:
            return online.search(some, k)

        singles = [vectors[row : row + 1] for row in range(min(len(vectors), SEARCHES))]
        rows.append({**about, "call": "search", "batch": 1, **single_times(singles, search, repeats)})
    return rows


def batches_of(wanted: Any, batch: int) -> list[Any]:
    """Slices that hold `batch` each."""
    most = max(1, min(len(wanted) // batch, 50_000))
    return [wanted[start : start + batch] for start in range(0, most * batch, batch)]


def rates(
    batches: Sequence[Any],
    ask: Callable[[Any], Any],
    batch: int,
    seconds: float,
    repeats: int,
    other_cpu: Callable[[], float] = lambda: 0.0,
) -> Row:
    """Keys per second and processor seconds per million keys, ours and another process's; medians and all repeats."""
    found, at = [], 0
    for _ in range(repeats + 1):
        asked, began, cpu, other = 0, time.perf_counter(), time.process_time(), other_cpu()
        until = began + seconds
        while time.perf_counter() < until:
            ask(batches[at])
            at = (at + 1) % len(batches)
            asked += batch
        took, ours, theirs = time.perf_counter() - began, time.process_time() - cpu, other_cpu() - other
        found.append(
            {
                "keys_per_second": asked / took,
                "cpu_seconds_per_million": (ours + theirs) / asked * 1e6,
                "of_which_server": theirs / asked * 1e6,
                "cores_had": (ours + theirs) / took,
            }
        )
    return _summed(found[1:])


def single_times(wanted: Sequence[Any], ask: Callable[[Any], Any], repeats: int) -> Row:
    """Times of single calls, and what they come to per second."""
    found = []
    for _ in range(repeats + 1):
        times, cpu = np.empty(len(wanted)), time.process_time()
        for place, one in enumerate(wanted):
            began = time.perf_counter()
            ask(one)
            times[place] = time.perf_counter() - began
        cpu = time.process_time() - cpu
        p50, p99 = np.percentile(times, [50, 99]) * 1e6
        found.append(
            {
                "keys_per_second": len(wanted) / times.sum(),
                "cpu_seconds_per_million": cpu / len(wanted) * 1e6,
                "p50_us": float(p50),
                "p99_us": float(p99),
            }
        )
    return _summed(found[1:])


def _summed(found: Sequence[Row]) -> Row:
    """The medians, and every repeat."""
    return {**{name: statistics.median(row[name] for row in found) for name in found[0]}, "repeats": list(found)}


def _arrow(keys: Keys) -> Any:
    import pyarrow as pa

    return pa.array(keys)
