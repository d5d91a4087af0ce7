"""The values of rules over whole tables: columns as arrays, arithmetic, and codes for comparisons of two columns.

Whole numbers and floats are compared exactly; arithmetic is float64. Times and amounts of time are int64 microseconds,
with the remaining nanoseconds beside them. NaN and a division by zero are null. A null list is an empty list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.nodes import Constant, Duration, Moment, Node, Product, Reference, Several, Sum
from nearcast.eligibility.rule_types import Kind, convert_arrow_type
from nearcast.errors import InputError
from nearcast.sources.ids import argsort_ids, repeats
from nearcast.types import IntArray

__all__ = [
    "ListColumn",
    "Scalars",
    "Values",
    "convert_to_lists",
    "encode_list_values",
    "encode_values",
    "evaluate_values",
]

BoolArray = npt.NDArray[np.bool_]

FIRST_YEAR, LAST_YEAR = -62_135_596_800_000_000, 253_402_300_800_000_000  # years 1 to 9999, in microseconds
PER_UNIT = {"s": 1_000_000, "ms": 1000, "us": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Scalars:
    """A value per row, or one for all rows; not valid means null."""

    kind: Kind
    data: Any  # (rows,) or (1,): int64, float64, bool, or an Arrow array of large strings
    valid: BoolArray
    nanos: IntArray | None = None  # of times: 0 to 999 beyond the microseconds; None if all are 0


@dataclass(frozen=True, slots=True, eq=False)
class ListColumn:
    """A list per row, or one for all rows: row i is data[starts[i]:starts[i + 1]]. A null list is empty."""

    kind: Kind
    starts: IntArray
    data: Any  # flat, without nulls
    valid: BoolArray
    nanos: IntArray | None = None  # of times, flat too

    @property
    def owners(self) -> IntArray:
        """Return the row of each value."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


Values = Scalars | ListColumn


def evaluate_values(node: Node, table: pa.Table) -> Values:
    """Evaluate an expression of one table for each row; a constant has one row."""
    if isinstance(node, Reference):
        return _convert_column(str(node), table.column(node.name))
    if isinstance(node, Sum):
        return _sum(node, table)
    if isinstance(node, Product):
        left, right = (_convert_floats(evaluate_values(part, table)) for part in (node.left, node.right))
        return _combine(left, right, node.operator)
    if isinstance(node, Several):
        return _convert_several(node)
    if isinstance(node, Moment | Duration):
        kind = Kind.TIME if isinstance(node, Moment) else Kind.DURATION
        data, nanos = _split(np.array([node.nanoseconds // 1000]), np.array([node.nanoseconds % 1000]))
        return Scalars(kind, data, np.ones(1, np.bool_), nanos)
    assert isinstance(node, Constant)
    return _convert_constants([node.value])


def _convert_several(node: Several) -> ListColumn:
    moments = [value.nanoseconds for value in node.values if isinstance(value, Moment)]
    starts, valid = np.array([0, len(node.values)]), np.ones(1, np.bool_)
    if moments:
        data, nanos = _split(np.array([m // 1000 for m in moments]), np.array([m % 1000 for m in moments]))
        return ListColumn(Kind.TIME, starts, data, valid, nanos)
    found = _convert_constants([value.value for value in node.values if isinstance(value, Constant)])
    return ListColumn(found.kind, starts, found.data, valid)


def _convert_constants(values: list[int | float | str | bool]) -> Scalars:
    valid = np.ones(len(values), np.bool_)
    if isinstance(values[0], bool):
        return Scalars(Kind.BOOLEAN, np.array(values, np.bool_), valid)
    if isinstance(values[0], str):
        return Scalars(Kind.TEXT, pa.array(values, pa.large_string()), valid)
    whole = all(isinstance(value, int) for value in values)
    return Scalars(Kind.INTEGER if whole else Kind.NUMBER, np.array(values, np.int64 if whole else np.float64), valid)


# ---- columns ----


def _convert_column(name: str, column: pa.ChunkedArray | pa.Array) -> Values:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # an empty one, or strings above 2 GB
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    found = convert_arrow_type(array.type)
    assert found is not None, name
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not found.many:
        return _convert_scalars(name, array, found.kind)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    return _convert_lists(name, array, found.kind)


def _convert_scalars(name: str, array: pa.Array, kind: Kind) -> Scalars:
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    if kind == Kind.TEXT:
        return Scalars(kind, array.cast(pa.large_string()), valid)
    if kind in (Kind.TIME, Kind.DURATION):
        data, nanos = _convert_times(name, array, valid)
        return Scalars(kind, data, valid, nanos)
    if kind == Kind.BOOLEAN:
        return Scalars(kind, pc.fill_null(array, False).to_numpy(zero_copy_only=False), valid)
    if kind == Kind.INTEGER:
        return Scalars(kind, _convert_integers(name, array), valid)
    data = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return Scalars(kind, data, valid & ~np.isnan(data))


def _convert_integers(name: str, array: pa.Array) -> IntArray:
    try:
        whole = array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"{name} holds whole numbers above 9223372036854775807; cast it to double ({error})") from None
    data: IntArray = pc.fill_null(whole, 0).to_numpy(zero_copy_only=False)
    return data


def _convert_times(name: str, array: pa.Array, valid: BoolArray) -> tuple[IntArray, IntArray | None]:
    """Return (rows,) times in whole microseconds, and the nanoseconds beyond them."""
    if pa.types.is_date64(array.type):  # a date, whatever milliseconds of its day were written
        array = array.cast(pa.int64())
        array = pa.array(np.asarray(pc.fill_null(array, 0)) // 86_400_000, pa.int64())
        unit, raw = 86_400_000_000, array
    elif pa.types.is_date32(array.type):
        unit, raw = 86_400_000_000, array.cast(pa.int32()).cast(pa.int64())
    else:
        unit, raw = PER_UNIT.get(array.type.unit, 0), array.cast(pa.int64())
    data: IntArray = pc.fill_null(raw, 0).to_numpy(zero_copy_only=False)
    nanos: IntArray | None = None
    if unit == 0:
        data, nanos = _split(data // 1000, data % 1000)
    elif (np.abs(data.astype(np.float64)) > LAST_YEAR / unit * 1.01).any():
        raise _time_range_error(name)
    else:
        data = data * unit
    if ((data < FIRST_YEAR) | (data >= LAST_YEAR))[valid].any():
        raise _time_range_error(name)
    return data, nanos


def _split(micros: IntArray, nanos: IntArray) -> tuple[IntArray, IntArray | None]:
    """Return both parts of times; None for nanoseconds that are all 0."""
    return micros.astype(np.int64), nanos.astype(np.int64) if nanos.any() else None


def _time_range_error(name: str) -> InputError:
    return InputError(f"{name} holds a time outside the years 1 to 9999; write null for an unknown or endless time")


def _convert_lists(name: str, array: pa.Array, kind: Kind) -> ListColumn:
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = _convert_scalars(name, array.flatten(), kind)  # a null list may have values; `flatten` drops them
    owners = np.repeat(np.arange(len(array)), lengths)[flat.valid]
    data = flat.data.filter(pa.array(flat.valid)) if kind == Kind.TEXT else flat.data[flat.valid]
    nanos = None if flat.nanos is None else flat.nanos[flat.valid]
    starts = np.append(0, np.cumsum(np.bincount(owners, minlength=len(array)))).astype(np.int64)
    return ListColumn(kind, starts, data, valid, nanos)


def convert_to_lists(values: Values) -> ListColumn:
    """Return single values as lists of one value; a null becomes an empty list."""
    if isinstance(values, ListColumn):
        return values
    kept = values.data.filter(pa.array(values.valid)) if values.kind == Kind.TEXT else values.data[values.valid]
    nanos = None if values.nanos is None else values.nanos[values.valid]
    starts = np.append(0, np.cumsum(values.valid)).astype(np.int64)
    return ListColumn(values.kind, starts, kept, values.valid, nanos)


# ---- arithmetic ----


def _sum(node: Sum, table: pa.Table) -> Scalars:
    terms = [(sign, evaluate_values(term, table)) for sign, term in node.terms]
    if all(isinstance(term, Scalars) and term.kind in (Kind.TIME, Kind.DURATION) for _, term in terms):
        rows = max(len(term.valid) for _, term in terms)
        total, beyond, valid = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.ones(rows, np.bool_)
        for sign, term in terms:
            total, valid = total + sign * term.data, valid & term.valid
            beyond = beyond if term.nanos is None else beyond + sign * term.nanos
        beyond = np.broadcast_to(beyond, total.shape)  # of no rows, beside a constant
        data, nanos = _split(total + beyond // 1000, beyond % 1000)
        return Scalars(Kind.TIME, data, valid, nanos)
    found: Scalars | None = None
    for sign, term in terms:
        number = _convert_floats(term)
        signed = number if sign > 0 else Scalars(Kind.NUMBER, -number.data, number.valid)
        found = signed if found is None else _combine(found, signed, "+")
    assert found is not None
    return found


def _convert_floats(values: Values) -> Scalars:
    assert isinstance(values, Scalars)
    return Scalars(Kind.NUMBER, values.data.astype(np.float64), values.valid)


def _combine(left: Scalars, right: Scalars, operator: str) -> Scalars:
    valid = left.valid & right.valid
    with np.errstate(all="ignore"):
        if operator == "+":
            data = left.data + right.data
        elif operator == "*":
            data = left.data * right.data
        else:
            data = left.data / right.data
            valid = valid & (right.data != 0)
    return Scalars(Kind.NUMBER, data, valid & ~np.isnan(data))


# ---- codes ----


def encode_values(one: Values, other: Values) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the flat values of both as numbers in one order. Texts become ranks by code points."""
    left, right = one.data, other.data
    if isinstance(left, np.ndarray):
        if one.nanos is None and other.nanos is None:
            if left.dtype == right.dtype:
                return left, right
            if _fits_float(left) and _fits_float(right):
                return left.astype(np.float64), right.astype(np.float64)
        return _rank(_split_numbers(one), _split_numbers(other))
    return _rank_texts(left, right)


def _rank_texts(left: pa.Array, right: pa.Array) -> tuple[IntArray, IntArray]:
    """Return the rank of each text among all distinct ones of both, -1 for null. Copies the distinct texts alone."""
    sides = [side.dictionary_encode() for side in (left, right)]
    texts = pa.concat_arrays([side.dictionary for side in sides])
    order = argsort_ids(texts)
    ranks = np.full(len(texts) + 1, -1, np.int64)  # the last one is of null
    ranks[order] = np.cumsum(~repeats(texts, order)[order]) - 1
    first, second = (np.asarray(pc.fill_null(side.indices, -1).to_numpy(zero_copy_only=False)) for side in sides)
    second = np.where(second < 0, -1, second + len(sides[0].dictionary))
    return ranks[first], ranks[second]


def _fits_float(data: npt.NDArray[Any]) -> bool:
    """Return whether float64 holds all numbers exactly."""
    return data.dtype == np.float64 or not len(data) or (data.min() >= -(2**53) and data.max() <= 2**53)


Parts = tuple[IntArray, npt.NDArray[np.float64]]  # (rows,) each; compared by the first, then by the second


def _split_numbers(values: Values) -> Parts:
    """Return numbers or times exactly: the whole part, and the rest."""
    data = values.data
    if data.dtype != np.float64:
        beyond = np.zeros(len(data)) if values.nanos is None else values.nanos.astype(np.float64)
        return data, beyond
    data = np.where(np.isnan(data), 0.0, data)  # not valid
    inside = (data >= -(2.0**63)) & (data < 2.0**63)
    whole = np.where(inside, np.trunc(data), 0.0)
    limits = np.iinfo(np.int64)
    first = np.where(inside, whole.astype(np.int64), np.where(data > 0, limits.max, limits.min))
    return first, np.where(inside, data - whole, data)


def _rank(left: Parts, right: Parts) -> tuple[IntArray, IntArray]:
    """Return the rank of each number among all of both; equal numbers have equal ranks."""
    first, second = (np.concatenate(both) for both in zip(left, right, strict=True))
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.append(np.zeros(min(1, len(order)), np.int64), np.cumsum(new))
    return ranks[: len(left[0])], ranks[len(left[0]) :]


def encode_list_values(left: ListColumn, right: ListColumn) -> tuple[IntArray, IntArray, int]:
    """Return a code for each value of the left, for each value of the right, and the number of codes.

    Codes count from 0; a value that only one of both has gets -1.
    """
    first, second = encode_values(left, right)
    shared = np.intersect1d(first, second)
    return _find_codes(shared, first), _find_codes(shared, second), len(shared)


def _find_codes(ordered: npt.NDArray[Any], values: npt.NDArray[Any]) -> IntArray:
    if not len(ordered):
        return np.full(len(values), -1, np.int64)
    places = np.searchsorted(ordered, values)
    found = ordered[np.minimum(places, len(ordered) - 1)] == values
    return np.where(found, places, -1).astype(np.int64)
