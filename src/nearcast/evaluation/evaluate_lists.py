"""Evaluate lists by labels: metrics with intervals, paired differences with other lists, slices and promises.

Takes open labels and sources of lists, returns plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import InputError
from nearcast.evaluation.bootstrap import FEW_QUERIES, Resamples
from nearcast.evaluation.evaluation_report import (
    Evaluation,
    Figures,
    LabelFigure,
    RivalFigures,
    SliceFigures,
    check_promises,
)
from nearcast.evaluation.label_hits import compute_metrics, find_hits
from nearcast.evaluation.label_set import FloatArray64, LabelSet
from nearcast.evaluation.popular_items import count_unknown_items
from nearcast.evaluation.ranked_lists import RankedLists, SnapshotLists
from nearcast.measure.slices import FEWEST, Slice
from nearcast.settings.label_tables import parse_metric

__all__ = ["LabelQuestion", "evaluate_lists"]

DIGITS = 9  # sums of floats differ in the last digits between machines


@dataclass(frozen=True, slots=True)
class LabelQuestion:
    """What to measure."""

    generator: str
    version: int
    metrics: Sequence[str]
    promises: Mapping[str, float] = field(default_factory=dict)
    skip_unknown: bool = False  # leave out labelled queries without a list
    seed: int = 0


def evaluate_lists(
    question: LabelQuestion,
    labels: LabelSet,
    described: Mapping[str, Any],
    lists: SnapshotLists,
    rivals: Sequence[RankedLists] = (),
    slices: Sequence[Slice] = (),
) -> Evaluation:
    """Measure the lists, and their lead over each rival on the same queries.

    described: which labels were used, see `label_set.describe_labels`. slices: those with at least FEWEST measured
    queries, and not all, are in the result. Raises InputError if no query is left.
    """
    depth = max(parse_metric(name)[1] for name in question.metrics)
    hits = find_hits(lists, labels, depth)
    members = hits.has_list if question.skip_unknown else np.ones(len(hits.has_list), np.bool_)
    if not members.any():
        raise InputError(
            f"{lists.name} has a list for none of the labelled queries ({len(members):,}), for example "
            f"{labels.queries[0].as_py()!r}; are they labels of another generator?"
        )
    values = compute_metrics(hits, labels, question.metrics)[members]
    resamples = Resamples.draw(len(values), question.seed)
    estimate = _Estimator(question.metrics, resamples)
    inside_of = [(one.by, one.value, one.members[members]) for one in slices]
    chosen = [row for row in inside_of if FEWEST <= int(row[2].sum()) < len(values)]
    ours, found, leads_by_slice = estimate(values), [], []
    for number, rival in enumerate(rivals):
        other = find_hits(rival, labels, depth)
        theirs = compute_metrics(other, labels, question.metrics)[members]
        without = int((~other.has_list[members]).sum())
        found.append(RivalFigures(rival.name, estimate(theirs), estimate(values - theirs), without))
        if number == 0:
            leads_by_slice = [estimate(values - theirs, inside) for _, _, inside in chosen]
    known = int(hits.has_list.sum())
    return Evaluation(
        generator=question.generator,
        version=question.version,
        labels=described,
        queries=len(values),
        without_list=len(members) - known,
        unknown_items=_count_unknown(labels, lists),
        metrics=ours,
        rivals=tuple(found),
        slices=tuple(
            SliceFigures(
                by, value, int(inside.sum()), estimate(values, inside), leads_by_slice[at] if leads_by_slice else None
            )
            for at, (by, value, inside) in enumerate(chosen)
        ),
        promises=check_promises(ours, question.promises),
        notes=tuple(_list_notes(labels, lists, len(values), known)),
    )


@dataclass(frozen=True, slots=True)
class _Estimator:
    """Means of metrics with intervals, from one set of draws."""

    metrics: Sequence[str]
    resamples: Resamples

    def __call__(self, values: FloatArray64, members: npt.NDArray[np.bool_] | None = None) -> Figures:
        """Return the figure of each metric. values: (queries, metrics). members: the queries of a slice."""
        means = (values if members is None else values[members]).mean(axis=0)
        low, high = self.resamples.find_interval(values, members)
        rows = zip(self.metrics, means.tolist(), low.tolist(), high.tolist(), strict=True)
        return {name: LabelFigure(*(round(number, DIGITS) for number in numbers)) for name, *numbers in rows}


def _count_unknown(labels: LabelSet, lists: SnapshotLists) -> int | None:
    if not lists.files.has("items"):
        return None
    named = np.unique(labels.items[labels.relevant])
    return count_unknown_items(labels.item_ids.take(pa.array(named)), lists)


def _list_notes(labels: LabelSet, lists: SnapshotLists, measured: int, known: int) -> list[str]:
    """Return warnings: the figures mean less than they seem to."""
    notes = []
    if not known:
        notes.append(
            f"no labelled query has a list in {lists.name}, for example {labels.queries[0].as_py()!r}; are they labels "
            "of another generator?"
        )
    if measured < FEW_QUERIES:
        words = "1 query is" if measured == 1 else f"{measured} queries are"
        notes.append(f"{words} few: the intervals are narrower than they should be")
    if labels.counts.sampled < 1:
        notes.append(f"a sample of the queries is measured, about {labels.counts.sampled:.1%} of them")
    return notes
