"""Score terms: attributes that an item adds to its scores, or multiplies them by, put into the vectors before the join.

An inner product takes one more component: (q, 1) . (x, t) = q . x + t. Under cosine both vectors are scaled to unit
length first, and the metric becomes inner product. Under l2 the component is sqrt(t_max - t), so that the distance
grows by t_max - t. Every engine, bound and measure then works on the final scores; nothing is sorted again. The
augmentation is that of Bachrach et al., "Speeding up the Xbox recommender system", 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import InputError, SpecError
from nearcast.files import fingerprint, link_file
from nearcast.knn.scores import norms
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table, read_attributes
from nearcast.sources.ingest_rows import range_name
from nearcast.spec import GeneratorSpec, ScoreSpec
from nearcast.storage.artifacts import Artifacts
from nearcast.types import AnyArray, Metric
from nearcast.version import __version__

__all__ = [
    "ScoreTerms",
    "ScoredTable",
    "apply_score_terms",
    "check_score_terms",
    "plan_scored_tables",
    "write_scored_range",
]

BLOCK_ROWS = 1 << 16

Float64Array = npt.NDArray[np.float64]
ScoreSlice = Callable[[int, int], Iterator[AnyArray]]  # yields the scored vectors of a slice of positions


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The valid score terms of a table of items, which are read slice by slice."""

    score: ScoreSpec
    largest: float  # addend of all items; 0 without addends


@dataclass(frozen=True, slots=True)
class _Extremes:
    """The smallest and the largest number of a column, and the position of the first smallest one."""

    smallest: float = np.inf
    position: int = -1
    largest: float = -np.inf


@dataclass(frozen=True, slots=True)
class ScoredTable:
    """A table that is to be written with score terms in its vectors, as artifacts."""

    table: IngestedTable  # without the terms
    name: str  # of the artifact
    dim: int
    score: ScoreSlice

    @property
    def range_names(self) -> list[str]:
        """Names of the artifacts that hold its vectors, one per range; of a table in one range its own name."""
        if self.table.ranges is None:
            return [self.name]
        return [range_name(self.name, number) for number in range(len(self.table.slices))]


def apply_score_terms(spec: GeneratorSpec, inputs: Inputs, artifacts: Artifacts) -> Inputs:
    """Write both tables with the score terms in their vectors as artifacts. Return them with their metric.

    Without terms, returns `inputs`. Ranges that are written are not written again. Raises InputError for a term that is
    null, not finite, or a factor below 0; SpecError for a factor under l2.
    """
    terms = check_score_terms(spec, inputs)
    if terms is None:
        return inputs
    items, queries = (_open_scored(scored, artifacts) for scored in plan_scored_tables(inputs, terms))
    # exclude_self compares ids, so a self-join may have two tables from here on
    return Inputs(items, queries, Metric.INNER_PRODUCT if inputs.metric is Metric.COSINE else inputs.metric)


def plan_scored_tables(inputs: Inputs, terms: ScoreTerms) -> tuple[ScoredTable, ScoredTable]:
    """Return both tables with score terms, items first. Nothing is written."""
    score, metric = terms.score, inputs.metric
    made_of = [inputs.items.fingerprint, inputs.queries.fingerprint, score.model_dump(), metric]

    def plan(table: IngestedTable, kind: str, score_slice: ScoreSlice) -> ScoredTable:
        name = f"scored{kind}-{fingerprint([kind, *made_of, __version__])[:16]}"
        return ScoredTable(table, name, table.vectors.dim + (0 if score.add is None else 1), score_slice)

    return (
        plan(inputs.items, "items", partial(_score_items, inputs.items, terms, metric)),
        plan(inputs.queries, "queries", partial(_score_queries, inputs.queries, terms, metric)),
    )


def check_score_terms(spec: GeneratorSpec, inputs: Inputs) -> ScoreTerms | None:
    """Read the score terms of the items; None if the spec has none. Raises the errors of `apply_score_terms`."""
    score, items = spec.score, inputs.items
    if not score.columns:
        return None
    if score.multiply is not None and inputs.metric is Metric.L2:
        raise SpecError("score.multiply scales inner products; under l2 write score.add, which is taken off distances")
    largest = 0.0
    if score.add is not None:
        found = _check_numbers(items, score.add, score.missing)
        largest = score.weight * (found.largest if score.weight >= 0 else found.smallest)
    if score.multiply is not None:
        found = _check_numbers(items, score.multiply, score.missing)
        if found.smallest < 0:
            raise InputError(
                f"score.multiply is a factor of 0 or more; item {items.ids[found.position].as_py()!r} has "
                f"{found.smallest:g} in column {score.multiply!r}"
            )
    return ScoreTerms(score, largest)


def _check_numbers(items: IngestedTable, name: str, missing: float | None) -> _Extremes:
    """Validate a column of numbers, slice by slice. Raises InputError for a null without `missing`, or infinity."""
    nulls, first_null, bad, found = 0, -1, None, _Extremes()
    for start, stop in items.slices:
        column = read_attributes(items, [name], start, stop).column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InputError(f"a score term is a number, and column {name!r} of the items holds {column.type}")
        null = np.asarray(column.is_null())
        if null.any() and nulls == 0:
            first_null = start + int(np.argmax(null))
        nulls += int(null.sum())
        values = _fill_nulls(column, missing)
        not_finite = np.flatnonzero(~np.isfinite(values))
        if len(not_finite) and bad is None:
            bad = start + int(not_finite[0]), values[not_finite[0]]
        if len(values):
            least = int(np.argmin(values))
            is_less = values[least] < found.smallest
            found = _Extremes(
                min(found.smallest, float(values[least])),
                start + least if is_less else found.position,
                max(found.largest, float(values.max())),
            )
    if nulls and missing is None:
        raise InputError(
            f"{nulls:,} items have no {name!r}, the first is {items.ids[first_null].as_py()!r}; a score needs "
            "it: set the value used for null with score.missing"
        )
    if bad is not None:
        raise InputError(f"{name!r} of item {items.ids[bad[0]].as_py()!r} is {bad[1]}; a score is finite")
    return found


def _read_numbers(items: IngestedTable, name: str, missing: float | None, start: int, stop: int) -> Float64Array:
    return _fill_nulls(read_attributes(items, [name], start, stop).column(name), missing)


def _fill_nulls(column: pa.ChunkedArray, missing: float | None) -> Float64Array:
    values: Float64Array = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
    values[np.asarray(column.is_null())] = 0.0 if missing is None else missing
    return values


def _score_items(table: IngestedTable, terms: ScoreTerms, metric: Metric, start: int, stop: int) -> Iterator[AnyArray]:
    """Yield the vectors of the items start..stop-1 with their terms, block by block."""
    score = terms.score
    added = None if score.add is None else score.weight * _read_numbers(table, score.add, score.missing, start, stop)
    factor = None if score.multiply is None else _read_numbers(table, score.multiply, score.missing, start, stop)
    for rows, block in _read_blocks(table, metric, start, stop):
        if factor is not None:
            block *= factor[rows, None].astype(np.float32)
        if added is None:
            yield block
            continue
        term = added[rows]
        last = np.sqrt(terms.largest - term) if metric is Metric.L2 else term
        yield np.column_stack([block, last.astype(np.float32)])


def _score_queries(
    table: IngestedTable, terms: ScoreTerms, metric: Metric, start: int, stop: int
) -> Iterator[AnyArray]:
    for _, block in _read_blocks(table, metric, start, stop):
        last = np.full(len(block), 0 if metric is Metric.L2 else 1, np.float32)
        yield block if terms.score.add is None else np.column_stack([block, last])


def _read_blocks(
    table: IngestedTable, metric: Metric, start: int, stop: int
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield blocks of start..stop-1, counted from start, and copies of their vectors; of unit length under cosine."""
    for first in range(start, stop, BLOCK_ROWS):
        last = min(stop, first + BLOCK_ROWS)
        block = np.array(table.vectors.read(first, last), np.float32)
        if metric is Metric.COSINE:
            lengths = norms(block)
            block = (block / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)
        yield slice(first - start, last - start), block


def write_scored_range(scored: ScoredTable, number: int, artifacts: Artifacts) -> None:
    """Write one range of a table as an artifact, unless it is written.

    A table in one range has hard links to the files of ids and attributes; ranges use those of the table itself.
    """
    table, (start, stop) = scored.table, scored.table.slices[number]

    def write(folder: Path) -> dict[str, Any]:
        if table.ranges is None:
            (folder / "attributes").mkdir()
            for path in [*table.folder.glob("*.arrow"), *table.attribute_files]:
                link_file(path, folder / path.relative_to(table.folder))
        _write_vectors(folder / "vectors.npy", scored.score(start, stop), stop - start, scored.dim)
        return {"of": table.fingerprint} if table.ranges is None else {}

    artifacts.ensure(scored.range_names[number], write)


def _open_scored(scored: ScoredTable, artifacts: Artifacts) -> IngestedTable:
    """Open a table with its score terms; write the ranges that are missing."""
    table, names = scored.table, scored.range_names
    for number in range(len(names)):
        write_scored_range(scored, number, artifacts)
    if table.ranges is None:
        return open_ingested_table(artifacts.open(scored.name), artifacts.open)
    stored = artifacts.facts(table.fingerprint)
    assert stored is not None
    side = {"dim": scored.dim, "dtype": "float32"}
    facts = {"of": table.fingerprint, "side": side, "ranges": {**stored["ranges"], "vector_names": names}}
    return open_ingested_table(artifacts.ensure(scored.name, lambda _folder: facts), artifacts.open)


def _write_vectors(path: Path, blocks: Iterator[AnyArray], n: int, dim: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            np.ascontiguousarray(block, np.float32).tofile(out)
