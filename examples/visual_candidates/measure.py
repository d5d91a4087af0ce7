"""Measure the published candidates on the held-out day, for pins, search phrases and home feeds.

    the table       recall of the lists against exact search, from the manifest of the snapshot
    traffic         views whose pin is in the head, learned and held out; keys of phrases and people that are in it
    same category   the share of candidates that are of the query's category: of the pin in view, of the words of the
                    phrase, of the two categories that the simulation has given a person a taste for
    diversity       keys that have a candidate among those shown, and answers with all right categories
    look-ups        median time of a call in this process; the machine may have other work

Each request of the held-out day counts; intervals are 95% over distinct queries. The baseline is promoted pins drawn at
random. For phrases and people, two more figures are printed: the share of their keys, by weight, that has the right
category, and the result of the heaviest key alone. Categories are used only here. Engagement is simulated: the figures
show that keys lead to the intended pins, not that people would click.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pictures_of_clothes import CATEGORIES
from rich.console import Console
from rich.table import Table
from simulate import phrases

import nearcast
from nearcast.serve.lookup import Lookup
from nearcast.stores.names import normalize_table_key
from nearcast.table.snapshot import find_snapshot

HERE = Path(__file__).parent
GENERATOR = "promoted-pins"
TIMED = 2_000  # look-ups of each kind


@dataclass(frozen=True, slots=True)
class Share:
    """A weighted mean over queries, with its 95% interval."""

    value: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True, slots=True)
class KindMeasures:
    """Measures of the answers to one kind of request."""

    same: Share  # candidates of the right category
    keys_right: float  # keys of the right category, by weight
    alone: Share | None  # candidates of the right category with the heaviest key alone
    by_chance: float
    answered: float  # share of requests that have candidates
    keys: float | None  # keys that have a candidate in the answer, on average
    key_found: float | None  # of the keys that requests lead to, those in the head
    complete: tuple[float, float] | None  # answers with all right categories; the same with the heaviest key alone
    microseconds: float  # of a call, the median


def main() -> None:
    arguments = parse_arguments()
    with nearcast.open(arguments.out / "store", GENERATOR) as pins:
        kinds = {
            "a pin in view": of_pins(pins, arguments),
            "a search phrase": of_phrases(pins, arguments),
            "a home feed": of_people(pins, arguments),
        }
    snapshot = find_snapshot(arguments.out, GENERATOR)
    facts = json.loads((arguments.data / "facts.json").read_text())
    measures = snapshot.manifest.measures
    if arguments.json:
        plain = {name: asdict(kind) for name, kind in kinds.items()}
        print(json.dumps({"facts": facts, "measures": measures, "requests": plain}, indent=2))
    else:
        show(facts, measures, kinds, arguments.first)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the candidates on the held-out day.")
    parser.add_argument("--out", type=Path, default=HERE / "nearcast", help="folder of the snapshots and the store")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="prepare.py's folder")
    parser.add_argument("--first", type=int, default=10, help="candidates of an answer (default 10)")
    parser.add_argument("--json", action="store_true", help="print for programs")
    return parser.parse_args()


# The three kinds of requests.


def of_pins(pins: Lookup, arguments: argparse.Namespace) -> KindMeasures:
    views = pq.read_table(arguments.data / "heldout.parquet").filter(pc.is_null(pc.field("phrase")))
    requests = Counter(views["pin"].to_pylist())
    category = categories_of_head(arguments.data)
    rows = []
    for pin, times in requests.items():
        answer = pins.get(pin, k=arguments.first, fields=["category"])
        if answer.found:
            rows.append((times, share_of(answer.columns["category"], {category[pin]})))
    seconds = timed(lambda pin: pins.get(pin, k=arguments.first), views["pin"].to_pylist()[:TIMED])
    answered = sum(times for times, _ in rows) / len(views)
    return KindMeasures(mean(rows), 1.0, None, by_chance(arguments.data, 1), answered, None, None, None, seconds)


def of_phrases(pins: Lookup, arguments: argparse.Namespace) -> KindMeasures:
    meant = {phrase.text: {CATEGORIES[phrase.category]} for phrase in phrases()}
    log = pq.read_table(arguments.data / "heldout.parquet").filter(pc.is_valid(pc.field("phrase")))
    texts = log["phrase"].to_pylist()
    requests = [
        ({"phrase": text}, times, meant[str(normalize_table_key("phrases", text))])
        for text, times in Counter(texts).items()
    ]
    return of_contexts(pins, arguments, requests, [{"phrase": text} for text in texts[:TIMED]], 1)


def of_people(pins: Lookup, arguments: argparse.Namespace) -> KindMeasures:
    people = pq.read_table(arguments.data / "people.parquet").to_pylist()
    liked = {row["person"]: {CATEGORIES[number] for number in row["favourites"]} for row in people}
    log = pq.read_table(arguments.data / "heldout.parquet")["person"].to_pylist()
    requests = [({"person": person}, 1, liked[person]) for person in sorted(set(log))]
    return of_contexts(pins, arguments, requests, [context for context, _, _ in requests[:TIMED]], 2)


def of_contexts(
    pins: Lookup,
    arguments: argparse.Namespace,
    requests: Sequence[tuple[dict[str, object], int, set[str]]],
    to_time: Sequence[dict[str, object]],
    n_categories: int,
) -> KindMeasures:
    category = categories_of_head(arguments.data)
    rows, alone, keys, keys_right, complete, complete_alone, found, times_asked = [], [], [], [], [], [], [], 0
    for context, times, right in requests:
        answer = pins.merged(context=context, k=arguments.first, fields=["category"])
        times_asked += times
        found += [share.found for share in answer.keys]
        there = [share for share in answer.keys if share.found]
        if there:
            one = pins.get(there[0].key, k=arguments.first, fields=["category"])
            rows.append((times, share_of(answer.columns["category"], right)))
            alone.append((times, share_of(one.columns["category"], right)))
            keys.append((times, sum(share.given > 0 for share in answer.keys)))
            weights = [share.weight * (category[int(share.key)] in right) for share in there]
            keys_right.append((times, sum(weights) / sum(share.weight for share in there)))
            complete.append((times, right <= set(answer.columns["category"])))
            complete_alone.append((times, right <= set(one.columns["category"])))
    seconds = timed(lambda context: pins.merged(context=context, k=arguments.first), to_time)
    answered = sum(times for times, _ in rows) / times_asked
    chance = by_chance(arguments.data, n_categories)
    both = (mean(complete).value, mean(complete_alone).value)
    share = mean(keys_right).value
    return KindMeasures(
        mean(rows), share, mean(alone), chance, answered, mean(keys).value, float(np.mean(found)), both, seconds
    )


# Figures.


def categories_of_head(data: Path) -> dict[int, str]:
    head = pq.read_table(data / "head.parquet", columns=["pin", "category"])
    return dict(zip(head["pin"].to_pylist(), head["category"].to_pylist(), strict=True))


def share_of(categories: Sequence[str], right: set[str]) -> float:
    return sum(category in right for category in categories) / len(categories)


def mean(rows: Iterable[tuple[int, float]]) -> Share:
    """Return the weighted mean of (weight, value) pairs, with an interval from the spread between queries."""
    weights, values = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    shares = weights / weights.sum()
    value = float(shares @ values)
    half = 1.96 * float(np.sqrt((shares**2) @ (values - value) ** 2))
    return Share(value, value - half, value + half, len(values))


def by_chance(data: Path, n_categories: int) -> float:
    """Return the share of right candidates if promoted pins are drawn at random, averaged over categories."""
    counts = Counter(pq.read_table(data / "promoted.parquet", columns=["category"])["category"].to_pylist())
    return n_categories * sum(counts.values()) / len(CATEGORIES) / sum(counts.values())


def timed(ask: Callable[..., object], requests: Sequence[object]) -> float:
    """Return the median time of a call in microseconds; calls run one after the other."""
    taken = []
    for request in requests:
        started = time.perf_counter()
        ask(request)
        taken.append(1e6 * (time.perf_counter() - started))
    return float(np.median(taken))


# Showing.


def show(facts: dict[str, float], measures: dict[str, float], kinds: dict[str, KindMeasures], first: int) -> None:
    console = Console(width=120, highlight=False)
    low, high = measures["recall_low"], measures["recall_high"]
    console.print(f"recall@50 {measures['recall']:.2%} (95% interval {low:.2%} to {high:.2%})")
    console.print(
        f"the head, {facts['head']:,} of {facts['pins']:,} pins, has {facts['head_of_learned_views']:.1%} of the "
        f"views that it was chosen by, and {facts['head_of_heldout_views']:.1%} of those of the held-out day"
    )
    console.print()
    table = Table(title=f"the first {first} candidates, requests of the held-out day", title_justify="left")
    for name in (
        "",
        "same category",
        "of its keys",
        "heaviest alone",
        "by chance",
        "answered",
        "keys shown",
        "look-up",
    ):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for name, kind in kinds.items():
        table.add_row(name, *_row(kind))
    console.print(table)
    for name, kind in kinds.items():
        if kind.key_found is not None:
            console.print(f"{name}: {kind.key_found:.1%} of the keys that it leads to are in the head")
    both, alone = kinds["a home feed"].complete or (0.0, 0.0)
    console.print(
        f"both favourite categories of the person are among the candidates of {both:.1%} of home feeds; with the "
        f"heaviest key alone, of {alone:.1%}"
    )


def _row(kind: KindMeasures) -> list[str]:
    return [
        _words(kind.same),
        f"{kind.keys_right:.0%}",
        f"{kind.alone.value:.1%}" if kind.alone else "",
        f"{kind.by_chance:.0%}",
        f"{kind.answered:.1%}",
        f"{kind.keys:.1f}" if kind.keys is not None else "1",
        f"{kind.microseconds:,.0f} µs",
    ]


def _words(share: Share) -> str:
    return f"{share.value:.1%} ({share.low:.1%}-{share.high:.1%})"


if __name__ == "__main__":
    main()
