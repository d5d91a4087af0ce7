"""Measure publishing and serving: loads, look-ups in process and over HTTP, next to plain Redis and online search.

    python benchmarks/serving.py --data ../shared/data/packages [--parts load lookup http redis online] [--quick]

All parts but `online` use a synthetic table: 1,000,000 keys of 50 candidates with 64-bit ids. `online` joins the
packages data, publishes the table, and answers the same keys by look-up and by an online index. The server has one
core and the client another. Prints tables; writes results/serving.json as rows come in, with every repeat.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import lookups
import nearcast
import openloop
import servers
import tables
from nearcast import machine
from nearcast.publishing.copy_snapshot import Throttle, copy_snapshot
from nearcast.publishing.publish import publish_snapshot
from nearcast.publishing.snapshot_rows import read_shape
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.stores.base import Store
from nearcast.table.snapshot import Snapshot

RESULTS = Path(__file__).parent / "results" / "serving.json"
LUA = Path(__file__).parent / "requests.lua"
PARTS = ("load", "http", "lookup", "redis", "online")
LIBRARIES = ("faiss-cpu", "fastapi", "httptools", "lmdb", "numpy", "orjson", "redis", "uvicorn", "uvloop")
GENERATOR, ONLINE = "made-up", "packages"
TOMBSTONES = 10_000
CONNECTIONS = 32
ASKED = 100_000  # different requests over HTTP
CHECKED = 50
SEARCHED = 2_000  # different vectors: their JSON has 2 kB each
ENGINES = ("faiss-hnsw", "faiss-ivf")
RECALL = 0.95

console = Console(width=150)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the benchmark."""

    keys: int = 1_000_000
    k: int = 50
    items: int = 200_000
    loads: int = 3
    seconds: float = 0.7  # of a repeat in process
    http_seconds: float = 5.0  # of a repeat over HTTP
    repeats: int = 3
    packages: tuple[int, int] | None = None  # items and queries; all


QUICK = Scale(20_000, 50, 20_000, 1, 0.2, 0.7, 1, (10_000, 3_000))


@dataclass(slots=True)
class Bench:
    """One run of the benchmark: where things are, and the result so far."""

    scale: Scale
    given: argparse.Namespace
    folder: Path
    result: dict[str, Any]
    held: ExitStack
    server_core: int
    asking_core: int
    _snapshot: Snapshot | None = None
    _redis: servers.Server | None = None
    _published: set[str] = field(default_factory=set)

    @property
    def out(self) -> Path:
        """Where snapshots are."""
        return self.folder / "nearcast"

    @property
    def lmdb(self) -> str:
        """The store in a folder."""
        return f"lmdb:{self.out / 'store'}"

    @property
    def redis(self) -> servers.Server:
        """A Redis, started when it is first needed."""
        if self._redis is None:
            self._redis = self.held.enter_context(servers.redis_server(self.folder, self.server_core))
        return self._redis

    def redis_url(self, database: int) -> str:
        """The URL of one of its databases."""
        return f"redis://{servers.HERE}:{self.redis.port}/{database}"

    @property
    def snapshot(self) -> Snapshot:
        """The made-up table."""
        if self._snapshot is None:
            scale, started = self.scale, time.perf_counter()
            self._snapshot = tables.make_snapshot(
                self.out, GENERATOR, 1, n_keys=scale.keys, k=scale.k, n_items=scale.items
            )
            console.print(f"[dim]a table of {scale.keys:,} keys: made up in {time.perf_counter() - started:.1f} s")
        return self._snapshot

    def published(self, url: str) -> str:
        """The store of this URL with the made-up table in it."""
        if url not in self._published:
            publish(self.snapshot, url)
            self._published.add(url)
        return url

    def add(self, part: str, row: Row) -> None:
        """Keep a row, on disk too."""
        self.result["parts"].setdefault(part, []).append({**row, "load_average": os.getloadavg()[0]})
        save(self)


def publish(snapshot: Snapshot, url: str) -> Row:
    """The whole publish: files verified, audited, copied, read back, pointed at."""
    store = open_store(url)
    started, cpu = time.perf_counter(), time.process_time()
    done = publish_snapshot(snapshot, store, PublishSpec(), AuditSpec())
    row = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    store.close()
    return {**row, "copy_seconds": done.copy_seconds, "rules": len(done.findings)}


def bulk_load(snapshot: Snapshot, store: Store) -> Row:
    """Copy a snapshot as `publish` does and make it durable; then throw it away again."""
    shape = read_shape(snapshot)
    lists = {"until": 0.0}

    def progress(_stage: str, done: int, _total: int) -> None:
        if done <= shape.keys:
            lists["until"] = time.perf_counter()

    with store.lock(snapshot.generator):
        started, cpu = time.perf_counter(), time.process_time()
        writer = store.write(snapshot.generator, snapshot.version)
        copied = copy_snapshot(snapshot, shape, writer, Throttle(None), progress)
        writer.finish({"format": 1, "keys": copied.keys, "items": copied.items})
        seconds = time.perf_counter() - started
        row = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "lists_seconds": lists["until"] - started,
            "keys_per_second": copied.keys / seconds,
            "keys": copied.keys,
            "items": copied.items,
            "pairs_bytes": copied.bytes,
            "payload_bytes": copied.payload_bytes,
        }
        store.retire(snapshot.generator, snapshot.version)
    return row


def load_part(bench: Bench) -> None:
    """Bulk loads into both stores, whole publishes, and the size of the file."""
    for name, url, times in (
        ("lmdb", f"lmdb:{bench.folder / 'loads'}", bench.scale.loads),
        ("redis", bench.redis_url(3), min(2, bench.scale.loads)),
    ):
        store = open_store(url)
        repeats = [bulk_load(bench.snapshot, store) for _ in range(times)]
        store.close()
        row = {"store": name, "keys_per_second": statistics.median(r["keys_per_second"] for r in repeats)}
        bench.add("load", {**row, "repeats": repeats})
        console.print(f"[dim]bulk load into {name}: {row['keys_per_second']:,.0f} keys/s")
    flush(bench, 3)
    for name, url in (("lmdb", bench.lmdb), ("redis", bench.redis_url(0))):
        row = publish(bench.snapshot, url)
        bench._published.add(url)
        bench.add("publish", {"store": name, **row})
    payload = repeats[0]["payload_bytes"]
    size = (bench.out / "store" / GENERATOR / "versions" / "000001" / "data.mdb").stat().st_size
    bench.add("size", {"file_bytes": size, "payload_bytes": payload, "ratio": size / payload})


def flush(bench: Bench, database: int) -> None:
    """Empty a database of Redis."""
    import redis

    redis.Redis.from_url(bench.redis_url(database)).flushdb()


def lookup_part(bench: Bench) -> None:
    """Look-ups in process, under an empty overlay and under tombstones."""
    url, scale, keys = bench.published(bench.lmdb), bench.scale, tables.key_ids(bench.scale.keys)
    gone = np.random.default_rng(5).choice(tables.item_ids(scale.items), min(TOMBSTONES, scale.items), replace=False)
    with nearcast.overlay(url, GENERATOR) as overlay:
        for entries in (0, len(gone)):
            if entries:
                overlay.remove(gone.tolist())
            rows = servers.on_core(
                bench.server_core,
                lookups.table_lookups,
                url,
                GENERATOR,
                keys,
                entries,
                scale.seconds,
                scale.repeats,
            )
            for row in rows:
                bench.add("lookup", row)
        overlay.restore(gone.tolist())


def http_part(bench: Bench) -> None:
    """`nearcast serve` on one core, asked for one key at a time from the other."""
    url, rng = bench.published(bench.lmdb), np.random.default_rng(6)
    keys = tables.key_ids(bench.scale.keys)
    chosen = rng.choice(keys, min(ASKED, len(keys)), replace=False).tolist()
    paths = [f"/v1/generators/{GENERATOR}/candidates/{key}" for key in chosen]
    with servers.nearcast_server((GENERATOR, "--store", url), bench.folder, bench.server_core) as server:
        check_answers(server.port, paths, bench.scale.k)
        bench.add("http", {"call": "one key", **over_http(bench, server, paths, [openloop.get(p) for p in paths])})


def check_answers(port: int, paths: Sequence[str], k: int) -> None:
    """Stop if an answer is not a complete list of an existing key."""
    connection = http.client.HTTPConnection(servers.HERE, port)
    for path in paths[:CHECKED]:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read())
        if not answer["found"] or len(answer["candidates"]) != k:
            sys.exit(f"{path} is answered with {len(answer['candidates'])} candidates; found: {answer['found']}")
    connection.close()


def over_http(bench: Bench, server: servers.Server, lines: Sequence[str], requests: Sequence[bytes]) -> Row:
    """Measure the maximal request rate of a server, and the response times at half of it."""
    file = bench.folder / "requests.txt"
    file.write_text("\n".join(lines) + "\n")
    seconds, repeats = bench.scale.http_seconds, bench.scale.repeats
    wrk(bench, server.port, file, min(2.0, seconds))  # to warm up
    most = [with_cpu(server, wrk, bench, server.port, file, seconds) for _ in range(repeats)]
    rate = statistics.median(row["requests_per_second"] for row in most) / 2
    half = [
        with_cpu(
            server,
            servers.on_core,
            bench.asking_core,
            openloop.summary_of,
            server.port,
            requests,
            rate,
            2 * seconds,
            CONNECTIONS,
            seed,
        )
        for seed in range(repeats)
    ]
    return {
        "requests_per_second": 2 * rate,
        "cpu_seconds_per_million": statistics.median(row["cpu_seconds_per_million"] for row in most),
        "half": {name: statistics.median(row[name] for row in half) for name in ("p50_ms", "p99_ms")},
        "errors": sum(row["errors"] for row in (*most, *half)),
        "most_repeats": most,
        "half_repeats": half,
    }


def with_cpu(server: servers.Server, ask: Any, *arguments: Any) -> Row:
    """What asking came to, with the server's processor time per million requests."""
    before = server.cpu_seconds()
    row: Row = ask(*arguments)
    return {**row, "cpu_seconds_per_million": (server.cpu_seconds() - before) / max(1, row["requests"]) * 1e6}


def wrk(bench: Bench, port: int, file: Path, seconds: float) -> Row:
    """As many requests as there can be, by wrk on the other core."""
    program = shutil.which("wrk")
    if program is None:
        sys.exit("wrk is not installed (apt-get install wrk); leave the parts http and online out")
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(LUA)]
    command += [f"http://{servers.HERE}:{port}", "--", str(file), "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: servers.hold(bench.asking_core)
    )
    if done.returncode != 0:
        sys.exit(f"wrk failed: {done.stderr}{done.stdout}")
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return {**row, "requests_per_second": row["requests"] / row["seconds"]}


def redis_part(bench: Bench) -> None:
    """The same table in plain Redis by redis-py, and through our store in Redis."""
    scale, keys, plain = bench.scale, tables.key_ids(bench.scale.keys), bench.redis_url(1)
    store = open_store(bench.published(bench.lmdb))
    reader = store.open(GENERATOR, 1, verify=False)
    bench.add("redis", {"call": "SET, pipelined", **lookups.fill_redis(plain, reader)})
    reader.close()
    store.close()
    arguments = (keys, bench.redis.pid, scale.seconds, scale.repeats)
    for row in servers.on_core(bench.asking_core, lookups.plain_redis, plain, *arguments):
        bench.add("redis", {"by": "redis-py", **row})
    url = bench.published(bench.redis_url(0))
    for row in servers.on_core(bench.asking_core, lookups.redis_lookups, url, GENERATOR, *arguments):
        bench.add("redis", {"by": "nearcast", **row})
    flush(bench, 1)


def online_part(bench: Bench) -> None:
    """The same keys by look-up and by online index, in process and over HTTP."""
    if bench.given.data is None or not (bench.given.data / "items.parquet").is_file():
        sys.exit("the part online needs --data, a folder with items.parquet and queries.parquet")
    spec = packages_spec(bench)
    started = time.perf_counter()
    outcome = nearcast.run(spec)
    publish(outcome.snapshot, bench.lmdb)
    measures = outcome.snapshot.manifest.measures
    table = {name: measures[name] for name in ("recall", "recall_low", "recall_high")}
    bench.add("table", {"seconds": time.perf_counter() - started, "keys": outcome.snapshot.n_rows, **table})
    wanted = bench.folder / "wanted.npz"
    keys, vectors = some_queries(spec, outcome.snapshot)
    np.savez(wanted, keys=np.array(keys), vectors=vectors)
    for engine in ENGINES:
        bench.add("open", open_index(spec, bench.out, engine))
    scale = bench.scale
    rows = servers.on_core(
        bench.server_core,
        lookups.same_keys,
        bench.lmdb,
        spec,
        bench.out,
        ENGINES,
        RECALL,
        wanted,
        scale.seconds,
        scale.repeats,
    )
    for row in rows:
        bench.add("online", row)
    paths = [f"/v1/generators/{ONLINE}/candidates/{quote(key, safe='')}" for key in keys]
    bodies = [json.dumps({"vectors": [row.tolist()], "k": scale.k}) for row in vectors[:SEARCHED]]
    at = f"/v1/generators/{ONLINE}/search"
    for engine in ENGINES:
        words = (ONLINE, "--store", bench.lmdb, "--out", bench.out, "--online", spec, "--online-engine", engine)
        with servers.nearcast_server(words, bench.folder, bench.server_core) as server:
            if engine == ENGINES[0]:
                check_answers(server.port, paths, scale.k)
                row = over_http(bench, server, paths, [openloop.get(path) for path in paths])
                bench.add("online_http", {"by": "look-up", **row})
            lines = [f"{at}\t{body}" for body in bodies]
            row = over_http(bench, server, lines, [openloop.post(at, body.encode()) for body in bodies])
            bench.add("online_http", {"by": engine, **row})
    bench.result["answer"] = answer(bench.result["parts"])
    save(bench)


def packages_spec(bench: Bench) -> Path:
    """The spec of the packages generator; of a part of its rows where so much is too much."""
    data = bench.given.data.absolute()
    if bench.scale.packages is not None:
        small = bench.folder / "packages"
        small.mkdir(exist_ok=True)
        for side, n in zip(("items", "queries"), bench.scale.packages, strict=True):
            pq.write_table(pq.read_table(data / f"{side}.parquet").slice(0, n), small / f"{side}.parquet")
        data = small
    spec = bench.folder / "packages.toml"
    spec.write_text(
        f'name = "{ONLINE}"\nmetric = "inner_product"\nk = {bench.scale.k}\nrecall = {RECALL}\nout = "nearcast"\n'
        f'[items]\npath = "{data}/items.parquet"\n[queries]\npath = "{data}/queries.parquet"\n'
        f"[serve]\nonline_recall = {RECALL}\n"
    )
    return spec


def some_queries(spec: Path, snapshot: Snapshot) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Random keys of the table with their vectors."""
    source = nearcast.load_spec(spec).query_source
    queries = pq.read_table(source.path, columns=["id", "vector"])
    rows = np.random.default_rng(8).choice(len(queries), min(20_000, snapshot.n_rows), replace=False)
    chosen = queries.take(pa.array(rows))
    flat = chosen["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return chosen["id"].to_pylist(), flat.reshape(len(chosen), -1).astype(np.float32)


def open_index(spec: Path, out: Path, engine: str) -> Row:
    """Build an online index, then open it again as a restart would."""
    from nearcast.join.online_index import open_online

    parsed, seconds = nearcast.load_spec(spec), []
    for _ in range(2):
        started = time.perf_counter()
        online = open_online(parsed, spec.parent, out, engine=engine, recall=RECALL)
        seconds.append(time.perf_counter() - started)
    reached = None if online.reached is None else [online.reached.low, online.reached.value, online.reached.high]
    return {"by": engine, "build_seconds": seconds[0], "open_seconds": seconds[1], "recall": reached}


def answer(parts: dict[str, list[Row]]) -> Row:
    """How many times cheaper a look-up is, in processor seconds per million requests, one key or vector at a time."""
    found: Row = {}
    for place, rows, call in (("in process", parts["online"], "search"), ("over HTTP", parts["online_http"], None)):
        cost = {row["by"]: row["cpu_seconds_per_million"] for row in rows if call is None or row["call"] == call}
        cost.update({row["by"]: row["cpu_seconds_per_million"] for row in rows if row.get("call") == "get"})
        times = {engine: cost[engine] / cost["look-up"] for engine in ENGINES}
        found[place] = {"cpu_seconds_per_million": cost, "times_cheaper": times}
    return found


def show(result: dict[str, Any]) -> None:
    """Print what there is."""
    parts = result["parts"]
    draw("Bulk load, to the last byte on disk", parts.get("load", []), ("store", "keys_per_second"))
    draw("A whole publish", parts.get("publish", []), ("store", "seconds", "copy_seconds", "cpu_seconds"))
    draw("Size of the file", parts.get("size", []), ("file_bytes", "payload_bytes", "ratio"))
    times = ("keys_per_second", "cpu_seconds_per_million", "p50_us", "p99_us")
    draw("Look-ups in process, one core", parts.get("lookup", []), ("call", "batch", "keys", "overlay", *times))
    over = ("requests_per_second", "cpu_seconds_per_million", "half.p50_ms", "half.p99_ms", "errors")
    draw("Over HTTP, one core", parts.get("http", []), ("call", *over))
    draw("The same table in Redis", parts.get("redis", []), ("by", "call", "batch", *times[:2], "of_which_server"))
    draw("Making an online index", parts.get("open", []), ("by", "build_seconds", "open_seconds"))
    draw("The same keys in process", parts.get("online", []), ("by", "call", "batch", "recall", *times))
    draw("The same keys over HTTP", parts.get("online_http", []), ("by", *over))
    for place, found in result.get("answer", {}).items():
        words = " and ".join(f"{times:.0f} times cheaper than {by}" for by, times in found["times_cheaper"].items())
        costs = ", ".join(f"{by} {cost:,.1f}" for by, cost in found["cpu_seconds_per_million"].items())
        console.print(f"[bold]A look-up {place} is {words}[/] (processor seconds per million: {costs})")


def draw(title: str, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """One table, without columns that no row has."""
    if not rows:
        return
    console.print(f"[bold]{title}")
    table = Table()
    filled = [name for name in columns if any(_cell(row, name) for row in rows)]
    for name in filled:
        table.add_column(name.replace("_", " "), justify="left" if name in ("by", "call", "store") else "right")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in filled))
    console.print(table)


def _cell(row: Row, name: str) -> str:
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def save(bench: Bench) -> None:
    """Write what is known so far."""
    bench.result["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    bench.given.results.parent.mkdir(exist_ok=True)
    bench.given.results.write_text(json.dumps(bench.result, indent=1) + "\n")


def commit() -> str:
    """Of this checkout, and whether it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet and queries.parquet, for the part online")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="seconds on small data: to see that the script works")
    parser.add_argument("--folder", type=Path, help="work here, and keep it; online indexes there are used again")
    parser.add_argument("--results", type=Path, help="file to write; results/serving.json, or serving-quick.json")
    parser.add_argument("--show", action="store_true", help="print what was saved, and measure nothing")
    given = parser.parse_args()
    given.results = given.results or (RESULTS.with_name("serving-quick.json") if given.quick else RESULTS)
    return given


def main() -> None:
    given = parse()
    if given.show:
        show(json.loads(given.results.read_text()))
        return
    scale = QUICK if given.quick else Scale()
    server_core, asking_core = servers.cores()
    with ExitStack() as held:
        folder = given.folder or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nearcast-serving-")))
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {
            "machine": machine.describe(),
            "cores": {"of what is measured": server_core, "of whoever asks": asking_core},
            "libraries": {name: version(name) for name in LIBRARIES},
            "commit": commit(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "load_average": os.getloadavg(),
            "command": sys.argv[1:],
            "data": {"keys": scale.keys, "k": scale.k, "items": scale.items, "ids": "int64", "tombstones": TOMBSTONES},
            "warm_up": "all keys are read once before look-ups; one repeat, or two seconds over HTTP, is not counted",
            "parts": {},
        }
        bench = Bench(scale, given, folder.absolute(), result, held, server_core, asking_core)
        parts = {
            "load": load_part,
            "http": http_part,
            "lookup": lookup_part,
            "redis": redis_part,
            "online": online_part,
        }
        for name in PARTS:
            if name in given.parts:
                started = time.perf_counter()
                parts[name](bench)
                console.print(f"[dim]{name}: {time.perf_counter() - started:.0f} s")
        save(bench)
    show(result)
    console.print(f"[dim]written to {given.results}")


if __name__ == "__main__":
    main()
