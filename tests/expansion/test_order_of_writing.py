"""What counts when an export and the overlay disagree: which came later by the store, whatever writers' clocks say."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.cli import cli
from nearcast.errors import InputError
from nearcast.stores import open_store
from published import publish

ADS = pa.table({"ad": [1, 2], "budget": [10.0, 10.0], "spent": [0.0, 0.0]})
LINKS = pa.table({"item": ["x", "x"], "ad": [1, 2]})
TOML = 'name = "ads"\n[ads]\npath = "ads.parquet"\n[links]\npath = "links.parquet"\n'
REAL_TIME = time.time


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    lmdb = f"lmdb:{tmp_path / 'store'}"
    return lmdb if request.param == "lmdb" else request.getfixturevalue("redis_url") + "?buckets=4"


@pytest.fixture
def store(url):
    with contextlib.closing(open_store(url)) as opened:
        publish(opened, "shop", 1, {"a": [("x", 0.9)]}, metric="cosine")
        yield opened


@pytest.fixture
def files(tmp_path):
    pq.write_table(ADS, tmp_path / "ads.parquet")
    pq.write_table(LINKS, tmp_path / "links.parquet")
    (tmp_path / "ads.toml").write_text(TOML)
    changed_at(tmp_path, ads=-600, links=-600)
    return tmp_path


def changed_at(folder, **ages):
    for name, age in ages.items():
        when = REAL_TIME() + age
        os.utime(folder / f"{name}.parquet", (when, when))


def shown(store, **asked):
    with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
        return list(ads.ads(shop, ["a"], **asked).ads)


def clock(seconds):
    """The clock of this process is so many seconds ahead."""
    return patch("time.time", lambda: REAL_TIME() + seconds)


def test_an_ad_whose_budget_is_spent_stays_out_when_the_same_export_is_expanded_again(store, files):
    nearcast.expand(files / "ads.toml", store=store)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    assert shown(store) == [2]
    done = nearcast.expand(files / "ads.toml", store=store)
    assert shown(store) == [2]
    assert done.as_of == pytest.approx(os.stat(files / "ads.parquet").st_mtime)


@pytest.mark.parametrize("older", ["ads", "links"])
def test_the_older_of_the_files_says_when_an_export_was_made(store, files, older):
    nearcast.expand(files / "ads.toml", store=store)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    time.sleep(0.01)
    changed_at(files, **{"ads": 0, "links": 0, older: -300})
    nearcast.expand(files / "ads.toml", store=store)
    assert shown(store) == [2]
    changed_at(files, ads=0, links=0)
    nearcast.expand(files / "ads.toml", store=store)
    assert shown(store) == [1, 2]


def test_a_folder_of_parts_is_as_old_as_its_oldest_part(store, files):
    (files / "ads.parquet").unlink()
    (files / "ads.parquet").mkdir()
    for number in range(2):
        pq.write_table(ADS.slice(number, 1), files / "ads.parquet" / f"{number}.parquet")
    old = REAL_TIME() - 1000
    os.utime(files / "ads.parquet" / "1.parquet", (old, old))
    assert nearcast.expand(files / "ads.toml", store=store).as_of == pytest.approx(old, abs=0.01)


@pytest.mark.parametrize("kind", [float, str, datetime.datetime.fromtimestamp, "aware"])
def test_as_of_says_when_an_export_was_made(store, files, kind):
    nearcast.expand(files / "ads.toml", store=store)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    time.sleep(0.01)
    utc = datetime.datetime.fromtimestamp(REAL_TIME(), datetime.UTC)
    written = {
        float: utc.timestamp(),
        str: utc.isoformat(),
        datetime.datetime.fromtimestamp: utc.replace(tzinfo=None),
        "aware": utc.astimezone(datetime.timezone(datetime.timedelta(hours=9))),
    }[kind]
    done = nearcast.expand(files / "ads.toml", store=store, as_of=written)
    assert done.as_of == pytest.approx(utc.timestamp(), abs=1e-5)
    assert shown(store) == [1, 2]


NO_TIMES = [REAL_TIME() + 3600, REAL_TIME() * 1000, float("nan"), float("inf"), -1.0, "soon", True, "2999-01-01", []]


@pytest.mark.parametrize("wrong", NO_TIMES, ids=range(len(NO_TIMES)))  # the same names in every worker
def test_a_time_that_is_none_or_is_yet_to_come_is_refused(tmp_path, files, wrong):
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as store:
        with pytest.raises(InputError, match=r"time|yet to come"):
            nearcast.expand(files / "ads.toml", store=store, as_of=wrong)
        with pytest.raises(InputError, match=r"time|yet to come"):
            publish_expansion(store, "ads", ADS, LINKS, as_of=wrong)
        assert store.pointer("ads") is None


def test_the_command_takes_as_of_and_says_whom_empty_lists_are_for(tmp_path, files):
    lists = pa.array([[], None])
    pq.write_table(ADS.append_column("town", lists.cast(pa.list_(pa.string()))), files / "ads.parquet")
    rule = '[[serve.targeting]]\ncolumn = "town"\ntest = "has"\nrequest = "town"\n'
    (files / "ads.toml").write_text(TOML + rule)
    run = CliRunner().invoke
    said = run(cli, ["expand", str(files / "ads.toml"), "--as-of", "2026-01-02T03:04:05"])
    assert (said.exit_code, "as of 2026-01-02T03:04:05Z" in said.stdout) == (0, True)
    assert "town: 1 ads match all requests (no value), 1 match none (an empty list)" in said.stderr
    late = run(cli, ["expand", str(files / "ads.toml"), "--as-of", "2999-01-01"])
    assert (type(late.exception), "yet to come" in str(late.exception)) == (InputError, True)


def test_a_file_from_the_future_is_refused_and_one_from_a_clock_a_little_ahead_counts_as_now(tmp_path, files):
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as store:
        changed_at(files, ads=3600, links=7200)
        with pytest.raises(InputError, match=r"ads.parquet was last changed at .*yet to come.*--as-of"):
            nearcast.expand(files / "ads.toml", store=store)
        assert store.pointer("ads") is None
        changed_at(files, ads=20, links=20)
        assert nearcast.expand(files / "ads.toml", store=store).as_of <= REAL_TIME()


def test_the_same_export_of_a_clock_that_is_ahead_does_not_bring_a_spent_ad_back(store, files):
    changed_at(files, ads=30, links=30)
    first = nearcast.expand(files / "ads.toml", store=store)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    again = nearcast.expand(files / "ads.toml", store=store)
    assert again.as_of == pytest.approx(first.as_of, abs=1e-5)
    assert shown(store) == [2]
    changed_at(files, ads=31, links=31)  # another export
    assert nearcast.expand(files / "ads.toml", store=store).as_of > again.as_of
    assert shown(store) == [1, 2]


@pytest.mark.parametrize("seconds", [-86_400, -120, 120, 86_400])
def test_a_value_is_in_force_whatever_the_clock_of_its_writer_says(store, seconds):
    publish_expansion(store, "ads", ADS, LINKS)
    with clock(seconds), nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
        assert overlay.add(2, "spent", 10) == 10
    assert shown(store) == []
    publish_expansion(store, "ads", ADS, LINKS)  # knows better
    assert shown(store) == [1, 2]


@pytest.mark.parametrize("seconds", [-86_400, -120, 120, 86_400])
def test_a_table_is_as_old_as_the_store_says_whatever_the_clock_of_its_publisher_says(store, files, seconds):
    with clock(seconds):
        publish_expansion(store, "ads", ADS, LINKS)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
    assert shown(store) == [2]
    with clock(seconds):
        nearcast.expand(files / "ads.toml", store=store)
    assert shown(store) == [2]


def test_a_value_is_newer_than_the_table_that_was_current_when_it_was_written_though_every_clock_went_back(store):
    publish_expansion(store, "ads", ADS, LINKS)
    with patch.object(type(store), "now", lambda self: REAL_TIME() - 3600), nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
        overlay.add(2, "spent", 10)
    assert shown(store) == []


@pytest.mark.parametrize("generator", ["ads", "shop"])
@pytest.mark.parametrize("seconds", [-86_400, -120, 120, 86_400])
def test_removing_and_restoring_go_by_the_order_of_writing(store, generator, seconds):
    publish_expansion(store, "ads", ADS, LINKS)
    item = 1 if generator == "ads" else "x"

    def gone():
        with nearcast.open(store, generator) as lookup:
            return lookup.removed([item])[0]

    with nearcast.overlay(store, generator) as overlay:
        for first, second in ((0, seconds), (seconds, 0)):
            with clock(first):
                overlay.remove([item])
            assert gone()
            with clock(second):
                assert overlay.restore([item]) == [item]
            assert not gone()
            with clock(second):
                overlay.remove([item])
            with clock(first):
                overlay.restore([item])
                overlay.remove([item])
            assert gone()
            overlay.restore([item])


@pytest.mark.parametrize("seconds", [-86_400, -120])
def test_an_end_is_judged_by_the_clock_of_the_store(store, url, seconds):
    publish_expansion(store, "ads", ADS, LINKS)
    with clock(seconds), nearcast.overlay(store, "ads") as overlay, pytest.raises(InputError, match="that has passed"):
        overlay.remove([1], until=time.time() + 60)
    with clock(seconds):
        said = CliRunner().invoke(cli, ["overlay", "ads", "remove", "1", "--for", "60s", "--store", url])
    assert (said.exit_code, "behind the store's, which decides" in said.stderr) == (0, True)
    assert shown(store) == [2]


def test_what_an_old_export_says_never_cuts_what_was_written_since(store, files):
    nearcast.expand(files / "ads.toml", store=store)
    with nearcast.overlay(store, "ads") as overlay:
        overlay.update(1, "spent", 10.0)
        for _ in range(4):  # until no version is left that is older than the entry
            nearcast.expand(files / "ads.toml", store=store)
        assert [entry.value for entry in overlay.entries()] == [10.0]
    assert shown(store) == [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spent", "10"), ("spent", True), ("budget", [1]), ("bid", -1), ("bid", "1"), ("starts", "soon"),
        ("ends", True), ("ends", 1_800_000_000_000), ("town", "rome"), ("town", [1]), ("town", {"a": 1}), ("born", "x"),
    ],
)  # fmt: skip
def test_a_value_that_its_column_cannot_hold_is_refused_and_nothing_is_written(store, field, value):
    more = {"town": [["rome"], None], "born": [datetime.date(2026, 1, 1), None]}
    publish_expansion(store, "ads", pa.table({**dict(zip(ADS.column_names, ADS.columns, strict=True)), **more}), LINKS)
    with nearcast.overlay(store, "ads") as overlay:
        with pytest.raises(InputError, match=field):
            overlay.update_many([(1, "spent", 10.0), (1, field, value)])
        assert overlay.entries() == []
