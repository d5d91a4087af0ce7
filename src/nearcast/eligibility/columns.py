"""Values of rules over whole tables: columns as arrays, arithmetic, and codes by which two columns can be compared.

Whole numbers stay whole where they are only compared; arithmetic is float64. Times and amounts of time are int64
microseconds. NaN is null, and so is a division by zero. A missing list is an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.eligibility.kinds import Kind, type_of_column
from nearcast.eligibility.nodes import Constant, Duration, Moment, Node, Product, Reference, Several, Sum
from nearcast.errors import InputError
from nearcast.types import IntArray

__all__ = ["Lists", "Scalars", "Values", "as_lists", "coded", "coded_lists", "values_of"]

BoolArray = npt.NDArray[np.bool_]

FIRST_YEAR, LAST_YEAR = -62_135_596_800_000_000, 253_402_300_800_000_000  # years 1 to 9999, in microseconds
PER_UNIT = {"s": 1_000_000, "ms": 1000, "us": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Scalars:
    """A value per row, or one for all rows; what is not valid is null."""

    kind: Kind
    data: Any  # (rows,) or (1,): int64, float64, bool, or an Arrow array of large strings
    valid: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A list per row, or one for all: row i holds data[starts[i]:starts[i + 1]], and nothing where it is not valid."""

    kind: Kind
    starts: IntArray
    data: Any  # flat, without nulls
    valid: BoolArray

    @property
    def owners(self) -> IntArray:
        """The row of each value."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


Values = Scalars | Lists


def values_of(node: Node, table: pa.Table) -> Values:
    """What an expression of one side is in each row of its table; constants have one row."""
    if isinstance(node, Reference):
        return _column(str(node), table.column(node.name))
    if isinstance(node, Sum):
        return _sum(node, table)
    if isinstance(node, Product):
        left, right = (_floats(values_of(part, table)) for part in (node.left, node.right))
        return _combined(left, right, node.operator)
    if isinstance(node, Several):
        return _several(node)
    if isinstance(node, Moment | Duration):
        kind = Kind.TIME if isinstance(node, Moment) else Kind.DURATION
        return Scalars(kind, np.array([node.microseconds], np.int64), np.ones(1, np.bool_))
    assert isinstance(node, Constant)
    return _constants([node.value])


def _several(node: Several) -> Lists:
    moments = [value.microseconds for value in node.values if isinstance(value, Moment)]
    starts, valid = np.array([0, len(node.values)]), np.ones(1, np.bool_)
    if moments:
        return Lists(Kind.TIME, starts, np.array(moments, np.int64), valid)
    found = _constants([value.value for value in node.values if isinstance(value, Constant)])
    return Lists(found.kind, starts, found.data, valid)


def _constants(values: list[int | float | str | bool]) -> Scalars:
    valid = np.ones(len(values), np.bool_)
    if isinstance(values[0], bool):
        return Scalars(Kind.BOOLEAN, np.array(values, np.bool_), valid)
    if isinstance(values[0], str):
        return Scalars(Kind.TEXT, pa.array(values, pa.large_string()), valid)
    whole = all(isinstance(value, int) for value in values)
    return Scalars(Kind.INTEGER if whole else Kind.NUMBER, np.array(values, np.int64 if whole else np.float64), valid)


# ---- columns ----


def _column(name: str, column: pa.ChunkedArray | pa.Array) -> Values:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # an empty one, or strings above 2 GB
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    found = type_of_column(array.type)
    assert found is not None, name
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not found.many:
        return _scalars(name, array, found.kind)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    return _lists(name, array, found.kind)


def _scalars(name: str, array: pa.Array, kind: Kind) -> Scalars:
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    if kind == Kind.TEXT:
        return Scalars(kind, array.cast(pa.large_string()), valid)
    if kind in (Kind.TIME, Kind.DURATION):
        return Scalars(kind, _microseconds(name, array, valid), valid)
    if kind == Kind.BOOLEAN:
        return Scalars(kind, pc.fill_null(array, False).to_numpy(zero_copy_only=False), valid)
    if kind == Kind.INTEGER:
        return Scalars(kind, _integers(name, array), valid)
    data = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return Scalars(kind, data, valid & ~np.isnan(data))


def _integers(name: str, array: pa.Array) -> IntArray:
    try:
        whole = array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"{name} holds whole numbers above 9223372036854775807; cast it to double ({error})") from None
    data: IntArray = pc.fill_null(whole, 0).to_numpy(zero_copy_only=False)
    return data


def _microseconds(name: str, array: pa.Array, valid: BoolArray) -> IntArray:
    if pa.types.is_date32(array.type):
        unit, raw = 86_400_000_000, array.cast(pa.int32()).cast(pa.int64())
    elif pa.types.is_date64(array.type):
        unit, raw = 1000, array.cast(pa.int64())
    else:
        unit, raw = PER_UNIT.get(array.type.unit, 0), array.cast(pa.int64())
    data: IntArray = pc.fill_null(raw, 0).to_numpy(zero_copy_only=False)
    if unit == 0:  # nanoseconds: what is finer than a microsecond is cut off
        data = data // 1000
    elif (np.abs(data.astype(np.float64)) > LAST_YEAR / unit * 1.01).any():
        raise _beyond(name)
    else:
        data = data * unit
    if ((data < FIRST_YEAR) | (data >= LAST_YEAR))[valid].any():
        raise _beyond(name)
    return data


def _beyond(name: str) -> InputError:
    return InputError(f"{name} holds a time outside the years 1 to 9999; write null for an unknown or endless time")


def _lists(name: str, array: pa.Array, kind: Kind) -> Lists:
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = _scalars(name, array.flatten(), kind)  # without what a null list may hide
    owners = np.repeat(np.arange(len(array)), lengths)[flat.valid]
    data = flat.data.filter(pa.array(flat.valid)) if kind == Kind.TEXT else flat.data[flat.valid]
    starts = np.append(0, np.cumsum(np.bincount(owners, minlength=len(array)))).astype(np.int64)
    return Lists(kind, starts, data, valid)


def as_lists(values: Values) -> Lists:
    """Single values as lists of one, or of none where it is null."""
    if isinstance(values, Lists):
        return values
    kept = values.data.filter(pa.array(values.valid)) if values.kind == Kind.TEXT else values.data[values.valid]
    starts = np.append(0, np.cumsum(values.valid)).astype(np.int64)
    return Lists(values.kind, starts, kept, values.valid)


# ---- arithmetic ----


def _sum(node: Sum, table: pa.Table) -> Scalars:
    terms = [(sign, values_of(term, table)) for sign, term in node.terms]
    if all(isinstance(term, Scalars) and term.kind in (Kind.TIME, Kind.DURATION) for _, term in terms):
        rows = max(len(term.valid) for _, term in terms)
        total, valid = np.zeros(rows, np.int64), np.ones(rows, np.bool_)
        for sign, term in terms:
            total, valid = total + sign * term.data, valid & term.valid
        return Scalars(Kind.TIME, total, valid)
    found: Scalars | None = None
    for sign, term in terms:
        number = _floats(term)
        signed = number if sign > 0 else Scalars(Kind.NUMBER, -number.data, number.valid)
        found = signed if found is None else _combined(found, signed, "+")
    assert found is not None
    return found


def _floats(values: Values) -> Scalars:
    assert isinstance(values, Scalars)
    return Scalars(Kind.NUMBER, values.data.astype(np.float64), values.valid)


def _combined(left: Scalars, right: Scalars, operator: str) -> Scalars:
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


def coded(left: Any, right: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Two flat arrays as numbers in the same order: texts by their rank among all of both, by code points."""
    if isinstance(left, np.ndarray):
        whole = left.dtype == right.dtype
        return (left, right) if whole else (left.astype(np.float64), right.astype(np.float64))
    distinct = pc.drop_null(pc.unique(pa.concat_arrays([pc.unique(left), pc.unique(right)])))
    ordered = distinct.take(pc.sort_indices(distinct))
    ranks = (pc.fill_null(pc.index_in(side, ordered), -1) for side in (left, right))
    first, second = (np.asarray(side.to_numpy(zero_copy_only=False), np.int64) for side in ranks)
    return first, second


def coded_lists(left: Lists, right: Lists) -> tuple[IntArray, IntArray, int]:
    """A code for each value of both, from 0, for those that both hold somewhere; -1 for all that can never be shared.

    Returns the codes of the left, those of the right, and how many there are.
    """
    first, second = coded(left.data, right.data)
    shared = np.intersect1d(first, second)
    return _places(shared, first), _places(shared, second), len(shared)


def _places(ordered: npt.NDArray[Any], values: npt.NDArray[Any]) -> IntArray:
    if not len(ordered):
        return np.full(len(values), -1, np.int64)
    places = np.searchsorted(ordered, values)
    found = ordered[np.minimum(places, len(ordered) - 1)] == values
    return np.where(found, places, -1).astype(np.int64)
