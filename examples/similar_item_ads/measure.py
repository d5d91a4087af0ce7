"""Measure similar-item ads: candidates and ads left after each stage, and the hit rates of the shown ads.

Every request goes through the same expansion table with several candidate sources: tables of several sizes, with
several k; an online index; and the most bought products for all households. Two measures:

    redemptions   the share of the coupons redeemed later that were shown
    engagement    the share of the slots with an ad for a product that the household bought in the held-out weeks;
                  an empty slot is a miss

Intervals are by resampling households, with the same draws for every source. Writes ways.json and funnel.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import nearcast
from nearcast.figures import COLOURS, new_figure, save
from nearcast.join.context import prepare
from nearcast.join.listener import Listener
from nearcast.replaying.candidate_sources import CandidateSource, RetrievedLists
from nearcast.replaying.replay import open_lookup_source, open_online_source
from nearcast.replaying.request_funnel import Funnel, FunnelResult, run_funnel
from nearcast.replaying.request_log import LoggedRequest, read_log
from nearcast.spec import GeneratorSpec
from nearcast.stores import open_store
from nearcast.types import Metric

HERE = Path(__file__).parent
SPECS = ("generator-1000.toml", "generator-5000.toml", "generator.toml")
LENGTHS = (10, 50, 200)
SLOTS = 20  # ads per request: k of ads.toml
ONLINE_K = 50  # candidates of an online search
RESAMPLES = 2000
SEED = 45
POPULAR, ONLINE = "popularity", "online, k 50"


@dataclass(frozen=True, slots=True)
class MostBought:
    """Candidate source that returns all products with ads, most bought first, for every request."""

    lists: RetrievedLists
    name: str = POPULAR
    metric: Metric = Metric.INNER_PRODUCT

    def candidates(self, keys: Sequence[Any], k: int | None) -> RetrievedLists:  # noqa: ARG002
        """Return the same lists for all keys."""
        return self.lists


@dataclass(frozen=True, slots=True)
class Measured:
    """The measures of a candidate source."""

    name: str
    items: int  # of its index
    k: int  # candidates of a key
    passed: FunnelResult
    redeemed: np.ndarray  # (requests, 2) coupons found, and redeemed
    engaged: np.ndarray  # (requests, 2) shown ads whose product was bought, and slots


def main() -> None:
    arguments = parse_arguments()
    requests = read_log(HERE / "data" / "requests.parquet", sample=arguments.requests)
    measured = measure(requests, [nearcast.load_spec(HERE / file) for file in SPECS], LENGTHS, HERE / "data")
    found = results(measured, len(requests))
    (HERE / "nearcast" / "ways.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    draw(found, arguments.picture)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure similar-item ads.")
    parser.add_argument("--requests", type=int, help="number of requests to sample (default: all)")
    parser.add_argument("--picture", type=Path, default=HERE / "nearcast" / "funnel.svg")
    return parser.parse_args()


# Measuring.


def measure(
    requests: list[LoggedRequest], specs: list[GeneratorSpec], lengths: Sequence[int], data: Path
) -> list[Measured]:
    """Measure every candidate source. specs: the generators of the look-ups; the last one has all products."""
    found = []
    listener = Listener()
    with ExitStack() as held:
        store = open_store(f"lmdb:{HERE / specs[-1].out / 'store'}")
        held.callback(store.close)
        ads = held.enter_context(nearcast.open_expansion(store, "coupons"))
        for spec in specs:
            table = held.enter_context(open_lookup_source(prepare(spec, HERE, listener), store, None))
            items = table.view.version.facts.items
            for k in lengths:
                passed = run_funnel(table, requests, Funnel(ads, candidates_per_key=k))
                found.append(measured(f"offline, {items:,} items, k {k}", items, k, passed, requests))
        online = open_online_source(prepare(specs[-1], HERE, listener), recall=0.95, k=ONLINE_K)
        passed = run_funnel(online, requests, Funnel(ads))
        found.append(measured(ONLINE, online.index.n_items, ONLINE_K, passed, requests))
        passed = run_funnel(most_bought(data), requests, Funnel(ads))
        found.append(measured(POPULAR, 0, 0, passed, requests))
    return found


def most_bought(data: Path) -> CandidateSource:
    """Return a source of the products with ads, ordered by the number of purchases."""
    linked = np.unique(pq.read_table(data / "links.parquet")["product_id"].to_numpy())
    products = pq.read_table(data / "products.parquet", columns=["product_id", "purchases"])
    ids, counts = products["product_id"].to_numpy(), products["purchases"].to_numpy().astype(np.float32)
    kept = np.isin(ids, linked)
    order = np.argsort(-counts[kept], kind="stable")
    ids, counts = ids[kept][order], counts[kept][order]
    return MostBought(RetrievedLists(np.array([0, len(ids)]), pa.array(ids), counts, 1))


def measured(name: str, items: int, k: int, passed: FunnelResult, requests: list[LoggedRequest]) -> Measured:
    redeemed = [
        (len(logged.engaged_ads & set(ads)), len(logged.engaged_ads))
        for logged, ads in zip(requests, passed.returned_ads, strict=True)
    ]
    engaged = [
        (sum(item in logged.engaged for item in items), SLOTS)
        for logged, items in zip(requests, passed.items, strict=True)
    ]
    return Measured(name, items, k, passed, np.array(redeemed, float), np.array(engaged, float))


# Rates and their intervals.


def results(ways: list[Measured], n: int) -> dict[str, Any]:
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    popular, online = (next(way for way in ways if way.name == name) for name in (POPULAR, ONLINE))
    return {
        "requests": n,
        "redemptions": int(popular.redeemed[:, 1].sum()),
        "ways": [row(way, popular, online, draws) for way in ways],
    }


def row(way: Measured, popular: Measured, online: Measured, draws: np.ndarray) -> dict[str, Any]:
    passed = way.passed
    return {
        "name": way.name,
        "items": way.items,
        "k": way.k,
        "candidates": dict(zip(passed.stages, passed.candidates.mean(axis=0).tolist(), strict=True)),
        "ads": dict(zip(passed.stages, passed.ads.mean(axis=0).tolist(), strict=True)),
        "too_few": float(np.mean(passed.lengths < SLOTS)),
        "empty": float(np.mean(passed.lengths == 0)),
        "cpu_ms_per_request": passed.cpu_seconds / len(passed.lengths) * 1000,
        "redemptions": rate(way.redeemed, draws),
        "engagement": rate(way.engaged, draws),
        "redemptions_over_popularity": estimate_lead(way.redeemed, popular.redeemed, draws),
        "engagement_over_popularity": estimate_lead(way.engaged, popular.engaged, draws),
        "redemptions_over_online": estimate_lead(way.redeemed, online.redeemed, draws),
        "engagement_over_online": estimate_lead(way.engaged, online.engaged, draws),
    }


def share(pairs: np.ndarray, draws: np.ndarray) -> np.ndarray:
    sums = draws @ pairs
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def rate(pairs: np.ndarray, draws: np.ndarray) -> list[float]:
    """Return the share and the ends of its 95% interval."""
    value = share(pairs, np.ones((1, len(pairs))))[0]
    return [float(value), *np.quantile(share(pairs, draws), [0.025, 0.975]).tolist()]


def estimate_lead(one: np.ndarray, other: np.ndarray, draws: np.ndarray) -> list[float]:
    """Return the difference of two shares and the ends of its 95% interval."""
    everybody = np.ones((1, len(one)))
    value = share(one, everybody)[0] - share(other, everybody)[0]
    ends = np.quantile(share(one, draws) - share(other, draws), [0.025, 0.975])
    return [float(value), *ends.tolist()]


# Showing.


def show(found: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(stages_table(found))
    for what in ("redemptions", "engagement"):
        console.print(rates_table(found, what))
    price = ", ".join(f"{way['name']}: {way['cpu_ms_per_request']:.1f} ms" for way in found["ways"])
    console.print(f"processor time of a request: {price}", style="dim", highlight=False)


def stages_table(found: dict[str, Any]) -> Table:
    title = f"What a request has left: candidates (ads); {found['requests']:,} requests"
    table = Table(title=title, title_justify="left")
    for name in ("", "similar", "with ads", "in flight", "targeted", "in budget", "capped", "shown", "too few"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for way in found["ways"]:
        cells = [f"{way['candidates'][stage]:.0f} ({way['ads'][stage]:.0f})" for stage in list(way["ads"])[1:-1]]
        first, last = way["candidates"]["candidates"], way["ads"]["returned"]
        table.add_row(way["name"], f"{first:.0f}", *cells, f"{last:.1f}", f"{way['too_few']:.1%}")
    return table


def rates_table(found: dict[str, Any], what: str) -> Table:
    of = f"; {found['redemptions']:,} coupons were redeemed" if what == "redemptions" else ""
    table = Table(title=f"Hit rate, {what}{of}", title_justify="left")
    for name in ("", "hit rate", "points over popularity", "points over online"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for way in found["ways"]:
        value, low, high = way[what]
        popular = "" if way["name"] == POPULAR else points(way[f"{what}_over_popularity"])
        online = "" if way["name"] in (POPULAR, ONLINE) else points(way[f"{what}_over_online"])
        table.add_row(way["name"], f"{value:.1%} ({low:.1%} to {high:.1%})", popular, online)
    return table


def points(lead: list[float]) -> str:
    return f"{100 * lead[0]:+.1f} ({100 * lead[1]:+.1f} to {100 * lead[2]:+.1f})"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the funnel of the largest table and of online search, and requests with too few ads by k and index size."""
    figure = new_figure(9.5, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    offline = [way for way in found["ways"] if way["name"].startswith("offline")]
    online = next(way for way in found["ways"] if way["name"] == ONLINE)
    shown = [offline[-1], offline[-2], online]
    names = list(online["candidates"])
    for number, (way, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        places = np.arange(len(names)) + 0.27 * (number - 1)
        values = [way["candidates"][name] for name in names[:-1]] + [way["ads"]["returned"]]
        left.barh(places, np.maximum(values, 0.1), 0.25, color=colour, label=way["name"])
        for place, value in zip(places, values, strict=True):
            left.text(max(value, 0.1), place, f" {value:.0f}", va="center", fontsize=6.5)
    titles = ["similar items", "with ads", "in flight", "targeted", "in budget", "after caps", "ads shown"]
    left.set_yticks(range(len(names)), titles)
    left.set_xscale("log")
    left.invert_yaxis()
    left.set_title("similar items that a request has left", loc="left", fontsize=9)
    left.legend(fontsize=7, frameon=False, loc="lower right")
    for colour, items in zip(COLOURS, sorted({way["items"] for way in offline}), strict=False):
        rows = [way for way in offline if way["items"] == items]
        right.plot(
            [w["k"] for w in rows],
            [100 * w["too_few"] for w in rows],
            "o-",
            ms=4,
            color=colour,
            label=f"{items:,} items",
        )
    right.set_xscale("log")
    right.set_xticks(LENGTHS, [str(k) for k in LENGTHS])
    right.minorticks_off()
    right.set_xlabel("k: similar items of each key", fontsize=8)
    right.set_title("requests with fewer than 20 ads, %", loc="left", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
