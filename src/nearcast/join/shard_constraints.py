"""The constraints of a run on item shards: compiled for the items of one shard and the queries at hand, on demand.

No worker holds the rules or groups of all items. Groups of a cap are equal if their values are equal, whatever the
shards. `DeferredConstraints` takes the place of `knn.constraints.Constraints` in the request of a `ShardedIndex`. It
has no arrays of all items, so that code that needs them fails at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility import Rule, collect_columns, compile_rules
from nearcast.errors import BudgetError, SpecError
from nearcast.join.compile_constraints import crossing_error, has_constraints, parse_rules
from nearcast.knn.constraints import FREE, Cap, Constraints, find_crossing
from nearcast.sources.attribute_rows import read_attribute_range, take_attributes
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.spec import GeneratorSpec
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["CapColumn", "DeferredConstraints", "GroupNumbers", "defer_constraints", "list_cap_values", "order_caps"]

POSITION = "__position"
ORDER_ROWS, ORDER_BYTES = 1 << 20, 1 << 30  # of the check that caps are nested
VALUES_AT_ONCE = 1 << 18  # of a cap's column, for the slots of lists
PAIR_BYTES = 64  # of a distinct combination of values of all caps

Int32Array = npt.NDArray[np.int32]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CapColumn:
    """A cap by the values of an item column."""

    column: str
    most: int


class GroupNumbers:
    """Numbers for the values of a column: equal values have equal numbers, in all batches that are numbered here."""

    def __init__(self) -> None:
        self._known: pa.Array | None = None

    def number(self, values: pa.DictionaryArray) -> IntArray:
        """Return (len(values),) the number of each value, from 0; -1 for null."""
        known = values.dictionary.slice(0, 0) if self._known is None else self._known
        encoded = pa.concat_arrays([known, values.dictionary]).dictionary_encode()
        self._known = encoded.dictionary
        numbers = np.append(_fill_nulls(encoded.indices[len(known) :]), EMPTY_POSITION)
        return numbers[_fill_nulls(values.indices)]


def _fill_nulls(indices: pa.Array) -> IntArray:
    filled: IntArray = pc.fill_null(indices, EMPTY_POSITION).to_numpy(zero_copy_only=False).astype(np.int64)
    return filled


@dataclass(slots=True, eq=False)
class DeferredConstraints:
    """Constraints of some queries of a run, compiled for a shard when it is asked for."""

    inputs: Inputs
    shards: Sequence[Range]
    rules: Sequence[Rule]
    caps_by: Sequence[CapColumn]  # nested, smallest groups first
    min_score: float | None
    rows: IntArray | slice | None = None  # positions of the queries; None for all
    _numbers: list[GroupNumbers] = field(default_factory=list)
    _queries: pa.Table | None = None

    @property
    def free(self) -> bool:
        """Return whether there are no constraints."""
        return not self.rules and not self.caps_by and self.min_score is None

    @property
    def max_per_group(self) -> tuple[int, ...]:
        """Return the limit of each cap."""
        return tuple(cap.most for cap in self.caps_by)

    def ranges(self, _n_items: int) -> Sequence[Range]:
        """Return the ranges of items that the constraints are compiled for."""
        return [(start, stop) for start, stop in self.shards if start < stop]

    def of_queries(self, rows: IntArray | slice) -> DeferredConstraints:
        """Return the constraints of some of the queries, in this order."""
        chosen: IntArray | slice = rows
        if isinstance(self.rows, slice):
            chosen = np.arange(self.rows.start, self.rows.stop)[rows]
        elif self.rows is not None:
            chosen = self.rows[rows]
        return replace(self, rows=chosen, _numbers=[], _queries=None)

    def without_min_score(self) -> DeferredConstraints:
        """Return the same rules and caps without a minimum score."""
        return replace(self, min_score=None, _numbers=[])

    def with_limits(self, limits: Sequence[int]) -> DeferredConstraints:
        """Return the constraints with other limits of the caps."""
        pairs = zip(self.caps_by, limits, strict=True)
        return replace(self, caps_by=tuple(CapColumn(cap.column, most) for cap, most in pairs), _numbers=[])

    def of_items(self, start: int, stop: int) -> Constraints:
        """Compile the constraints on lists of the items start..stop-1."""
        eligibility = None
        if self.rules:
            item_columns, query_columns, _ = collect_columns(self.rules)
            items = _read_shard(self.inputs.items, tuple(item_columns), start, stop)
            if self._queries is None:
                self._queries = self._read_queries(query_columns)
            eligibility = compile_rules(self.rules, self._queries, items)
        caps = tuple(
            Cap(_encode_groups(read_cap_values(self.inputs.items, cap.column, start, stop)), cap.most)
            for cap in self.caps_by
        )
        return Constraints(eligibility, caps, self.min_score)

    def find_groups(self, positions: IntArray) -> tuple[IntArray, ...]:
        """Return the groups of items of one shard for each cap, in the shape of `positions`; -1 for none.

        Groups are numbered alike in all calls, so that lists of several shards can be merged.
        """
        self._numbers = self._numbers or [GroupNumbers() for _ in self.caps_by]
        values = self.find_values(positions)
        return tuple(
            numbers.number(of_cap).reshape(positions.shape)
            for numbers, of_cap in zip(self._numbers, values, strict=True)
        )

    def find_values(self, positions: IntArray) -> list[pa.DictionaryArray]:
        """Return the values of items of one shard for each cap, flat; null for none and for position -1."""
        if not self.caps_by:
            return []
        start, stop = self._shard_of(positions[positions >= 0])
        return [
            _take_values(read_cap_values(self.inputs.items, cap.column, start, stop), positions.reshape(-1), start)
            for cap in self.caps_by
        ]

    def _shard_of(self, positions: IntArray) -> Range:
        """Return the shard of these positions, the first one for none."""
        ranges = self.ranges(0)
        if not len(positions):
            return ranges[0]
        low, high = int(positions.min()), int(positions.max())
        return next((start, stop) for start, stop in ranges if start <= low and high < stop)

    def _read_queries(self, columns: Sequence[str]) -> pa.Table:
        queries = self.inputs.queries
        if isinstance(self.rows, np.ndarray):
            return take_attributes(queries, columns, self.rows)
        start, stop, _ = (self.rows or slice(None)).indices(queries.vectors.n)
        return read_attribute_range(queries, columns, start, stop)


def defer_constraints(
    spec: GeneratorSpec, inputs: Inputs, shards: Sequence[Range], caps_by: Sequence[CapColumn]
) -> Constraints:
    """Return the constraints of all queries on these shards, for requests to a `ShardedIndex`."""
    if not has_constraints(spec):
        return FREE
    deferred = DeferredConstraints(inputs, shards, tuple(parse_rules(spec)), tuple(caps_by), spec.min_score)
    return cast("Constraints", deferred)


def _take_values(values: pa.Array, positions: IntArray, start: int) -> pa.DictionaryArray:
    """Return the values at positions that count from `start`, null for -1. Few are in memory one by one at a time."""
    parts, step = [], max(1, len(positions)) if pa.types.is_null(values.type) else VALUES_AT_ONCE
    for first in range(0, max(1, len(positions)), step):
        some = positions[first : first + step]
        slots = pa.array(np.where(some < 0, 0, some - start), mask=some < 0)
        parts.append(values.take(slots).dictionary_encode())
    return parts[0] if len(parts) == 1 else pa.chunked_array(parts).unify_dictionaries().combine_chunks()


def list_cap_values(constraints: Constraints, positions: IntArray) -> list[pa.DictionaryArray]:
    """Return the values of items of one shard for each cap, flat; null for none and for position -1."""
    if constraints.free:
        return []
    return cast("DeferredConstraints", constraints).find_values(positions)


def order_caps(
    spec: GeneratorSpec, items: IngestedTable, rows: int = ORDER_ROWS, memory_bytes: int = ORDER_BYTES
) -> list[CapColumn]:
    """Return the caps by columns, smallest groups first. Several caps' columns are read, `rows` items at a time.

    Raises SpecError for caps whose groups cross, and BudgetError if the distinct combinations of their values do not
    fit in memory.
    """
    caps = [CapColumn(cap.by, cap.max_per_list) for cap in spec.caps if cap.by is not None]
    columns = list(dict.fromkeys(cap.column for cap in caps))
    for column in columns:
        read_cap_values(items, column, 0, 0)  # refuses lists, before the first shard is read
    if len(caps) < 2:
        return caps
    distinct: pa.Table | None = None
    for start in range(0, items.vectors.n, rows):
        stop = min(items.vectors.n, start + rows)
        here = {column: read_cap_values(items, column, start, stop) for column in columns}
        part = pa.table({**here, POSITION: np.arange(start, stop)})
        merged = part if distinct is None else pa.concat_tables([distinct, part])
        grouped = merged.group_by(columns, use_threads=False).aggregate([(POSITION, "min")])
        distinct = grouped.rename_columns([*grouped.column_names[:-1], POSITION]).select([*columns, POSITION])
        if len(distinct) * PAIR_BYTES > memory_bytes:
            raise BudgetError(
                f"caps by {' and by '.join(columns)} have {len(distinct):,} combinations of values and more, and do "
                "not fit in memory to check that their groups are nested; raise `memory`, or keep one of the caps"
            )
    assert distinct is not None
    return _order_nested(caps, distinct.sort_by(POSITION), items)


def _order_nested(caps: list[CapColumn], distinct: pa.Table, items: IngestedTable) -> list[CapColumn]:
    """Return the caps, smallest groups first. distinct: each combination of values, and its first position."""
    named = [(cap, Cap(_encode_groups(distinct.column(cap.column).combine_chunks()), cap.most)) for cap in caps]
    named.sort(key=lambda pair: -int(pair[1].groups.max(initial=-1)))
    for (inner_cap, inner), (outer_cap, outer) in pairwise(named):
        crossing = find_crossing(inner, outer)
        if crossing is not None:
            places = distinct.column(POSITION).to_numpy()
            first, second = (items.ids[int(places[row])].as_py() for row in crossing)
            raise crossing_error(inner_cap.column, outer_cap.column, first, second)
    return [cap for cap, _ in named]


def read_cap_values(items: IngestedTable, column: str, start: int, stop: int) -> pa.Array:
    """Return the values of a cap's column for the items start..stop-1. Raises SpecError for a column of lists."""
    values = _read_shard(items, (column,), start, stop).column(column).combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # no rows, or strings above 2 GB
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_nested(values.type):
        raise SpecError(f"caps are by single values, and column {column!r} holds {values.type}")
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _encode_groups(values: pa.Array) -> Int32Array:
    groups: Int32Array = pc.fill_null(values.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
    return groups.astype(np.int32)


def _read_shard(items: IngestedTable, columns: tuple[str, ...], start: int, stop: int) -> pa.Table:
    """Read columns of a shard. Those of the last shard stay in memory: it is joined with many queries."""
    read = _columns_of_shard(str(items.folder), start, stop)
    if columns not in read:
        read[columns] = read_attribute_range(items, columns, start, stop)
    return read[columns]


@lru_cache(maxsize=1)
def _columns_of_shard(_folder: str, _start: int, _stop: int) -> dict[tuple[str, ...], pa.Table]:
    """Return the tables that have been read of the last shard."""
    return {}
