"""The change of recall between two snapshots, by cause, and which settings and joins differ.

The true neighbors of the queries that the run measured recall on fall into groups: new items, pairs whose vectors
changed, and all others. With r0, the recall before, a group of share w and recall r makes w * (r - r0) of the change,
and these add up to it. Needs the inputs of the newer snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.join.candidate_causes import Id, MovedVectors, SnapshotSample
from nearcast.join.cause_decider import ChangeCause
from nearcast.join.change_shares import ROUNDING, FigureChange
from nearcast.join.scored_items import SnapshotInputs
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.list_figures import find_hits
from nearcast.measure.sampled_recall import find_truth, read_sampled_lists, sample_queries
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Neighbors

__all__ = ["draw_recall_rows", "list_engine_changes", "list_setting_changes", "measure_recall_change"]

JOIN_RESOURCES = Resources(1, 256 << 20)
NO_EFFECT = (  # settings without effect on lists
    *("memory", "threads", "out", "publish", "audit", "canary", "serve", "monitor", "measure", "labels", "promise"),
)


def draw_recall_rows(snapshot: Snapshot, opened: SnapshotInputs | None, most: int) -> IntArray:
    """Return ascending positions of queries that the run measured recall on, at most `most` of them.

    Returns none without inputs, and with a ranking model or an exposure cap: the lists alone do not show recall then.
    """
    if opened is None or opened.spec.rank is not None or opened.spec.exposure is not None:
        return np.empty(0, np.int64)
    size = min(most, int(snapshot.manifest.measures.get("recall_sample", most)))
    (rows,) = sample_queries(opened.inputs.queries, (size,), opened.spec.seed)
    return rows


def measure_recall_change(
    before: SnapshotSample,
    after: SnapshotSample,
    rows: IntArray,
    opened: SnapshotInputs | None,
    vectors: MovedVectors,
) -> FigureChange:
    """Return the change of recall from one manifest to the other, by cause.

    rows: of `draw_recall_rows`; without any, the cause of the whole change is the one thing that differs, or unknown.
    """
    old, new = (float(sample.snapshot.manifest.measures["recall"]) for sample in (before, after))
    sums: dict[ChangeCause, float] = dict.fromkeys(ChangeCause, 0.0)
    if old != new and opened is not None and len(rows):
        _add_groups(sums, before, after, rows, opened, vectors, old)
        rest = ChangeCause.UNEXPLAINED  # what the whole sample of the run has beside these queries
    else:
        rest = _find_only_change(before, after)
    sums[rest] += (new - old) - math.fsum(sums.values())
    found = {str(cause): value for cause, value in sums.items() if abs(value) > ROUNDING}
    return FigureChange("recall", old, new, found, len(rows))


def _add_groups(
    sums: dict[ChangeCause, float],
    before: SnapshotSample,
    after: SnapshotSample,
    rows: IntArray,
    opened: SnapshotInputs,
    vectors: MovedVectors,
    old: float,
) -> None:
    """Add w * (r - r0) of each group of true neighbors to the sums."""
    inputs, spec = opened.inputs, after.spec
    request = JoinRequest(inputs.metric, spec.k, exclude_self=spec.exclude_self, constraints=opened.constraints)
    truth = find_truth(inputs, rows, request, JOIN_RESOURCES)
    lists = read_sampled_lists(after.snapshot, inputs, rows, inputs.metric, spec.k)
    hits = find_hits(lists, truth)
    ids = inputs.queries.ids.take(pa.array(rows)).to_pylist()
    names = _name_items(truth, inputs.items.ids)
    known = _list_known(before, names.values())
    others = _find_only_change(before, after)
    for row, query in enumerate(ids):
        places = np.flatnonzero(truth.positions[row] >= 0)
        if not len(places):  # a query without true neighbors has recall 1
            sums[others] += (1.0 - old) / len(rows)
        for place in places.tolist():
            item = names[int(truth.positions[row, place])]
            cause = others
            if item not in known:
                cause = ChangeCause.NEW_ITEMS
            elif vectors.has_moved(query, item):
                cause = ChangeCause.VECTORS
            sums[cause] += (float(hits[row, place]) - old) / (len(places) * len(rows))


def _name_items(truth: Neighbors, ids: Any) -> dict[int, Id]:
    positions = np.unique(truth.positions[truth.positions >= 0])
    return dict(zip(positions.tolist(), ids.take(pa.array(positions)).to_pylist(), strict=True))


def _list_known(sample: SnapshotSample, items: Any) -> set[Id]:
    """Return those of the items that a snapshot had."""
    dataset = sample.snapshot.dataset("items")
    keys = pa.array(list(items)).cast(dataset.schema.field("id").type)
    found = dataset.to_table(columns=["id"], filter=pc.field("id").isin(keys), use_threads=False)
    return set(found.column("id").to_pylist())


def _find_only_change(before: SnapshotSample, after: SnapshotSample) -> ChangeCause:
    """Return the one thing beside the data that differs; UNEXPLAINED if nothing does, or several things."""
    specs = [_list_settings(sample.spec.as_recorded()) for sample in (before, after)]
    changed = [ChangeCause.ENGINE] if list_engine_changes(before, after) else []
    changed += [ChangeCause.RULES] if specs[0].pop("rules") != specs[1].pop("rules") else []
    changed += [ChangeCause.SETTINGS] if specs[0] != specs[1] else []
    return changed[0] if len(changed) == 1 else ChangeCause.UNEXPLAINED


def _list_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide lists, without those of the engine."""
    names = ("metric", "k", "exclude_self", "min_score", "caps", "rules", "surplus", "exposure", "score", "rank")
    return {name: spec.get(name) for name in names}


def list_engine_changes(before: SnapshotSample, after: SnapshotSample) -> list[str]:
    """Return in words what differs between the joins: engine, settings, search parameters, version of nearcast."""
    old, new = before.snapshot.manifest, after.snapshot.manifest
    pairs = [
        ("the engine", old.engine.name, new.engine.name),
        ("engine settings", dict(old.engine.settings), dict(new.engine.settings)),
        ("search parameters", dict(old.engine.params), dict(new.engine.params)),
        ("nearcast", old.software, new.software),
    ]
    return [f"{what} was {then} and is {now}" for what, then, now in pairs if then != now]


def list_setting_changes(before: SnapshotSample, after: SnapshotSample) -> list[str]:
    """Return in words which settings of the specs differ, of those that have an effect on lists."""
    old, new = (sample.spec.model_dump(mode="json", exclude=set(NO_EFFECT)) for sample in (before, after))
    return list(_describe_settings(old, new))


def _describe_settings(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _describe_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old!r} and is {new!r}"
