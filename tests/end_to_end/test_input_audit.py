"""Bad days are refused by `refresh` before the pointer moves, by name of rule and column; healthy nights are not."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.catalogue import COUNTRIES, DIM, Catalogue, Columns
from tests.end_to_end.shop import fail

import nearcast
from nearcast.errors import AuditError, SpecError

Spoil = Callable[[Columns, Columns], Any]


def cut(table: Columns, keeps: Callable[[int], bool]) -> None:
    """Keep some of the rows."""
    rows = [row for row in range(len(table["id"])) if keeps(row)]
    for name, values in table.items():
        table[name] = [values[row] for row in rows]


def each(table: Columns, name: str, change: Callable[[Any], Any]) -> None:
    """Change every value of a column that is not null."""
    table[name] = [None if value is None else change(value) for value in table[name]]


def rotate(table: Columns) -> None:
    """Turn all vectors, as another model does."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    table["vector"] = list(np.array(table["vector"]) @ rotation)


def rotate_quarter(table: Columns) -> None:
    """Turn every fourth vector."""
    turned = dict(table)
    rotate(turned)
    table["vector"] = [turned["vector"][row] if row % 4 == 0 else v for row, v in enumerate(table["vector"])]


def of_germany(items: Columns, factor: float) -> None:
    """Write the prices of a third of the items in another currency."""
    third = [number % 3 == 0 for number in range(len(items["id"]))]
    items["price"] = [price * factor if there else price for price, there in zip(items["price"], third, strict=True)]


def twice(items: Columns) -> None:
    for name, values in items.items():
        items[name] = values + ([f"{value}-b" for value in values] if name == "id" else values)


FIVE_DAYS: dict[str, tuple[Spoil, str, str]] = {
    "half of the items missing": (lambda i, q: cut(i, lambda row: row % 2 == 0), "items", "are lost"),
    "prices divided by 100": (lambda i, q: each(i, "price", lambda v: v / 100), "distribution", "price of the items"),
    "an attribute all null": (lambda i, q: each(q, "bought", lambda v: None), "empty_values", "bought of the queries"),
    "an attribute all null, without a type": (
        lambda i, q: i.update(countries=pa.nulls(len(i["id"]))),
        "empty_values",
        "countries of the items: null or empty in 0.00% -> 100.00%",
    ),
    "every item in every country": (
        lambda i, q: each(i, "countries", lambda v: list(COUNTRIES)),
        "pairs_kept",
        "rule sold-there",
    ),
    "rotated vectors": (lambda i, q: rotate(i), "vectors", "vectors of the items"),
}
MORE_DAYS: dict[str, tuple[Spoil, str, str]] = {
    "a quarter of the items missing": (lambda i, q: cut(i, lambda row: row % 4 > 0), "items", "are lost"),
    "half of the queries missing": (lambda i, q: cut(q, lambda row: row % 2 == 0), "keys", "are lost"),
    "prices in cents": (lambda i, q: each(i, "cents", lambda v: 100 * v), "distribution", "cents of the items"),
    "zlotys in one country": (lambda i, q: of_germany(i, 4.3), "changed_values", "price of the items"),
    "yen in one country": (lambda i, q: of_germany(i, 160), "distribution", "price of the items"),
    "nothing bought": (lambda i, q: each(q, "bought", lambda v: []), "empty_values", "bought of the queries"),
    "nothing bought, without a type": (
        lambda i, q: q.update(bought=pa.array([[]] * len(q["id"]))),
        "empty_values",
        "bought of the queries",
    ),
    "prices without a type": (lambda i, q: i.update(price=pa.nulls(len(i["id"]))), "pairs_kept", "rule affordable"),
    "flags without a type": (lambda i, q: i.update(active=pa.nulls(len(i["id"]))), "pairs_kept", "rule active"),
    "infinite prices": (lambda i, q: each(i, "price", lambda v: float("inf")), "distribution", "price of the items"),
    "ratings all null": (lambda i, q: each(i, "rating", lambda v: None), "empty_values", "rating of the items"),
    "countries in lower case, on both sides": (
        lambda i, q: (each(i, "countries", lambda v: [w.lower() for w in v]), each(q, "country", str.lower)),
        "changed_values",
        "country of the queries",
    ),
    "countries of the queries in lower case": (
        lambda i, q: each(q, "country", str.lower),
        "distribution",
        "country of the queries",
    ),
    "categories emptied": (lambda i, q: each(i, "category", lambda v: ""), "empty_values", "category of the items"),
    "titles emptied": (lambda i, q: each(i, "title", lambda v: ""), "empty_values", "title of the items"),
    "lists emptied": (lambda i, q: each(i, "countries", lambda v: []), "empty_values", "countries of the items"),
    "a flag turned round": (lambda i, q: each(i, "active", lambda v: not v), "distribution", "active of the items"),
    "a flag of half of the items turned round": (
        lambda i, q: each(i, "gift", lambda v: not v),
        "changed_values",
        "gift of the items",
    ),
    "ids made anew": (lambda i, q: each(i, "id", lambda v: f"x{v}"), "items_kept", "0.00% are in this snapshot too"),
    "a third of the ids made anew": (
        lambda i, q: i.update(id=[f"x{name}" if row % 3 == 0 else name for row, name in enumerate(i["id"])]),
        "items_kept",
        "are in this snapshot too",
    ),
    "a quarter of the vectors of another model": (lambda i, q: rotate_quarter(i), "vectors", "vectors of the items"),
    "prices null for a third": (
        lambda i, q: i.update(price=[None if row % 3 == 0 else p for row, p in enumerate(i["price"])]),
        "empty_values",
        "price of the items",
    ),
    "another model of the queries": (lambda i, q: rotate(q), "vectors", "vectors of the queries"),
    "another model of both": (lambda i, q: (rotate(i), rotate(q)), "vectors", "vectors of the items"),
    "ids and vectors shifted": (
        lambda i, q: i.update(vector=[*i["vector"][1:], i["vector"][0]]),
        "vectors",
        "vectors of the items",
    ),
    "all rows twice, with other ids": (lambda i, q: twice(i), "items", "more, and at most"),
    "stars as texts": (lambda i, q: each(i, "stars", str), "types", "stars of the items: int64 -> string"),
    "dates of 1970": (
        lambda i, q: each(i, "updated_at", lambda v: datetime.date(1970, 1, 1)),
        "distribution",
        "updated_at of the items",
    ),
    "counters at zero": (lambda i, q: each(i, "sold", lambda v: 0), "distribution", "sold of the items"),
    "budgets divided by 100": (
        lambda i, q: each(q, "budget", lambda v: v / 100),
        "pairs_kept",
        "rule affordable",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A shop after its first two nights. Look, do not write."""
    shop = Catalogue(tmp_path_factory.mktemp("shop"))
    for _ in range(2):
        shop.write()
        assert shop.refresh() == {}
        shop.pass_a_day()
    return shop


@pytest.fixture
def shop(made: Catalogue, tmp_path: Path) -> Iterator[Catalogue]:
    """A copy to write in, of which version 2 is served."""
    folder = made.folder
    shutil.copytree(folder, tmp_path / "shop")
    made.folder = tmp_path / "shop"
    yield made
    made.folder = folder


@pytest.mark.parametrize("day", FIVE_DAYS)
def test_a_bad_day_is_refused_by_name(made: Catalogue, day: str) -> None:
    refused_by_name(made, *FIVE_DAYS[day])


@pytest.mark.slow
@pytest.mark.parametrize("day", MORE_DAYS)
def test_another_bad_day_is_refused_by_name(made: Catalogue, day: str) -> None:
    refused_by_name(made, *MORE_DAYS[day])


def refused_by_name(made: Catalogue, spoil: Spoil, rule: str, words: str) -> None:
    """A refused night leaves what is served as it is, so all of them may be tried on one shop."""
    made.write(spoil)
    refused = made.refresh()
    assert rule in refused, refused
    assert words in refused[rule]
    assert made.served() == 2


def test_the_command_exits_with_10_and_an_accepted_rule_is_kept_with_the_version(shop: Catalogue) -> None:
    shop.write(FIVE_DAYS["an attribute all null"][0])
    said = fail("refresh", "shop.toml", "--quiet", code=10, cwd=shop.folder)
    assert "empty_values: bought of the queries: null or empty in " in said
    assert shop.served() == 2
    refused = shop.refresh()  # again: nothing is made anew, and it is refused again
    assert "empty_values" in refused
    nearcast.publish(shop.folder / "shop.toml", accept=dict.fromkeys(refused, "purchases are no longer exported"))
    listed = nearcast.published("shop", out=shop.folder / "nearcast")
    assert "purchases are no longer exported" in str(listed)
    shop.write()
    assert "bought" not in " ".join(shop.refresh().values())  # filled again: no rise of what is empty


def test_scaled_vectors_are_refused_under_inner_product(tmp_path: Path) -> None:
    shop = Catalogue(tmp_path, metric="inner_product")
    shop.write()
    shop.refresh()
    shop.write(lambda items, _: each(items, "vector", lambda v: 10 * v))
    assert "median length 1 -> 10, a factor of 10" in shop.refresh()["vectors"]


def test_a_join_of_items_with_themselves_is_compared_without_queries(tmp_path: Path) -> None:
    shop = Catalogue(tmp_path, more={"queries": None, "exclude_self": True, "rules": []})
    shop.write()
    assert shop.refresh() == {}
    shop.pass_a_day()
    shop.write()
    assert shop.refresh() == {}
    shop.write(FIVE_DAYS["prices divided by 100"][0])
    assert "price of the items: median" in shop.refresh()["distribution"]


def test_tables_in_memory_are_compared_too(shop: Catalogue) -> None:
    import pyarrow.parquet as pq

    shop.write(FIVE_DAYS["prices divided by 100"][0])
    items = pq.read_table(shop.folder / "items.parquet")
    queries = pq.read_table(shop.folder / "queries.parquet")
    done = nearcast.run(shop.folder / "shop.toml", items=items, queries=queries)
    assert done.snapshot.manifest.profile["items"]["rows"] == len(items)
    with pytest.raises(AuditError, match="distribution: price of the items: median"):
        nearcast.publish(shop.folder / "shop.toml")


def test_a_rollback_is_not_hindered_and_the_next_night_is_compared_with_where_it_went(shop: Catalogue) -> None:
    shop.write(FIVE_DAYS["prices divided by 100"][0])
    refused = shop.refresh()
    accept = dict.fromkeys(refused, "a mistake")
    nearcast.publish(shop.folder / "shop.toml", accept=accept)
    bad = shop.served()
    assert bad > 2
    nearcast.roll_back("shop", out=shop.folder / "nearcast")
    assert shop.served() == 2
    shop.write(FIVE_DAYS["half of the items missing"][0])
    assert "items" in shop.refresh()
    shop.write()
    assert shop.refresh() == {}  # compared with what is served, not with the bad nights
    assert shop.served() == bad + 2


def test_a_version_without_a_profile_is_compared_by_what_the_store_holds(shop: Catalogue) -> None:
    """As a version that an older nearcast has published: its facts and its manifest have no profile."""
    for path in (shop.folder / "nearcast").rglob("manifest.json"):
        facts = json.loads(path.read_text())
        facts.pop("profile", None)
        facts.get("facts", {}).pop("profile", None)
        path.write_text(json.dumps(facts))
    shop.write(FIVE_DAYS["half of the items missing"][0])
    refused = shop.refresh()
    assert {"items", "items_kept"} <= set(refused)
    shop.write()
    assert shop.refresh() == {}


def nights(shop: Catalogue, count: int) -> dict[int, dict[str, str]]:
    """Refresh so many healthy nights; what was refused, by night."""
    refused = {}
    for night in range(count):
        shop.write()
        found = shop.refresh()
        if found:
            refused[night] = found
        shop.pass_a_day()
    return refused


def test_three_healthy_nights_of_a_small_catalogue_are_published(tmp_path: Path) -> None:
    assert nights(Catalogue(tmp_path, seed=11), 4) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_thirty_healthy_nights_of_a_small_catalogue_are_published(tmp_path: Path, seed: int) -> None:
    assert nights(Catalogue(tmp_path, seed=seed), 31) == {}


@pytest.mark.slow
def test_thirty_healthy_nights_of_a_larger_catalogue_are_published(tmp_path: Path) -> None:
    assert nights(Catalogue(tmp_path, n_items=2_000, n_queries=1_000), 31) == {}


def test_the_profile_has_the_same_bytes_on_any_threads_and_memory(shop: Catalogue) -> None:
    profiles = []
    for threads, memory in ((1, "500MB"), (2, "2GB")):
        spec = shop.spec() | {"threads": threads, "memory": memory, "out": f"out-{threads}"}
        done = nearcast.run(nearcast.GeneratorSpec.model_validate(spec), base=shop.folder)
        profiles.append(json.dumps(done.snapshot.manifest.profile))
    assert profiles[0] == profiles[1]


def test_a_column_that_is_to_be_skipped_is_a_column(shop: Catalogue) -> None:
    spec = shop.spec() | {"audit": {"skip_columns": ["prize"]}}
    with pytest.raises(SpecError, match="skip_columns names 'prize'; did you mean 'price'"):
        nearcast.run(spec, base=shop.folder)
