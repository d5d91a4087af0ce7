"""Ranking by a model: it scores pairs of query and candidate, and the best k candidates stay.

The model is the user's code, so its result is validated: it may be slow, raise, or return too few or incomparable
numbers. Each of these is an InputError that names the pairs. Knows nothing of the join.
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

from nearcast.artifact_files import map_array
from nearcast.errors import InputError, NearcastError, SpecError
from nearcast.files import bucket_url, path_fault, read_manifest
from nearcast.join.context import RunContext
from nearcast.join.rank_model import onnx_ranker
from nearcast.join.run_plan import RunPlan
from nearcast.knn.scores import rescore
from nearcast.measure.sampled_recall import SampledLists
from nearcast.sources.attribute_rows import take_attributes
from nearcast.sources.ingest import IngestedTable, Inputs, list_attributes, open_ingested_table, read_attributes
from nearcast.sources.parquet_listing import open_user_file
from nearcast.sources.user_files import ChangedInputError, LocalFile, UserFile, changed_error, shown_path
from nearcast.spec import GeneratorSpec
from nearcast.types import EMPTY_POSITION, FloatArray, IntArray, Neighbors

__all__ = [
    "RankSettings",
    "check_ranker",
    "identify_ranker",
    "is_ranked",
    "list_model_libraries",
    "load_ranker",
    "make_rank_settings",
    "rank_neighbors",
    "read_rank_scores",
    "read_retrieved_lists",
    "score_candidates",
    "score_pairs",
]

Ranker = Callable[[pa.RecordBatch], Any]

WAY_OUT = "mend it, or leave [rank] out of the spec; docs/ranking.md describes its input and output"
RANK_SCORES, RETRIEVED = "rank_scores.npy", "retrieved.npy"


@dataclass(frozen=True, slots=True)
class RankSettings:
    """Settings of the ranking that a task needs: plain values and paths, so that they can be sent to any worker."""

    name: str  # function or file, as in the spec
    base: Path
    content: str  # hash of its file
    k: int  # candidates that stay
    batch: int  # pairs per call
    timeout_seconds: float


def make_rank_settings(spec: GeneratorSpec, base: Path) -> RankSettings | None:
    """Return the ranking settings of a spec; None without a model. Raises SpecError if the model is not found."""
    if spec.rank is None:
        return None
    name = spec.rank.function or str(spec.rank.model)
    content = _open_model_file(name, base).hash()
    return RankSettings(name, base.absolute(), content, spec.k, spec.rank.batch, spec.rank.timeout_seconds)


def identify_ranker(spec: GeneratorSpec, base: Path) -> dict[str, str] | None:
    """Return the name of the model and the hash of its file, which decide the result; None without a model.

    Files that it imports are not hashed: `rank.version` stands for them.
    """
    settings = make_rank_settings(spec, base)
    return None if settings is None else {"name": Path(settings.name).name, "blake2b": settings.content}


def list_model_libraries(spec: GeneratorSpec) -> tuple[str, ...]:
    """Return the modules whose version changes the scores of the ranking model; a Python model may import others."""
    return ("onnxruntime",) if spec.rank is not None and spec.rank.model is not None else ()


def check_ranker(spec: GeneratorSpec, base: Path, plan: RunPlan) -> None:
    """Raise InputError if the model's file has changed since the run was planned."""
    if spec.rank is None:
        return
    name = spec.rank.function or str(spec.rank.model)
    try:
        file = _open_model_file(name, base)
        content = file.hash()
    except (SpecError, InputError) as error:
        raise changed_error(name, str(error)) from error
    if plan.parts["ranker"]["blake2b"] != content:
        raise changed_error(file.name)


def rank_neighbors(
    settings: RankSettings, lists: Neighbors, queries: IngestedTable, items: IngestedTable, start: int, folder: Path
) -> Neighbors:
    """Return the k best of each list by the model's scores; equal scores go to the smaller position.

    Row i of `lists` is of query position start + i. Writes into `folder` the model's scores of the candidates that
    stay, and the positions of all candidates, for the measurement of recall.
    """
    ranker = _load(settings.name, settings.base, settings.content)
    n, fetched = lists.positions.shape
    scores = np.full((n, fetched), -np.inf, np.float32)
    step = max(1, settings.batch // max(1, fetched))
    for first in range(0, n, step):
        block = lists.positions[first : first + step]
        rows, slots = np.nonzero(block != EMPTY_POSITION)
        if len(rows):
            near = lists.scores[first : first + step][rows, slots]
            batch = _make_pairs(queries, start + first + rows, items, block[rows, slots], near)
            scores[first + rows, slots] = _call_model(settings, ranker, batch)
    ranked = np.where(lists.positions == EMPTY_POSITION, np.iinfo(np.int64).max, lists.positions)
    order = np.lexsort((ranked, -scores))[:, : settings.k]
    np.save(folder / RANK_SCORES, np.take_along_axis(scores, order, 1))
    np.save(folder / RETRIEVED, lists.positions)
    return Neighbors(np.take_along_axis(lists.positions, order, 1), np.take_along_axis(lists.scores, order, 1))


def load_ranker(settings: RankSettings) -> None:
    """Load the model. Raises SpecError if it cannot be loaded, MissingExtraError without its library."""
    _load(settings.name, settings.base, settings.content)


def score_pairs(settings: RankSettings, batch: pa.RecordBatch) -> FloatArray:
    """Return (rows,) the model's scores of pairs. Raises InputError for invalid scores."""
    return _call_model(settings, _load(settings.name, settings.base, settings.content), batch)


def score_candidates(
    settings: RankSettings,
    queries: IngestedTable,
    row: int,
    items: IngestedTable,
    positions: IntArray,
    scores: FloatArray,
) -> FloatArray:
    """Return (items,) the model's scores of one query's candidates. scores: of the join."""
    ranker = _load(settings.name, settings.base, settings.content)
    batch = _make_pairs(queries, np.full(len(positions), row), items, positions, scores)
    return _call_model(settings, ranker, batch)


def is_ranked(folder: Path) -> bool:
    """Return whether a task has ranked its lists."""
    return (folder / RANK_SCORES).is_file()


def read_rank_scores(folder: Path) -> FloatArray:
    """Map (n, k) the model's scores of a task's candidates, -inf for an empty slot."""
    scores: FloatArray = map_array(folder / RANK_SCORES)
    return scores


def read_retrieved_lists(run: RunContext, inputs: Inputs, rows: IntArray) -> SampledLists | None:
    """Read the lists of these queries (ascending positions) before a model ranked them; None without a model."""
    if run.spec.rank is None:
        return None
    positions = np.full((len(rows), run.spec.join_k), EMPTY_POSITION, np.int64)
    stages = ("merge", "join", "renew")  # the first one with results holds the lists
    names = next((found for stage in stages if (found := run.results.list_names(stage))), [])
    for folder in map(run.results.open, names):
        facts = read_manifest(folder)
        first, last = np.searchsorted(rows, (facts["start"], facts["stop"]))
        if first < last:
            retrieved = map_array(folder / RETRIEVED)
            positions[first:last] = retrieved[rows[first:last] - facts["start"]]
    scored = rescore(inputs.queries.vectors.take(rows), inputs.items.vectors, positions, inputs.metric)
    return SampledLists(scored.positions, scored.scores)


def _open_model_file(name: str, base: Path) -> UserFile:
    """Return the file of a function or model. Raises SpecError if there is none."""
    if bucket_url(name, base) is None:
        path = _find_model_file(name, base)
        return LocalFile(path, shown_path(path, base))
    try:
        return open_user_file(name, base, "rank.model", "check `model` in [rank]")
    except ChangedInputError:
        raise
    except InputError as error:
        raise SpecError(f"rank.model: {error}") from error


def _find_model_file(name: str, base: Path) -> Path:
    """Return the file of a function or model: in the spec's folder, else an installed module. Raises SpecError."""
    if (fault := path_fault(name, buckets=True)) and not os.path.lexists(base / name):
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
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise SpecError(f"rank.function: module {module!r} cannot be found ({error})") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise SpecError(
            f"rank.function: there is no module {module!r}, neither beside the spec in {base} nor installed"
        )
    return Path(spec.origin)


@lru_cache(maxsize=4)
def _load(name: str, base: Path, content: str) -> Ranker:
    """Load the model, once per content of its file. Raises InputError if the file has another content."""
    file = _open_model_file(name, base)
    if file.hash() != content:
        raise changed_error(file.name)
    try:
        return _load_file(name, base, file, content)
    finally:
        file.check()


def _load_file(name: str, base: Path, file: UserFile, content: str) -> Ranker:
    if not isinstance(file.path, Path):
        return onnx_ranker(file.read(), file.shown)
    path = file.path
    module_name, colon, function = name.partition(":")
    if not colon:
        return onnx_ranker(path, str(path))
    try:
        module = (
            _import_from_folder(path, content, base)
            if path.is_relative_to(base)
            else importlib.import_module(module_name)
        )
    except Exception as error:
        raise SpecError(f"rank.function: {path} cannot be imported: {type(error).__name__}: {error}") from error
    ranker: Ranker | None = getattr(module, function, None)
    if not callable(ranker):
        raise SpecError(f"rank.function: {path} has no function {function!r}")
    return ranker


def _import_from_folder(path: Path, content: str, base: Path) -> Any:
    """Import a module of the spec's folder under a unique name, so that generators do not share it."""
    if str(base) not in sys.path:
        sys.path.append(str(base))  # for its own imports; last, so that it hides no module
    name = f"nearcast_rank_{content}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _make_pairs(
    queries: IngestedTable, rows: IntArray, items: IngestedTable, positions: IntArray, scores: FloatArray
) -> pa.RecordBatch:
    """Return a row per pair: both ids, the join's score, both vectors, both tables' attributes."""
    columns: dict[str, pa.Array] = {
        "query_id": queries.ids.take(pa.array(rows)),
        "item_id": items.ids.take(pa.array(positions)),
        "score": pa.array(scores),
        "query_vector": _take_vectors(queries, rows),
        "item_vector": _take_vectors(items, positions),
    }
    for prefix, table, positions_of_rows in (("query", queries, rows), ("item", items, positions)):
        for name, column in _take_rows(table, positions_of_rows).items():
            columns[f"{prefix}.{name}"] = column
    return pa.RecordBatch.from_pydict(columns)


def _take_vectors(table: IngestedTable, positions: IntArray) -> pa.Array:
    distinct, back = np.unique(positions, return_inverse=True)
    flat = table.vectors.take(distinct).astype(np.float32)[back]
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), table.vectors.dim)


def _take_rows(table: IngestedTable, positions: IntArray) -> dict[str, pa.Array]:
    """Return all attributes of the rows at these positions. A table in several id ranges is not held in memory."""
    if table.ranges is None:
        return {name: column.take(pa.array(positions)) for name, column in _read_attributes(table.folder).items()}
    names = list_attributes(table)
    rows = take_attributes(table, names, positions)
    return {name: rows[name].combine_chunks() for name in names}


@lru_cache(maxsize=4)
def _read_attributes(folder: Path) -> dict[str, pa.Array]:
    """Read all attributes of a table into memory, a value per position."""
    table = open_ingested_table(folder)
    names = list_attributes(table)
    columns = read_attributes(table, names)
    return {name: columns[name].combine_chunks() for name in names}


def _call_model(settings: RankSettings, ranker: Ranker, batch: pa.RecordBatch) -> FloatArray:
    """Call the model on pairs and validate its scores. Returns (rows,) scores; raises InputError."""
    returned = _call_in_time(settings, ranker, batch)
    try:
        scores = np.asarray(returned, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{settings.name} returned a {type(returned).__name__} that is no array of numbers ({error}) for "
            f"{_describe_pairs(batch)}; {WAY_OUT}"
        ) from error
    if scores.shape == (len(batch), 1):
        scores = scores[:, 0]
    if scores.shape != (len(batch),):
        raise InputError(
            f"{settings.name} returned shape {scores.shape} for {len(batch):,} pairs, not a score per pair: "
            f"{_describe_pairs(batch)}; {WAY_OUT}"
        )
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(narrow))
    if len(bad):
        first = int(bad[0])
        raise InputError(
            f"{settings.name} returned {scores[first]} for {_describe_pairs(batch.slice(first, 1))}, and for "
            f"{len(bad):,} of {len(batch):,} pairs of that call no finite number; {WAY_OUT}"
        )
    return narrow


def _call_in_time(settings: RankSettings, ranker: Ranker, batch: pa.RecordBatch) -> Any:
    """Return the model's result. Raises InputError if it raises or exceeds the time limit."""
    done, returned, error = _call_in_thread(ranker, batch, settings.timeout_seconds)
    if not done:
        raise InputError(
            f"{settings.name} has not returned after {settings.timeout_seconds:g} s for {_describe_pairs(batch)}; make "
            "it faster, or give it more time or less to do: rank.timeout_seconds, rank.batch"
        )
    if isinstance(error, NearcastError):
        raise error
    if error is not None:
        part = _find_failing_pairs(ranker, batch, settings.timeout_seconds)
        text = f"{settings.name} raised {type(error).__name__}: {error}, for {_describe_pairs(part)}; {WAY_OUT}"
        raise InputError(text) from error
    return returned


def _call_in_thread(ranker: Ranker, batch: pa.RecordBatch, seconds: float) -> tuple[bool, Any, BaseException | None]:
    """Return whether the model ended in time, its result, and its exception.

    Runs in a thread, the only way to stop waiting for Python code. A thread that never returns ends with the process.
    """
    returned: list[Any] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            returned.append(ranker(batch))
        except BaseException as error:  # SystemExit too: it must not look like no answer
            raised.append(error)

    thread = threading.Thread(target=work, name="rank", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive(), returned[0] if returned else None, raised[0] if raised else None


def _find_failing_pairs(ranker: Ranker, batch: pa.RecordBatch, seconds: float) -> pa.RecordBatch:
    """Find the smallest part that raises too, by halving: one pair if one pair is at fault."""
    while len(batch) > 1:
        middle = len(batch) // 2
        halves = (batch.slice(0, middle), batch.slice(middle))
        failing = next((half for half in halves if _call_in_thread(ranker, half, seconds)[2] is not None), None)
        if failing is None:
            return batch
        batch = failing
    return batch


def _describe_pairs(batch: pa.RecordBatch) -> str:
    """Describe the pairs in words."""
    ends = [f"query {batch['query_id'][row].as_py()!r} and item {batch['item_id'][row].as_py()!r}" for row in (0, -1)]
    return ends[0] if len(batch) == 1 else f"{len(batch):,} pairs, from {ends[0]} to {ends[1]}"
