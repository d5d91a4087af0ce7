"""Any sequence of changes: what is served equals what a full run on the same data would serve.

The model holds the user's tables, and of each version the rows that its run read and the batches of its patches.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tests.updating.killed_worker import STEPS
from tests.updating.test_killed_steps import update_until
from tests.updating.test_updates import KINDS, LENIENT, Shop, draw_item, draw_vector, query_table

import nearcast
from nearcast.api.updates import roll_back_updates
from nearcast.errors import NotFoundError
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS
from nearcast.stores import open_store, patch_record
from nearcast.stores.base import Space
from nearcast.stores.lmdb import LmdbStore
from nearcast.stores.redis import RedisStore
from nearcast.stores.value_format import decode_list, encode_key
from nearcast.updating import journal
from servers import redis_program, redis_running

LEAST_ITEMS = 8
SEEDS = st.integers(0, 9999)
ITEMS = st.integers(0, 44)


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
    n_folded: int = 0  # of the patches: they cannot be rolled back
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
    kinds: ClassVar[dict] = KINDS
    more: ClassVar[dict] = {}  # settings of the shop
    n_ids = 45  # of items: few, so that changes meet
    n_items, n_queries = 30, 12  # at the beginning

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.ahead, real = 0.0, time.time
        self.stack.enter_context(mock.patch("time.time", side_effect=lambda: real() + self.ahead))
        for store in (LmdbStore, RedisStore):  # their clocks go on with this one
            self.stack.enter_context(mock.patch.object(store, "now", side_effect=time.time))
        self.stack.enter_context(mock.patch.object(journal, "MERGED_AT_ONCE", 1))
        self.stack.enter_context(mock.patch.object(patch_record, "GROUP_PATCHES", 2))
        self.n_fulls = 0

    @initialize(data=st.data(), seed=SEEDS)
    def open(self, data, seed):
        rng, kind = np.random.default_rng(seed), data.draw(st.sampled_from(sorted(self.kinds)))
        self.shop = Shop(self.folder, {**self.kinds[kind], **LENIENT, "run": {"incremental": True}, **self.more})
        if self.url is not None:
            self.shop.store = open_store(self.url)
        items = {int(key): draw_item(rng) for key in rng.permutation(self.n_ids)[: self.n_items]}
        queries = {} if self.shop.joins_itself else {key: draw_query(rng) for key in range(self.n_queries)}
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
        items = {int(key): draw_item(rng) for key in rng.integers(0, self.n_ids, rng.integers(0, 4))}
        for key in rng.choice(known, 2).tolist():
            if rng.random() < 0.5:
                items[key] = (self.source.items[key][0], *draw_item(rng)[1:])
        queries = {}
        if not self.shop.joins_itself and rng.random() < 0.6:
            queries = {int(key): draw_query(rng) for key in rng.integers(0, self.n_queries + 8, 2)}
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

    @rule(keep=st.integers(0, 3))
    def fold(self, keep):
        """Fold the patches but the newest; the next update merges the entries of the journal."""
        version = self.versions[self.current]
        with self.store.lock("shop") as lock:
            self.store.patches("shop").compact(self.current, keep, lock)
        version.n_folded = max(version.n_folded, len(version.patches) - keep)

    @rule(count=st.integers(1, 3))
    def roll_back_patches(self, count):
        version = self.versions[self.current]
        kept = version.patches[: max(version.n_folded, len(version.patches) - count)]
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
        self.compare_with_full_run()

    def compare_with_full_run(self):
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
    answers = lookup.get_many([*keys, 99_999])
    singles = [lookup.get(key) for key in keys]
    lists = [(one.ids, one.scores, one.reason, one.removed, dict(one.barred)) for one in singles]
    return lists, answers.ids.to_pylist(), answers.offsets.tolist(), answers.removed.tolist(), answers.found.tolist()


class KilledInAnyOrder(AnyOrder):
    """Some updates end at one of their steps."""

    @rule(seed=SEEDS, step=st.sampled_from(sorted(STEPS)), times=st.integers(1, 2))
    def update_until(self, seed, step, times):
        batch, version, made = self.draw_batch(seed), self.versions[self.current], time.time()
        before = self.store.patches("shop").state(self.current).last_number
        queries = query_table(batch.queries) if batch.queries else None
        ended = update_until(step, self.shop, batch.items, sorted(batch.gone), times, self.ahead, queries)
        state = self.store.patches("shop").state(self.current)
        if state.last_number > before:
            version.patches.append((state.last_number, made, [batch]))
        elif ended != 0:
            return
        if state.folded is not None:
            version.n_folded = sum(number <= state.folded.number for number, _, _ in version.patches)
        version.has_tables = True
        self.source = self.source.apply(batch)


class NearlyInAnyOrder(AnyOrder):
    """Approximate lists: every look-up has at least the promised recall of the exact join of the same data."""

    kinds: ClassVar[dict] = {kind: {**KINDS[kind], "engine": "dense", "k": 10} for kind in ("free", "rules")}
    more: ClassVar[dict] = {"metric": "inner_product", "recall": 0.8}
    n_ids, n_items, n_queries = 900, 600, 60

    def compare_with_full_run(self):
        data = self.versions[self.current].data()
        ids, queries = np.array(sorted(data.items)), sorted(data.queries)
        vectors = np.array([data.items[key][0] for key in ids.tolist()])
        shares, served = [], self.shop.served()[Space.LISTS]
        for key in queries:
            vector, country = data.queries[key]
            scores = dict(zip(ids.tolist(), (vectors @ np.array(vector)).tolist(), strict=True))
            if "rules" in self.shop.settings:
                scores = {item: score for item, score in scores.items() if data.items[item][2] == country}
            listed, found, _ = decode_list(served[encode_key(key)])
            assert list(found) == [scores[item] for item in listed]
            assert len(set(listed)) == len(listed)
            last = sorted(scores.values())[-10:][0]
            shares.append(sum(score >= last for score in found) / min(10, len(scores)))
        assert np.mean(shares) >= 0.8


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
def test_after_any_changes_and_updates_that_end_at_any_step_look_ups_equal_those_of_a_full_run():
    play(KilledInAnyOrder, 15, 10)


@pytest.mark.slow
def test_after_any_changes_below_recall_1_look_ups_have_the_recall_that_is_asked_for():
    play(NearlyInAnyOrder, 8, 10)


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
