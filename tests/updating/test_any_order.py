"""Any sequence of changes: what is served equals what a full run on the same data would serve.

The model holds the user's tables, and of each version the rows that its run read and the batches of its patches.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.updating.test_updates import KINDS, LENIENT, Shop, draw_item, draw_vector

import nearcast
from nearcast.api.updates import roll_back_updates
from nearcast.errors import NotFoundError
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS
from nearcast.stores import open_store
from servers import redis_program, redis_running

KEYS = 45  # ids of items and queries: few, so that changes meet
LEAST_ITEMS = 8
SEEDS = st.integers(0, 9999)
ITEMS = st.integers(0, KEYS - 1)


@dataclass(frozen=True)
class Batch:
    """Changes of both tables."""

    items: dict
    gone: frozenset
    queries: dict


@dataclass(frozen=True)
class Data:
    """Rows of both tables."""

    items: dict
    queries: dict

    def apply(self, batch):
        """Return the rows after a batch."""
        kept = {key: row for key, row in self.items.items() if key not in batch.gone}
        return Data({**kept, **batch.items}, {**self.queries, **batch.queries})


@dataclass
class Version:
    """A snapshot: the rows that its run read, and the patches in force: number, time, batches."""

    rows: Data
    read: float
    patches: list = field(default_factory=list)
    has_tables: bool = False  # kept by an update

    def data(self):
        rows = self.rows
        for _, _, batches in self.patches:
            for batch in batches:
                rows = rows.apply(batch)
        return rows


class AnyOrder(RuleBasedStateMachine):
    """A shop in any order of events, and what it should serve."""

    url = None  # of the store; None: an LMDB of its own

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.ahead, real = 0.0, time.time
        self.stack.enter_context(mock.patch("time.time", side_effect=lambda: real() + self.ahead))
        self.n_fulls = 0

    @initialize(kind=st.sampled_from(sorted(KINDS)), seed=SEEDS)
    def open(self, kind, seed):
        rng = np.random.default_rng(seed)
        self.shop = Shop(self.folder, {**KINDS[kind], **LENIENT, "run": {"incremental": True}})
        if self.url is not None:
            self.shop.store = open_store(self.url)
        items = {int(key): draw_item(rng) for key in rng.permutation(KEYS)[:30]}
        queries = {} if self.shop.joins_itself else {key: draw_query(rng) for key in range(12)}
        self.source, self.versions = Data(items, queries), {}
        self.run_and_publish()

    @property
    def store(self):
        return self.shop.store

    @property
    def current(self):
        return self.store.pointer("shop").version

    def draw_batch(self, seed):
        """New and changed items, some with the same vector and other attributes; removed ones; queries."""
        rng, known = np.random.default_rng(seed), sorted(self.source.items)
        n_gone = min(max(0, len(known) - LEAST_ITEMS), int(rng.integers(0, 4)))
        gone = frozenset(rng.choice(known, n_gone, replace=False).tolist())
        items = {int(key): draw_item(rng) for key in rng.integers(0, KEYS, rng.integers(0, 4))}
        for key in rng.choice(known, 2).tolist():
            if rng.random() < 0.5:
                items[key] = (self.source.items[key][0], *draw_item(rng)[1:])
        queries = {}
        if not self.shop.joins_itself and rng.random() < 0.6:
            queries = {int(key): draw_query(rng) for key in rng.integers(0, 20, 2)}
        return Batch({key: row for key, row in items.items() if key not in gone}, gone, queries)

    @rule(seed=SEEDS)
    def change_tables(self, seed):
        self.source = self.source.apply(self.draw_batch(seed))

    @rule(seed=SEEDS)
    def update(self, seed):
        batch, version, made = self.draw_batch(seed), self.versions[self.current], time.time()
        try:
            done = self.shop.update(batch.items or None, sorted(batch.gone), batch.queries or None)
        except NotFoundError:  # a later run has removed the tables of this version
            assert not version.has_tables
            assert max(self.versions) > self.current
            return
        version.has_tables = True
        self.source = self.source.apply(batch)
        if done.patch is not None:
            version.patches.append((done.patch, made, [batch]))

    @rule()
    def run(self):
        self.shop.items, self.shop.queries = dict(self.source.items), dict(self.source.queries)
        read = time.time()
        self.versions[self.shop.run().snapshot.version] = Version(self.source, read)

    @precondition(lambda self: self.is_publishable())
    @rule()
    def publish(self):
        newest, before = max(self.versions), self.store.pointer("shop")
        later = []
        if before is not None:
            since = self.versions[newest].read - CLOCK_SKEW_SECONDS
            later = [patch for patch in self.versions[before.version].patches if patch[1] > since]
        nearcast.publish(self.shop.spec(), store=self.store)
        assert self.current == newest
        batches = [batch for patch in later for batch in patch[2]]
        own = self.store.patches("shop").state(newest).patches
        if own:
            self.versions[newest].patches.append((own[-1].number, later[-1][1], batches))
            self.versions[newest].has_tables = True
        else:
            assert Version(self.versions[newest].rows, 0, [(0, 0, batches)]).data() == self.versions[newest].rows

    def is_publishable(self):
        pointer, newest = self.store.pointer("shop"), max(self.versions)
        return pointer is None or (newest != pointer.version and newest not in pointer.withdrawn)

    @rule()
    def run_and_publish(self):
        self.run()
        self.publish()

    @precondition(lambda self: self.find_target() is not None)
    @rule()
    def roll_back(self):
        target = self.find_target()
        nearcast.roll_back(self.shop.spec(), store=self.store)
        assert self.current == target

    def find_target(self):
        pointer = self.store.pointer("shop")
        older = [v for v in self.store.versions("shop") if v < pointer.version and v not in pointer.withdrawn]
        return max(older, default=None)

    @rule(count=st.integers(1, 3))
    def roll_back_patches(self, count):
        version = self.versions[self.current]
        kept = version.patches[:-count]
        roll_back_updates(self.shop.spec(), kept[-1][0] if kept else 0, store=self.store)
        version.patches = kept

    @rule(items=st.lists(ITEMS, min_size=1, max_size=3))
    def remove(self, items):
        with nearcast.overlay(self.store, "shop") as overlay:
            overlay.remove(items)

    @rule(items=st.lists(ITEMS, min_size=1, max_size=6))
    def restore(self, items):
        with nearcast.overlay(self.store, "shop") as overlay:
            overlay.restore(items)

    @rule(item=ITEMS, country=st.sampled_from(["de", "fr", None]))
    def set_country(self, item, country):
        with nearcast.overlay(self.store, "shop") as overlay:
            overlay.update(item, "country", country)

    @rule()
    def pass_time(self):
        self.ahead += 3 * CLOCK_SKEW_SECONDS

    @rule()
    def compare(self):
        """Compare the pairs of the version, and its look-ups under the overlay, with those of a full run."""
        data = self.versions[self.current].data()
        self.n_fulls += 1
        name = f"full{self.n_fulls}"
        full = Shop(self.folder, {**self.shop.settings, "run": {}})
        full.store, full.items, full.queries = self.store, dict(data.items), dict(data.queries)
        full.runs = self.n_fulls - 1
        expected = full.expected()
        assert self.shop.served() == expected
        self.store.overlay(name).write(self.store.overlay("shop").changes().entries)
        keys = list(data.items if self.shop.joins_itself else data.queries)
        with nearcast.open(self.store, "shop") as ours, nearcast.open(self.store, name) as theirs:
            assert read_answers(ours, keys) == read_answers(theirs, keys)

    def teardown(self):
        try:
            if hasattr(self, "versions"):
                self.compare()
        finally:
            self.stack.close()


def draw_query(rng):
    return draw_vector(rng), str(rng.choice(["de", "fr"]))


def read_answers(lookup, keys):
    answers = lookup.get_many([*keys, KEYS + 1])
    singles = [lookup.get(key) for key in keys]
    lists = [(one.ids, one.scores, one.reason, one.removed, dict(one.barred)) for one in singles]
    return lists, answers.ids.to_pylist(), answers.offsets.tolist(), answers.removed.tolist(), answers.found.tolist()


def play(machine, examples, steps):
    some = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=some)


def test_after_some_changes_look_ups_equal_those_of_a_full_run():
    play(AnyOrder, 1, 5)


@pytest.mark.slow
def test_after_any_changes_look_ups_equal_those_of_a_full_run():
    play(AnyOrder, 60, 12)


@pytest.mark.slow
def test_after_any_changes_look_ups_through_redis_equal_those_of_a_full_run(tmp_path):
    redis_program()
    with redis_running(tmp_path) as server:

        class OnRedis(AnyOrder):
            url = server.url

            def __init__(self):
                super().__init__()
                import redis

                redis.Redis.from_url(server.url).flushall()

        play(OnRedis, 5, 8)
