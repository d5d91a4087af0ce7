"""Metrics by labels equal their definitions, computed in another way: one query at a time, and by scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.needs import require_module

from nearcast.evaluation.bootstrap import GROUPS, Resamples
from nearcast.evaluation.label_hits import compute_metrics, find_hits
from nearcast.evaluation.label_set import LabelSet, read_labels
from nearcast.evaluation.label_table import open_label_table
from nearcast.evaluation.ranked_lists import ListBatch, PopularLists
from nearcast.evaluation.sorted_ids import SortedIds, convert_ids
from nearcast.settings.label_tables import METRIC_KINDS, LabelsSpec

Labels = Mapping[object, Mapping[object, float]]  # grades by query and item
Lists = Mapping[object, Sequence[object]]
METRICS = [f"{kind}_at_{k}" for kind in METRIC_KINDS for k in (1, 3, 10)]


class GivenLists:
    """Lists that a test has written down, in batches of a few."""

    name = "given"

    def __init__(self, lists: Lists, query_ids: str = "string", item_ids: str = "string", batch: int = 3) -> None:
        self.query_ids, self.item_ids = query_ids, item_ids
        self.lists, self.batch = lists, batch

    def read(self, queries: SortedIds) -> Iterator[ListBatch]:
        keys = queries.ids.to_pylist()
        assert keys == sorted(set(keys))
        rows = [row for row, key in enumerate(keys) if key in self.lists]
        kind = pa.int64() if self.item_ids == "int64" else pa.string()
        for start in range(0, len(rows), self.batch):
            some = rows[start : start + self.batch]
            lists = [self.lists[keys[row]] for row in some]
            offsets = np.append(0, np.cumsum([len(one) for one in lists]))
            yield ListBatch(queries.positions[some], offsets, pa.array([i for one in lists for i in one], kind))


def spec(**settings: object) -> LabelsSpec:
    return LabelsSpec(path="labels.parquet", **settings)  # type: ignore[arg-type]


def labels_of(rows: Sequence[tuple[object, object, float]], **settings: object) -> LabelSet:
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    table = pa.table(dict(zip(("query", "item", "grade"), map(list, columns), strict=True)))
    return read_labels(open_label_table(table, None), spec(grade="grade", **settings))  # type: ignore[arg-type]


def measure(labels: LabelSet, lists: GivenLists, metrics: Sequence[str] = METRICS) -> dict[object, dict[str, float]]:
    values = compute_metrics(find_hits(lists, labels, 100), labels, metrics)
    return {
        q: dict(zip(metrics, row.tolist(), strict=True))
        for q, row in zip(labels.queries.to_pylist(), values, strict=True)
    }


def by_hand(grades: Mapping[object, float], ids: Sequence[object], name: str, relevant: float = 0.0) -> float:
    """One metric of one query, as its definition reads."""
    kind, k = name.rsplit("_at_", 1)
    top = list(ids)[: int(k)]
    wanted = {item for item, grade in grades.items() if grade > 0 and grade >= relevant}
    hits = [item in wanted for item in top]
    if kind == "hit_rate":
        return float(any(hits))
    if kind == "recall":
        return sum(hits) / len(wanted)
    if kind == "precision":
        return sum(hits) / int(k)
    if kind == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    gains = [max(0.0, grades.get(item, 0.0)) for item in top]
    best = sorted((max(0.0, grade) for grade in grades.values()), reverse=True)[: int(k)]

    def dcg(row: Sequence[float]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(row))

    return dcg(gains) / dcg(best)


ids_of = {"string": lambda n: f"i{n}", "int64": lambda n: n - 3}


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 7.0])), max_size=40
    ),
    lists=st.dictionaries(st.integers(0, 7), st.permutations(range(12)).map(lambda p: p[: p[0]]), max_size=8),
    relevant=st.sampled_from([0.0, 1.0]),
    kinds=st.tuples(st.sampled_from(["string", "int64"]), st.sampled_from(["string", "int64"])),
)
def test_metrics_equal_their_definition_on_random_labels_and_lists(
    rows: list[tuple[int, int, float]], lists: dict[int, list[int]], relevant: float, kinds: tuple[str, str]
) -> None:
    query_of, item_of = ids_of[kinds[0]], ids_of[kinds[1]]
    named = [(query_of(q), item_of(i), grade) for q, i, grade in rows]
    grades: dict[object, dict[object, float]] = {}
    for query, item, grade in named:  # the highest grade of a repeated pair counts
        here = grades.setdefault(query, {})
        here[item] = max(grade, here.get(item, -math.inf))
    measured = {q: of for q, of in grades.items() if any(g > 0 and g >= relevant for g in of.values())}
    if not measured:
        with pytest.raises(Exception, match=r"no relevant item|holds no label"):
            labels_of(named, relevant=relevant)
        return
    labels = labels_of(named, relevant=relevant)
    source = GivenLists({query_of(q): [item_of(i) for i in ids] for q, ids in lists.items()}, *kinds)
    found = measure(labels, source)
    assert found.keys() == measured.keys()
    for query, of in measured.items():
        for name in METRICS:
            assert found[query][name] == pytest.approx(by_hand(of, source.lists.get(query, []), name, relevant)), name


def test_graded_gain_and_precision_equal_those_of_scikit_learn() -> None:
    learn = require_module("sklearn.metrics")
    rng = np.random.default_rng(4)
    items, k = 40, 10
    grades = rng.choice([0.0, 0.0, 0.0, 1.0, 2.0, 3.0], size=(60, items))
    grades[:, 0] = 1.0  # every query has a relevant item
    scores = np.argsort(rng.random((60, items)), axis=1).astype(float)  # no ties: scikit-learn averages over them
    rows = [(f"q{q:02d}", f"i{i:02d}", grades[q, i]) for q in range(60) for i in range(items)]
    order = np.argsort(-scores, axis=1)
    lists = GivenLists({f"q{q:02d}": [f"i{i:02d}" for i in order[q, :25]] for q in range(60)})
    names = [f"ndcg_at_{k}", f"precision_at_{k}", f"recall_at_{k}"]
    found = measure(labels_of(rows), lists, names)
    for q in range(60):
        row, binary = found[f"q{q:02d}"], (grades[q] > 0).astype(int)
        assert row[names[0]] == pytest.approx(learn.ndcg_score(grades[q : q + 1], scores[q : q + 1], k=k))
        chosen = np.zeros(items, int)
        chosen[order[q, :k]] = 1
        assert row[names[1]] == pytest.approx(learn.precision_score(binary, chosen))
        assert row[names[2]] == pytest.approx(learn.recall_score(binary, chosen))


def test_a_short_list_counts_as_k_for_precision_and_an_empty_or_missing_one_as_misses() -> None:
    labels = labels_of([("a", "x", 1.0), ("b", "x", 1.0), ("c", "x", 1.0)])
    found = measure(labels, GivenLists({"a": ["x"], "b": []}), ["precision_at_10", "hit_rate_at_10"])
    assert found["a"] == {"precision_at_10": 0.1, "hit_rate_at_10": 1.0}
    assert found["b"] == found["c"] == {"precision_at_10": 0.0, "hit_rate_at_10": 0.0}
    assert find_hits(GivenLists({"a": ["x"], "b": []}), labels, 10).has_list.tolist() == [True, True, False]


def test_an_item_that_a_list_holds_twice_counts_once() -> None:
    labels = labels_of([("a", "x", 1.0)])
    found = measure(labels, GivenLists({"a": ["y", "x", "x"]}), ["precision_at_3", "mrr_at_3", "recall_at_3"])["a"]
    assert found == {"precision_at_3": pytest.approx(1 / 3), "mrr_at_3": 0.5, "recall_at_3": 1.0}


@pytest.mark.parametrize("kinds", [("string", "int64"), ("int64", "string"), ("int64", "int64")])
def test_ids_of_labels_are_converted_to_the_type_of_the_lists(kinds: tuple[str, str]) -> None:
    as_type = {"string": str, "int64": int}
    lists = {as_type[kinds[0]](7): [as_type[kinds[1]](n) for n in (30, 20)], as_type[kinds[0]](8): []}
    for of_labels in (str, int):
        labels = labels_of([(of_labels(7), of_labels(20), 1.0)])
        assert measure(labels, GivenLists(lists, *kinds), ["mrr_at_10"]) == {of_labels(7): {"mrr_at_10": 0.5}}


def test_a_label_with_an_id_of_another_form_is_unknown_and_no_other_id() -> None:
    assert convert_ids(pa.array(["7", "07", "seven", "-3", "9" * 30]), "int64").to_pylist() == [7, None, None, -3, None]
    labels = labels_of([("07", "x", 1.0), ("7", "x", 1.0), ("seven", "x", 1.0)])
    hits = find_hits(GivenLists({7: ["x"]}, "int64"), labels, 10)
    assert hits.has_list.tolist() == [False, True, False]


def test_the_popular_list_leaves_out_the_query_itself_where_lists_do() -> None:
    queries = SortedIds.sort(pa.array(["a", "b", "z"]))
    items = pa.array(["b", "a", "c"])
    lists = [PopularLists(items, "string", without_self=without).read(queries) for without in (True, False)]
    found = [[batch.ids.to_pylist() for batch in one] for one in lists]
    assert found == [[["b", "c", "a", "c", "b", "a", "c"]], [["b", "a", "c"] * 3]]


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    inside = 0
    for seed in range(100):
        values = rng.random((300, 1)) ** 3  # mean 1/4
        low, high = Resamples.draw(300, seed).find_interval(values)
        inside += int(low[0] <= 0.25 <= high[0])
    assert 88 <= inside <= 100


def test_many_queries_are_drawn_in_groups_with_the_spread_of_single_ones() -> None:
    n = 4 * GROUPS
    values = np.random.default_rng(1).random((n, 1))
    low, high = Resamples.draw(n).find_interval(values)
    expected = 2 * 1.96 * values.std() / math.sqrt(n)
    assert (high - low)[0] == pytest.approx(expected, rel=0.12)


def test_equal_lists_lead_each_other_by_nothing_and_a_seed_repeats_every_interval() -> None:
    values = np.random.default_rng(3).random((50, 2))
    one, other = Resamples.draw(50, 5), Resamples.draw(50, 5)
    assert one.find_interval(values - values)[0].tolist() == [0, 0]
    assert np.array_equal(one.find_interval(values)[1], other.find_interval(values)[1])
    assert not np.array_equal(one.find_interval(values)[1], Resamples.draw(50, 6).find_interval(values)[1])


def test_an_interval_of_a_slice_is_that_of_its_members() -> None:
    values = np.arange(40.0)[:, None]
    members = np.arange(40) >= 20
    low, high = Resamples.draw(40).find_interval(values, members)
    assert 20 <= low[0] < 29.5 < high[0] <= 39
