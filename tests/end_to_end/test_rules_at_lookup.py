"""The rules of a generator run again at look-up: on what the request brings, and on the overlay's newer attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.service import running

import nearcast
from nearcast.errors import AuditError, InputError

N = 80
RULES = [
    {"name": "shown-here", "keep": "item.countries has query.country"},
    {"name": "affordable", "keep": "request.limit is null or item.price <= request.limit"},
    {"name": "not-seen", "keep": "not (request.seen has item.id)"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = at.clustered(N, 8, seed=4)
    ids = [f"i{n:02d}" for n in range(N)]
    countries = [["DE", "FR"] if n % 3 else ["FR"] for n in range(N)]
    prices = [float(n % 10) for n in range(N)]
    at.write_rows(tmp_path / "items.parquet", ids, list(vectors), countries=countries, price=prices)
    keys = [f"q{n:02d}" for n in range(20)]
    at.write_rows(tmp_path / "queries.parquet", keys, list(vectors[:20]), country=["DE", "FR"] * 10)
    spec = {"name": "shop", "metric": "l2", "k": 30, "memory": "2GB", "threads": 1, "rules": RULES}
    spec |= {"items": {"path": "items.parquet", "attributes": ["countries", "price"]}}
    spec |= {"queries": {"path": "queries.parquet", "attributes": ["country"]}}
    nearcast.run(spec, base=tmp_path)
    nearcast.publish("shop", out=tmp_path / "nearcast")
    return tmp_path


def price(item: str) -> int:
    return int(item[1:]) % 10


def test_a_request_is_answered_from_the_stored_surplus(folder: Path) -> None:
    with nearcast.open(folder / "nearcast" / "store", "shop") as shop:
        whole = shop.get("q00")
        assert (whole.stored, len(whole), whole.barred) == (30, 30, {})
        some = shop.get("q00", k=5, request={"limit": 4, "seen": list(whole.ids[:2])})
        wanted = [item for item in whole.ids[2:] if price(item) <= 4]
        assert list(some.ids) == wanted[:5]
        assert some.stored == 30
        dear = sum(price(item) > 4 for item in whole.ids)
        assert some.barred["affordable"] == dear
        assert some.returned == 5


def test_what_a_request_says_of_a_query_stands_in_for_its_own(folder: Path) -> None:
    with nearcast.open(folder / "nearcast" / "store", "shop") as shop:
        french = shop.get("q01")  # may hold items that are shown in France alone
        moved = shop.get("q01", request={"country": "DE"})
        only_french = [item for item in french.ids if int(item[1:]) % 3 == 0]
        assert only_french
        assert moved.barred == {"shown-here": len(only_french)}
        assert list(moved.ids) == [item for item in french.ids if item not in only_french]


def test_many_keys_are_judged_as_each_alone(folder: Path) -> None:
    with nearcast.open(folder / "nearcast" / "store", "shop") as shop:
        keys = [f"q{n:02d}" for n in range(20)]
        many = shop.get_many(keys, k=6, request={"limit": 3})
        for key, answer in zip(keys, many, strict=True):
            alone = shop.get(key, k=6, request={"limit": 3})
            assert (list(answer.ids), answer.stored, dict(answer.barred)) == (
                list(alone.ids),
                alone.stored,
                dict(alone.barred),
            )


def test_an_attribute_that_the_overlay_makes_newer_counts_at_once(folder: Path) -> None:
    with (
        nearcast.open(folder / "nearcast" / "store", "shop", refresh_seconds=0.05) as shop,
        nearcast.overlay(folder / "nearcast" / "store", "shop") as overlay,
    ):
        first = next(item for item in shop.get("q00").ids if price(item) < 9)
        overlay.update(first, "price", 9.0)
        shop.refresh()
        limit = price(first)
        answer = shop.get("q00", request={"limit": limit})
        assert first not in answer.ids  # it costs 9 now
        assert answer.barred["affordable"] == sum(price(item) > limit for item in shop.get("q00").ids) + 1


def test_merged_lists_obey_the_rules_too(folder: Path) -> None:
    with nearcast.open(folder / "nearcast" / "store", "shop") as shop:
        merged = shop.merged([("q00", 1.0), ("q02", 1.0)], k=8, request={"limit": 2})
        assert all(price(item) <= 2 for item in merged.ids)
        assert merged.barred["affordable"] > 0


def test_a_request_that_no_rule_asks_for_is_an_error_with_the_way_out(folder: Path) -> None:
    with nearcast.open(folder / "nearcast" / "store", "shop") as shop:
        with pytest.raises(InputError, match="no rule asks for 'limt' of a request; did you mean 'limit'"):
            shop.get("q00", request={"limt": 3})
        with pytest.raises(InputError, match="'limit' is to be a number"):
            shop.get("q00", request={"limit": "cheap"})


def test_a_service_takes_what_rules_may_know(folder: Path) -> None:
    with running(folder / "service", "shop", "--out", str(folder / "nearcast")) as service:

        def asked(**body: Any) -> Any:
            return service.post("/v1/generators/shop/candidates", {"keys": ["q00"], **body})

        whole = asked().json()["answers"][0]
        some = asked(request={"limit": 4}).json()["answers"][0]
        assert (whole["stored"], whole["returned"]) == (30, 30)
        assert some["barred"] == {"affordable": 30 - some["returned"]}
        one = service.get('/v1/generators/shop/candidates/q00?request={"limit":4}').json()
        assert one["candidates"] == some["candidates"]
        refused = asked(request={"limt": 4})
        assert refused.status_code == 422
        assert "limit" in refused.text
        assert service.get("/v1/generators/shop/candidates/q00?request=nonsense").status_code == 422
        text = service.get("/metrics").text
        assert 'nearcast_ineligible_candidates_total{generator="shop",rule="affordable"}' in text
        assert 'nearcast_returned_candidates_count{generator="shop"} 3.0' in text
        assert f'nearcast_returned_candidates_sum{{generator="shop"}} {30.0 + 2 * some["returned"]}' in text
        assert 'nearcast_returned_candidates_bucket{generator="shop",le="20.0"} 2.0' in text


def test_a_table_whose_lists_run_dry_under_its_rules_is_not_published(folder: Path) -> None:
    rules = [{"name": "cheap", "keep": "item.price <= 0"}]
    spec = {"name": "dry", "metric": "l2", "k": 30, "memory": "2GB", "threads": 1, "rules": rules}
    spec |= {"items": {"path": "items.parquet", "attributes": ["price"]}, "measure": {"fill_at": 10}}
    spec |= {"queries": {"path": "queries.parquet"}, "audit": {"min_fill_rate": 0.0}}
    made = nearcast.run(spec, base=folder).snapshot
    assert made.manifest.measures["fill_at_m"] == 0.0  # eight items cost nothing
    with pytest.raises(AuditError, match=r"the share of lists with enough candidates is 0\.00%"):
        nearcast.publish("dry", out=folder / "nearcast")
