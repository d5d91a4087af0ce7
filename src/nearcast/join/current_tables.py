"""Both sides of a generator as its files are at this moment, for whoever looks at them beside the runs.

Takes what a run has ingested where that is of the same files, and ingests into a folder of its own where it is not:
runs tidy their own artifacts, and must not take these away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nearcast.errors import BusyError
from nearcast.files import is_done, locked
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources, check_inputs, ingest_inputs, ingested_folders
from nearcast.join.listener import Listener
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.types import ArrayVectors

__all__ = ["Place", "todays_inputs", "waiting_for"]

WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Place:
    """Folders of the ingested items and queries."""

    items: Path
    queries: Path


@contextmanager
def waiting_for(path: Path, what: str, listener: Listener) -> Iterator[None]:
    """Hold the lock, waiting for whoever has it."""
    with ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(locked(path, what))
                break
            except BusyError as error:
                if not told:
                    listener.note(f"waiting: {error}")
                told = True
                time.sleep(WAIT_SECONDS)
        yield


def todays_inputs(run: RunContext, sources: Sources, home: Path) -> tuple[Place, Inputs]:
    """Both sides as a run has left them, or as an earlier call has; ingested into `home` where neither has."""
    for folder in (run.workspace.artifacts, home):
        place = Place(*ingested_folders(run.spec, sources, folder))
        if not (is_done(place.items) and is_done(place.queries)):
            continue
        try:
            items = _mapped(open_ingested_table(place.items))
            return place, Inputs(
                items, items if place.queries == place.items else _mapped(open_ingested_table(place.queries))
            )
        except OSError:  # a run has tidied them away in this moment: they are not needed, only quicker
            continue
    checked = check_inputs(
        run.spec,
        sources,
        home,
        memory_bytes=run.read_bytes,
        progress=run.listener.progress,
        checked=run.listener.checked,
    )
    sides = ingest_inputs(run.spec, checked, memory_bytes=run.read_bytes, progress=run.listener.progress)
    items = _mapped(sides.items)
    inputs = Inputs(items, items if sides.queries is sides.items else _mapped(sides.queries))
    return Place(checked.item_folder, checked.query_folder), inputs


def _mapped(side: IngestedTable) -> IngestedTable:
    """The same with its vectors mapped for as long as it is held: a run may take the file's name away."""
    return replace(side, vectors=ArrayVectors(np.asarray(side.vectors.whole())))
