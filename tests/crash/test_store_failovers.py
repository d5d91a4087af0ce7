"""Redis in groups: slots move and primaries fail while a reader and a publisher run. No answer mixes two versions, and
no key is missing; what cannot be answered is an error."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import nearcast
from nearcast.errors import NearcastError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, PatchFacts, Space, Store
from nearcast.stores.value_format import decode_list, encode_key
from published import publish
from redis_groups import cluster_running, sentinels_running

SHOP = "shop"
KEYS = list(range(300))
PATIENCE = 180.0
BUCKETS = 64


def lists(version: int) -> dict[int, list[tuple[int, float]]]:
    """The lists of a version: its items tell which version they are of."""
    return {key: [(1000 * version + key % 50, 1.0)] for key in KEYS}


class ReaderThread:
    """Looks all keys up for as long as the test lasts, and checks every answer."""

    def __init__(self, store: Store) -> None:
        self.answers, self.errors, self.wrong = 0, [], []
        self.versions: set[int] = set()
        self._stop = threading.Event()
        self._lookup = nearcast.open(store, SHOP, refresh_seconds=0.02)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> ReaderThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._lookup.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._lookup.get_many(KEYS)
                one = self._lookup.get(KEYS[7])
            except NearcastError as error:
                self.errors.append(str(error))
                continue
            seen = {item // 1000 for item in found.ids.to_pylist()}
            if not found.found.all() or not one.found or len(seen) != 1:
                self.wrong.append((seen, int(found.found.sum()), one.found))
            self.versions |= seen
            self.answers += 1

    def wait_for_answers(self, count: int = 3) -> None:
        """Wait until it has answered so many times more."""
        before, end = self.answers, time.monotonic() + PATIENCE
        while self.answers < before + count:
            assert time.monotonic() < end, self.errors[-1:]
            time.sleep(0.01)


@contextlib.contextmanager
def opened(url: str, **settings: object) -> Iterator[Store]:
    query = "&".join(f"{name}={value}" for name, value in {"buckets": BUCKETS, **settings}.items())
    with contextlib.closing(open_store(f"{url}?{query}")) as store:
        yield store


def publish_until(done: Callable[[], bool], store: Store) -> int:
    """Publish version 2, 3 and so on until something holds, and once more. Returns the last version."""
    version, end = 1, time.monotonic() + PATIENCE
    while True:
        is_last = done()
        with contextlib.suppress(NearcastError):  # a publisher may fail when the primary does; the next one goes on
            publish(store, SHOP, version + 1, lists(version + 1))
            version += 1
            if is_last:
                return version
        assert time.monotonic() < end


def test_slots_move_while_a_reader_and_a_publisher_run(redis_cluster, cluster_url):
    with opened(cluster_url) as store, opened(cluster_url) as other:
        publish(store, SHOP, 1, lists(1))
        moved = threading.Event()

        def move() -> None:
            from redis.crc import key_slot

            pairs = [f"nearcast:{SHOP}:v:1:{number}".encode() for number in range(20)]
            for slot in {key_slot(b"shop"), *map(key_slot, pairs)}:
                owner = redis_cluster.owner(slot)
                redis_cluster.move_slot(slot, (owner + 1) % 3, pause=0.01)
            moved.set()

        mover = threading.Thread(target=move)
        with ReaderThread(other) as reader:
            reader.wait_for_answers()
            mover.start()
            last = publish_until(moved.is_set, store)
            mover.join()
            reader.wait_for_answers()
        assert (reader.wrong, reader.errors) == ([], [])
        assert len(reader.versions) > 1
        assert store.pointer(SHOP).version == last


def test_a_slot_whose_keys_are_on_two_nodes_is_read_and_written(redis_cluster, cluster_url):
    from redis.crc import key_slot

    with opened(cluster_url) as store:
        publish(store, SHOP, 1, lists(1))
        reader = store.open(SHOP, 1, verify=True)
        load = reader.unpatched._load
        half = [f"{load.prefix_of(Space.LISTS)}{number}" for number in range(0, BUCKETS, 2)]
        for name in half:  # each has a slot of its own: its key is moved, and the slot is not handed over
            slot = key_slot(name.encode())
            source = redis_cluster.owner(slot)
            target = (source + 1) % 3
            redis_cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", redis_cluster.id_of(source))
            redis_cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", redis_cluster.id_of(target))
            port = redis_cluster.nodes[target].port
            redis_cluster.ask(source, "MIGRATE", "127.0.0.1", port, name, 0, 5000)
        try:
            found = reader.get_many(Space.LISTS, [encode_key(key) for key in KEYS])
            assert [decode_list(value)[0] for value in found] == [[1000 + key % 50] for key in KEYS]
            assert len(list(reader.pairs(Space.LISTS))) == len(KEYS)
            store.retire(SHOP, 1)
        finally:
            for name in half:
                slot = key_slot(name.encode())
                for number in range(3):
                    redis_cluster.ask(number, "CLUSTER", "SETSLOT", slot, "STABLE")
            redis_cluster.clear()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_node_of_a_cluster_fails_while_a_reader_and_a_publisher_run(tmp_path, how):
    from redis.crc import key_slot

    with cluster_running(tmp_path, replicas=1) as cluster, opened(cluster.url, timeout=3) as store:
        publish(store, SHOP, 1, lists(1))
        store.overlay(SHOP).write([OverlayEntry("gone", None, True, 0.0)])
        with opened(cluster.url, timeout=3) as other, ReaderThread(other) as reader:
            reader.wait_for_answers()
            slot = key_slot(b"shop")  # of the pointer, the lock and the overlay
            failing = cluster.owner(slot)
            os.kill(cluster.nodes[failing].pid, how)
            survivor, port = (failing + 1) % 3, cluster.nodes[failing].port
            last = publish_until(lambda: _owner_port(cluster, survivor, slot) != port, store)
            reader.wait_for_answers(10)
        assert reader.wrong == []
        assert last in reader.versions
        assert all("127.0.0.1" in error for error in reader.errors), reader.errors
        assert [entry.item for entry in store.overlay(SHOP).changes().entries] == ["gone"]
        os.kill(cluster.nodes[failing].pid, signal.SIGCONT)


def _owner_port(cluster, asked: int, slot: int) -> int:
    """The port of the primary of a slot, as a node sees it."""
    rows = cluster.ask(asked, "CLUSTER", "SLOTS")
    return next(primary[1] for first, last, primary, *_ in rows if first <= slot <= last)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_primary_behind_sentinels_fails_while_a_reader_and_a_publisher_run(tmp_path, how):
    with sentinels_running(tmp_path) as group, opened(group.url, timeout=3) as store:
        publish(store, SHOP, 1, lists(1))
        store.overlay(SHOP).write([OverlayEntry("gone", None, True, 0.0)])
        with opened(group.url, timeout=3) as other, ReaderThread(other) as reader:
            reader.wait_for_answers()
            os.kill(group.primary.pid, how)
            last = publish_until(lambda: group.primary_port() == group.replica.port, store)
            reader.wait_for_answers(10)
        assert reader.wrong == []
        assert last in reader.versions
        assert [entry.item for entry in store.overlay(SHOP).changes().entries] == ["gone"]
        os.kill(group.primary.pid, signal.SIGCONT)


@pytest.mark.slow
def test_patches_go_on_while_slots_of_a_cluster_move(redis_cluster, cluster_url):
    """A patch is in force for a whole call, or not at all."""
    from redis.crc import key_slot

    with opened(cluster_url) as store:
        publish(store, SHOP, 1, lists(1))
        keys = [encode_key(key) for key in KEYS]
        stop = threading.Event()

        def move() -> None:
            for number in range(30):
                slot = key_slot(b"shop" if number % 3 == 0 else b"%d" % number)
                redis_cluster.move_slot(slot, (redis_cluster.owner(slot) + 1) % 3)
            stop.set()

        mover = threading.Thread(target=move)
        with contextlib.closing(store.open(SHOP, 1, verify=True)) as reader, store.lock(SHOP) as lock:
            mover.start()
            number = 0
            while not stop.is_set() or number < 20:
                number += 1
                log = store.patches(SHOP)
                log.write(
                    PatchFacts(number, 1, "", 0.0, {"lists": len(keys)}),
                    {Space.LISTS: [(key, b"%d" % number) for key in keys]},
                    lock,
                )
                assert set(reader.get_many(Space.LISTS, keys)) == {b"%d" % number}
            mover.join()
