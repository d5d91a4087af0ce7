"""The live updates of a served version for the page: its newest patches, and what `nearcast follow` has recorded.

Takes the patches of a store, returns plain data.
"""

from __future__ import annotations

from typing import Any

from nearcast.stores.base import PatchState

__all__ = ["describe_updates"]

MOST_PATCHES = 12  # of the newest ones


def describe_updates(state: PatchState) -> dict[str, Any] | None:
    """Return the newest patches, newest first, and the followed sources; None without any."""
    if state.newest is None and not state.offsets:
        return None
    newest = state.patches[: -MOST_PATCHES - 1 : -1]
    patches = [{"number": p.number, "at": p.made, "counts": dict(p.counts), "note": p.note} for p in newest]
    feeds = [
        {
            "source": source,
            "freshness": known.get("freshness"),
            "set_aside": known.get("count", 0),
            "last": known.get("set_aside", [])[-1:],
        }
        for source, known in state.offsets.items()
    ]
    return {"patches": patches, "more": len(state.patches) - len(patches), "feeds": feeds}
