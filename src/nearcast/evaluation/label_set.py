"""Labels in memory: the relevant items of each query, with grades. Rows are read in batches and kept as codes.

A pair of query and item that occurs again keeps its highest grade. Of more pairs than `max_rows`, those of a sample of
the queries are kept: queries of the smallest hashes, so that whole queries are kept or left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.evaluation.label_table import LabelTable
from nearcast.settings.label_tables import LabelsSpec
from nearcast.sources.column_roles import one_array, plain_id_type
from nearcast.types import IntArray

__all__ = ["SEVERAL", "FloatArray64", "LabelCounts", "LabelSet", "cast_column", "describe_labels", "read_labels"]

SEVERAL = "(several)"  # value of a query whose labels have different values
FloatArray64 = npt.NDArray[np.float64]
LARGEST_GRADE = 1e100  # sums of a query's grades stay finite, and shares of them exact
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """How many rows were read, and how many count."""

    rows: int
    without_id: int  # rows that lack the query or the item: left out
    repeated: int  # rows of a pair of query and item that has another row: the highest grade counts
    not_relevant: int  # pairs whose grade is 0 or negative
    queries: int  # that are measured: with at least one relevant item
    queries_without_relevant: int  # left out
    pairs: int  # relevant items of all measured queries
    sampled: float  # share of the queries that are measured; below 1 with more than max_rows labels


@dataclass(frozen=True, slots=True, eq=False)
class LabelSet:
    """Labels of n queries, flat: query i has the labels offsets[i]:offsets[i + 1], the highest grade first."""

    queries: pa.Array  # (n,) int64 or string, ascending
    offsets: IntArray  # (n + 1,)
    items: IntArray  # (labels,) index of item_ids
    grades: FloatArray64  # (labels,) above 0
    relevant: npt.NDArray[np.bool_]  # (labels,) whether the grade reaches that of a relevant item
    item_ids: pa.Array  # int64 or string
    slices: Mapping[str, tuple[IntArray, pa.Array]]  # by column: (n,) index of the values, -1 for null, -2 for several
    counts: LabelCounts

    @property
    def owners(self) -> IntArray:
        """(labels,) the query of each label."""
        return np.repeat(np.arange(len(self.queries)), np.diff(self.offsets))


@dataclass(slots=True)
class _Rows:
    """Rows that were read: codes of queries, items and slices, with their dictionaries."""

    columns: dict[str, list[pa.Array]] = field(default_factory=dict)  # dictionary arrays
    grades: list[FloatArray64] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.grades))


def read_labels(table: LabelTable, spec: LabelsSpec, slices: Sequence[str] = ()) -> LabelSet:
    """Read all labels. slices: columns of the table.

    Raises InputError for ids of other types, grades that are no numbers, and labels without any relevant item.
    """
    names = list(dict.fromkeys((spec.query, spec.item, *slices)))
    numbers = () if spec.grade is None else (spec.grade,)
    rows, n_rows, without_id, repeated, threshold = _Rows(), 0, 0, 0, None
    for batch in table.batches(list(dict.fromkeys((*names, *numbers))), numbers):
        for name in names[:2]:
            plain_id_type(batch.schema.field(name).type, table.name, name)
        grades = _read_grades(batch, spec.grade, table.name, n_rows)
        known = pc.and_(pc.is_valid(batch[spec.query]), pc.is_valid(batch[spec.item])).combine_chunks()
        n_rows, without_id = n_rows + len(batch), without_id + len(batch) - (known.true_count if len(batch) else 0)
        kept = batch.filter(known)
        for name in names:
            column = cast_column(kept[name], table.name, name)
            rows.columns.setdefault(name, []).append(one_array(column).dictionary_encode())
        rows.grades.append(grades[known.to_numpy(zero_copy_only=False)])
        if len(rows) > 2 * spec.max_rows:
            before = len(rows)
            rows = _drop_repeated(rows, names)
            repeated += before - len(rows)
            rows, threshold = _sample_queries(rows, names, spec.max_rows, threshold)
    if not len(rows):
        raise InputError(f"{table.name} holds no label: {n_rows:,} rows, and none with a query and an item")
    before = len(rows)
    rows = _drop_repeated(rows, names)
    repeated += before - len(rows)
    rows, threshold = _sample_queries(rows, names, spec.max_rows, threshold)
    return _arrange(rows, table.name, spec, slices, (n_rows, without_id, repeated, threshold))


def _read_grades(batch: pa.Table, grade: str | None, name: str, first: int) -> FloatArray64:
    if grade is None:
        return np.ones(len(batch))
    kind = batch.schema.field(grade).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_temporal(kind):
        raise InputError(f"{name}: the column {grade!r} is {kind}, and grades are numbers; convert it")
    try:
        grades: FloatArray64 = batch[grade].cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"{name}: the column {grade!r} is {kind}, and grades are numbers; convert it") from error
    odd = np.flatnonzero(~np.isfinite(grades))
    if len(odd):
        value = batch[grade][int(odd[0])].as_py()
        raise InputError(
            f"{name}: the grade of row {first + int(odd[0]) + 1:,} is {value}; leave out rows that were not judged, "
            "and write 0 for items that are not relevant"
        )
    sizes = np.abs(grades)
    odd = np.flatnonzero((sizes > LARGEST_GRADE) | ((sizes > 0) & (sizes < 1 / LARGEST_GRADE)))
    if len(odd):
        raise InputError(
            f"{name}: the grade of row {first + int(odd[0]) + 1:,} is {grades[odd[0]]}; grades are 0, or between "
            f"{1 / LARGEST_GRADE:g} and {LARGEST_GRADE:g}; write small numbers, such as 1 to 5"
        )
    return grades


def cast_column(column: pa.ChunkedArray, table: str, name: str) -> pa.ChunkedArray:
    """Cast a column to int64, float64 or large_string. Raises InputError if a value does not fit."""
    kind = column.type
    plain = pa.large_string()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        plain = pa.int64() if pa.types.is_integer(kind) else pa.float64()
    try:
        column = column.cast(plain)
        column.validate(full=True)
    except pa.ArrowException as error:
        raise InputError(f"{table}: the column {name!r} of type {kind} cannot be {plain}: {error}") from error
    return column


def _unify(chunks: Sequence[pa.Array]) -> tuple[IntArray, pa.Array]:
    """Return codes and distinct values of dictionary arrays; -1 is null."""
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(codes).astype(np.int64), column.chunk(0).dictionary


def _drop_repeated(rows: _Rows, names: Sequence[str]) -> _Rows:
    """Keep the row with the highest grade of each pair, the first of equal ones, in the order of the pairs."""
    coded = {name: _unify(rows.columns[name]) for name in names}
    grades = np.concatenate(rows.grades)
    (queries, _), (items, item_values) = coded[names[0]], coded[names[1]]
    pairs = queries * len(item_values) + items
    order = np.lexsort((-grades, pairs))
    first = order[np.flatnonzero(np.diff(pairs[order], prepend=-1))]
    columns = {name: [_decode(codes[first], values)] for name, (codes, values) in coded.items()}
    return _Rows(columns, [grades[first]])


def _decode(codes: IntArray, values: pa.Array) -> pa.Array:
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, values)


def _sample_queries(
    rows: _Rows, names: Sequence[str], most: int, threshold: np.uint64 | None
) -> tuple[_Rows, np.uint64 | None]:
    """Keep the rows of the queries with the smallest hashes, at most `most`. Return them with the largest kept hash."""
    if len(rows) <= most and threshold is None:
        return rows, None
    codes, values = _unify(rows.columns[names[0]])
    hashes = _hash_ids(values)
    counts = np.bincount(codes, minlength=len(values))
    order = np.argsort(hashes, kind="stable")
    n_kept = max(1, int(np.searchsorted(np.cumsum(counts[order]), most, side="right")))
    largest = hashes[order[n_kept - 1]]
    if len(rows) <= most or (threshold is not None and threshold < largest):
        largest = threshold  # a batch that fits now was cut before
    assert largest is not None
    kept = (hashes <= largest)[codes]
    columns = {}
    for name in names:
        numbers, distinct = _unify(rows.columns[name])
        columns[name] = [_decode(numbers[kept], distinct)]
    return _Rows(columns, [np.concatenate(rows.grades)[kept]]), largest


def _hash_ids(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Hash ids to 64 bits: equal ids have equal hashes on every machine."""
    if pa.types.is_integer(ids.type):
        mixed = ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
    else:
        texts = [text.encode() for text in ids.to_pylist()]
        pairs = [(zlib.crc32(text) << 32) | zlib.crc32(text[::-1]) for text in texts]
        mixed = np.array(pairs, np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of splitmix64
        mixed = (mixed + GOLDEN) if shift == 30 else mixed
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    hashes: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return hashes


def _arrange(
    rows: _Rows, name: str, spec: LabelsSpec, slices: Sequence[str], totals: tuple[int, int, int, np.uint64 | None]
) -> LabelSet:
    """Sort the labels by query, leave out queries without a relevant item, and count."""
    n_rows, without_id, repeated, threshold = totals
    (codes, ids), (items, item_ids) = _unify(rows.columns[spec.query]), _unify(rows.columns[spec.item])
    grades = np.concatenate(rows.grades)
    useful = grades > 0
    relevant = useful & (grades >= spec.relevant)
    has_relevant = np.bincount(codes[relevant], minlength=len(ids)) > 0
    seen = np.bincount(codes, minlength=len(ids)) > 0  # a dictionary may hold ids of rows that were left out
    if not has_relevant.any():
        above = "above 0" if not spec.relevant else f"of {spec.relevant:g} or more"
        raise InputError(f"{name} has no relevant item for any query: no grade is {above}")
    order = pc.sort_indices(ids).to_numpy()
    order = order[has_relevant[order]]
    place = np.full(len(ids), -1, np.int64)
    place[order] = np.arange(len(order))
    kept = np.flatnonzero(useful & has_relevant[codes])
    owners = place[codes[kept]]
    kept = kept[np.lexsort((items[kept], -grades[kept], owners))]
    owners = place[codes[kept]]
    counts = np.bincount(owners, minlength=len(order))
    return LabelSet(
        queries=ids.take(pa.array(order)),
        offsets=np.append(0, np.cumsum(counts)),
        items=items[kept],
        grades=grades[kept],
        relevant=relevant[kept],
        item_ids=item_ids,
        slices={by: _slice_codes(rows.columns[by], place[codes], len(order)) for by in slices},
        counts=LabelCounts(
            rows=n_rows,
            without_id=without_id,
            repeated=repeated,
            not_relevant=int((~useful).sum()),
            queries=len(order),
            queries_without_relevant=int((seen & ~has_relevant).sum()),
            pairs=int(relevant.sum()),
            sampled=1.0 if threshold is None else (float(threshold) + 1) / 2.0**64,
        ),
    )


def _slice_codes(chunks: Sequence[pa.Array], owners: IntArray, n: int) -> tuple[IntArray, pa.Array]:
    """Return the value of each query as a code: -1 if all its labels are null there, -2 if they differ."""
    codes, values = _unify(chunks)
    known = np.flatnonzero((owners >= 0) & (codes >= 0))
    low, high = np.full(n, len(values), np.int64), np.full(n, -1, np.int64)
    np.minimum.at(low, owners[known], codes[known])
    np.maximum.at(high, owners[known], codes[known])
    return np.where(high < 0, -1, np.where(low == high, high, -2)), values


def describe_labels(table: LabelTable, labels: LabelSet) -> dict[str, Any]:
    """Return which labels were used, for manifests: path, files with hashes, and counts."""
    return {"path": table.name, "files": table.digests(), **asdict(labels.counts)}
