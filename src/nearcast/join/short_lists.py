"""Why lists are shorter than k, found out for the short ones alone.

The exact join without the least score, and the count of the eligible items, tell the causes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import Resources
from nearcast.join.task import JoinTask, result_lengths
from nearcast.kernels import eligible_counts
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import eligible_of
from nearcast.knn.exact_join import exact_join
from nearcast.measure.sampled_recall import exclusions
from nearcast.sources.ingest import Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.types import IntArray, Metric

__all__ = ["CODES", "Shortfall", "reachable_items", "reason_codes", "short_reasons"]

CODES: tuple[Reason | None, ...] = (None, *Reason)

CodeArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What a join was asked, as far as the reasons of short lists depend on it."""

    k: int
    metric: Metric
    exclude_self: bool
    constraints: Constraints  # of all queries
    complete: bool  # the engine's effort was full, and full effort is exact
    resources: Resources


def short_reasons(asked: Shortfall, tasks: Sequence[JoinTask], inputs: Inputs) -> CodeArray:
    """(queries,) a number of CODES for every query; 0 for a full list."""
    lengths = result_lengths(tasks, inputs.queries.vectors.n)
    codes = np.zeros(len(lengths), np.uint8)
    short = np.flatnonzero(lengths < asked.k)
    if len(short):
        codes[short] = reason_codes(asked, inputs, short, lengths[short])
    return codes


def reason_codes(asked: Shortfall, inputs: Inputs, rows: IntArray, lengths: IntArray) -> CodeArray:
    """(len(rows),) why the lists of these queries, of these lengths, are short."""
    held = asked.constraints
    every = lengths >= reachable_items(asked, inputs, rows)
    codes = np.full(len(rows), CODES.index(Reason.TOO_FEW_ELIGIBLE), np.uint8)
    rest = np.flatnonzero(~every)
    if not len(rest):
        return codes
    if not asked.complete:
        longest = _lengths(asked, held, inputs, rows[rest])
        codes[rest] = CODES.index(Reason.NOT_PROBED)
        rest = rest[longest <= lengths[rest]]
    scored, capped = held.min_score is not None, bool(held.caps)
    codes[rest] = CODES.index(Reason.CAPPED if capped else Reason.BELOW_MIN_SCORE)
    if scored and capped and len(rest):
        freed = _lengths(asked, replace(held, min_score=None), inputs, rows[rest])
        codes[rest[freed > lengths[rest]]] = CODES.index(Reason.BELOW_MIN_SCORE)
    return codes


def reachable_items(asked: Shortfall, inputs: Inputs, rows: IntArray) -> IntArray:
    """(len(rows),) how many items each of these queries may get, scores and caps aside."""
    counts = np.full(len(rows), inputs.items.vectors.n, np.int64)
    own = exclusions(inputs.items, inputs.queries, rows, exclude_self=asked.exclude_self)
    barred = None if own is None else np.flatnonzero(own >= 0)
    rule = asked.constraints.eligibility
    if rule is not None:
        counts = eligible_counts(rule.of_queries(rows), asked.resources.threads).astype(np.int64)
    if own is not None and barred is not None:
        counts[barred] -= 1 if rule is None else eligible_of(rule, rows[barred], own[barred])
    return counts


def _lengths(asked: Shortfall, constraints: Constraints, inputs: Inputs, rows: IntArray) -> IntArray:
    """(len(rows),) how long the exact lists would be."""
    lengths: IntArray = exact_join(
        inputs.queries.vectors.take(rows),
        inputs.items.vectors,
        asked.k,
        asked.metric,
        exclude=exclusions(inputs.items, inputs.queries, rows, exclude_self=asked.exclude_self),
        constraints=constraints.of_queries(rows),
        threads=asked.resources.threads,
        memory_bytes=asked.resources.memory_bytes,
    ).lengths
    return lengths
