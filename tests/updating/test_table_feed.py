"""Tables that are followed: each version in force once; rows that a version lists without a change do nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import nearcast
from builders import generator
from nearcast.api.updates import open_follower
from nearcast.errors import InputError
from nearcast.join.run import run_generator
from table_kinds import open_kind

pytestmark = pytest.mark.slow
KINDS = ("delta", "iceberg", "lance")
SCHEMA = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32())), ("price", pa.int64())])


def rows(ids, *, seed=0, price=1):
    vectors = np.random.default_rng(seed).random((len(ids), 4), np.float32)
    return pa.table([pa.array(ids), list(vectors), [price] * len(ids)], schema=SCHEMA)


class Shop:
    """A generator over a table, published, and followed."""

    def __init__(self, made, folder):
        self.made, self.folder = made, folder
        self.spec = generator(
            name="shop",
            k=3,
            items={"table": made.location, "attributes": ["price"]},
            publish={"store": f"lmdb:{folder}/store"},
            audit={"max_lists_changed": 1.0},
        )
        made.write(rows(range(60)))
        self.publish()

    def publish(self):
        run_generator(self.spec, self.folder)
        nearcast.publish("shop", store=self.store, out=self.folder / "nearcast")

    @property
    def store(self):
        return self.folder / "store"

    def catch_up(self, **options):
        place = {"store": self.store, "out": self.folder / "nearcast"}
        with open_follower("shop", self.made.location, **place, **options) as follower:
            return follower.catch_up()

    def served(self):
        """The list of each item that the table has."""
        with nearcast.open(self.store, "shop") as lookup:
            found = {key: lookup.get(key) for key in sorted(self.made.ids())}
        return {key: (tuple(one.ids), tuple(one.scores)) for key, one in found.items()}

    def expected(self):
        """The lists of a run on the newest version."""
        snapshot = run_generator(self.spec.model_copy(update={"out": "fresh"}), self.folder).snapshot
        found = {key: snapshot.lookup(key) for key in sorted(self.made.ids())}
        return {key: (one.ids, one.scores) for key, one in found.items()}


@pytest.fixture(params=KINDS)
def shop(request, tmp_path, monkeypatch):
    return Shop(open_kind(request.param, str(tmp_path), tmp_path, monkeypatch), tmp_path)


def test_new_changed_and_removed_rows_are_in_force(shop):
    shop.made.write(rows(range(60, 70), seed=1))
    shop.made.delete("id = 7")
    shop.made.delete("id = 9")
    shop.made.write(rows([9], seed=5, price=2))

    results = shop.catch_up()

    assert sum(done.counts["items"] for done in results) == 11
    assert sum(done.counts["gone"] for done in results) == 1
    assert shop.served() == shop.expected()
    assert shop.catch_up() == []


def test_a_large_change_comes_in_parts(shop):
    shop.made.write(rows(range(60, 90), seed=1))

    results = shop.catch_up(max_rows=8)

    assert [done.counts["items"] for done in results if done.counts["items"]] == [8, 8, 8, 6]
    assert shop.served() == shop.expected()


def test_rows_that_a_version_lists_without_a_change_do_nothing(shop):
    shop.made.rewrite()
    results = shop.catch_up()
    assert all(done.counts["items"] == done.counts["gone"] == done.counts["lists"] == 0 for done in results)
    assert shop.catch_up() == []


def test_after_a_publish_of_a_newer_version_the_feed_goes_on(shop):
    shop.made.write(rows(range(60, 65), seed=1))
    shop.catch_up()
    shop.made.write(rows(range(65, 70), seed=2))
    shop.publish()
    shop.made.write(rows(range(70, 75), seed=3))

    shop.catch_up()

    assert shop.served() == shop.expected()


def test_versions_that_were_removed_are_an_error_until_the_feed_begins_again(shop):
    first = shop.made.version
    shop.made.delete("id = 3")
    shop.made.forget(first)
    with pytest.raises(InputError, match=r"begin there with --again"):
        shop.catch_up()

    shop.publish()
    shop.made.write(rows(range(60, 65), seed=1))
    shop.catch_up(again=["*"])

    assert shop.served() == shop.expected()


def test_another_table_than_that_of_the_snapshot_is_refused(shop, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    other = open_kind("delta", str(tmp_path / "other"), tmp_path, monkeypatch)
    other.write(rows(range(5)))
    shop.made = other
    with pytest.raises(InputError, match=r"was made of .*, not of delta:|cannot be read"):
        shop.catch_up()


def test_a_table_that_was_made_again_is_an_error_and_not_a_change(shop, tmp_path, monkeypatch):
    shop.made.write(rows(range(60, 65), seed=1))
    shop.catch_up()
    shop.made.drop()
    shop.made.write(rows(range(500, 560), seed=8))
    for ids in (range(560, 565), range(565, 570)):
        shop.made.write(rows(ids, seed=9))
    with pytest.raises(InputError, match=r"made again|cannot be read"):
        shop.catch_up()
