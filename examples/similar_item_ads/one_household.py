"""Print the last purchases of a household and its ads. --pause: measure the time of an overlay update."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import nearcast

HERE = Path(__file__).parent
STORE = HERE / "nearcast" / "store"
SHOWN = 6
IN_FORCE_SECONDS = 1.0

console = Console(width=118)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--household", type=int, help="household of the request (default: the first one with the most campaigns)"
    )
    parser.add_argument(
        "--pause", action="store_true", help="pause the first ad, and set the budget of the second to spent"
    )
    arguments = parser.parse_args()
    requests = pq.read_table(HERE / "data" / "requests.parquet")
    household = arguments.household if arguments.household is not None else busiest(requests)
    row = requests.filter(pc.equal(requests["household"], household)).to_pylist()[0]
    with nearcast.open(STORE, "similar-items") as similar, nearcast.open_expansion(STORE, "coupons") as coupons:

        def answer() -> object:
            return coupons.ads(
                similar,
                row["key"],
                request={"campaigns": row["campaigns"]},
                fields=["advertiser", "bid", "ends"],
                now=row["time"],
            )

        first = answer()
        if not arguments.pause:
            show(row, first, similar)
            return
        pause(first.ads[0], first.ads[1])
        try:
            started = time.monotonic()
            while set(first.ads[:2]) & set(answer().ads):
                if time.monotonic() > started + 10:
                    raise SystemExit("the overlay was not applied after ten seconds")
                time.sleep(0.02)
            took = time.monotonic() - started
            console.print(f"{first.ads[0]} is paused and {first.ads[1]} has no budget left: gone after {took:.2f} s")
        finally:
            restore(first.ads[0], first.ads[1])


def busiest(requests) -> int:
    """Return the household with the most campaigns; of equal counts, the first."""
    counts = pc.list_value_length(requests["campaigns"]).to_numpy()
    return requests["household"][int(counts.argmax())].as_py()


def pause(paused: str, spent: str) -> None:
    with nearcast.overlay(STORE, "coupons") as overlay:
        overlay.remove([paused], note="paused by its advertiser")
        overlay.update(spent, "spent", 1e9, note="nothing is left")


def restore(paused: str, spent: str) -> None:
    with nearcast.overlay(STORE, "coupons") as overlay:
        overlay.restore([paused])
        overlay.restore([spent], field="spent")


def show(row, answer, similar) -> None:
    names = {row["id"]: row["name"] for row in named(similar, [*row["key"], *answer.items])}
    console.print(f"Household {row['household']} bought last:")
    for product in row["key"][:SHOWN]:
        console.print(f"  {names[product]}", highlight=False, soft_wrap=True)
    stages = ", ".join(f"{s.name.replace('_', ' ')} {s.candidates}" for s in answer.stages[:-1])
    console.print(f"  and {len(row['key']) - SHOWN} more. Similar items left: {stages}", highlight=False)
    table = Table("coupon", "shown for", "advertiser", "until", "score")
    for ad, item, score, columns in zip(answer.ads[:SHOWN], answer.items, answer.scores, answer.columns, strict=False):
        table.add_row(ad, names[item][:60], str(columns["advertiser"]), f"{columns['ends']:%d %b}", f"{score:.2f}")
    console.print(table)


def named(similar, ids) -> list[dict]:
    return [{"id": item, **row} for item, row in zip(ids, similar.items(ids, ["name"]), strict=True)]


if __name__ == "__main__":
    main()
