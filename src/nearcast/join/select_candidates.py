"""The lists that are stored, selected from the lists of the join: exposure cap, planned over-fetch.

Also the effects on later stages: which lists count as short, and the true list of a query. The items that an
exposure cap has filled up are stored with the snapshot, for `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.artifact_files import map_array
from nearcast.files import fresh_folder
from nearcast.join.context import RunContext
from nearcast.join.joined_lists import JoinedLists, ListRange
from nearcast.join.plan_overfetch import Survival, plan_overfetch
from nearcast.join.short_lists import CODES, CodeArray
from nearcast.join.spill_exposure import SpilledCap, spill_exposure
from nearcast.knn.exposure import AdmissionThresholds, CappedLists, cap_exposure, find_admitted
from nearcast.knn.topk import cut_lists
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.table.candidate_schema import Reason
from nearcast.table.snapshot import Snapshot
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = [
    "FULL_FILE",
    "SelectedLists",
    "StoredLengths",
    "open_selected",
    "read_full_items",
    "select_lists",
    "write_full_items",
]

EXPOSURE = "exposure"  # the part of a snapshot with an exposure cap
FULL_FILE = "full.parquet"
SNAPSHOT_FILES = "snapshot"  # folder of the files that become part of the snapshot
CAP_BYTES, ITEM_BYTES = 48, 32  # memory per candidate and item while exposure is capped: read, sorted, selected


@dataclass(frozen=True, slots=True, eq=False)
class StoredLengths:
    """The number of candidates that an over-fetch plan stores for each query."""

    lengths: IntArray  # (queries,)
    is_short: npt.NDArray[np.bool_]  # (queries,) below the wanted probability


@dataclass(frozen=True, slots=True)
class SelectedLists:
    """The lists that are stored, and the lists of the join that they are selected from."""

    joined: JoinedLists
    stored: JoinedLists  # k wide; rows are cut to the planned lengths
    plan: StoredLengths | None = None  # of the over-fetch
    thresholds: AdmissionThresholds | None = None  # of the exposure cap
    measures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def cut(self, stored: Neighbors, positions: IntArray) -> Neighbors:
        """Cut stored lists of these queries to their planned lengths."""
        return stored if self.plan is None else cut_lists(stored, self.plan.lengths[positions])

    def reason_codes(
        self, codes: CodeArray, positions: IntArray, joined: IntArray, stored: IntArray, k: int
    ) -> CodeArray:
        """Derive the reason codes of stored lists from those of joined lists. A list as long as planned has none.

        positions: (n,) of the queries. joined, stored: (n,) lengths of their lists, before these are cut.
        """
        if self.thresholds is not None:
            codes = np.where(stored < np.minimum(joined, k), CODES.index(Reason.CAPPED), codes).astype(np.uint8)
        if self.plan is not None:
            is_short = self.plan.is_short[positions] & (self.plan.lengths[positions] == stored)
            codes = np.where(is_short, codes, 0).astype(np.uint8)
        return codes

    def target_lengths(self, codes: CodeArray, positions: IntArray, k: int) -> IntArray | None:
        """Return the candidates that these lists should have: the planned number, or k where the plan falls short.

        None: k each. codes: of their stored lists.
        """
        return None if self.plan is None else np.where(codes > 0, k, self.plan.lengths[positions])

    def derive_truth(self, truth: Neighbors, rows: IntArray, k: int) -> Neighbors:
        """Return the lists that these queries should store, from their exact neighbors among all items.

        Under an exposure cap: the best k items whose threshold the score reaches. With over-fetch: as many as planned.
        """
        if self.thresholds is not None:
            truth = _take_first(truth, find_admitted(truth.positions, truth.scores, rows, self.thresholds), k)
        return self.cut(truth, rows)


def select_lists(
    run: RunContext, joined: JoinedLists, inputs: Inputs, survival: Survival | None, folder: Path
) -> dict[str, Any]:
    """Apply the exposure cap and the over-fetch plan to the lists of the join; write into `folder` what follows.

    Lists and lengths, from which later tasks read their rows; and, for the snapshot, the filled-up items and the
    queries without enough survivors. Returns measures and facts for the manifest.
    """
    measures: dict[str, float] = {}
    facts: dict[str, Any] = {}
    stored = joined
    if run.spec.exposure is not None:
        capped = _cap_lists(run, run.spec.exposure.max_lists_per_item, joined, inputs, folder)
        write_full_items(capped.thresholds, inputs, folder / SNAPSHOT_FILES)
        stored = _list_stored(joined, folder, run.spec.k)
        measures |= {
            "exposure_score_lost": capped.score_lost,
            "exposure_fill_lost": capped.fill_lost,
            "exposure_full": capped.full_items,
        }
        facts["exposure"] = {"rounds": capped.rounds}
    if survival is not None:
        planned = plan_overfetch(run, stored, inputs, survival, folder / SNAPSHOT_FILES)
        np.save(folder / "lengths.npy", planned.plan.lengths)
        np.save(folder / "is_short.npy", planned.plan.is_short)
        measures, facts = measures | planned.measures, facts | planned.facts
    return {"measures": measures, "facts": facts}


def open_selected(joined: JoinedLists, folder: Path | None, facts: Mapping[str, Any], k: int) -> SelectedLists:
    """Open what `select_lists` wrote; arrays are mapped. folder: None where nothing was selected."""
    if folder is None:
        return SelectedLists(joined, joined)
    stored, plan, thresholds = joined, None, None
    if (folder / "thresholds").is_dir():
        thresholds = AdmissionThresholds(*(map_array(path) for path in _threshold_files(folder)))
        stored = _list_stored(joined, folder, k)
    if (folder / "lengths.npy").is_file():
        plan = StoredLengths(map_array(folder / "lengths.npy"), map_array(folder / "is_short.npy"))
    return SelectedLists(joined, stored, plan, thresholds, facts["measures"], facts["facts"])


def _cap_lists(
    run: RunContext, max_lists: int, joined: JoinedLists, inputs: Inputs, folder: Path
) -> CappedLists | SpilledCap:
    """Apply the exposure cap in memory, or with its state in files if the candidates do not fit. Writes the lists."""
    n, m, k = inputs.queries.vectors.n, inputs.items.vectors.n, run.spec.k
    memory = run.resources.memory_bytes
    if n * joined.width * CAP_BYTES + m * ITEM_BYTES <= memory:
        capped = cap_exposure(joined.read(np.arange(n)), k, max_lists, n_items=m)
        _write_lists(joined, folder, 0, n, capped.lists)
        fresh_folder(folder / "thresholds")
        score_file, query_file = _threshold_files(folder)
        np.save(score_file, capped.thresholds.scores)
        np.save(query_file, capped.thresholds.queries)
        return capped
    return spill_exposure(
        lambda start, stop: joined.read(np.arange(start, stop)),
        partial(_write_lists, joined, folder),
        (n, joined.width, m),
        (k, max_lists),
        folder,
        memory // 2,
    )


def _write_lists(joined: JoinedLists, folder: Path, start: int, stop: int, lists: Neighbors) -> None:
    """Write the lists of the queries start..stop-1 into the ranges of the joined lists, in order."""
    for number, part in enumerate(joined.ranges):
        first, last = max(start, part.start), min(stop, part.stop)
        if first >= last:
            continue
        home = _lists_folder(folder, number)
        if first == part.start:
            fresh_folder(home)
        for name, values in (("positions", lists.positions), ("scores", lists.scores)):
            shape = part.stop - part.start, values.shape[1]
            mode: Literal["w+", "r+"] = "w+" if first == part.start else "r+"
            mapped = np.lib.format.open_memmap(home / f"{name}.npy", mode, values.dtype, shape)
            mapped[first - part.start : last - part.start] = values[first - start : last - start]
            mapped.flush()


def _list_stored(joined: JoinedLists, folder: Path, k: int) -> JoinedLists:
    """Return the stored lists, in the ranges of the joined lists."""
    ranges = enumerate(joined.ranges)
    return JoinedLists(
        tuple(ListRange(part.start, part.stop, partial(_lists_folder, folder, n)) for n, part in ranges), k
    )


def write_full_items(thresholds: AdmissionThresholds, inputs: Inputs, folder: Path) -> None:
    """Write a row per filled-up item, by id: the last query that it was given to, and the score of the pair."""
    path = folder / EXPOSURE / FULL_FILE
    path.parent.mkdir(parents=True)
    rows = np.flatnonzero(np.isfinite(thresholds.scores))
    columns = {
        "item_id": inputs.items.ids.take(pa.array(rows)),
        "last_query": inputs.queries.ids.take(pa.array(thresholds.queries[rows])),
        "last_score": thresholds.scores[rows],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_full_items(snapshot: Snapshot, items: IngestedTable, queries: IngestedTable) -> AdmissionThresholds | None:
    """Read the filled-up items of a snapshot as positions; None for a snapshot without an exposure cap."""
    path = snapshot.fetch(EXPOSURE) / FULL_FILE
    if not path.is_file():
        return None
    table = pq.read_table(path)
    thresholds = AdmissionThresholds.free(items.vectors.n)
    rows = find_positions(table.column("item_id").combine_chunks().cast(items.ids.type), items.ids)
    last_queries = table.column("last_query").combine_chunks().cast(queries.ids.type)
    thresholds.scores[rows] = table.column("last_score").to_numpy()
    thresholds.queries[rows] = find_positions(last_queries, queries.ids)
    return thresholds


def _lists_folder(folder: Path, number: int) -> Path:
    return folder / "lists" / f"{number:06d}"


def _threshold_files(folder: Path) -> tuple[Path, Path]:
    return folder / "thresholds" / "scores.npy", folder / "thresholds" / "queries.npy"


def _take_first(neighbors: Neighbors, is_kept: npt.NDArray[np.bool_], k: int) -> Neighbors:
    """Return the first k kept slots of each query."""
    order = np.argsort(~is_kept, axis=1, kind="stable")[:, :k]
    filled = np.take_along_axis(is_kept, order, 1)
    positions = np.where(filled, np.take_along_axis(neighbors.positions, order, 1), EMPTY_POSITION)
    return Neighbors(positions, np.where(filled, np.take_along_axis(neighbors.scores, order, 1), np.float32(-np.inf)))
