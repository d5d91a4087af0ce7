"""Truth that is kept: whatever became of items and folders meanwhile, it is that of a join from scratch, to the bit."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.engines.base import JoinRequest, Resources
from nearcast.measure import truth, truth_folders
from nearcast.measure.sampled_recall import find_truth, sample_queries
from nearcast.measure.truth import TruthCache, cached_width
from nearcast.sources import changes
from nearcast.sources.changes import TableState, compare_tables, hash_rows
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.types import ArrayVectors, Metric, no_progress

RESOURCES = Resources(threads=2, memory_bytes=1 << 26)
DIM = 3


def side(vectors_by_id, *, strings=False, dtype=np.float32, dim=DIM):
    """A side as `ingest` writes it: in the order of ids, in a folder named by its contents."""
    ids = sorted(vectors_by_id)
    vectors = np.array([vectors_by_id[one] for one in ids], dtype).reshape(len(ids), dim)
    column = pa.array([f"é{one:03d}" for one in ids], pa.large_string()) if strings else pa.array(ids, pa.int64())
    name = f"items-{hashlib.sha256(repr((ids, strings)).encode() + vectors.tobytes()).hexdigest()[:16]}"
    return IngestedTable(Path(name), ArrayVectors(vectors), column, column, Path(name))


@dataclass
class Keeper:
    """Asks for the same truth in both ways, and remembers what was said."""

    home: Path
    k: int = 2
    metric: Metric = Metric.L2
    exclude_self: bool = False
    resources: Resources = RESOURCES
    notes: list[str] = field(default_factory=list)

    def ask(self, items, queries, rows=None):
        every = np.arange(queries.vectors.n) if rows is None else rows
        request = JoinRequest(self.metric, self.k, exclude_self=self.exclude_self)
        cache, inputs = TruthCache(self.home, self.notes.append), Inputs(items, queries, self.metric)
        found = cache.find(inputs, every, request, self.resources, no_progress)
        scratch = find_truth(inputs, every, request, self.resources)
        np.testing.assert_array_equal(found.positions, scratch.positions)
        assert found.positions.shape == scratch.positions.shape
        assert found.scores.tobytes() == scratch.scores.tobytes()
        return found


@pytest.fixture
def joins(monkeypatch):
    """(queries, items) of every join that keeping truth has led to."""
    seen = []

    def spy(queries, items, *rest, **more):
        seen.append((len(queries), items.n))
        return exact(queries, items, *rest, **more)

    exact = truth.exact_join
    monkeypatch.setattr(truth, "exact_join", spy)
    return seen


def cloud(n, seed, *, first=0):
    """Vectors by id."""
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    return {first + i: tuple(vector) for i, vector in enumerate(vectors.tolist())}


# Coarse grids make ties and copies common; few ids make them come back after they had gone; and days differ by little,
# so that lists are half known.
IDS = range(16)
vectors = st.tuples(*[st.integers(0, 1)] * DIM)
edits = st.dictionaries(st.sampled_from(IDS), st.none() | vectors, min_size=1, max_size=8)


def after(day, edit):
    """A day with these vectors by id; None takes an id away."""
    return {i: v for i, v in sorted({**day, **edit}.items()) if v is not None}


@settings(max_examples=80, deadline=None)
@given(
    first=st.lists(st.none() | vectors | vectors | vectors, min_size=len(IDS), max_size=len(IDS)),
    edited=st.lists(edits, min_size=1, max_size=3),
    queries=st.dictionaries(st.sampled_from(IDS), vectors, min_size=1, max_size=12),
    drawn=st.lists(st.randoms(use_true_random=False), min_size=4, max_size=4),
    ks=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    metric=st.sampled_from(list(Metric)),
    exclude_self=st.booleans(),
    strings=st.booleans(),
    surplus=st.integers(1, 4),
    block=st.integers(1, 7),
)
def test_over_days_of_changes_it_is_the_truth_of_each_day(
    tmp_path_factory, first, edited, queries, drawn, ks, metric, exclude_self, strings, surplus, block
):
    keeper = Keeper(tmp_path_factory.mktemp("kept"), metric=metric, exclude_self=exclude_self)
    asked, day = side(queries, strings=strings), after({}, dict(enumerate(first)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "BLOCK_IDS", block)
        patch.setattr(truth, "cached_width", lambda k: k + surplus)  # few spare slots: lists run short often
        patch.setattr(truth, "FRESH_SHARE", 1.0)
        for edit, random, k in zip([{}, *edited], drawn, ks, strict=False):
            keeper.k, day = k, after(day, edit)
            rows = np.array(sorted(random.sample(range(len(queries)), random.randint(1, len(queries)))))
            keeper.ask(side(day, strings=strings), asked, rows)


@settings(max_examples=150, deadline=None)
@given(
    old=st.dictionaries(st.integers(0, 60), st.integers(0, 2)),
    new=st.dictionaries(st.integers(0, 60), st.integers(0, 2)),
    strings=st.booleans(),
    block=st.integers(1, 9),
)
def test_two_states_are_compared_like_dictionaries(old, new, strings, block):
    before, after = (
        TableState(one.ids, ArrayVectors(hash_rows(one.vectors.array)))
        for one in (side({i: (v,) for i, v in day.items()}, strings=strings, dim=1) for day in (old, new))
    )
    old_ids, new_ids = sorted(old), sorted(new)
    asked, edges = np.arange(len(old_ids)), np.arange(len(old_ids) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "BLOCK_IDS", block)
        found = compare_tables(before, after, asked, edges, most=100)
    assert found.now.tolist() == [new_ids.index(i) if new.get(i) == old[i] else -1 for i in old_ids]
    assert found.fresh.tolist() == [at for at, i in enumerate(new_ids) if old.get(i) != new[i]]
    assert found.before.tolist() == [*(sum(j < i for j in new_ids) for i in old_ids), len(new_ids)]


def test_asked_for_again_nothing_is_joined(tmp_path, joins):
    keeper, items, queries = Keeper(tmp_path), side(cloud(300, 1)), side(cloud(20, 2))
    keeper.ask(items, queries)
    keeper.ask(items, queries)
    assert joins == [(20, 300)]


def test_only_items_that_came_or_changed_are_joined(tmp_path, joins):
    keeper, queries, first = Keeper(tmp_path), side(cloud(20, 2)), cloud(300, 1)
    keeper.ask(side(first), queries)
    second = {i: v for i, v in first.items() if i % 100} | cloud(5, 3, first=150) | cloud(4, 4, first=1000)
    keeper.ask(side(second), queries)
    assert joins == [(20, 300), (20, 9)]


def test_after_items_have_only_gone_nothing_is_joined(tmp_path, joins):
    keeper, queries, first = Keeper(tmp_path), side(cloud(20, 2)), cloud(300, 1)
    keeper.ask(side(first), queries)
    keeper.ask(side({i: v for i, v in first.items() if i % 10}), queries)
    assert joins == [(20, 300)]


def test_only_a_query_whose_list_has_run_short_is_joined_with_all_items(tmp_path, joins):
    keeper, queries, first = Keeper(tmp_path), side(cloud(20, 2)), cloud(300, 1)
    found = keeper.ask(side(first), queries)
    assert found.positions.shape == (20, 2)
    keeper.k = cached_width(2)
    near = keeper.ask(side(first), queries).positions[7]  # all that is kept of query 7, in the wider join
    keeper.k = 2
    joins.clear()
    keeper.ask(side({i: v for i, v in first.items() if i not in set(near.tolist())}), queries)
    asked_anew = [n for n, m in joins if m > 200]
    assert sum(asked_anew) < 20


def test_new_queries_of_a_sample_are_joined_and_the_others_are_not(tmp_path, joins):
    keeper, items, queries = Keeper(tmp_path), side(cloud(300, 1)), side(cloud(30, 2))
    keeper.ask(items, queries, np.arange(0, 20))
    keeper.ask(items, queries, np.arange(5, 28))
    assert joins == [(20, 300), (8, 300)]


def test_a_sample_of_a_table_with_another_query_keeps_all_others_but_one(tmp_path, joins):
    keeper, items, asked = Keeper(tmp_path), side(cloud(300, 1)), cloud(400, 2)
    days = [side(asked), side(asked | cloud(1, 3, first=1000)), side({i: v for i, v in asked.items() if i != 200})]
    for queries in days:
        (report, other) = sample_queries(queries, (50, 30), 0)
        assert (len(report), len(other)) == (50, 30)
        assert not set(report.tolist()) & set(other.tolist())
        keeper.ask(items, queries, report)
    assert joins[0] == (50, 300)
    assert all(join == (1, 300) for join in joins[1:])
    assert len(joins) <= len(days)


def test_a_sample_is_one_of_its_seed_and_the_first_of_too_few_queries_is_whole():
    queries = side(cloud(100, 1), strings=True)
    (first, second) = sample_queries(queries, (30, 40), 3)
    assert first.tolist() == sorted(first) == sample_queries(queries, (30,), 3)[0].tolist()
    assert second.tolist() == sorted(second) != sample_queries(queries, (30, 40), 4)[1].tolist()
    assert [len(rows) for rows in sample_queries(queries, (60, 60, 60), 0)] == [60, 40, 0]
    assert [len(rows) for rows in sample_queries(side({}), (5, 5), 0)] == [0, 0]


def test_a_query_with_another_vector_is_another_query(tmp_path, joins):
    keeper, items, asked = Keeper(tmp_path), side(cloud(300, 1)), cloud(20, 2)
    keeper.ask(items, side(asked))
    keeper.ask(items, side(asked | {3: (9.0, 9.0, 9.0)}))
    assert joins == [(20, 300), (1, 300)]


@pytest.mark.parametrize("change", [{"metric": Metric.COSINE}, {"exclude_self": True}])
def test_truth_of_another_metric_or_with_own_items_left_out_is_kept_apart(tmp_path, joins, change):
    items, queries = side(cloud(300, 1)), side(cloud(20, 2))
    Keeper(tmp_path).ask(items, queries)
    Keeper(tmp_path, **change).ask(items, queries)
    assert joins == [(20, 300), (20, 300)]


def test_bytes_of_another_type_are_other_vectors(tmp_path, joins):
    whole = {i: tuple(row) for i, row in enumerate(np.random.default_rng(1).integers(0, 255, (300, DIM)).tolist())}
    queries = side(cloud(20, 2))
    Keeper(tmp_path).ask(side(whole, dtype=np.uint8), queries)
    Keeper(tmp_path).ask(side({i: np.uint8(v).view(np.int8) for i, v in whole.items()}, dtype=np.int8), queries)
    assert joins == [(20, 300), (20, 300)]


def test_with_most_items_new_everything_is_joined(tmp_path, joins):
    keeper, queries, first = Keeper(tmp_path), side(cloud(20, 2)), cloud(300, 1)
    keeper.ask(side(first), queries)
    keeper.ask(side(first | cloud(200, 3)), queries)
    assert joins == [(20, 300), (20, 300)]


def test_a_query_that_is_a_new_item_does_not_get_itself(tmp_path, joins):
    keeper, first = Keeper(tmp_path, exclude_self=True), cloud(300, 1)
    queries = side({i: first[i] for i in range(20)})
    keeper.ask(side({i: v for i, v in first.items() if i != 4}), queries)
    found = keeper.ask(side(first), queries)
    assert joins == [(20, 299), (20, 1)]
    assert not (found.positions == np.arange(20)[:, None]).any()


def test_a_change_of_some_items_costs_no_more_memory_than_a_block(tmp_path, monkeypatch):
    first = cloud(4_000, 1)
    second = first | cloud(1_000, 3, first=500)
    largest = {"rows": 0}

    @dataclass(frozen=True, slots=True)
    class Watched(ArrayVectors):
        def read(self, start, stop):
            largest["rows"] = max(largest["rows"], stop - start)
            return ArrayVectors.read(self, start, stop)

        def take(self, positions):
            largest["rows"] = max(largest["rows"], len(positions))
            return ArrayVectors.take(self, positions)

        def whole(self):
            raise AssertionError("the items were read whole")

    monkeypatch.setattr(changes, "BLOCK_BYTES", 256 * DIM * 4)
    monkeypatch.setattr(changes, "BLOCK_IDS", 256)
    keeper = Keeper(tmp_path, resources=Resources(1, 4 << 20))
    for day in (first, second):
        plain = side(day)
        items = IngestedTable(plain.folder, Watched(plain.vectors.array), plain.ids, plain.listed_ids, plain.attributes)
        keeper.ask(items, side(cloud(8, 2)))
    assert 0 < largest["rows"] <= 2_048


def test_a_sample_too_large_to_be_kept_is_joined_all_the_same(tmp_path, joins):
    keeper = Keeper(tmp_path / "kept", resources=Resources(1, 100_000))
    keeper.ask(side(cloud(300, 1)), side(cloud(100, 2)))
    assert joins == []
    assert not (tmp_path / "kept").exists()


def test_no_queries_and_no_items_are_fine(tmp_path):
    keeper = Keeper(tmp_path)
    keeper.ask(side(cloud(30, 1)), side({}))
    keeper.ask(side({}), side(cloud(5, 2)))
    keeper.ask(side(cloud(30, 1)), side(cloud(5, 2)))
    keeper.ask(side({}), side(cloud(5, 2)))


def files(home):
    return sorted(p for p in home.rglob("*") if p.is_file())


def damage_of(path, how):
    content = bytearray(path.read_bytes())
    if how == "a flipped bit":
        content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content[:-7]) if how == "cut short" else bytes(content))


def test_whatever_file_is_damaged_the_answer_is_right(tmp_path):
    first = cloud(120, 1)
    second = {i: v for i, v in first.items() if i % 7} | cloud(9, 3, first=500)
    queries = side(cloud(12, 2))
    Keeper(tmp_path / "whole").ask(side(first), queries)
    for number, path in enumerate(files(tmp_path / "whole")):
        for how in ("a flipped bit", "cut short", "gone"):
            home = tmp_path / f"{number} {how}"
            shutil.copytree(tmp_path / "whole", home)
            broken = home / path.relative_to(tmp_path / "whole")
            broken.unlink() if how == "gone" else damage_of(broken, how)
            for day in (first, second):
                Keeper(home).ask(side(day), queries)


def test_damage_is_told_and_mended(tmp_path, joins):
    keeper, items, queries = Keeper(tmp_path), side(cloud(120, 1)), side(cloud(12, 2))
    keeper.ask(items, queries)
    damage_of(next(tmp_path.glob("lists-*/positions.npy")), "a flipped bit")
    keeper.ask(items, queries)
    keeper.ask(items, queries)
    assert joins == [(12, 120)] * 2
    (told,) = keeper.notes
    assert "positions.npy was changed" in told


def test_lists_under_the_name_of_others_are_not_believed(tmp_path, joins):
    keeper, items = Keeper(tmp_path), side(cloud(120, 1))
    keeper.ask(items, side(cloud(12, 2)))
    (first,) = tmp_path.glob("lists-*")
    keeper.ask(items, side(cloud(12, 3)))
    (second,) = set(tmp_path.glob("lists-*")) - {first}
    shutil.rmtree(first)
    second.rename(first)
    keeper.ask(items, side(cloud(12, 2)))
    assert "does not hold the contents that its name states" in keeper.notes[0]


def test_an_unfinished_folder_is_nobodys(tmp_path, joins):
    keeper, items, queries = Keeper(tmp_path), side(cloud(120, 1)), side(cloud(12, 2))
    keeper.ask(items, queries)
    for manifest in tmp_path.glob("*/manifest.json"):
        manifest.unlink()
    keeper.ask(items, queries)
    assert joins == [(12, 120)] * 2
    assert keeper.notes == []


def test_the_newest_lists_are_kept_with_the_states_they_need(tmp_path):
    keeper, queries = Keeper(tmp_path), side(cloud(12, 2))
    days = [side(cloud(120, 1) | cloud(3, day, first=500)) for day in range(truth_folders.MAX_SAMPLES + 3)]
    for day in days:
        keeper.ask(day, queries)
    assert len(list(tmp_path.glob("lists-*"))) == len(list(tmp_path.glob("state-*"))) == truth_folders.MAX_SAMPLES


@pytest.mark.parametrize("strings", [False, True])
def test_a_state_updated_by_known_rows_is_that_of_hashing_all_rows(tmp_path, monkeypatch, strings):
    monkeypatch.setattr(truth_folders, "BLOCK_IDS", 7)
    old = cloud(40, 1)
    new = {key: vector for key, vector in old.items() if key % 9} | cloud(12, 2, first=35) | cloud(5, 3, first=60)
    last, items = side(old, strings=strings), side(new, strings=strings)
    rows = {(key, last.vectors.array[row].tobytes()): row for row, key in enumerate(last.ids.to_pylist())}
    before = np.array(
        [rows.get((key, items.vectors.array[row].tobytes()), -1) for row, key in enumerate(items.ids.to_pylist())]
    )
    assert (before < 0).any()
    assert (before >= 0).any()
    truth_folders.update_state(tmp_path / "none", last.fingerprint, items, before, print)
    assert not list((tmp_path / "none").glob("*"))
    truth_folders.ensure_state(tmp_path / "inc", last, print)
    truth_folders.update_state(tmp_path / "inc", last.fingerprint, items, before, print)
    scratch = truth_folders.ensure_state(tmp_path / "scratch", items, print)
    for path in scratch.iterdir():
        assert (tmp_path / "inc" / scratch.name / path.name).read_bytes() == path.read_bytes()
