"""Adding to a number of the overlay in one step: what several processes spend at the same time adds up."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time

import pyarrow as pa
import pytest
from click.testing import CliRunner

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.cli import cli
from nearcast.errors import InputError, NotFoundError
from nearcast.publishing.compact_overlay import compact_overlay
from nearcast.stores import open_store
from published import let_expire, publish

ADS = pa.table({"ad": ["p", "q"], "budget": [200, None], "spent": [None, 2.5], "name": ["a", "b"]})
LINKS = pa.table({"item": ["x", "x"], "ad": ["p", "q"]})
PROCESSES, TIMES = 4, 50
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    url = f"lmdb:{tmp_path}" if request.param == "lmdb" else request.getfixturevalue("redis_url") + "?buckets=4"
    with contextlib.closing(open_store(url)) as store:
        publish(store, "shop", 1, {"a": [("x", 0.9)]}, {"x": {"stock": 5}}, columns={"stock": "int64"}, metric="cosine")
        publish_expansion(store, "ads", ADS, LINKS)
    return url


@pytest.fixture
def overlay(url):
    with nearcast.overlay(url, "ads") as opened:
        yield opened


def spend(url, times, amount, token=""):
    with nearcast.overlay(url, "ads") as overlay:
        for number in range(times):
            overlay.add("p", "spent", amount, token=token and f"{token}-{number}")


def spend_at_once(url, *arguments, processes=PROCESSES):
    started = [FORK.Process(target=spend, args=(url, *arguments)) for _ in range(processes)]
    for process in started:
        process.start()
    return started


def ended(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def spent(overlay, ad="p"):
    return [entry.value for entry in overlay.entries() if (entry.item, entry.field) == (ad, "spent")]


def test_what_four_processes_add_at_the_same_time_adds_up_while_the_overlay_is_cut_back(url, overlay):
    processes = spend_at_once(url, TIMES, 1)
    with contextlib.closing(open_store(url)) as store:
        while any(process.is_alive() for process in processes):
            compact_overlay(store, "ads", store.versions("ads"), now=store.now())
            log = store.overlay("ads")
            log.purge([b"another"], upto=log.changes().serial)  # a new epoch, as after any purge
            time.sleep(0.01)
    assert ended(processes) == [0] * PROCESSES
    assert spent(overlay) == [200]
    with nearcast.open(url, "shop") as shop, nearcast.open_expansion(url, "ads") as ads:
        assert list(ads.ads(shop, ["a"]).ads) == ["q"]


def test_a_step_that_was_killed_is_done_whole_or_not_at_all_and_what_has_a_token_once(url, overlay):
    processes = spend_at_once(url, 10_000, 1, processes=2)
    deadline = time.monotonic() + 60
    while not spent(overlay):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    assert ended(processes) == [-signal.SIGKILL] * 2
    [so_far] = spent(overlay)
    assert so_far == int(so_far) > 0
    assert ended(spend_at_once(url, TIMES, 1, "day", processes=2)) == [0, 0]  # the same steps, sent twice
    assert spent(overlay) == [so_far + TIMES]


def test_a_number_counts_from_the_overlay_or_else_from_the_table_and_nothing_spent_is_0(url, overlay):
    assert overlay.add("p", "spent", 1.5) == 1.5
    assert overlay.add("q", "spent", 0.1) == 2.6
    assert overlay.add("q", "spent", -2.6) == 0.0
    assert overlay.add("p", "budget", -1.5) == 198.5
    overlay.update("p", "budget", 7)
    assert overlay.add("p", "budget", 1) == 8
    overlay.restore(["p"], field="budget")
    assert overlay.add("p", "budget", 1) == 201
    overlay.update("p", "budget", 3, until=overlay.now() + 3600)
    assert overlay.add("p", "budget", 1) == 4
    with contextlib.closing(open_store(url)) as store:
        let_expire(store, "ads", "p", field="budget", value=4)
    assert overlay.add("p", "budget", 1) == 201
    with nearcast.overlay(url, "shop") as shop:
        assert shop.add("x", "stock", -1) == 4
        with pytest.raises(InputError, match="column of type int64"):
            shop.add("x", "stock", -0.5)


def test_decimals_add_up_exactly(overlay):
    for _ in range(30):
        last = overlay.add("p", "spent", 0.1)
    assert last == 3.0


def test_a_new_table_that_knows_better_is_counted_from(url, overlay):
    overlay.add("p", "spent", 5)
    with contextlib.closing(open_store(url)) as store:
        publish_expansion(store, "ads", ADS.set_column(2, "spent", pa.array([50, None])), LINKS)
    assert overlay.add("p", "spent", 1) == 51


@pytest.mark.parametrize(
    ("item", "field", "amount", "words"),
    [
        ("q", "budget", -1, "budget of 'q' is None: there is no number to add to"),
        ("p", "name", 1, "is 'a': there is no number"),
        ("p", "nothing", 1, "is None: there is no number"),
        ("z", "spent", 1, "'z' is not in the current table of ads"),
        ("p", "id", 1, "no column that can have a value"),
        ("p", "spent", float("nan"), "nan cannot be added"),
        ("p", "spent", float("inf"), "inf cannot be added"),
        ("p", "spent", True, "True cannot be added"),
        ("p", "spent", "1", "'1' cannot be added"),
        ("p", "spent", 1 << 63, "more than a number can hold"),
        ("q", "spent", 1.8e308, "cannot be added"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_is_written(overlay, item, field, amount, words):
    with pytest.raises(InputError, match=words):
        overlay.add(item, field, amount)
    assert overlay.entries() == []


def test_the_command_adds_and_prints_the_new_number(url):
    def run(*words, generator="ads"):
        return CliRunner().invoke(cli, ["overlay", generator, "add", *words, "--store", url])

    for amount, expected in (("-1.5", "198.5"), ("1", "199.5"), ("-.5", "199.0"), ("1e1", "209.0")):
        said = run("p", "budget", amount, "--note", "spent")
        assert (said.exit_code, said.stdout.strip()) == (0, expected), said.output
    assert [run("p", "budget", "1", "--token", "t").stdout.strip() for _ in range(3)] == ["210.0"] * 3
    assert isinstance(run("q", "budget", "1").exception, InputError)
    assert run("q", "budget", "much").exit_code == 2
    assert isinstance(run("q", "budget", "1", generator="nobody").exception, NotFoundError)
