"""Updates of a served version: lists equal those of a full run on the same data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from tests.updating.memory_patches import PatchedStore, read_all

import nearcast

DIM = 6


@dataclass
class Shop:
    """Items and queries in memory, and what is served of them."""

    folder: object
    settings: dict
    items: dict = field(default_factory=dict)  # id -> (vector, brand, country)
    queries: dict = field(default_factory=dict)  # id -> (vector, country)

    def __post_init__(self):
        self.store = PatchedStore(self.folder / "store")
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
    "itself": {"items": SOURCES["items"], "metric": "l2", "k": 3, "exclude_self": True},
}


def draw_vector(rng):
    return tuple(rng.integers(-2, 3, DIM).tolist())  # many equal scores


def draw_item(rng):
    return draw_vector(rng), str(rng.choice(["a", "b", "c"])), str(rng.choice(["de", "fr"]))


def make_shop(folder, kind, seed=0, n_items=40, n_queries=25):
    rng = np.random.default_rng(seed)
    shop = Shop(folder, {**KINDS[kind], **LENIENT})
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


@pytest.mark.parametrize("kind", KINDS)
def test_any_updates_leave_what_a_full_run_on_the_same_data_serves(kind, tmp_path):
    shop, rng = make_shop(tmp_path, kind)
    for _ in range(4):
        shop.update(*draw_batch(shop, rng))
    assert shop.served() == shop.expected()


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
