"""The head of the traffic: counted, cut, held out, written; from logs that are reckoned by hand, and random ones."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.end_to_end import shop as at
from tests.end_to_end.shop import fail, succeed

import nearcast
from nearcast.advising import traffic as reading
from nearcast.advising.head_keys import find_head, write_head
from nearcast.advising.skew import fit_zipf, zipf_shares
from nearcast.advising.traffic import read_traffic
from nearcast.errors import BudgetError, InputError


def log(folder: Path, keys, **columns) -> Path:
    path = folder / "log.parquet"
    pq.write_table(pa.table({"key": keys, **columns}), path)
    return path


def test_keys_come_with_the_most_asked_first_and_equal_ones_by_name(tmp_path):
    found = read_traffic(log(tmp_path, ["b", "c", "a", "c", None]))
    assert found.keys.to_pylist() == ["c", "a", "b"]
    assert found.requests.tolist() == [2, 1, 1]
    assert (found.rows, found.without_key, found.days) == (5, 1, ())


def test_a_column_of_counts_says_how_often(tmp_path):
    found = read_traffic(log(tmp_path, [1, 2, 1], n=[10, 3, 0.5]), count="n")
    assert dict(zip(found.keys.to_pylist(), found.requests.tolist(), strict=True)) == {1: 10.5, 2: 3}


@pytest.mark.parametrize(
    "times",
    [
        [datetime.datetime(2026, 1, 1, 23, 59), datetime.datetime(2026, 1, 2, 0, 1)],
        [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
        ["2026-01-01T23:59:00", "2026-01-02T00:01:00"],
    ],
)
def test_days_are_told_apart_by_timestamps_dates_and_iso_text(tmp_path, times):
    found = read_traffic(log(tmp_path, ["a", "b"], at=times), time="at")
    assert [day.name for day in found.days] == ["2026-01-01", "2026-01-02"]
    assert [found.keys.take(day.keys).to_pylist() for day in found.days] == [["a"], ["b"]]


def test_a_timestamp_with_a_zone_counts_for_its_day_in_utc(tmp_path):
    late = pa.array([datetime.datetime(2026, 1, 1, 23, 30)], pa.timestamp("us", tz="UTC")).cast(
        pa.timestamp("us", tz="Asia/Tokyo")
    )
    found = read_traffic(log(tmp_path, ["a"], at=late), time="at")
    assert [day.name for day in found.days] == ["2026-01-01"]


def test_whole_numbers_are_days_or_weeks_by_their_own_name(tmp_path):
    assert [d.name for d in read_traffic(log(tmp_path, [1, 2], week=[48, 49]), time="week").days] == ["48", "49"]


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=200),
    batch=st.integers(1, 50),
)
def test_counting_in_batches_is_counting_at_once(tmp_path_factory, rows, batch):
    path = log(
        tmp_path_factory.mktemp("log"), *[[k for k, _, _ in rows]], day=[d for _, d, _ in rows], n=[n for *_, n in rows]
    )
    expected = Counter()
    for key, day, n in rows:
        expected[key, str(day)] += n
    expected = {pair: n for pair, n in expected.items() if n}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BATCH_ROWS", batch)
        patch.setattr(reading, "MERGE_ROWS", 10)
        if not expected:
            return
        found = read_traffic(path, time="day", count="n")
    names = found.keys.to_pylist()
    counted = {(names[k], d.name): n for d in found.days for k, n in zip(d.keys.tolist(), d.requests, strict=True)}
    assert counted == expected
    assert found.total == sum(expected.values())


def test_the_head_is_the_fewest_keys_that_cover_the_share(tmp_path):
    traffic = read_traffic(log(tmp_path, ["a"] * 6 + ["b"] * 3 + ["c"]))
    assert [find_head(traffic, share).chosen.keys for share in (0.5, 0.6, 0.7, 0.9, 0.91, 1)] == [1, 1, 2, 2, 3, 3]
    chosen = find_head(traffic, 0.6).chosen
    assert (chosen.coverage, chosen.tomorrow) == (0.6, None)
    assert chosen.next_thousand == pytest.approx(0.4)


def test_tomorrow_is_measured_with_the_head_of_the_days_before(tmp_path):
    #  day 1: a a a b      the head of 75% is {a}
    #  day 2: a b b new    of which {a} covers a quarter, and another quarter is new
    keys = ["a", "a", "a", "b", "a", "b", "b", "new"]
    traffic = read_traffic(log(tmp_path, keys, day=[1] * 4 + [2] * 4), time="day")
    head = find_head(traffic, 0.75)
    (day,) = head.held_out
    assert (day.day, day.keys, day.coverage, day.new) == ("2", 1, 0.25, 0.25)
    assert head.tomorrow == (0.25, 0.25, 0.25)
    assert head.curve[-1].tomorrow == 0.75  # all keys of day 1


def test_a_head_for_tomorrow_is_larger_and_one_that_cannot_be_is_refused(tmp_path):
    keys = ["a", "a", "a", "b", "a", "b", "b", "new"]
    traffic = read_traffic(log(tmp_path, keys, day=[1] * 4 + [2] * 4), time="day")
    assert find_head(traffic, 0.6, by_tomorrow=True).chosen.keys == 2
    with pytest.raises(InputError, match=r"all keys of the log cover 75\.0%"):
        find_head(traffic, 0.8, by_tomorrow=True)
    with pytest.raises(InputError, match="column of times"):
        find_head(read_traffic(log(tmp_path, keys)), 0.8, by_tomorrow=True)


@given(counts=st.lists(st.integers(1, 1000), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_no_smaller_head_covers_the_share(tmp_path_factory, counts, share):
    counts = sorted(counts, reverse=True)
    traffic = reading.Traffic(pa.array(range(len(counts))), np.array(counts, float), (), len(counts), 0)
    n = find_head(traffic, share).chosen.keys
    assert sum(counts[:n]) >= share * sum(counts) - 1e-6
    assert n == 1 or sum(counts[: n - 1]) < share * sum(counts) + 1e-6


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("n", [50, 300_000])
def test_the_fit_finds_the_exponent_of_zipfs_law(exponent, n):
    found = fit_zipf(1e9 * zipf_shares(n, exponent))
    assert found.exponent == pytest.approx(exponent, abs=0.002)
    assert found.distance < 0.002


def test_a_fit_of_something_else_says_how_far_it_is():
    assert fit_zipf(np.array([1000.0, *[1.0] * 1000])).distance > 0.05
    assert fit_zipf(np.array([7.0])).exponent == 0


def test_what_is_wrong_with_a_log_is_named(tmp_path):
    path = log(tmp_path, ["a", "b"], n=[1.0, -2.0], f=[0.5, 1.5], no=pa.array([None, None], pa.string()))
    for columns, words in (
        ({"key": "item"}, "no column 'item'; its columns are key, n, f, no"),
        ({"count": "n"}, "'n' holds -2"),
        ({"count": "key"}, "a count is a number"),
        ({"key": "f"}, "keys are strings or integers"),
        ({"time": "f"}, "times in 'f' are double"),
        ({"time": "key"}, "cannot be read"),
        ({"key": "no"}, "holds no requests: 2 rows, 2 without a key"),
    ):
        with pytest.raises(InputError, match=words):
            read_traffic(path, **columns)
    with pytest.raises(InputError, match="no Parquet file"):
        read_traffic(tmp_path / "nothing*.parquet")
    with pytest.raises(InputError, match="got 90"):
        find_head(read_traffic(path), 90)
    with pytest.raises(BudgetError, match="give more memory, fewer days"):
        read_traffic(path, memory_bytes=10)


def test_the_keys_are_written_most_asked_first(tmp_path):
    traffic = read_traffic(log(tmp_path, ["a"] * 6 + ["b"] * 3 + ["c"]))
    write_head(traffic, find_head(traffic, 0.9), tmp_path / "new" / "head.parquet", column="pin")
    assert pq.read_table(tmp_path / "new" / "head.parquet").to_pydict() == {
        "pin": ["a", "b"],
        "requests": [6, 3],
        "share": [0.6, 0.3],
    }


def test_a_generator_that_names_the_file_makes_lists_for_these_keys_alone(tmp_path):
    at.write_shop(tmp_path, queries={"path": "queries.parquet", "only": "head.parquet"})
    rng = np.random.default_rng(0)
    keys = [f"q{i:03d}" for i in rng.choice(at.N_QUERIES, 5_000, p=zipf_shares(at.N_QUERIES, 1.2))]
    log(tmp_path, [*keys, "gone"], day=[*rng.integers(0, 4, 5_000).tolist(), 3])
    shown = succeed(
        *("head", "log.parquet", "--time", "day", "--coverage", "0.7", "--to", "head.parquet", "--picture", "head.svg"),
        "--quiet",
        cwd=tmp_path,
    ).stdout
    assert 'only = "head.parquet"' in shown
    assert "keys cover 70.0% of the log" in shown
    assert (tmp_path / "head.svg").read_text().count("<path") > 2
    wanted = set(pq.read_table(tmp_path / "head.parquet")["id"].to_pylist())
    assert 10 < len(wanted) < 200
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)
    table = pq.read_table(tmp_path / "nearcast" / "shop" / "snapshots" / "000001" / "candidates")
    assert set(table["query_id"].to_pylist()) == wanted - {"gone"}
    # the same run again is nothing; another head is another table
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)
    assert at.snapshots(tmp_path) == ["000001"]
    succeed("head", "log.parquet", "--coverage", "0.3", "--to", "head.parquet", "--quiet", cwd=tmp_path)
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)
    assert at.snapshots(tmp_path) == ["000001", "000002"]


def test_a_file_of_other_ids_is_refused(tmp_path):
    at.write_shop(tmp_path, queries={"path": "queries.parquet", "only": "head.parquet"})
    assert "head.parquet" in fail("run", "shop.toml", "--quiet", code=3, cwd=tmp_path)
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "head.parquet")
    assert "lists an integer an id" in fail("run", "shop.toml", "--quiet", code=3, cwd=tmp_path)
    pq.write_table(pa.table({"id": ["nobody"]}), tmp_path / "head.parquet")
    assert "queries" in fail("run", "shop.toml", "--quiet", code=3, cwd=tmp_path)


def test_json_has_the_curve_and_the_held_out_days(tmp_path):
    log(tmp_path, ["a", "a", "b", "a", "c"], day=[1, 1, 1, 2, 2])
    found = json.loads(succeed("head", "log.parquet", "--time", "day", "--json", cwd=tmp_path).stdout)
    assert found["tomorrow"] == [0.5, 0.5, 0.5]
    assert found["new_share"] == 0.5
    assert found["held_out"][0]["day"] == "2"
    assert found["chosen"]["keys"] == 3
    assert found == json.loads(json.dumps(nearcast.head(tmp_path / "log.parquet", time="day").as_dict()))
