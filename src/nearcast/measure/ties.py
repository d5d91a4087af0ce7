"""Ties: the share of equal scores in the lists, and a warning with the likely cause. Figures in, figures and text out.

A score is one float32. Vectors that are too short, too similar, or far from zero by a common offset have equal scores;
then the order of ids decides the list.
"""

from __future__ import annotations

import numpy as np

from nearcast.types import FloatArray, IntArray, Metric

__all__ = ["MOST_TIES", "count_ties", "tie_warning", "tied_share"]

MOST_TIES = 0.5  # of the candidates; integer vectors of few dimensions have fewer
TINY = 1e-37  # float32 holds few digits below, and none below 1e-45
CLOSE = 1e-6  # relative difference of scores that differ in the last digits of float32
COPIES = 0.5


def count_ties(scores: FloatArray) -> tuple[IntArray, IntArray]:
    """Return (n,) the candidates of each list but the first, and (n,) those whose score is that of the one before them.

    scores: (n, k) best first, -inf in empty slots.
    """
    filled = scores[:, 1:] > -np.inf
    tied = (scores[:, 1:] == scores[:, :-1]) & filled
    return filled.sum(axis=1), tied.sum(axis=1)


def tied_share(scores: FloatArray) -> float:
    """Return the share of candidates whose score is that of the candidate before them.

    scores: (n, k) best first, -inf in empty slots. The first candidate of a list is not counted.
    """
    filled, tied = count_ties(scores)
    return int(tied.sum()) / max(1, int(filled.sum()))


def tie_warning(share: float, scores: FloatArray, metric: Metric, copies: float = 0.0) -> str | None:
    """Return a warning with the likely cause if more than half of the candidates tie, else None.

    copies: the share of candidates with the same vector as the one before them.
    """
    if share <= MOST_TIES:
        return None
    return (
        f"scores cannot tell items apart: {share:.0%} of the candidates have the score of the one before them, "
        f"and the order of ids decides; {_likely_cause(scores, metric, copies)}"
    )


def _likely_cause(scores: FloatArray, metric: Metric, copies: float) -> str:
    filled = scores[scores > -np.inf].astype(np.float64)
    largest = float(np.abs(filled).max(initial=0.0))
    if copies > COPIES:
        return f"{copies:.0%} are copies of the one before them: are the vectors of the items all there?"
    if metric is not Metric.COSINE and 0.0 <= largest < TINY:
        return f"the scores are below what float32 holds (at most {largest:.1g}): multiply the vectors of both tables"
    spread = float(np.ptp(filled)) if len(filled) else 0.0
    if spread <= CLOSE * largest:
        return "the vectors are nearly the same, or share a large offset: subtract the mean vector of the items"
    return "the vectors take few values: use a model with more dimensions or finer numbers"
