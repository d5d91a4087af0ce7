"""Why figures moved: each cause is planted alone and found alone, and the causes of a figure add up to its change."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import succeed as command
from tests.snapshot_folders import remove_snapshot

import nearcast
from nearcast.api import comparing
from nearcast.errors import InputError, NotFoundError
from nearcast.join import diff as snapshot_diff
from nearcast.join.listener import Listener
from nearcast.table.snapshot import open_home

DIM, N = 8, 400
RULE = {"name": "same-kind", "keep": "item.kind == query.kind"}
CHEAP = {"engine": "dense", "engine_settings": {"cells": 40, "reach": 1}, "recall": 0.01}


class Shop:
    """Queries and items of two kinds, by makers, and the snapshots of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = at.clustered(N, DIM, seed=5)
        self.ids = [f"i{n:04d}" for n in range(N)]
        self.kinds = [("a", "b")[n % 2] for n in range(N)]
        self.queries = at.clustered(150, DIM, seed=6)
        self.shift = 0  # of the makers of some items
        self.boost = 0.0  # of the score of some items

    def run(self, **settings: Any) -> dict[str, Any]:
        """Write the tables and make a snapshot. Return the spec."""
        makers = [f"m{(n + self.shift * (n % 10 == 0)) % 7}" for n in range(len(self.ids))]
        boosts = [self.boost * (n % 9 == 0) for n in range(len(self.ids))]
        at.write_rows(
            self.folder / "items.parquet", self.ids, list(self.items), kind=self.kinds, maker=makers, boost=boosts
        )
        names = [f"q{n:03d}" for n in range(len(self.queries))]
        kinds = [("a", "b")[n % 2] for n in range(len(names))]
        at.write_rows(self.folder / "queries.parquet", names, list(self.queries), kind=kinds)
        spec = {"name": "shop", "metric": "l2", "k": 5, "memory": "2GB", "threads": 1, "engine": "exact"}
        spec |= {"items": {"path": "items.parquet", "attributes": ["kind", "maker", "boost"]}}
        spec |= {"queries": {"path": "queries.parquet", "attributes": ["kind"]}}
        spec |= {"checks": {"k_above_items": "keep"}}
        nearcast.run(spec | settings, base=self.folder)
        return spec | settings

    def keep(self, rows: slice) -> None:
        self.items, self.ids, self.kinds = self.items[rows], self.ids[rows], self.kinds[rows]

    def move(self, step: int) -> None:
        self.items = self.items.copy()
        self.items[::step] += 3.0

    def diff(self, *versions: int, **options: Any) -> Any:
        return nearcast.diff("shop", *versions, out=self.folder / "nearcast", **options)

    def forget_inputs(self) -> None:
        shutil.rmtree(self.folder / "nearcast" / "shop" / "artifacts")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def shares(found: Any) -> dict[str, dict[str, float]]:
    """The causes of each figure, after a look at their sums."""
    for figure in found.figures:
        assert math.fsum(figure.causes.values()) == pytest.approx(figure.change, abs=1e-9)
    return {figure.figure: dict(figure.causes) for figure in found.figures}


def only(found: Any, cause: str, *figures: str) -> None:
    """Check that nothing but this cause moved these figures, and that each of them did move."""
    causes = shares(found)
    for figure in figures or ("overlap",):
        assert set(causes[figure]) == {cause}, (figure, causes)


def test_nothing_moved_between_snapshots_of_the_same_rows(shop: Shop) -> None:
    shop.run()
    shop.run(measure={"sample": 50})
    found = shop.diff(1)
    assert shares(found) in ({}, {"recall": {}, "overlap": {}, "fill_rate": {}})
    assert found.limits == ()


def test_new_items_that_push_others_out_are_the_cause(shop: Shop) -> None:
    items, ids, kinds = shop.items, shop.ids, shop.kinds
    shop.keep(slice(0, 300))
    shop.run()
    shop.items, shop.ids, shop.kinds = items, ids, kinds
    shop.run()
    only(shop.diff(), "new items")


def test_gone_items_are_the_cause_and_what_fills_their_slots_is_charged_to_them(shop: Shop) -> None:
    shop.run()
    shop.keep(slice(0, 300))
    shop.run()
    found = shop.diff()
    only(found, "gone items")
    assert shares(found)["fill_rate"] == {}


def test_gone_items_that_nothing_replaces_empty_slots(shop: Shop) -> None:
    shop.keep(slice(0, 5))
    shop.run()
    shop.keep(slice(0, 3))
    shop.run()
    assert shares(shop.diff())["fill_rate"] == {"gone items": pytest.approx(-0.4)}


@pytest.mark.parametrize("kept", [True, False])
def test_vectors_that_moved_are_the_cause_also_if_the_inputs_are_gone(shop: Shop, kept: bool) -> None:
    shop.run()
    shop.move(20)
    shop.run()
    if not kept:
        shop.forget_inputs()
    only(shop.diff(), "vectors")


def test_lists_that_stay_full_leave_the_fill_rate_alone(shop: Shop) -> None:
    shop.run()
    shop.keep(slice(0, 300))
    shop.move(2)
    shop.run()
    causes = shares(shop.diff())
    assert {"gone items", "vectors"} <= set(causes["overlap"])
    assert causes["fill_rate"] == {}


def test_query_vectors_that_moved_are_the_cause(shop: Shop) -> None:
    shop.run()
    shop.queries = shop.queries + np.float32(0.5)
    shop.run()
    only(shop.diff(), "vectors")


def test_an_attribute_that_a_rule_reads_is_the_cause_and_not_the_rule(shop: Shop) -> None:
    shop.run(rules=[RULE])
    shop.kinds = [("b" if kind == "a" else "a") if n % 10 == 0 else kind for n, kind in enumerate(shop.kinds)]
    shop.run(rules=[RULE])
    only(shop.diff(), "attributes")


def test_a_column_of_a_cap_is_an_attribute(shop: Shop) -> None:
    cap = {"by": "maker", "max_per_list": 1}
    shop.run(caps=[cap])
    shop.shift = 1
    shop.run(caps=[cap])
    causes = shares(shop.diff())["overlap"]
    assert causes["attributes"] < 0.9 * sum(causes.values()) < 0


def test_a_score_term_is_an_attribute(shop: Shop) -> None:
    shop.run(score={"add": "boost"}, metric="inner_product")
    shop.boost = 2.0
    shop.run(score={"add": "boost"}, metric="inner_product")
    only(shop.diff(), "attributes")


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_rule_is_the_cause_whether_it_came_or_went(shop: Shop, order: tuple[int, int]) -> None:
    shop.run()
    shop.run(rules=[RULE])
    only(shop.diff(*order), "rules")


def test_a_rule_over_a_new_column_is_a_rule(shop: Shop) -> None:
    shop.run(items={"path": "items.parquet", "attributes": ["kind"]})
    shop.run(rules=[{"name": "maker", "keep": "item.maker != 'm1'"}])
    only(shop.diff(), "rules")


@pytest.mark.parametrize(
    "settings", [{"k": 3}, {"metric": "inner_product"}, {"caps": [{"by": "maker", "max_per_list": 1}]}]
)
def test_a_setting_is_the_cause(shop: Shop, settings: dict[str, Any]) -> None:
    shop.run()
    shop.run(**settings)
    assert {cause for found in shares(shop.diff()).values() for cause in found} == {"settings"}


def test_longer_lists_that_are_full_change_no_figure(shop: Shop) -> None:
    shop.run()
    shop.run(k=9)
    assert not any(shares(shop.diff()).values())


def test_a_smaller_k_neither_fills_nor_empties_slots_whatever_else_changed(shop: Shop) -> None:
    shop.run()
    shop.run(k=3, rules=[RULE])
    causes = shares(shop.diff())
    assert (set(causes["overlap"]), causes["fill_rate"]) == ({"rules", "settings"}, {})
    shop.run(k=3, rules=[{"name": "none", "keep": "item.kind == 'z'"}])
    assert shares(shop.diff(1, 3))["fill_rate"] == {"rules": pytest.approx(-1.0)}


def test_a_minimum_score_is_a_setting_that_empties_slots(shop: Shop) -> None:
    shop.run()
    shop.run(min_score=-0.5)
    found = shop.diff()
    only(found, "settings", "overlap", "fill_rate")
    assert found.figures[2].change < 0


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_an_engine_that_misses_candidates_is_the_cause(shop: Shop, order: tuple[int, int]) -> None:
    shop.run()
    shop.run(**CHEAP)
    found = shop.diff(*order)
    only(found, "engine", "recall", "overlap")
    assert (found.figures[0].change < 0) == (order == (1, 2))


def test_what_no_score_decides_is_a_row_of_its_own_with_a_reason(shop: Shop) -> None:
    shop.run(**CHEAP)
    shop.move(2)
    shop.queries = shop.queries + np.float32(0.1)
    shop.run(**CHEAP)
    shop.forget_inputs()
    found = shop.diff()
    assert shares(found)["overlap"]["unexplained"] < 0
    assert any("cannot be told apart" in words for words in found.limits)


def test_inputs_that_are_there_explain_more(shop: Shop) -> None:
    shop.run(**CHEAP)
    shop.move(2)
    shop.run(**CHEAP)
    with_inputs = abs(shares(shop.diff())["overlap"].get("unexplained", 0.0))
    shop.forget_inputs()
    assert with_inputs < abs(shares(shop.diff())["overlap"]["unexplained"])


def test_recall_that_new_items_lost_is_charged_to_them(shop: Shop) -> None:
    shop.run(engine="dense", engine_settings={"cells": 20}, recall=0.95)
    found = None
    for name in ("items", "again"):
        shop.items = np.concatenate([shop.items, at.clustered(100, DIM, seed=len(name)) * np.float32(1.3)])
        shop.ids = [*shop.ids, *(f"{name}{n:03d}" for n in range(100))]
        shop.kinds = [*shop.kinds, *["a"] * 100]
        shop.run(engine="dense", engine_settings={"cells": 20, "reach": -50}, recall=0.01)
        found = shop.diff()
        recall = found.figures[0]
        if recall.change:
            assert "new items" in recall.causes
            assert recall.queries == 150
    assert found is not None
    shares(found)


def test_many_causes_at_once_add_up(shop: Shop) -> None:
    shop.run(rules=[RULE], **CHEAP)
    shop.keep(slice(20, None))
    shop.items = np.concatenate([shop.items, at.clustered(40, DIM, seed=9)])
    shop.ids, shop.kinds = [*shop.ids, *(f"n{n:03d}" for n in range(40))], [*shop.kinds, *["a"] * 40]
    shop.kinds = [("b" if kind == "a" else "a") if n % 9 == 0 else kind for n, kind in enumerate(shop.kinds)]
    shop.move(15)
    shop.run(rules=[RULE], k=7, **CHEAP)
    found = shop.diff()
    causes = shares(found)["overlap"]
    assert {"new items", "gone items", "attributes"} <= set(causes)
    assert all(share <= 0 for share in causes.values())


def test_labels_add_the_hit_rate(shop: Shop) -> None:
    shop.run()
    labels = pa.table({"query": [f"q{n:03d}" for n in range(150)], "item": [f"i{n:04d}" for n in range(150)]})
    every = pa.table({"query": [f"q{n:03d}" for n in range(150) for _ in range(N)], "item": shop.ids * 150})
    shop.keep(slice(0, 2))
    shop.run()
    found = {figure.figure: figure for figure in shop.diff(labels=every).figures}["hit_rate"]
    assert (found.before, found.after, found.causes) == (1.0, 1.0, {})
    found = {figure.figure: figure for figure in shop.diff(labels=labels).figures}["hit_rate"]
    assert found.queries == 150
    assert set(found.causes) <= {"gone items"}
    gone = pa.table(
        {
            "query": [f"q{n:03d}" for n in range(150) for _ in range(N - 2)],
            "item": [f"i{n:04d}" for n in range(2, N)] * 150,
        }
    )
    found = {figure.figure: figure for figure in shop.diff(labels=gone).figures}["hit_rate"]
    assert found.causes == {"gone items": pytest.approx(-1.0)}
    with pytest.raises(InputError, match="no labelled query has a list that is compared in both 000001 and 000002"):
        shop.diff(labels=pa.table({"query": [1], "item": [2]}))


def test_the_hit_rate_is_that_of_an_evaluation_by_the_same_grades(shop: Shop) -> None:
    shop.run()
    shop.keep(slice(0, 300))
    shop.run()
    queries = [f"q{n:03d}" for n in range(150) for _ in range(4)]
    items = [f"i{(n * 7 + m * 31) % N:04d}" for n in range(150) for m in range(4)]
    grades = [(-1.0, 0.0, 1.0, 2.0)[(n + m) % 4] for n in range(150) for m in range(4)]
    listed = nearcast.lookup("shop", "q000", version=1, out=shop.folder / "nearcast").ids
    labels = pa.table({"query": [*queries, *["q000"] * 5], "item": [*items, *listed], "grade": [*grades, *[0.0] * 5]})
    found = {figure.figure: figure for figure in shop.diff(labels=labels, grade="grade").figures}["hit_rate"]
    out = shop.folder / "nearcast"
    rates = [
        nearcast.evaluate("shop", labels, grade="grade", version=version, depths=[5], out=out).metrics
        for version in (1, 2)
    ]
    assert [rate["hit_rate_at_5"].value for rate in rates] == [
        pytest.approx(found.before, abs=1e-8),
        pytest.approx(found.after, abs=1e-8),
    ]


def test_labelled_queries_are_drawn_beside_the_sample(shop: Shop) -> None:
    shop.run()
    shop.keep(slice(0, 300))
    shop.run()
    out = shop.folder / "nearcast"
    rows = [(f"q{n:03d}", item) for n in range(0, 150, 5) for item in nearcast.lookup("shop", f"q{n:03d}", out=out).ids]
    labels = pa.table(dict(zip(("query", "item"), zip(*rows, strict=True), strict=True)))
    plain, found = shop.diff(sample=10), shop.diff(sample=10, labels=labels)
    assert (found.came, found.went, found.kept, found.queries) == (plain.came, plain.went, plain.kept, 10)
    assert found.figures[1:3] == plain.figures[1:3]
    assert (found.figures[3].figure, found.figures[3].queries, found.figures[3].after) == ("hit_rate", 10, 1.0)
    shares(found)


def test_labelled_queries_of_a_large_table_are_those_of_the_sample(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_diff, "SCATTERED", 100)
    shop.run()
    shop.move(10)
    shop.run()
    labels = pa.table({"query": [f"q{n:03d}" for n in range(150)], "item": ["i0000"] * 150})
    found = shop.diff(sample=48, labels=labels)
    assert found.figures[-1].queries == found.queries == 48
    shares(found)


def test_labels_and_promises_are_no_settings_of_lists(shop: Shop) -> None:
    shop.run()
    first = nearcast.lookup("shop", "q000", out=shop.folder / "nearcast").ids[0]
    pq.write_table(pa.table({"query": ["q000"], "item": [first]}), shop.folder / "labels.parquet")
    shop.run(labels={"path": "labels.parquet"}, promise={"hit_rate_at_5": 0.5}, measure={"sample": 60})
    assert not [words for words in shop.diff().settings if "labels" in words or "promise" in words]


def test_snapshots_without_a_common_query_are_compared_in_words(shop: Shop) -> None:
    shop.run()
    shop.run(queries={"path": "items.parquet", "attributes": ["kind"]})
    found = shop.diff()
    assert (found.queries, found.queries_came) == (0, N)
    assert not any(shares(found).values())
    assert "no query of the sample is in both 000001 and 000002: no list is compared" in found.limits
    labels = pa.table({"query": ["q000"], "item": ["i0000"]})
    assert [figure.figure for figure in shop.diff(labels=labels).figures] == ["recall"]
    shown = command("diff", "shop", cwd=shop.folder).stdout
    assert "0 queries compared" in shown
    assert "are the same" not in shown


def test_a_rule_over_a_new_column_of_the_queries_is_a_rule(shop: Shop) -> None:
    rule = {"name": "kind", "keep": "item.kind == 'a'"}
    shop.run(rules=[rule], queries={"path": "queries.parquet"})
    shop.run(rules=[{"name": "kind", "keep": "item.kind == query.kind"}])
    only(shop.diff(), "rules")


def test_a_snapshot_that_is_compared_is_not_removed_meanwhile(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.run()
    shop.move(10)
    shop.run()
    home = open_home(shop.folder / "nearcast")
    real, removed = comparing.diff_snapshots, []

    def compare(*arguments: Any) -> Any:
        removed.append(remove_snapshot(home, "shop", 1))
        return real(*arguments)

    monkeypatch.setattr(comparing, "diff_snapshots", compare)
    only(shop.diff(), "vectors")
    assert removed == [False]
    assert remove_snapshot(home, "shop", 1)
    with pytest.raises(NotFoundError, match="no snapshot before 000002"):
        shop.diff()


def test_the_snapshot_that_a_run_compares_with_is_not_removed_meanwhile(shop: Shop) -> None:
    spec = shop.run()
    home, removed = open_home(shop.folder / "nearcast"), list[bool]()

    class Remover(Listener):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage != "hash inputs":
                removed.append(remove_snapshot(home, "shop", 1))

    made = nearcast.run(spec | {"k": 4}, base=shop.folder, listener=Remover()).snapshot
    assert removed
    assert not any(removed)
    assert made.manifest.facts["compared_with"] == {"version": 1, "served": False}
    assert remove_snapshot(home, "shop", 1)


def test_the_sample_is_drawn_by_a_seed(shop: Shop) -> None:
    shop.run()
    shop.move(10)
    shop.run()
    first, again, other = (shop.diff(sample=40, seed=seed) for seed in (1, 1, 2))
    assert first.queries == 40
    assert first == again
    assert first.went != other.went


def test_an_empty_list_and_a_query_that_is_new_are_compared(shop: Shop) -> None:
    shop.run(rules=[{"name": "none", "keep": "item.maker == 'nobody'"}])
    shop.queries = at.clustered(160, DIM, seed=6)
    shop.run()
    found = shop.diff()
    causes = shares(found)
    assert found.queries_came == 10
    assert "overlap" not in causes  # all lists were empty
    assert causes["fill_rate"] == {"rules": pytest.approx(1.0)}


def test_the_command_prints_a_row_per_cause_that_add_up(shop: Shop) -> None:
    shop.run()
    shop.keep(slice(0, 300))
    shop.run(rules=[RULE])
    told = json.loads(command("diff", "shop", "--json", cwd=shop.folder).stdout)
    for figure in told["figures"]:
        assert sum(figure["causes"].values()) == pytest.approx(figure["after"] - figure["before"], abs=1e-9)
    shown = command("diff", "shop", cwd=shop.folder).stdout
    assert "150 queries compared (seed 0)" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["why", "the", "figures", "moved", "recall", "overlap", "fill_rate"] in rows
    assert any(row[:2] == ["gone", "items"] for row in rows)
    pq.write_table(pa.table({"user": ["q000"], "bought": ["i0000"]}), shop.folder / "labels.parquet")
    words = ("--labels", "labels.parquet", "--query", "user", "--item", "bought")
    assert "hit_rate" in command("diff", "shop", *words, cwd=shop.folder).stdout


def test_the_monitor_records_the_changes_of_each_run_once(shop: Shop) -> None:
    shop.run()
    first = nearcast.monitor("shop", out=shop.folder / "nearcast")
    assert first.changes is None
    shop.keep(slice(0, 300))
    shop.run()
    second = nearcast.monitor("shop", out=shop.folder / "nearcast")
    assert second.changes is not None
    overlap = next(row for row in second.changes["figures"] if row["figure"] == "overlap")
    assert set(overlap["causes"]) == {"gone items"}
    assert (second.changes["before"], second.changes["after"]) == (1, 2)
    shutil.rmtree(shop.folder / "nearcast" / "shop" / "snapshots" / "000001")
    assert nearcast.monitor("shop", out=shop.folder / "nearcast").changes == second.changes


def test_the_monitor_tells_why_the_hit_rate_moved(shop: Shop) -> None:
    shop.run()
    out = shop.folder / "nearcast"
    rows = [(f"q{n:03d}", item) for n in range(40) for item in nearcast.lookup("shop", f"q{n:03d}", out=out).ids]
    kept = set(shop.ids[:100])
    rows = [row for row in rows if row[1] not in kept]
    pq.write_table(
        pa.table(dict(zip(("query", "item"), zip(*rows, strict=True), strict=True))), shop.folder / "labels.parquet"
    )
    shop.keep(slice(0, 100))
    spec = shop.run(labels={"path": "labels.parquet"})
    found = nearcast.monitor(spec, base=shop.folder).changes
    assert found is not None
    (rate,) = [row for row in found["figures"] if row["figure"] == "hit_rate"]
    assert (rate["before"], rate["after"], rate["causes"]) == (1.0, 0.0, {"gone items": pytest.approx(-1.0)})
    (shop.folder / "labels.parquet").unlink()
    shop.move(10)
    spec = shop.run()
    found = nearcast.monitor(spec | {"labels": {"path": "labels.parquet"}}, base=shop.folder).changes
    assert found is not None
    assert [row["figure"] for row in found["figures"]] == ["recall", "overlap", "fill_rate"]
