"""Tidy up a store after its pointer has moved: compact the overlay, remove old versions. May be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nearcast.errors import DamagedError, NotFoundError, StoreError
from nearcast.publishing.compact_overlay import compact_overlay
from nearcast.publishing.retention import retire_versions
from nearcast.spec import PublishSpec
from nearcast.stores.base import Pointer, Store, store_time

__all__ = ["TidyResult", "tidy_store"]


@dataclass(frozen=True, slots=True)
class TidyResult:
    """What was removed."""

    retired: tuple[int, ...]  # versions of the store
    overlay_entries_cut: int


def tidy_store(
    store: Store, generator: str, pointer: Pointer, settings: PublishSpec, note: Callable[[str], None]
) -> TidyResult:
    """Compact the overlay; remove old versions. Call it under the lock."""
    try:
        # Before versions are retired: readers may still have the last one open.
        cut = compact_overlay(store, generator, store.versions(generator), now=store_time(store))
    except (DamagedError, NotFoundError, StoreError) as error:
        note(f"the overlay is not compacted: {error}")
        cut = 0
    retired = retire_versions(store, generator, pointer, settings.keep)
    return TidyResult(tuple(retired), cut)
