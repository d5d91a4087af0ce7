"""The contract of a store, one suite for all of them. A new store is one of `KINDS`, and passes this.

The store of examples/own_store is found as an installed one is: by an entry point.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.store_kinds import KINDS, PATIENCE, SHOP, load, numbered, opened

from nearcast.errors import BusyError, DamagedError, GoneError, NotFoundError, SpecError, StoreError
from nearcast.stores import STORES, open_store
from nearcast.stores.base import (
    TOKEN_SECONDS,
    ExchangeResult,
    OverlayEntry,
    PatchState,
    Pointer,
    PointerEvent,
    Space,
    find_patches,
    read_patch_state,
    repair_patches,
)


def test_the_suite_runs_on_every_kind_of_store():
    assert {STORES[kind].opens for kind in KINDS if kind in STORES} == {kind.opens for kind in STORES.values()}


def test_what_was_put_is_found_in_its_space(store):
    load(store, lists=[(b"a", b"1"), (b"b", b"2")], items=[(b"a", b"{}")])
    with opened(store) as reader:
        assert reader.get_many(Space.LISTS, [b"b", b"a"]) == [b"2", b"1"]
        assert reader.get_many(Space.ITEMS, [b"a", b"b"]) == [b"{}", None]


def test_missing_repeated_and_impossible_keys_stand_in_their_places(store):
    load(store, lists=[(b"a", b"1"), (b"b", b"2")])
    with opened(store) as reader:
        wanted = [b"no", b"a", b"a", b"", b"x" * 600, b"b", b"\0", b"a"]
        assert reader.get_many(Space.LISTS, wanted) == [None, b"1", b"1", None, None, b"2", None, b"1"]
        assert reader.get_many(Space.LISTS, []) == []
        assert reader.get_many(Space.LISTS, [b"no"]) == [None]


def test_spaces_may_be_empty(store):
    load(store)
    with opened(store) as reader:
        for space in Space:
            assert reader.get_many(space, [b"a"]) == [None]
            assert list(reader.pairs(space)) == []
            assert reader.some_keys(space, 10, seed=1) == []


def test_values_may_be_empty_and_large(store):
    pairs = [(b"a", b""), (b"b", bytes(range(256)) * 4000), (b"c", b"\0")]
    load(store, lists=pairs)
    with opened(store) as reader:
        assert reader.get_many(Space.LISTS, [b"a", b"b", b"c"]) == [value for _, value in pairs]


def test_keys_may_come_in_any_order_and_in_many_calls(store):
    pairs = numbered(3000)
    with store.lock(SHOP):
        writer = store.write(SHOP, 1)
        for start in (2000, 0, 1000):
            writer.put(Space.LISTS, pairs[start : start + 1000][::-1])
            writer.put(Space.ITEMS, pairs[start : start + 10])
        writer.finish({})
    with opened(store) as reader:
        assert reader.get_many(Space.LISTS, [key for key, _ in pairs]) == [value for _, value in pairs]
        assert sorted(reader.pairs(Space.LISTS)) == pairs
        assert len(list(reader.pairs(Space.ITEMS))) == 30


KEYS = st.one_of(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=481))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.dictionaries(KEYS, st.binary(max_size=3000), max_size=40), others=st.lists(KEYS, max_size=10))
def test_any_bytes_come_back_as_they_were(store, pairs, others):
    load(store, lists=pairs.items(), items=((key, value[::-1]) for key, value in pairs.items()))
    wanted = [*others, *pairs, *others]
    with opened(store) as reader:
        assert reader.get_many(Space.LISTS, wanted) == [pairs.get(key) for key in wanted]
        assert sorted(reader.pairs(Space.LISTS)) == sorted(pairs.items())
        assert dict(reader.pairs(Space.ITEMS)) == {key: value[::-1] for key, value in pairs.items()}


def test_facts_come_back(store):
    facts = {"generator": SHOP, "n": 3, "measures": {"recall": 0.5, "none": None}, "why": "Käse & Brot ☕", "list": [1]}
    load(store, facts=facts)
    with opened(store) as reader:
        assert reader.facts == facts


def test_a_version_is_not_there_before_it_is_finished(store, place):
    with store.lock(SHOP):
        writer = store.write(SHOP, 3)
        writer.put(Space.LISTS, numbered(100))
        assert store.versions(SHOP) == place.open().versions(SHOP) == []
        with pytest.raises(NotFoundError, match="no version 3 of shop"):
            store.open(SHOP, 3, verify=False)
        writer.finish({})
    assert store.versions(SHOP) == place.open().versions(SHOP) == [3]


def test_what_an_unfinished_load_has_left_is_not_in_the_next(store):
    for unfinished, version in ((3, 3), (4, 5)):
        with store.lock(SHOP):
            store.write(SHOP, unfinished).put(Space.LISTS, numbered(100))
        load(store, version, lists=[(b"a", b"1")])
        with opened(store, version) as reader:
            assert list(reader.pairs(Space.LISTS)) == [(b"a", b"1")]
    assert store.versions(SHOP) == [3, 5]


def test_a_version_can_be_given_up(store):
    load(store, 1)
    with store.lock(SHOP):
        writer = store.write(SHOP, 2)
        writer.put(Space.LISTS, numbered(10))
        writer.discard()
        assert store.versions(SHOP) == [1]
        writer = store.write(SHOP, 2)
        with pytest.raises(TypeError):
            writer.finish({"no": object()})
        writer.discard()
    assert store.versions(SHOP) == [1]


def test_versions_are_in_the_order_of_numbers_and_each_generator_has_its_own(store):
    for version in (10, 9, 1_000_001):
        load(store, version)
    load(store, 2, generator="other")
    assert store.versions(SHOP) == [9, 10, 1_000_001]
    assert store.versions("other") == [2]
    assert store.versions("nobody") == []


def test_a_version_can_be_written_again_after_it_was_taken_away(store):
    load(store, lists=[(b"a", b"old"), (b"b", b"old")])
    with opened(store) as old:
        with store.lock(SHOP):
            store.retire(SHOP, 1)
        load(store, lists=[(b"a", b"new")])
        with opened(store) as new:
            assert new.get_many(Space.LISTS, [b"a", b"b"]) == [b"new", None]
        with contextlib.suppress(GoneError):
            assert old.get_many(Space.LISTS, [b"a", b"b"]) == [b"old", b"old"]


def test_writing_a_finished_version_anew_takes_the_old_one_away(store):
    load(store, lists=[(b"a", b"old"), (b"b", b"old")])
    with store.lock(SHOP):
        store.write(SHOP, 1).put(Space.LISTS, [(b"a", b"new")])
    assert store.versions(SHOP) == []


def test_a_version_that_is_taken_away_is_never_a_wrong_miss(store, place):
    pairs = numbered(500)
    load(store, 1, lists=pairs)
    load(store, 2, lists=pairs)
    with opened(place.open()) as reader:
        with store.lock(SHOP):
            store.retire(SHOP, 1)
            store.retire(SHOP, 1)  # as often as one likes
            store.retire(SHOP, 99)
        assert store.versions(SHOP) == [2]
        with pytest.raises(NotFoundError, match=r"it has.*2"):
            store.open(SHOP, 1, verify=False)
        with contextlib.suppress(GoneError):
            assert reader.get_many(Space.LISTS, [key for key, _ in pairs]) == [value for _, value in pairs]
            assert sorted(reader.pairs(Space.LISTS)) == pairs


def test_an_unfinished_version_can_be_taken_away(store):
    with store.lock(SHOP):
        store.write(SHOP, 1).put(Space.LISTS, numbered(10))
        store.retire(SHOP, 1)
    load(store, 1, lists=[(b"a", b"1")])
    with opened(store) as reader:
        assert list(reader.pairs(Space.LISTS)) == [(b"a", b"1")]


def test_pairs_can_be_read_twice_at_once_and_in_part(store):
    pairs = numbered(2500)
    load(store, lists=pairs)
    with opened(store) as reader:
        one, two = reader.pairs(Space.LISTS), reader.pairs(Space.LISTS)
        firsts = [next(one) for _ in range(5)]
        assert firsts == [next(two) for _ in range(5)]
        assert sorted(firsts + list(one)) == pairs
        assert reader.get_many(Space.LISTS, [b"key000001"]) == [b"value 1"]
        two.close()


@pytest.mark.parametrize("n", [3000, 20_000])
def test_some_keys_are_spread_and_depend_on_the_seed_alone(store, n):
    pairs = numbered(n)
    load(store, lists=pairs)
    with opened(store) as reader:
        some = reader.some_keys(Space.LISTS, 300, seed=7)
        assert len(set(some)) == 300
        assert set(some) <= {key for key, _ in pairs}
        assert some == reader.some_keys(Space.LISTS, 300, seed=7)
        assert set(some) != set(reader.some_keys(Space.LISTS, 300, seed=8))
        tenths = {int(key[3:]) * 10 // n for key in some}
        assert tenths == set(range(10))
        assert len(set(reader.some_keys(Space.LISTS, n - 1, seed=7))) == n - 1


def test_some_keys_are_all_keys_where_there_are_not_more(store):
    pairs = numbered(50)
    load(store, lists=pairs)
    with opened(store) as reader:
        for count in (50, 51, 10_000):
            assert sorted(reader.some_keys(Space.LISTS, count, seed=1)) == [key for key, _ in pairs]
        assert reader.some_keys(Space.LISTS, 0, seed=1) == []


def test_readers_of_one_version_do_not_depend_on_each_other(store, place):
    load(store, lists=[(b"a", b"1")])
    one, two, three = (at.open(SHOP, 1, verify=False) for at in (store, store, place.open()))
    one.close()
    one.close()
    assert two.get_many(Space.LISTS, [b"a"]) == three.get_many(Space.LISTS, [b"a"]) == [b"1"]
    two.close()
    with opened(store) as four:
        three.close()
        assert four.get_many(Space.LISTS, [b"a"]) == [b"1"]


def test_threads_share_a_reader(store):
    pairs = numbered(500)
    load(store, lists=pairs)
    wrong = []

    def work(reader, start):
        for i in range(start, start + 60):
            some = pairs[i : i + 20]
            if reader.get_many(Space.LISTS, [key for key, _ in some]) != [value for _, value in some]:
                wrong.append(i)

    with opened(store) as reader:
        threads = [threading.Thread(target=work, args=(reader, start)) for start in range(0, 400, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_pointer_is_none_until_it_is_moved_and_then_where_it_was_moved_to(store, place):
    assert store.pointer(SHOP) is None
    assert store.generators() == []
    first = Pointer(3, 1, (), (PointerEvent("published", 3, "2026-01-01T00:00:00Z", "Grüße"),))
    second = first.move(PointerEvent("rolled_back", 2, "2025-01-01T00:00:00Z"), withdrawn=(3,))
    for pointer in (first, second):
        with store.lock(SHOP) as held:
            store.point(SHOP, pointer, held)
        assert store.pointer(SHOP) == place.open().pointer(SHOP) == pointer


def test_generators_are_those_with_a_pointer(store):
    for name in ("b", "a.b-c_9"):
        with store.lock(name) as held:
            store.point(name, Pointer(1, 1), held)
    load(store, generator="without")
    assert store.generators() == ["a.b-c_9", "b"]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"7", b'{"format": 2}', b"\xff\xfe", b'{"format": 1, "version": 1}']
)
def test_a_pointer_that_is_none_is_reported(store, place, data):
    with store.lock(SHOP) as held:
        store.point(SHOP, Pointer(1, 1), held)
    place.damage_pointer(SHOP, data)
    with pytest.raises(DamagedError, match=r"current.* is no pointer .*--repair"):
        store.pointer(SHOP)


def test_the_lock_is_for_one_and_others_are_told_who_has_it(store, place):
    with store.lock(SHOP) as held:
        held.check()
        with pytest.raises(BusyError, match=rf"shop in .* is held by process {os.getpid()}"), place.open().lock(SHOP):
            pass
        with store.lock("other"):
            held.check()
    with store.lock(SHOP):
        pass


def test_the_lock_of_a_killed_process_becomes_free(store, place):
    url = place.with_timeout(0.5)
    with place.start("hold", url, SHOP) as worker:
        assert worker.stdout.readline() == "held\n", worker.stderr.read()
        with pytest.raises(BusyError, match=f"held by process {worker.pid}"), store.lock(SHOP):
            pass
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with store.lock(SHOP) as held:
                held.check()
                return
        except BusyError:
            assert time.monotonic() < deadline, "the lock is never free"
            time.sleep(0.05)


@pytest.mark.slow
def test_a_publisher_that_is_killed_again_and_again_leaves_whole_versions_and_no_lock(store, place):
    """The current version is whole at every moment: all keys have its number."""
    keys, last = [b"%d" % number for number in range(200)], 0
    for delay in (0.1, 0.4, 0.7, 1.0, 1.3):
        with place.start("publish", place.with_timeout(0.5), SHOP, len(keys)) as worker:
            assert worker.stdout.readline() == "begun\n", worker.stderr.read()
            end = time.monotonic() + delay
            while time.monotonic() < end:
                last = max(last, check_whole_version(store, keys))
            worker.send_signal(signal.SIGKILL)
            worker.communicate()
        assert check_whole_version(store, keys) >= last
    with place.start("publish", place.with_timeout(0.5), SHOP, len(keys)) as worker:
        deadline = time.monotonic() + PATIENCE
        while check_whole_version(store, keys) == last:  # it goes on where the killed ones ended
            assert time.monotonic() < deadline
            assert worker.poll() is None, worker.stderr.read()
            time.sleep(0.02)
        worker.kill()
        worker.communicate()


def check_whole_version(store, keys):
    """The number of the current version, after a look at all its keys. A version may be retired meanwhile."""
    pointer = store.pointer(SHOP)
    if pointer is None:
        return 0
    with contextlib.suppress(GoneError, NotFoundError), opened(store, pointer.version) as reader:
        assert set(reader.get_many(Space.LISTS, keys)) == {b"%d" % pointer.version}
        assert reader.get_many(Space.LISTS, [b"no"]) == [None]
    return pointer.version


def test_who_has_lost_the_lock_cannot_move_the_pointer(store):
    with store.lock(SHOP) as held:
        store.point(SHOP, Pointer(1, 1), held)
    with pytest.raises(BusyError, match="the lock"):
        held.check()
    with pytest.raises(BusyError, match="the lock"):
        store.point(SHOP, Pointer(2, 2), held)
    with store.lock(SHOP), pytest.raises(BusyError, match="the lock"):
        store.point(SHOP, Pointer(2, 2), held)
    assert store.pointer(SHOP) == Pointer(1, 1)


def entry(item, value=True, field=None):
    return OverlayEntry(item, field, value, written=1.5, until=None, note="")


def test_an_overlay_that_was_never_written_is_empty_and_leaves_no_trace(store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    log = store.overlay(SHOP)
    assert log.changes().entries == ()
    log.write([])
    log.purge([entry("a").key()], upto=10)
    assert log.changes().entries == ()
    assert store.generators() == []
    assert sorted(tmp_path.rglob("*")) == before


def test_the_overlay_keeps_the_last_entry_of_each_key_in_the_order_of_writing(store, place):
    log = store.overlay(SHOP)
    log.write([entry("a"), entry(7), entry("a", 3.5, "price")])
    log.write([entry("b", ["x", {"y": None}], "tags"), entry("a", None)])
    found = place.open().overlay(SHOP).changes()
    assert found.entries == (
        entry(7),
        entry("a", 3.5, "price"),
        entry("b", ["x", {"y": None}], "tags"),
        entry("a", None),
    )
    assert store.overlay("other").changes().entries == ()


def test_the_overlay_tells_what_came_after_a_serial(store):
    log = store.overlay(SHOP)
    log.write([entry("a"), entry("b")])
    first = log.changes()
    again = log.changes(epoch=first.epoch, serial=first.serial)
    assert (again.epoch, again.serial, again.entries) == (first.epoch, first.serial, ())
    log.write([entry("c"), entry("a", None)])
    then = log.changes(epoch=first.epoch, serial=first.serial)
    assert then.epoch == first.epoch
    assert then.serial > first.serial
    assert then.entries == (entry("c"), entry("a", None))
    assert log.changes(epoch=first.epoch + 1, serial=then.serial).entries == (entry("b"), entry("c"), entry("a", None))


def test_a_purge_forgets_what_was_written_before_and_starts_an_epoch(store):
    log = store.overlay(SHOP)
    log.write([entry("a"), entry("b"), entry("c")])
    seen = log.changes()
    log.write([entry("b", None)])
    log.purge([entry("a").key(), entry("b").key(), entry("nobody").key()], upto=seen.serial)
    after = log.changes(epoch=seen.epoch, serial=seen.serial)
    assert after.epoch != seen.epoch
    assert after.entries == (entry("c"), entry("b", None))
    assert after.serial > seen.serial
    log.write([entry("d")])
    assert log.changes(epoch=after.epoch, serial=after.serial).entries == (entry("d"),)


def test_the_overlay_takes_long_keys_and_every_character(store):
    log = store.overlay(SHOP)
    long = [entry("x" * 2000 + end) for end in "ab"]
    odd = [entry('"\\\n\0☕'), entry(""), entry(-(1 << 63)), entry("a", "v", "f" * 700)]
    log.write(long + odd)
    assert list(log.changes().entries) == long + odd
    log.purge([long[0].key()], upto=100)
    assert list(log.changes().entries) == long[1:] + odd


def test_an_exchange_is_made_only_where_nothing_came_in_between_and_with_a_token_once(store):
    log = store.overlay(SHOP)
    first, second = OverlayEntry("p", "spent", 1, 1.0), OverlayEntry("p", "spent", 2, 2.0)
    assert log.get(first.key()) is None
    assert log.exchange(second, b"{}") is ExchangeResult.CHANGED
    assert log.exchange(first, None) is ExchangeResult.WRITTEN
    assert log.exchange(second, None) is ExchangeResult.CHANGED
    assert log.get(first.key()) == first.to_bytes()
    before = log.changes()
    assert log.exchange(second, first.to_bytes(), token="é" * 300, now=10.0) is ExchangeResult.WRITTEN
    assert log.exchange(first, second.to_bytes(), token="é" * 300, now=11.0) is ExchangeResult.REPEATED
    assert log.exchange(first, second.to_bytes(), token="u", now=11.0 + TOKEN_SECONDS) is ExchangeResult.WRITTEN
    assert log.exchange(second, first.to_bytes(), token="é" * 300, now=12.0 + TOKEN_SECONDS) is ExchangeResult.WRITTEN
    after = log.changes(epoch=before.epoch, serial=before.serial)
    assert (after.epoch, after.serial, [entry.value for entry in after.entries]) == (before.epoch, 4, [2])
    assert abs(store.now() - time.time()) < 60


def test_writers_of_the_overlay_in_several_processes_lose_nothing(store, place):
    log, seen, epoch, serial = store.overlay(SHOP), [], -1, 0
    workers = [place.start("overlay", place.url, SHOP, name, 40) for name in "abcd"]
    while True:
        done = all(worker.poll() is not None for worker in workers)
        found = log.changes(epoch=epoch, serial=serial)
        assert found.epoch == epoch or not seen
        epoch, serial = found.epoch, found.serial
        seen += [entry.item for entry in found.entries]
        if done:
            break
        time.sleep(0.005)
    for worker in workers:
        assert worker.returncode == 0, worker.communicate()[1]
        worker.communicate()
    assert len(seen) == 160
    assert [entry.item for entry in log.changes().entries] == seen
    for name in "abcd":
        assert [item for item in seen if item[0] == name] == [f"{name}{i}" for i in range(40)]


def test_a_store_works_on_both_sides_of_a_fork(store, place):
    load(store, lists=[(b"a", b"1")])
    with place.start("fork", place.url, SHOP, 1) as worker:
        _, errors = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, errors


@pytest.mark.parametrize(
    "name", ["", "..", "../other", "a/b", "/etc", "Shop", "a\n", "a\0", "-a", "x" * 101, "a:b", "ä"]
)
def test_a_name_that_no_generator_may_have_is_refused(store, name):
    for use in (
        lambda: store.pointer(name),
        lambda: store.versions(name),
        lambda: store.open(name, 1, verify=False),
        lambda: store.write(name, 1),
        lambda: store.retire(name, 1),
        lambda: store.overlay(name),
        lambda: store.lock(name).__enter__(),
    ):
        with pytest.raises(SpecError, match="lower-case letters"):
            use()


def test_a_store_says_where_it_is(store, place):
    assert store.url == place.url.partition("?")[0]
    assert isinstance(store.in_process, bool)


def test_an_unknown_kind_of_store_is_refused():
    with pytest.raises(SpecError, match="known kinds are lmdb, redis"):
        open_store("cassandra://host")
    with pytest.raises(SpecError, match="without a path; give one"):
        open_store("redis:")
    assert set(STORES) >= {"lmdb", "redis"}


def test_an_lmdb_store_is_what_a_plain_path_means(tmp_path):
    store = open_store(str(tmp_path / "here"))
    assert store.url == f"lmdb:{tmp_path / 'here'}"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        open_store(str(tmp_path / "file"))


def test_a_store_without_patches_is_named_by_whoever_needs_them(tmp_path, installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    store = open_store(f"sqlite:{tmp_path}/store")
    load(store, lists=numbered(3))
    assert read_patch_state(store, SHOP, 1) == PatchState()
    assert repair_patches(store, SHOP) is None
    with pytest.raises(StoreError, match=r"sqlite:.*/store takes no live updates"):
        find_patches(store, SHOP)
