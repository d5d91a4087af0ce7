"""What trials are made on: some of the items, and queries that no report will be measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nearcast import kernels
from nearcast.errors import InputError
from nearcast.join.context import RunContext
from nearcast.join.stages import sample_sizes
from nearcast.measure.recall import sample_rows
from nearcast.sources.ids import shared_positions
from nearcast.sources.ingest import Inputs
from nearcast.types import AnyArray, ArrayVectors, IntArray, Neighbors

__all__ = ["Questions", "Samples", "Shard", "draw_samples", "shard"]

CHOSEN, HELD_OUT = 500, 1_000  # queries whose truth is known: to find an effort, and to say what it reaches
TIMED = 8_192  # queries that a join is timed on: fewer would not share the cells that they meet
FEWEST = 100


@dataclass(frozen=True, slots=True)
class Questions:
    """Some queries with their exact neighbors among a sample of the items."""

    vectors: AnyArray  # (n, dim)
    exclude: IntArray | None  # (n,) the position that each must not get, -1 for none
    truth: Neighbors


@dataclass(frozen=True, slots=True)
class Shard:
    """A sample of the items, and the queries that it is asked."""

    items: ArrayVectors
    share: float  # of all items
    chosen: Questions
    held_out: Questions
    timed: AnyArray  # (any, dim)


@dataclass(frozen=True, slots=True)
class Samples:
    """Positions of queries, none of which a run reports on or calibrates with; and an order of the items."""

    chosen: IntArray
    held_out: IntArray
    timed: IntArray
    items: IntArray  # all of them, shuffled: the first m are a sample of m


def draw_samples(run: RunContext, inputs: Inputs) -> Samples:
    """Draw them. InputError where too few queries are left beside those of a run."""
    n = inputs.queries.vectors.n
    taken = sample_sizes(run, n)
    left = n - sum(taken)
    held_out = min(HELD_OUT, left // 2)
    chosen = min(CHOSEN, left // 4)
    if chosen < FEWEST:
        raise InputError(
            f"tuning needs {4 * FEWEST:,} queries beside the {sum(taken):,} that a run is measured and calibrated on, "
            f"and there are {n:,}; give more queries, or lower measure.sample and measure.calibration. A run without "
            "tuning works with these"
        )
    timed = min(TIMED, left - held_out - chosen)
    rows = sample_rows(n, (*taken, chosen, held_out, timed), run.spec.seed)
    items = np.random.default_rng([run.spec.seed, 7]).permutation(inputs.items.vectors.n)
    return Samples(rows[-3], rows[-2], rows[-1], items)


def shard(run: RunContext, inputs: Inputs, samples: Samples, size: int) -> Shard:
    """A sample of so many items, with the exact neighbors of the queries among them."""
    rows = np.sort(samples.items[:size])
    items = np.ascontiguousarray(inputs.items.vectors.take(rows))
    ids = inputs.items.ids.take(pa.array(rows))

    def questions(queries: IntArray) -> Questions:
        vectors = np.ascontiguousarray(inputs.queries.vectors.take(queries))
        asked = inputs.queries.ids.take(pa.array(queries))
        exclude = shared_positions(asked, ids) if run.spec.exclude_self else None
        return Questions(vectors, exclude, _truth(vectors, items, run, exclude))

    return Shard(
        ArrayVectors(items),
        size / max(1, inputs.items.vectors.n),
        questions(samples.chosen),
        questions(samples.held_out),
        np.ascontiguousarray(inputs.queries.vectors.take(samples.timed)),
    )


def _truth(queries: AnyArray, items: AnyArray, run: RunContext, exclude: IntArray | None) -> Neighbors:
    """By the exact native join, which gives the lists of the referee in a fraction of its time."""
    k = min(run.spec.k, len(items))
    found = kernels.join_exact(queries, items, k, run.spec.metric, exclude=exclude, threads=run.resources.threads)
    return Neighbors(found.positions, found.scores)
