"""Look-ups: what is answered, from which version, and what happens when a store, a clock or a version goes wrong."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nearcast
from nearcast import stores
from nearcast.errors import DamagedError, InputError, NotFoundError, SpecError, StoreError
from nearcast.serve import follow_store
from nearcast.serve.lookup_data import LookupOptions
from nearcast.stores import open_store
from nearcast.stores.base import OverlayChanges, OverlayEntry, Space
from nearcast.stores.value_format import encode_key
from published import load, point, publish, whole
from servers import HERE

NEVER = 3600.0  # seconds: the watching thread does nothing while a test lasts
OFTEN = 0.02
PATIENCE = 180.0
FEW = "?buckets=16"  # in Redis: a small version is written sooner
LISTS = {-3: [(10, 0.75), (11, 0.5), (12, 0.25)], 4: [(11, 1.0)], 5: []}
ITEMS = {10: {"name": "ten", "price": 1.5}, 11: {"name": "eleven", "price": 2}, 12: {}}
COLUMNS = {"name": "string", "price": "double"}


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    if request.param == "lmdb":
        return f"lmdb:{tmp_path / 'store'}"
    return request.getfixturevalue("redis_url") + FEW


@pytest.fixture
def store(url):
    with contextlib.closing(open_store(url)) as opened:
        yield opened


@pytest.fixture
def shop(store):
    """A look-up of a small shop. Its thread sleeps; `refresh` looks for news."""
    publish(store, "shop", 1, LISTS, ITEMS, columns=COLUMNS, reasons={4: "not_probed", 5: "no_vector"})
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as opened:
        yield opened


@pytest.fixture
def overlay(shop, store):
    with nearcast.overlay(store, "shop") as opened:
        yield opened


def eventually(true):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.005)


def raises(error, text, *asked):
    for ask in asked:
        with pytest.raises(error, match=text):
            ask()


def version_of(answer):
    """The version that an answer of `whole` lists is from, after a check that all of it is."""
    versions = {item // 1_000_000 for item in answer.ids}
    assert answer.found
    assert versions == {int(answer.snapshot)}, answer
    return int(answer.snapshot)


def test_one_key(shop):
    answer = shop.get(-3)
    assert (answer.key, answer.found, answer.source, answer.source_key) == (-3, True, "table", -3)
    assert (answer.ids, answer.scores) == ([10, 11, 12], [0.75, 0.5, 0.25])
    assert (answer.reason, answer.removed, answer.columns, answer.snapshot) == (None, 0, {}, "000001")
    assert shop.get(4).reason == "not_probed"
    assert shop.get("-3").ids == [10, 11, 12]
    assert shop.get(np.int32(-3)).key == -3


def test_an_empty_list_is_found(shop):
    answer = shop.get(5)
    assert (answer.found, answer.ids, answer.reason, answer.source) == (True, [], "no_vector", "table")


@pytest.mark.parametrize(
    "key",
    [6, -1, 2**63, -(2**63) - 1, 10**40, "x", "", "4.0", "٤", "4 ", "\ud800", "4" * 10_000, 4.0, None, True, b"4"],
)
def test_a_key_that_is_not_there_or_cannot_be_there_is_not_found(shop, key):
    answer = shop.get(key, fields=("name",))
    assert (answer.found, answer.ids, answer.scores, answer.reason) == (False, [], [], None)
    assert (answer.source, answer.source_key, answer.snapshot) == ("none", None, "000001")
    assert answer.columns == {"name": []}
    many = shop.get_many([4, key, -3])
    assert many.found.tolist() == [True, False, True]
    assert many[1].ids == []


def test_only_the_first_k_and_only_enough_score(shop):
    assert shop.get(-3, k=2).ids == [10, 11]
    assert shop.get(-3, k=20).ids == [10, 11, 12]
    assert shop.get(-3, min_score=0.5).ids == [10, 11]
    assert shop.get(-3, min_score=2).ids == []
    assert shop.get(-3, k=1, min_score=-1).ids == [10]


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_one_at_least(shop, k):
    text = f"k is {k}; ask for one candidate at least"
    raises(InputError, text, lambda: shop.get(4, k=k), lambda: shop.get_many([4], k=k))


def test_a_score_is_as_large_as_itself_though_it_was_rounded_to_float32(store):
    publish(store, "shop", 1, {1: [(10, 0.7), (11, 0.1)]})
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
        assert shop.get(1, min_score=0.7).ids == shop.get_many([1], min_score=0.7)[0].ids == [10]


def test_columns_of_items_come_along_with_newer_values(shop, overlay):
    assert shop.get(-3, fields=("price", "name")).columns == {"price": [1.5, 2, None], "name": ["ten", "eleven", None]}
    overlay.update(10, "price", 9.5)
    overlay.update(12, "name", "twelve")
    overlay.update(11, "name", None)
    overlay.update(11, "paused_by", "me")
    shop.refresh()
    answer = shop.get(-3, k=3, fields=("price", "name", "paused_by"))
    assert answer.columns == {"price": [9.5, 2, None], "name": ["ten", None, "twelve"], "paused_by": [None, "me", None]}
    rows = shop.items(["10", 99, 10, "x"], ("price",))
    assert rows == [{"price": 9.5}, {"price": None}, {"price": 9.5}, {"price": None}]


def test_a_column_that_there_is_not_is_an_error_with_those_that_there_are(shop, overlay):
    overlay.update(10, "color", "red")
    shop.refresh()
    text = "shop 000001 holds no item column 'prize'; it holds color, name, price"
    asked = lambda: shop.get(-3, fields=["prize"]), lambda: shop.get(9, fields=["prize"])
    raises(NotFoundError, text, *asked, lambda: shop.items([10], ["prize"]))


def test_an_item_that_is_gone_is_in_no_answer(shop, overlay):
    overlay.remove([11])
    overlay.remove([10], until=time.time() + 3600)
    assert shop.get(-3).ids == [10, 11, 12]  # nobody has looked yet
    shop.refresh()
    one, many = shop.get(-3), shop.get_many([-3, 4, 5, 6])
    assert (one.ids, one.scores, one.removed) == ([12], [0.25], 2)
    assert many.removed.tolist() == [2, 1, 0, 0]
    assert shop.get(4).ids == []
    assert shop.get(4).found
    assert shop.removed([10, "11", 12, "x"]) == [True, True, False, False]
    assert shop.state.overlay == 2
    overlay.restore([11])
    shop.refresh()
    assert shop.get(4).ids == [11]


def test_k_counts_what_is_left(shop, overlay):
    overlay.remove([10])
    shop.refresh()
    assert shop.get(-3, k=2).ids == shop.get_many([-3], k=2)[0].ids == [11, 12]
    assert shop.get(-3, k=2).removed == 1


def test_an_entry_ends_while_nobody_looks_at_the_store(shop, overlay, monkeypatch):
    end = time.time() + 3600
    overlay.remove([10], until=end)
    shop.refresh()
    assert shop.get(-3).ids == shop.get_many([-3])[0].ids == [11, 12]
    monkeypatch.setattr(time, "time", lambda: end + 1)
    assert shop.get(-3).ids == shop.get_many([-3])[0].ids == [10, 11, 12]
    assert shop.state.overlay == 0


TABLES = {
    "numbers": {key: [(7 * key + i, 1 - i / 8) for i in range(key % 6)] for key in range(-20, 20)},
    "wide numbers": {key: [((7 * key + i) << 33, 1 - i / 8) for i in range(key % 6)] for key in range(40)},
    "full lists": {key: [(key + i, 1 - i / 8) for i in range(4)] for key in range(40)},
    "texts": {f"k{key}": [(f"ä{key + i}" * i, 1 - i / 8) for i in range(key % 6)] for key in range(40)},
}


@pytest.mark.parametrize("table", TABLES)
def test_many_keys_are_answered_as_they_are_one_by_one(tmp_path, table):
    lists = TABLES[table]
    items = sorted({item for row in lists.values() for item, _ in row}, key=str)
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "t", 1, lists, reasons=dict.fromkeys(list(lists)[::3], "capped"))
        with nearcast.open(store, "t", refresh_seconds=NEVER) as opened:
            view = opened.view()

            @settings(max_examples=150)
            @given(
                st.lists(st.sampled_from([*lists, 10**6, "missing"]), max_size=30),
                st.one_of(st.none(), st.integers(1, 7)),
                st.sampled_from([None, -1.0, 0.5, 0.875, 2.0]),
                st.sets(st.sampled_from(items), max_size=20),
            )
            def check(keys, k, min_score, gone):
                entries = tuple(OverlayEntry(item, None, True, 0.0) for item in gone)
                asked = replace(view, overlay=view.overlay.apply(OverlayChanges(5, len(gone), entries)))
                many = asked.get_many(keys, k=k, min_score=min_score)
                assert len(many) == len(keys)
                for key, answer in zip(keys, many, strict=True):
                    alone = asked.get(key, LookupOptions(k, min_score))
                    same = {"age_seconds": 0.0} | ({} if alone.found else {"key": key})
                    assert replace(answer, **same) == replace(alone, **same)
                    assert not gone & set(answer.ids)

            check()


FORMS = {
    "a list": [4, -3, 6],
    "texts": ["4", "-3", "6"],
    "both": [4, "-3", "6"],
    "a tuple": (4, -3, 6),
    "int64": np.array([4, -3, 6]),
    "int8": np.array([4, -3, 6], np.int8),
    "an array of texts": np.array(["4", "-3", "6"]),
    "arrow": pa.array([4, -3, 6]),
    "arrow int32": pa.array([4, -3, 6], pa.int32()),
    "arrow texts": pa.array(["4", "-3", "6"]),
    "arrow chunks": pa.chunked_array([[4], [-3, 6]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_come_in_many_forms(shop, form):
    answers = shop.get_many(FORMS[form])
    assert [(a.key, a.found, a.ids) for a in answers] == [(4, True, [11]), (-3, True, [10, 11, 12]), (6, False, [])]


@pytest.mark.parametrize(
    "keys", [[], (), np.array([], np.int64), np.array([], object), pa.array([], pa.int64()), pa.array([], pa.null())]
)
def test_no_keys_are_no_answers(shop, keys):
    answers = shop.get_many(keys)
    assert len(answers) == 0
    assert list(answers) == []
    assert answers.to_arrow().num_rows == 0


def test_large_unsigned_keys_and_nulls_are_not_found(shop):
    assert shop.get_many(np.array([4, 2**64 - 3], np.uint64)).found.tolist() == [True, False]
    assert shop.get_many(pa.array([4, None, -3])).found.tolist() == [True, False, True]


def test_texts_are_asked_for_in_the_forms_that_texts_have(store):
    publish(store, "t", 1, {"a": [("x", 1.0)], "7": [("y", 1.0)], "": [("z", 1.0)]})
    with nearcast.open(store, "t", refresh_seconds=NEVER) as opened:
        for keys in (
            ["a", "7", "", "b"],
            np.array(["a", "7", "", "b"]),
            pa.array(["a", "7", "", "b"]),
            ["a", 7, "", "b"],
        ):
            assert [answer.ids for answer in opened.get_many(keys)] == [["x"], ["y"], ["z"], []]
        assert opened.get(7).ids == ["y"]


def test_answers_are_a_sequence_and_an_arrow_table(shop, overlay):
    overlay.remove([11])
    shop.refresh()
    answers = shop.get_many([-3, 5, "x", 4])
    assert answers[-1] == answers[3]
    with pytest.raises(IndexError):
        answers[4]
    assert answers.to_arrow().to_pylist() == [
        {
            "query_id": -3,
            "candidate_ids": [10, 12],
            "scores": [0.75, 0.25],
            "found": True,
            "reason": None,
            "removed": 1,
        },
        {"query_id": 5, "candidate_ids": [], "scores": [], "found": True, "reason": "no_vector", "removed": 0},
        {"query_id": None, "candidate_ids": [], "scores": [], "found": False, "reason": None, "removed": 0},
        {"query_id": 4, "candidate_ids": [], "scores": [], "found": True, "reason": "not_probed", "removed": 1},
    ]


def test_an_answer_as_plain_data(shop):
    told = shop.get(-3, k=1, fields=("name",)).as_dict()
    assert told.pop("age_seconds") > 0
    assert told == {
        "key": -3, "found": True, "source": "table", "source_key": -3, "snapshot": "000001", "length": 1, "removed": 0,
        "stored": 3, "barred": {}, "reason": None, "candidates": [{"rank": 1, "id": 10, "score": 0.75, "name": "ten"}],
    }  # fmt: skip


def ages(shop):
    answers = shop.get(4), shop.get(99), shop.get_many([4]), shop.get_many([4])[0], shop.state, shop.view()
    return [answer.age_seconds for answer in answers]


def test_the_age_is_since_the_snapshot_was_made_and_never_below_zero(store):
    made = datetime.now(UTC)
    publish(store, "shop", 1, LISTS, created=(made - timedelta(hours=1)).isoformat())
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
        assert all(3600 <= age < 3600 + PATIENCE for age in ages(shop))
        publish(store, "shop", 2, LISTS, created=(made + timedelta(days=1)).isoformat())
        shop.refresh()
        assert all(age == 0.0 for age in ages(shop))


def test_a_publish_and_a_rollback_are_followed(store, shop):
    assert (shop.state.version, shop.state.serial) == (1, 1)
    publish(store, "shop", 2, {4: [(99, 1.0)]})
    state = shop.refresh()
    assert (state.version, state.snapshot, state.serial, state.error) == (2, "000002", 2, None)
    assert state.facts["keys"] == 1
    assert (shop.get(4).ids, shop.get(4).snapshot) == ([99], "000002")
    point(store, "shop", 1)
    assert shop.refresh().serial == 3
    assert (shop.get(4).ids, shop.get(4).snapshot) == ([11], "000001")


def test_a_version_may_have_other_types_of_ids_than_the_one_before(store, shop, overlay):
    overlay.remove([11])
    publish(store, "shop", 2, {"4": [("11", 1.0), ("b", 0.5)]})
    shop.refresh()
    assert shop.get(4).ids == shop.get("4").ids == shop.get_many([4])[0].ids == ["b"]


def test_the_thread_follows_by_itself(url, store):
    publish(store, "shop", 1, whole(1))
    with nearcast.open(url, "shop", refresh_seconds=OFTEN) as shop, nearcast.overlay(url, "shop") as overlay:
        publish(store, "shop", 2, whole(2))
        eventually(lambda: version_of(shop.get(7)) == 2)
        overlay.remove([2_007_001])
        eventually(lambda: shop.get(7).removed == 1)
        point(store, "shop", 1)
        eventually(lambda: version_of(shop.get(7)) == 1)
        assert shop.state.error is None
        assert shop.state.refreshed_seconds < PATIENCE


def test_a_view_answers_from_its_version_through_three_publishes_and_its_removal(store):
    publish(store, "shop", 1, whole(1))
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
        old = shop.view()
        for version in (2, 3, 4):
            publish(store, "shop", version, whole(version))
            shop.refresh()
            with store.lock("shop"):
                store.retire("shop", version - 1)
            assert {version_of(shop.get(key)) for key in range(100)} == {version}
            assert {version_of(old.get(key)) for key in range(100)} == {1}
            assert {version_of(answer) for answer in old.get_many(np.arange(100))} == {1}


def mapped(folder, version):
    return f"{folder}/shop/versions/{version:06d}/data.mdb" in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what is mapped in /proc")
def test_a_version_is_let_go_when_nobody_uses_it_any_more(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path}")) as store:
        publish(store, "shop", 1, whole(1))
        shop = nearcast.open(store, "shop", refresh_seconds=NEVER)
        view = shop.view()
        publish(store, "shop", 2, whole(2))
        shop.refresh()
        assert mapped(tmp_path, 1)
        assert mapped(tmp_path, 2)
        del view
        assert not mapped(tmp_path, 1)
        shop.close()
        assert not mapped(tmp_path, 2)


def test_no_answer_is_torn_and_none_fails_while_versions_come_and_go(url, store):
    keys = np.arange(100)
    publish(store, "shop", 1, whole(1))
    seen, stop, wrong = set(), threading.Event(), []

    def hammer(number):
        try:
            while not stop.is_set():
                if number % 2:
                    answers = shop.get_many(keys)
                    assert answers.found.all()
                    assert set((answers.ids.to_numpy() // 1_000_000).tolist()) == {int(answers.snapshot)}
                    seen.add(int(answers.snapshot))
                else:
                    seen.add(version_of(shop.get(int(keys[number]))))
        except BaseException as error:
            wrong.append(error)

    with nearcast.open(url, "shop", refresh_seconds=0.001) as shop:
        threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 14):
            publish(store, "shop", version, whole(version))
            if version % 5 == 0:
                point(store, "shop", version - 1)
            if version > 3:
                with store.lock("shop"):
                    store.retire("shop", version - 3)
            if not wrong:
                eventually(lambda v=version: wrong or shop.state.version >= v - 1)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not wrong, wrong[0]
        assert len(seen) > 4
        assert shop.state.error is None


# What goes wrong


def test_nothing_published_is_an_error_that_names_what_there_is(store):
    with pytest.raises(NotFoundError, match=r"nothing is published of 'shop' in .*; publish one first"):
        nearcast.open(store, "shop")
    publish(store, "books", 1, LISTS)
    publish(store, "films", 1, LISTS)
    with pytest.raises(NotFoundError, match=r"nothing is published of 'shop' in .*; generators there are books, films"):
        nearcast.open(store, "shop")


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_refresh_takes_time(store, seconds):
    with pytest.raises(SpecError, match="refresh_seconds is"):
        nearcast.open(store, "shop", refresh_seconds=seconds)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"format": 2}, "their format is 2, and this version of nearcast reads 1"),
        ({"generator": "books"}, "they are those of books 1"),
        ({"version": 2}, "they are those of shop 2"),
        ({"created": "yesterday"}, "yesterday"),
        ({"query_ids": "uuid"}, "uuid"),
        ({"item_ids": None}, "None"),
    ],
)
def test_a_version_with_other_facts_than_it_should_have_is_not_served(store, facts, text):
    load_with(store, **facts)
    with pytest.raises(DamagedError, match=r"the facts of shop 1 in the store cannot be used") as caught:
        nearcast.open(store, "shop")
    assert text in str(caught.value)


def load_with(store, **facts):
    writer = store.write("shop", 1)
    writer.put(Space.LISTS, [(encode_key(1), b"\x10\0\0\0")])
    known = {"format": 1, "generator": "shop", "version": 1, "snapshot": "000001", "created": "2026-01-01T00:00:00Z"}
    writer.finish({**known, "query_ids": "int64", "item_ids": "int64", **facts})
    point(store, "shop", 1)


def test_a_value_that_is_no_list_is_an_error_for_one_key_and_for_many(store):
    load_with(store)
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
        assert shop.get(1).ids == []
    writer = store.write("shop", 2)
    writer.put(Space.LISTS, [(encode_key(1), b"\x20\0\0\0")])
    writer.put(Space.ITEMS, [(encode_key(1), b"[]")])
    facts = {"format": 1, "generator": "shop", "version": 2, "snapshot": "000002", "created": "2026-01-01T00:00:00Z"}
    writer.finish({**facts, "query_ids": "int64", "item_ids": "int64", "columns": {"a": "string"}})
    point(store, "shop", 2)
    with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
        raises(DamagedError, "no list of candidates", lambda: shop.get(1), lambda: shop.get_many([1]))
        raises(DamagedError, "holds no columns of an item", lambda: shop.items([1], ("a",)))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.fixture
def file_of(tmp_path):
    return lambda version: tmp_path / "store" / "shop" / "versions" / f"{version:06d}" / "data.mdb"


@pytest.fixture
def files(tmp_path):
    """The embedded store."""
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as opened:
        yield opened


def test_a_damaged_version_is_refused_the_old_one_stays_and_the_next_good_one_is_taken(files, file_of):
    publish(files, "shop", 1, whole(1))
    with nearcast.open(files, "shop", refresh_seconds=NEVER) as shop:
        load(files, "shop", 2, whole(2))
        flip_a_byte(file_of(2))
        point(files, "shop", 2)
        state = shop.refresh()
        assert (state.version, version_of(shop.get(7))) == (1, 1)
        assert str(file_of(2)) in state.error
        assert shop.refresh().error == state.error
        publish(files, "shop", 3, whole(3))
        assert (shop.refresh().version, shop.state.error) == (3, None)


def test_a_refused_version_that_is_rolled_back_leaves_no_error(files, file_of):
    publish(files, "shop", 1, whole(1))
    with nearcast.open(files, "shop", refresh_seconds=OFTEN) as shop:
        load(files, "shop", 2, whole(2))
        flip_a_byte(file_of(2))
        point(files, "shop", 2)
        eventually(lambda: shop.state.error)
        point(files, "shop", 1)
        eventually(lambda: shop.state.error is None)
        assert shop.state.version == 1


def test_a_pointer_that_is_put_back_as_it_was_leaves_no_error(files, file_of, tmp_path):
    publish(files, "shop", 1, whole(1))
    current = tmp_path / "store" / "shop" / "current"
    before = current.read_text()
    with nearcast.open(files, "shop", refresh_seconds=NEVER) as shop:
        load(files, "shop", 2, whole(2))
        flip_a_byte(file_of(2))
        point(files, "shop", 2)
        assert shop.refresh().error
        current.write_text(before)
        assert shop.refresh().error is None


def test_a_refused_version_is_tried_again_now_and_then(files, file_of, monkeypatch):
    monkeypatch.setattr(follow_store, "RETRY_SECONDS", 0.05)
    publish(files, "shop", 1, whole(1))
    with nearcast.open(files, "shop", refresh_seconds=OFTEN) as shop:
        load(files, "shop", 2, whole(2))
        good = file_of(2).read_bytes()
        flip_a_byte(file_of(2))
        point(files, "shop", 2)
        eventually(lambda: shop.state.error)
        file_of(2).write_bytes(good)
        eventually(lambda: shop.state.version == 2 and shop.state.error is None)


def test_a_damaged_current_version_cannot_be_opened_unless_nothing_is_verified(files, file_of):
    publish(files, "shop", 1, whole(1, keys=3000))
    flip_a_byte(file_of(1))
    with pytest.raises(DamagedError, match=r"data\.mdb was changed"):
        nearcast.open(files, "shop")
    nearcast.open(files, "shop", verify=False).close()


def test_a_pointer_that_cannot_be_read_changes_nothing_but_the_state(files, file_of, tmp_path):
    publish(files, "shop", 1, whole(1))
    current = tmp_path / "store" / "shop" / "current"
    with nearcast.open(files, "shop", refresh_seconds=NEVER) as shop, nearcast.overlay(files, "shop") as overlay:
        overlay.remove([1_007_001])
        good = current.read_text()
        current.write_text("{}")
        assert "is no pointer" in shop.refresh().error
        assert shop.get(7).removed == 1  # the overlay is followed all the same
        current.unlink()
        assert "its pointer was lost" in shop.refresh().error
        assert version_of(shop.get(7)) == 1
        current.write_text(good)
        assert shop.refresh().error is None


def test_what_is_purged_stays_away_until_the_new_version_answers(files, file_of):
    publish(files, "shop", 1, LISTS)
    with nearcast.open(files, "shop", refresh_seconds=NEVER) as shop, nearcast.overlay(files, "shop") as overlay:
        overlay.remove([11])
        shop.refresh()
        (entry,) = overlay.entries()
        load(files, "shop", 2, {-3: [(10, 0.75), (12, 0.25)]})
        flip_a_byte(file_of(2))
        point(files, "shop", 2)
        files.overlay("shop").purge([entry.key()], upto=10)
        assert shop.refresh().error is not None
        assert shop.get(-3).ids == shop.get_many([-3])[0].ids == [10, 12]
        overlay.remove([12])
        shop.refresh()
        assert shop.get(-3).ids == [10]
        publish(files, "shop", 3, {-3: [(10, 0.75), (12, 0.25)]})
        assert shop.refresh().overlay == 1
        assert shop.get(-3).ids == [10]


class SlowToOpen:
    """A store that opens a version when it is allowed to; all else is another store's work."""

    def __init__(self, store):
        self._store = store
        self.allowed = threading.Event()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def open(self, generator, version, *, verify):
        assert version == 1 or self.allowed.wait(PATIENCE)
        return self._store.open(generator, version, verify=verify)


def test_the_overlay_does_not_wait_for_a_version_that_takes_long_to_open(files):
    publish(files, "shop", 1, LISTS)
    slow = SlowToOpen(files)
    with nearcast.open(slow, "shop", refresh_seconds=OFTEN) as shop, nearcast.overlay(files, "shop") as overlay:
        publish(files, "shop", 2, {4: [(11, 1.0), (12, 0.5)]})
        overlay.remove([11])
        eventually(lambda: shop.get(4).removed == 1)
        assert shop.state.version == 1
        slow.allowed.set()
        eventually(lambda: shop.state.version == 2)
        assert shop.get(4).ids == [12]


def test_a_closed_look_up_says_so(shop):
    shop.close()
    shop.close()
    asked = lambda: shop.get(4), lambda: shop.get_many([4]), lambda: shop.items([10], ()), shop.refresh, shop.view
    raises(StoreError, "the look-up of shop was closed; open it again", *asked)


def threads_of(generator):
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"nearcast-{generator}")]


def test_closing_ends_the_thread_and_so_does_forgetting(store):
    publish(store, "alone", 1, LISTS)
    opened = nearcast.open(store, "alone", refresh_seconds=OFTEN)
    assert len(threads_of("alone")) == 1
    opened.close()
    assert threads_of("alone") == []
    refresh_and_forget(store)
    eventually(lambda: gc.collect() >= 0 and threads_of("alone") == [])  # its thread may hold it for a moment


def refresh_and_forget(store):
    opened = nearcast.open(store, "alone", refresh_seconds=OFTEN)
    publish(store, "alone", 2, LISTS)
    eventually(lambda: opened.state.version == 2)  # the thread has been at work
    eventually(lambda: len(threads_of("alone")) == 1)


class Closes:
    """A store that notes that it was closed; all else is another store's work."""

    def __init__(self, store):
        self._store = store
        self.closed = 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def close(self):
        self.closed += 1


def test_a_look_up_closes_the_store_that_it_has_opened_and_no_other(files, monkeypatch):
    publish(files, "shop", 1, LISTS)
    store = Closes(files)
    nearcast.open(store, "shop").close()
    nearcast.overlay(store, "shop").close()
    assert store.closed == 0
    monkeypatch.setattr(stores, "open_store", lambda url: store)
    nearcast.open(files.url, "shop").close()
    assert store.closed == 1
    nearcast.overlay(files.url, "shop").close()
    assert store.closed == 2
    with pytest.raises(NotFoundError):
        nearcast.open(files.url, "books")
    assert store.closed == 3


# A store behind a network


def test_a_version_that_expired_leads_to_the_current_one(redis_url):
    with contextlib.closing(open_store(f"{redis_url}{FEW}&grace=0")) as store:
        publish(store, "shop", 1, whole(1))
        with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
            for version, ask in ((2, lambda: version_of(shop.get(7))), (3, lambda: version_of(shop.get_many([7])[0]))):
                publish(store, "shop", version, whole(version))
                with store.lock("shop"):
                    store.retire("shop", version - 1)
                assert ask() == version
            publish(store, "shop", 4, whole(4), {4_007_000: {"a": 1}}, columns={"a": "int64"})
            with store.lock("shop"):
                store.retire("shop", 3)
            with pytest.raises(NotFoundError, match="no item column 'b'"):
                shop.items([4_007_000], ("b",))
            shop.refresh()
            assert shop.items([4_007_000], ("a",)) == [{"a": 1}]


def test_a_version_that_is_lost_with_nothing_in_its_place_is_an_error_and_no_miss(redis_url, redis_server):
    with contextlib.closing(open_store(redis_url + FEW)) as store:
        publish(store, "shop", 1, whole(1))
        with nearcast.open(store, "shop", refresh_seconds=NEVER) as shop:
            with contextlib.closing(redis_client(redis_url)) as client:
                client.flushall()
            asked = lambda: shop.get(7), lambda: shop.get_many([7])
            raises(StoreError, "shop 000001 was taken away from the store", *asked)
            assert "nothing is published" in shop.refresh().error
            publish(store, "shop", 1, whole(1))  # the same version and serial, but another load
            assert version_of(shop.get(7)) == 1


def redis_client(url):
    import redis

    return redis.Redis.from_url(url)


def test_a_redis_that_is_gone_is_an_error_for_each_look_up_and_all_is_well_when_it_is_back(redis_url, proxy):
    with contextlib.closing(open_store(redis_url + FEW)) as store:
        publish(store, "shop", 1, LISTS, ITEMS)
        through = f"redis://{HERE}:{proxy.port}/0?timeout=1"
        with nearcast.open(through, "shop", refresh_seconds=OFTEN) as shop, nearcast.overlay(store, "shop") as overlay:
            overlay.remove([10])
            eventually(lambda: shop.get(-3).ids == [11, 12])
            proxy.cut()
            raises(StoreError, "cannot be reached", lambda: shop.get(-3), lambda: shop.get_many([-3]))
            eventually(lambda: shop.state.error and "cannot be reached" in shop.state.error)
            assert shop.state.version == 1
            overlay.remove([11])
            publish(store, "shop", 2, LISTS, ITEMS)
            proxy.restore()
            eventually(lambda: shop.state.version == 2 and shop.state.error is None)
            assert shop.get(-3).ids == [12]


def test_a_redis_that_is_slow_is_an_error_after_its_timeout(redis_url, proxy):
    with contextlib.closing(open_store(redis_url + FEW)) as store:
        publish(store, "shop", 1, LISTS)
        with nearcast.open(f"redis://{HERE}:{proxy.port}/0?timeout=1", "shop", refresh_seconds=NEVER) as shop:
            proxy.delay = 3.0
            with pytest.raises(StoreError, match="did not answer within"):
                shop.get(4)
            proxy.restore()
            eventually(lambda: answers(shop))
            assert shop.get(4).ids == [11]


def answers(shop):
    with contextlib.suppress(StoreError):
        return shop.get(4).found
    return False
