"""The contract of patches, one suite for every store that has them; the kinds of `test_stores` are its kinds."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.store_kinds import PATIENCE, SHOP, find_keys, limited_memory, load, numbered, opened

from nearcast.errors import BusyError, DamagedError, NotFoundError, StoreError
from nearcast.stores import open_store, patch_log, patch_record
from nearcast.stores.base import PatchFacts, PatchState, Space, find_patches, read_patch_state, repair_patches
from nearcast.stores.redis_version import RedisReader

BASE = numbered(40)


@pytest.fixture(autouse=True)
def _a_store_with_patches(store):
    if not hasattr(store, "patches"):
        pytest.skip("this store takes no patches")


def check_often(reader):
    for _ in range(10):  # a network store checks a few parts at a time
        reader.check()


def damage_segment(place):
    """Cut or delete pairs of the first patch."""
    if "redis" in place.url:
        with place.connect() as client:
            client.delete(*find_keys(place, "*:p:000001-*:lists:*"))
    else:
        (data,) = Path(place.url.partition(":")[2]).glob("*/patches/*/000001/data.mdb")
        os.truncate(data, 4096)


def damage_list(place, data):
    """Replace or delete the list of patches."""
    if "redis" in place.url:
        with place.connect() as client:
            key = f"{place.prefix}:patches"
            client.delete(key) if data is None else client.set(key, data)
    else:
        path = Path(place.url.partition(":")[2], SHOP, "patches", "state.json")
        path.unlink() if data is None else path.write_bytes(data)


@pytest.fixture
def log(store):
    return find_patches(store, SHOP)


def facts(number, version=1, **changes):
    return PatchFacts(number, version, "2026-01-01T00:00:00Z", 1000.0 + number, {"lists": 1}, **changes)


def write(store, number, lists=(), items=(), version=1, **changes):
    with store.lock(SHOP) as lock:
        pairs = {Space.LISTS: list(lists), Space.ITEMS: list(items)}
        find_patches(store, SHOP).write(facts(number, version, **changes), pairs, lock)


def values(reader, keys, space=Space.LISTS):
    return reader.get_many(space, list(keys))


def test_a_version_without_patches_has_an_empty_state(store, log):
    load(store, lists=BASE)
    assert log.state(1) == log.state(99) == read_patch_state(store, SHOP, 1) == PatchState()
    assert log.state(1).newest is None


def test_a_patch_changes_adds_and_removes_keys_for_readers_that_were_open_before(store, place):
    load(store, lists=BASE, items=[(b"item", b"{}")])
    with opened(store) as before, opened(place.open()) as elsewhere:
        assert values(before, [b"key000001", b"new"]) == [b"value 1", None]
        write(store, 1, [(b"key000001", b"newer"), (b"new", b"added"), (b"key000002", b"")], [(b"item", b'{"a":1}')])
        with opened(place.open()) as after:
            for reader in (before, elsewhere, after):
                wanted = [b"key000003", b"key000001", b"new", b"key000002", b"no", b"", b"x" * 600]
                assert values(reader, wanted) == [b"value 3", b"newer", b"added", None, None, None, None]
                assert [values(reader, [key])[0] for key in wanted[:4]] == [b"value 3", b"newer", b"added", None]
                assert values(reader, [b"item"], Space.ITEMS) == [b'{"a":1}']
                expected = {**dict(BASE), b"key000001": b"newer", b"new": b"added"}
                del expected[b"key000002"]
                assert dict(pairs := list(reader.pairs(Space.LISTS))) == expected
                assert len(pairs) == len(expected)
                assert reader.some_keys(Space.LISTS, 100, seed=1) == sorted(expected)
                assert len(set(reader.some_keys(Space.LISTS, 20, seed=1)) & expected.keys()) == 20
                reader.check()


def test_facts_of_patches_come_back_in_order(store, place):
    load(store, lists=BASE)
    load(store, 2, lists=BASE)
    offsets = {"s3://b/ü": {"file": "a", "row": 3}}
    write(store, 1, [(b"a", b"1")])
    write(store, 2, [(b"a", b"2")], version=2, offsets=offsets, note="Grüße")
    write(store, 3, [(b"b", b"3")])
    state = place.open().patches(SHOP).state(1)
    assert (state.patches, state.last_number, state.folded) == ((facts(1), facts(3)), 3, None)
    assert state.newest == facts(3)
    assert store.patches(SHOP).state(2).patches == (facts(2, 2, note="Grüße"),)
    assert state.offsets == store.patches(SHOP).state(2).offsets == offsets
    with opened(store) as one, opened(store, 2) as two:
        assert values(one, [b"a", b"b"]) == [b"1", b"3"]
        assert values(two, [b"a", b"b"]) == [b"2", None]


def test_a_patch_with_another_number_or_of_a_missing_version_is_refused(store, log):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    before = log.state(1)
    for number in (1, 3):
        with pytest.raises(StoreError, match=f"has number {number}, and the next one is 2"):
            write(store, number, [(b"a", b"x")])
    with pytest.raises(StoreError, match="no version 7"):
        write(store, 2, [(b"a", b"x")], version=7)
    assert log.state(1) == before
    with opened(store) as reader:
        assert values(reader, [b"a"]) == [b"1"]


def test_who_has_lost_the_lock_changes_no_patches(store, log):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    before = log.state(1)
    with store.lock(SHOP) as held:
        pass
    for change in (
        lambda: log.write(facts(2), {Space.LISTS: [(b"a", b"2")]}, held),
        lambda: log.roll_back(1, 0, held),
        lambda: log.compact(1, 0, held),
    ):
        with pytest.raises(BusyError, match="the lock"):
            change()
    assert log.state(1) == before
    with opened(store) as reader:
        assert values(reader, [b"a"]) == [b"1"]
    write(store, 2, [(b"a", b"2")])


def test_a_rollback_brings_earlier_values_back_and_numbers_are_not_used_again(store, log):
    load(store, lists=BASE)
    for number in (1, 2, 3):
        write(store, number, [(b"key000001", b"%d" % number), (b"new%d" % number, b"x")])
    with opened(store) as reader:
        assert values(reader, [b"key000001", b"new3"]) == [b"3", b"x"]
        serial = log.state(1).serial
        with store.lock(SHOP) as lock:
            log.roll_back(1, 1, lock)
            log.roll_back(1, 99, lock)
        assert log.state(1).serial > serial
        assert [patch.number for patch in log.state(1).patches] == [1]
        assert values(reader, [b"key000001", b"new1", b"new2", b"new3"]) == [b"1", b"x", None, None]
        with pytest.raises(StoreError, match="the next one is 4"):
            write(store, 2, [(b"a", b"x")])
        write(store, 4, [(b"new3", b"y")])
        assert values(reader, [b"key000001", b"new3"]) == [b"1", b"y"]
        with store.lock(SHOP) as lock:
            log.roll_back(1, 0, lock)
        assert sorted(reader.pairs(Space.LISTS)) == BASE
        assert (log.state(1).patches, log.state(1).last_number) == ((), 4)


def test_how_far_sources_are_read_and_the_name_of_the_journal_are_kept_when_patches_are_rolled_back_folded_or_retired(
    store, place, log
):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")], offsets={"feed": {"file": 1}, "other": 5})
    write(store, 2, [(b"a", b"2")], offsets={"feed": {"file": 2}}, journal="own")
    expected = {"feed": {"file": 2}, "other": 5}
    with store.lock(SHOP) as lock:
        log.roll_back(1, 1, lock)
        assert (log.state(1).offsets, log.state(1).journal) == (expected, "own")
    write(store, 3, [(b"a", b"3")], journal="own")
    with store.lock(SHOP) as lock:
        log.compact(1, 0, lock)
    load(store, 2, lists=BASE)
    with store.lock(SHOP):
        store.retire(SHOP, 1)
    state = place.open().patches(SHOP).state(2)
    assert (state.offsets, state.journal) == (expected, "own")


def test_folded_patches_are_looked_up_as_before_and_cannot_be_rolled_back(store, log):
    load(store, lists=BASE)
    for number in range(1, 8):
        write(store, number, [(b"key%06d" % number, b"%d" % number), (b"all", b"%d" % number), (b"key000009", b"")])
    with opened(store) as reader:
        before = sorted(reader.pairs(Space.LISTS))
        for keep in (5, 5, 2, 0):
            with store.lock(SHOP) as lock:
                log.compact(1, keep, lock)
            state = log.state(1)
            assert len(state.patches) == keep
            assert (state.folded.number, state.folded.counts) == (7 - keep, {"lists": 7 - keep})
            assert state.newest.number == state.last_number == 7
            with opened(store) as fresh:
                assert sorted(reader.pairs(Space.LISTS)) == sorted(fresh.pairs(Space.LISTS)) == before
                assert values(reader, [b"all", b"key000001", b"key000009"]) == [b"7", b"1", None]
        with store.lock(SHOP) as lock, pytest.raises(StoreError, match="folded and cannot be rolled back"):
            log.roll_back(1, 6, lock)
        write(store, 8, [(b"key000009", b"back")])
        assert values(reader, [b"key000009"]) == [b"back"]


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(patch_record, "GROUP_PATCHES", 3)


@pytest.mark.parametrize("to", range(8))
def test_patches_in_groups_are_rolled_back_one_by_one(store, log, to, small_groups):
    load(store, lists=BASE)
    for number in range(1, 8):  # groups of 3, 3 and 1 where look-ups gain by it
        write(store, number, [(b"key%06d" % number, b"%d" % number), (b"all", b"%d" % number), (b"key000009", b"")])
    with opened(store) as reader:
        assert values(reader, [b"all", b"key000001", b"key000009"]) == [b"7", b"1", None]
        with store.lock(SHOP) as lock:
            log.roll_back(1, to, lock)
        write(store, 8, [(b"key000020", b"8")])
        with opened(store) as fresh:
            for one in (reader, fresh):
                assert values(one, [b"all", b"key000020"]) == [b"%d" % to if to else None, b"8"]
                keys = [b"key%06d" % number for number in range(1, 8)]
                assert values(one, keys) == [b"%d" % n if n <= to else b"value %d" % n for n in range(1, 8)]
    assert [patch.number for patch in log.state(1).patches] == [*range(1, to + 1), 8]


def test_a_lost_patch_of_a_group_is_an_error_of_the_rollback_that_needs_it(store, place, log, small_groups):
    if "redis" in place.url:
        pytest.skip("its look-ups gain nothing by groups")
    load(store, lists=BASE)
    for number in range(1, 4):
        write(store, number, [(b"all", b"%d" % number)])
    damage_segment(place)
    with opened(store) as reader, store.lock(SHOP) as lock:
        assert values(reader, [b"all"]) == [b"3"]
        with pytest.raises(DamagedError, match="000001"):
            log.roll_back(1, 2, lock)
        assert values(reader, [b"all"]) == [b"3"]
        with pytest.raises(DamagedError, match="000001"):
            log.compact(1, 1, lock)
        assert values(reader, [b"all"]) == [b"3"]
        log.roll_back(1, 0, lock)
        assert values(reader, [b"all"]) == [None]


def test_a_fold_by_itself_takes_no_group_apart(store, log, small_groups, monkeypatch):
    monkeypatch.setattr(patch_log, "MOST_PATCHES", 5)
    monkeypatch.setattr(patch_log, "FOLD_TO", 2)
    load(store, lists=BASE)
    for number in range(1, 7):
        write(store, number, [(b"all", b"%d" % number), (b"key%06d" % number, b"%d" % number)])
    kept = 3 if log.groups_patches else 2
    assert [patch.number for patch in log.state(1).patches] == list(range(7 - kept, 7))
    with opened(store) as reader:
        assert values(reader, [b"all", b"key000001", b"key000006", b"key000007"]) == [b"6", b"1", b"6", b"value 7"]


def test_a_damaged_older_patch_does_not_stop_newer_ones_and_is_not_merged(store, place, log, monkeypatch):
    monkeypatch.setattr(patch_record, "GROUP_PATCHES", 2)
    monkeypatch.setattr(patch_log, "MOST_PATCHES", 2)
    monkeypatch.setattr(patch_log, "FOLD_TO", 1)
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    damage_segment(place)
    for number in range(2, 5):  # an error would say that the patch is not in force
        write(store, number, [(b"b", b"%d" % number)])
    assert log.state(1).newest.number == 4
    with pytest.raises(DamagedError, match=r"patch|000001"):  # a merged one would hide what was lost
        store.open(SHOP, 1, verify=True)
    with store.lock(SHOP) as lock, pytest.raises(DamagedError, match="000001"):
        log.compact(1, 0, lock)


@pytest.mark.slow
def test_a_hundred_patches_are_folded_by_themselves(store, log):
    load(store, lists=BASE)
    with opened(store) as reader:
        for number in range(1, 101):
            write(store, number, [(b"all", b"%d" % number), (b"k%d" % (number % 7), b"%d" % number)])
        assert values(reader, [b"all", b"k0", b"k1"]) == [b"100", b"98", b"99"]
    state = log.state(1)
    assert len(log.read().record(1).segments) < 40 or not log.groups_patches
    assert len(state.patches) < 100
    assert state.folded.counts["lists"] + len(state.patches) == 100


def test_a_retired_version_takes_its_patches_with_it(store, place, log):
    load(store, 1, lists=BASE)
    load(store, 2, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    with opened(place.open()) as reader:
        assert values(reader, [b"a"]) == [b"1"]
        with store.lock(SHOP):
            store.retire(SHOP, 1)
        with contextlib.suppress(StoreError):  # a reader of a network store may find that it is gone
            assert values(reader, [b"a", b"key000001"]) == [b"1", b"value 1"]
    assert (log.state(1).patches, log.state(1).last_number) == ((), 1)
    with pytest.raises(NotFoundError):
        store.open(SHOP, 1, verify=False)
    load(store, 1, lists=BASE)
    with opened(store) as reader:
        assert values(reader, [b"a"]) == [None]
    write(store, 2, [(b"a", b"2")], version=2)


KEYS = st.one_of(st.integers(0, 45).map(lambda i: b"key%06d" % i), st.binary(min_size=1, max_size=481))
PATCH = st.dictionaries(KEYS, st.binary(max_size=300), max_size=8)
STEPS = st.lists(st.one_of(PATCH, st.tuples(st.sampled_from(["back", "fold"]), st.integers(0, 6))), max_size=8)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_after_any_steps_readers_see_the_newest_values(store, log, small_groups, steps):
    """The model: a dictionary per patch in force."""
    with store.lock(SHOP):
        store.retire(SHOP, 1)
    load(store, lists=BASE)
    first = number = log.state(1).last_number
    history, folded = {number: dict(BASE)}, number
    with opened(store) as old, store.lock(SHOP) as lock:
        for step in steps:
            if isinstance(step, dict):
                number += 1
                newest = history[max(history)]
                log.write(facts(number), {Space.LISTS: list(step.items())}, lock)
                history[number] = {key: value for key, value in {**newest, **step}.items() if value}
            elif step[0] == "back":
                to = max(folded, first + step[1])
                log.roll_back(1, to, lock)
                history = {n: state for n, state in history.items() if n <= to}
            else:
                log.compact(1, step[1], lock)
                kept = sorted(n for n in history if n > folded)
                folded = max([folded, *kept[: max(0, len(kept) - step[1])]])
            expected = history[max(history)]
            for reader in (old, store.open(SHOP, 1, verify=False)):
                wanted = [*expected, b"key000001", b"nobody"]
                assert values(reader, wanted) == [expected.get(key) for key in wanted]
                assert dict(reader.pairs(Space.LISTS)) == expected


def test_a_reader_beside_a_writer_that_is_quicker_gets_the_values_of_one_state(store, place, monkeypatch):
    """Between any two requests of the reader another patch comes into force, with a new value for all keys."""
    if "redis" not in place.url:
        pytest.skip("a reader of this store reads a state that it has open")
    load(store, lists=BASE)
    keys, written, find = [key for key, _ in BASE], [b"none"], RedisReader.find

    def write_and_find(*request):
        written.append(b"%d" % len(written))
        write(store, len(written) - 1, [(key, written[-1]) for key in keys])
        return find(*request)

    monkeypatch.setattr("nearcast.stores.redis_patches.READ_KEYS", 10)
    with opened(place.open()) as reader:
        monkeypatch.setattr(RedisReader, "find", write_and_find)
        for _ in range(2):
            before = len(written)
            (value,) = set(values(reader, keys))
            assert value in written[before:], "the state is not older than the call"
        assert len(reader.some_keys(Space.LISTS, 20, seed=1)) == 20


@pytest.mark.slow
def test_a_killed_writer_leaves_a_patch_whole_or_not_at_all(store, place, log):
    load(store, lists=numbered(2000))
    keys = [key for key, _ in numbered(2000)]
    url = place.with_timeout(0.5)
    with opened(store) as reader:
        for kill, delay in enumerate(itertools.accumulate([0.004] * 12)):
            with place.start("patch", url, SHOP, 1) as worker, contextlib.ExitStack() as ended:
                ended.callback(worker.kill)  # also after an error, or this process waits for it without end
                assert worker.stdout.readline() == "begun\n", worker.stderr.read()
                end = time.monotonic() + delay
                while time.monotonic() < end:
                    assert len(set(values(reader, keys)) - {b"value %d" % i for i in range(2000)}) <= 1
                worker.send_signal(signal.SIGKILL)
                worker.communicate()
            found = set(values(reader, keys))
            newest = log.state(1).newest
            assert found == ({b"%d" % newest.number} if newest else {b"value %d" % i for i in range(2000)}), kill
            with opened(place.open()) as fresh:
                assert set(values(fresh, keys)) == found
            _wait_for_lock(store)


def _wait_for_lock(store):
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(BusyError), store.lock(SHOP):
            return
        assert time.monotonic() < deadline, "the lock is never free"
        time.sleep(0.05)


def test_patches_work_on_both_sides_of_a_fork(store):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    with opened(store) as reader:
        assert values(reader, [b"a"]) == [b"1"]
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                assert values(reader, [b"a", b"key000001"]) == [b"1", b"value 1"]
                write(open_store(store.url), 2, [(b"a", b"2")])
                assert values(reader, [b"a"]) == [b"2"]
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert values(reader, [b"a"]) == [b"2"]


def test_a_lost_part_of_a_patch_is_an_error_and_never_a_missing_key(store, place, log):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    write(store, 2, [(b"b", b"2")])
    with opened(store) as before:
        assert values(before, [b"a", b"b"]) == [b"1", b"2"]
        damage_segment(place)
        with pytest.raises(DamagedError, match=r"patch|000001"):
            store.open(SHOP, 1, verify=True)
        with pytest.raises(DamagedError, match=r"patch|000001"):
            check_often(before)


def test_a_lost_list_of_patches_is_an_error_until_it_is_repaired(store, place, log):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    write(store, 2, [(b"b", b"2")])
    for data in (None, b"{", b'{"format": 1, "serial": 9, "last_number": 2, "versions": {}, "check": ""}'):
        damage_list(place, data)
        for use in (lambda: log.state(1), lambda: write(store, 3, [(b"a", b"3")])):
            with pytest.raises(DamagedError, match=r"patches.*--repair"):
                use()
    with store.lock(SHOP):
        assert "up to number 2 are lost" in repair_patches(store, SHOP)
        assert repair_patches(store, SHOP) is None
    write(store, 3, [(b"a", b"3")])
    with opened(store) as reader:
        assert values(reader, [b"a", b"b"]) == [b"3", None]


@contextlib.contextmanager
def full(place):
    """The store's disk or memory takes no more than a little."""
    if "redis" in place.url:
        with limited_memory(place.ports, 500_000):
            yield
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # of a file of this process
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_store_leaves_the_patches_as_they_were(store, place, log):
    load(store, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    before = log.state(1)
    large = [(key, bytes(8_000)) for key, _ in numbered(2_000)]
    with opened(store) as reader:
        with full(place), pytest.raises(StoreError, match=r"full|cannot be written"):
            write(store, 2, large)
        assert log.state(1) == before
        assert values(reader, [b"a", b"key000001"]) == [b"1", b"value 1"]
        write(store, 2, large)
        assert values(reader, [b"key000001"]) == [bytes(8_000)]


def test_patches_of_a_version_whose_retirement_was_cut_off_are_removed_by_the_next_patch(store, place, log):
    load(store, 1, lists=BASE)
    load(store, 2, lists=BASE)
    write(store, 1, [(b"a", b"1")])
    if "redis" in place.url:
        with place.connect() as client:
            client.hdel(f"{place.prefix}:versions", 1)
            assert find_keys(place, "*:p:000001-*")
            write(store, 2, [(b"a", b"2")], version=2)
            assert all(client.ttl(key) > 0 for key in find_keys(place, "*:p:000001-*"))
    else:
        root = Path(place.url.partition(":")[2], SHOP)
        shutil.rmtree(root / "versions" / "000001")
        write(store, 2, [(b"a", b"2")], version=2)
        assert [path.name for path in root.glob("patches/*/*")] == ["000002"]
    assert (log.state(1).patches, log.state(1).last_number) == ((), 2)
