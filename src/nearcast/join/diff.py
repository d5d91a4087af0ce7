"""The difference of two snapshots: candidates that came and went on sampled queries, and figures that moved, by cause.

Uses the snapshots: their lists, attributes, specs and manifests. The inputs of the newer one, if they are still there,
tell changed vectors from candidates that an approximate join missed. Cost: one pass over the lists of up to a million
queries, and with inputs an exact join of up to `recall_queries` queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.evaluation.label_hits import list_relevant
from nearcast.evaluation.label_set import LabelSet
from nearcast.evaluation.sorted_ids import convert_ids
from nearcast.join.candidate_causes import Id, MovedVectors, Pair, SnapshotSample, Went, find_causes
from nearcast.join.cause_decider import ChangeCause
from nearcast.join.change_shares import FigureChange, compute_figures, share_out
from nearcast.join.recall_change import (
    draw_recall_rows,
    list_engine_changes,
    list_setting_changes,
    measure_recall_change,
)
from nearcast.join.scored_items import SnapshotInputs
from nearcast.knn.scores import pair_scores
from nearcast.measure.recall import draw_rows
from nearcast.sources.ids import find_positions
from nearcast.stores.value_format import id_type
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray

__all__ = ["SAMPLE", "Change", "Diff", "DiffOptions", "Went", "diff_snapshots"]

SAMPLE = 2000  # queries
RECALL_QUERIES = 1000
SALT = 11  # of the seed: other samples of a run draw other queries
SCATTERED, BLOCKS = 1 << 20, 16  # rows of a table whose queries are drawn anywhere; ranges of a larger one
PAIRS_AT_ONCE = 8192
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Change:
    """Candidates that came or went for one cause."""

    cause: str  # of Went; "rule NAME" for a rule
    candidates: int
    share: float  # of all that came, or went
    examples: tuple[tuple[Id, Id], ...]  # query and item


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences of the newer of two snapshots."""

    generator: str
    before: str
    after: str
    settings: tuple[str, ...]  # that changed, in words
    queries: int  # of both snapshots, that were compared
    queries_came: int  # of the sample of the newer one, not in the older
    kept: float  # share of the older lists' candidates that are still there, over the compared queries
    unchanged: float  # share of the compared queries whose lists hold the same
    came: tuple[Change, ...]
    went: tuple[Change, ...]
    figures: tuple[FigureChange, ...] = ()  # recall, overlap, fill_rate and, with labels, hit_rate
    limits: tuple[str, ...] = ()  # why a part is not explained
    seed: int = 0  # of the sample

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class DiffOptions:
    """Sample and evidence of a comparison."""

    sample: int = SAMPLE  # maximum number of queries
    seed: int = 0
    inputs: SnapshotInputs | None = None  # of the newer snapshot; None: they are not here
    labels: LabelSet | None = None  # that the hit rate is measured by
    recall_queries: int = RECALL_QUERIES  # that are compared with all items, for the change of recall


DEFAULT = DiffOptions()


def diff_snapshots(older: Snapshot, newer: Snapshot, options: DiffOptions = DEFAULT) -> Diff:
    """Compare the lists of sampled queries. Raises InputError if the snapshots' ids have different types."""
    sampled, blocks = _draw_queries(newer, options)
    kinds = [snapshot.dataset("candidates").schema for snapshot in (older, newer)]
    if any(kinds[0].field(name).type != kinds[1].field(name).type for name in ("query_id", "candidate_ids")):
        raise InputError(f"{older.name} and {newer.name} have ids of different types: nothing can be compared")
    rows_of_recall = draw_recall_rows(newer, options.inputs, options.recall_queries)
    of_recall = _read_query_ids(options.inputs, rows_of_recall)
    relevant = _draw_labelled(options, kinds[1], sampled if blocks else None)
    queries = sampled if blocks else list(dict.fromkeys([*sampled, *of_recall, *relevant]))
    before, after = (SnapshotSample(one, queries, blocks) for one in (older, newer))
    both = dict.fromkeys(query for query in sampled if query in before.lists and query in after.lists)
    labelled = None if options.labels is None else _keep_compared(relevant, before, after)
    kept, unchanged, total = 0, 0, 0
    came: list[Pair] = []
    went: list[Pair] = []
    for query in both | dict.fromkeys(labelled or ()):
        old, new = set(before.lists[query].ids), set(after.lists[query].ids)
        if query in both:
            kept, total, unchanged = kept + len(old & new), total + len(old), unchanged + (old == new)
        went += [(query, item) for item in before.lists[query].ids if item not in new]
        came += [(query, item) for item in after.lists[query].ids if item not in old]
    compared = [query for query in before.queries if query in before.lists and query in after.lists]
    scores_now = {} if options.inputs is None else score_pairs_now(options.inputs, before, compared)
    vectors = MovedVectors.compare(before, after, compared, scores_now)
    came_causes = dict(zip(came, find_causes(came, there=after, other=before, vectors=vectors), strict=True))
    went_causes = dict(zip(went, find_causes(went, there=before, other=after, vectors=vectors), strict=True))
    changed = share_out(before, after, (came_causes, went_causes), vectors, scores_now)
    figures = compute_figures(before, after, list(both), changed, labelled)
    recall = measure_recall_change(before, after, rows_of_recall, options.inputs, vectors)
    return Diff(
        newer.generator,
        older.name,
        newer.name,
        (*list_setting_changes(before, after), *list_engine_changes(before, after)),
        len(both),
        len(sampled) - len(both),
        kept / total if total else 1.0,
        unchanged / len(both) if both else 1.0,
        _count_by_cause(came_causes, both),
        _count_by_cause(went_causes, both),
        (recall, *figures),
        tuple(_list_limits(before, after, (recall, *figures), options)),
        options.seed,
    )


def _draw_queries(snapshot: Snapshot, options: DiffOptions) -> tuple[list[Id], list[tuple[Id, Id]]]:
    """Draw the queries to compare: anywhere, or of a large table in blocks of neighbors, with their first and last id.

    Blocks bound the rows that are read of both tables, whatever their size.
    """
    n, seed = snapshot.n_rows, [options.seed, SALT]
    if n <= SCATTERED:
        rows = np.sort(draw_rows(n, options.sample, seed))
        return snapshot.rows(rows, ["query_id"]).column("query_id").to_pylist(), []
    size = -(-min(n, options.sample) // BLOCKS)
    starts = np.sort(draw_rows(n // size, BLOCKS, seed)) * size
    ids = [
        snapshot.rows(np.arange(start, start + size), ["query_id"]).column("query_id").to_pylist()
        for start in starts.tolist()
    ]
    return [query for block in ids for query in block], [(block[0], block[-1]) for block in ids]


def _read_query_ids(opened: SnapshotInputs | None, rows: IntArray) -> list[Id]:
    return [] if opened is None else opened.inputs.queries.ids.take(pa.array(rows)).to_pylist()


def score_pairs_now(opened: SnapshotInputs, before: SnapshotSample, queries: Sequence[Id]) -> dict[Pair, float]:
    """Score the pairs of the older lists by the newer snapshot's vectors; pairs without a vector now are left out."""
    inputs = opened.inputs
    pairs = [(query, item) for query in queries for item in before.lists[query].ids]
    if not pairs:
        return {}
    rows, items = (
        find_positions(pa.array([pair[side] for pair in pairs], table.ids.type), table.ids)
        for side, table in enumerate((inputs.queries, inputs.items))
    )
    known = np.flatnonzero((rows >= 0) & (items >= 0))
    scores: dict[Pair, float] = {}
    for start in range(0, len(known), PAIRS_AT_ONCE):
        part = known[start : start + PAIRS_AT_ONCE]
        left, right = inputs.queries.vectors.take(rows[part]), inputs.items.vectors.take(items[part])
        values = pair_scores(left, right, inputs.metric).tolist()
        scores |= {pairs[number]: value for number, value in zip(part.tolist(), values, strict=True)}
    return scores


def _draw_labelled(options: DiffOptions, schema: pa.Schema, among: Sequence[Id] | None) -> dict[Id, frozenset[Id]]:
    """Draw labelled queries, or take those of `among`; return their relevant items.

    schema: of the lists, whose types of ids they get.
    """
    labels = options.labels
    if labels is None:
        return {}
    types = id_type(schema.field("query_id").type), id_type(schema.field("candidate_ids").type.value_type)
    if among is None:
        return list_relevant(labels, types, draw_rows(len(labels.queries), options.sample, [options.seed, SALT]))
    keys = convert_ids(labels.queries, types[0])
    chosen = pc.is_in(keys, value_set=pa.array(among, keys.type), skip_nulls=True)
    return list_relevant(labels, types, np.flatnonzero(chosen.to_numpy(zero_copy_only=False)))


def _keep_compared(
    relevant: Mapping[Id, frozenset[Id]], before: SnapshotSample, after: SnapshotSample
) -> dict[Id, frozenset[Id]]:
    """Return the labelled queries that have a list in both snapshots. Raises InputError without one."""
    found = {query: items for query, items in relevant.items() if query in before.lists and query in after.lists}
    if not found and any(query in after.lists for query in before.lists):
        where = f"a list that is compared in both {before.snapshot.name} and {after.snapshot.name}"
        raise InputError(f"no labelled query has {where}; do labels have ids of the queries? else raise the sample")
    return found


def _list_limits(
    before: SnapshotSample, after: SnapshotSample, figures: Sequence[FigureChange], options: DiffOptions
) -> Iterator[str]:
    """Yield why a part of the changes is not explained."""
    if not any(query in after.lists for query in before.lists):
        yield f"no query of the sample is in both {before.snapshot.name} and {after.snapshot.name}: no list is compared"
    unexplained = [figure.figure for figure in figures if str(ChangeCause.UNEXPLAINED) in figure.causes]
    lists = [name for name in unexplained if name != "recall"]
    if lists and (before.approximate or after.approximate):
        kept = "" if options.inputs is not None else f", and the inputs of {after.snapshot.name} are not here"
        yield (
            f"{', '.join(lists)}: no score shows whether a vector changed or an approximate join missed the candidate"
            f"{kept}: vectors and engine cannot be told apart for the unexplained part"
        )
    if "recall" in unexplained and options.inputs is None:
        yield (
            f"recall: the inputs of {after.snapshot.name} are not here, so the missed neighbors are not known; "
            "causes cannot be told apart"
        )
    elif "recall" in unexplained:
        yield "recall: the rest is the difference of the samples, or several things changed at once"


def _count_by_cause(causes: Mapping[Pair, str], queries: Collection[Id]) -> tuple[Change, ...]:
    """Count the pairs of these queries by cause, the most frequent first."""
    causes = {pair: cause for pair, cause in causes.items() if pair[0] in queries}
    counts = Counter(causes.values())
    examples: dict[str, list[Pair]] = {}
    for pair, cause in causes.items():
        if len(examples.setdefault(cause, [])) < EXAMPLES:
            examples[cause].append(pair)
    return tuple(Change(cause, n, n / len(causes), tuple(examples[cause])) for cause, n in counts.most_common())
