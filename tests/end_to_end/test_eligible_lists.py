"""Generators with rules, caps and least scores: every list is what sorting all eligible items would leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from tests.end_to_end import shop as at

import nearcast
from nearcast.errors import AuditError, InputError, SpecError
from nearcast.knn.scores import pair_scores
from nearcast.types import Metric
from needs import require_module

DIM, N_ITEMS, N_QUERIES = 12, 900, 400
COUNTRIES = ("DE", "FR", "IT", "SE", "PL")
SHOWN = {"name": "shown-here", "keep": "item.countries has query.country"}
CHEAP = {"name": "cheap", "keep": "item.price <= query.budget * 1.5"}
OTHERS = {"name": "others", "keep": "item.advertiser != query.advertiser"}
NEW_TO_THEM = {"name": "not-bought", "keep": "not (query.bought has item.id)"}


def attributes(rng: np.random.Generator) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    items = {
        "countries": [list(rng.choice(COUNTRIES, size=rng.integers(0, 4), replace=False)) for _ in range(N_ITEMS)],
        "price": [None if rng.random() < 0.05 else float(rng.integers(1, 50)) for _ in range(N_ITEMS)],
        "advertiser": [f"a{rng.integers(30)}" for _ in range(N_ITEMS)],
    }
    items["family"] = [f"{a}-{rng.integers(3)}" for a in items["advertiser"]]
    queries = {
        "country": [str(rng.choice(COUNTRIES)) for _ in range(N_QUERIES)],
        "budget": [float(rng.integers(1, 40)) for _ in range(N_QUERIES)],
        "advertiser": [f"a{rng.integers(30)}" for _ in range(N_QUERIES)],
        "bought": [[f"i{n:04d}" for n in rng.integers(N_ITEMS, size=3)] for _ in range(N_QUERIES)],
    }
    return items, queries


class Shop:
    """Both sides on disk, and what a list should be."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        self.items, self.queries = at.clustered(N_ITEMS, DIM, seed=1), at.clustered(N_QUERIES, DIM, seed=2)
        self.item_facts, self.query_facts = attributes(rng)
        self.item_ids = [f"i{n:04d}" for n in range(N_ITEMS)]
        self.query_ids = [f"q{n:04d}" for n in range(N_QUERIES)]
        at.write_rows(folder / "items.parquet", self.item_ids, list(self.items), **self.item_facts)
        at.write_rows(folder / "queries.parquet", self.query_ids, list(self.queries), **self.query_facts)
        self.folder = folder

    def spec(self, **settings: Any) -> dict[str, Any]:
        spec: dict[str, Any] = {"name": "shop", "metric": "inner_product", "k": 10, "memory": "2GB", "threads": 1}
        spec |= {"items": {"path": "items.parquet", "attributes": list(self.item_facts)}}
        spec |= {"queries": {"path": "queries.parquet", "attributes": list(self.query_facts)}}
        return spec | settings

    def run(self, **settings: Any) -> nearcast.Snapshot:
        return nearcast.run(self.spec(**settings), base=self.folder).snapshot

    def wanted(self, query: int, eligible: Any, k: int = 10, caps: Any = (), least: float = -np.inf) -> list[str]:
        """The k best of the eligible items, by sorting all of them."""
        own = pair_scores(np.repeat(self.queries[query : query + 1], N_ITEMS, axis=0), self.items, Metric.INNER_PRODUCT)
        taken: list[int] = []
        for item in np.lexsort((np.arange(N_ITEMS), -own)):
            if len(taken) == k or own[item] < np.float32(least):
                break  # the others score less
            room = all(sum(facts[t] == facts[item] for t in taken) < most for facts, most in caps)
            if room and eligible(query, item):
                taken.append(int(item))
        return [self.item_ids[item] for item in taken]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def lists(snapshot: nearcast.Snapshot) -> dict[str, tuple[list[str], str | None]]:
    rows = ds.dataset(snapshot.folder / "candidates", format="parquet").to_table().to_pylist()
    return {row["query_id"]: (row["candidate_ids"], row["reason"]) for row in rows}


def test_a_list_holds_the_best_items_that_its_query_may_get(shop: Shop) -> None:
    def eligible(query: int, item: int) -> bool:
        price = shop.item_facts["price"][item]
        return (
            shop.query_facts["country"][query] in shop.item_facts["countries"][item]
            and price is not None
            and price <= shop.query_facts["budget"][query] * 1.5
            and shop.item_facts["advertiser"][item] != shop.query_facts["advertiser"][query]
            and shop.item_ids[item] not in shop.query_facts["bought"][query]
        )

    snapshot = shop.run(rules=[SHOWN, CHEAP, OTHERS, NEW_TO_THEM])
    for query, (found, reason) in enumerate(lists(snapshot).values()):
        assert found == shop.wanted(query, eligible)
        assert reason == ("too_few_eligible" if len(found) < 10 else None)
    assert snapshot.manifest.measures["recall"] == 1.0


IMPOSSIBLE = {
    "no item": "item.price > 1000",
    "no query": "query.budget > 1000",
    "neither": "item.price > 1000 or query.budget > 1000",
    "no pair": "item.price > query.budget + 1000",
    "nothing": "not true",
    "no item, and a pair": "item.price > 1000 and item.advertiser != query.advertiser",
    "no list": 'item.countries has "nowhere"',
}


@pytest.mark.parametrize("engine", ["exact", "dense"])
def test_a_rule_that_no_pair_satisfies_leaves_empty_lists_and_is_not_published(shop: Shop, engine: str) -> None:
    for name in IMPOSSIBLE if engine == "dense" else ("no item", "no pair"):
        keep = IMPOSSIBLE[name]
        snapshot = shop.run(engine=engine, rules=[{"name": "never", "keep": keep}])
        assert set(map(str, lists(snapshot).values())) == {str(([], "too_few_eligible"))}, keep
        assert snapshot.manifest.measures["fill_rate"] == 0.0
        with pytest.raises(AuditError, match="fill_rate"):
            nearcast.publish("shop", out=shop.folder / "nearcast")
    always = shop.run(engine=engine, rules=[{"name": "always", "keep": "item.price is null or item.price >= 0"}])
    assert lists(always) == lists(shop.run(engine=engine))


def test_a_list_holds_only_so_many_of_an_advertiser_and_of_a_family(shop: Shop) -> None:
    snapshot = shop.run(
        caps=[{"by": "advertiser", "max_per_list": 2}, {"by": "family", "max_per_list": 1}], rules=[SHOWN]
    )
    caps = [(shop.item_facts["advertiser"], 2), (shop.item_facts["family"], 1)]
    for query, (found, _) in enumerate(lists(snapshot).values()):
        country = shop.query_facts["country"][query]
        assert found == shop.wanted(query, lambda _, item, c=country: c in shop.item_facts["countries"][item], 10, caps)


def test_a_short_list_says_whether_the_caps_or_the_least_score_cut_it(shop: Shop) -> None:
    capped = shop.run(caps=[{"by": "advertiser", "max_per_list": 1}], k=40)
    assert {reason for _, reason in lists(capped).values()} == {"capped"}
    assert all(len(found) == 30 for found, _ in lists(capped).values())
    best = sorted(capped.manifest.measures.items())
    assert best
    cut = shop.run(min_score=float(np.median(shop.queries @ shop.items.T)), k=800)
    reasons = {reason for _, reason in lists(cut).values()}
    assert reasons <= {"below_min_score", None}
    assert "below_min_score" in reasons


def test_near_duplicates_count_as_one(shop: Shop) -> None:
    twin = shop.items.copy()
    twin[100:200] = twin[0:100] * 1.5
    at.write_rows(shop.folder / "items.parquet", shop.item_ids, list(twin), **shop.item_facts)
    snapshot = shop.run(caps=[{"near_duplicate_cosine": 0.9999, "max_per_list": 1}])
    for found, _ in lists(snapshot).values():
        numbers = [int(name[1:]) for name in found]
        assert not {n for n in numbers if n < 100} & {n - 100 for n in numbers if 100 <= n < 200}


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "l2"])
@pytest.mark.parametrize("score", [{}, {"add": "boost", "weight": 100.0}])
def test_two_stacks_of_forty_copies_that_are_near_duplicates_are_one_group(
    metric: str, score: dict[str, Any], tmp_path: Path
) -> None:
    near = [0.985, np.sqrt(1 - 0.985**2), 0.0]
    vectors = [[1.0, 0.0, 0.0]] * 40 + [near] * 40 + [[0.0, 0.0, 1.0], [0.2, 0.0, 0.9]]
    boost = [float(number % 7) for number in range(80)] + [0.0, 0.0]  # a score term makes no item another one's unlike
    at.write_rows(tmp_path / "items.parquet", [f"i{n:02d}" for n in range(82)], vectors, boost=boost)
    at.write_rows(tmp_path / "queries.parquet", ["q"], [[1.0, 0.0, 0.1]])
    spec: dict[str, Any] = {"name": "stacks", "metric": metric, "k": 3, "memory": "2GB", "threads": 1}
    spec |= {"items": {"path": "items.parquet", "attributes": ["boost"]}, "queries": {"path": "queries.parquet"}}
    spec |= {"caps": [{"near_duplicate_cosine": 0.98, "max_per_list": 1}], "score": score}
    snapshot = nearcast.run(spec, base=tmp_path).snapshot
    found, reason = lists(snapshot)["q"]
    assert {"i80", "i81"} < set(found)
    assert len(found) == 3
    assert reason is None
    if not score:
        assert "i00" in found


@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_a_promise_holds_against_the_eligible_truth(shop: Shop, recall: float) -> None:
    snapshot = shop.run(rules=[SHOWN], recall=recall, engine="dense", engine_settings={"cells": 20})
    assert snapshot.manifest.target.met
    for query, (found, _) in enumerate(lists(snapshot).values()):
        country = shop.query_facts["country"][query]
        assert all(country in shop.item_facts["countries"][int(name[1:])] for name in found)


def test_exact_and_dense_agree_under_every_constraint(shop: Shop) -> None:
    asked = {"rules": [SHOWN, CHEAP], "caps": [{"by": "advertiser", "max_per_list": 2}], "min_score": 0.5}
    assert lists(shop.run(engine="exact", **asked)) == lists(shop.run(engine="dense", **asked))


@pytest.mark.parametrize("engine", ["faiss-hnsw", "faiss-ivf"])
def test_an_engine_that_cannot_honour_a_rule_refuses_it(shop: Shop, engine: str) -> None:
    require_module("faiss")
    with pytest.raises(SpecError, match=f"{engine} does not support rules inside its join; write engine"):
        shop.run(rules=[SHOWN], engine=engine)
    with pytest.raises(SpecError, match="does not support caps"):
        shop.run(caps=[{"by": "advertiser"}], engine=engine)


def test_a_rule_about_a_column_that_is_not_there_is_refused_before_anything_is_read(shop: Shop) -> None:
    with pytest.raises(SpecError, match="countris"):
        shop.run(rules=[{"name": "shown", "keep": "item.countris has query.country"}])
    assert not list(shop.folder.glob("nearcast/shop/artifacts/*"))


def test_caps_whose_groups_cross_are_refused_with_two_items_that_show_it(shop: Shop) -> None:
    with pytest.raises(SpecError, match="share their price but not their advertiser"):
        shop.run(caps=[{"by": "price"}, {"by": "advertiser"}])


def test_a_run_is_made_again_when_a_rule_changes(shop: Shop) -> None:
    first = shop.run(rules=[SHOWN])
    assert shop.run(rules=[SHOWN]).version == first.version
    assert shop.run(rules=[SHOWN, CHEAP]).version == first.version + 1


def bid_of(shop: Shop) -> np.ndarray:
    return np.array([(n * 37 % 101) / 50 for n in range(N_ITEMS)])


def scored_lists(shop: Shop, metric: str, score: dict[str, Any]) -> dict[str, tuple[list[str], list[float]]]:
    shop.item_facts["bid"] = bid_of(shop).tolist()
    at.write_rows(shop.folder / "items.parquet", shop.item_ids, list(shop.items), **shop.item_facts)
    snapshot = shop.run(metric=metric, score=score, rules=[SHOWN])
    rows = ds.dataset(snapshot.folder / "candidates", format="parquet").to_table().to_pylist()
    return {row["query_id"]: (row["candidate_ids"], row["scores"]) for row in rows}


@pytest.mark.parametrize("metric", ["inner_product", "cosine", "l2"])
def test_a_score_term_is_added_inside_the_join(shop: Shop, metric: str) -> None:
    found = scored_lists(shop, metric, {"add": "bid", "weight": 0.5})
    bid = 0.5 * bid_of(shop)
    for query, (ids, scores) in enumerate(found.values()):
        own = pair_scores(np.repeat(shop.queries[query : query + 1], N_ITEMS, axis=0), shop.items, Metric(metric))
        wanted = own + bid - (bid.max() if metric == "l2" else 0)
        legal = [shop.query_facts["country"][query] in countries for countries in shop.item_facts["countries"]]
        best = np.sort(wanted[np.array(legal)])[::-1][:10]
        np.testing.assert_allclose(scores, best, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose([wanted[int(name[1:])] for name in ids], best, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_a_score_factor_multiplies_inside_the_join(shop: Shop, metric: str) -> None:
    found = scored_lists(shop, metric, {"multiply": "bid"})
    for query, (_, scores) in enumerate(found.values()):
        own = pair_scores(np.repeat(shop.queries[query : query + 1], N_ITEMS, axis=0), shop.items, Metric(metric))
        legal = [shop.query_facts["country"][query] in countries for countries in shop.item_facts["countries"]]
        best = np.sort((own * bid_of(shop))[np.array(legal)])[::-1][:10]
        np.testing.assert_allclose(scores, best, rtol=2e-5, atol=2e-5)


def test_an_item_without_the_score_that_it_needs_is_named(shop: Shop) -> None:
    with pytest.raises(InputError, match=r"items have no 'price', the first is 'i\d+'; .* score.missing"):
        shop.run(score={"add": "price"})
    assert shop.run(score={"add": "price", "missing": 0.0}).manifest.measures["recall"] == 1.0


def test_a_factor_is_refused_under_l2(shop: Shop) -> None:
    with pytest.raises(SpecError, match=r"write score\.add"):
        shop.run(metric="l2", score={"multiply": "price", "missing": 1.0})


def test_a_pair_is_explained_by_the_scores_that_were_joined_by(shop: Shop) -> None:
    snapshot = shop.run(metric="cosine", score={"add": "price", "missing": 0.0, "weight": 0.01})
    best = snapshot.lookup("q0000")
    found = nearcast.explain("shop", "q0000", best.ids[3], out=shop.folder / "nearcast")
    assert (found.listed_rank, found.rank) == (4, 4)
    assert found.score == best.scores[3]


def test_the_monitor_holds_served_lists_against_what_their_queries_may_get_today(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.folder)
    asked = {"rules": [SHOWN, CHEAP], "caps": [{"by": "advertiser", "max_per_list": 2}], "min_score": 0.5}
    shop.run(**asked)
    nearcast.publish("shop")
    for _ in range(2):  # the second pass takes what the first has compiled
        served = nearcast.monitor(shop.spec(**asked)).served
        assert served.recall == 1.0
        assert len(list(Path("nearcast/shop/monitor").glob("constraints-*"))) == 1


def test_a_column_of_the_file_that_the_attributes_do_not_name_is_answered_with_the_line_to_write(shop: Shop) -> None:
    spec = shop.spec(rules=[{"name": "cheap", "keep": "item.price < 10 and query.budget > 3"}])
    spec["items"]["attributes"] = ["countries"]
    for call in (nearcast.run, nearcast.check):
        with pytest.raises(SpecError) as caught:
            call(spec, base=shop.folder)
        assert caught.value.exit_code == 2
        assert 'add it: [items] attributes = ["countries", "price"]' in str(caught.value)
        assert "^^^^^^^^^^" in str(caught.value)
    spec["items"]["attributes"], spec["queries"]["attributes"] = ["price"], []
    with pytest.raises(SpecError, match=r'add it: \[queries\] attributes = \["budget"\]'):
        nearcast.check(spec, base=shop.folder)


@pytest.mark.parametrize(
    ("table", "setting"),
    [
        ("items", {"attributes": ["pricee"]}),
        ("items", {"display": ["pricee"]}),
        ("queries", {"attributes": ["pricee"]}),
        ("queries", {"display": ["pricee"]}),
        ("queries", {"weight": "pricee"}),
    ],
)
def test_a_column_of_the_spec_that_the_file_lacks_is_a_fault_of_the_spec(
    shop: Shop, table: str, setting: dict[str, Any]
) -> None:
    spec = shop.spec()
    spec[table] = {"path": f"{table}.parquet"} | setting
    for call in (nearcast.run, nearcast.check):
        with pytest.raises(SpecError, match=f"{table}.parquet has no column 'pricee'") as caught:
            call(spec, base=shop.folder)
        assert caught.value.exit_code == 2
        assert table == "queries" or "did you mean 'price'?" in str(caught.value)


@pytest.mark.parametrize("setting", [{"id": "key"}, {"vector": "embedding"}])
def test_a_file_without_ids_or_vectors_is_bad_input(shop: Shop, setting: dict[str, Any]) -> None:
    spec = shop.spec(queries={"path": "queries.parquet"} | setting)
    for call in (nearcast.run, nearcast.check):
        with pytest.raises(InputError) as caught:
            call(spec, base=shop.folder)
        assert caught.value.exit_code == 3
