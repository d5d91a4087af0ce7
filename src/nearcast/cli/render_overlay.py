"""The overlay as a table for people. Draws what it is given and computes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

from nearcast.cli.common import cell

if TYPE_CHECKING:
    from nearcast.stores.base import OverlayEntry

__all__ = ["overlay_table"]


def overlay_table(entries: Sequence[OverlayEntry], in_snapshot: Sequence[bool], now: float) -> Table:
    """A row per entry. in_snapshot: whether the current version holds its item."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("item", "what", "since", "in force", "in snapshot", "note"):
        table.add_column(name, overflow="fold")
    for entry, known in zip(entries, in_snapshot, strict=True):
        what = "gone" if entry.field is None else f"{entry.field} = {json.dumps(entry.value, ensure_ascii=False)}"
        table.add_row(
            cell(entry.item, full=True),
            cell(what),
            _time(entry.written),
            _in_force(entry.until, now),
            "yes" if known else "no",
            cell(entry.note, full=True),
        )
    return table


def _in_force(until: float | None, now: float) -> str:
    if until is None:
        return "until taken back"
    return f"until {_time(until)}" if until > now else f"expired {_time(until)}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
