"""All items scored for one query of a snapshot, from the artifacts that the snapshot was made of.

For `explain`: ranks are exact, and a ranking model scores the items that the join fetches for it. Knows nothing of
causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import NearcastError, NotFoundError
from nearcast.files import is_done
from nearcast.join.compile_constraints import has_constraints, open_constraints
from nearcast.join.rank import RankSettings, make_rank_settings, score_candidates
from nearcast.join.select_candidates import read_full_items
from nearcast.join.shard_constraints import defer_constraints, order_caps
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.exposure import AdmissionThresholds
from nearcast.knn.scores import pair_scores
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import Inputs, open_ingested_table
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.storage.artifacts import Artifacts
from nearcast.storage.open_storage import is_url
from nearcast.table.snapshot import Candidates, Snapshot
from nearcast.types import FloatArray, IntArray, Metric, as_score

__all__ = ["ScoredItems", "SnapshotInputs", "find_excluded_item", "open_snapshot_inputs", "score_items"]

BLOCK_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class SnapshotInputs:
    """The spec, tables, constraints and ranking model that a snapshot was made of."""

    spec: GeneratorSpec
    inputs: Inputs
    constraints: Constraints
    params: Mapping[str, int]  # search parameters of the join
    thresholds: AdmissionThresholds | None  # of the exposure cap
    rank: RankSettings | None  # the model that ranked the lists
    rank_fault: str = ""  # why the model cannot score again


@dataclass(frozen=True, slots=True)
class ScoredItems:
    """The scores and ranks of all items for one query."""

    row: int  # position of the query
    listed: Candidates
    scores: FloatArray  # (items,) of the join
    order: IntArray  # positions of eligible items, best first
    last_model_score: float | None
    model: Mapping[int, float]  # model score by position, of the items that the join fetches; empty without a model
    model_fault: str = ""  # why the model cannot score again

    def rank_of(self, position: int) -> int | None:
        """Return the rank of an item by the join among the eligible items, from 1; None if it is not eligible."""
        where = np.flatnonzero(self.order == position)
        return int(where[0]) + 1 if len(where) else None

    def model_rank_of(self, position: int) -> int | None:
        """Return the rank of an item by the model, from 1; None without a score. Ties go to the smaller position."""
        if position not in self.model:
            return None
        own = (-self.model[position], position)
        return 1 + sum((-score, other) < own for other, score in self.model.items())


def open_snapshot_inputs(
    snapshot: Snapshot, artifacts: Path, base: Path | None, remote: Artifacts | None = None
) -> SnapshotInputs:
    """Open the artifacts of a snapshot. Raises NotFoundError if they are removed: only the newest snapshot has them.

    remote: artifacts in a bucket, which are fetched into the host's cache if `artifacts` lacks them.
    """
    folders = {
        name.partition("-")[0]: _find_artifact(snapshot, name, artifacts, remote)
        for name in snapshot.manifest.artifacts
        if not name.startswith(("index-", "reserve-")) and not name.endswith("-ranges")  # a table opens its ranges
    }
    items = open_ingested_table(folders.get("scoreditems", folders["items"]))
    query_folder = folders.get("scoredqueries", folders.get("queries"))
    queries = open_ingested_table(query_folder) if query_folder is not None else items
    spec = parse_model(GeneratorSpec, snapshot.manifest.spec, f"the spec of {snapshot.name}", recorded=True)
    by_product = spec.score.columns and spec.metric is Metric.COSINE  # score terms scale vectors to unit length
    inputs = Inputs(items, queries, Metric.INNER_PRODUCT if by_product else spec.metric)
    thresholds = read_full_items(snapshot, items, queries)
    rank, fault = _find_rank_settings(spec, base or _spec_folder(spec, artifacts))
    constraints = open_constraints(folders.get("constraints"))
    if "constraints" not in folders and has_constraints(spec):  # a run on several item shards compiles none
        constraints = defer_constraints(spec, inputs, [(0, items.vectors.n)], order_caps(spec, items, BLOCK_ROWS))
    return SnapshotInputs(spec, inputs, constraints, snapshot.manifest.engine.params, thresholds, rank, fault)


def _find_artifact(snapshot: Snapshot, name: str, artifacts: Path, remote: Artifacts | None) -> Path:
    if is_done(artifacts / name):
        return artifacts / name
    try:
        if remote is not None:
            return remote.open(name)
    except NotFoundError:
        pass
    raise NotFoundError(
        f"the artifacts of {snapshot.generator} {snapshot.name} were deleted ({name}): only the newest "
        "snapshot can be explained, where it was made, and that of a planned run while its location has them"
    )


def score_items(snapshot: Snapshot, opened: SnapshotInputs, listed: Candidates, row: int) -> ScoredItems:
    """Score every item for the query at position `row`, and score again with the ranking model."""
    inputs = opened.inputs
    scores, eligible = _score_all(inputs, row), _find_eligible(opened, row)
    order = np.lexsort((np.arange(len(scores)), -scores))
    order = order[eligible[order]]
    if opened.spec.rank is None:
        return ScoredItems(row, listed, scores, order, None, {})
    stored = snapshot.rank_scores(listed.query)
    last = stored[-1] if stored else None
    fetched = order[: opened.spec.rank.fetch]
    if opened.constraints.min_score is not None:
        fetched = fetched[scores[fetched] >= as_score(opened.constraints.min_score)]
    # an approximate join may have fetched items beyond the exact best
    listed_positions = find_positions(pa.array(listed.ids, inputs.items.ids.type), inputs.items.ids)
    positions = np.array(list(dict.fromkeys([*fetched.tolist(), *listed_positions.tolist()])), np.int64)
    model, fault = _score_with_model(opened, row, positions, scores)
    if model and not np.allclose([model[p] for p in listed_positions.tolist()], stored, rtol=1e-5, atol=0):
        model, fault = {}, "it scores otherwise than when the snapshot was made"
    return ScoredItems(row, listed, scores, order, last, model, fault)


def find_excluded_item(opened: SnapshotInputs, row: int) -> int:
    """Return the position of the item that exclude_self leaves out of a query's list, -1 for none."""
    if not opened.spec.exclude_self:
        return -1
    return int(find_own_items(opened.inputs, np.array([row]))[0])


def _spec_folder(spec: GeneratorSpec, artifacts: Path) -> Path:
    """Return the folder that the spec's `out` is relative to."""
    if is_url(spec.out):
        return Path()
    out = artifacts.absolute().parent.parent
    depth = 0 if Path(spec.out).is_absolute() else len(Path(spec.out).parts)
    return out.parents[depth - 1] if depth else out


def _find_rank_settings(spec: GeneratorSpec, base: Path) -> tuple[RankSettings | None, str]:
    try:
        return make_rank_settings(spec, base), ""
    except NearcastError as error:
        return None, str(error)


def _score_with_model(
    opened: SnapshotInputs, row: int, positions: IntArray, scores: FloatArray
) -> tuple[dict[int, float], str]:
    """Return the model's score by position, and why there are none."""
    if opened.rank is None or not len(positions):
        return {}, opened.rank_fault
    queries, items = opened.inputs.queries, opened.inputs.items
    try:
        values = score_candidates(opened.rank, queries, row, items, positions, scores[positions])
    except NearcastError as error:
        return {}, str(error)
    return dict(zip(positions.tolist(), values.tolist(), strict=True)), ""


def _score_all(inputs: Inputs, row: int) -> FloatArray:
    """Return (items,) the exact scores of all items."""
    query = inputs.queries.vectors.take(np.array([row]))
    n = inputs.items.vectors.n
    scores = np.empty(n, np.float32)
    for start in range(0, n, BLOCK_ROWS):
        block = inputs.items.vectors.read(start, min(n, start + BLOCK_ROWS))
        scores[start : start + len(block)] = pair_scores(np.repeat(query, len(block), axis=0), block, inputs.metric)
    return scores


def _find_eligible(opened: SnapshotInputs, row: int) -> npt.NDArray[np.bool_]:
    """Return (items,) whether the query may get each item, by rules and exclude_self."""
    n_items = opened.inputs.items.vectors.n
    rule = opened.constraints.of_queries(slice(row, row + 1)).of_items(0, n_items).eligibility
    eligible = np.ones(n_items, np.bool_) if rule is None else eligible_pairs(rule)[0]
    own = find_excluded_item(opened, row)
    if own >= 0:
        eligible[own] = False
    return eligible
