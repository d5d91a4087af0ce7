"""The samples of a tuning: some of the items, and queries that no report will be measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from nearcast import kernels
from nearcast.engines.base import JoinRequest
from nearcast.errors import InputError
from nearcast.join.calibrate import QuerySample
from nearcast.join.context import RunContext
from nearcast.join.plan_join import sample_sizes
from nearcast.measure.sampled_recall import sample_queries
from nearcast.sources.ids import shared_positions
from nearcast.sources.ingest import Inputs
from nearcast.types import AnyArray, ArrayVectors, IntArray, Metric, Neighbors

__all__ = ["TuningRows", "TuningSample", "draw_rows", "make_tuning_sample"]

CHOSEN, HELD_OUT = 500, 1_000  # queries with known truth: to choose an operating point, and to measure it
TIMED = 8_192  # queries that a join is timed on: fewer would not share the cells that they probe
MIN_CHOSEN = 100


@dataclass(frozen=True, slots=True)
class TuningSample:
    """A sample of the items, and queries to join with it."""

    items: ArrayVectors
    share: float  # of all items
    chosen: QuerySample  # to choose operating points
    held_out: QuerySample
    timed: AnyArray  # (any, dim) queries to time a join on

    @property
    def timed_request(self) -> JoinRequest:
        """Return the request for the timed queries."""
        return replace(self.chosen.request, exclude=None)


@dataclass(frozen=True, slots=True)
class TuningRows:
    """Positions of queries, none of which a run reports on or calibrates with; and an order of the items."""

    chosen: IntArray
    held_out: IntArray
    timed: IntArray
    items: IntArray  # all items, shuffled: the first m are a sample of m


def draw_rows(run: RunContext, inputs: Inputs) -> TuningRows:
    """Draw the samples. Raises InputError if too few queries are left besides those of a run."""
    n = inputs.queries.vectors.n
    taken = sample_sizes(run, n)
    left = n - sum(taken)
    held_out = min(HELD_OUT, left // 2)
    chosen = min(CHOSEN, left // 4)
    if chosen < MIN_CHOSEN:
        raise InputError(
            f"tuning needs {4 * MIN_CHOSEN:,} queries beside the {sum(taken):,} that a run is measured and calibrated "
            f"on, and there are {n:,}; give more queries, or lower measure.sample and measure.calibration. A run "
            "without tuning works with these"
        )
    timed = min(TIMED, left - held_out - chosen)
    rows = sample_queries(inputs.queries, (*taken, chosen, held_out, timed), run.spec.seed)
    items = np.random.default_rng([run.spec.seed, 7]).permutation(inputs.items.vectors.n)
    return TuningRows(rows[-3], rows[-2], rows[-1], items)


def make_tuning_sample(run: RunContext, inputs: Inputs, rows: TuningRows, size: int) -> TuningSample:
    """Return a sample of `size` items, with the exact neighbors of the sampled queries among them."""
    item_rows = np.sort(rows.items[:size])
    items = np.ascontiguousarray(inputs.items.vectors.take(item_rows))
    ids = inputs.items.ids.take(pa.array(item_rows))

    def make_queries(query_rows: IntArray) -> QuerySample:
        vectors = np.ascontiguousarray(inputs.queries.vectors.take(query_rows))
        query_ids = inputs.queries.ids.take(pa.array(query_rows))
        exclude = shared_positions(query_ids, ids) if run.spec.exclude_self else None
        request = JoinRequest(Metric(run.spec.metric), min(run.spec.k, len(items)), exclude=exclude)
        # the exact native join: the lists of the reference join in a fraction of its time
        lists = kernels.join_exact(vectors, items, request, run.resources)
        return QuerySample(vectors, request, Neighbors(lists.positions, lists.scores))

    return TuningSample(
        ArrayVectors(items),
        size / max(1, inputs.items.vectors.n),
        make_queries(rows.chosen),
        make_queries(rows.held_out),
        np.ascontiguousarray(inputs.queries.vectors.take(rows.timed)),
    )
