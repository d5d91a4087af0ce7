"""Files that are followed: in force in the order of their names, each exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import time
from unittest import mock
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.updating import killed_worker
from tests.updating.test_updates import draw_item, item_table, make_shop

import nearcast
from nearcast.api.updates import open_follower, roll_back_updates
from nearcast.cli.follow import follow, serve_metrics
from nearcast.errors import BusyError, SpecError, StorageError, StoreError
from nearcast.join.listener import Listener
from nearcast.storage.base import StoredObject
from nearcast.storage.open_storage import open_storage
from nearcast.updating import file_feed
from nearcast.updating.file_offset import KEPT_SECONDS, FileOffset

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.updating.killed_worker"])
KILLS = 30


@pytest.fixture
def shop(tmp_path):
    made, rng = make_shop(tmp_path, "rules")
    made.settings["audit"] |= {"max_lists_changed": 1}
    (tmp_path / "feed").mkdir()
    made.rng = rng
    return made


def put(shop, name, rows=None, gone=()):
    """Write a file of the feed as a careful job does, and change the data as it says."""
    path = shop.folder / "feed" / f"{name}.parquet"
    table = item_table(rows) if rows is not None else pa.table({"id": list(gone)})
    partial = path.with_name(f"_{path.name}")
    pq.write_table(table, partial)
    os.replace(partial, path)
    shop.items = {key: row for key, row in shop.items.items() if key not in set(gone)} | (rows or {})


def catch_up(shop, source=None, **options):
    source = source or str(shop.folder / "feed")
    with open_follower(shop.spec(), source, store=shop.store, **options) as follower:
        return follower.catch_up(), follower.figures


def notes_of(shop):
    return [patch.note for patch in shop.store.patches("shop").state(1).patches]


def offset_of(shop):
    (known,) = shop.store.patches("shop").state(1).offsets.values()
    return known


def test_files_are_applied_in_the_order_of_names_and_each_once(shop):
    put(shop, "01", {300: draw_item(shop.rng), 301: draw_item(shop.rng)})
    put(shop, "02.gone", gone=[301])
    catch_up(shop)
    assert notes_of(shop) == ["follow: 01.parquet, 02.gone.parquet"]  # small ones together
    put(shop, "03", {301: draw_item(shop.rng)})
    results, figures = catch_up(shop)
    assert [done.counts["items"] for done in results] == [1]
    assert catch_up(shop)[0] == []
    assert shop.served() == shop.expected()
    assert figures.quantile(0.99) > 0


def test_its_metrics_have_the_name_of_the_generator_and_an_address_in_use_is_an_error(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    with open_follower(shop.spec(), str(shop.folder / "feed"), store=shop.store) as follower:
        follower.catch_up()
        with serve_metrics(follower, ("127.0.0.1", 0)) as url:
            assert 'nearcast_follow_items_total{generator="shop"} 1' in urlopen(url, timeout=10).read().decode()
            port = int(url.split(":")[2].split("/")[0])
            with (
                pytest.raises(SpecError, match=f"127.0.0.1:{port} cannot be used"),
                serve_metrics(follower, ("127.0.0.1", port)),
            ):
                pass


def test_the_address_of_the_metrics_is_a_port_or_a_host_and_a_port():
    for wrong in ("shop", "0.0.0.0:", "99999", "-1"):
        done = CliRunner().invoke(follow, ["shop", "--source", "feed", "--metrics", wrong])
        assert (done.exit_code, "no [HOST:]PORT" in done.output) == (2, True), wrong


def test_a_file_whose_name_sorts_before_read_ones_is_read_and_so_is_one_that_is_written_again(shop):
    put(shop, "05", {300: draw_item(shop.rng)})
    catch_up(shop)
    put(shop, "01", {301: draw_item(shop.rng)})
    put(shop, "05", {300: draw_item(shop.rng), 302: draw_item(shop.rng)})
    assert sum(done.counts["items"] for done in catch_up(shop)[0]) == 3
    assert catch_up(shop)[0] == []
    assert shop.served() == shop.expected()


def test_a_file_that_is_being_written_waits_and_a_bad_one_is_set_aside(shop):
    feed = shop.folder / "feed"
    put(shop, "01", {300: draw_item(shop.rng)})
    whole = (feed / "01.parquet").read_bytes()
    (feed / "02.parquet").write_bytes(whole[:-20])
    put(shop, "03", {302: draw_item(shop.rng)})
    results, figures = catch_up(shop)
    assert len(results) == 1  # 02 may grow yet, and 03 comes after it
    assert figures.lag_seconds > 0
    old = time.time() - 3600
    os.utime(feed / "02.parquet", (old, old))
    results, figures = catch_up(shop)
    assert (len(results), figures.set_aside) == (1, 1)
    known = offset_of(shop)
    assert (known["count"], known["set_aside"][0][0]) == (1, "02.parquet")
    assert catch_up(shop)[1].set_aside == 0
    assert shop.served() == shop.expected()
    put(shop, "02", {303: draw_item(shop.rng)})  # the writer goes on
    assert len(catch_up(shop)[0]) == 1
    assert shop.served() == shop.expected()


def test_a_file_from_the_future_neither_blocks_nor_ends_the_feed(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    (shop.folder / "feed" / "02.parquet").write_bytes(b"PAR1 and no end")
    for name in ("01", "02"):
        os.utime(shop.folder / "feed" / f"{name}.parquet", (4e9, 4e9))
    results, figures = catch_up(shop)
    assert (len(results), figures.set_aside, figures.lag_seconds) == (1, 1, 0)
    put(shop, "03", {301: draw_item(shop.rng)})
    assert len(catch_up(shop)[0]) == 1
    assert shop.served() == shop.expected()


def test_of_files_that_are_applied_together_only_the_refused_one_is_set_aside(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    kept = shop.items
    put(shop, "02", {301: ((1, 2, 3), "a", "de")})
    shop.items = kept
    put(shop, "03", {302: draw_item(shop.rng)})
    results, figures = catch_up(shop)
    assert (len(results), figures.set_aside) == (2, 1)
    assert "3 components" in offset_of(shop)["set_aside"][0][1]
    assert shop.served() == shop.expected()


def test_a_large_file_is_applied_in_parts_and_one_that_is_refused_is_not_read_on(shop):
    put(shop, "01", {300 + n: draw_item(shop.rng) for n in range(5)})
    results, _ = catch_up(shop, max_rows=2)
    assert [done.counts["items"] for done in results] == [2, 2, 1]
    assert shop.served() == shop.expected()
    before, rows = shop.served(), {310: ((1, 2, float("nan"), 0, 0, 0), "a", "de")}
    put(shop, "02", {**rows, **{311 + n: draw_item(shop.rng) for n in range(5)}})
    results, figures = catch_up(shop, max_rows=2)
    assert (results, figures.set_aside) == ([], 1)
    assert shop.served() == before


def test_what_was_rolled_back_is_applied_again_only_when_it_is_named(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    catch_up(shop)
    before, items = shop.served(), shop.items
    put(shop, "02", {301: draw_item(shop.rng)})
    put(shop, "03.gone", gone=[300])
    catch_up(shop, max_rows=1)
    assert len(roll_back_updates(shop.spec(), 1, store=shop.store)) == 2
    assert catch_up(shop)[0] == []
    assert shop.served() == before
    catch_up(shop, again=["0[23].*"])
    assert catch_up(shop)[0] == []
    assert shop.served() == shop.expected()
    assert shop.items != items
    with pytest.raises(SpecError, match="is named 09"):
        catch_up(shop, again=["09"])


def test_a_publish_and_a_rollback_to_an_older_version_apply_no_file_again(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    catch_up(shop)
    shop.publish()
    assert catch_up(shop)[0] == []
    put(shop, "02", {301: draw_item(shop.rng)})
    catch_up(shop)
    assert shop.served() == shop.expected()
    nearcast.roll_back(shop.spec(), store=shop.store)
    assert catch_up(shop)[0] == []
    assert shop.store.pointer("shop").version == 1


def test_the_lag_grows_while_the_store_or_a_disk_fails_and_then_the_file_is_applied(shop, monkeypatch):
    said, faults = [], [OSError(28, "No space left on device"), StoreError("the store is down")]
    listener = Listener()
    listener.note = said.append
    store, real = shop.store, type(shop.store).pointer
    with open_follower(shop.spec(), str(shop.folder / "feed"), store=store, listener=listener) as follower:
        lags = []

        def stopped(_seconds):
            lags.append(follower.figures.waiting is not None)
            if len(lags) == 1:
                put(shop, "01", {300: draw_item(shop.rng)})
                monkeypatch.setattr(type(store), "pointer", fail)
            return len(lags) == 5

        def fail(store, generator):
            if faults and len(lags) < 4:
                raise faults[-1] if len(lags) < 3 else faults[0]
            return real(store, generator)

        follower.run(0, stopped)
    assert lags == [False, True, True, True, False]
    assert follower.figures.failures == 3
    assert [text.split(":")[0] for text in said] == ["trying again"] * 2
    assert "free some disk" in said[1]
    assert 300 in shop.items
    assert shop.served() == shop.expected()


def test_files_that_seem_to_be_meant_and_are_not_read_are_named_once(tmp_path):
    for name in ("a.parquet/part-0.parquet", "B.PARQUET", "c.pq", "_d.PQ", "e/f.parquet", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    said = []
    feed = file_feed.FileFeed(str(tmp_path), note=said.append)
    assert [list(feed.read(None)), feed.oldest_waiting(None)] == [[], None]
    assert [text.split(" is ")[0] for text in sorted(said)] == ["B.PARQUET", "a.parquet", "c.pq"]


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, StorageError), (errno.EACCES, None)])
def test_a_file_is_set_aside_for_what_it_is_and_not_for_an_error_of_the_disk(tmp_path, monkeypatch, number, error):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(type(path), "open", mock.Mock(side_effect=OSError(number, "no")))
    feed = file_feed.FileFeed(str(tmp_path))
    with pytest.raises(error) if error else contextlib.nullcontext():
        (batch,) = feed.read(None)
        assert "cannot be read" in str(batch.error)


def test_of_two_followers_of_one_source_the_later_one_stops(shop):
    put(shop, "01", {300: draw_item(shop.rng)})
    with open_follower(shop.spec(), str(shop.folder / "feed"), store=shop.store) as follower:
        apply = follower._update

        def apply_after_another(*arguments):
            catch_up(shop)
            put(shop, "02", {300: draw_item(shop.rng)})
            catch_up(shop)
            return apply(*arguments)

        follower._update = apply_after_another
        with pytest.raises(BusyError, match="another process follows the same source"):
            follower.catch_up()
    assert catch_up(shop)[0] == []
    assert shop.served() == shop.expected()


def test_files_of_a_bucket_are_followed(shop, s3_server, s3_url, monkeypatch):
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = open_storage(s3_url)

    def upload(name, rows):
        put(shop, name, rows)
        bucket.upload(f"{name}.parquet", shop.folder / "feed" / f"{name}.parquet")

    upload("02", {300 + n: draw_item(shop.rng) for n in range(3)})
    bucket.write("03.parquet", b"no Parquet")
    upload("04", {304: draw_item(shop.rng)})
    assert [done.counts["items"] for done in catch_up(shop, s3_url, max_rows=2)[0]] == [2, 1]
    monkeypatch.setattr(file_feed, "WRITING_SECONDS", 0.0)
    results, figures = catch_up(shop, s3_url)
    assert (len(results), figures.set_aside) == (1, 1)
    upload("01", {300: draw_item(shop.rng)})
    assert len(catch_up(shop, s3_url)[0]) == 1
    assert catch_up(shop, s3_url)[0] == []
    assert shop.served() == shop.expected()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_every_file_is_read_once_however_they_arrive(data):
    now, there, unread, known = 1e9, {}, [], FileOffset()
    for number in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0, 1, 600, KEPT_SECONDS, 9 * KEPT_SECONDS]))
        late = data.draw(st.sampled_from([0, 0, 60, 0.9 * KEPT_SECONDS, -1e9]))
        there[number] = StoredObject(f"{number}", 1, "etag", now - late)
        if data.draw(st.booleans()):
            continue
        waiting = [one for one in there.values() if not known.has_read(one)]
        for one in data.draw(st.permutations(waiting))[: data.draw(st.integers(0, 40))]:
            waiting.remove(one)
            known = FileOffset.from_json(json.loads(json.dumps(known.add(one, waiting, now).to_json())))
            unread.append(one.name)
            assert [other for other in there.values() if not known.has_read(other)] == waiting
    assert len(unread) == len(set(unread))
    assert len(known.read) <= 1 + sum(one.modified >= min(now, 1e12) - 40 * KEPT_SECONDS for one in there.values())


def list_files(note):
    """Return the files that the note of a patch names; their names are numbers."""
    names = note.removeprefix("follow: ")
    if " to " not in names:
        return names.split(", ")
    first, last = (int(name[:3]) for name in names.split(" to "))
    return [f"{number:03d}.parquet" for number in range(first, last + 1)]


def kill_often(target, arguments, work=lambda number: None, *, seed, times=KILLS):
    """Start a process and kill it, again and again; call `work` before each start."""
    draw = random.Random(seed)
    for number in range(times):
        work(number)
        process = SERVER.Process(target=target, args=arguments)
        process.start()
        time.sleep(draw.uniform(0.0, 0.6))
        process.kill()
        process.join(60)
        assert not process.is_alive()


@pytest.mark.slow
def test_a_follower_that_is_killed_at_any_moment_loses_nothing_and_applies_nothing_twice(shop):
    arguments = shop.spec(), str(shop.folder / "feed"), f"lmdb:{shop.folder / 'store'}"

    def arrive(number):
        put(shop, f"{number:03d}", {int(key): draw_item(shop.rng) for key in shop.rng.integers(0, 250, 3)})

    kill_often(killed_worker.follow, arguments, arrive, seed=1)
    catch_up(shop)
    names = [name for note in notes_of(shop) for name in list_files(note)]
    folded = shop.store.patches("shop").state(1).folded
    assert len(names) == len(set(names))
    assert names == [f"{number:03d}.parquet" for number in range(KILLS)][-len(names) :]
    assert folded is not None or len(names) == KILLS
    assert shop.served() == shop.expected()


@pytest.mark.slow
def test_an_update_that_is_killed_at_any_moment_is_in_force_wholly_or_not_at_all(shop):
    path = shop.folder / "items.parquet"
    arguments = shop.spec(), str(path), f"lmdb:{shop.folder / 'store'}"

    def write(_number):
        rows = {int(key): draw_item(shop.rng) for key in shop.rng.integers(0, 250, 5)}
        pq.write_table(item_table(rows), path)
        shop.last = rows

    before = dict(shop.items)
    for seed in range(3):
        write(seed)
        kill_often(killed_worker.update, arguments, seed=seed, times=KILLS // 3)
        shop.items = before | shop.last
        shop.update(shop.last)  # repeated by the user
        before = dict(shop.items)
        assert shop.served() == shop.expected()
    assert len(notes_of(shop)) <= 3
