"""Facts of a whole table, added up from those of its units and ranges: counts, faults with examples, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearcast.sources.norms import merge_lengths
from nearcast.sources.range_rows import UNIT_SHIFT
from nearcast.sources.split_rows import EXAMPLES, find_common_length

__all__ = ["RowFault", "TableFacts", "count_lengths", "find_lost_units", "merge_facts"]

FAULTS = ("null_vector", "wrong_dimension", "not_finite", "zero_vector", "null_id", "duplicate_id")


@dataclass(frozen=True, slots=True)
class RowFault:
    """Rows with one kind of fault."""

    kind: str  # a check of the spec
    count: int
    examples: tuple[tuple[int, Any], ...]  # the first rows: number in the source, and id
    firsts: tuple[tuple[int, Any], ...] = ()  # of duplicate ids: the first rows with the ids of the examples


@dataclass(frozen=True, slots=True)
class TableFacts:
    """Facts of a table whose rows were all read."""

    rows: int
    vectors: int  # rows that take part in the join
    listed: int  # the same, and rows listed without a vector
    dim: int  # of most vectors; 0 if there is none
    dtype: str
    norms: Mapping[str, float]
    faults: tuple[RowFault, ...]
    id_bytes: int = 0  # mean length of a listed id, rounded up


def count_lengths(units: Sequence[Mapping[str, Any]]) -> int:
    """Return the length of most vectors in all units, 0 if there is none."""
    lengths: Counter[int] = Counter()
    for unit in units:
        lengths.update({int(length): count for length, count in unit["lengths"].items()})
    return find_common_length(lengths)


def find_lost_units(units: Sequence[Mapping[str, Any]], dim: int) -> list[int]:
    """Return the numbers of the units that were split with another length of good vectors: they are split again."""
    return [number for number, unit in enumerate(units) if unit["dim"] not in (0, dim)]


def merge_facts(
    units: Sequence[Mapping[str, Any]],
    ranges: Sequence[Mapping[str, Any]],
    dtype: np.dtype[Any],
    norms: Mapping[str, float] | None = None,
) -> TableFacts:
    """Add up the facts of all units and ranges. norms: of a table of one range, whose lengths are all known."""
    starts = np.append(0, np.cumsum([unit["rows"] for unit in units])).tolist()
    faults = []
    for kind in FAULTS:
        found = [(starts[number], unit["faults"][kind]) for number, unit in enumerate(units) if kind in unit["faults"]]
        count = sum(fault["count"] for _, fault in found)
        examples = sorted((start + row, key) for start, fault in found for row, key in fault["examples"][:EXAMPLES])
        firsts: dict[int, Any] = {}
        if kind == "duplicate_id":
            count += sum(one["duplicates"]["count"] for one in ranges)
            known = sorted(example for one in ranges for example in one["duplicates"]["examples"])[:EXAMPLES]
            examples = [(_row_number(number, starts), key) for number, key, _ in known]
            firsts = {_row_number(first, starts): key for _, key, first in known}
        if count:
            faults.append(RowFault(kind, count, tuple(examples[:EXAMPLES]), tuple(firsts.items())))
    return TableFacts(
        rows=starts[-1],
        vectors=sum(one["vectors"] for one in ranges),
        listed=sum(one["listed"] for one in ranges),
        dim=count_lengths(units),
        dtype=dtype.name,
        norms=merge_lengths([one["lengths"] for one in ranges]) if norms is None else norms,
        faults=tuple(faults),
        id_bytes=-(-sum(one["listed_id_bytes"] for one in ranges) // max(1, sum(one["listed"] for one in ranges))),
    )


def _row_number(number: int, starts: Sequence[int]) -> int:
    """Return the number of a row in the source."""
    row: int = starts[number >> UNIT_SHIFT] + (number & ((1 << UNIT_SHIFT) - 1))
    return row
