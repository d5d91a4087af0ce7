"""Request the candidates of a product from the service, and print their names.

Uses one URL of the service and no nearcast code.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from candidate_files import read_products
from rich.console import Console

GENERATOR = "similar-products"
PATIENCE_SECONDS = 10.0  # limit for the service to follow a new snapshot; usually a fraction of a second


def main() -> None:
    arguments = parse_arguments()
    answer = ask(arguments.service, arguments.product, arguments.first)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_expected(answer, arguments) and time.monotonic() < deadline:
        time.sleep(0.05)
        answer = ask(arguments.service, arguments.product, arguments.first)
    if not is_expected(answer, arguments):
        sys.exit(f"the service did not follow: it answers from {answer['snapshot']}, {ids_of(answer)}")
    if arguments.best:
        print(answer["candidates"][0]["id"])
    else:
        show(answer, name_of(arguments.data, arguments.product))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Print the candidates of a product, over HTTP.")
    parser.add_argument("service", help="URL, for example http://127.0.0.1:8080")
    parser.add_argument("product", type=int)
    parser.add_argument("--first", type=int, default=5, help="number of candidates (default 5)")
    parser.add_argument("--best", action="store_true", help="print only the id of the best candidate")
    parser.add_argument("--snapshot", help="wait until the service answers from this snapshot, for example 000002")
    parser.add_argument("--without", type=int, help="wait until this product is not in the answer")
    parser.add_argument("--with", dest="having", type=int, help="wait until this product is in the answer")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="prepare.py's folder")
    return parser.parse_args()


def ask(service: str, product: int, first: int) -> dict[str, Any]:
    """Return the answer for one key, with the column `name` of the candidates."""
    url = f"{service}/v1/generators/{GENERATOR}/candidates/{product}?k={first}&fields=name"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.URLError as error:
        sys.exit(f"{url} is not answered: {error}")


def is_expected(answer: dict[str, Any], arguments: argparse.Namespace) -> bool:
    is_there = arguments.having is None or arguments.having in ids_of(answer)
    is_served = answer["snapshot"] == (arguments.snapshot or answer["snapshot"])
    return is_served and is_there and arguments.without not in ids_of(answer)


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [candidate["id"] for candidate in answer["candidates"]]


def name_of(data: Path, product: int) -> str:
    products = read_products(data, ["product_id", "name"])
    names = dict(zip(products["product_id"].to_pylist(), products["name"].to_pylist(), strict=True))
    return names.get(product, f"product {product}")


def show(answer: dict[str, Any], name: str) -> None:
    """Print the product and its candidates, best first, and the snapshot that they are from."""
    console = Console(width=100, highlight=False)
    lines = [f"{candidate['id']:>9}  {candidate['name']}" for candidate in answer["candidates"]]
    removed = f", {answer['removed']} removed" if answer["removed"] else ""
    console.print(f"nearest to [bold]{name}[/] (snapshot {answer['snapshot']}{removed})", soft_wrap=True)
    console.print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
