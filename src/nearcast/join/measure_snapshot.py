"""Measures of a written snapshot: recall on sampled queries, and the changes since an earlier snapshot.

Chooses the earlier snapshot, and writes the sketches that the next run compares its vectors with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from nearcast.engines.base import Resources
from nearcast.join.context import RunContext
from nearcast.join.plan_join import JoinPlan, draw_samples, find_sample_truth
from nearcast.join.rank import read_retrieved_lists
from nearcast.join.select_candidates import SelectedLists
from nearcast.kernels import compute_norms
from nearcast.knn.exact_join import exact_join
from nearcast.knn.join_request import JoinRequest
from nearcast.knn.scores import rescore
from nearcast.measure.drift import VectorDrift, compare_sketches, sample_sketch_rows
from nearcast.measure.list_quality import Quality, choose_diagnosed, guess_metric, measure_quality
from nearcast.measure.sampled_recall import SampledLists, measure_overlap
from nearcast.sources.freed_memory import return_freed_memory
from nearcast.sources.ids import find_positions, find_sorted
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.sketches import SKETCH, Sketch, read_sketch, write_sketch
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Metric, Neighbors, PartOfVectors, Vectors

__all__ = ["BLOCK_SHARE", "SLOT_PAIR_BYTES", "Baseline", "EarlierSnapshot", "SnapshotQuality", "measure_snapshot"]

BLOCK_SHARE = 8  # true neighbors and lists of sampled queries take so much of the memory at a time, 1/n
SLOT_PAIR_BYTES = 24  # of a slot of a list with its true neighbor
BLOCK_BYTES = 4 << 20  # of vectors in float32 that are searched at a time
PROBES = 64  # old vectors that are searched for, to see whether their ids have moved
COSINE_ERROR = 0.01  # of a cosine in float32, generously
HEAD, HEAD_ERROR = 32, 0.001  # components that are compared first, and the error of that
SAME_COSINE = 0.98  # of a vector with itself a day later; vectors of another model are less similar to all


@dataclass(frozen=True, slots=True)
class EarlierSnapshot:
    """The snapshot that the measures of change compare with."""

    snapshot: Snapshot | None  # None: there is no earlier snapshot
    served: bool  # whether look-ups read it

    @property
    def facts(self) -> dict[str, int | bool] | None:
        """Value of the manifest's key `compared_with`."""
        return None if self.snapshot is None else {"version": self.snapshot.version, "served": self.served}


@dataclass(frozen=True, slots=True)
class Baseline:
    """State of the earlier snapshots: the served version, and versions that were refused or rolled back."""

    served: int | None = None  # None: nothing is published, or the history is not known
    rejected: frozenset[int] = frozenset()

    def choose(self, snapshots: Sequence[Snapshot]) -> EarlierSnapshot:
        """Choose from snapshots, oldest first: the served one, else the newest not rejected, else the newest."""
        served = [snapshot for snapshot in snapshots if snapshot.version == self.served]
        accepted = [snapshot for snapshot in snapshots if snapshot.version not in self.rejected]
        chosen = next(iter([*served, *reversed(accepted), *reversed(snapshots)]), None)
        return EarlierSnapshot(chosen, served=bool(served))


@dataclass(frozen=True, slots=True)
class SnapshotQuality:
    """Measures of a snapshot, and facts for the manifest that are not single numbers."""

    measures: dict[str, float]
    facts: dict[str, Any]  # slices, queries with the lowest recall, a more likely metric, a warning about ties


def measure_snapshot(
    run: RunContext,
    plan: JoinPlan,
    inputs: Inputs,
    lists: SelectedLists,
    snapshot: Snapshot,
    last: Snapshot | None,
    overlap: dict[str, float] | None = None,
) -> SnapshotQuality:
    """Measure recall on the report's sample, and the changes since `last`. Writes sketches into the snapshot.

    overlap: what `measure_overlap` finds, if the lists were updated and it is known.
    """
    with run.meter.stage("measure"):
        rows = draw_samples(run, inputs).report

        def read(some: IntArray) -> tuple[Neighbors, SampledLists | None]:
            truth = find_sample_truth(run, plan.request, inputs, some, run.workspace.truths)
            return_freed_memory()
            retrieved = read_retrieved_lists(run, inputs, some)
            if overlap is not None:
                retrieved = _read_updated_lists(lists, inputs, some, snapshot)
            return lists.derive_truth(truth, some, run.spec.k), retrieved

        block_slots = run.resources.memory_bytes // BLOCK_SHARE // SLOT_PAIR_BYTES
        quality = measure_quality(run.spec, snapshot, inputs, rows, read, last, block_slots)
        return_freed_memory()
        measures = quality.measures | measure_drift(snapshot.folder, inputs, last, run.spec.seed, run.resources)
        some = rows[choose_diagnosed(len(rows))]
        likely = guess_metric(plan.request, run.resources, inputs, some, quality.diagnosed, measures["recall"])
    if last is not None:
        with run.meter.stage("overlap"):
            measures |= overlap or measure_overlap(last, snapshot, run.listener.progress)
    _note_warnings(run, quality)
    facts = {
        "slices": [part.as_dict() for part in quality.slices],
        "worst_queries": quality.worst,
        "likely_metric": likely,
        "ties": quality.ties,
    }
    return SnapshotQuality(measures, facts)


def _read_updated_lists(
    lists: SelectedLists, inputs: Inputs, rows: IntArray, snapshot: Snapshot
) -> SampledLists | None:
    """Return the lists of these queries from positions; None if the table has others in one of its row groups.

    The table was written from the same positions, so one group shows whether it was written well.
    """
    if len(rows) == 0:
        return None
    items, queries = inputs.items, inputs.queries
    stored = lists.cut(lists.stored.read(rows), rows)
    numbers = find_sorted(queries.ids.take(pa.array(rows)), queries.listed_ids)
    groups = numbers // snapshot.manifest.group_rows
    read = np.flatnonzero(groups == groups[len(groups) // 2])
    written = snapshot.rows(numbers[read], ["candidate_ids"]).column(0).combine_chunks()
    positions = stored.positions[read]
    ids = items.ids.take(pa.array(positions[positions != EMPTY_POSITION]))
    if not np.array_equal(pc.list_value_length(written).to_numpy(), stored.lengths[read]):
        return None
    if not written.flatten().equals(ids.cast(written.type.value_type)):
        return None
    scored = rescore(queries.vectors.take(rows), items.vectors, stored.positions, inputs.metric)
    return SampledLists(scored.positions, scored.scores)


def _note_warnings(run: RunContext, quality: Quality) -> None:
    if quality.ties is not None:
        run.listener.note(quality.ties)
    for part in quality.slices:
        if part.below_promise:
            run.listener.note(
                f"recall of {part.by} {part.value} is {part.recall:.4f} ({part.low:.4f} to {part.high:.4f}, "
                f"{part.queries:,} queries): below the recall target of {run.spec.recall:g}"
            )


def measure_drift(
    folder: Path, inputs: Inputs, last: Snapshot | None, seed: int, resources: Resources
) -> dict[str, float]:
    """Write a sketch of each table into the snapshot's folder; compare it with the sketch of the earlier snapshot."""
    measures: dict[str, float] = {}
    tables = {"items": inputs.items} | ({} if inputs.queries is inputs.items else {"queries": inputs.queries})
    for name, table in tables.items():
        old = None if last is None else read_sketch(last.fetch(SKETCH), name)
        comparable = old is not None and old.ids.type == table.ids.type
        positions = find_sorted(old.ids, table.ids) if old is not None and comparable else np.empty(0, np.int64)
        rows = sample_sketch_rows(len(table.ids), positions[positions >= 0], seed)
        new = Sketch(table.ids.take(pa.array(rows)), np.asarray(table.vectors.take(rows), np.float32))
        write_sketch(folder, name, new)
        if old is None:
            continue
        matches = find_positions(old.ids, new.ids) if comparable else np.full(len(old.ids), -1)
        drift = compare_sketches(old.vectors, new.vectors, matches)
        if drift is None:
            continue
        if not math.isnan(drift.drift):
            measures[f"{name}_drift"] = drift.drift
        measures[f"{name}_shift"] = drift.shift
        measures[f"{name}_moved"] = _moved_share(old, drift, table, resources) if comparable else 0.0
    return measures


def _moved_share(old: Sketch, drift: VectorDrift, table: IngestedTable, resources: Resources) -> float:
    """Return the share of sketched ids whose old vector belongs to another id now: ids moved, the model did not."""
    if not len(drift.changed):
        return 0.0
    step = max(1, len(drift.changed) // PROBES)
    probes = drift.changed[::step]
    close = _find_close(old.vectors[probes], table.vectors)
    if not len(close):
        return 0.0
    items, request = PartOfVectors(table.vectors, close), JoinRequest(Metric.COSINE, 1)
    nearest = exact_join(old.vectors[probes], items, request, resources)
    own = find_sorted(old.ids.take(pa.array(probes)), table.ids)
    is_moved = (nearest.scores[:, 0] >= SAME_COSINE) & (close[nearest.positions[:, 0]] != own)
    return float(is_moved.mean()) * len(drift.changed) / len(old.ids)


def _find_close(vectors: FloatArray, items: Vectors) -> IntArray:
    """Return ascending positions of items: of all whose cosine with one of the vectors may be SAME_COSINE or more."""
    lengths = compute_norms(vectors)[:, None]
    directions = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0, casting="same_kind").T
    rest = np.sqrt(np.maximum(1 - (directions[:HEAD] ** 2).sum(axis=0), 0))  # length beyond the first components
    close = [np.empty(0, np.int64)]
    rows = max(1, BLOCK_BYTES // (4 * max(1, items.dim)))
    with threadpool_limits(1):  # a product so narrow is not faster with more
        for start in range(0, items.n, rows):
            block = np.ascontiguousarray(items.read(start, min(items.n, start + rows)))
            norms = compute_norms(block)
            least = (SAME_COSINE - COSINE_ERROR) * norms[:, None]
            head = np.asarray(block[:, :HEAD], np.float32)  # bounds the product, by Cauchy and Schwarz
            beyond = np.sqrt(np.maximum(norms**2 - np.einsum("ij,ij->i", head, head), 0))
            bound = head @ directions[:HEAD] + np.outer(beyond, rest)
            some = np.flatnonzero((bound >= least - HEAD_ERROR * norms[:, None]).any(axis=1))
            is_close = (np.asarray(block[some], np.float32) @ directions >= least[some]) & (least[some] > 0)
            close.append(start + some[is_close.any(axis=1)])
    return np.concatenate(close)
