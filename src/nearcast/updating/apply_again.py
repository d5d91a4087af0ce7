"""Apply updates again to a newer version: those that its inputs lack. A publish does so before it moves the pointer.

Inputs that have not changed since the earlier version lack all of its updates. Other inputs contain the updates that
were made before they were read. The clocks of runs and of the store differ, so an update counts as later if it was made
in the minute before: twice does no harm, and not at all would lose it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError, NearcastError
from nearcast.join.listener import Listener
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS
from nearcast.settings.spec_tables import SourceSpec
from nearcast.storage.locations import Location
from nearcast.stores.base import PatchState, PublishLock, Store, find_patches, read_patch_state
from nearcast.stores.version_facts import read_facts
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import find_snapshot, open_home
from nearcast.times import parse_utc
from nearcast.updating.journal import JournalEntry, list_journals, open_journal
from nearcast.updating.merge_batches import Cutoff
from nearcast.updating.open_state import ServedVersion, open_state, prune_tables
from nearcast.updating.read_batch import BatchInputs, BatchRows, UpdateBatch, read_batch
from nearcast.updating.update import compute_changes, drop_unchanged, write_patch

__all__ = ["apply_again", "prune_updates"]


def apply_again(
    store: Store, generator: str, out: Location, versions: tuple[int, int], lock: PublishLock, listener: Listener
) -> None:
    """Apply the updates of one version that another one lacks, as one patch. versions: the current and the new one.

    Raises InputError if they cannot be applied: they would be lost. May be repeated.
    """
    earlier, version = versions
    patches = read_patch_state(store, generator, earlier)
    every = (*(() if patches.folded is None else (patches.folded,)), *patches.patches)
    if not every:
        return
    with contextlib.closing(store.open(generator, version, verify=False)) as reader:
        facts = read_facts(reader, generator, version)
        started = parse_utc(facts.started or facts.created) - CLOCK_SKEW_SECONDS
        cutoff = _find_cutoff(out, generator, versions, started)
        later = [patch.made > cutoff.first for patch in every]
        if not any(later):
            return
        try:
            _apply(store, out, ServedVersion(version, facts, reader), (patches, cutoff), lock, listener)
        except NearcastError as error:
            before = 0 if later[0] else every[later.index(True) - 1].number
            is_folded = patches.folded is not None and patches.folded.made > cutoff.first
            drop = "" if is_folded else f", drop them with `nearcast rollback {generator} --patch {before}`"
            raise InputError(
                f"updates of version {earlier:06d} of {generator} are not in the inputs of {version:06d}, which are "
                f"older or have not changed, and cannot be applied to it: {error}. Mend that{drop}, or run again on "
                "inputs that contain them; then publish"
            ) from error


def _find_cutoff(out: Location, generator: str, versions: tuple[int, int], started: float) -> Cutoff:
    """Return since when the inputs of the second version lack updates. started: when they were read."""
    try:
        before, after = (find_snapshot(out, generator, version).manifest for version in versions)
        items = -np.inf if _describe_table(before, "items") == _describe_table(after, "items") else started
        if "queries" not in after.inputs:  # the items are the queries
            return Cutoff(items, items)
        return Cutoff(
            items, -np.inf if _describe_table(before, "queries") == _describe_table(after, "queries") else started
        )
    except (NearcastError, OSError, LookupError, TypeError):  # the earlier snapshot was removed, or has no such facts
        return Cutoff(started, started)


def _describe_table(manifest: Manifest, table: str) -> Any:
    """Return what makes the rows of a table: contents of its files, and the columns of ids and vectors."""
    facts, spec = manifest.inputs[table], manifest.facts["spec"][table]
    return [[file["blake2b"] for file in facts["files"]], facts["embedding"], spec["id"], spec["vector"]]


def prune_updates(store: Store, generator: str, out: Location) -> None:
    """Remove journal entries and kept tables of versions that the store does not have any more.

    Entries of other stores are kept as long as their snapshot is there, and tables as long as an entry needs them.
    """
    if not hasattr(store, "patches"):
        return
    state, versions = read_patch_state(store, generator, 0), set(store.versions(generator))
    snapshots = set(open_home(out).list_versions(generator))
    kept = set(versions)
    for journal in list_journals(out, generator):
        is_own = journal.name == state.journal and state.last_number > 0
        journal.prune(versions if is_own else versions | snapshots)
        kept |= journal.list_versions()
    prune_tables(out, generator, kept)


def _apply(
    store: Store,
    out: Location,
    version: ServedVersion,
    earlier: tuple[PatchState, Cutoff],
    lock: PublishLock,
    listener: Listener,
) -> None:
    (patches, cutoff), generator = earlier, version.facts.generator
    journal, log = open_journal(out, generator, patches.journal), find_patches(store, generator)
    later, rows_again = journal.read_later(patches, cutoff)
    if rows_again is None:
        return
    own = log.state(version.number)
    state = open_state(out, generator, version, own, journal)
    inputs = _to_inputs(rows_again, state.spec.items, None if state.joins_itself else state.spec.query_source)
    rows = read_batch(state.spec, state.items, state.queries, inputs)
    batch = drop_unchanged(rows, state)
    if batch.is_empty:
        return
    changes = compute_changes(version, state, batch, listener)
    numbers = f"{later[0].number} to {later[-1].number}"
    note = f"again: updates {numbers}"
    entry = JournalEntry(own.last_number + 1, version.number, state.number, later[-1].made, batch.digest, note)
    write_patch(store, journal, entry, (version, batch, changes), rows, {}, lock)
    listener.note(f"updates {numbers} are applied to {version.number:06d} again, as patch {entry.number}")


def _to_inputs(batch: UpdateBatch, items: SourceSpec, queries: SourceSpec | None) -> BatchInputs:
    """Return the rows of a batch as tables in memory, as a user would give them."""
    own = _to_table(batch.queries, queries) if queries is not None else None
    return BatchInputs(_to_table(batch.items, items), batch.gone if len(batch.gone) else None, own)


def _to_table(batch: BatchRows, source: SourceSpec) -> pa.Table | None:
    rows = batch.rows
    if not len(rows.ids):
        return None
    flat = pa.array(np.ascontiguousarray(batch.originals).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, batch.originals.shape[1])
    columns = {name: rows.attributes.column(name) for name in rows.attributes.column_names}
    return pa.table({source.id: rows.ids, source.vector: vectors, **columns})
