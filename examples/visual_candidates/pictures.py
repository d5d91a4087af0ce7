"""Draw contact sheets: pins beside their candidates, phrases and people beside their keys and the merged candidates.

A green frame is a candidate of the right category: that of the pin or the phrase, or a favourite of the person. Other
candidates have a grey frame. Reads the published table, not the vectors.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pictures_of_clothes import CATEGORIES, FOLDER, Pictures, read_pictures
from prepare import PROMOTED_FROM
from simulate import phrases

import nearcast
from nearcast.figures import new_figure, save
from nearcast.serve.lookup import Lookup

HERE = Path(__file__).parent
GENERATOR = "promoted-pins"
RIGHT, OTHER, QUERY = "#009E73", "#BBBBBB", "#0072B2"
SHOWN = 10  # candidates of a row
SHOWN_KEYS = 4
INCH = 0.62  # of a picture
TALL = 1.12  # of a row, in pictures
HEADLINE = 0.35  # rows


@dataclass(frozen=True, slots=True)
class Row:
    """A query in words and pictures, and its candidates."""

    title: str
    keys: Sequence[int]  # pins
    candidates: Sequence[int]  # promoted pins
    right: frozenset[str]  # categories


def main() -> None:
    arguments = parse_arguments()
    parts = {part: read_pictures(part, arguments.pictures) for part in ("train", "t10k")}
    with nearcast.open(arguments.out / "store", GENERATOR) as pins:
        sheets = {
            "pins": [_of_pin(pins, pin, category) for pin, category in _some_pins(arguments)],
            "search": [_of_phrase(pins, text) for text in _some_phrases(arguments)],
            "home": [_of_person(pins, row) for row in _some_people(arguments)],
        }
    for name, rows in sheets.items():
        draw(rows, parts, arguments.to / f"{name}.png")
        print(os.path.relpath(arguments.to / f"{name}.png"))
    overview = [row for name, count in (("pins", 3), ("search", 2), ("home", 2)) for row in sheets[name][:count]]
    draw(overview, parts, arguments.to / "overview.png")
    print(os.path.relpath(arguments.to / "overview.png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw pictures of queries beside their candidates.")
    parser.add_argument("--out", type=Path, default=HERE / "nearcast", help="folder of the snapshots and the store")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="prepare.py's folder")
    parser.add_argument("--pictures", type=Path, default=FOLDER, help="folder of Fashion-MNIST")
    parser.add_argument("--to", type=Path, default=HERE / "data" / "pictures", help="output folder of the sheets")
    return parser.parse_args()


# The rows are chosen by a fixed rule, so that they are not hand-picked.


def _some_pins(arguments: argparse.Namespace) -> Iterable[tuple[int, str]]:
    """Return a row for the most viewed head pin of each category."""
    head = pq.read_table(arguments.data / "head.parquet", columns=["pin", "category", "views"])
    first: dict[str, int] = {}
    for row in head.sort_by([("views", "descending"), ("pin", "ascending")]).to_pylist():
        first.setdefault(row["category"], row["pin"])
    return [(first[category], category) for category in CATEGORIES if category in first]


def _some_phrases(arguments: argparse.Namespace) -> list[str]:
    """Return a row for each of the eight most searched phrases of the held-out day."""
    log = pq.read_table(arguments.data / "heldout.parquet", columns=["phrase"]).drop_null()
    counts = Counter(pc.utf8_lower(log["phrase"]).to_pylist())
    return [text for text, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:8]]


def _some_people(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each of the first eight people."""
    return pq.read_table(arguments.data / "people.parquet").slice(0, 8).to_pylist()


def _of_pin(pins: Lookup, pin: int, category: str) -> Row:
    return Row(category, [pin], pins.get(pin, k=SHOWN).ids, frozenset([category]))


def _of_phrase(pins: Lookup, text: str) -> Row:
    wanted = {phrase.text: CATEGORIES[phrase.category] for phrase in phrases()}
    return _of_context(pins, f"“{text}”", {"phrase": text}, frozenset([wanted[text]]))


def _of_person(pins: Lookup, row: dict[str, Any]) -> Row:
    liked = [CATEGORIES[number] for number in row["favourites"]]
    return _of_context(
        pins, f"person {row['person']}\n" + ", ".join(liked), {"person": row["person"]}, frozenset(liked)
    )


def _of_context(pins: Lookup, title: str, context: dict[str, object], right: frozenset[str]) -> Row:
    answer = pins.merged(context=context, k=SHOWN)
    keys = [share.key for share in answer.keys if share.found][:SHOWN_KEYS]
    return Row(title, [int(key) for key in keys], answer.ids, right)


# Drawing.


def draw(rows: Sequence[Row], parts: dict[str, Pictures], path: Path) -> None:
    """Draw a row of pictures for each query: text, keys, a gap, candidates."""
    n_keys = max(len(row.keys) for row in rows)
    across = 2.6 + n_keys + 0.4 + SHOWN
    tall = len(rows) + HEADLINE
    figure = new_figure(INCH * across, INCH * TALL * tall)
    figure.set_layout_engine("none")
    heads = (("request", 0.1), ("its heaviest keys", 2.65), ("promoted pins, best first", 3.05 + n_keys))
    for text, left in heads:
        figure.text(left / across, 1 - 0.5 * HEADLINE / tall, text, fontsize=7, va="center", color="#555555")
    for number, row in enumerate(rows):
        bottom = 1 - (number + 1 + HEADLINE) / tall
        figure.text(0.1 / across, bottom + 0.5 / tall, row.title, fontsize=7, va="center")
        for at, pin in enumerate(row.keys):
            left = 2.6 + at
            _picture(figure, left / across, bottom, across, tall, parts["train"], pin, QUERY)
        for at, item in enumerate(row.candidates):
            place = item - PROMOTED_FROM
            colour = RIGHT if CATEGORIES[parts["t10k"].categories[place]] in row.right else OTHER
            left = 2.6 + n_keys + 0.4 + at
            _picture(figure, left / across, bottom, across, tall, parts["t10k"], place, colour)
    save(figure, path)


def _picture(
    figure: Any, left: float, bottom: float, across: float, tall: float, pictures: Pictures, place: int, colour: str
) -> None:
    axes = figure.add_axes((left + 0.04 / across, bottom + 0.05 / tall, 0.92 / across, 0.9 / tall))
    axes.imshow(pictures.pixels[place], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set(color=colour, linewidth=1.6)


if __name__ == "__main__":
    main()
