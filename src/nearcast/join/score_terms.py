"""Score terms: attributes that an item adds to its scores, or multiplies them by, put into the vectors before the join.

An inner product takes one more component: (q, 1) . (x, t) = q . x + t. Under cosine both vectors are scaled to unit
length first, and the metric becomes inner product. Under l2 the component is sqrt(t_max - t), so that the distance
grows by t_max - t. Every engine, bound and measure then works on the final scores; nothing is sorted again. The
augmentation is that of Bachrach et al., "Speeding up the Xbox recommender system", 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import InputError, SpecError
from nearcast.files import fingerprint, link_file
from nearcast.knn.scores import norms
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table, read_attributes
from nearcast.spec import GeneratorSpec, ScoreSpec
from nearcast.storage.artifacts import Artifacts
from nearcast.types import AnyArray, Metric
from nearcast.version import __version__

__all__ = ["apply_score_terms", "check_score_terms"]

BLOCK_ROWS = 1 << 16

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The addend and the factor of each item's scores."""

    added: Float64Array | None  # (m,)
    factor: Float64Array | None  # (m,)


def apply_score_terms(spec: GeneratorSpec, inputs: Inputs, artifacts: Artifacts) -> Inputs:
    """Write both tables with the score terms in their vectors as artifacts. Return them with their metric.

    Without terms, returns `inputs`. Raises InputError for a term that is null, not finite, or a factor below 0;
    SpecError for a factor under l2.
    """
    terms = check_score_terms(spec, inputs)
    if terms is None:
        return inputs
    metric = inputs.metric
    made_of = [inputs.items.fingerprint, inputs.queries.fingerprint, spec.score.model_dump(), metric]

    def write(table: IngestedTable, kind: str, blocks: Iterator[AnyArray]) -> IngestedTable:
        name = f"scored{kind}-{fingerprint([kind, *made_of, __version__])[:16]}"
        folder = artifacts.ensure(name, lambda folder: _write_scored_table(table, folder, blocks))
        return open_ingested_table(folder, artifacts.open)

    items = write(inputs.items, "items", _score_items(inputs.items, terms, metric))
    queries = write(inputs.queries, "queries", _score_queries(inputs.queries, terms, metric))
    # exclude_self compares ids, so a self-join may have two tables from here on
    return Inputs(items, queries, Metric.INNER_PRODUCT if metric is Metric.COSINE else metric)


def check_score_terms(spec: GeneratorSpec, inputs: Inputs) -> ScoreTerms | None:
    """Read the score terms of the items; None if the spec has none. Raises the errors of `apply_score_terms`."""
    score = spec.score
    if not score.columns:
        return None
    if score.multiply is not None and inputs.metric is Metric.L2:
        raise SpecError("score.multiply scales inner products; under l2 write score.add, which is taken off distances")
    return _read_terms(inputs.items, score)


def _read_terms(items: IngestedTable, score: ScoreSpec) -> ScoreTerms:
    added = None if score.add is None else score.weight * _read_numbers(items, score.add, score.missing)
    factor = None if score.multiply is None else _read_numbers(items, score.multiply, score.missing)
    if factor is not None and (factor < 0).any():
        position = int(np.argmin(factor))
        raise InputError(
            f"score.multiply is a factor of 0 or more; item {items.ids[position].as_py()!r} has {factor[position]:g} "
            f"in column {score.multiply!r}"
        )
    return ScoreTerms(added, factor)


def _read_numbers(items: IngestedTable, name: str, missing: float | None) -> Float64Array:
    column = read_attributes(items, [name]).column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"a score term is a number, and column {name!r} of the items holds {column.type}")
    values: Float64Array = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
    null = np.asarray(column.is_null())
    if null.any() and missing is None:
        position = int(np.argmax(null))
        raise InputError(
            f"{int(null.sum()):,} items have no {name!r}, the first is {items.ids[position].as_py()!r}; a score needs "
            "it: set the value used for null with score.missing"
        )
    values[null] = 0.0 if missing is None else missing
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"{name!r} of item {items.ids[int(bad[0])].as_py()!r} is {values[bad[0]]}; a score is finite")
    return values


def _score_items(table: IngestedTable, terms: ScoreTerms, metric: Metric) -> Iterator[AnyArray]:
    largest = 0.0 if terms.added is None else float(terms.added.max(initial=-np.inf))
    for rows, block in _read_blocks(table, metric):
        if terms.factor is not None:
            block *= terms.factor[rows, None].astype(np.float32)
        if terms.added is None:
            yield block
            continue
        term = terms.added[rows]
        last = np.sqrt(largest - term) if metric is Metric.L2 else term
        yield np.column_stack([block, last.astype(np.float32)])


def _score_queries(table: IngestedTable, terms: ScoreTerms, metric: Metric) -> Iterator[AnyArray]:
    for _, block in _read_blocks(table, metric):
        last = np.full(len(block), 0 if metric is Metric.L2 else 1, np.float32)
        yield block if terms.added is None else np.column_stack([block, last])


def _read_blocks(table: IngestedTable, metric: Metric) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Yield row ranges and copies of their vectors in float32, of unit length under cosine."""
    for start in range(0, table.vectors.n, BLOCK_ROWS):
        stop = min(table.vectors.n, start + BLOCK_ROWS)
        block = np.array(table.vectors.read(start, stop), np.float32)
        if metric is Metric.COSINE:
            lengths = norms(block)
            block = (block / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)
        yield slice(start, stop), block


def _write_scored_table(table: IngestedTable, folder: Path, blocks: Iterator[AnyArray]) -> dict[str, Any]:
    """Write a table with other vectors; ids and attributes are hard links to the same files."""
    (folder / "attributes").mkdir()
    for path in [*table.folder.glob("*.arrow"), *table.attributes.iterdir()]:
        link_file(path, folder / path.relative_to(table.folder))
    first = next(blocks, np.empty((0, table.vectors.dim + 1), np.float32))
    header = {"descr": "<f4", "fortran_order": False, "shape": (table.vectors.n, first.shape[1])}
    with (folder / "vectors.npy").open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in chain([first], blocks):
            np.ascontiguousarray(block, np.float32).tofile(out)
    return {"of": table.fingerprint}
