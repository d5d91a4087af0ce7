"""A follower and an updater to be killed, and an updater that ends itself at a named step."""

from __future__ import annotations

import os
import time
from unittest import mock

import nearcast
import nearcast.api.updates
from nearcast.api.updates import open_follower
from nearcast.errors import NearcastError
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.stores import patch_log, patch_record
from nearcast.stores.lmdb import LmdbStore
from nearcast.stores.lmdb_patches import LmdbPatches
from nearcast.updating import journal
from nearcast.updating import update as updates
from nearcast.updating.journal import UpdateJournal

KILLED, REFUSED = 9, 3
FOLD_EARLY = (
    (patch_log, "MOST_PATCHES", 2),
    (patch_log, "FOLD_TO", 1),
    (patch_record, "GROUP_PATCHES", 2),
    (journal, "MERGED_AT_ONCE", 1),
)

STEPS = {
    f"{when} {name}": (owner, name, when)
    for when in ("before", "after")
    for owner, name in (
        (UpdateJournal, "remove_leftovers"),
        (UpdateJournal, "write"),
        (UpdateJournal, "merge"),
        (LocalArtifacts, "commit"),
        (LocalArtifacts, "remove"),
        (LmdbPatches, "write_segment"),
        (LmdbPatches, "merge_segments"),
        (LmdbPatches, "replace"),
        (updates, "write_cached"),
    )
}


def follow(spec: dict, source: str, store: str) -> None:
    """Follow a folder without end."""
    with open_follower(spec, source, store=store) as follower:
        follower.run(0.02, lambda seconds: False)


def update(spec: dict, items: str, store: str) -> None:
    """Apply one batch, again and again: all but the first time it is in force."""
    while True:
        nearcast.update(spec, items=items, store=store, max_lists_changed=1.0)


def update_until(step: str, times: int, ahead: float, spec: dict, store: str, batch: dict) -> None:
    """Apply one batch, and end the process, as a kill does, at a step that is done for the time `times`.

    ahead: seconds by which the clock is ahead.
    """
    owner, name, when = STEPS[step]
    real, clock, left = getattr(owner, name), time.time, [times]

    def do_step(*args, **options):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os._exit(KILLED)
        result = real(*args, **options)
        if left[0] == 0:
            os._exit(KILLED)
        return result

    for place, what, value in ((owner, name, do_step), *FOLD_EARLY):
        setattr(place, what, value)
    with (
        mock.patch("time.time", side_effect=lambda: clock() + ahead),
        mock.patch.object(LmdbStore, "now", side_effect=lambda: clock() + ahead),
    ):
        try:
            nearcast.update(spec, store=store, max_lists_changed=1.0, **batch)
        except NearcastError:
            os._exit(REFUSED)
    os._exit(0)
