"""The LMDB overlay when its file is not as it was written: errors that name it, no wrong entry, and the way back."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import lmdb
import pytest

import nearcast
from nearcast.errors import DamagedError, NearcastError, StoreError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, Space
from nearcast.stores.lmdb_pages import check_pages, read_tree, salvage_pairs
from published import load, point, publish

SHOP = "shop"
PAGE = 4096
LISTS = {key: [(1000 + key % 50, 1.0), (2000 + key, 0.5)] for key in range(100)}


@pytest.fixture
def store(tmp_path) -> Iterator:
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as opened:
        yield opened


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "store" / SHOP / "overlay" / "data.mdb"


def removal(item, note=""):
    return OverlayEntry(item, None, True, written=time.time(), note=note)


def filled(store, count=200):
    log = store.overlay(SHOP)
    log.write([removal(1000 + number, "because " * 5) for number in range(count)])
    log.write([OverlayEntry(1003, "price", 5, written=time.time())])
    return log


def test_a_byte_that_changed_in_an_entry_is_an_error_and_the_journal_brings_the_entry_back(store, data):
    log = filled(store)
    content = data.read_bytes()
    assert b"because" in content
    data.write_bytes(content.replace(b'"value": true', b'"value": null'))  # still an entry, and a wrong one
    with pytest.raises(DamagedError, match=r"data\.mdb holds another entry .* heal it with publish --repair"):
        log.changes()
    assert "201 entries" in log.repair()
    assert {entry.item for entry in log.changes().entries if entry.value is True} == set(range(1000, 1200))


def test_a_reader_of_a_broken_overlay_follows_publishes_and_lets_nothing_come_back(store, data):
    publish(store, SHOP, 1, LISTS)
    filled(store)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        os.truncate(data, 2 * PAGE)
        load(store, SHOP, 2, LISTS)
        point(store, SHOP, 2)
        state = lookup.refresh()
        assert state.version == 2
        assert "heal it with publish --repair" in state.error
        assert list(lookup.get(3).ids) == [2003]  # 1003 stays removed
        store.overlay(SHOP).repair()
        assert lookup.refresh().error is None
        assert list(lookup.get(3).ids) == [2003]
        store.overlay(SHOP).write([removal(2003)])
        lookup.refresh()
        assert list(lookup.get(3).ids) == []


@pytest.mark.parametrize("size", [0, 100, PAGE, 2 * PAGE, 3 * PAGE, 5 * PAGE])
def test_an_overlay_that_is_cut_is_an_error_to_readers_and_writers_and_is_healed(store, data, size):
    publish(store, SHOP, 1, LISTS)
    log, other = filled(store), open_store(store.url).overlay(SHOP)
    os.truncate(data, size)
    for one in (log, other, open_store(store.url).overlay(SHOP)):
        for act in (one.changes, lambda one=one: one.write([removal(1)]), lambda one=one: one.purge([b""], upto=9)):
            with pytest.raises(DamagedError, match=r"data\.mdb is damaged"):
                act()
    with pytest.raises(DamagedError), nearcast.open(store, SHOP):
        pass
    other.repair()
    assert {entry.item for entry in log.changes().entries if entry.field is None} == set(range(1000, 1200))
    log.write([removal(1)])
    assert other.changes().entries[-1].item == 1


@pytest.mark.parametrize("kind", ["folder", "link", "zeros", "noise"])
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "../overlay.journal"])
def test_something_else_in_a_files_place_is_no_overlay(store, data, tmp_path, name, kind):
    filled(store)
    store.close()
    path = data.parent / name
    size = path.stat().st_size
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    make = {
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(victim),
        "zeros": lambda: path.write_bytes(bytes(size)),
        "noise": lambda: path.write_bytes(random.Random(1).randbytes(size)),
    }
    make[kind]()
    log = store.overlay(SHOP)
    with contextlib.suppress(NearcastError):
        log.changes()
    with contextlib.suppress(NearcastError):
        log.write([removal(7)])
    log.repair()
    log.write([removal(8)])
    assert {entry.item for entry in log.changes().entries if entry.field is None} >= {*range(1000, 1200), 8}
    assert victim.read_bytes() == b"precious"


def test_a_lock_file_has_all_its_blocks_before_it_is_mapped(store, data):
    filled(store)
    facts = data.with_name("lock.mdb").stat()
    assert facts.st_blocks * 512 >= facts.st_size > 0


def test_a_version_that_is_cut_while_it_is_open_is_an_error(store, data):
    publish(store, SHOP, 1, LISTS)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        assert lookup.get(3).found
        os.truncate(data.parents[1] / "versions" / "000001" / "data.mdb", PAGE)
        with pytest.raises(DamagedError, match=r"data\.mdb was cut to 4,096 of .* publish with --repair"):
            lookup.get(3)
        assert "was cut to" in lookup.refresh().error
        with pytest.raises(DamagedError):
            list(lookup.view().version.reader.pairs(Space.LISTS))


def _as_nobody(url: str, name: str, queue) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    told = {}
    store = open_store(url)
    with nearcast.open(store, name, refresh_seconds=3600) as lookup:
        told["ids"] = list(lookup.get(3).ids)
    for what, act in (
        ("write", lambda: store.overlay(name).write([removal(5)])),
        ("lock", lambda: store.lock(name).__enter__()),
    ):
        try:
            act()
            told[what] = "done"
        except StoreError as error:
            told[what] = str(error)
    queue.put(told)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")
def test_another_user_who_may_only_read_looks_up_and_is_told_that_he_cannot_write(store, tmp_path):
    publish(store, SHOP, 1, LISTS)
    filled(store)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/") and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | 0o011)
    context = get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_as_nobody, args=(store.url, SHOP, queue))
    process.start()
    told = queue.get(timeout=60)
    process.join()
    assert told["ids"] == [2003]
    assert "cannot be written" in told["write"]
    assert "cannot be written" in told["lock"]


def test_pages_are_read_as_lmdb_reads_them(tmp_path):
    """A random life of an environment: values of all sizes, deletions, and pages that are used again."""
    rng = random.Random(7)
    environment = lmdb.open(str(tmp_path), map_size=1 << 28)
    path = tmp_path / "data.mdb"
    for step in range(60):
        with environment.begin(write=True) as txn:
            for _ in range(rng.randrange(1, 60)):
                key = b"e%d" % rng.randrange(700)
                if rng.random() < 0.3:
                    txn.delete(key)
                else:
                    txn.put(key, rng.randbytes(rng.choice([0, 10, 100, 1000, 5000, 20000])))
        if step % 6 == 0:
            with environment.begin() as txn:
                held = dict(txn.cursor())
            check_pages(path)
            assert read_tree(path, lambda tree: dict(tree.scan())) == held
            for key in rng.sample(sorted(held), 10):
                assert read_tree(path, lambda tree, key=key: tree.get(key)) == held[key]
                after = sorted(other for other in held if other >= key)
                assert read_tree(path, lambda tree, key=key: [k for k, _ in tree.scan(key)]) == after
            assert read_tree(path, lambda tree: tree.get(b"e")) is None
            left = dict(salvage_pairs(path))
            assert left.keys() >= held.keys()
    environment.close()


@pytest.mark.parametrize("seed", range(40))
def test_a_page_with_noise_is_an_error_and_never_a_crash(tmp_path, seed):
    rng = random.Random(seed)
    with contextlib.closing(lmdb.open(str(tmp_path), map_size=1 << 26)) as environment:
        for _ in range(5):
            with environment.begin(write=True) as txn:
                for number in range(100):
                    txn.put(b"e%d" % rng.randrange(300), b"x" * rng.choice([10, 400, 6000 if number < 5 else 20]))
    path = tmp_path / "data.mdb"
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 5, 50])):
        page = rng.randrange(len(content) // PAGE) * PAGE
        content[page + rng.randrange(64)] = rng.randrange(256)
    path.write_bytes(content)
    for look in (check_pages, lambda path: read_tree(path, lambda tree: sum(1 for _ in tree.scan()))):
        with contextlib.suppress(NearcastError):
            look(path)
    assert len(list(salvage_pairs(path))) >= 0
