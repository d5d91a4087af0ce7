"""Format the entries of an overlay for people. Computes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

from nearcast.cli.common import format_cell

if TYPE_CHECKING:
    from nearcast.stores.base import OverlayEntry

__all__ = ["build_overlay_table"]


def build_overlay_table(entries: Sequence[OverlayEntry], in_snapshot: Sequence[bool], now: float) -> Table:
    """Build a table of entries. in_snapshot: whether the current version contains the item."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("item", "change", "since", "in force", "in snapshot", "note"):
        table.add_column(name, overflow="fold")
    for entry, known in zip(entries, in_snapshot, strict=True):
        what = "removed" if entry.field is None else f"{entry.field} = {json.dumps(entry.value, ensure_ascii=False)}"
        table.add_row(
            format_cell(entry.item, full=True),
            format_cell(what),
            _format_time(entry.written),
            _format_end(entry.until, now),
            "yes" if known else "no",
            format_cell(entry.note, full=True),
        )
    return table


def _format_end(until: float | None, now: float) -> str:
    if until is None:
        return "until restored"
    return f"until {_format_time(until)}" if until > now else f"expired {_format_time(until)}"


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
