"""Canaries in real processes: a service, load on it, and a watcher that promotes or withdraws by the rules."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.service import running, until

from nearcast.history.event_log import read
from nearcast.publishing.move_canary import start_canary
from nearcast.stores import open_store
from published import load, publish

pytestmark = pytest.mark.slow  # real processes under load, some seconds each

KEYS = 2_000
VERSION = 10_000_000  # an item of version n is n * VERSION + key * 1000 + rank
PATIENCE = 180.0
RULES = {"min_answers": 400, "decide_after": 1, "max_seconds": 50, "max_empty_increase": 0.02, "max_latency_ratio": 50}


def lists_of(version: int) -> dict[int, list[tuple[int, float]]]:
    return {key: [(version * VERSION + key * 1000 + rank, 5.0 - rank) for rank in range(5)] for key in range(KEYS)}


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    if request.param == "lmdb":
        return f"lmdb:{tmp_path / 'store'}"
    return request.getfixturevalue("redis_url") + "?buckets=16"


@pytest.fixture
def folder(tmp_path):
    """A folder whose spec has quick rules. No test looks for its tables."""
    at.write_spec(tmp_path, canary=RULES)
    (tmp_path / "nearcast").mkdir()  # for the history
    return tmp_path


@contextlib.contextmanager
def canary_of(url: str, lists: dict, share: float = 0.5, mode: str = "canary") -> Iterator[object]:
    """A store with version 1, and version 2 with these lists as its canary."""
    with contextlib.closing(open_store(url)) as store:
        publish(store, "shop", 1, lists_of(1))
        load(store, "shop", 2, lists)
        with store.lock("shop") as lock:
            start_canary(store, "shop", store.pointer("shop"), 2, (mode, share), lock)
        yield store


def names_its_version(answer: dict) -> bool:
    """Whether the items are those of the version that the answer names, or of version 1, which version 2 shares."""
    return {candidate["id"] // VERSION for candidate in answer["candidates"]} <= {int(answer["snapshot"]), 1}


@contextlib.contextmanager
def load_on(service, keys=range(KEYS), is_whole=names_its_version) -> Iterator[None]:
    """Look-ups of single keys and of batches, until the end; every answer must be of one version."""
    stop, problems = threading.Event(), []

    def ask() -> None:
        try:
            with httpx.Client(base_url=service.url, timeout=PATIENCE, trust_env=False) as client:
                while not stop.is_set():
                    for start in range(0, KEYS, 20):
                        body = {"keys": list(keys[start : start + 20])}
                        answers = client.post("/v1/generators/shop/candidates", json=body).json()["answers"]
                        one = client.get(f"/v1/generators/shop/candidates/{keys[start]}").json()
                        assert all(map(is_whole, (*answers, one))), (answers, one)
                        if stop.is_set():
                            return
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not problems, problems[0]


def watch(folder: Path, url: str, service, *words: object) -> at.Finished:
    command = ("canary", "shop.toml", "--watch", "--every", "0.2", "--service", service.url, "--store", url, "--json")
    return at.nearcast(*command, *words, cwd=folder)


def empty_tenth() -> dict:
    return {key: [] if key % 10 == 0 else row for key, row in lists_of(1).items()}


def other_items(kept: int) -> dict:
    """Lists of which this many of the five candidates are those of version 1."""
    mixed = {}
    for key, row in lists_of(1).items():
        mixed[key] = row[:kept] + [(item + VERSION, score) for item, score in row[kept:]]
    return mixed


@pytest.mark.parametrize(
    ("lists", "rule"),
    [(empty_tenth(), "max_empty_increase"), (other_items(1), "min_overlap")],
    ids=["empty", "overlap"],
)
def test_a_canary_with_a_fault_is_withdrawn_by_the_rules(url, folder, lists, rule):
    with canary_of(url, lists) as store, running(folder / "run", "shop", "--store", url) as service:
        with load_on(service):
            done = watch(folder, url, service)
        assert done.returncode == 17, done.stderr
        assert "the canary of shop is withdrawn" in done.stderr
        told = json.loads(done.stdout)
        assert told["outcome"] == "withdrawn"
        assert rule in told["why"]
        pointer = store.pointer("shop")
        assert (pointer.version, pointer.canary, pointer.withdrawn) == (1, None, (2,))
        assert pointer.events[-1].kind == "canary_withdrawn"
        assert rule in pointer.events[-1].note
        until(lambda: service.get("/v1/generators/shop/canary").json()["canary"] is None)
        events = read(folder / "nearcast", "shop", ["canary"])
        assert [event.facts["outcome"] for event in events] == ["withdrawn"]


def test_a_healthy_canary_is_published_and_promoted_by_the_rules(url, tmp_path):
    at.write_items(tmp_path, at.clustered(at.N_ITEMS, seed=1))
    queries = [f"q{i:04d}" for i in range(KEYS)]
    at.write_rows(tmp_path / "queries.parquet", queries, list(at.clustered(KEYS, seed=2)))
    at.write_spec(tmp_path, canary=RULES, measure={"sample": 50})
    at.succeed("run", "shop.toml", cwd=tmp_path)
    at.succeed("publish", "shop.toml", "--store", url, cwd=tmp_path)
    at.write_items(tmp_path, at.clustered(at.N_ITEMS, seed=1) * np.float32(1.5))  # cosine: the same lists
    at.succeed("run", "shop.toml", cwd=tmp_path)
    done = at.succeed("publish", "shop.toml", "--canary", "50%", "--store", url, cwd=tmp_path)
    assert "is a canary" in done.stdout
    with contextlib.closing(open_store(url)) as store, running(tmp_path / "run", "shop", "--store", url) as service:
        counted = 'nearcast_canary_answers_total{arm="canary",generator="shop"}'
        with load_on(service, queries, lambda answer: int(answer["snapshot"]) in (1, 2)):
            until(lambda: counted in service.get("/metrics").text)
            assert service.metric('nearcast_canary_share{generator="shop"}') == 0.5
            shown = at.succeed("canary", "shop.toml", "--service", service.url, "--store", url, cwd=tmp_path)
            assert "canary 000002 beside 000001" in shown.stdout
            done = watch(tmp_path, url, service)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["report"]["figures"]["canary"]["answers"] >= RULES["min_answers"]
        assert (store.pointer("shop").version, store.pointer("shop").canary) == (2, None)
        until(lambda: service.get("/v1/generators/shop").json()["version"] == 2)
        events = read(tmp_path / "nearcast", "shop", ["canary", "publish"])
        outcomes = [(event.kind, event.facts["outcome"]) for event in events]
        assert outcomes[1:] == [("canary", "started"), ("canary", "promoted"), ("publish", "published")]


def test_two_services_are_added_and_workers_count_each(folder, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(canary_of(url, empty_tenth(), 1.0, "shadow"))
        one = stack.enter_context(running(folder / "one", "shop", "--store", url, "--workers", "2"))
        two = stack.enter_context(running(folder / "two", "shop", "--store", url))
        for service in (one, two):
            stack.enter_context(load_on(service))
        command = ("--watch", "--every", "0.2", "--service", one.url, "--service", two.url, "--store", url, "--json")
        done = at.nearcast("canary", "shop.toml", *command, cwd=folder)
        assert done.returncode == 17, done.stderr


def test_a_watcher_that_is_killed_changes_nothing_and_the_next_one_decides(folder, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    with canary_of(url, empty_tenth()) as store, running(folder / "run", "shop", "--store", url) as service:
        before = store.pointer("shop")
        command = [at.NEARCAST, "canary", "shop.toml", "--watch", "--service", service.url, "--store", url]
        for _ in range(2):
            with subprocess.Popen(command, cwd=folder, env=at.environment(), stderr=subprocess.PIPE, text=True) as died:
                assert "wait" in died.stderr.readline()
                died.send_signal(signal.SIGKILL)
        assert store.pointer("shop") == before
        with load_on(service):
            assert watch(folder, url, service).returncode == 17


def test_two_watchers_end_one_canary_once(folder, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    with canary_of(url, empty_tenth()) as store, running(folder / "run", "shop", "--store", url) as service:
        command = [at.NEARCAST, "canary", "shop.toml", "--watch", "--every", "0.1", "--service", service.url]
        command += ["--store", url]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        watchers = [subprocess.Popen(command, cwd=folder, env=at.environment(), **pipes) for _ in range(2)]
        for watcher in watchers:
            assert "wait" in watcher.stderr.readline()  # both have found it
        with load_on(service):
            for watcher in watchers:
                watcher.communicate(timeout=PATIENCE)
        assert [watcher.returncode for watcher in watchers] == [17, 17]
        kinds = [event.kind for event in store.pointer("shop").events]
        assert kinds.count("canary_withdrawn") == 1


def test_too_little_load_is_undecided_and_the_canary_stays(folder, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    at.write_spec(folder, canary=RULES | {"max_seconds": 0.5})
    with canary_of(url, empty_tenth()) as store, running(folder / "run", "shop", "--store", url) as service:
        done = watch(folder, url, service)
        assert done.returncode == 18, done.stderr
        assert "the canary of shop is live and undecided" in done.stderr
        assert store.pointer("shop").canary is not None


def test_engagement_decides_where_the_lists_look_alike(folder, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    with canary_of(url, other_items(3), 1.0, "shadow") as store, running(folder, "shop", "--store", url) as service:
        lost = [{"user": key, "product": str(row[4][0])} for key, row in lists_of(1).items()]
        pq.write_table(pa.Table.from_pylist(lost), folder / "clicks.parquet")
        words = ("--engagement", "clicks.parquet", "--key", "user", "--item", "product")
        with load_on(service):
            done = watch(folder, url, service, *words)
        assert done.returncode == 17, done.stderr
        assert "min_hit_ratio" in json.loads(done.stdout)["why"]
        assert store.pointer("shop").version == 1


@pytest.mark.parametrize("seconds", [0.8, 1.6, 2.4])
def test_a_publish_that_is_killed_has_started_a_canary_or_has_not(tmp_path, seconds):
    url = f"lmdb:{tmp_path / 'store'}"
    at.write_shop(tmp_path, publish={"max_bytes_per_second": "20KB"})  # so that copying is most of the time
    at.succeed("run", "shop.toml", cwd=tmp_path)
    at.succeed("run", "shop.toml", "--again", cwd=tmp_path)
    at.succeed("publish", "shop.toml", 1, "--max-bytes-per-second", "1GB", "--store", url, cwd=tmp_path)
    command = [at.NEARCAST, "publish", "shop.toml", "--canary", "5%", "--store", url]
    with subprocess.Popen(command, cwd=tmp_path, env=at.environment(), stderr=subprocess.DEVNULL) as died:
        with contextlib.suppress(subprocess.TimeoutExpired):
            died.wait(seconds)
        died.kill()
    with contextlib.closing(open_store(url)) as store:
        pointer = store.pointer("shop")
        assert pointer.version == 1
        assert pointer.canary is None or pointer.canary.version == 2
        at.succeed(*command[1:], "--max-bytes-per-second", "1GB", cwd=tmp_path)
        assert store.pointer("shop").canary.version == 2
