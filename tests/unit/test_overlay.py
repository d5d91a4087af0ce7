"""The overlay: what is in force, whoever writes it, whatever is purged, and whenever a reader looks."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import nearcast
from nearcast.cli import cli
from nearcast.errors import InputError, NotFoundError, StoreError
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.overlay_values import fits_type
from nearcast.stores import open_store
from nearcast.stores.base import OverlayChanges, OverlayEntry
from published import point, publish

NOW = 1000.0
ITEMS = {"int64": [-(2**63), -1, 0, 1, 2, 258, 2**40, 2**63 - 1], "string": ["", "a", "b", "ä", "1", "x" * 600]}
COLUMNS = {"price": "double", "name": "string", "stock": "int32", "new": "bool", "tags": "list<element: string>"}


@dataclass
class Log:
    """What a store promises of an overlay log, in twenty lines: the model that readers are held to."""

    epoch: int = 1
    serial: int = 0
    kept: dict = field(default_factory=dict)  # key: serial, entry

    def write(self, entries):
        for entry in entries:
            self.serial += 1
            self.kept.pop(entry.key(), None)
            self.kept[entry.key()] = (self.serial, entry)

    def purge(self, keys):
        self.epoch += 1
        for key in keys:
            self.kept.pop(key, None)

    def changes(self, epoch, serial):
        after = serial if epoch == self.epoch else 0
        return OverlayChanges(self.epoch, self.serial, tuple(e for s, e in self.kept.values() if s > after))

    def gone(self, now):
        return {e.item for _, e in self.kept.values() if e.field is None and in_force(e, now) and e.value}

    def values(self, now):
        rows = [e for _, e in self.kept.values() if e.field is not None and in_force(e, now)]
        return {(e.item, e.field): e.value for e in rows}


def in_force(entry, now):
    return not entry.lifted and (entry.until is None or entry.until > now)


def entries_of(items):
    return st.builds(
        lambda item, name, value, until, lifted: OverlayEntry(
            item, name, True if name is None else value, NOW - 1, until, lifted
        ),
        st.sampled_from(items),
        st.sampled_from([None, None, "price", "name"]),
        st.one_of(st.none(), st.integers(0, 3), st.just("text")),
        st.sampled_from([None, NOW - 1, NOW, NOW + 1]),
        st.booleans(),
    )


def steps(items):
    write = st.tuples(st.just("write"), st.lists(entries_of(items), min_size=1, max_size=4))
    purge = st.tuples(st.just("purge"), st.lists(st.integers(0, 20), max_size=4))
    return st.lists(st.one_of(write, write, purge, st.just(("poll", None))), max_size=15)


def do(log, step, argument):
    if step == "write":
        log.write(argument)
    elif step == "purge":
        keys = list(log.kept)
        log.purge([keys[place] for place in argument if place < len(keys)])


def polled(state, log, **how):
    return state.apply(log.changes(-1 if state.keeps_purged else state.epoch, state.serial), **how)


def gone_at_once(state, items, ids, now=NOW):
    places = state.positions_removed(pa.array(items, pa.int64() if ids == "int64" else pa.string()), now)
    return set() if places is None else {items[place] for place in places.tolist()}


@pytest.mark.parametrize("ids", ITEMS)
def test_a_reader_that_polls_now_and_then_knows_what_the_log_says(ids):
    items = ITEMS[ids]

    @settings(max_examples=200)
    @given(steps(items))
    def check(history):
        log, state = Log(), OverlayState(ids)
        for step, argument in [*history, ("poll", None)]:
            do(log, step, argument)
            if step == "poll":
                state = polled(state, log)
        gone = log.gone(NOW)
        assert {item for item, out in zip(items, state.find_removed(items, NOW), strict=True) if out} == gone
        assert gone_at_once(state, items * 3, ids) == gone
        assert state.removes_any(items) >= bool(gone)
        told = {(item, name): value for item in items for name, value in state.find_values(item, NOW).items()}
        assert told == log.values(NOW)
        assert state.size(NOW) == len(gone) + len(told)
        assert state.fields >= {name for _, name in told}

    check()


@pytest.mark.parametrize("ids", ITEMS)
def test_a_reader_of_an_older_version_loses_nothing_to_a_purge_and_nothing_that_was_lifted_later(ids):
    items = ITEMS[ids]

    @settings(max_examples=200)
    @given(steps(items))
    def check(history):
        log, state, never_purged = Log(), OverlayState(ids), Log()
        for step, argument in history:
            do(log, step, argument)
            if step == "write":
                never_purged.write(argument)
            state = polled(state, log, keep_purged=True)
        assert gone_at_once(state, items, ids) == never_purged.gone(NOW)
        assert gone_at_once(polled(state, log), items, ids) == log.gone(NOW)  # once it is at the newest version

    check()


@pytest.mark.parametrize("ids", ITEMS)
def test_a_state_that_grew_is_the_one_made_afresh_and_knows_what_its_last_changes_touched(ids):
    items = ITEMS[ids]

    @settings(max_examples=200)
    @given(steps(items))
    def check(history):
        log, state = Log(), OverlayState(ids)
        for step, argument in history:
            do(log, step, argument)
            before, state = state, polled(state, log)
            afresh = OverlayState(ids).apply(log.changes(-1, 0))
            for name in ("tombstones", "values", "fields"):
                assert getattr(state, name) == getattr(afresh, name)
            assert gone_at_once(state, items, ids, -1.0) == gone_at_once(afresh, items, ids, -1.0)
            if (state.epoch, state.previous_serial) == (before.epoch, before.serial):
                for item in items:
                    same = before.values.get(item) is state.values.get(item)
                    assert item in state.changed_items or (
                        same and before.tombstones.get(item) == state.tombstones.get(item)
                    )

    check()


def test_nothing_new_is_the_same_state():
    log, state = Log(), OverlayState("int64")
    log.write([OverlayEntry(1, None, True, NOW)])
    state = polled(state, log)
    assert polled(state, log) is state


@pytest.mark.parametrize("n_gone", [1, 10, 3000])
def test_many_items_are_sieved_as_they_are_one_by_one(n_gone):
    rng = np.random.default_rng(n_gone)
    gone = np.unique(rng.integers(-5000, 5000, n_gone) * 4096)  # their low bits are all the same
    state = OverlayState("int64").apply(
        OverlayChanges(1, 1, tuple(OverlayEntry(int(i), None, True, 0.0) for i in gone))
    )
    asked = rng.integers(-5000, 5000, 20_000) * 1024
    places = state.positions_removed(pa.array(asked), NOW)
    assert places.tolist() == np.flatnonzero(np.isin(asked, gone)).tolist()
    assert gone_at_once(state, [1, 2, 3], "int64") == set()


def test_an_entry_ends_by_the_clock_without_a_word_from_the_store():
    entries = (OverlayEntry("a", None, True, 0.0, until=50.0), OverlayEntry("a", "price", 3, 0.0, until=60.0))
    state = OverlayState("string").apply(OverlayChanges(1, 2, entries))
    assert state.find_removed(["a"], 49.9) == [True]
    assert state.find_removed(["a"], 50.0) == [False]
    assert gone_at_once(state, ["a"], "string", 49.9) == {"a"}
    assert gone_at_once(state, ["a"], "string", 50.0) == set()
    assert state.find_values("a", 59.9) == {"price": 3}
    assert state.find_values("a", 60.0) == {}
    assert [state.size(now) for now in (0, 55, 70)] == [2, 1, 0]


def test_ids_are_those_of_the_version_that_answers_also_when_their_type_changes():
    entries = (OverlayEntry("7", None, True, 0.0), OverlayEntry(8, None, True, 0.0), OverlayEntry("x", None, True, 0.0))
    numbers = OverlayState("int64").apply(OverlayChanges(1, 3, entries))
    assert gone_at_once(numbers, [7, 8, 9], "int64") == {7, 8}
    texts = numbers.convert("string")
    assert gone_at_once(texts, ["7", "8", "9", "x"], "string") == {"7", "8", "x"}
    assert gone_at_once(texts.convert("int64"), [7, 8, 9], "int64") == {7, 8}
    lifted = texts.apply(OverlayChanges(1, 4, (OverlayEntry(7, None, None, 0.0, lifted=True),)))
    assert gone_at_once(lifted, ["7", "8"], "string") == {"8"}


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    url = (
        f"lmdb:{tmp_path / 'store'}"
        if request.param == "lmdb"
        else request.getfixturevalue("redis_url") + "?buckets=16"
    )
    opened = open_store(url)
    yield opened
    opened.close()


LISTS = {1: [(10, 0.9), (11, 0.8)], 2: [(12, 0.7)]}
SHOWN = {10: {"price": 1.5, "name": "ten"}, 11: {}, 12: {"price": 2.5}}


@pytest.fixture
def overlay(store):
    publish(store, "shop", 1, LISTS, SHOWN, columns=COLUMNS)
    with nearcast.overlay(store, "shop") as opened:
        yield opened


def told(overlay):
    return [(e.item, e.field, e.value, e.note) for e in overlay.entries()]


def test_entries_are_written_listed_and_taken_back(overlay):
    before = time.time()
    overlay.remove([10, "11"], note="paused")
    overlay.update(12, "price", 3.25, note="sale")
    overlay.update("12", "extra", {"a": [1]})
    assert told(overlay) == [
        (10, None, True, "paused"),
        (11, None, True, "paused"),
        (12, "price", 3.25, "sale"),
        (12, "extra", {"a": [1]}, ""),
    ]
    assert all(before <= entry.written <= time.time() for entry in overlay.entries())
    assert overlay.restore(["10", 99]) == [10]
    assert overlay.restore([12], field="price") == [12]
    assert told(overlay) == [(11, None, True, "paused"), (12, "extra", {"a": [1]}, "")]
    assert overlay.restore([10]) == []


def test_what_was_written_last_counts(overlay):
    overlay.update(10, "price", 1)
    overlay.remove([10])
    overlay.restore([10])
    overlay.remove([10], note="again")
    overlay.update(10, "price", 2)
    assert told(overlay) == [(10, None, True, "again"), (10, "price", 2, "")]


def test_of_changes_that_come_together_the_last_counts_and_is_listed_last():
    news = [("price", 1), ("name", "x"), ("price", 2)]
    entries = tuple(OverlayEntry(10, name, value, 0.0) for name, value in news)
    state = OverlayState("int64").apply(OverlayChanges(1, 2, entries[:2])).apply(OverlayChanges(1, 3, entries[2:]))
    assert state.find_values(10, NOW) == {"price": 2, "name": "x"}
    assert state.entries == [entries[1], entries[2]]


def test_entries_outlive_who_wrote_them_and_versions(store, overlay):
    overlay.remove([10])
    publish(store, "shop", 2, {1: [(10, 0.9)]})
    point(store, "shop", 1)
    with nearcast.overlay(store, "shop") as other:
        assert told(other) == [(10, None, True, "")]


def test_items_need_not_be_in_the_snapshot(overlay):
    overlay.remove([10, 99])
    assert overlay.in_snapshot([10, 99, "12", "no number"]) == [True, False, True, False]


@pytest.mark.parametrize("until", [lambda t: t.timestamp(), lambda t: t, lambda t: t.replace(tzinfo=None)])
def test_an_end_is_a_number_or_a_time_which_is_utc_without_a_zone(overlay, until):
    end = datetime.now(UTC) + timedelta(hours=6)
    overlay.remove([10], until=until(end))
    overlay.update(10, "price", 1, until=until(end))
    assert [entry.until for entry in overlay.entries()] == pytest.approx([end.timestamp()] * 2)


REFUSED = [
    (lambda o: o.remove([10, "x"]), "'x' is no id of an item of shop: its ids are of type int64"),
    (lambda o: o.remove([10, 2**63]), "9223372036854775808 is no id of an item"),
    (lambda o: o.remove([10, True]), "True is no id of an item"),
    (lambda o: o.remove("10"), r"items is '10': give a list of ids, for example \['10'\]"),
    (lambda o: o.restore("10"), "give a list of ids"),
    (lambda o: o.remove([10], until=1), "until is 1970-01-01T00:00:01Z: that has passed"),
    (lambda o: o.remove([10], until=float("nan")), "until is no time: nan"),
    (lambda o: o.remove([10], until=1e20), "until is 1e[+]20, after the year 9999"),
    (lambda o: o.remove([10], until="soon"), "'soon' is no time; write it like"),
    (lambda o: o.update(10, "stock", 2**70), "stock is a column of type int32, and 1180591620717411303424"),
    (lambda o: o.remove([10], note="\udc80"), "the overlay holds JSON data"),
    (lambda o: o.update(10, "price", "cheap"), "price is a column of type double, and 'cheap' is no such value"),
    (lambda o: o.update_many([(10, "price", 1), (10, "stock", 1.5)]), "stock is a column of type int32, and 1.5"),
    (lambda o: o.update(10, "id", 11), "'id' is no column that can have a value"),
    (lambda o: o.update(10, "", 11), "'' is no column that can have a value"),
    (lambda o: o.update(10, "extra", {1, 2}), "the overlay holds JSON data, and this is none"),
    (lambda o: o.update(10, "extra", float("nan")), "the overlay holds JSON data, and this is none"),
]


def test_numpy_scalars_and_dates_are_the_json_that_they_mean(overlay):
    overlay.update(10, "price", np.float32(0.5))
    overlay.update(10, "stock", np.int64(3))
    overlay.update(10, "extra", dt.date(2026, 1, 2), until="2999-01-01")
    assert [entry.value for entry in overlay.entries()] == [0.5, 3, "2026-01-02"]
    assert overlay.add(10, "stock", np.int32(4)) == 7


@pytest.mark.parametrize(("write", "text"), REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(overlay, write, text):
    with pytest.raises(InputError, match=text):
        write(overlay)
    assert overlay.entries() == []


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("double", [1, 1.5, None], [True, "1"]),
        ("int32", [1, None], [1.0, True, "1"]),
        ("uint8", [1], ["1"]),
        ("bool", [True, None], [1, "true"]),
        ("string", ["1", None], [1, True]),
        ("timestamp[us, tz=UTC]", ["2026-01-01"], [0]),
        ("list<element: string>", [["a"], "a", 1, True], []),
        ("", ["a", 1, True, {}], []),
    ],
)
def test_a_value_fits_its_column(column, good, bad):
    assert all(fits_type(value, column) for value in good)
    assert not any(fits_type(value, column) for value in bad)


def test_without_a_publish_there_is_no_overlay_and_the_error_names_what_there_is(store):
    with pytest.raises(NotFoundError, match=r"nothing is published of 'shop' in .*; publish one first"):
        nearcast.overlay(store, "shop")
    publish(store, "books", 1, LISTS)
    with pytest.raises(NotFoundError, match=r"nothing is published of 'shop' in .*; generators there are books"):
        nearcast.overlay(store, "shop")


def test_an_overlay_follows_the_type_of_ids_of_what_is_current(store, overlay):
    publish(store, "shop", 2, {"q": [("i1", 0.9)]})
    overlay.remove(["i1", 7])
    assert told(overlay) == [("i1", None, True, ""), ("7", None, True, "")]


def test_what_was_said_of_a_number_is_taken_back_of_its_text_when_ids_have_become_texts(store, overlay):
    overlay.remove([7, 8])
    publish(store, "shop", 2, {"q": [("7", 0.9)]})
    assert overlay.restore(["7"]) == [7]
    assert told(overlay) == [(8, None, True, "")]


def test_an_overlay_can_be_opened_from_a_url_a_path_or_a_store_which_then_stays_open(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "shop", 1, LISTS)
        for item, place in enumerate((f"lmdb:{tmp_path}", tmp_path, str(tmp_path), store)):
            with nearcast.overlay(place, "shop") as opened:
                opened.remove([item])
        assert [entry.item for entry in store.overlay("shop").changes().entries] == [0, 1, 2, 3]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `nearcast overlay shop ...` on a published shop. Returns exit code or error, and what was printed."""
    monkeypatch.chdir(tmp_path)
    store = open_store("lmdb:nearcast/store")
    publish(
        store, "shop", 1, {1: [(-10, 0.9), (11, 0.8)]}, {-10: {"price": 1.5, "name": "ten"}, 11: {}}, columns=COLUMNS
    )
    store.close()

    def run(*words):
        return CliRunner().invoke(cli, ["overlay", "shop", *words])

    return run


def listed(command):
    rows = json.loads(command("list", "--json").stdout)
    return [(row["item"], row["field"], row["value"], row["in_force"], row["in_snapshot"]) for row in rows]


def test_the_command_line_writes_lists_and_takes_back(command):
    done = command("remove", "-10", "99", "--for", "6h", "--note", "budget spent")
    assert done.exit_code == 0
    unknown = "not in the current snapshot: '99'; the nearest of its 2 items are 11, -10"
    assert done.stderr == f"removed 2 items of shop\n{unknown}\n"
    shown = command("list").stdout
    assert "budget spent" in shown
    assert command("set", "11", "price=2", "name=123", "extra=[1]", "other=as it is").exit_code == 0
    assert listed(command) == [
        (-10, None, True, True, True),
        (99, None, True, True, False),
        (11, "price", 2, True, True),
        (11, "name", "123", True, True),
        (11, "extra", [1], True, True),
        (11, "other", "as it is", True, True),
    ]
    assert command("restore", "-10", "99", "11").stderr == "restored 2 of 3\n'11' was not removed\n"
    assert command("restore", "11", "--field", "name").stderr == "restored 1 of 1\n"
    assert [row[:2] for row in listed(command)] == [(11, "price"), (11, "extra"), (11, "other")]


def test_an_empty_overlay_says_so(command):
    assert command("list").stdout == "the overlay of shop is empty\n"
    assert listed(command) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("remove",), "Missing argument"),
        (("remove", "1", "--for", "6"), "'6' is not a duration; write 90s, 30m, 6h or 2d"),
        (("remove", "1", "--for", "0h"), "'0h' is not a duration"),
        (("remove", "1", "--until", "soon"), "'soon' is not a time; write"),
        (("remove", "1", "--for", "6h", "--until", "2100-01-01"), "give --for or --until, not both"),
        (("set", "1"), "Missing argument"),
        (("set", "1", "price"), "'price' is not an assignment; write FIELD=VALUE"),
        (("set", "1", "=5"), "is not an assignment"),
        (("remove", "1", "--fro", "6h"), "No such option"),
    ],
)
def test_wrong_usage_says_what_would_work(command, words, text):
    done = command(*words)
    assert done.exit_code == 2
    assert text in done.stderr
    assert listed(command) == []


def test_an_end_on_the_command_line_is_a_span_or_a_time(command):
    command("remove", "11", "--for", "90s")
    command("set", "11", "price=1", "--until", "2100-01-01T00:00:00")
    ends = [row["until"] for row in json.loads(command("list", "--json").stdout)]
    assert ends[0] == pytest.approx(time.time() + 90, abs=60)
    assert ends[1] == datetime(2100, 1, 1, tzinfo=UTC).timestamp()


def test_a_store_that_cannot_be_opened_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        nearcast.overlay(tmp_path / "file", "shop")
