"""What has happened to the vectors of both sides since the last snapshot: sketches written, and compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from nearcast.engines.base import JoinRequest, Resources
from nearcast.knn.exact_join import exact_join
from nearcast.measure.drift import Drift, sketch_drift, sketch_rows
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.sketches import Sketch, read_sketch, write_sketch
from nearcast.table.snapshot import Snapshot
from nearcast.types import Metric

__all__ = ["measure_drift"]

SOUGHT = 64  # vectors whose whereabouts tell whether ids have moved
SAME = 0.98  # cosine of a vector with itself a day later; one of another model is further from all of them


def measure_drift(
    folder: Path, inputs: Inputs, last: Snapshot | None, seed: int, resources: Resources
) -> dict[str, float]:
    """Sketch both sides into the snapshot's folder; the measures of what differs from the last snapshot's sketches."""
    measures: dict[str, float] = {}
    sides = {"items": inputs.items} | ({} if inputs.queries is inputs.items else {"queries": inputs.queries})
    for name, side in sides.items():
        old = None if last is None else read_sketch(last.folder, name)
        known = old is not None and old.ids.type == side.ids.type
        there = positions_of(old.ids, side.ids) if old is not None and known else np.empty(0, np.int64)
        rows = sketch_rows(len(side.ids), there[there >= 0], seed)
        new = Sketch(side.ids.take(pa.array(rows)), np.asarray(side.vectors.take(rows), np.float32))
        write_sketch(folder, name, new)
        if old is None:
            continue
        places = positions_of(old.ids, new.ids) if known else np.full(len(old.ids), -1)
        found = sketch_drift(old.vectors, new.vectors, places)
        if found is None:
            continue
        if not math.isnan(found.drift):
            measures[f"{name}_drift"] = found.drift
        measures[f"{name}_shift"] = found.shift
        measures[f"{name}_moved"] = _moved_share(old, found, side, resources) if known else 0.0
    return measures


def _moved_share(old: Sketch, drift: Drift, side: IngestedTable, resources: Resources) -> float:
    """Of the sketched ids, the share whose old vector another id has now: a shifted file, not another model."""
    if not len(drift.changed):
        return 0.0
    step = max(1, len(drift.changed) // SOUGHT)
    sought = drift.changed[::step]
    nearest = exact_join(old.vectors[sought], side.vectors, JoinRequest(Metric.COSINE, 1), resources)
    own = positions_of(old.ids.take(pa.array(sought)), side.ids)
    elsewhere = (nearest.scores[:, 0] >= SAME) & (nearest.positions[:, 0] != own)
    return float(elsewhere.mean()) * len(drift.changed) / len(old.ids)
