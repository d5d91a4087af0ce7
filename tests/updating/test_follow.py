"""Files that are followed: in force in the order of their names, each exactly once, whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import random
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.updating import killed_worker
from tests.updating.test_updates import draw_item, item_table, make_shop

from nearcast.api.updates import open_follower
from nearcast.updating.follow import describe_figures

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


def catch_up(shop):
    with open_follower(shop.spec(), str(shop.folder / "feed"), store=shop.store) as follower:
        return follower.catch_up(), follower.figures


def notes_of(shop):
    return [patch.note for patch in shop.store.patches("shop").state(1).patches]


def test_files_are_applied_in_the_order_of_names_and_each_once(shop):
    put(shop, "01", {300: draw_item(shop.rng), 301: draw_item(shop.rng)})
    put(shop, "02.gone", gone=[301])
    assert len(catch_up(shop)[0]) == 2
    put(shop, "03", {301: draw_item(shop.rng)})
    results, figures = catch_up(shop)
    assert [done.counts["items"] for done in results] == [1]
    assert catch_up(shop)[0] == []
    assert shop.served() == shop.expected()
    assert figures.quantile(0.99) > 0
    assert 'nearcast_follow_items_total{generator="shop"} 1' in describe_figures(figures, "shop")


def test_a_file_that_is_being_written_waits_and_a_bad_one_is_set_aside(shop):
    feed = shop.folder / "feed"
    put(shop, "01", {300: draw_item(shop.rng)})
    whole = (feed / "01.parquet").read_bytes()
    (feed / "02.parquet").write_bytes(whole[:-20])
    put(shop, "03", {302: draw_item(shop.rng)})
    assert len(catch_up(shop)[0]) == 1  # 02 may grow yet, and 03 comes after it
    old = time.time() - 3600
    os.utime(feed / "02.parquet", (old, old))
    results, figures = catch_up(shop)
    assert (len(results), figures.set_aside) == (1, 1)
    (known,) = shop.store.patches("shop").state(1).newest.offsets.values()
    assert known["count"] == 1
    assert known["set_aside"][0][0] == "02.parquet"
    assert catch_up(shop)[1].set_aside == 0
    assert shop.served() == shop.expected()


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
    names = [note.removeprefix("follow: ") for note in notes_of(shop)]
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
