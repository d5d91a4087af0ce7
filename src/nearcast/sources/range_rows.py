"""The second stage of ingestion: sort the rows of one id range, and select those that are kept.

All rows with one id are in one range, so duplicates are found here: the first row in the order of the source wins.
Memory is bounded by the range, whose vectors and attributes stay in the mapped pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.sources.ids import argsort_ids, lower_bound, repeats
from nearcast.sources.matrix import RowState
from nearcast.sources.split_rows import CHECK_OF_STATE, EXAMPLES
from nearcast.spec import GeneratorSpec
from nearcast.types import FloatArray, IntArray

__all__ = ["UNIT_SHIFT", "KeptStates", "RangeRows", "find_duplicates", "keep_states", "select_range"]

UNIT_SHIFT = 40  # a row of a source is `unit << UNIT_SHIFT | row in the unit`


@dataclass(frozen=True, slots=True)
class KeptStates:
    """States of rows that are kept, by the policies of the spec."""

    joined: tuple[int, ...]
    listed: tuple[int, ...]  # the same, and states of rows kept in the table without a usable vector


@dataclass(frozen=True, slots=True)
class RangeRows:
    """The rows of one id range. Row i is the i-th row of all pieces."""

    pieces: tuple[pa.Table, ...]
    ids: pa.Array  # (n,)
    numbers: IntArray  # (n,) ascending, unit and row in the source
    order: npt.NDArray[Any]  # (n,) rows in the order of ids; of equal ids, the first row comes first
    repeated: npt.NDArray[np.bool_]  # (n,) True if an earlier row has the same id
    vector_rows: IntArray  # rows that take part in the join, in the order of ids
    listed_rows: IntArray  # the same, and rows listed without a vector
    lengths: FloatArray  # of the vectors of `vector_rows`


def keep_states(spec: GeneratorSpec) -> KeptStates:
    """Apply the policies of a spec to the states of rows."""
    joined, listed = [int(RowState.GOOD)], [int(RowState.GOOD)]
    for state, check in CHECK_OF_STATE.items():
        if spec.checks.policy(check, spec.metric) == "keep":
            listed.append(int(state))
            joined += [int(state)] if state is RowState.ZERO_VECTOR else []  # joined like any other
    return KeptStates(tuple(joined), tuple(listed))


def select_range(
    pieces: Sequence[tuple[int, pa.Table]],
    id_type: pa.DataType,
    kept: KeptStates,
    order: npt.NDArray[Any] | None = None,
) -> RangeRows:
    """Sort the rows of a range by id, and select those that are kept.

    pieces: (number of the unit, piece), in the order of the source. order: of these rows, if they were sorted before.
    """
    tables = tuple(piece for _, piece in pieces)
    ids = pa.concat_arrays([pa.array([], id_type), *(part for piece in tables for part in piece.column("id").chunks)])
    states = _to_numpy(tables, "state", np.uint8)
    lengths = _to_numpy(tables, "length", np.float32)
    units = np.repeat([unit for unit, _ in pieces], [len(piece) for piece in tables]).astype(np.int64)
    order = argsort_ids(ids) if order is None else order
    repeated = repeats(ids, order)
    joined = np.isin(states, kept.joined) & ~repeated
    listed = np.isin(states, kept.listed) & ~repeated
    vector_rows, listed_rows = order[joined[order]], order[listed[order]]
    return RangeRows(
        tables,
        ids,
        (units << UNIT_SHIFT) + _to_numpy(tables, "row", np.int64),
        order,
        repeated,
        vector_rows,
        listed_rows,
        lengths[vector_rows],
    )


def find_duplicates(rows: RangeRows, dropped: Mapping[int, Sequence[Sequence[Any]]]) -> dict[str, Any]:
    """Count the rows of a range whose id occurs before. Return the count and the first examples, as plain data.

    dropped: by unit, examples (row, id) of duplicates that the split dropped, of any range. They are not counted here.
    """
    found = np.flatnonzero(rows.repeated)
    own = ((int(rows.numbers[row]), rows.ids[int(row)].as_py()) for row in found[:EXAMPLES])
    others = (((unit << UNIT_SHIFT) + row, key) for unit, examples in dropped.items() for row, key in examples)
    examples = list(_find_firsts(rows, sorted([*own, *others])))
    return {"count": len(found), "examples": examples}


def _find_firsts(rows: RangeRows, examples: Sequence[tuple[int, Any]]) -> Iterator[list[Any]]:
    """Yield the first examples whose ids are in the range: number, id, and number of the first row with the id."""
    if not examples:
        return
    ordered, found = rows.ids.take(pa.array(rows.order)), 0
    for number, key in examples:
        rank = lower_bound(ordered, key, 0, len(ordered))
        if rank < len(ordered) and ordered[rank].as_py() == key:
            yield [number, key, int(rows.numbers[rows.order[rank]])]
            found += 1
            if found == EXAMPLES:
                return


def _to_numpy(pieces: Sequence[pa.Table], name: str, dtype: Any) -> npt.NDArray[Any]:
    columns = [piece.column(name).to_numpy() for piece in pieces]
    return np.concatenate([np.empty(0, dtype), *columns])
