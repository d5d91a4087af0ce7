"""Audit the state after an update: the rules of a publish that can be computed from the totals and the changed lists.

Compares with the version as it was published, so that many small updates are judged like one large one. A rule that the
version fails already refuses only what makes it worse. Rules about distributions of input columns need a run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nearcast.errors import AuditError
from nearcast.measure.profile import estimate_noise, psi
from nearcast.settings.publish_tables import AuditSpec
from nearcast.sources.ids import find_positions
from nearcast.stores.base import Space
from nearcast.stores.value_format import CandidateLists, decode_lists
from nearcast.types import FloatArray
from nearcast.updating.change_lists import ChangedLists
from nearcast.updating.live_table import LiveTable
from nearcast.updating.open_state import ServedVersion
from nearcast.updating.served_state import ServedState

__all__ = ["audit_update"]

SAMPLED_LISTS = 2_000
DECILES = np.arange(0.1, 1.0, 0.1)


@dataclass(frozen=True, slots=True)
class _Totals:
    """Figures of a state."""

    keys: int
    fill_rate: float
    coverage: float
    items: int
    items_kept: float  # share of the published items that are still served
    vectors_changed: float  # share of those whose vector differs


def audit_update(before: ServedState, changes: ChangedLists, version: ServedVersion, audit: AuditSpec) -> None:
    """Raise AuditError with every rule that the state after the update fails. version: with the patches of `before`."""
    after = changes.after
    faults = [*_judge_totals(before, after, version, audit), *_judge_lists(before, changes, version, audit)]
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise AuditError(
            f"the update of {version.facts.generator} {version.number:06d} is not applied; failed rules of the audit: "
            f"{len(faults)}{lines}\ncheck the batch, change the bound in [audit], or run and publish instead"
        )


def _judge_totals(before: ServedState, after: ServedState, version: ServedVersion, audit: AuditSpec) -> Iterator[str]:
    old, new = _add_up(before, version), _add_up(after, version)
    least = max(audit.min_keys, math.ceil(version.facts.keys * (1 - audit.max_keys_lost) - 1e-6))
    if new.keys < min(least, old.keys):
        yield f"keys: {new.keys:,} lists would be left, and {least:,} are asked for"
    shares = [
        ("fill_rate", "the share of filled slots", old.fill_rate, new.fill_rate, audit.min_fill_rate),
        ("query_coverage", "the share of lists with an item", old.coverage, new.coverage, audit.min_query_coverage),
        ("items_kept", "the share of published items", old.items_kept, new.items_kept, audit.min_items_kept),
    ]
    for rule, what, earlier, share, bound in shares:
        if share < min(bound, earlier):
            yield f"{rule}: {what} would be {share:.2%} after {earlier:.2%}, and {bound:.2%} is asked for"
    published = before.items.base.vectors.n
    if new.items < min(math.ceil(published * (1 - audit.max_items_lost) - 1e-6), old.items):
        yield f"items: {new.items:,} of {published:,} items would be left, and max_items_lost is {audit.max_items_lost}"
    if new.items > max(published * (1 + audit.max_items_gained), old.items):
        yield (
            f"items: the {published:,} published items would become {new.items:,}, and max_items_gained is "
            f"{audit.max_items_gained}"
        )
    if new.vectors_changed > max(audit.max_vectors_changed, old.vectors_changed):
        yield (
            f"vectors: {new.vectors_changed:.2%} of the published items would have another vector, and at most "
            f"{audit.max_vectors_changed:.2%} may; were they made by another model?"
        )


def _add_up(state: ServedState, version: ServedVersion) -> _Totals:
    without_vector = max(0, version.facts.keys - state.queries.base.vectors.n)  # their lists stay empty
    keys = state.queries.n + without_vector
    kept, changed = _compare_published(state.items)
    return _Totals(
        keys,
        float(state.lengths.sum()) / max(1, keys * state.spec.k),
        int(np.count_nonzero(state.lengths)) / max(1, keys),
        state.items.n,
        kept / max(1, state.items.base.vectors.n),
        changed / max(1, kept),
    )


def _compare_published(items: LiveTable) -> tuple[int, int]:
    """Return the number of published items that are still there, and of those whose vector differs."""
    at = find_positions(items.added.ids.cast(items.base_ids.type), items.base_ids)
    rows = np.flatnonzero(at >= 0)
    differs = (items.base.vectors.take(at[rows]) != items.added.vectors[rows]).any(axis=1)
    kept = len(items.removed) - int(items.removed.sum()) + len(rows)
    return kept, int(np.count_nonzero(differs))


def _judge_lists(before: ServedState, changes: ChangedLists, version: ServedVersion, audit: AuditSpec) -> Iterator[str]:
    """Compare a sample of the changed lists with what they were."""
    n = len(changes.keys)
    rows = random.Random(changes.after.items.n).sample(range(n), min(n, SAMPLED_LISTS))
    stored = version.reader.get_many(Space.LISTS, [changes.keys[row] for row in rows])
    both = [(old, changes.values[row]) for old, row in zip(stored, rows, strict=True) if old is not None]
    if not both:
        return
    old, new = (decode_lists(side, version.facts.item_ids) for side in zip(*both, strict=True))
    overlap = 1 - (n - changes.n_new) / max(1, before.queries.n) * (1 - _mean_overlap(old, new))
    if overlap < audit.min_overlap:
        yield f"overlap: lists would keep {overlap:.2%} of their items, and {audit.min_overlap:.2%} is asked for"
    drift, bound = _compare_scores(old.scores, new.scores, len(both))
    if drift > audit.max_drift + bound:
        medians = [f"{np.median(side.scores):.6g}" for side in (old, new)]
        yield (
            f"scores: the median score of {len(both):,} changed lists would be {medians[1]} after {medians[0]} (PSI "
            f"{drift:.2f}, and at most {audit.max_drift + bound:.2f} is allowed for so many); were the vectors made by "
            "another model, or scaled?"
        )


def _mean_overlap(old: CandidateLists, new: CandidateLists) -> float:
    """Return the mean share of the old candidates that are in the new list, of lists that were not empty."""
    parts = (_split_ids(old), _split_ids(new))
    shares = [len(set(then) & set(now)) / len(then) for then, now in zip(*parts, strict=True) if then]
    return sum(shares) / len(shares) if shares else 1.0


def _split_ids(lists: CandidateLists) -> Sequence[Sequence[str | int]]:
    ids, offsets = lists.ids.to_pylist(), lists.offsets.tolist()
    return [ids[start:stop] for start, stop in pairwise(offsets)]


def _compare_scores(old: FloatArray, new: FloatArray, lists: int) -> tuple[float, float]:
    """Return the PSI over the deciles of the old scores, and what chance may cause. Scores of a list are alike."""
    if not len(old) or not len(new):
        return 0.0, 0.0
    edges = np.unique(np.quantile(old, DECILES))
    shares = [np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) / len(side) for side in (old, new)]
    return psi(*shares), estimate_noise(len(edges) + 1, lists, lists)
