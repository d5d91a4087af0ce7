"""Keep what reading a whole version is needed for: the threshold and length of every list. A cache of the journal.

    state-000007-000012/   thresholds.npy, lengths.npy   of version 7 after patch 12
                           short.parquet                 lists that may lack items, with their bounds
                           manifest.json                 hashes of all, written last

Written under the publishers' lock, after the patch. A missing, damaged or other one is computed from the store again.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.errors import NearcastError
from nearcast.files import verify
from nearcast.storage.artifacts import Artifacts
from nearcast.updating.journal import JournalEntry, cache_name
from nearcast.updating.journal_files import read_bounds, write_bounds
from nearcast.updating.served_state import ServedLists, ServedState

__all__ = ["read_cached", "write_cached"]

KIND = "state"
FILES = ("thresholds.npy", "lengths.npy")


def write_cached(artifacts: Artifacts, entry: JournalEntry, state: ServedState) -> None:
    """Keep what is known of the lists after an entry, and those of its parent: a rollback brings it back. May fail."""
    with contextlib.suppress(NearcastError, OSError):
        kept = {cache_name(KIND, entry.version, number) for number in (entry.number, entry.parent)}
        for name in artifacts.list_names():
            if name.startswith(f"{KIND}-") and name not in kept:
                artifacts.remove(name)
        artifacts.commit(cache_name(KIND, entry.version, entry.number), partial(_write_files, entry, state))


def read_cached(artifacts: Artifacts, entry: JournalEntry, lists: int) -> ServedLists | None:
    """Return what is known of so many lists after an entry; None if not kept."""
    try:
        folder = artifacts.open(cache_name(KIND, entry.version, entry.number))
        if {name: value for name, value in verify(folder, contents=True).items() if name != "files"} != _facts(entry):
            return None
        thresholds, lengths = (np.load(folder / name, allow_pickle=False) for name in FILES)
        short = read_bounds(folder)
    except (NearcastError, OSError, ValueError):
        return None
    if thresholds.shape != (lists,) or lengths.shape != (lists,):
        return None
    return ServedLists(thresholds.astype(np.float32, copy=False), lengths.astype(np.int32, copy=False), short)


def _facts(entry: JournalEntry) -> dict[str, Any]:
    return {"version": entry.version, "number": entry.number, "made": entry.made, "digest": entry.digest}


def _write_files(entry: JournalEntry, state: ServedState, folder: Path) -> dict[str, Any]:
    np.save(folder / FILES[0], state.thresholds)
    np.save(folder / FILES[1], state.lengths)
    write_bounds(folder, state.short)
    return _facts(entry)
