"""Updates of a served version: lists equal those of a full run on the same data."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from nearcast.api.updates import roll_back_updates
from nearcast.errors import AuditError, InputError, NotFoundError, SpecError
from nearcast.publishing.compact_overlay import compact_overlay
from nearcast.storage.locations import parse_location
from nearcast.stores import open_store
from nearcast.stores.base import OverlayEntry, Space
from nearcast.stores.value_format import decode_list
from nearcast.updating import merge_touched, update
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.update import Updater, UpdateRequest

DIM = 6


def read_all(store, generator, version):
    """Return all pairs of a version by space."""
    with contextlib.closing(store.open(generator, version, verify=False)) as reader:
        return {space: dict(reader.pairs(space)) for space in Space}


@dataclass
class Shop:
    """Items and queries in memory, and what is served of them."""

    folder: object
    settings: dict
    items: dict = field(default_factory=dict)  # id -> (vector, brand, country)
    queries: dict = field(default_factory=dict)  # id -> (vector, country)
    store_url: str = ""  # default: an LMDB store in the folder

    def __post_init__(self):
        self.store = open_store(self.store_url or f"lmdb:{self.folder / 'store'}")
        self.runs = 0

    @property
    def joins_itself(self):
        return "queries" not in self.settings

    def spec(self, name="shop"):
        return {"name": name, "out": str(self.folder / "out"), "recall": 1, **self.settings}

    def run(self, name="shop"):
        tables = {"items": item_table(self.items)}
        if not self.joins_itself:
            tables["queries"] = query_table(self.queries)
        return nearcast.run(self.spec(name), **tables)

    def publish(self):
        self.run()
        return nearcast.publish(self.spec(), store=self.store)

    def update(self, items=None, gone=(), queries=None, **more):
        """Apply the batch to the served version and to the data."""
        more = {"max_lists_changed": 1.0, **more}
        done = nearcast.update(
            self.spec(),
            items=None if items is None else item_table(items),
            gone=list(gone) or None,
            queries=None if queries is None else query_table(queries),
            store=self.store,
            **more,
        )
        self.items = {key: row for key, row in self.items.items() if key not in set(gone)} | (items or {})
        self.queries |= queries or {}
        return done

    def served(self):
        return read_all(self.store, "shop", self.store.pointer("shop").version)

    def expected(self):
        """Return what a full run on the data would serve."""
        self.runs += 1
        name = f"full{self.runs}"
        self.run(name)
        nearcast.publish(self.spec(name), store=self.store)
        return read_all(self.store, name, self.store.pointer(name).version)


def item_table(rows):
    keys = list(rows)
    return pa.table(
        {
            "id": pa.array(keys, pa.int64()),
            "vector": pa.array([list(map(float, rows[key][0])) for key in keys], pa.list_(pa.float32())),
            "brand": pa.array([rows[key][1] for key in keys], pa.string()),
            "country": pa.array([rows[key][2] for key in keys], pa.string()),
            "price": pa.array([float(rows[key][0][0]) for key in keys], pa.float64()),
        }
    )


def query_table(rows):
    keys = list(rows)
    return pa.table(
        {
            "id": pa.array(keys, pa.int64()),
            "vector": pa.array([list(map(float, rows[key][0])) for key in keys], pa.list_(pa.float32())),
            "country": pa.array([rows[key][1] for key in keys], pa.string()),
        }
    )


SOURCES = {
    "items": {"path": "-", "attributes": ["brand", "country"]},
    "queries": {"path": "-", "attributes": ["country"]},
}
LENIENT = {
    "checks": {"k_above_items": "keep", "zero_vector": "keep"},
    "audit": {"min_fill_rate": 0, "min_query_coverage": 0, "max_items_lost": 1, "max_items_gained": 9, "max_drift": 99}
    | {"min_overlap": 0, "max_keys_lost": 1, "min_queries_kept": 0, "min_items_kept": 0, "max_size_change": 99}
    | {"max_vectors_changed": 1, "max_length_change": 99, "max_values_changed": 1, "max_pairs_drift": 99},
}
KINDS = {
    "free": {**SOURCES, "metric": "inner_product", "k": 4, "engine": "exact"},
    "cosine": {**SOURCES, "metric": "cosine", "k": 3, "exclude_self": True},
    "rules": {
        **SOURCES,
        "metric": "l2",
        "k": 4,
        "rules": [{"name": "country", "keep": "item.country == query.country"}],
    },
    "caps": {**SOURCES, "metric": "inner_product", "k": 4, "caps": [{"by": "brand", "max_per_list": 2}]},
    "all": {
        **SOURCES,
        "metric": "inner_product",
        "k": 3,
        "min_score": 1.0,
        "rules": [{"name": "country", "keep": "item.country == query.country"}],
        "caps": [{"by": "brand", "max_per_list": 1}],
    },
    "scored": {
        **SOURCES,
        "items": {"path": "-", "attributes": ["price", "brand", "country"]},  # not in the order of names
        "metric": "inner_product",
        "k": 4,
        "score": {"add": "price", "weight": 0.5},  # one more component in the vectors
    },
    "bare": {"items": {"path": "-"}, "queries": {"path": "-"}, "metric": "l2", "k": 3}
    | {"rules": [{"name": "other", "keep": "item.id != query.id"}]},
    "itself": {"items": SOURCES["items"], "metric": "l2", "k": 3, "exclude_self": True},
}


def draw_vector(rng):
    return tuple(rng.integers(-2, 3, DIM).tolist())  # many equal scores


def draw_item(rng):
    return draw_vector(rng), str(rng.choice(["a", "b", "c"])), str(rng.choice(["de", "fr"]))


def make_shop(folder, kind, seed=0, n_items=40, n_queries=25, store_url=""):
    rng = np.random.default_rng(seed)
    shop = Shop(folder, {**KINDS[kind], **LENIENT}, store_url=store_url)
    shop.items = {int(key): draw_item(rng) for key in rng.permutation(200)[:n_items]}
    if not shop.joins_itself:
        shop.queries = {key: (draw_vector(rng), str(rng.choice(["de", "fr"]))) for key in range(n_queries)}
    shop.publish()
    return shop, rng


def draw_batch(shop, rng):
    """New and changed items, removed ones, and queries."""
    known = sorted(shop.items)
    gone = rng.choice(known, size=rng.integers(0, 4), replace=False).tolist()
    changed = [key for key in rng.choice(known, size=rng.integers(0, 4), replace=False).tolist() if key not in gone]
    fresh = [key for key in rng.integers(0, 250, rng.integers(0, 4)).tolist() if key not in gone]
    items = {key: draw_item(rng) for key in (*changed, *fresh)} or None
    queries = None
    if not shop.joins_itself and rng.random() < 0.5:
        queries = {int(rng.integers(0, 40)): (draw_vector(rng), str(rng.choice(["de", "fr"]))) for _ in range(3)}
    return items, gone, queries


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_updates_leave_what_a_full_run_on_the_same_data_serves(kind, tmp_path):
    shop, rng = make_shop(tmp_path, kind)
    for _ in range(4):
        shop.update(*draw_batch(shop, rng))
    assert shop.served() == shop.expected()


def test_updates_of_one_table_alone_and_of_another_one_follow_each_other(tmp_path):
    shop, rng = make_shop(tmp_path, "scored")
    shop.update({500: draw_item(rng)})
    shop.update(gone=sorted(shop.items)[:2])
    shop.update(queries={3: (draw_vector(rng), "de")})
    shop.update({501: draw_item(rng)})
    assert shop.served() == shop.expected()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_items_may_leave_and_others_come(kind, tmp_path):
    shop, rng = make_shop(tmp_path, kind)
    shop.settings["audit"] = {**shop.settings["audit"], "min_keys": 0}
    done = shop.update(gone=sorted(shop.items))
    assert all(decode_list(value)[0] == [] for value in shop.served()[Space.LISTS].values())
    assert done.short == 0
    shop.update({key: draw_item(rng) for key in range(500, 520)})
    assert shop.served() == shop.expected()


@pytest.mark.slow
def test_updates_after_the_inputs_were_read_are_in_the_next_version_before_it_is_current(tmp_path):
    shop, rng = make_shop(tmp_path, "rules")
    shop.update({500: draw_item(rng)})  # contained in the next run
    shop.run()  # another snapshot, which reads its inputs now
    shop.update({501: draw_item(rng), 3: draw_item(rng)}, gone=[sorted(shop.items)[0]])
    shop.update({501: draw_item(rng)})
    nearcast.publish(shop.spec(), store=shop.store)
    assert shop.store.pointer("shop").version == 2
    assert len(shop.store.patches("shop").state(2).patches) == 1
    assert shop.served() == shop.expected()
    shop.update({502: draw_item(rng)})
    assert shop.served() == shop.expected()


@pytest.mark.parametrize("changed", ["nothing", "items", "queries"])
def test_old_updates_are_in_the_next_version_unless_the_table_that_they_changed_was_written_since(changed, tmp_path):
    shop, rng = make_shop(tmp_path, "rules")
    items, queries = dict(shop.items), dict(shop.queries)
    with mock.patch.object(shop.store, "now", return_value=time.time() - 10_000):
        shop.update({899: draw_item(rng)}, gone=sorted(items)[:2], queries={77: (draw_vector(rng), "de")})
        shop.update({898: draw_item(rng), 899: draw_item(rng)})
    updated = dict(shop.items), dict(shop.queries)
    shop.items, shop.queries = dict(items), dict(queries)
    if changed == "items":
        shop.items[700] = draw_item(rng)
    elif changed == "queries":
        shop.queries[78] = (draw_vector(rng), "fr")
    shop.settings["k"] = 5  # with equal settings and inputs there is no other version
    shop.publish()
    assert shop.store.pointer("shop").version == 2
    shop.items = shop.items if changed == "items" else updated[0]
    shop.queries = shop.queries if changed == "queries" else updated[1]
    assert shop.served() == shop.expected()


@pytest.fixture(scope="module")
def served_shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), "all")


def test_a_batch_that_is_in_force_already_writes_nothing(served_shop):
    shop, rng = served_shop
    rows = {600: draw_item(rng)}
    first, again = shop.update(rows), shop.update(rows)
    assert (first.outcome, again.outcome, again.patch) == ("updated", "nothing_changed", None)
    assert shop.update({}).patch is None
    nothing = pa.table({name: pa.nulls(0) for name in ("id", "vector", "brand", "country")})  # as exporters write it
    pq.write_table(nothing, shop.folder / "nothing.parquet")
    for empty in (nothing, shop.folder / "nothing.parquet", ([], [])):
        assert nearcast.update(shop.spec(), items=empty, queries=empty, store=shop.store).outcome == "nothing_changed"
    unknown = shop.update(gone=[999_999, 999_998, 999_999])
    assert (unknown.outcome, unknown.absent, unknown.counts["lists"]) == ("nothing_changed", 2, 0)


def test_what_the_served_version_has_already_is_in_the_next_one_too(tmp_path):
    shop, rng = make_shop(tmp_path, "all")
    shop.update({899: draw_item(rng)})  # keeps the tables of the version
    served = dict(shop.items)
    shop.items |= {900: ((3,) * DIM, "a", "de"), 901: draw_item(rng), min(served): ((3,) * DIM, "b", "fr")}
    shop.run()  # reads new items, and another row of an old one
    done = [shop.update(gone=[900, 901]), shop.update({min(served): served[min(served)]})]
    assert [one.outcome for one in done] == ["nothing_changed"] * 2
    nearcast.publish(shop.spec(), store=shop.store)
    assert shop.store.pointer("shop").version == 2
    assert shop.items == served
    assert shop.served() == shop.expected()


def test_after_a_clock_that_went_back_later_updates_are_applied_again_in_their_order(tmp_path):
    shop, rng = make_shop(tmp_path, "all")
    shop.update({899: draw_item(rng)})  # keeps the tables of the version
    shop.run()
    for ahead, rows, gone in (
        (1_000, {900: draw_item(rng), 901: draw_item(rng)}, []),
        (-1_000, {900: draw_item(rng)}, [901]),
    ):
        with mock.patch.object(shop.store, "now", return_value=time.time() + ahead):
            shop.update(rows, gone)
    nearcast.publish(shop.spec(), store=shop.store)
    assert shop.store.pointer("shop").version == 2
    assert shop.served() == shop.expected()


@pytest.mark.parametrize(
    ("text", "gone"), [(b"\xef\xbb\xbf7\r\n8", [7, 8]), (b"7\r8\n\n", [7, 8]), (b" 7 \n+8", [7, 8]), (b"", [])]
)
def test_removed_ids_come_from_text_as_editors_write_it(served_shop, text, gone, tmp_path):
    shop, _ = served_shop
    (tmp_path / "gone.txt").write_bytes(text)
    updater = Updater(shop.store, "shop", parse_location(shop.folder / "out"))
    with mock.patch.object(update, "drop_unchanged", side_effect=InputError) as read, pytest.raises(InputError):
        updater.apply(UpdateRequest(BatchInputs(gone=tmp_path / "gone.txt"), 1.0))
    assert read.call_args[0][0].gone.to_pylist() == gone


@pytest.mark.parametrize("line", ["1_000", "id", "1.5", "9" * 5_000, "\uff11"])
def test_a_line_that_is_no_id_is_refused_with_its_number(served_shop, line, tmp_path):
    shop, _ = served_shop
    (tmp_path / "gone.txt").write_text(f"1\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 is .*ids are integers"):
        nearcast.update(shop.spec(), gone=tmp_path / "gone.txt", store=shop.store)


def test_updates_are_undone_by_number(served_shop):
    shop, rng = served_shop
    before, items = shop.served(), dict(shop.items)
    first = shop.update({601: draw_item(rng)}, gone=[sorted(shop.items)[1]])
    shop.update({602: draw_item(rng)})
    with pytest.raises(NotFoundError, match=r"has no patch 9999: the newest patch in force is \d+; .*published shop"):
        roll_back_updates(shop.spec(), 9999, store=shop.store)
    with pytest.raises(SpecError, match="0 or more, got -1"):
        roll_back_updates(shop.spec(), -1, store=shop.store)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(SpecError, match=r"max_lists_changed must be in \[0, 1\]"):
            nearcast.update(shop.spec(), gone=[1], max_lists_changed=share, store=shop.store)
    assert roll_back_updates(shop.spec(), first.undo, store=shop.store)[0] == first.patch
    assert shop.served() == before
    shop.items = items
    shop.update({603: draw_item(rng)})  # and updates go on from there
    assert not any(600 < key < 603 for key in shop.items)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"items": {1: ((0, 0, float("nan"), 0, 0, 0), "a", "de")}}, "NaN"),
        ({"items": {1: ((1, 2, 3), "a", "de")}}, "3 components"),
        ({"items": {5: ((1,) * DIM, "a", "de")}, "gone": [5]}, "in both items and gone"),
        ({"gone": ["five"]}, "write one type"),
        ({"gone": [[5, 6]]}, "one id per vector"),
    ],
)
def test_a_bad_batch_is_refused_and_nothing_changes(served_shop, batch, words):
    shop, _ = served_shop
    before, items = shop.served(), dict(shop.items)
    with pytest.raises(InputError, match=words):
        shop.update(**batch)
    shop.items = items
    assert shop.served() == before


def test_one_id_that_is_no_list_is_refused(served_shop):
    shop, _ = served_shop
    with pytest.raises(InputError, match="must be ids or a file of them, got 5"):
        nearcast.update(shop.spec(), gone=5, store=shop.store)


def decode_all(served):
    """Return lists by key, whatever the width of their ids."""
    return {key: decode_list(value) for key, value in served[Space.LISTS].items()}


def test_negative_and_large_ids_enter_a_version_of_small_ones_and_leave_it(tmp_path):
    shop, rng = make_shop(tmp_path, "free")
    best = {-7: ((3,) * DIM, "a", "de"), 1 << 40: ((-3,) * DIM, "b", "fr")}
    shop.update(best, queries={-1: ((2,) * DIM, "de")})
    kinds = {value[0] & 15 for value in shop.served()[Space.LISTS].values()}
    assert kinds == {0, 1}  # most lists keep their width
    assert decode_all(shop.served()) == decode_all(shop.expected())
    with nearcast.open(shop.store.url, "shop") as lookup:
        listed = lookup.get_many(sorted(shop.queries))
        assert str(-7) in str(lookup.get(-1))
        assert listed.found.all()
    shop.update({-8: draw_item(rng), 5: draw_item(rng)}, gone=[-7])
    assert decode_all(shop.served()) == decode_all(shop.expected())
    shop.update(gone=[-8, 1 << 40])
    assert shop.served()[Space.LISTS] == shop.expected()[Space.LISTS]


def test_a_batch_that_changes_too_many_lists_is_refused_and_nothing_changes(served_shop):
    shop, _ = served_shop
    before, items = shop.served(), dict(shop.items)
    with pytest.raises(AuditError, match="max_lists_changed"):
        shop.update({700: ((9,) * DIM, "z", "de"), 701: ((-9,) * DIM, "z", "de")}, max_lists_changed=None)
    shop.items = items
    assert shop.served() == before
    assert shop.store.patches("shop").state(1).last_number == len(
        list((shop.folder / "out/shop/updates").glob("store-*/0*"))
    )


@pytest.mark.parametrize(
    "more",
    [
        {"exposure": {"max_lists_per_item": 5, "candidates_per_query": 9}},
        {"caps": [{"near_duplicate_cosine": 0.99}]},
    ],
)
def test_a_generator_whose_lists_depend_on_each_other_is_refused_with_the_reason(more, tmp_path):
    shop = Shop(tmp_path, {**KINDS["free"], **LENIENT, **more})
    rng = np.random.default_rng(0)
    shop.items = {key: draw_item(rng) for key in range(30)}
    shop.queries = {key: (draw_vector(rng), "de") for key in range(5)}
    shop.publish()
    with pytest.raises(SpecError, match="cannot be updated between runs"):
        shop.update({40: draw_item(rng)})


def test_lists_beyond_the_budget_say_so_and_are_mended_by_a_later_update(tmp_path, monkeypatch):
    shop, rng = make_shop(tmp_path, "free")
    monkeypatch.setattr(merge_touched, "REJOINED_PAIRS", 0)
    done = shop.update(gone=sorted(shop.items)[:4])
    assert done.short > 0
    kept, expected = shop.served()[Space.LISTS], shop.expected()[Space.LISTS]
    differ = [key for key in kept if kept[key] != expected[key]]
    assert len(differ) == done.short
    assert all(decode_list(kept[key])[2] == "not_probed" for key in differ)
    monkeypatch.undo()
    shop.update({800: draw_item(rng)})
    assert shop.served() == shop.expected()


def test_an_overlay_entry_that_only_a_patch_contains_is_kept_since_patches_can_be_undone(served_shop):
    shop, _ = served_shop
    item = next(key for key, row in shop.items.items() if row[2] == "fr")
    log = shop.store.overlay("shop")
    log.write([OverlayEntry(item, "country", "de", 0.0)])
    undo = shop.update({item: (*shop.items[item][:2], "de")}).undo
    assert compact_overlay(shop.store, "shop", [1], now=1.0) == 0
    roll_back_updates(shop.spec(), undo, store=shop.store)
    shop.items[item] = (*shop.items[item][:2], "fr")
    log.write([OverlayEntry(item, "country", "fr", 0.0)])
    assert compact_overlay(shop.store, "shop", [1], now=1.0) == 1
