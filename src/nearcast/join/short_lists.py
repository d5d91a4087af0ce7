"""Find why lists are shorter than k.

Counts the eligible items of the short lists' queries, and joins these queries exactly, with and without `min_score`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import JoinRequest, Resources
from nearcast.kernels import eligible_counts
from nearcast.knn.eligible import are_eligible
from nearcast.measure.sampled_recall import find_own_items, find_truth
from nearcast.sources.ingest import Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["CODES", "CodeArray", "count_reachable", "find_reasons"]

CODES: tuple[Reason | None, ...] = (None, *Reason)

SMALLEST_BLOCK = 512  # queries that are explained at once: the block of the exact join

CodeArray = npt.NDArray[np.uint8]


def find_reasons(
    request: JoinRequest, resources: Resources, inputs: Inputs, rows: IntArray, lengths: IntArray, *, exact: bool
) -> CodeArray:
    """Return (len(rows),) an index into CODES for the joined lists of these queries; 0 for a full list.

    rows: query positions. lengths: of their lists. exact: of the join's parameters. Vectors are read in blocks.
    """
    codes = np.zeros(len(lengths), np.uint8)
    short = np.flatnonzero(lengths < request.k)
    row_bytes = inputs.queries.vectors.dim * 8 + request.k * 32
    step = max(SMALLEST_BLOCK, resources.memory_bytes // 8 // row_bytes)
    for start in range(0, len(short), step):
        some = short[start : start + step]
        codes[some] = _explain_lengths(request, resources, inputs, rows[some], lengths[some], exact=exact)
    return codes


def _explain_lengths(
    request: JoinRequest, resources: Resources, inputs: Inputs, rows: IntArray, lengths: IntArray, *, exact: bool
) -> CodeArray:
    """Return (len(rows),) why the lists of these queries, of these lengths, are short."""
    constraints = request.constraints
    complete = lengths >= count_reachable(request, resources, inputs, rows)
    codes = np.full(len(rows), CODES.index(Reason.TOO_FEW_ELIGIBLE), np.uint8)
    rest = np.flatnonzero(~complete)
    if not len(rest):
        return codes
    if not exact:
        exact_lengths = find_truth(inputs, rows[rest], request, resources).lengths
        codes[rest] = CODES.index(Reason.NOT_PROBED)
        rest = rest[exact_lengths <= lengths[rest]]
    scored, capped = constraints.min_score is not None, bool(constraints.max_per_group)
    codes[rest] = CODES.index(Reason.CAPPED if capped else Reason.BELOW_MIN_SCORE)
    if scored and capped and len(rest):
        unscored = replace(request, constraints=constraints.without_min_score())
        longer = find_truth(inputs, rows[rest], unscored, resources).lengths > lengths[rest]
        codes[rest[longer]] = CODES.index(Reason.BELOW_MIN_SCORE)
    return codes


def count_reachable(request: JoinRequest, resources: Resources, inputs: Inputs, rows: IntArray) -> IntArray:
    """Return (len(rows),) the number of items that each of these queries may get, regardless of scores and caps.

    Counts range by range where the rules are compiled by shard.
    """
    counts = np.zeros(len(rows), np.int64)
    own = find_own_items(inputs, rows) if request.exclude_self else np.full(len(rows), EMPTY_POSITION)
    constraints = request.constraints.of_queries(rows)
    for start, stop in constraints.ranges(inputs.items.vectors.n):
        rule = constraints.of_items(start, stop).eligibility
        counts += stop - start if rule is None else eligible_counts(rule, resources.threads).astype(np.int64)
        excluded = np.flatnonzero((own >= start) & (own < stop))
        counts[excluded] -= 1 if rule is None else are_eligible(rule, excluded, own[excluded] - start)
    return counts
