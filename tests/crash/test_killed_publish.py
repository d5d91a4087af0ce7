"""Publishes that are killed at random moments: every answer meanwhile belongs wholly to one snapshot."""

from __future__ import annotations

import contextlib
import json
import random
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from tests.crash.processes import SERVER
from tests.crash.publisher import publish, read
from tests.end_to_end import shop as at
from tests.servers import redis_server, redis_url  # noqa: F401 (fixtures)

import nearcast
from nearcast.errors import BusyError
from nearcast.publishing.publication import Publication
from nearcast.publishing.write_version import read_back
from nearcast.stores import open_store
from nearcast.stores.base import Reader, Store
from nearcast.stores.version_facts import VersionFacts

READERS = 4
SLOW = [("lmdb", 30), ("redis", 8), ("cluster", 6), ("sentinel", 6), ("dynamodb", 5)]
N_QUERIES, N_ITEMS = 3_000, 500
FEW = 100  # queries and items: the DynamoDB for tests takes some milliseconds for each
PATIENCE = 120.0  # seconds; what is waited for takes far less


def write_versions(folder: Path, n_queries: int = N_QUERIES, n_items: int = N_ITEMS) -> Path:
    """The snapshots 1 and 2 of a shop, whose items are called 1-... and 2-...; the store keeps one version."""
    queries = at.clustered(n_queries, seed=2)
    at.write_rows(folder / "queries.parquet", [f"q{i:04d}" for i in range(n_queries)], list(queries))
    spec = at.write_spec(
        folder,
        k=20,
        items={"path": "items.parquet"},
        publish={"keep": 1, "max_bytes_per_second": "5MB"},  # so that copying is most of what a publish does
        audit={"min_overlap": 0.0, "min_items_kept": 0.0},
        measure={"sample": 50},
    )
    for version in (1, 2):
        vectors = at.clustered(n_items, seed=1).astype(np.float32)
        at.write_rows(folder / "items.parquet", [f"{version}-{i}" for i in range(n_items)], list(vectors))
        nearcast.run(spec)
    return spec


def facts_of(reader: Reader) -> VersionFacts:
    return VersionFacts.from_json(reader.facts, "the version")


def start_readers(store: str, folder: Path, n_queries: int) -> list[ForkServerProcess]:
    keys = [f"q{i:04d}" for i in range(0, n_queries, 30)]
    readers = [
        SERVER.Process(target=read, args=(store, keys, folder / "stop", folder / f"reader-{n}")) for n in range(READERS)
    ]
    for reader in readers:
        reader.start()
    return readers


def reports(folder: Path, readers: list[ForkServerProcess]) -> list[dict]:
    """What the readers have seen, after they were told to stop."""
    (folder / "stop").touch()
    for reader in readers:
        reader.join(PATIENCE)
    return [json.loads((folder / f"reader-{n}").read_text()) for n in range(READERS)]


def check_whole(store: Store) -> int:
    """The current version, after a look at every pair of it."""
    pointer = store.pointer("shop")
    with contextlib.closing(store.open("shop", pointer.version, verify=True)) as reader:
        read_back(reader, facts_of(reader), "the current version", lambda *_: None)
    return pointer.version


def publish_when_free(spec: Path, version: int, store: str) -> Publication:
    """Publish; a dead publisher's lock may have to run out first."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return nearcast.publish(spec, version, store=store)
        except BusyError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("lmdb", 14), *(pytest.param(kind, kills, marks=pytest.mark.slow) for kind, kills in SLOW)],
)
def test_a_publish_killed_at_random_moments_shows_every_reader_one_whole_snapshot(
    tmp_path: Path, kind: str, kills: int, request: pytest.FixtureRequest
) -> None:
    n_queries, n_items = (FEW, FEW) if kind == "dynamodb" else (N_QUERIES, N_ITEMS)
    spec = write_versions(tmp_path, n_queries, n_items)
    url = f"lmdb:{tmp_path}/store" if kind == "lmdb" else make_url(kind, request)
    nearcast.publish(spec, 1, store=url)
    lasts = lasting(spec, url)
    readers = start_readers(url, tmp_path, n_queries)
    moments, killed, moved = random.Random(11), 0, 0
    with contextlib.closing(open_store(url)) as store:
        while killed < kills:
            before = check_whole(store)
            publisher = SERVER.Process(target=publish, args=(spec, 3 - before, url))
            publisher.start()
            publisher.join(moments.uniform(0.0, 1.2) * lasts)
            if publisher.is_alive():
                publisher.kill()
                killed += 1
            publisher.join()
            moved += check_whole(store) != before
            assert all(reader.is_alive() for reader in readers), reports(tmp_path, readers)
            if kind != "lmdb" or killed % 3 == 0:  # and now and then one is let through
                publish_when_free(spec, 3 - check_whole(store), url)
                moved += 1
        last = 3 - check_whole(store)
        publish_when_free(spec, last, url)
        assert check_whole(store) == last
        assert store.versions("shop") == [last]
    for seen in reports(tmp_path, readers):
        assert seen["error"] is None, seen["error"]
        assert set(seen["seen"]) == {"1", "2"}
        assert seen["changes"] > 3
    assert moved > kills // 6
    if kind == "lmdb":
        assert [path.name for path in (tmp_path / "store" / "shop" / "versions").iterdir()] == [f"00000{last}"]


def make_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of a network kind, whose lock lasts four of its timeouts."""
    if kind == "dynamodb":  # whose server for tests answers one request at a time, and a load sends 16 at once
        return f"{request.getfixturevalue('dynamodb_url')}&timeout=4&buckets=8"
    fixture = {"redis": "redis_url", "cluster": "cluster_url", "sentinel": "sentinel_url"}[kind]
    return f"{request.getfixturevalue(fixture)}?timeout=0.5&buckets=32"


def lasting(spec: Path, url: str) -> float:
    """Seconds that a publish in a process of its own takes; ends with version 1 as the current one."""
    times = []
    for version in (2, 1):
        began = time.monotonic()
        process = SERVER.Process(target=publish, args=(spec, version, url))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        times.append(time.monotonic() - began)
    return min(1.0, *times)  # the first one also started the server of processes; a machine may be busy


def test_a_reader_that_holds_the_old_version_goes_on_through_three_publishes(tmp_path: Path) -> None:
    spec = write_versions(tmp_path)
    url = f"lmdb:{tmp_path}/store"
    nearcast.publish(spec, 1, store=url)
    with contextlib.closing(open_store(url)) as store, contextlib.closing(store.open("shop", 1, verify=True)) as reader:
        for version in (2, 1, 2):  # the store keeps one: what the reader holds is taken away at once
            nearcast.publish(spec, version, store=url)
            read_back(reader, facts_of(reader), "the version that is held", lambda *_: None)
        assert store.versions("shop") == [2]
