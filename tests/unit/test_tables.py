"""Tables of weights: what a log says of each key, and how that is published, followed and rolled back."""

from __future__ import annotations

import contextlib
import json
import subprocess
from datetime import date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.end_to_end.shop import NEARCAST, environment
from tests.published import publish

import nearcast
from nearcast.errors import AuditError, DamagedError, InputError, SpecError, StoreError
from nearcast.join.listener import Listener
from nearcast.publishing.engagement import LogColumns, compute_weights
from nearcast.stores import open_store

COLUMNS = LogColumns("who", "what")


def log_of(*rows, **more):
    """A log of (who, what) or (who, what, weight) or (who, what, weight, when)."""
    names = ("who", "what", "weight", "when")
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(names[: len(rows[0])])}, **more)


def weighed(log, columns=COLUMNS, table="people"):
    rows = compute_weights(log, columns, table).to_pylist()
    return {row["key"]: list(zip(row["items"], row["weights"], strict=True)) for row in rows}


def test_each_key_has_its_items_by_how_often_they_were_engaged_with():
    log = log_of(("ann", 1), ("bob", 3), ("ann", 2), ("ann", 2))
    assert weighed(log) == {"ann": [(2, 2.0), (1, 1.0)], "bob": [(3, 1.0)]}


def test_of_equal_weights_the_smaller_id_is_first_and_only_the_top_stay():
    log = log_of(*[("ann", item) for item in (5, 3, 4, 3, 9)])
    assert weighed(log, LogColumns("who", "what", top=3)) == {"ann": [(3, 2.0), (4, 1.0), (5, 1.0)]}


def test_weights_of_engagements_add_up_and_none_of_0_stays():
    log = log_of(("ann", 1, 0.5), ("ann", 2, 3.0), ("ann", 1, 1.0), ("ann", 7, 0.0))
    assert weighed(log, LogColumns("who", "what", "weight")) == {"ann": [(2, 3.0), (1, 1.5)]}


@pytest.mark.parametrize(
    "when",
    [
        [0.0, 3 * 86400.0, 6 * 86400.0],
        [0, 3 * 86400, 6 * 86400],
        [date(2026, 1, 1), date(2026, 1, 4), date(2026, 1, 7)],
        [datetime(2026, 1, 1) + timedelta(days=3 * n) for n in range(3)],
    ],
)
def test_an_engagement_that_is_a_half_life_older_than_the_newest_counts_half(when):
    log = log_of(*[("ann", item, 1.0, at) for item, at in enumerate(when)])
    columns = LogColumns("who", "what", "weight", "when", half_life_seconds=3 * 86400)
    assert weighed(log, columns) == {"ann": [(2, 1.0), (1, 0.5), (0, 0.25)]}


def test_phrases_that_people_take_for_the_same_are_added_up():
    log = log_of(("Red shoes", 1), (" red  SHOES ", 1), ("shoes red", 2))
    assert weighed(log, table="phrases") == {"red shoes": [(1, 2.0)], "shoes red": [(2, 1.0)]}
    assert len(weighed(log, table="people")) == 3


def test_rows_without_a_key_or_an_item_are_left_out():
    assert weighed(log_of(("ann", 1), (None, 2), ("ann", None))) == {"ann": [(1, 1.0)]}


def test_ids_may_be_numbers_or_text_on_both_sides():
    assert weighed(log_of((7, "x"), (7, "y"), (-1, "x"))) == {-1: [("x", 1.0)], 7: [("x", 1.0), ("y", 1.0)]}
    coded = pa.table({"who": pa.array(["a", "a"]).dictionary_encode(), "what": pa.array([1, 2], pa.int8())})
    assert weighed(coded) == {"a": [(1, 1.0), (2, 1.0)]}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=40))
def test_it_agrees_with_adding_up_by_hand(rows):
    log = log_of(*[(f"p{who}", what, float(weight)) for who, what, weight in rows])
    sums: dict[str, dict[int, float]] = {}
    for who, what, weight in rows:
        if weight:
            of_one = sums.setdefault(f"p{who}", {})
            of_one[what] = of_one.get(what, 0.0) + weight
    expected = {who: sorted(of_one.items(), key=lambda pair: (-pair[1], pair[0]))[:3] for who, of_one in sums.items()}
    columns = LogColumns("who", "what", "weight", top=3)
    if expected:
        assert weighed(log, columns) == expected
    else:
        with pytest.raises(InputError, match="weight above 0"):
            weighed(log, columns)


@pytest.mark.parametrize(
    ("log", "columns", "error", "said"),
    [
        (log_of(("a", 1)), LogColumns("who", "that"), InputError, "the log has no column 'that'; it has who, what"),
        (log_of((None, 1)), COLUMNS, InputError, "both a key and an item"),
        (log_of((0.5, 1)), COLUMNS, InputError, "ids are text or whole numbers"),
        (log_of(("a", 1.5)), COLUMNS, InputError, "the column what is of type double"),
        (log_of(("a", 1, -1.0)), LogColumns("who", "what", "weight"), InputError, "negative"),
        (log_of(("a", 1, None), ("a", 1, 1.0)), LogColumns("who", "what", "weight"), InputError, "missing"),
        (log_of(("a", 1, "x")), LogColumns("who", "what", "weight"), InputError, "no numbers"),
        (
            log_of(("a", 1, 1.0, None), ("a", 1, 1.0, 5)),
            LogColumns("who", "what", None, "when", 1.0),
            InputError,
            "lacks a time",
        ),
        (log_of(("a", 1)), LogColumns("who", "what", half_life_seconds=1.0), SpecError, "name the column of its time"),
        (log_of(("a", 1, 1)), LogColumns("who", "what", None, "weight", 0.0), SpecError, "above 0"),
        (log_of(("a", 1)), LogColumns("who", "what", top=0), SpecError, "top is 0"),
    ],
)
def test_a_log_that_cannot_be_used_says_why(log, columns, error, said):
    with pytest.raises(error, match=said):
        compute_weights(log, columns, "people")


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
)
AT = {"time": "t", "half_life_seconds": 10.0}


@pytest.mark.parametrize(
    ("columns", "more", "said"),
    [
        ({"k": pa.array(["a"], pa.string_view()), "i": pa.array(["x"], pa.large_string())}, {}, None),
        ({"k": pa.array([1]).dictionary_encode(), "i": pa.array(["x"]).dictionary_encode()}, {}, None),
        ({"w": pa.array([Decimal("1.5")])}, {"weight": "w"}, None),
        ({"t": pa.array([1_000_000_000_000_000_001], pa.timestamp("ns"))}, AT, None),
        ({"t": pa.array([10**18], pa.timestamp("s"))}, AT, "a time that cannot be one"),
        ({"t": pa.array([date(2026, 1, 1)])}, AT, None),
        ({"k": pa.array([2**63], pa.uint64())}, {}, "not in range"),
        ({"k": NOT_UTF8}, {}, "an id that cannot be one"),
        ({"i": NOT_UTF8}, {}, "an id that cannot be one"),
        ({"k": pa.array([b"a"])}, {}, "ids are text or whole numbers"),
        ({"i": pa.array([{"a": 1}])}, {}, "ids are text or whole numbers"),
        ({"w": pa.array(["1.5"])}, {"weight": "w"}, "w is of type string, and no numbers"),
        ({"w": pa.array([[1]])}, {"weight": "w"}, "no numbers"),
        ({"w": pa.array([float("nan")])}, {"weight": "w"}, "no number"),
        ({"w": pa.array([float("inf")])}, {"weight": "w"}, "no number"),
        ({"w": pa.array([1e300])}, {"weight": "w"}, "add up to 1e\\+300; scale them"),
        ({"t": pa.array(["2026-01-01"])}, AT, "t is of type string, and no numbers"),
        ({"t": pa.array([True])}, AT, "a time is a timestamp"),
        ({"t": pa.array([time(1)])}, AT, "no numbers"),
    ],
)
def test_a_column_of_a_log_is_read_whatever_its_type_or_refused_by_name(columns, more, said):
    log = pa.table({"k": ["a"], "i": ["x"], **columns})
    if said is None:
        assert compute_weights(log, LogColumns("k", "i", **more), "people")["weights"].to_pylist() in ([[1.0]], [[1.5]])
        return
    with pytest.raises(InputError, match=said):
        compute_weights(log, LogColumns("k", "i", **more), "people")


# in a store


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}" if request.param == "lmdb" else request.getfixturevalue("redis_url")
    with contextlib.closing(open_store(url + ("" if request.param == "lmdb" else "?buckets=16"))) as opened:
        publish(opened, "pins", 1, {1: [(10, 0.9)], 2: [(20, 0.8)]})
        yield opened


@pytest.fixture
def table(store, tmp_path):
    """Publishes rows as the table `people` of pins."""

    def published(*rows, table="people", **more):
        return nearcast.publish_table(
            "pins", table, log_of(*rows), key="who", item="what", store=store, out=tmp_path / "out", **more
        )

    return published


def test_a_table_is_published_and_requests_are_resolved_by_it(store, table):
    done = table(("ann", 2), ("ann", 2), ("ann", 1), ("bob", 1))
    assert (done.generator, done.version, done.outcome) == ("pins.people", 1, "published")
    assert (done.copied.keys, done.copied.items) == (2, 2)
    with nearcast.open(store, "pins") as pins:
        answer = pins.merged(context={"person": "ann"}, k=2)
    assert [(share.key, round(share.weight, 6)) for share in answer.keys] == [(2, 0.666667), (1, 0.333333)]
    assert list(answer.ids) == [20, 10]
    assert {one.generator for one in nearcast.published(store=store)} == {"pins", "pins.people"}


def notes_of(store, tmp_path, table, *rows, generator="pins"):
    listener = Recorder()
    nearcast.publish_table(
        generator, table, log_of(*rows), key="who", item="what", store=store, out=tmp_path / "out", listener=listener
    )
    return listener.notes


class Recorder(Listener):
    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_what_may_be_a_mistake_in_a_table_is_said(store, tmp_path):
    assert notes_of(store, tmp_path, "people", ("ann", 2)) == []
    assert notes_of(store, tmp_path, "seasons", ("ann", 2)) == []
    (note,) = notes_of(store, tmp_path, "poeple", ("ann", 2))
    assert "requests are not resolved by a table named 'poeple'; did you mean 'people'?" in note
    (note,) = notes_of(store, tmp_path, "people", ("ann", 2), ("ann", 77), ("bob", 99), ("bob", 1))
    assert "2 of 4 different items (50.0% of the entries) are no keys of pins 000001, such as 77, 99" in note
    (note,) = notes_of(store, tmp_path, "people", ("ann", "2"), ("bob", "1"), ("cy", "1"))
    assert "2 of 2 different items" in note
    assert "they lead to no candidates; its keys are int64, and the items string" in note
    (note,) = notes_of(store, tmp_path, "people", ("ann", 2), generator="pin")
    assert "no generator 'pin' is published" in note
    assert "did you mean 'pins'?" in note


def test_a_phrase_table_is_asked_in_any_spelling(store, table):
    table(("Red  Shoes", 1), table="phrases")
    with nearcast.open(store, "pins") as pins:
        assert [share.key for share in pins.merged(context={"phrase": "RED shoes "}).keys] == [1]


def test_the_same_rows_again_change_nothing_and_other_rows_are_the_next_version(table):
    assert table(("ann", 1)).outcome == "published"
    assert table(("ann", 1)).outcome == "already_current"
    assert table(("ann", 2)).version == 2


def test_a_table_is_rolled_back_like_any_generator(store, table):
    table(("ann", 1))
    table(("ann", 2))
    done = nearcast.roll_back("pins.people", store=store)
    assert (done.outcome, done.version) == ("rolled_back", 1)
    with nearcast.open(store, "pins.people") as people:
        assert people.get("ann").ids == [1]
    assert table(("ann", 2)).version == 3


def test_only_the_last_versions_are_kept(store, table):
    retired = [table(("ann", item)).retired for item in range(5)]
    assert store.versions("pins.people") == [3, 4, 5]
    assert retired == [(), (), (), (1,), (2,)]


def test_a_table_with_less_than_half_of_the_keys_is_refused_unless_it_is_meant(store, table):
    table(("ann", 1), ("bob", 1), ("cem", 1))
    with pytest.raises(AuditError, match="would have 1 keys where 3 are current"):
        table(("ann", 2))
    assert store.versions("pins.people") == [1]
    assert table(("ann", 2), fewer=True).outcome == "published"


def test_a_generator_with_snapshots_is_not_taken_for_a_table(store, table):
    publish(store, "pins.people", 1, {"ann": [(1, 1.0)]})
    with pytest.raises(StoreError, match="has snapshots, and is no table"):
        table(("ann", 2))


def test_a_copy_with_other_bytes_than_were_written_never_becomes_current(store, table, monkeypatch):
    table(("ann", 1))
    monkeypatch.setattr("nearcast.publishing.publish_table.add_checksum", lambda total, keys, values: total + 1)
    with pytest.raises(DamagedError, match="checksum"):
        table(("ann", 2))
    assert (store.pointer("pins.people").version, store.versions("pins.people")) == (1, [1])


def test_the_command_publishes_a_parquet_file_and_says_what_it_has_done(tmp_path):
    url = f"lmdb:{tmp_path / 'store'}"
    with contextlib.closing(open_store(url)) as opened:
        publish(opened, "pins", 1, {1: [(10, 0.9)]})
    pq.write_table(log_of(("Red shoes", 1, 2.0, 0.0), ("red shoes", 1, 2.0, 86400.0)), tmp_path / "log.parquet")

    def command(*more):
        columns = ("--key", "who", "--item", "what", "--weight", "weight", "--time", "when")
        return subprocess.run(
            [NEARCAST, "table", "pins", "phrases", "log.parquet", *columns, "--half-life", "1d", "--store", url, *more],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    done = command("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "published"
    assert "pins.phrases 000001 is current already" in command().stdout
    with nearcast.open(url, "pins.phrases") as phrases:
        assert phrases.get("red shoes").scores == [3.0]
    wrong = command("--item", "which")
    assert (wrong.returncode, "no column 'which'" in wrong.stderr) == (3, True)
