"""One write to an LMDB overlay: what it looks at however many entries there are, and what it finds before it writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

import nearcast
from nearcast.errors import DamagedError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry
from published import publish

SHOP = "shop"
PAGE = 4096
LISTS = {key: [(1000 + key % 50, 1.0), (2000 + key, 0.5)] for key in range(100)}
ITEMS = {item: {"price": 1.0} for row in LISTS.values() for item, _ in row}
SLACK = 40  # calls: the store's clock is looked at once a second, a tree is a page deeper, a serial a digit longer
CLOCK_TICKS_SECONDS = 0.05  # some, of the clock by which a file system stamps changes


@pytest.fixture
def store(tmp_path) -> Iterator:
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as opened:
        publish(opened, SHOP, 1, LISTS, ITEMS, columns={"price": "double"})
        yield opened


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "store" / SHOP / "overlay" / "data.mdb"


def calls_of(act: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's: a loop over entries or pages shows, whatever it does with them."""
    counted = 0

    def count(frame, event, argument) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return counted


def prices(start: int, count: int) -> list[OverlayEntry]:
    return [OverlayEntry(start + number, "price", 1.0, written=time.time()) for number in range(count)]


def removal(item: int) -> OverlayEntry:
    return OverlayEntry(item, None, True, written=time.time())


WRITES = {
    "update": lambda overlay, number: overlay.update(1000 + number, "price", 2.0 + number),
    "add": lambda overlay, number: overlay.add(1000 + number, "price", 1.0, token=f"{time.time_ns()}"),
    "remove": lambda overlay, number: overlay.remove([2000 + number]),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("removed", [False, True], ids=["values alone", "an item is removed"])
@pytest.mark.parametrize("between", ["nobody", "another writer", "earlier version"])
def test_a_write_looks_at_no_more_however_many_entries_there_are(store, data, write, removed, between):
    log, other = store.overlay(SHOP), open_store(store.url).overlay(SHOP)
    most = {}
    with contextlib.closing(other), nearcast.overlay(store, SHOP) as overlay:
        for entries in (10, 6000):
            log.write(prices(100_000, entries))
            if removed:
                log.write([removal(1)])
            if between == "earlier version":  # it kept no count and no journal
                store.close()
                other.close()
                (data.parents[1] / "overlay.journal").unlink()
                with lmdb.open(str(data.parent), map_size=1 << 30) as environment, environment.begin(write=True) as txn:
                    txn.delete(b"n")
                log = store.overlay(SHOP)
            overlay.update(1049, "price", 1.0)  # opens the file, and looks through it
            counts = []
            for number in range(6):
                if between == "another writer":
                    other.write(prices(5, 1))
                counts.append(calls_of(lambda number=number: WRITES[write](overlay, number)))
            most[entries] = max(counts)
    assert most[6000] <= most[10] + SLACK


def test_many_values_in_one_step_read_the_pointer_once(store, monkeypatch):
    read = []
    pointer = store.pointer
    monkeypatch.setattr(store, "pointer", lambda generator: read.append(generator) or pointer(generator))
    with nearcast.overlay(store, SHOP) as overlay:
        read.clear()
        overlay.update_many([(1000 + number, "price", 2.0) for number in range(50)])
        assert len(read) == 1


def test_a_file_changed_in_place_between_two_writes_is_found_before_it_is_written(store, data):
    log = store.overlay(SHOP)
    log.write(prices(0, 2000))
    log.write(prices(0, 1))
    time.sleep(CLOCK_TICKS_SECONDS)
    size = data.stat().st_size
    with data.open("r+b") as file:  # the same file, as long as it was
        file.seek(2 * PAGE)
        file.write(b"\xff" * (size - 2 * PAGE))
    with pytest.raises(DamagedError, match=r"data\.mdb is damaged"):
        log.write(prices(0, 1))
    assert data.stat().st_size == size
    log.repair()
    log.write(prices(7, 1))
    assert [entry.item for entry in log.changes().entries] == [7]


def test_a_file_that_is_cut_to_where_it_ended_before_the_last_write_is_found(store, data):
    log = store.overlay(SHOP)
    log.write(prices(0, 1))
    size = data.stat().st_size
    log.write([removal(number) for number in range(2000)])
    assert data.stat().st_size > size
    os.truncate(data, size)
    with pytest.raises(DamagedError, match=r"data\.mdb is damaged"):
        log.write(prices(0, 1))
    log.repair()
    assert len(log.changes().entries) >= 2000


def test_removals_in_a_file_that_was_put_back_are_in_the_journal_after_the_next_write(store, data, tmp_path):
    log = store.overlay(SHOP)
    log.write([removal(item) for item in (1, 2)])
    store.close()
    shutil.copy(data, tmp_path / "kept")
    log = store.overlay(SHOP)
    log.purge([removal(item).key() for item in (1, 2)], upto=log.changes().serial)
    log.write(prices(0, 1))
    assert log.journal.read() == []
    os.replace(tmp_path / "kept", data)
    log.write(prices(0, 1))
    assert [entry.item for _, entry in log.journal.read()] == [1, 2]


def test_the_clock_of_the_file_system_is_looked_at_once_a_second_and_when_this_machines_clock_was_set(
    store, monkeypatch
):
    made = []
    make, real, offset = tempfile.TemporaryFile, time.time, [0.0]
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: made.append(1) or make(**options))
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + real() - start)
    start = real()
    times = [store.now() for _ in range(100)]
    assert times == sorted(times)
    assert len(made) <= 2
    for offset[0] in (-3600.0, 3600.0):  # as far from the file system's clock: that one counts
        made.clear()
        assert abs(store.now() - real()) < 60
        assert made
    offset[0] = 0.0
    start -= 2.0
    made.clear()
    store.now()
    assert made
