"""Write the inputs of the generator: promoted pins and head pins with their vectors, and logs of engagement.

Pins are the 60,000 pictures of the first part of Fashion-MNIST, promoted pins the 10,000 of the second. Which pins
are viewed is simulated, see simulate.py. The head is the pins that together have most of the views of all days but the
last. Only head pins are joined, so only they need a vector. Categories are written for measure.py; vectors do not use
them.

    data/promoted.parquet   promoted pins: pin, vector, category
    data/head.parquet       head pins: pin, vector, views, category
    data/log.parquet        the log of the learning days: day, seconds, person, phrase, pin
    data/searches.parquet   its rows that have a phrase
    data/heldout.parquet    the last day
    data/views.parquet      views of the learning days, from which `nearcast head` picks data/keys.parquet
    data/people.parquet     favourite categories in the simulation: person, favourites
    data/facts.json         sizes, for the report
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from embed import NAME, Embedding
from pictures_of_clothes import CATEGORIES, FOLDER, Pictures, read_pictures
from simulate import DAYS, Simulated, simulate

import nearcast

PROMOTED_FROM = 1_000_000  # ids of promoted pins start here, so that they differ from ids of pins
SAMPLE = 8_000  # pictures that the projections are learned from


def main() -> None:
    arguments = parse_arguments()
    arguments.data.mkdir(parents=True, exist_ok=True)
    pins = first(read_pictures("train", arguments.pictures), arguments.pins)
    promoted = first(read_pictures("t10k", arguments.pictures), arguments.promoted)
    darkness = pins.pixels.reshape(len(pins.pixels), -1).mean(axis=1)  # the background is 0, so ink is dark
    simulated = simulate(
        pins.categories.astype(np.int64),
        darkness,
        people=arguments.people,
        views=arguments.views,
        searches=arguments.searches,
        seed=arguments.seed,
    )
    learned, held_out = write_logs(simulated, arguments.data)
    head, views = head_of(learned, arguments.coverage, arguments.data)
    rng = np.random.default_rng(arguments.seed)
    sample = rng.choice(len(pins.pixels), min(SAMPLE, len(pins.pixels)), replace=False)
    embedding = Embedding(pins.pixels[np.sort(sample)])
    write_pins(arguments.data / "head.parquet", head, embedding, pins, head, views=views)
    rows = np.arange(len(promoted.pixels))
    write_pins(arguments.data / "promoted.parquet", rows + PROMOTED_FROM, embedding, promoted, rows)
    report(arguments.data, len(pins.pixels), len(rows), head, views, learned, held_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write pins, promoted pins and a simulated log.")
    parser.add_argument("--pictures", type=Path, default=FOLDER, help="folder of Fashion-MNIST")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--pins", type=int, default=60_000)
    parser.add_argument("--promoted", type=int, default=10_000)
    parser.add_argument("--people", type=int, default=2_000)
    parser.add_argument("--views", type=int, default=40_000, help="views per day (default 40000)")
    parser.add_argument("--searches", type=int, default=10_000, help="searches per day (default 10000)")
    parser.add_argument(
        "--coverage", type=float, default=0.8, help="share of the views that the head covers (default 0.8)"
    )
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def first(pictures: Pictures, count: int) -> Pictures:
    return Pictures(pictures.pixels[:count], pictures.categories[:count])


def write_logs(simulated: Simulated, data: Path) -> tuple[pa.Table, pa.Table]:
    """Write the log of the learning days, its searches, the held-out day and people. Return the views of both logs."""
    last = pc.equal(simulated.log["day"], DAYS - 1)
    learned, held_out = simulated.log.filter(pc.invert(last)), simulated.log.filter(last)
    pq.write_table(learned, data / "log.parquet")
    pq.write_table(learned.filter(pc.is_valid(learned["phrase"])), data / "searches.parquet")
    pq.write_table(held_out, data / "heldout.parquet")
    people = {"person": np.arange(len(simulated.favourites)), "favourites": list(simulated.favourites)}
    pq.write_table(pa.table(people), data / "people.parquet")
    return tuple(log.filter(pc.is_null(log["phrase"])) for log in (learned, held_out))


def head_of(views: pa.Table, coverage: float, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pins that cover this share of the views, by `nearcast head`, ascending, and their views."""
    pq.write_table(views, data / "views.parquet")
    nearcast.head(data / "views.parquet", coverage=coverage, key="pin", to=data / "keys.parquet", column="pin")
    head = np.sort(pq.read_table(data / "keys.parquet", columns=["pin"])["pin"].to_numpy())
    pins, counts = np.unique(views["pin"].to_numpy(), return_counts=True)
    return head, counts[np.searchsorted(pins, head)]


def write_pins(
    path: Path, ids: np.ndarray, embedding: Embedding, pictures: Pictures, rows: np.ndarray, **more: np.ndarray
) -> None:
    vectors = embedding.vectors(pictures.pixels[rows])
    table = {
        "pin": ids,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        "category": [CATEGORIES[number] for number in pictures.categories[rows]],
    }
    pq.write_table(pa.table(table | more), path)


def report(
    data: Path, pins: int, promoted: int, head: np.ndarray, views: np.ndarray, learned: pa.Table, held_out: pa.Table
) -> None:
    facts = {
        "pins": pins,
        "promoted": promoted,
        "head": len(head),
        "embedding": NAME,
        "head_of_learned_views": float(views.sum() / len(learned)),
        "head_of_heldout_views": float(np.isin(held_out["pin"].to_numpy(), head).mean()),
    }
    (data / "facts.json").write_text(json.dumps(facts, indent=2))
    print(f"{pins:,} pins, {promoted:,} promoted pins; {len(learned):,} simulated views of {DAYS - 1} days")
    print(
        f"the head: {len(head):,} pins ({len(head) / pins:.1%}) have {facts['head_of_learned_views']:.1%} of the views"
    )
    print(f"vectors of {len(head) + promoted:,} pictures by {NAME}")


if __name__ == "__main__":
    main()
