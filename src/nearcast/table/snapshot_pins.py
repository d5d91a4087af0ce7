"""Pins of snapshots: a pinned one is kept, however old it is. An empty object per pin, beside the snapshots.

<out>/<generator>/pins/000003
"""

from __future__ import annotations

from nearcast.errors import NotFoundError
from nearcast.storage.base import Storage
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import join_location, open_storage
from nearcast.table.snapshot import find_snapshot, hold_snapshot

__all__ = ["list_pins", "pin_snapshot", "unpin_snapshot"]


def list_pins(out: Location, generator: str) -> set[int]:
    """Return the versions of the pinned snapshots."""
    found = _open_pins(out, generator).list_objects()
    return {int(each.name) for each in found if each.name.isdigit()}


def pin_snapshot(out: Location, generator: str, version: int) -> None:
    """Keep a snapshot until it is unpinned. Raises NotFoundError if there is none of this version."""
    with hold_snapshot(find_snapshot(out, generator, version)):  # whoever removes old ones sees the hold, or the pin
        _open_pins(out, generator).write(f"{version:06d}", b"")


def unpin_snapshot(out: Location, generator: str, version: int) -> None:
    """Let a snapshot be removed again. Raises NotFoundError if it is not pinned."""
    pins = list_pins(out, generator)
    if version not in pins:
        known = ", ".join(f"{each:06d}" for each in sorted(pins)) or "none"
        raise NotFoundError(f"{generator} {version:06d} is not pinned; pinned snapshots: {known}")
    _open_pins(out, generator).delete(f"{version:06d}")


def _open_pins(out: Location, generator: str) -> Storage:
    return open_storage(join_location(out, generator, "pins"))
