"""Units of a source: runs of rows that are read by one task each. They depend on the source alone.

A unit is a span of row groups of a large file, or a group of small files. Row numbers that are given in messages are
those of the whole source; a unit counts its own rows from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nearcast.sources.row_source import Part, RowSource, RowSpan

__all__ = ["UNIT_ROWS", "RowUnit", "cut_units"]

UNIT_ROWS = 1 << 20
UNIT_BYTES = 1 << 30  # of rows as they are decoded


@dataclass(frozen=True, slots=True)
class RowUnit:
    """Rows that are read by one task: spans of parts, in the order of the source."""

    number: int
    spans: tuple[RowSpan, ...]

    @property
    def n_rows(self) -> int:
        """Rows in all spans, good and bad; with `only`, also those that it leaves out."""
        return sum(span.stop - span.start for span in self.spans)


def cut_units(source: RowSource, unit_rows: int = UNIT_ROWS, unit_bytes: int = UNIT_BYTES) -> tuple[RowUnit, ...]:
    """Cut a source into units of about `unit_rows` rows or `unit_bytes`. A source without rows has one empty unit."""
    units: list[list[RowSpan]] = [[]]
    rows = size = 0
    for number, part in enumerate(source.parts):
        most = max(1, min(unit_rows, unit_bytes // part.row_bytes))
        for start, stop in _cut_part(part, most):
            if units[-1] and (rows + stop - start > unit_rows or size + (stop - start) * part.row_bytes > unit_bytes):
                units.append([])
                rows = size = 0
            rows, size = rows + stop - start, size + (stop - start) * part.row_bytes
            units[-1].append(RowSpan(number, start, stop))
    return tuple(RowUnit(number, tuple(_join_spans(spans))) for number, spans in enumerate(units))


def _cut_part(part: Part, most: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the smallest spans of a part that may be read alone, or of at most `most` rows."""
    start = 0
    if not part.groups:
        for start in range(0, part.n_rows, most):
            yield start, min(part.n_rows, start + most)
        return
    for rows in part.groups:
        if rows:
            yield start, start + rows
            start += rows


def _join_spans(spans: Sequence[RowSpan]) -> Iterator[RowSpan]:
    """Yield spans in which adjacent ones of a part are joined."""
    last: RowSpan | None = None
    for span in spans:
        if last is not None and last.part == span.part and last.stop == span.start:
            last = RowSpan(span.part, last.start, span.stop)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last
