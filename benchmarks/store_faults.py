"""Measure how long faults of network stores are seen: by look-ups, by the next publisher, by whoever opens a store.

    python benchmarks/store_faults.py [--repeats 3] [--stores redis sentinel cluster dynamodb]

Real servers on this machine, which the helpers of the tests start: Redis with a log on disk, three Sentinels over a
primary and a replica, a Cluster of three primaries with a replica each, moto for DynamoDB. A thread looks keys of all
nodes up, one at a time, without a pause. `gap_seconds` is the longest time between two right answers that overlaps the
fault, `error_seconds` the longest look-up that ended with an error. A missing key or another version's list would be
`wrong`.
Writes results/store_faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nearcast
from nearcast import machine
from nearcast.errors import BusyError, NearcastError
from nearcast.stores import open_store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "store_faults.json"
SHOP, KEYS = "shop", list(range(300))
TIMEOUT = 2.0  # seconds, of the stores
HANG_SECONDS, LONG_SECONDS = 5.0, 20.0
REDIS_SETTINGS = f"?timeout={TIMEOUT}&buckets=64"
Row = dict[str, Any]


class Watch:
    """Looks keys up in a thread, and notes when an answer was right."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self._lookup = nearcast.open(self._store, SHOP, refresh_seconds=0.05)
        self.right: list[float] = []
        self.failed: list[tuple[float, float]] = []  # begin and end
        self.wrong = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Watch:
        self._thread.start()
        self.wait_for_right(50)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._lookup.close()
        self._store.close()

    def _read(self) -> None:
        number = 0
        while not self._stop.is_set():
            number, began = (number + 1) % len(KEYS), time.monotonic()
            try:
                answer = self._lookup.get(KEYS[number])
            except NearcastError:
                self.failed.append((began, time.monotonic()))
                continue
            self.wrong += list(answer.ids) != [1000 * int(answer.snapshot) + KEYS[number] % 50]
            self.right.append(time.monotonic())

    def wait_for_right(self, count: int) -> None:
        """Wait for so many more right answers."""
        before, end = len(self.right), time.monotonic() + 60
        while len(self.right) < before + count:
            assert time.monotonic() < end, self.failed[-1:]
            time.sleep(0.01)

    def describe(self, since: float) -> Row:
        """The figures of a fault that began at a time."""
        times = [max(time for time in self.right if time <= since), *(time for time in self.right if time > since)]
        failed = [(began, end) for began, end in self.failed if end > since]
        return {
            "gap_seconds": max(after - before for before, after in pairwise(times)),
            "errors": len(failed),
            "error_seconds": max((end - began for began, end in failed), default=0.0),
            "wrong": self.wrong,
        }


def lists(version: int) -> dict[int, list[tuple[int, float]]]:
    """Lists whose items tell the version."""
    return {key: [(1000 * version + key % 50, 1.0)] for key in KEYS}


def see(url: str, fault: Callable[[], object]) -> Row:
    """What look-ups see of a fault, until 300 right answers after it."""
    with Watch(url) as watch:
        began = time.monotonic()
        fault()
        watch.wait_for_right(300)
    return watch.describe(began)


def hang(pid: int, seconds: float = HANG_SECONDS) -> None:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def wait_for_dead_publisher(url: str) -> Row:
    """Seconds until the lock of a killed publisher is free."""
    worker = ROOT / "tests" / "contract" / "store_worker.py"
    command = [sys.executable, worker, "hold", url, SHOP]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder,
        contextlib.closing(open_store(url)) as store,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        began = time.monotonic()
        while True:
            try:
                with store.lock(SHOP):
                    return {"lock_seconds": time.monotonic() - began}
            except BusyError:
                time.sleep(0.02)


def fill(url: str, ports: list[int]) -> Row:
    """What a publish and look-ups see of servers without memory."""
    import redis

    from published import load

    clients = [redis.Redis("127.0.0.1", port) for port in ports]
    row: Row = {}

    def publish() -> None:
        for client in clients:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 100_000)
        began = time.monotonic()
        with contextlib.closing(open_store(url)) as store:
            try:
                load(store, SHOP, 2, {key: [(item, 1.0) for item in range(300)] for key in range(3000)})
                row["publish"] = "no error"
            except NearcastError as error:
                row["publish"] = str(error)
        row["publish_error_seconds"] = time.monotonic() - began
        for client in clients:
            client.config_set("maxmemory", 0)

    return see(url, publish) | row


@contextlib.contextmanager
def published(server: Any, more: str) -> Iterator[str]:
    """The URL of a store on a server, with version 1."""
    from published import publish

    url = f"{server.url}{more}"
    with contextlib.closing(open_store(url)) as store:
        publish(store, SHOP, 1, lists(1))
    yield url


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something that comes about by itself."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def measure_redis(folder: Path) -> Iterator[tuple[str, Row]]:
    """One server that keeps a log on disk."""
    from servers import redis_running

    log = ("--appendonly", "yes", "--appendfsync", "always")
    with redis_running(folder, *log) as server, published(server, REDIS_SETTINGS) as url:

        def restart() -> None:
            server.kill()
            time.sleep(HANG_SECONDS)
            server.start()

        yield "publisher is killed", wait_for_dead_publisher(url)
        yield "server hangs", see(url, lambda: hang(server.pid))
        yield "full", fill(url, [server.port])
        yield "server is killed and back", see(url, restart)


def measure_sentinel(folder: Path) -> Iterator[tuple[str, Row]]:
    """A primary and a replica behind Sentinels."""
    from redis_groups import sentinels_running

    for name, how in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        with sentinels_running(folder / name) as group, published(group, REDIS_SETTINGS) as url:
            pid, port = group.primary.pid, group.replica.port

            def fail(group: Any = group, pid: int = pid, port: int = port, how: signal.Signals = how) -> None:
                os.kill(pid, how)
                wait_until(lambda: group.primary_port() == port)

            if name == "killed":
                yield "publisher is killed", wait_for_dead_publisher(url)
                yield "full", fill(url, [group.primary.port])
            yield f"primary is {name}", see(url, fail)
            os.kill(pid, signal.SIGCONT)


def measure_cluster(folder: Path) -> Iterator[tuple[str, Row]]:
    """Three primaries with a replica each. The one that fails has the pointer, the lock and the overlay."""
    from redis.crc import key_slot

    from redis_groups import cluster_running

    slot = key_slot(SHOP.encode())
    for name, how in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        with cluster_running(folder / name, replicas=1) as cluster, published(cluster, REDIS_SETTINGS) as url:

            def move(cluster: Any = cluster) -> None:
                for number in range(0, 16384, 820):
                    cluster.move_slot(number, (cluster.owner(number) + 1) % 3)

            def fail(cluster: Any = cluster, how: signal.Signals = how) -> None:
                failing = cluster.owner(slot)
                os.kill(cluster.nodes[failing].pid, how)
                wait_until(lambda: owner_port(cluster, (failing + 1) % 3, slot) != cluster.nodes[failing].port)

            if name == "killed":
                yield "publisher is killed", wait_for_dead_publisher(url)
                yield "full", fill(url, [node.port for node in cluster.nodes[:3]])
                yield "20 slots are moved", see(url, move)
            yield f"primary is {name}", see(url, fail)
            for node in cluster.nodes:
                os.kill(node.pid, signal.SIGCONT)


def owner_port(cluster: Any, asked: int, slot: int) -> int:
    """The port of the primary of a slot, as a node sees it."""
    rows = cluster.ask(asked, "CLUSTER", "SLOTS")
    return int(next(primary[1] for first, last, primary, *_ in rows if first <= slot <= last))


def measure_dynamodb(folder: Path) -> Iterator[tuple[str, Row]]:
    """The server of moto."""
    from dynamodb_server import CREDENTIALS, DynamoServer

    os.environ.update(CREDENTIALS)
    folder.mkdir(parents=True)
    server = DynamoServer(folder).start()
    try:
        with published(server, f"&timeout={TIMEOUT}&buckets=16") as url:
            pid = server._process.pid
            yield "publisher is killed", wait_for_dead_publisher(url)
            yield "server hangs", see(url, lambda: hang(pid))
            yield "server hangs for long", see(url, lambda: hang(pid, LONG_SECONDS))
    finally:
        server.kill()


STORES = {
    "redis": measure_redis,
    "sentinel": measure_sentinel,
    "cluster": measure_cluster,
    "dynamodb": measure_dynamodb,
}


def measure_tls(folder: Path) -> Iterator[tuple[str, Row]]:
    """Certificates that are wrong."""
    from servers import free_port, redis_running
    from unit.test_store_tls import DAY, HERE, NOW, write_authority, write_certificate

    folder.mkdir(parents=True)
    write_authority(folder, "stranger")
    ours = write_authority(folder, "ours")
    cases = {
        "unknown authority": ("stranger", HERE, 1),
        "expired": ("ours", HERE, -1),
        "other host": ("ours", "cache.example", 1),
    }
    for number, (name, (authority, host, last)) in enumerate(cases.items()):
        settings = write_certificate(ours, f"server{number}", host, NOW - 3 * DAY, NOW + last * DAY)
        port = free_port()
        with redis_running(folder / name.replace(" ", "-"), "--tls-port", str(port), *settings):
            began = time.monotonic()
            try:
                open_store(f"rediss://{HERE}:{port}/0?timeout={TIMEOUT}&ssl_ca_certs={folder}/{authority}.pem").close()
                told = "no error"
            except NearcastError as error:
                told = str(error)
            yield f"TLS: {name}", {"open_error_seconds": time.monotonic() - began, "open": told}


def main() -> None:
    """Measure each fault some times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stores", nargs="+", choices=tuple(STORES), default=tuple(STORES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.path[0] = str(ROOT / "tests")  # whose `servers` is another one than that of the benchmarks
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    result: Row = {"machine": machine.describe(), "commit": commit.stdout.strip(), "timeout_seconds": TIMEOUT}
    result |= {"hang_seconds": HANG_SECONDS, "long_seconds": LONG_SECONDS}
    result["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    rows: dict[str, dict[str, list[Row]]] = {}
    for repeat in range(given.repeats):
        for store in given.stores:
            with tempfile.TemporaryDirectory() as home:
                measures = [STORES[store](Path(home) / store)]
                measures += [measure_tls(Path(home) / "tls")] if store == "redis" else []
                for measured in measures:
                    for fault, row in measured:
                        print(repeat, store, fault, row, flush=True)
                        rows.setdefault(store, {}).setdefault(fault, []).append(row)
    result["stores"] = {
        store: {fault: summarize(repeated) for fault, repeated in faults.items()} for store, faults in rows.items()
    }
    given.results.write_text(json.dumps(result, indent=1) + "\n")


def summarize(rows: list[Row]) -> Row:
    """The median of each figure, the sum of wrong answers, and every repeat."""
    figures = [name for name, value in rows[0].items() if isinstance(value, int | float) and name != "wrong"]
    summary: Row = {name: statistics.median(row[name] for row in rows) for name in figures}
    if "wrong" in rows[0]:
        summary["wrong"] = sum(row["wrong"] for row in rows)
    return summary | {"repeats": rows}


if __name__ == "__main__":
    main()
