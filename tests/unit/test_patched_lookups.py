"""Look-ups in a version with patches: lists, columns and rules are those of the newest patch."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pytest

import nearcast
from nearcast.eligibility import parse_rule, serialize_rules
from nearcast.publishing.store_listing import read_published
from nearcast.service.metrics import new_metrics
from nearcast.stores import open_store
from nearcast.stores.base import PatchFacts, Space
from nearcast.stores.value_format import encode_key, encode_lists
from published import publish

SCHEMA = pa.schema([("shop", pa.string())])
RULES = {
    **serialize_rules([parse_rule("shops", "item.shop == request.shop")], SCHEMA, SCHEMA),
    "own_query_columns": False,
}


@pytest.fixture
def store(tmp_path):
    opened = open_store(str(tmp_path / "store"))
    yield opened
    opened.close()


def patch(store, number, lists=None, items=None, made=1_000.0):
    rows = list((lists or {}).values())
    ids = pa.array([[item for item, _ in row] for row in rows], pa.list_(pa.int64()))
    scores = pa.array([[score for _, score in row] for row in rows], pa.list_(pa.float32()))
    values = encode_lists(ids, scores, [None] * len(rows), 0)
    pairs = {
        Space.LISTS: list(zip(map(encode_key, lists or {}), values, strict=True)),
        Space.ITEMS: [(encode_key(item), json.dumps(row).encode()) for item, row in (items or {}).items()],
    }
    facts = PatchFacts(number, 1, "2026-01-01T00:00:00Z", made, {"lists": len(rows)}, note="spring")
    with store.lock("shop") as lock:
        store.patches("shop").write(facts, pairs, lock)


def test_new_keys_and_new_items_are_found_at_once(store):
    publish(store, "shop", 1, {1: [(10, 0.5)]}, {10: {"price": 1}}, columns={"price": "int64"})
    with nearcast.open(store, "shop") as lookup:
        assert lookup.get(1).ids == [10]
        assert not lookup.get(2).found
        patch(store, 1, {1: [(11, 0.9), (10, 0.5)], 2: [(11, 0.7)]}, {11: {"price": 7}})
        answer = lookup.get(1, fields=["price"])
        assert (answer.ids, answer.columns) == ([11, 10], {"price": [7, 1]})
        assert lookup.get_many([2, 1, 3]).ids.to_pylist() == [11, 11, 10]
        assert lookup.items([11], ["price"]) == [{"price": 7}]


def test_rules_read_the_newer_columns_of_patched_items_and_the_older_ones_after_a_rollback(store):
    items = {10: {"shop": "a"}, 11: {"shop": "b"}}
    publish(store, "shop", 1, {1: [(10, 0.5), (11, 0.4)]}, items, rules=RULES, columns={"shop": "string"})
    with nearcast.open(store, "shop") as lookup:
        assert lookup.get(1, request={"shop": "a"}).ids == [10]
        patch(store, 1, items={10: {"shop": "b"}})
        assert lookup.get(1, request={"shop": "a"}).ids == []
        assert lookup.get(1, request={"shop": "b"}).ids == [10, 11]
        with store.lock("shop") as lock:
            store.patches("shop").roll_back(1, 0, lock)
        assert lookup.get(1, request={"shop": "a"}).ids == [10]
        assert lookup.get_many([1], request={"shop": "b"}).ids.to_pylist() == [11]


def test_state_metrics_and_listing_show_the_newest_patch(store):
    publish(store, "shop", 1, {1: [(10, 0.5)]})
    with nearcast.open(store, "shop") as lookup:
        assert (lookup.state.patch, lookup.state.patch_age_seconds) == (0, None)
        patch(store, 1, {1: [(11, 0.9)]}, made=time.time() - 100)
        state = lookup.refresh()
        assert state.patch == 1
        assert 100 <= state.patch_age_seconds < 200
        metrics = new_metrics(["shop"], lambda: {"shop": state}, lambda: True)
        shown = metrics.format_text().decode()
        assert 'nearcast_patch_number{generator="shop"} 1.0' in shown
        assert 'nearcast_patch_age_seconds{generator="shop"} 1' in shown
    (version,) = read_published(store, "shop", now=time.time()).as_dict()["versions"]
    assert [kept["note"] for kept in version["patches"]] == ["spring"]


def test_a_patch_made_by_another_process_is_in_force_within_a_second(store, tmp_path):
    publish(store, "shop", 1, {1: [(10, 0.5)]})
    with nearcast.open(store, "shop", refresh_seconds=0.05) as lookup:
        patch(open_store(str(tmp_path / "store")), 1, {1: [(11, 0.9)]})
        deadline = time.monotonic() + 60
        while lookup.state.patch == 0:  # no look-up: the thread that follows the store sees it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lookup.get(1).ids == [11]
