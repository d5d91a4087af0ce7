"""Redis loses keys: to eviction, to FLUSHDB, to a restart, to a failover. A loss is an error, never a miss."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest

import nearcast
from nearcast.errors import DamagedError, GoneError, NearcastError, StoreError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, PatchFacts, Space, repair_overlay
from nearcast.stores.value_format import encode_key
from published import publish
from servers import redis_running

SHOP = "shop"
BUCKETS = 16
KEYS = list(range(200))
LISTS = {key: [(1000 + key % 50, 1.0)] for key in KEYS}
OVERLAY_KEYS = [f"nearcast:{SHOP}:overlay:{name}" for name in ("entries", "log", "state", "removals")]
OVERLAY_KEYS.append("nearcast:overlays")
PATIENCE = 180.0


@pytest.fixture
def client(redis_url) -> Iterator:
    import redis

    with contextlib.closing(redis.Redis.from_url(redis_url)) as opened:
        yield opened


@pytest.fixture
def store(redis_url) -> Iterator:
    with contextlib.closing(open_store(f"{redis_url}?buckets={BUCKETS}&grace=600")) as opened:
        yield opened


def removal(item):
    return OverlayEntry(item, None, True, written=time.time())


def buckets(client, space="lists", version=1):
    return sorted(client.keys(f"nearcast:{SHOP}:v:{version}:*:{space}:*"))


def answers(lookup):
    """For every key whether it was right; an error counts as right, a miss never does."""
    lost = 0
    for key in KEYS:
        try:
            assert list(lookup.get(key).ids) == [1000 + key % 50]
        except NearcastError:
            lost += 1
    return lost


def test_a_running_reader_never_takes_a_lost_bucket_for_a_miss(store, client):
    publish(store, SHOP, 1, LISTS)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        assert lookup.get(777).found is False  # a true miss
        gone = buckets(client)[3]
        in_it = client.hlen(gone)
        client.delete(gone)
        assert answers(lookup) == in_it
        lost_key = next(key for key in KEYS if _is_lost(lookup, key))
        with pytest.raises(DamagedError, match=rf"{gone.decode()} is not in redis://.* publish again with --repair"):
            lookup.get_many([lost_key, 1])
        with pytest.raises(DamagedError):
            list(lookup.view().version.reader.pairs(Space.LISTS))
        with pytest.raises(DamagedError):
            lookup.view().version.reader.some_keys(Space.LISTS, 200, seed=1)


def test_a_bucket_that_has_lost_some_pairs_gives_errors_for_them_and_no_misses(store, client):
    """As after a failover to a replica that had not received them."""
    publish(store, SHOP, 1, LISTS)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        bucket = buckets(client)[3]
        lost = client.hkeys(bucket)[0]
        client.hdel(bucket, lost)
        assert answers(lookup) == 1
        (key,) = [key for key in KEYS if encode_key(key) == lost]
        text = rf"{bucket.decode()} in redis://.* has \d+ pairs and should have more; .* publish again with --repair"
        for keys in ([key], [key, 1]):
            with pytest.raises(DamagedError, match=text):
                lookup.get_many(keys)
        with pytest.raises(DamagedError, match=text):
            list(lookup.view().version.reader.pairs(Space.LISTS))


def test_a_patch_that_has_lost_some_pairs_gives_errors_for_them_and_no_older_lists(store, client):
    publish(store, SHOP, 1, LISTS)
    with store.lock(SHOP) as lock:
        pairs = {Space.LISTS: [(encode_key(key), b"newer") for key in KEYS]}
        store.patches(SHOP).write(PatchFacts(1, 1, "", 0.0, {"lists": len(KEYS)}), pairs, lock)
    reader = store.open(SHOP, 1, verify=False)
    (bucket,) = client.keys("*:p:000001-*:lists:*")
    client.hdel(bucket, encode_key(7))
    assert reader.get_many(Space.LISTS, [encode_key(8)]) == [b"newer"]
    for keys in ([encode_key(7)], [encode_key(7), encode_key(8)]):
        with pytest.raises(DamagedError, match="has lost pairs, and with them a part of a patch"):
            reader.get_many(Space.LISTS, keys)


def test_a_running_reader_says_that_the_facts_of_the_current_version_were_lost(store, client):
    publish(store, SHOP, 1, LISTS)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        (facts,) = client.keys("nearcast:*:facts")
        client.delete(facts)
        assert "publish again with --repair" in (lookup.refresh().error or "")
        publish(store, SHOP, 2, LISTS)
        assert lookup.refresh().error is None


def _is_lost(lookup, key):
    try:
        return not lookup.get(key).found
    except DamagedError:
        return True


@pytest.mark.parametrize("space", list(Space))
def test_the_watching_thread_finds_a_lost_bucket_that_nobody_asks_for(store, client, space):
    publish(store, SHOP, 1, LISTS)
    with nearcast.open(store, SHOP, refresh_seconds=0.02) as lookup:
        client.delete(buckets(client, space)[0])
        end = time.monotonic() + PATIENCE
        while lookup.error is None and time.monotonic() < end:
            time.sleep(0.02)
        assert "is not in redis://" in lookup.error
        publish(store, SHOP, 2, LISTS)  # mends it
        while lookup.error is not None and time.monotonic() < end:
            time.sleep(0.02)
        assert lookup.error is None
        assert answers(lookup) == 0


def test_every_open_finds_a_lost_bucket_also_of_a_version_of_an_older_nearcast(store, client):
    publish(store, SHOP, 1, LISTS)
    publish(store, SHOP, 2, LISTS)
    client.hdel(f"nearcast:{SHOP}:v:2:facts", "lists_filled", "items_filled", "lists_lengths", "items_lengths")
    for version in (1, 2):
        store.open(SHOP, version, verify=False).close()
        client.delete(buckets(client, version=version)[5])
        for verify in (False, True):
            with pytest.raises(DamagedError):
                store.open(SHOP, version, verify=verify)


def test_a_retired_version_whose_data_was_thrown_away_early_is_gone_and_never_a_miss(store, client):
    publish(store, SHOP, 1, LISTS)
    reader = store.open(SHOP, 1, verify=True)
    publish(store, SHOP, 2, LISTS)
    store.retire(SHOP, 1)
    client.delete(*buckets(client))  # as a volatile-* policy does, since they expire
    for key in KEYS[:20]:
        with pytest.raises(GoneError):
            reader.get_many(Space.LISTS, [encode_key(key)])
    with pytest.raises(GoneError):
        reader.get_many(Space.LISTS, [encode_key(key) for key in KEYS])


def test_a_server_that_throws_keys_away_gives_errors_and_no_misses(tmp_path):
    import redis

    settings = ["--maxmemory", "6mb", "--maxmemory-policy", "volatile-lru"]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_running(tmp_path / "redis", *settings))
        store = stack.enter_context(contextlib.closing(open_store(f"{server.url}?buckets={BUCKETS}")))
        publish(store, SHOP, 1, LISTS)
        lookup = stack.enter_context(nearcast.open(store, SHOP, refresh_seconds=3600))
        client = stack.enter_context(contextlib.closing(redis.Redis.from_url(server.url)))
        client.config_set("maxmemory-policy", "allkeys-random")
        for number in range(60):
            client.set(f"other:{number}", b"x" * 200_000)
        assert client.info("stats")["evicted_keys"] > 0
        answers(lookup)


def fill_overlay(store):
    log = store.overlay(SHOP)
    log.write([removal(1001), removal(1002), OverlayEntry(1003, "price", 5, written=time.time())])
    log.write([removal(1004)])
    return log


LOST = [some for n in (1, 2, 3, 4) for some in itertools.combinations(range(5), n)]


@pytest.mark.parametrize("lost", LOST, ids=lambda some: "-".join(OVERLAY_KEYS[i].rpartition(":")[2] for i in some))
def test_a_lost_overlay_is_an_error_and_never_an_empty_one(store, client, lost):
    """Only the second copies, `removals` and `nearcast:overlays`, may be lost without harm."""
    publish(store, SHOP, 1, LISTS)
    log = fill_overlay(store)
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        before = lookup.view().overlay
        client.delete(*(OVERLAY_KEYS[number] for number in lost))
        if set(lost) <= {3, 4}:
            assert len(log.changes().entries) == 4
            return
        lookup.refresh()
        assert lookup.removed([1001, 1002, 1004]) == [True] * 3
        assert "has lost" in lookup.error or "went back" in lookup.error
        for act in (log.changes, lambda: log.write([removal(1005)]), lambda: log.purge([b""], upto=99)):
            with pytest.raises(DamagedError, match=r"has lost .* heal it with publish --repair"):
                act()
        with pytest.raises(DamagedError), nearcast.open(store, SHOP):
            pass
        told = repair_overlay(log)
        assert told is not None
        assert repair_overlay(log) is None
        items = sorted(entry.item for entry in log.changes().entries if entry.field is None)
        if not {0, 3} <= set(lost):
            assert items == [1001, 1002, 1004]
        lookup.refresh()
        assert lookup.error is None
        assert log.changes().serial > before.serial


def test_an_overlay_of_an_older_copy_is_refused_and_what_was_removed_since_stays_removed(store, client):
    publish(store, SHOP, 1, LISTS)
    log = fill_overlay(store)
    old = {name: client.dump(name) for name in OVERLAY_KEYS}
    log.write([removal(1007)])
    with nearcast.open(store, SHOP, refresh_seconds=3600) as lookup:
        for name in OVERLAY_KEYS[:4]:
            client.restore(name, 0, old[name], replace=True)
        with pytest.raises(DamagedError, match="as an older copy of its data has"):
            log.changes()
        client.restore(OVERLAY_KEYS[4], 0, old[OVERLAY_KEYS[4]], replace=True)  # the whole server is an older copy
        lookup.refresh()
        assert "went back from serial 5 to 4" in lookup.error
        assert lookup.removed([1007]) == [True]


def test_an_overlay_of_an_older_nearcast_is_read_and_written_on(store, client):
    publish(store, SHOP, 1, LISTS)
    log = fill_overlay(store)
    client.delete(*OVERLAY_KEYS[3:])
    client.hdel(OVERLAY_KEYS[2], "count", "counted")
    assert len(log.changes().entries) == 4
    log.write([removal(1008)])
    assert len(log.changes().entries) == 5
    # and an older one writes on in it
    client.hincrby(OVERLAY_KEYS[2], "serial", 1)
    client.hset(OVERLAY_KEYS[0], removal(1009).key(), removal(1009).to_bytes())
    client.zadd(OVERLAY_KEYS[1], {removal(1009).key(): 6})
    assert len(log.changes().entries) == 6


def test_a_restart_without_persistence_is_no_answer_and_no_empty_overlay(tmp_path):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis_running(tmp_path / "redis"))
        store = stack.enter_context(contextlib.closing(open_store(f"{server.url}?buckets={BUCKETS}&timeout=2")))
        publish(store, SHOP, 1, LISTS)
        fill_overlay(store)
        lookup = stack.enter_context(nearcast.open(store, SHOP, refresh_seconds=3600))
        server.kill()
        server.start()
        lookup.refresh()
        assert lookup.error is not None
        assert lookup.removed([1001]) == [True]
        for key in KEYS[:10]:
            with pytest.raises((StoreError, GoneError, DamagedError)):
                lookup.get(key)


@pytest.mark.parametrize("lost", ["loads", "v:1:facts", "loads v:1:facts"])
def test_a_version_whose_records_were_lost_can_be_taken_away(store, client, lost):
    publish(store, SHOP, 1, LISTS)
    publish(store, SHOP, 2, LISTS)
    client.delete(*(f"nearcast:{SHOP}:{name}" for name in lost.split()))
    store.retire(SHOP, 1)
    assert store.versions(SHOP) == [2]
    assert all(client.pttl(name) > 0 for name in buckets(client))
    store.open(SHOP, 2, verify=True).close()
