"""Measure similar-item ads at the starts of three large campaigns, and combine the measures.

    python seasons.py [--weeks 20 34 45]

For each start, vectors are learned from the weeks before, joined and published. Requests are sent at the start and
evaluated on the nine weeks after it. A household counts once in each season. Intervals are by resampling households
with all of their seasons, since a household behaves similarly all year. The number of products of a request was chosen
on the season of week 34, k = 100 on that of week 20, and other choices on weeks 45 to 53. Writes seasons.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import nearcast
from nearcast.replaying.request_log import read_log

HERE = Path(__file__).parent
WEEKS = (20, 34, 45)  # campaigns of 1,076 to 1,133 households had begun
HELD_OUT_WEEKS = 9
LENGTHS = (50, 100, 200)
COMPARED = ("offline, k 50", "offline, k 100", "offline, k 200", measure.ONLINE, measure.POPULAR)
RESAMPLES = 4000
SEED = 20

Season = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure similar-item ads in several seasons.")
    parser.add_argument(
        "--weeks", type=int, nargs="+", default=list(WEEKS), help="weeks at whose start requests are sent"
    )
    arguments = parser.parse_args()
    seasons = [season(week) for week in arguments.weeks]
    found = {
        "weeks": arguments.weeks,
        "requests": [len(each["households"]) for each in seasons],
        "redemptions": [int(each["redemptions"][measure.POPULAR][:, 1].sum()) for each in seasons],
        "seasons": [figures([each]) for each in seasons],
        "together": figures(seasons),
    }
    (HERE / "nearcast" / "seasons.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)


def season(week: int) -> Season:
    """Measure one season. Return (requests, 2) hits and chances by source, and the households of the requests."""
    folder = f"data/from-week-{week}"
    learned = ["--learn-until", str(week - 1)]
    until = ["--hold-out-until", str(week - 1 + HELD_OUT_WEEKS)]
    python("../similar_products/prepare.py", *learned, *until, "--out", folder)
    python("prepare_ads.py", "--data", folder, *learned)
    spec = settings("generator.toml", folder, week)
    snapshot = nearcast.run(spec, base=HERE).snapshot
    out = HERE / spec["out"]
    nearcast.publish(snapshot.generator, out=out, store=f"lmdb:{out / 'store'}")
    nearcast.expand(settings("ads.toml", folder, week), base=HERE)
    requests = read_log(HERE / folder / "requests.parquet")
    parsed = nearcast.GeneratorSpec.model_validate(spec)
    ways = {short(way.name): way for way in measure.measure(requests, [parsed], LENGTHS, HERE / folder)}
    return {
        "households": pq.read_table(HERE / folder / "requests.parquet")["household"].to_numpy(),
        "redemptions": {name: way.redeemed for name, way in ways.items()},
        "engagement": {name: way.engaged for name, way in ways.items()},
    }


def python(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=HERE, check=True)


def settings(file: str, folder: str, week: int) -> dict[str, Any]:
    """Return a spec with the data of this season."""
    text = (HERE / file).read_text(encoding="utf-8")
    spec = tomllib.loads(text.replace('"data/', f'"{folder}/'))
    return spec | {"out": f"nearcast/from-week-{week}"}


def short(name: str) -> str:
    """Return the name of a source without its number of products, which differs between seasons."""
    first, _, last = name.partition(",")
    return name if first != "offline" else f"offline,{last.rpartition(',')[2]}"


# Rates and their intervals.


def figures(seasons: list[Season]) -> dict[str, Any]:
    """Return each measure of each source, and its difference from popularity and from online, with intervals."""
    households = np.unique(np.concatenate([each["households"] for each in seasons]))
    n = len(households)
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    found = {}
    for what in ("redemptions", "engagement"):
        pairs = {name: by_household(seasons, households, what, name) for name in COMPARED}
        found[what] = {
            name: {
                "rate": measure.rate(mine, draws),
                "over_popularity": measure.estimate_lead(mine, pairs[measure.POPULAR], draws),
                "over_online": measure.estimate_lead(mine, pairs[measure.ONLINE], draws),
            }
            for name, mine in pairs.items()
        }
    return found


def by_household(seasons: list[Season], households: np.ndarray, what: str, name: str) -> np.ndarray:
    """Return (households, 2) hits and chances of all seasons."""
    sums = np.zeros((len(households), 2))
    for each in seasons:
        np.add.at(sums, np.searchsorted(households, each["households"]), each[what][name])
    return sums


# Showing.


def show(found: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    for what in ("redemptions", "engagement"):
        of = f"; {sum(found['redemptions']):,} coupons were redeemed" if what == "redemptions" else ""
        table = Table(title=f"Hit rate, {what}, {sum(found['requests']):,} requests{of}", title_justify="left")
        for name in ("", "from week", "hit rate", "points over popularity", "points over online"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for name in COMPARED:
            parts = [*zip(map(str, found["weeks"]), found["seasons"], strict=True), ("all", found["together"])]
            for week, part in parts:
                value = part[what][name]
                mean, low, high = value["rate"]
                leads = [measure.points(value[f"over_{other}"]) for other in ("popularity", "online")]
                table.add_row(name, week, f"{mean:.1%} ({low:.1%} to {high:.1%})", *leads, end_section=week == "all")
        console.print(table)


if __name__ == "__main__":
    main()
