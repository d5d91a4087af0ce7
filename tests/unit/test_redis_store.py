"""What only a store behind a network can get wrong: a server that is gone, slow, full, or has forgotten something."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time

import pytest

from nearcast.errors import BusyError, DamagedError, GoneError, NotFoundError, SpecError, StoreError
from nearcast.stores import open_store
from nearcast.stores.base import OverlayChanges, OverlayEntry, Pointer, Space
from nearcast.stores.redis_cluster import ClusterClient
from nearcast.stores.redis_url import parse_url
from needs import require_module
from servers import HERE, free_port, redis_running

SHOP = "shop"
PATIENCE = 180.0  # seconds


@pytest.fixture
def client(redis_url):
    """Plain redis-py, to look behind the store and to do it harm."""
    redis = require_module("redis")
    with contextlib.closing(redis.Redis.from_url(redis_url)) as opened:
        yield opened


@pytest.fixture
def open_at(redis_url):
    """Opens the store with some settings in its URL."""
    stores = []

    def opening(**asked):
        query = "&".join(f"{name}={value}" for name, value in ({"buckets": 16} | asked).items())
        stores.append(open_store(f"{redis_url}?{query}"))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


@pytest.fixture
def store(open_at):
    return open_at()


@pytest.fixture
def behind_proxy(proxy, redis_url):
    """The store as it is seen through the proxy."""
    opened = open_store(f"redis://{HERE}:{proxy.port}/0?buckets=16&timeout=1")
    yield opened
    proxy.restore()
    opened.close()


def numbered(n, size=20):
    return [(f"key{i:06d}".encode(), bytes([i % 256]) * size) for i in range(n)]


def load(store, version=1, pairs=None):
    writer = store.write(SHOP, version)
    writer.put(Space.LISTS, numbered(200) if pairs is None else pairs)
    writer.put(Space.ITEMS, numbered(3))
    writer.finish({"n": version})


def values(reader, pairs):
    return reader.get_many(Space.LISTS, [key for key, _ in pairs]), [value for _, value in pairs]


def read_until_it_fails(reader):
    """Every answer before that is right."""
    while True:
        found, written = values(reader, numbered(200))
        assert found == written


def put_much(writer, size):
    """A hundred times a hundred pairs."""
    for start in range(100):
        writer.put(Space.LISTS, [(f"{start} {key}".encode(), value) for key, value in numbered(100, size)])


def until(condition):
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def expiring(client):
    """The keys of versions that run out, and those that do not."""
    keys = client.keys("nearcast:shop:v:*")
    return [key for key in keys if client.ttl(key) >= 0], [key for key in keys if client.ttl(key) < 0]


def test_the_layout_is_as_the_documentation_says(store, client):
    load(store, 7)
    with store.lock(SHOP) as held:
        store.point(SHOP, Pointer(7, 1), held)
    load_name = client.hget("nearcast:shop:versions", "7").decode()
    facts = client.hgetall("nearcast:shop:v:7:facts")
    assert {key: facts[key] for key in (b"format", b"buckets", b"lists", b"items", b"facts")} == {
        b"format": b"1",
        b"buckets": b"16",
        b"lists": b"200",
        b"items": b"3",
        b"facts": b'{"n": 7}',
    }
    assert facts[b"load"].decode() == load_name
    assert client.hlen(f"nearcast:shop:v:7:{load_name}:lists:3") > 0
    assert client.smembers("nearcast:generators") == {b"shop"}
    assert client.get("nearcast:shop:current") == Pointer(7, 1).to_bytes()


def test_nothing_of_a_live_version_runs_out(store, client):
    load(store)
    gone, stays = expiring(client)
    assert gone == []
    assert len(stays) > 16


def test_a_retired_version_answers_for_the_time_of_grace_and_is_then_gone_and_never_a_wrong_miss(open_at, client):
    store = open_at(grace=3)
    load(store)
    reader = store.open(SHOP, 1, verify=True)
    store.retire(SHOP, 1)
    found, written = values(reader, numbered(200))
    assert found == written
    assert expiring(client)[1] == []
    with pytest.raises(GoneError, match="version 1 was taken away"):
        read_until_it_fails(reader)
    with pytest.raises(GoneError):
        list(reader.pairs(Space.LISTS))
    with pytest.raises(GoneError):
        reader.some_keys(Space.LISTS, 5, seed=1)
    with pytest.raises(GoneError):
        reader.get_many(Space.LISTS, [b"no such key"])
    until(lambda: expiring(client) == ([], []))
    assert client.hgetall("nearcast:shop:loads") == {}


def test_without_grace_a_retired_version_is_gone_at_once(open_at, client):
    store = open_at(grace=0)
    load(store)
    reader = store.open(SHOP, 1, verify=True)
    store.retire(SHOP, 1)
    with pytest.raises(GoneError):
        reader.get_many(Space.LISTS, [b"key000001"])
    assert client.keys("nearcast:shop:v:*") == []


def test_the_facts_of_a_retired_version_run_out_before_its_data(open_at, client):
    for grace in (3600, 100):
        store = open_at(grace=grace)
        load(store)
        store.retire(SHOP, 1)
        data = [client.pttl(key) for key in client.keys("nearcast:shop:v:1:*:*:*")]
        assert client.pttl("nearcast:shop:v:1:facts") <= min(data) - min(60, grace / 4) * 1000 + 100
        assert min(data) > 0
        client.flushall()


def test_a_reader_of_a_version_that_was_written_anew_is_told(store):
    load(store, pairs=[(b"a", b"old"), (b"b", b"old")])
    reader = store.open(SHOP, 1, verify=True)
    store.retire(SHOP, 1)
    assert reader.get_many(Space.LISTS, [b"a"]) == [b"old"]
    load(store, pairs=[(b"a", b"new")])
    with pytest.raises(GoneError):
        reader.get_many(Space.LISTS, [b"a", b"b"])


def test_a_retirement_that_was_interrupted_is_completed_by_the_next(store, client, monkeypatch):
    load(store, 1)
    load(store, 2)
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "_expire", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.retire(SHOP, 1)
    assert store.versions(SHOP) == [2]
    store.retire(SHOP, 99)
    gone, stays = expiring(client)
    assert {key.split(b":")[3] for key in gone} == {b"1"}
    assert {key.split(b":")[3] for key in stays} == {b"2"}


def test_what_an_unfinished_load_has_left_is_removed_also_when_it_had_other_buckets(open_at, client):
    open_at(buckets=100).write(SHOP, 1).put(Space.LISTS, numbered(500))
    load(open_at(buckets=7), 1, numbered(50))
    assert len(client.keys("nearcast:shop:v:*")) <= 1 + 7 + 7
    reader = open_at(buckets=16).open(SHOP, 1, verify=True)
    assert dict(reader.pairs(Space.LISTS)) == dict(numbered(50))


def test_a_retirement_does_not_touch_a_load_that_is_under_way(store):
    load(store, 1)
    writer = store.write(SHOP, 2)
    writer.put(Space.LISTS, numbered(50))
    store.retire(SHOP, 1)
    writer.put(Space.LISTS, [(b"z", b"z")])
    writer.finish({})
    assert store.versions(SHOP) == [2]


def test_who_has_lost_the_lock_cannot_write_into_the_load_of_another(open_at, client):
    late, other = open_at(), open_at()
    writer = late.write(SHOP, 1)
    writer.put(Space.LISTS, [(b"a", b"late")])
    mine = other.write(SHOP, 1)
    mine.put(Space.LISTS, [(b"a", b"mine")])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"has lost the loaded data .* publish again"):
            writer.put(Space.LISTS, [(b"b", b"late")])
    with pytest.raises(StoreError, match="has lost the loaded data"):
        writer.finish({})
    writer.discard()
    mine.finish({})
    assert dict(other.open(SHOP, 1, verify=True).pairs(Space.LISTS)) == {b"a": b"mine"}
    assert len(client.keys("nearcast:shop:v:*")) == 2


def test_the_lock_is_renewed_as_long_as_it_is_held(open_at, client):
    store = open_at(timeout=1)
    with store.lock(SHOP) as held:
        left = [client.pttl("nearcast:shop:lock")]
        until(lambda: left.append(client.pttl("nearcast:shop:lock")) or left[-1] > left[-2] + 100)
        held.check()
    assert client.get("nearcast:shop:lock") is None


def test_a_lock_that_another_has_taken_moves_no_pointer_and_is_left_to_the_other(open_at, client):
    store, other = open_at(), open_at()
    with contextlib.ExitStack() as until_the_end:
        with store.lock(SHOP) as held:
            store.point(SHOP, Pointer(1, 1), held)
            client.delete("nearcast:shop:lock")
            theirs = until_the_end.enter_context(other.lock(SHOP))
            with pytest.raises(BusyError, match=r"the lock of shop .* is held by process"):
                held.check()
            with pytest.raises(BusyError, match="the lock of shop"):
                store.point(SHOP, Pointer(2, 2), held)
            other.point(SHOP, Pointer(3, 2), theirs)
        theirs.check()
    assert store.pointer(SHOP) == Pointer(3, 2)
    assert client.get("nearcast:shop:lock") is None


def test_a_lock_that_somebody_else_wrote_is_respected(store, client):
    client.set("nearcast:shop:lock", "\x00 no JSON")
    with pytest.raises(BusyError, match="held by another process"), store.lock(SHOP):
        pass


def test_a_server_that_goes_away_during_a_load_and_comes_back(behind_proxy, proxy, store, client):
    load(store, 1)
    writer = behind_proxy.write(SHOP, 2)
    writer.put(Space.LISTS, numbered(10))
    proxy.bytes_until_cut = 200_000
    with pytest.raises(StoreError, match=rf"redis://{HERE}:{proxy.port}/0 cannot be reached .* see that it runs"):
        put_much(writer, size=100)
    with pytest.raises(StoreError, match="cannot be reached"):
        writer.finish({})
    with pytest.raises(StoreError, match="cannot be reached"):
        writer.discard()
    with pytest.raises(StoreError, match="cannot be reached"):
        behind_proxy.pointer(SHOP)
    assert store.versions(SHOP) == [1]
    proxy.restore()
    load(behind_proxy, 2, [(b"a", b"1")])
    assert dict(behind_proxy.open(SHOP, 2, verify=True).pairs(Space.LISTS)) == {b"a": b"1"}
    assert len(client.hgetall("nearcast:shop:loads")) == 2


def test_a_connection_that_was_dropped_is_made_anew(behind_proxy, proxy):
    load(behind_proxy)
    reader = behind_proxy.open(SHOP, 1, verify=False)
    for _ in range(3):
        assert len(set(values(reader, numbered(200))[0])) == 200
        proxy.drop()
    assert behind_proxy.versions(SHOP) == [1]


def test_a_connection_that_breaks_during_a_request_is_made_anew_once(behind_proxy, proxy):
    load(behind_proxy)
    reader = behind_proxy.open(SHOP, 1, verify=False)
    proxy.requests_to_drop = 1
    found, written = values(reader, numbered(200))
    assert found == written
    proxy.requests_to_drop = 1000
    with pytest.raises(StoreError, match="cannot be reached"):
        values(reader, numbered(200))
    assert proxy.requests_to_drop > 990


def test_a_look_up_of_one_key_in_a_cluster_is_one_round_trip(cluster_url, monkeypatch):
    with contextlib.closing(open_store(f"{cluster_url}?buckets=16")) as store:
        load(store)
        reader, trips, send = store.open(SHOP, 1, verify=True), [], ClusterClient._send
        values(reader, numbered(1))  # the first call also reads the patches
        monkeypatch.setattr(ClusterClient, "_send", lambda *given: trips.append(given) or send(*given))
        for key, value in numbered(20):  # the node of the key and that of the generator at the same time
            assert reader.get_many(Space.LISTS, [key]) == [value]
        assert len(trips) == 20
        assert reader.get_many(Space.LISTS, [b"no"]) == [None]
        assert len(trips) == 22  # a miss counts the pairs of its bucket


def test_a_server_that_is_slow_is_waited_for_once_and_its_late_answers_are_no_others(redis_url, proxy):
    store = open_store(f"redis://{HERE}:{proxy.port}/0?timeout=1&buckets=4")
    load(store)
    reader = store.open(SHOP, 1, verify=False)
    proxy.delay = 3.0
    for number in range(2):
        with pytest.raises(StoreError, match=r"did not answer within 1 s;.*\?timeout=SECONDS"):
            reader.get_many(Space.LISTS, [f"key00000{number}".encode()])
    with pytest.raises(StoreError, match="did not answer"), store.lock(SHOP):
        pass
    proxy.restore()
    found, written = values(reader, numbered(200))
    assert found == written
    store.close()


def test_a_lock_whose_renewal_fails_for_a_while_is_kept(proxy, redis_url):
    store = open_store(f"redis://{HERE}:{proxy.port}/0?timeout=1")
    with store.lock(SHOP) as held:
        proxy.cut()
        with pytest.raises(StoreError, match="cannot be reached"):
            held.check()
        proxy.restore()
        held.check()
        store.point(SHOP, Pointer(1, 1), held)
    store.close()


def test_a_server_that_was_started_anew_has_lost_the_load(tmp_path):
    with redis_running(tmp_path / "redis") as server:
        store = open_store(server.url)
        writer = store.write(SHOP, 1)
        writer.put(Space.LISTS, numbered(10))
        server.kill()
        with pytest.raises(StoreError, match="cannot be reached"):
            writer.put(Space.LISTS, numbered(10))
        server.start()
        with pytest.raises(StoreError, match=r"has lost the loaded data .* started anew"):
            writer.put(Space.LISTS, numbered(10))
        with pytest.raises(StoreError, match="has lost the loaded data"):
            writer.finish({})
        assert store.versions(SHOP) == []
        assert store.overlay(SHOP).changes() == OverlayChanges(0, 0, ())
        store.close()


def test_an_overlay_that_was_lost_is_read_anew(store, client):
    log = store.overlay(SHOP)
    log.write([OverlayEntry("a", None, True, 0.0), OverlayEntry("b", None, True, 0.0)])
    before = log.changes()
    client.flushall()
    assert log.changes(epoch=before.epoch, serial=before.serial).epoch != before.epoch
    log.write([OverlayEntry("c", None, True, 0.0)])
    assert [entry.item for entry in log.changes(epoch=before.epoch, serial=before.serial).entries] == ["c"]


def test_pairs_that_the_server_has_lost_are_found_before_and_after_the_end_of_a_load(store, client):
    writer = store.write(SHOP, 1)
    writer.put(Space.LISTS, numbered(200))
    client.delete(client.keys("nearcast:shop:v:1:*:lists:3")[0])
    with pytest.raises(StoreError, match="has lost the loaded data"):
        writer.finish({})
    load(store, 2)
    client.delete(client.keys("nearcast:shop:v:2:*:lists:3")[0])
    with pytest.raises(
        DamagedError, match=r"nearcast:shop:v:2:\w+:lists:\* .* holds 1\d\d pairs where 200 were written"
    ):
        store.open(SHOP, 2, verify=True)


@pytest.mark.parametrize(
    ("field", "value"), [("format", "2"), ("load", "x"), ("facts", "{"), ("buckets", "many"), ("lists", None)]
)
def test_facts_that_are_not_as_they_were_written_are_named(store, client, field, value):
    load(store)
    if value is None:
        client.hdel("nearcast:shop:v:1:facts", field)
    else:
        client.hset("nearcast:shop:v:1:facts", field, value)
    with pytest.raises(DamagedError, match=r"nearcast:shop:v:1:facts in redis://.* is damaged .*--repair"):
        store.open(SHOP, 1, verify=False)


def test_a_list_of_loads_that_is_damaged_is_named(store, client):
    client.hset("nearcast:shop:loads", "abc", "{")
    with pytest.raises(DamagedError, match=r"nearcast:shop:loads holds .* for abc"):
        store.write(SHOP, 1)


def test_a_wrong_password_is_told_and_never_shown(tmp_path):
    with redis_running(tmp_path / "redis", "--requirepass", "sesame") as server:
        place = f"{HERE}:{server.port}"
        for url in (f"redis://:wr%6Fng@{place}/0", f"redis://someone:wrong@{place}/0", f"redis://{place}/0"):
            with pytest.raises(
                StoreError, match=rf"redis://(someone@)?{place}/0 refuses the user or the password"
            ) as told:
                open_store(url)
            assert "wrong" not in str(told.value)
        store = open_store(f"redis://:sesame@{place}/0")
        load(store)
        assert store.url == f"redis://{place}/0"
        assert "sesame" not in repr(parse_url(f"redis://:sesame@{place}/0"))
        server.kill()
        with pytest.raises(StoreError) as gone:
            store.versions(SHOP)
        assert "sesame" not in str(gone.value)
        store.close()


def test_the_rights_that_the_documentation_asks_for_are_enough(repository, redis_url, client):
    text = (repository / "docs" / "stores.md").read_text(encoding="utf-8")
    (first, second) = re.search(r"^ +(~nearcast:\*.*)\n +(.*)", text, re.MULTILINE).groups()
    client.acl_setuser("limited", reset=True, enabled=True, passwords=["+sesame"])
    client.execute_command("ACL", "SETUSER", "limited", *first.split(), *second.split())
    store = open_store(redis_url.replace("//", "//limited:sesame@") + "?buckets=4&timeout=1")
    with store.lock(SHOP) as held:
        load(store, 1)
        load(store, 2)
        store.point(SHOP, Pointer(2, 1), held)
        store.write(SHOP, 3).discard()
        store.retire(SHOP, 1)
        until(lambda: client.pttl("nearcast:shop:lock") < 3900)
        until(lambda: client.pttl("nearcast:shop:lock") > 3900)  # it was renewed
    assert (store.generators(), store.versions(SHOP), store.pointer(SHOP)) == ([SHOP], [2], Pointer(2, 1))
    reader = store.open(SHOP, 2, verify=True)
    assert dict(reader.pairs(Space.LISTS)) == dict(numbered(200))
    assert len(reader.some_keys(Space.LISTS, 5, seed=1)) == 5
    log = store.overlay(SHOP)
    log.write([OverlayEntry("a", None, True, 0.0)])
    log.purge([OverlayEntry("a", None, True, 0.0).key()], upto=1)
    assert log.changes().entries == ()
    client.acl_setuser("limited", reset=True, enabled=True, passwords=["+sesame"], keys=["*"], commands=["+ping"])
    with pytest.raises(StoreError, match=r"does not let this user do it .*docs/stores\.md lists"):
        store.versions(SHOP)
    client.acl_deluser("limited")
    store.close()


def test_a_full_server_is_told_and_keeps_what_it_has(tmp_path):
    with redis_running(tmp_path / "redis", "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        store = open_store(f"{server.url}?buckets=16&grace=0")
        load(store, 1)
        writer = store.write(SHOP, 2)
        with pytest.raises(StoreError, match=r"is full .* raise its maxmemory, or keep fewer versions"):
            put_much(writer, size=10_000)
        with contextlib.closing(require_module("redis").Redis.from_url(server.url)) as client:
            client.config_set("maxmemory", 1)
            other = open_store(server.url)  # as a process that starts now
            assert dict(other.open(SHOP, 1, verify=True).pairs(Space.LISTS)) == dict(numbered(200))
            other.close()
            client.config_set("maxmemory", 8 << 20)
        writer.discard()
        assert dict(store.open(SHOP, 1, verify=True).pairs(Space.LISTS)) == dict(numbered(200))
        load(store, 2)
        assert store.versions(SHOP) == [1, 2]
        store.close()


def test_a_server_that_throws_keys_away_is_refused(tmp_path):
    with redis_running(tmp_path / "redis", "--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru") as server:
        store = open_store(server.url)
        with pytest.raises(StoreError, match=r"maxmemory-policy allkeys-lru.* set it to noeviction"):
            store.write(SHOP, 1)
        store.close()


def test_a_replica_is_not_written_to(tmp_path):
    with redis_running(tmp_path / "redis", "--replicaof", HERE, "1", "--replica-serve-stale-data", "yes") as server:
        store = open_store(server.url)
        with pytest.raises(StoreError, match=r"is a replica.* give the address of the primary"), store.lock(SHOP):
            pass
        assert store.versions(SHOP) == []
        store.close()


def test_a_server_that_is_not_there_is_told():
    port = free_port()
    with pytest.raises(StoreError, match=rf"redis://{HERE}:{port}/3 cannot be reached .* see that it runs"):
        open_store(f"redis://:secret@{HERE}:{port}/3")


def test_a_unix_socket_and_the_schemes_of_valkey_work(tmp_path, redis_url):
    with redis_running(tmp_path / "redis", "--unixsocket", str(tmp_path / "socket")):
        store = open_store(f"unix://{tmp_path / 'socket'}?db=1")
        load(store)
        assert store.versions(SHOP) == [1]
        assert store.url == f"unix://{tmp_path / 'socket'}"
        store.close()
    store = open_store(redis_url.replace("redis:", "valkey:"))
    assert store.versions(SHOP) == []
    assert store.url.startswith("valkey://")
    store.close()


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("decode_responses=true", "has the setting 'decode_responses'; known ones are timeout, grace"),
        ("timeout=never", "timeout is 'never'; give a number from 0.01"),
        ("timeout=0", "timeout is '0'"),
        ("grace=-1", "grace is '-1'"),
        ("buckets=nan", "buckets is 'nan'"),
        ("db=x", "db is 'x'; give a whole number from 0"),
    ],
)
def test_settings_that_are_wrong_are_told(query, told):
    with pytest.raises(SpecError) as error:
        open_store(f"redis://:secret@{HERE}:1/0?{query}")
    assert told in str(error.value)
    assert "secret" not in str(error.value)


def test_a_url_that_cannot_be_read_is_refused_without_showing_it():
    for url in ("redis://:secret@host:port/0", "redis://[:secret", "redis://:sec/ret@host/0"):
        with pytest.raises(SpecError) as error:
            open_store(url)
        assert "sec" not in str(error.value)


def test_a_version_that_is_not_there_is_told_with_those_that_are(store):
    load(store, 3)
    load(store, 5)
    with pytest.raises(NotFoundError, match="no version 4 of shop; it has 3, 5"):
        store.open(SHOP, 4, verify=True)


def test_without_the_library_the_error_names_the_extra():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "redis":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
from nearcast.errors import MissingExtraError
from nearcast.stores import open_store
try:
    open_store("redis://localhost")
except MissingExtraError as error:
    assert "pip install 'nearcast[redis]'" in str(error)
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "told\n", done.stderr
