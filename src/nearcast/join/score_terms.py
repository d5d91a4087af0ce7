"""Score terms: what an item adds to its scores, or multiplies them by, put into the vectors before the join.

An inner product takes one more component: (q, 1) . (x, t) = q . x + t. Under cosine both sides are brought to unit
length first, and inner products are taken. Under l2 the component is sqrt(t_max - t), so that a distance grows by
what the term lacks of the largest. Every engine, bound and measure then works on the scores that are wanted; nothing
is sorted anew afterwards. The augmentation is that of Bachrach et al., "Speeding up the Xbox recommender system", 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import InputError, SpecError
from nearcast.files import fingerprint, finish, fresh_folder, is_done, link_file
from nearcast.join.context import RunContext
from nearcast.knn.scores import norms
from nearcast.sources.attribute_columns import attributes_of
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.spec import ScoreSpec
from nearcast.types import AnyArray, Metric
from nearcast.version import __version__

__all__ = ["check_terms", "scored_inputs"]

BLOCK_ROWS = 1 << 16

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Terms:
    """What each item adds and multiplies. (m,) float64."""

    added: Float64Array | None
    factor: Float64Array | None


def scored_inputs(run: RunContext, inputs: Inputs, home: Path) -> tuple[RunContext, Inputs]:
    """Both sides with the spec's score terms in their vectors, below `home`, and the run by whose metric they compare.

    Without terms, both are returned as they are. Raises InputError for a term that is null, not finite, or a factor
    below 0; SpecError for a factor under l2.
    """
    terms = check_terms(run, inputs)
    if terms is None:
        return run, inputs
    metric = Metric(run.spec.metric)
    items = _side(inputs.items, _folder(home, "items", inputs, run), _items(inputs.items, terms, metric))
    queries = _side(inputs.queries, _folder(home, "queries", inputs, run), _queries(inputs.queries, terms, metric))
    joined = Metric.INNER_PRODUCT if metric is Metric.COSINE else metric
    # exclude_self goes by ids, so a join of a set with itself may have two sides from here on
    return replace(run, spec=run.spec.model_copy(update={"metric": joined})), Inputs(items, queries)


def check_terms(run: RunContext, inputs: Inputs) -> _Terms | None:
    """The score terms of the items, None where the spec has none; raises as `scored_inputs` does."""
    score = run.spec.score
    if not score.columns:
        return None
    if score.multiply is not None and Metric(run.spec.metric) is Metric.L2:
        raise SpecError("score.multiply scales inner products; under l2 write score.add, which is taken off distances")
    return _terms(inputs.items, score)


def _folder(home: Path, side: str, inputs: Inputs, run: RunContext) -> Path:
    made_of = [inputs.items.folder.name, inputs.queries.folder.name, run.spec.score.model_dump(), run.spec.metric]
    return home / f"scored{side}-{fingerprint([side, *made_of, __version__])[:16]}"


def _terms(items: IngestedTable, score: ScoreSpec) -> _Terms:
    added = None if score.add is None else score.weight * _numbers(items, score.add, score.missing)
    factor = None if score.multiply is None else _numbers(items, score.multiply, score.missing)
    if factor is not None and (factor < 0).any():
        place = int(np.argmin(factor))
        raise InputError(
            f"score.multiply is a factor of 0 or more; item {items.ids[place].as_py()!r} has {factor[place]:g} in "
            f"column {score.multiply!r}"
        )
    return _Terms(added, factor)


def _numbers(items: IngestedTable, name: str, missing: float | None) -> Float64Array:
    column = attributes_of(items, [name]).column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InputError(f"a score term is a number, and column {name!r} of the items holds {column.type}")
    values: Float64Array = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).copy()
    null = np.asarray(column.is_null())
    if null.any() and missing is None:
        place = int(np.argmax(null))
        raise InputError(
            f"{int(null.sum()):,} items have no {name!r}, the first is {items.ids[place].as_py()!r}; a score needs it: "
            "say what stands for it with score.missing"
        )
    values[null] = 0.0 if missing is None else missing
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"{name!r} of item {items.ids[int(bad[0])].as_py()!r} is {values[bad[0]]}; a score is finite")
    return values


def _items(side: IngestedTable, terms: _Terms, metric: Metric) -> Iterator[AnyArray]:
    largest = 0.0 if terms.added is None else float(terms.added.max(initial=-np.inf))
    for rows, block in _blocks(side, metric):
        if terms.factor is not None:
            block *= terms.factor[rows, None].astype(np.float32)
        if terms.added is None:
            yield block
            continue
        term = terms.added[rows]
        last = np.sqrt(largest - term) if metric is Metric.L2 else term
        yield np.column_stack([block, last.astype(np.float32)])


def _queries(side: IngestedTable, terms: _Terms, metric: Metric) -> Iterator[AnyArray]:
    for _, block in _blocks(side, metric):
        last = np.full(len(block), 0 if metric is Metric.L2 else 1, np.float32)
        yield block if terms.added is None else np.column_stack([block, last])


def _blocks(side: IngestedTable, metric: Metric) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Copies in float32, of unit length under cosine."""
    for start in range(0, side.vectors.n, BLOCK_ROWS):
        stop = min(side.vectors.n, start + BLOCK_ROWS)
        block = np.array(side.vectors.read(start, stop), np.float32)
        if metric is Metric.COSINE:
            lengths = norms(block)
            block = (block / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)
        yield slice(start, stop), block


def _side(side: IngestedTable, folder: Path, blocks: Iterator[AnyArray]) -> IngestedTable:
    """The same side with other vectors; ids and attributes are the same files."""
    if is_done(folder):
        return open_ingested_table(folder)
    fresh_folder(folder)
    (folder / "attributes").mkdir()
    for path in [*side.folder.glob("*.arrow"), *side.attributes.iterdir()]:
        link_file(path, folder / path.relative_to(side.folder))
    first = next(blocks, np.empty((0, side.vectors.dim + 1), np.float32))
    header = {"descr": "<f4", "fortran_order": False, "shape": (side.vectors.n, first.shape[1])}
    with (folder / "vectors.npy").open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in chain([first], blocks):
            np.ascontiguousarray(block, np.float32).tofile(out)
    finish(folder, {"of": side.folder.name})
    return open_ingested_table(folder)
