"""Measure the engagement hit rate: the share of later purchases that are among the candidates.

For every household with purchases in the learning weeks and in the held-out weeks, each rule returns N products. The
hit rate is the share of its held-out products among them. Every pair of household and product counts once, so
households with many purchases have more weight. A product that was never sold before is a miss for every rule.

Candidates: the lists of all products that the household bought are merged. The score of a product is the sum over its
lists of (score / best score of the list) * log(1 + purchases of the query product by the household). Popularity: the N
products that most households bought, for all households. Buying again: the household's own products, most bought first.
Equal scores go to the smaller id.

There are two questions: all purchases, and only products that are new to the household. For the second, every rule
leaves out products that the household bought before; it is the test of retrieval. The merge was chosen on weeks 45-48,
not on the held-out weeks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from candidate_files import CandidateTable, read_candidates, read_products
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SIZES = (100, 500)
RULES = ("candidates", "popularity", "buying again")
QUESTIONS = ("everything", "new")
RESAMPLES = 2000  # another seed changes the ends of an interval by less than 0.0005
SEED = 49
NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Shopping:
    """Purchases before and after, for households with both. Columns are product positions."""

    before: csr_array  # purchases, households x products
    after: csr_array  # 1 where bought in the held-out weeks
    unknown_after: Floats  # per household: later purchases of products without earlier purchases


@dataclass(frozen=True, slots=True)
class Tally:
    """Per household: the number of held-out products, and how many are among the first N."""

    found: Floats  # households x SIZES
    held_out: Floats  # households


@dataclass(frozen=True, slots=True)
class Rate:
    """The hit rate of a rule and its difference from popularity, each with its 95% interval."""

    question: str
    rule: str
    size: int
    hit_rate: float
    interval: tuple[float, float]
    over_popularity: float
    over_popularity_interval: tuple[float, float]


def main() -> None:
    arguments = parse_arguments()
    started = time.perf_counter()
    ids = read_products(arguments.data, ["product_id"])["product_id"].to_numpy()
    shopping = read_shopping(arguments.data, ids)
    tallies = tally(shopping, list_weights(read_candidates(arguments.candidates), ids))
    rates = list(all_rates(tallies))
    seconds = time.perf_counter() - started
    if arguments.json:
        print(json.dumps(as_json(rates, tallies), indent=2))
    else:
        show(rates, tallies, seconds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The share of later purchases found among the candidates.")
    parser.add_argument("candidates", type=Path, help="folder of a snapshot")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="prepare.py's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


# Reading.


def read_shopping(data: Path, ids: Ints) -> Shopping:
    history, held_out = pq.read_table(data / "history.parquet"), pq.read_table(data / "heldout.parquet")
    later, earlier = held_out["household_id"].to_numpy(), history["household_id"].to_numpy()
    households = np.intersect1d(earlier, later)
    bought = history["purchases"].to_numpy().astype(np.float32)
    before = matrix(households, ids, earlier, history["product_id"].to_numpy(), bought)
    products = held_out["product_id"].to_numpy()
    after = matrix(households, ids, later, products, np.ones(len(later), np.float32))
    rows = np.searchsorted(households, later[np.isin(later, households) & ~np.isin(products, ids)])
    return Shopping(before, after, np.bincount(rows, minlength=len(households)).astype(np.float64))


def matrix(households: Ints, ids: Ints, rows: Ints, columns: Ints, values: npt.NDArray[np.float32]) -> csr_array:
    """Return the matrix households x products, without other households and products."""
    kept = np.isin(rows, households) & np.isin(columns, ids)
    places = (np.searchsorted(households, rows[kept]), np.searchsorted(ids, columns[kept]))
    entries = csr_array((values[kept], places), shape=(len(households), len(ids)))
    entries.sort_indices()
    return entries


def list_weights(table: CandidateTable, ids: Ints) -> csr_array:
    """Return the matrix products x candidates: score / best score of the list, at least 0."""
    if not (np.isin(table.queries, ids).all() and np.isin(table.candidates, ids).all()):
        raise SystemExit("the snapshot holds products that products.parquet lacks; make the snapshot again")
    lengths = np.diff(table.starts)
    rows = np.repeat(np.searchsorted(ids, table.queries), lengths)
    best = np.repeat(table.scores[np.minimum(table.starts[:-1], len(table.scores) - 1)], lengths)
    shares = np.where(best > 0, table.scores.clip(min=0) / np.where(best > 0, best, 1), 0)
    return csr_array((shares, (rows, np.searchsorted(ids, table.candidates))), shape=(len(ids), len(ids)))


# Measuring.


def tally(shopping: Shopping, lists: csr_array) -> dict[tuple[str, str], Tally]:
    """Count the hits of every rule for both questions. About 3 s."""
    n_households, n_products = shopping.before.shape
    keys = [(question, rule) for question in QUESTIONS for rule in RULES]
    found = {key: np.zeros((n_households, len(SIZES))) for key in keys}
    held_out = {question: shopping.unknown_after.copy() for question in QUESTIONS}
    known = np.zeros(n_products, dtype=np.bool_)  # bought before by the household at hand
    places = np.full(n_products, NOWHERE)
    for household, rankings in enumerate(rankings_by_household(shopping.before, lists)):
        mine, targets = row_indices(shopping.before, household), row_indices(shopping.after, household)
        known[mine] = True
        new = targets[~known[targets]]
        held_out["everything"][household] += len(targets)
        held_out["new"][household] += len(new)
        for rule, ranking in zip(RULES, rankings, strict=True):
            found["everything", rule][household] = found_among(ranking, targets, places)
            found["new", rule][household] = found_among(ranking[~known[ranking]], new, places)
        known[mine] = False
    return {(question, rule): Tally(found[question, rule], held_out[question]) for question, rule in keys}


def rankings_by_household(before: csr_array, lists: csr_array) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Return, for each household, product positions in the order of each rule of RULES."""
    weights = before.copy()
    weights.data = np.log1p(weights.data)
    merged = csr_array(weights @ lists)
    merged.sort_indices()
    popular = best_first(np.arange(before.shape[1]), np.asarray((before > 0).sum(axis=0)))
    for household in range(before.shape[0]):
        yield ranked_row(merged, household), popular, ranked_row(before, household)


def ranked_row(scores: csr_array, row: int) -> Ints:
    inside = slice(scores.indptr[row], scores.indptr[row + 1])
    return best_first(scores.indices[inside], scores.data[inside])


def row_indices(entries: csr_array, row: int) -> Ints:
    indices: Ints = entries.indices[entries.indptr[row] : entries.indptr[row + 1]]
    return indices


def best_first(positions: Ints, scores: npt.NDArray[np.float32]) -> Ints:
    """Return positions by descending score. Input positions are ascending, so equal scores go to the smaller one."""
    order = np.argsort(-scores, kind="stable")
    return positions[order]


def found_among(ranking: Ints, targets: Ints, places: Ints) -> Ints:
    """Return how many of `targets` are among the first N, for each N of SIZES. `places` is scratch space."""
    ranking = ranking[: max(SIZES)]
    places[ranking] = np.arange(len(ranking))
    found: Ints = (places[targets][:, None] < np.array(SIZES)).sum(axis=0)
    places[ranking] = NOWHERE
    return found


# Rates and their intervals.


def all_rates(tallies: dict[tuple[str, str], Tally]) -> Iterator[Rate]:
    """Return all rates. Buying again cannot find new products, so it has no rate for the second question."""
    for (question, rule), one in tallies.items():
        if (question, rule) != ("new", "buying again"):
            yield from rates(question, rule, one, tallies[question, "popularity"])


def rates(question: str, rule: str, one: Tally, popularity: Tally) -> Iterator[Rate]:
    """Return rates for each size, with intervals by resampling households, with the same draws for both rules."""
    n = len(one.held_out)
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    held_out = (draws @ one.held_out)[:, None]
    ours, theirs = draws @ one.found / held_out, draws @ popularity.found / held_out
    for column, size in enumerate(SIZES):
        rate = share(one, column)
        lead = rate - share(popularity, column)
        lead_interval = middle_95(ours[:, column] - theirs[:, column])
        yield Rate(question, rule, size, rate, middle_95(ours[:, column]), lead, lead_interval)


def share(one: Tally, column: int) -> float:
    return float(one.found[:, column].sum() / one.held_out.sum())


def middle_95(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# Showing.


def as_json(rates: list[Rate], tallies: dict[tuple[str, str], Tally]) -> dict[str, object]:
    held_out = {question: tallies[question, "candidates"].held_out for question in QUESTIONS}
    return {
        "households": len(held_out["everything"]),
        "held_out_pairs": {question: int(counts.sum()) for question, counts in held_out.items()},
        "rates": [asdict(rate) for rate in rates],
    }


def show(rates: list[Rate], tallies: dict[tuple[str, str], Tally], seconds: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110)
    for question, title in (("everything", "All purchases"), ("new", "Products new to the household")):
        held_out = tallies[question, "candidates"].held_out
        about = [rate for rate in rates if rate.question == question]
        console.print(drawn(f"{title}: {int(held_out.sum()):,} later purchases", about))
    n_households = len(tallies["new", "candidates"].held_out)
    console.print(f"{n_households:,} households, with 95% intervals; {seconds:.1f} s", style="dim")


def drawn(title: str, rates: list[Rate]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("rule", no_wrap=True)
    for heading in ("first N", "hit rate", "points over popularity"):
        table.add_column(heading, justify="right", no_wrap=True)
    for size in SIZES:
        for rate in (rate for rate in rates if rate.size == size):
            table.add_row(rate.rule, str(size), rate_text(rate), lead_text(rate))
        table.add_section()
    return table


def rate_text(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.hit_rate:.1%} ({low:.1%} to {high:.1%})"


def lead_text(rate: Rate) -> str:
    """Format a difference in percentage points: '+0.6 (+0.4 to +0.8)'."""
    if rate.rule == "popularity":
        return ""
    low, high = (100 * end for end in rate.over_popularity_interval)
    return f"{100 * rate.over_popularity:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
