"""Let a model rank what the join has found: pairs of query and candidate go out, scores come in, the best k stay.

The model is a function of somebody else's, so nothing of it is believed: it may be slow, raise, or return too
few numbers or none that can be compared. Each of these is an InputError that names the pairs. Knows nothing of how the
candidates were found.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError, NearcastError, SpecError
from nearcast.files import path_fault, read_manifest
from nearcast.join.context import RunContext
from nearcast.join.rank_model import onnx_ranker
from nearcast.join.run_plan import RunPlan
from nearcast.knn.scores import rescore
from nearcast.mapped import map_array
from nearcast.measure.sampled_recall import SampledLists
from nearcast.sources.attribute_columns import attribute_names, attributes_of
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.sources.user_files import UserFile, changed_error, shown_path
from nearcast.spec import GeneratorSpec
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = [
    "RankSettings",
    "check_ranker",
    "is_ranked",
    "load_ranker",
    "model_scores",
    "rank_neighbors",
    "rank_settings",
    "ranker_identity",
    "read_rank_scores",
    "read_retrieved_lists",
    "score_pairs",
]

Ranker = Callable[[pa.RecordBatch], Any]

WAY_OUT = "mend it, or leave [rank] out of the spec; docs/ranking.md says what it gets and gives"
RANK_SCORES, RETRIEVED = "rank_scores.npy", "retrieved.npy"


@dataclass(frozen=True, slots=True)
class RankSettings:
    """What a task needs to rank. Plain values and paths, so that it can be sent anywhere."""

    name: str  # of the function or the file, as the spec has it
    base: Path
    content: str  # hash of the file that it is in
    k: int  # that stay
    batch: int  # pairs in a call
    timeout_seconds: float


def rank_settings(spec: GeneratorSpec, base: Path) -> RankSettings | None:
    """How a generator ranks; None where it does not. SpecError where its model cannot be found."""
    if spec.rank is None:
        return None
    name = spec.rank.function or str(spec.rank.model)
    path = _file_of(name, base)
    content = UserFile(path, shown_path(path, base)).hash()
    return RankSettings(name, base.absolute(), content, spec.k, spec.rank.batch, spec.rank.timeout_seconds)


def ranker_identity(spec: GeneratorSpec, base: Path) -> dict[str, str] | None:
    """What of the model decides the answer: its name and the contents of its file; None without one.

    What the file imports is not looked at: `rank.version` is there for that.
    """
    settings = rank_settings(spec, base)
    return None if settings is None else {"name": Path(settings.name).name, "blake2b": settings.content}


def check_ranker(spec: GeneratorSpec, base: Path, plan: RunPlan) -> None:
    """Raise InputError where the model's file is no longer the one that the run was planned with."""
    if spec.rank is None:
        return
    name = spec.rank.function or str(spec.rank.model)
    try:
        path = _file_of(name, base)
        content = UserFile(path, shown_path(path, base)).hash()
    except (SpecError, InputError) as error:
        raise changed_error(name, str(error)) from error
    if plan.parts["ranker"]["blake2b"] != content:
        raise changed_error(shown_path(path, base))


def rank_neighbors(
    settings: RankSettings, found: Neighbors, queries: IngestedTable, items: IngestedTable, start: int, folder: Path
) -> Neighbors:
    """The k best of each list by the model, in its order; equal scores go to the smaller position.

    Row i of `found` is of query position start + i. Into `folder` go the model's scores of those that stay, and the
    positions of all that were found, which recall is measured on.
    """
    ranker = _load(settings.name, settings.base, settings.content)
    n, fetched = found.positions.shape
    scores = np.full((n, fetched), -np.inf, np.float32)
    step = max(1, settings.batch // max(1, fetched))
    for first in range(0, n, step):
        block = found.positions[first : first + step]
        rows, slots = np.nonzero(block != EMPTY_POSITION)
        if len(rows):
            near = found.scores[first : first + step][rows, slots]
            batch = _pairs(queries, start + first + rows, items, block[rows, slots], near)
            scores[first + rows, slots] = _asked(settings, ranker, batch)
    ranked = np.where(found.positions == EMPTY_POSITION, np.iinfo(np.int64).max, found.positions)
    order = np.lexsort((ranked, -scores))[:, : settings.k]
    np.save(folder / RANK_SCORES, np.take_along_axis(scores, order, 1))
    np.save(folder / RETRIEVED, found.positions)
    return Neighbors(np.take_along_axis(found.positions, order, 1), np.take_along_axis(found.scores, order, 1))


def load_ranker(settings: RankSettings) -> None:
    """Load the model: SpecError where it cannot be, MissingExtraError where its library is not installed."""
    _load(settings.name, settings.base, settings.content)


def score_pairs(settings: RankSettings, batch: pa.RecordBatch) -> FloatArray:
    """(rows,) the model's scores of some pairs; InputError for what are none."""
    return _asked(settings, _load(settings.name, settings.base, settings.content), batch)


def model_scores(
    settings: RankSettings,
    queries: IngestedTable,
    row: int,
    items: IngestedTable,
    positions: IntArray,
    scores: FloatArray,
) -> FloatArray:
    """(items,) the model's scores of one query's candidates. scores: those of the join."""
    ranker = _load(settings.name, settings.base, settings.content)
    batch = _pairs(queries, np.full(len(positions), row), items, positions, scores)
    return _asked(settings, ranker, batch)


def is_ranked(folder: Path) -> bool:
    """Whether a task has ranked its lists."""
    return (folder / RANK_SCORES).is_file()


def read_rank_scores(folder: Path) -> FloatArray:
    """(n, k) the model's scores of a task's candidates, -inf where there is none."""
    scores: FloatArray = map_array(folder / RANK_SCORES)
    return scores


def read_retrieved_lists(run: RunContext, inputs: Inputs, rows: IntArray) -> SampledLists | None:
    """What the join found for the queries at these (ascending) positions, before a model ranked it; or None."""
    if run.spec.rank is None:
        return None
    positions = np.full((len(rows), run.spec.join_k), EMPTY_POSITION, np.int64)
    for folder in sorted((run.workspace.work / "tasks").iterdir()):
        facts = read_manifest(folder)
        first, last = np.searchsorted(rows, (facts["start"], facts["stop"]))
        if first < last:
            here = map_array(folder / RETRIEVED)
            positions[first:last] = here[rows[first:last] - facts["start"]]
    scored = rescore(inputs.queries.vectors.take(rows), inputs.items.vectors, positions, inputs.metric)
    return SampledLists(scored.positions, scored.scores)


def _file_of(name: str, base: Path) -> Path:
    """The file that a function or a model is in: beside the spec, else where Python finds the module."""
    if (fault := path_fault(name)) and not os.path.lexists(base / name):
        raise SpecError(f"rank.model: {fault}")
    module, colon, _ = name.partition(":")
    if not colon:
        path = base / name
        if not path.is_file():
            raise SpecError(f"rank.model: no file at {path}; the path is relative to the spec's own folder")
        return path
    beside = base.joinpath(*module.split("."))
    for path in (beside.with_name(beside.name + ".py"), beside / "__init__.py"):
        if path.is_file():
            return path
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise SpecError(f"rank.function: module {module!r} cannot be found ({error})") from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise SpecError(
            f"rank.function: there is no module {module!r}, neither beside the spec in {base} nor installed"
        )
    return Path(found.origin)


@lru_cache(maxsize=4)
def _load(name: str, base: Path, content: str) -> Ranker:
    """The callable; by its contents, so that a changed file is loaded anew. InputError for other contents."""
    path = _file_of(name, base)
    file = UserFile(path, shown_path(path, base))
    if file.hash() != content:
        raise changed_error(file.name)
    try:
        return _loaded(name, base, path, content)
    finally:
        file.check()


def _loaded(name: str, base: Path, path: Path, content: str) -> Ranker:
    module_name, colon, function = name.partition(":")
    if not colon:
        return onnx_ranker(path)
    try:
        module = _beside(path, content, base) if path.is_relative_to(base) else importlib.import_module(module_name)
    except Exception as error:
        raise SpecError(f"rank.function: {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise SpecError(f"rank.function: {path} has no function {function!r}")
    ranker: Ranker = found
    return ranker


def _beside(path: Path, content: str, base: Path) -> Any:
    """A module of the spec's own folder, under a name that no other generator's has."""
    if str(base) not in sys.path:
        sys.path.append(str(base))  # for what it imports itself; last, so that it hides nothing
    name = f"nearcast_rank_{content}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _pairs(
    queries: IngestedTable, rows: IntArray, items: IngestedTable, positions: IntArray, scores: FloatArray
) -> pa.RecordBatch:
    """A row per pair: both ids, the join's score, both vectors, and both sides' attributes."""
    columns: dict[str, pa.Array] = {
        "query_id": queries.ids.take(pa.array(rows)),
        "item_id": items.ids.take(pa.array(positions)),
        "score": pa.array(scores),
        "query_vector": _vectors(queries, rows),
        "item_vector": _vectors(items, positions),
    }
    for prefix, side, places in (("query", queries, rows), ("item", items, positions)):
        for name, column in _attributes(side.folder).items():
            columns[f"{prefix}.{name}"] = column.take(pa.array(places))
    return pa.RecordBatch.from_pydict(columns)


def _vectors(side: IngestedTable, positions: IntArray) -> pa.Array:
    distinct, back = np.unique(positions, return_inverse=True)
    flat = side.vectors.take(distinct).astype(np.float32)[back]
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), side.vectors.dim)


@lru_cache(maxsize=4)
def _attributes(folder: Path) -> dict[str, pa.Array]:
    """The attributes of a side, a value per position. All are held in memory."""
    side = open_ingested_table(folder)
    names = attribute_names(side)
    table = attributes_of(side, names)
    return {name: table[name].combine_chunks() for name in names}


def _asked(settings: RankSettings, ranker: Ranker, batch: pa.RecordBatch) -> FloatArray:
    """(rows,) the model's scores, after every doubt."""
    given = _in_time(settings, ranker, batch)
    try:
        scores = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{settings.name} returned a {type(given).__name__} that is no array of numbers ({error}) for "
            f"{_told(batch)}; {WAY_OUT}"
        ) from error
    if scores.shape == (len(batch), 1):
        scores = scores[:, 0]
    if scores.shape != (len(batch),):
        raise InputError(
            f"{settings.name} returned shape {scores.shape} for {len(batch):,} pairs, not a score per pair: "
            f"{_told(batch)}; {WAY_OUT}"
        )
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(narrow))
    if len(bad):
        first = int(bad[0])
        raise InputError(
            f"{settings.name} returned {scores[first]} for {_told(batch.slice(first, 1))}, and for {len(bad):,} of "
            f"{len(batch):,} pairs of that call no finite number; {WAY_OUT}"
        )
    return narrow


def _in_time(settings: RankSettings, ranker: Ranker, batch: pa.RecordBatch) -> Any:
    """What the model returns; InputError where it raises, or takes too long."""
    done, given, error = _called(ranker, batch, settings.timeout_seconds)
    if not done:
        raise InputError(
            f"{settings.name} has not returned after {settings.timeout_seconds:g} s for {_told(batch)}; make it "
            "faster, or give it more time or less to do: rank.timeout_seconds, rank.batch"
        )
    if isinstance(error, NearcastError):
        raise error
    if error is not None:
        part = _culprit(ranker, batch, settings.timeout_seconds)
        text = f"{settings.name} raised {type(error).__name__}: {error}, for {_told(part)}; {WAY_OUT}"
        raise InputError(text) from error
    return given


def _called(ranker: Ranker, batch: pa.RecordBatch, seconds: float) -> tuple[bool, Any, BaseException | None]:
    """Whether it ended in time, what it returned, and what it raised.

    In a thread of its own: there is no other way to stop waiting for Python code. One that never returns is left
    behind, and goes when the process does.
    """
    given: list[Any] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            given.append(ranker(batch))
        except BaseException as error:  # SystemExit too: it must not look like no answer
            raised.append(error)

    thread = threading.Thread(target=work, name="rank", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive(), given[0] if given else None, raised[0] if raised else None


def _culprit(ranker: Ranker, batch: pa.RecordBatch, seconds: float) -> pa.RecordBatch:
    """The smallest part that raises too, by halving: one pair, if the fault is in one."""
    while len(batch) > 1:
        middle = len(batch) // 2
        halves = (batch.slice(0, middle), batch.slice(middle))
        failing = next((half for half in halves if _called(ranker, half, seconds)[2] is not None), None)
        if failing is None:
            return batch
        batch = failing
    return batch


def _told(batch: pa.RecordBatch) -> str:
    """The pairs in words."""
    ends = [f"query {batch['query_id'][row].as_py()!r} and item {batch['item_id'][row].as_py()!r}" for row in (0, -1)]
    return ends[0] if len(batch) == 1 else f"{len(batch):,} pairs, from {ends[0]} to {ends[1]}"
