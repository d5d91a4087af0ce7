"""The ingested tables of a generator's current files, for readers beside the runs: monitor, online index, replay.

Opens the ingestion of a run if it is of the same files. Otherwise ingests into another folder, since runs remove their
own old artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from nearcast.errors import BusyError
from nearcast.files import hold_lock
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources, check_inputs, ingest_inputs, ingested_names
from nearcast.join.listener import Listener
from nearcast.sources.ingest import Inputs, open_ingested_table
from nearcast.storage.artifacts import LocalArtifacts

__all__ = ["open_current_inputs", "wait_for_lock"]

WAIT_SECONDS = 0.2


@contextmanager
def wait_for_lock(path: Path, what: str, listener: Listener) -> Iterator[None]:
    """Hold a lock file; wait while another process holds it."""
    with ExitStack() as stack:
        noted = False
        while True:
            try:
                stack.enter_context(hold_lock(path, what))
                break
            except BusyError as error:
                if not noted:
                    listener.note(f"waiting: {error}")
                noted = True
                time.sleep(WAIT_SECONDS)
        yield


def open_current_inputs(run: RunContext, sources: Sources, home: Path) -> Inputs:
    """Open the ingested tables of these sources: of a run, or of an earlier call in `home`; else ingest into `home`."""
    own = LocalArtifacts(home)
    item_name, query_name = ingested_names(run.spec, sources)
    for artifacts in (run.artifacts, own):
        if artifacts.facts(item_name) is None or artifacts.facts(query_name) is None:
            continue
        try:
            items = open_ingested_table(artifacts.open(item_name), artifacts.open).hold()
            same = query_name == item_name
            queries = items if same else open_ingested_table(artifacts.open(query_name), artifacts.open).hold()
            return Inputs(items, queries, run.spec.metric)
        except OSError:  # a run removed them at this moment: ingest again
            continue
    checked = check_inputs(
        run.spec,
        sources,
        own,
        settings=replace(run.stage_settings, scratch=home),
        progress=run.listener.progress,
        checked=run.listener.checked,
    )
    inputs = ingest_inputs(run.spec, checked, own, memory_bytes=run.read_bytes, progress=run.listener.progress)
    items = inputs.items.hold()
    same = inputs.queries is inputs.items
    return Inputs(items, items if same else inputs.queries.hold(), inputs.metric)
