"""Put the figures and the picture of `make ads` into docs/similar_item_ads.md.

The figures of several seasons too, if `python seasons.py` has run.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEFT = HERE.parent / "examples" / "similar_item_ads" / "nearcast"
PAGE = HERE / "similar_item_ads.md"
STAGES = ("with_ads", "in_flight", "targeted", "in_budget", "after_caps")
LENGTHS = (10, 50, 200)
POPULAR, ONLINE = "popularity", "online, k 50"

Way = dict[str, Any]


def main() -> None:
    """Fill the tables."""
    found = json.loads((LEFT / "ways.json").read_text(encoding="utf-8"))
    ways: list[Way] = found["ways"]
    text = PAGE.read_text(encoding="utf-8")
    parts = [("stages", _stages(ways)), ("few", _few(ways)), ("rates", _rates(ways) + _told(found))]
    if (LEFT / "seasons.json").is_file():
        parts.append(("seasons", _seasons(json.loads((LEFT / "seasons.json").read_text(encoding="utf-8")))))
    for name, part in parts:
        marked = f"<!-- {name} -->\n{part}<!-- /{name} -->"
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, marked=marked: marked, text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")
    shutil.copy(LEFT / "funnel.svg", HERE / "images" / "similar_item_ads.svg")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _stages(ways: list[Way]) -> str:
    largest = max(way["items"] for way in ways)
    rows = []
    for way in ways:
        if way["items"] == largest or way["name"] == POPULAR:
            cells = [f"{way['candidates'][stage]:,.0f} ({way['ads'][stage]:.0f})" for stage in STAGES]
            first, shown = way["candidates"]["candidates"], way["ads"]["returned"]
            rows.append([way["name"], f"{first:,.0f}", *cells, f"{shown:.1f}"])
    return _table(["variant", "similar items", *(stage.replace("_", " ") for stage in STAGES), "shown"], rows)


def _few(ways: list[Way]) -> str:
    share = {(way["items"], way["k"]): f"{way['too_few']:.1%}" for way in ways if way["name"].startswith("offline")}
    rows = [
        [f"{items:,} items", *(share[items, k] for k in LENGTHS)] for items in sorted({items for items, _ in share})
    ]
    return _table(["requests with fewer than 20 coupons", *(f"k = {k}" for k in LENGTHS)], rows)


def _rates(ways: list[Way]) -> str:
    parts = []
    for what in ("redemptions", "engagement"):
        rows = []
        for way in ways:
            popular = "" if way["name"] == POPULAR else _points(way[f"{what}_over_popularity"])
            online = "" if way["name"] in (POPULAR, ONLINE) else _points(way[f"{what}_over_online"])
            rows.append([way["name"], _rate(way[what]), popular, online])
        parts.append(_table([what, "hit rate", "points over popularity", "points over online"], rows))
    return "\n".join(parts)


def _rate(value: list[float]) -> str:
    mean, low, high = (f"{100 * end:.1f}" for end in value)
    return f"{mean}% ({low} to {high})"


def _points(lead: list[float]) -> str:
    return f"{100 * lead[0]:+.1f} ({100 * lead[1]:+.1f} to {100 * lead[2]:+.1f})"


def _told(found: dict[str, Any]) -> str:
    price = ", ".join(f"{way['name']} {way['cpu_ms_per_request']:.1f} ms" for way in found["ways"])
    count = f"{found['requests']:,} requests, {found['redemptions']:,} redemptions"
    return f"\n{count}. CPU time of a request: {price}.\n"


def _seasons(found: Any) -> str:
    """Return the table of all seasons, a row per measure and source."""
    rows = [
        [
            what,
            name,
            _rate(way["rate"]),
            "" if name == POPULAR else _points(way["over_popularity"]),
            "" if name in (POPULAR, ONLINE) else _points(way["over_online"]),
        ]
        for what in ("redemptions", "engagement")
        for name, way in found["together"][what].items()
    ]
    head = ["", "variant", "hit rate", "points over popularity", "points over online"]
    weeks = ", ".join(map(str, found["weeks"]))
    redeemed = sum(found["redemptions"])
    told = f"{sum(found['requests']):,} requests at the starts of weeks {weeks}; {redeemed:,} redemptions."
    return f"{_table(head, rows)}\n{told}\n"


if __name__ == "__main__":
    main()
