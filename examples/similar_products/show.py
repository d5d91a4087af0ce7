"""Show five well-known products with their nearest products, by name.

The five are from the five departments with the most sales: the best seller of each, without the 100 best sellers of the
whole shop. Those 100 (bananas, milk, eggs) are in most baskets, so they are near each other under the inner product.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from candidate_files import CandidateTable, Ints, read_candidates, read_products
from rich.console import Console
from rich.table import Table

N_PRODUCTS = 5
N_NEAREST = 5
N_BEST_SELLERS_SET_ASIDE = 100
TABLE_COLUMNS = 100  # fits the longest name


def main() -> None:
    arguments = parse_arguments()
    products = read_products(arguments.data, ["product_id", "name", "department", "purchases"])
    table = read_candidates(arguments.candidates)
    chosen = arguments.product or well_known(products)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(drawn(chosen, table, products), width=min(console.width, TABLE_COLUMNS))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Products and their nearest products, by name.")
    parser.add_argument("candidates", type=Path, help="folder of a snapshot")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="prepare.py's folder")
    parser.add_argument("--product", type=int, action="append", help="show this product id instead; repeatable")
    return parser.parse_args()


def well_known(products: pa.Table) -> list[int]:
    """Return one product id from each of the departments with the most sales."""
    ids, purchases = products["product_id"].to_numpy(), products["purchases"].to_numpy()
    departments = np.asarray(products["department"].to_pylist())
    best_first = np.argsort(-purchases, kind="stable")[N_BEST_SELLERS_SET_ASIDE:]
    first_rows = [best_first[departments[best_first] == name][0] for name in largest(departments, purchases)]
    return [int(ids[row]) for row in first_rows]


def largest(departments: np.ndarray, purchases: Ints) -> list[str]:
    names, rows = np.unique(departments, return_inverse=True)
    totals = np.bincount(rows, weights=purchases)
    return [str(name) for name in names[np.argsort(-totals)[:N_PRODUCTS]]]


def drawn(chosen: list[int], table: CandidateTable, products: pa.Table) -> Table:
    rows = {int(product): row for row, product in enumerate(products["product_id"].to_numpy())}
    names, purchases = products["name"].to_pylist(), products["purchases"].to_pylist()
    grid = Table(title="Products and their nearest products", title_justify="left", expand=True)
    grid.add_column("rank", justify="right")
    grid.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column("purchases", justify="right")
    for product in chosen:
        if product not in rows:
            raise SystemExit(f"product {product} was not sold in the learning weeks; try another id")
        nearest = [int(candidate) for candidate in table.of(product)[:N_NEAREST]]
        for rank, shown in enumerate([product, *nearest]):
            row, style = rows[shown], "" if rank else "bold"
            grid.add_row(str(rank or ""), names[row], f"{purchases[row]:,}", style=style)
        grid.add_section()
    return grid


if __name__ == "__main__":
    main()
