"""Look-ups while a canary is live: each key has one arm, and all that belongs to it comes from that arm."""

from __future__ import annotations

import contextlib
import threading
from functools import partialmethod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nearcast
from nearcast.errors import DamagedError, InputError, NotFoundError
from nearcast.publishing.move_canary import change_canary_share, start_canary, withdraw_canary
from nearcast.serve.canary_tally import CanaryTally
from nearcast.serve.lookup_data import ALL_CANDIDATES
from nearcast.serve.overlay import open_overlay
from nearcast.service.fallback import KeyQuery, answer_keys
from nearcast.stores import open_store
from nearcast.stores.base import Pointer, Space
from nearcast.stores.canary_share import Canary, hash_key
from nearcast.stores.value_format import encode_key
from published import load, point, publish, whole

KEYS = 200
SHOP = "shop"


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as opened:
        publish(opened, SHOP, 1, whole(1, KEYS))
        yield opened


@pytest.fixture
def lookup(store):
    with nearcast.open(store, SHOP, refresh_seconds=3600) as opened:
        yield opened


def canary(store, version=2, share=0.25, mode="canary"):
    with store.lock(SHOP) as lock:
        return start_canary(store, SHOP, store.pointer(SHOP), version, (mode, share), lock)


def in_share(key, share=0.25, version=2):
    return hash_key(SHOP, version, str(key)) < share * 2**64


def versions_of(ids):
    return {item // 1_000_000 for item in ids}


def test_a_pointer_without_a_canary_has_the_bytes_of_earlier_releases():
    plain = Pointer(3, 7)
    assert b"canary" not in plain.to_bytes()
    marked = Pointer(3, 7, canary=Canary(4, 0.05, "shadow", "2026-01-01T00:00:00Z"))
    assert Pointer.from_bytes(marked.to_bytes(), "it") == marked
    with pytest.raises(DamagedError, match="share"):
        Pointer.from_bytes(marked.to_bytes().replace(b"0.05", b"5.05"), "it")


def test_the_hash_is_that_of_the_documentation():
    assert hash_key("songs", 8, "123") == 0x16FE8A0EFAE04DD9
    assert hash_key("songs", 8, "123") != hash_key("songs", 9, "123") != hash_key("books", 9, "123")


def test_each_key_is_answered_by_one_arm_and_the_answer_names_its_snapshot(store, lookup):
    load(store, SHOP, 2, whole(2, KEYS))
    canary(store)
    lookup.refresh()
    inside = [key for key in range(KEYS) if in_share(key)]
    assert KEYS * 0.15 < len(inside) < KEYS * 0.35
    many = lookup.get_many(range(KEYS))
    for key, answer in enumerate(many):
        version = 2 if in_share(key) else 1
        one = lookup.get(key)
        assert answer.key == one.key == key
        assert list(answer.ids) == list(one.ids)
        assert answer.snapshot == one.snapshot == f"{version:06d}"
        assert versions_of(one.ids) == {version}
        assert list(lookup.get(str(key)).ids) == list(one.ids)  # as text it is the same key
    assert many.snapshot == many[0].snapshot
    assert many.to_arrow()["query_id"].to_pylist() == list(range(KEYS))
    only = lookup.get_many(inside)
    assert only.snapshot == "000002"
    assert only.snapshots is None


def test_a_growing_share_keeps_its_keys(store, lookup):
    load(store, SHOP, 2, whole(2, KEYS))
    canary(store, share=0.1)
    lookup.refresh()
    before = {a.key for a in lookup.get_many(range(KEYS)) if a.snapshot == "000002"}
    tally = lookup.canary
    reader = lookup.view().canary_arm.version
    change_canary_share(store, SHOP, 0.5)
    lookup.refresh()
    after = {a.key for a in lookup.get_many(range(KEYS)) if a.snapshot == "000002"}
    assert before < after
    assert lookup.canary is tally
    assert lookup.view().canary_arm.version is reader
    withdraw_canary(store, SHOP)
    lookup.refresh()
    assert lookup.canary is None
    assert {a.snapshot for a in lookup.get_many(range(KEYS))} == {"000001"}


def test_a_shadow_answers_nothing_and_is_measured(store, lookup, monkeypatch):
    monkeypatch.setattr(
        CanaryTally, "measure_waiting", partialmethod(CanaryTally.measure_waiting, 60.0)
    )  # busy machine
    worse = {key: row if key % 2 else [] for key, row in whole(1, KEYS).items()}
    load(store, SHOP, 2, worse)
    canary(store, share=1.0, mode="shadow")
    lookup.refresh()
    for start in range(0, KEYS, 20):
        for key in range(start, start + 20):
            assert lookup.get(key).snapshot == "000001"
        lookup.refresh()
    figures = lookup.canary.figures
    assert (figures.routed, figures.keys, figures.current.answers, figures.canary.answers) == (KEYS,) * 4
    assert (figures.current.empty, figures.canary.empty) == (0, KEYS // 2)
    assert figures.current.mean_fill == 1.0
    assert figures.canary.mean_fill == 0.5
    assert figures.mean_overlap == 0.5
    assert figures.canary.find_quantile(0.99) > 0


def test_the_figures_of_many_keys_are_a_sample(store, lookup):
    load(store, SHOP, 2, whole(1, KEYS))
    canary(store, share=1.0)
    lookup.refresh()
    lookup.get_many(range(KEYS))
    lookup.refresh()
    figures = lookup.canary.figures
    assert figures.routed == KEYS
    assert 0 < figures.canary.answers < KEYS
    assert figures.mean_overlap == 1.0


def test_a_canary_that_cannot_be_opened_is_an_error_and_the_current_version_answers(store, lookup):
    canary(store, version=9)
    lookup.refresh()
    assert "canary 000009 cannot be opened" in lookup.error
    assert {a.snapshot for a in lookup.get_many(range(KEYS))} == {"000001"}
    assert lookup.canary is None
    load(store, SHOP, 9, whole(9, KEYS))
    lookup.refresh()
    assert lookup.error is None
    assert lookup.state.canary.version == 9
    assert {a.snapshot for a in lookup.get_many(range(KEYS))} == {"000001", "000009"}


def test_the_arms_may_differ_in_types_and_columns(store, lookup):
    lists = {str(key): [(f"item-{key}", 1.0)] for key in range(KEYS)}
    items = {f"item-{key}": {"title": f"t{key}"} for key in range(KEYS)}
    load(store, SHOP, 2, lists, items, columns={"title": "string"})
    canary(store)
    lookup.refresh()
    many = lookup.get_many(range(KEYS))
    assert [answer.key for answer in many] == [str(key) for key in range(KEYS)]
    for key in range(KEYS):
        one = lookup.get(key, fields=["title"])
        if in_share(key):
            assert one.ids == [f"item-{key}"]
            assert one.columns["title"] == [f"t{key}"]
        else:
            assert versions_of(one.ids) == {1}
            assert one.columns["title"] == [None] * 5
        assert list(many[key].ids) == [str(item) for item in one.ids]
    with pytest.raises(NotFoundError):
        lookup.get(next(key for key in range(KEYS) if in_share(key)), fields=["price"])


def test_merged_lists_take_each_list_and_its_columns_from_its_arm(store, lookup):
    publish(store, SHOP, 1, whole(1, KEYS), items_of(1), columns={"of": "string"})
    load(store, SHOP, 2, whole(2, KEYS), items_of(2), columns={"of": "string"})
    canary(store)
    lookup.refresh()
    inside = next(key for key in range(KEYS) if in_share(key))
    outside = next(key for key in range(KEYS) if not in_share(key))
    merged = lookup.merged([(inside, 1.0), (outside, 1.0)], k=6, fields=["of"])
    assert versions_of(merged.ids) == {1, 2}
    assert merged.columns["of"] == [f"v{item // 1_000_000}" for item in merged.ids]


def items_of(version):
    return {item: {"of": f"v{version}"} for row in whole(version, KEYS).values() for item, _ in row}


def test_the_overlay_applies_to_both_arms(store, lookup):
    load(store, SHOP, 2, whole(2, KEYS))
    canary(store)
    lookup.refresh()
    inside = next(key for key in range(KEYS) if in_share(key))
    outside = next(key for key in range(KEYS) if not in_share(key))
    with open_overlay(store, SHOP) as overlay:
        overlay.remove([lookup.get(outside).ids[0]])
        overlay.remove([lookup.get(inside).ids[0]])
    lookup.refresh()
    assert lookup.get(inside).removed == lookup.get(outside).removed == 1


def test_fallbacks_come_from_the_arm_of_the_key(store, lookup):
    empty = {key: [] for key in range(KEYS)} | {"500": [(5, 1.0)]}
    load(store, SHOP, 2, {int(key): row for key, row in empty.items()}, {5: {}}, serve={"default_keys": [500]})
    canary(store)
    lookup.refresh()
    answers = answer_keys(lookup.view(), [KeyQuery(key) for key in range(KEYS)], ALL_CANDIDATES, None)
    for key, answer in enumerate(answers):
        expected = ("default_key", {0}) if in_share(key) else ("table", {1})
        assert (answer.source, versions_of(answer.ids)) == expected


def damage(store, version, keys, space=Space.LISTS):
    """Copy a version to the next number, with values that cannot be read."""
    with contextlib.closing(store.open(SHOP, version, verify=False)) as reader:
        pairs = {each: dict(reader.pairs(each)) for each in Space}
        facts = reader.facts
    pairs[space] |= dict.fromkeys(map(encode_key, keys), b"\x01")
    writer = store.write(SHOP, version + 1)
    for each in Space:
        writer.put(each, sorted(pairs[each].items()))
    writer.finish({**facts, "version": version + 1, "snapshot": f"{version + 1:06d}"})


def test_a_damaged_list_of_the_canary_is_answered_by_the_current_version_and_no_other_key_is(store, lookup):
    inside = [key for key in range(KEYS) if in_share(key, version=3)]
    load(store, SHOP, 2, whole(2, KEYS))
    damage(store, 2, inside[::7])
    canary(store, version=3)
    lookup.refresh()
    arms = {key: 2 if key in inside and key not in inside[::7] else 1 for key in range(KEYS)}
    queries = [KeyQuery(key) for key in range(KEYS)]
    many, batch = lookup.get_many(range(KEYS)), answer_keys(lookup.view(), queries, ALL_CANDIDATES, None)
    for key in range(KEYS):
        for answer in (lookup.get(key), many[key], batch[key]):
            assert (answer.key, versions_of(answer.ids)) == (key, {arms[key]})
            assert answer.snapshot == {1: "000001", 2: "000003"}[arms[key]]
    assert versions_of(lookup.get_many(inside[:1]).ids.to_pylist()) == {1}
    assert lookup.canary.figures.canary.errors > 0


def test_damaged_columns_and_fallbacks_of_the_canary_are_those_of_the_current_version(store, lookup):
    publish(store, SHOP, 1, whole(1, KEYS), items_of(1), columns={"of": "string"})
    load(store, SHOP, 2, whole(2, KEYS), items_of(2), columns={"of": "string"})
    damage(store, 2, list(items_of(2)), Space.ITEMS)
    canary(store, version=3)
    lookup.refresh()
    inside = next(key for key in range(KEYS) if in_share(key, version=3))
    options = ALL_CANDIDATES._replace(fields=["of"])
    (answer,) = answer_keys(lookup.view(), [KeyQuery(inside)], options, None)
    for found in (answer, lookup.get(inside, fields=["of"]), lookup.merged([(inside, 1.0)], fields=["of"])):
        assert versions_of(found.ids) == {1}
        assert list(found.columns["of"]) == ["v1"] * 5


def test_a_list_that_is_damaged_on_both_arms_is_an_error(store, lookup):
    damage(store, 1, range(KEYS))
    point(store, SHOP, 2)
    damage(store, 2, [])
    canary(store, version=3, share=1.0)
    lookup.refresh()
    with pytest.raises(DamagedError):
        lookup.get(3)
    with pytest.raises(DamagedError):
        lookup.get_many(range(KEYS))


def test_the_rules_of_an_invalid_request_stay(store, lookup):
    load(store, SHOP, 2, whole(2, KEYS))
    canary(store, share=1.0)
    lookup.refresh()
    with pytest.raises(InputError):
        lookup.get(3, request={"age": 3})
    with pytest.raises(InputError):
        lookup.get(3, k=0)


@given(st.lists(st.sampled_from(["publish", "canary", "shadow", "share", "withdraw", "promote"]), max_size=8))
@settings(max_examples=15, deadline=None)
def test_readers_never_mix_versions_for_a_key(tmp_path_factory, moves):
    with contextlib.closing(open_store(f"lmdb:{tmp_path_factory.mktemp('canary')}")) as store:
        publish(store, SHOP, 1, whole(1, KEYS))
        problems, stop = [], threading.Event()
        with nearcast.open(store, SHOP, refresh_seconds=0.002) as lookup:
            readers = [threading.Thread(target=check_answers, args=(lookup, stop, problems)) for _ in range(2)]
            for reader in readers:
                reader.start()
            newest = 1
            try:
                for number, move in enumerate(moves):
                    newest = make_move(store, move, newest, number)
                    lookup.refresh()
            finally:
                stop.set()
                for reader in readers:
                    reader.join()
            state = store.pointer(SHOP)
            expected = {state.version}
            if state.canary is not None and state.canary.mode == "canary":
                expected.add(state.canary.version)
            assert {int(answer.snapshot) for answer in lookup.get_many(range(KEYS))} <= expected
        assert not problems, problems[0]


def make_move(store, move, newest, number):
    live = store.pointer(SHOP).canary
    if move == "publish":
        publish(store, SHOP, newest + 1, whole(newest + 1, KEYS))
        return newest + 1
    if move in ("canary", "shadow"):
        load(store, SHOP, newest + 1, whole(newest + 1, KEYS))
        canary(store, newest + 1, 0.3, move)
        return newest + 1
    if live is not None and move == "share":
        change_canary_share(store, SHOP, 0.1 + 0.1 * number)
    elif live is not None and move == "withdraw":
        withdraw_canary(store, SHOP)
    elif live is not None and move == "promote":
        point(store, SHOP, live.version)
    return newest


def check_answers(lookup, stop, problems):
    """Look up while versions come and go: every list is of one version, and is the one that the view's state says."""
    try:
        while not stop.is_set():
            view = lookup.view()
            live = view.pointer.canary
            for answer in view.get_many(range(0, KEYS, 7)):
                share = live.share if live is not None and live.mode == "canary" else 0.0
                opened = live is not None and share and in_share(answer.key, share, live.version)
                wanted = {live.version, view.pointer.version} if opened else {view.pointer.version}
                assert versions_of(answer.ids) == {int(answer.snapshot)} <= wanted, (answer, view.pointer)
                assert list(view.get(answer.key).ids) == list(answer.ids)
    except BaseException as error:
        problems.append(error)
