"""Remove unfinished work of a generator, on this host and in the bucket of its `out`, that nobody works on."""

from __future__ import annotations

import shutil

from nearcast.files import hold_lock
from nearcast.join.abandoned_work import WAIT_SECONDS, remove_abandoned
from nearcast.storage.locations import Location, absolute_location, host_folder, parse_location
from nearcast.storage.open_storage import join_location, open_storage

__all__ = ["clean_generator", "clean_plan"]


def clean_generator(out: Location, generator: str, *, wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Remove unfinished work of a generator that nobody works on; return where it was. Snapshots are kept.

    Raises BusyError while a run of this host holds the generator.
    """
    out, removed = parse_location(out), []
    home = host_folder(out) / generator
    if (home / "work").is_dir():
        with hold_lock(home / ".lock", f"generator {generator!r}"):
            shutil.rmtree(home / "work")
        removed.append(str(home / "work"))
    if isinstance(out, str):
        root = join_location(out, generator, "work")
        works = [join_location(root, name) for name in open_storage(root).list_folders()]
        removed += remove_abandoned(works, wait_seconds)
    return removed


def clean_plan(work: Location, *, wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """Remove a plan and its unfinished work unless somebody works on it; return where it was."""
    return remove_abandoned([absolute_location(parse_location(work))], wait_seconds)
