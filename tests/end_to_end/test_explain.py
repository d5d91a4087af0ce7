"""`explain` names the true cause, and `diff` counts by it: each cause is planted, and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import succeed as command

import nearcast
from nearcast.errors import NotFoundError

DIM, N = 8, 600
RULE = {"name": "same-kind", "keep": "item.kind == query.kind"}


class Shop:
    """Items with themselves, in kinds, by makers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vectors = at.clustered(N, DIM, seed=5)
        self.ids = [f"i{n:04d}" for n in range(N)]
        self.kinds = [("a", "b")[n % 2] for n in range(N)]
        self.makers = [f"m{n % 7}" for n in range(N)]

    def run(self, **settings: Any) -> nearcast.Snapshot:
        at.write_rows(self.folder / "items.parquet", self.ids, list(self.vectors), kind=self.kinds, maker=self.makers)
        spec = {"name": "shop", "metric": "l2", "k": 5, "memory": "2GB", "threads": 1, "exclude_self": True}
        spec |= {"items": {"path": "items.parquet", "attributes": ["kind", "maker"]}}
        return nearcast.run(spec | settings, base=self.folder).snapshot

    def explain(self, query: int, item: int) -> Any:
        return nearcast.explain("shop", self.ids[query], self.ids[item], out=self.folder / "nearcast")

    def order(self, query: int) -> list[int]:
        distances = ((self.vectors.astype(np.float64) - self.vectors[query].astype(np.float64)) ** 2).sum(axis=1)
        return [int(n) for n in np.argsort(distances, kind="stable") if n != query]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_candidate_is_listed_with_its_rank_and_score(shop: Shop) -> None:
    shop.run()
    found = shop.explain(3, shop.order(3)[1])
    assert (found.cause, found.listed_rank, found.rank) == ("listed", 2, 2)
    assert found.score >= found.last_score


def test_an_item_that_k_others_outrank_is_told_its_rank(shop: Shop) -> None:
    shop.run()
    found = shop.explain(3, shop.order(3)[41])
    assert (found.cause, found.rank) == ("nearer", 42)
    assert "5 others come first" in found.words


def test_an_item_that_a_rule_bars_is_told_the_rule_and_both_values(shop: Shop) -> None:
    shop.run(rules=[RULE])
    other = next(n for n in shop.order(3) if shop.kinds[n] != shop.kinds[3])
    found = shop.explain(3, other)
    assert (found.cause, found.rule, found.rank) == ("rule", "same-kind", None)
    assert "query.kind is 'b'" in found.words
    assert "item.kind is 'a'" in found.words


def test_the_better_ones_that_a_cap_left_out_are_named_with_the_cause(shop: Shop) -> None:
    shop.run(caps=[{"by": "maker", "max_per_list": 1}])
    order = shop.order(3)
    taken: list[int] = []
    for n in order:
        if shop.makers[n] not in {shop.makers[m] for m in taken}:
            taken.append(n)
    last = taken[4]
    missing = [n for n in order[: order.index(last)] if n not in taken]
    assert missing
    found = shop.explain(3, last)
    assert [one.item for one in found.left_out] == [shop.ids[n] for n in missing[:5]]
    assert {str(one.cause) for one in found.left_out} == {"capped"}
    assert [one.rank for one in found.left_out] == [order.index(n) + 1 for n in missing[:5]]
    assert f"{len(missing)} better one" in found.words
    assert all(repr(shop.ids[n]) in found.words for n in missing[:5])
    assert json.loads(json.dumps(found.as_dict()))["left_out"][0]["cause"] == "capped"


def test_the_better_ones_that_the_join_missed_are_named_with_the_cause(shop: Shop) -> None:
    snapshot = shop.run(engine="dense", engine_settings={"cells": 60, "reach": 1}, recall=0.01)
    for query in range(N):
        listed = list(snapshot.lookup(shop.ids[query]).ids)
        missed = [n for n in shop.order(query)[:5] if shop.ids[n] not in listed]
        if missed and len(listed) == 5:
            found = shop.explain(query, shop.ids.index(listed[-1]))
            assert {str(one.cause) for one in found.left_out} == {"not_probed"}
            assert shop.ids[missed[0]] == found.left_out[0].item
            return
    pytest.fail("no list has missed anything")


def test_an_item_whose_group_is_full_is_told_who_fills_it(shop: Shop) -> None:
    shop.run(caps=[{"by": "maker", "max_per_list": 1}])
    order = shop.order(3)
    second = next(n for place, n in enumerate(order) if shop.makers[n] in {shop.makers[m] for m in order[:place]})
    first = next(n for n in order if shop.makers[n] == shop.makers[second])
    found = shop.explain(3, second)
    assert (found.cause, found.instead) == ("capped", (shop.ids[first],))


def test_an_item_that_scores_too_little_is_told_so(shop: Shop) -> None:
    shop.run(min_score=-1e-6)
    assert shop.explain(3, shop.order(3)[0]).cause == "below_min_score"


def test_the_query_itself_is_told_so(shop: Shop) -> None:
    shop.run()
    assert shop.explain(3, 3).cause == "itself"


def test_an_item_in_a_cell_that_was_not_probed_is_told_so(shop: Shop) -> None:
    snapshot = shop.run(engine="dense", engine_settings={"cells": 25, "reach": -300}, recall=0.05)
    listed = {n: set(snapshot.lookup(shop.ids[n]).ids) for n in range(0, N, 7)}
    missed = [(n, m) for n in listed for m in shop.order(n)[:5] if shop.ids[m] not in listed[n]]
    assert missed
    for query, item in missed[:5]:
        found = shop.explain(query, item)
        assert found.cause == "not_probed"
        assert "reach -300" in found.words


def test_a_query_or_an_item_that_is_not_there_is_an_error(shop: Shop) -> None:
    shop.run()
    with pytest.raises(NotFoundError, match="item 'nobody'"):
        nearcast.explain("shop", "i0001", "nobody", out=shop.folder / "nearcast")
    with pytest.raises(NotFoundError, match="no query 'nobody'"):
        nearcast.explain("shop", "nobody", "i0001", out=shop.folder / "nearcast")


def test_the_command_explains(shop: Shop) -> None:
    shop.run()
    item = shop.ids[shop.order(3)[41]]
    shown = command("explain", "shop", "i0003", item, cwd=shop.folder)
    assert "nearer: 5 others come first" in shown.stdout
    assert json.loads(command("explain", "shop", "i0003", item, "--json", cwd=shop.folder).stdout)["rank"] == 42


def causes(changes: Any) -> dict[str, int]:
    return {change.cause: change.candidates for change in changes}


def test_items_that_are_gone_and_new_are_the_cause_of_what_went_and_came(shop: Shop) -> None:
    shop.run()
    shop.vectors, shop.ids = shop.vectors[:-60], shop.ids[:-60]
    shop.kinds, shop.makers = shop.kinds[:-60], shop.makers[:-60]
    shop.run()
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    assert set(causes(found.went)) == {"item"}
    assert set(causes(found.came)) == {"crowded"}
    assert found.queries == N - 60
    back = nearcast.diff("shop", 2, 1, out=shop.folder / "nearcast")
    assert set(causes(back.came)) == {"item"}
    assert set(causes(back.went)) == {"crowded"}


def test_a_rule_that_was_added_is_the_cause_of_what_went(shop: Shop) -> None:
    shop.run()
    shop.run(rules=[RULE])
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    assert set(causes(found.went)) == {"rule same-kind"}
    assert set(causes(found.came)) == {"crowded"}
    assert any("rules was" in words for words in found.settings)


def test_an_attribute_that_changed_shows_as_the_rule_that_it_offends(shop: Shop) -> None:
    shop.run(rules=[RULE])
    changed = [shop.ids[n] for n in range(0, N, 10)]
    shop.kinds = [("b" if kind == "a" else "a") if n % 10 == 0 else kind for n, kind in enumerate(shop.kinds)]
    shop.run(rules=[RULE])
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    went = causes(found.went)
    assert went["rule same-kind"] > 0
    example = next(change for change in found.went if change.cause == "rule same-kind").examples[0]
    assert example[1] in changed or example[0] in changed


def test_vectors_that_moved_are_the_cause_of_what_their_scores_changed(shop: Shop) -> None:
    shop.run()
    shop.vectors = shop.vectors.copy()
    shop.vectors[::20] += 3.0
    shop.run()
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    assert causes(found.went)["rescored"] > 0
    assert "item" not in causes(found.went)


def test_a_cap_that_was_added_is_the_cause_of_what_went(shop: Shop) -> None:
    shop.run()
    shop.run(caps=[{"by": "maker", "max_per_list": 1}])
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    assert set(causes(found.went)) == {"capped"}
    assert set(causes(found.came)) == {"crowded"}


def test_a_join_of_less_effort_is_the_cause_of_what_it_misses(shop: Shop) -> None:
    shop.run()
    shop.run(engine="dense", engine_settings={"cells": 60, "reach": 1}, recall=0.01)
    found = nearcast.diff("shop", out=shop.folder / "nearcast")
    assert set(causes(found.went)) <= {"missed", "unclear"}
    assert causes(found.went)["missed"] > causes(found.went).get("unclear", 0)


def test_nothing_changed_is_said_in_a_line(shop: Shop) -> None:
    shop.run()
    nearcast.run(
        {
            "name": "shop",
            "metric": "l2",
            "k": 5,
            "memory": "2GB",
            "threads": 1,
            "exclude_self": True,
            "items": {"path": "items.parquet", "attributes": ["kind", "maker"]},
        },
        base=shop.folder,
        again=True,
    )
    shown = command("diff", "shop", cwd=shop.folder)
    assert "100.00% of the candidates are the same; 100.00% of the lists are unchanged" in shown.stdout


def test_the_command_tells_causes_in_words(shop: Shop) -> None:
    shop.run()
    shop.run(rules=[RULE])
    shown = command("diff", "shop", "1", "2", cwd=shop.folder)
    assert "rule same-kind filters it now" in shown.stdout
