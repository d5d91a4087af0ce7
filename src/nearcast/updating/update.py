"""Update a served version: the order of the steps.

    read and validate the batch -> compute the lists that change -> audit -> lock -> journal -> patch

The lock is held for the last two steps alone: a publish and an update wait for each other for moments. Readers see
nothing before the patch is written, and that is one step. If the process is killed before that, the next update removes
the entry of the journal.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from nearcast import machine
from nearcast.errors import AuditError, BusyError, NotFoundError
from nearcast.files import fingerprint
from nearcast.join.listener import Listener
from nearcast.knn.join_request import Resources
from nearcast.publishing.compact_overlay import CLOCK_SKEW_SECONDS
from nearcast.publishing.publish_lock import hold_publish_lock
from nearcast.settings.publish_tables import AuditSpec
from nearcast.storage.locations import Location
from nearcast.stores import make_unpublished_error
from nearcast.stores.base import PatchFacts, PatchState, Pointer, PublishLock, Space, Store, find_patches, store_time
from nearcast.stores.value_format import encode_items, encode_keys, encode_query_key
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.times import format_utc
from nearcast.updating.audit_update import audit_update
from nearcast.updating.change_lists import ChangedLists, change_lists
from nearcast.updating.journal import JournalEntry, UpdateJournal, name_journal, open_journal
from nearcast.updating.live_table import LiveRows, LiveTable
from nearcast.updating.merge_batches import merge_batches
from nearcast.updating.open_state import ServedVersion, open_state
from nearcast.updating.read_batch import BatchInputs, BatchRows, UpdateBatch, read_batch
from nearcast.updating.served_state import ServedState
from nearcast.updating.state_cache import write_cached

__all__ = ["UpdateRequest", "UpdateResult", "Updater", "drop_unchanged", "undo_patches", "write_patch"]

WAIT_SECONDS = 60.0  # for the lock: a publish holds it while it copies
MOST_ATTEMPTS = 5  # other updates came first each time

UpdateOutcome = Literal["updated", "nothing_changed"]


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """A batch, and how to apply it."""

    inputs: BatchInputs | Sequence[BatchInputs]  # several are applied one after the other, as one patch
    max_lists_changed: float  # share of the lists
    note: str = ""
    offsets: Mapping[str, Any] = field(default_factory=dict)  # stored with the patch
    offsets_before: Mapping[str, Any] = field(default_factory=dict)  # that must be stored now; None for a new source
    wait_seconds: float = WAIT_SECONDS


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The outcome of an update."""

    generator: str
    store: str  # URL
    version: int
    patch: int | None  # None: none was written; without a change one is written for the next publish alone
    outcome: UpdateOutcome
    counts: Mapping[str, int]  # lists, items, gone, queries
    lists: int  # of the version
    joined: int  # lists that were joined in full, since they lost more than is known
    short: int  # lists of the version that may lack items; the next run mends them
    seconds: float
    undo: int = 0  # patch in force before: rolling back to it undoes the update
    absent: int = 0  # ids of the batch to remove that are not served

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class Updater:
    """Applies batches to the current version of a generator. Keeps its state between batches."""

    def __init__(
        self,
        store: Store,
        generator: str,
        out: Location,
        listener: Listener | None = None,
        audit: AuditSpec | None = None,
    ) -> None:
        self._store = store
        self._generator = generator
        self._out = out
        self._listener = listener or Listener()
        self._audit = audit  # None: nothing but the share of lists that change is judged
        self._state: ServedState | None = None

    def apply(self, request: UpdateRequest) -> UpdateResult:
        """Apply a batch as one patch. If it changes nothing, only the journal is written, with an empty patch.

        Raises InputError for a bad batch, AuditError if a rule fails, BusyError if the lock is held for
        longer than the request waits, NotFoundError if nothing is published, SpecError for a generator that cannot be
        updated, StoreError. Nothing has changed after an error.
        """
        started, made = time.perf_counter(), store_time(self._store)
        for _ in range(MOST_ATTEMPTS):
            result = self._try(request, made, started)
            if result is not None:
                return result
            self._listener.note("another update or publish came first: computing again")
        raise BusyError(f"{self._generator} was changed by others {MOST_ATTEMPTS} times meanwhile; update again later")

    def _try(self, request: UpdateRequest, made: float, started: float) -> UpdateResult | None:
        """Apply a batch; return None if another process changed the version meanwhile."""
        pointer = self._store.pointer(self._generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self._generator)
        refuse_during_canary(self._generator, pointer)
        log = find_patches(self._store, self._generator)
        with contextlib.closing(self._store.open(self._generator, pointer.version, verify=False)) as reader:
            facts = read_facts(reader, self._generator, pointer.version)
            patches = log.state(pointer.version)
            if any(patches.offsets.get(source) != before for source, before in request.offsets_before.items()):
                raise BusyError(f"another process follows the same source into {self._generator}; stop one of them")
            version = ServedVersion(pointer.version, facts, reader)
            journal = open_journal(self._out, self._generator, name_journal(patches))
            state = self._open_state(version, patches, journal)
            rows = _read_batches(state, request.inputs)
            batch = drop_unchanged(rows, state)
            if batch.is_empty and not request.offsets and _is_known(rows, journal.read_newest(patches), made):
                return self._report(state, None, (rows, batch), None, started)
            changes = compute_changes(version, state, batch, self._listener)
            require_few(changes, state.queries.n, request.max_lists_changed)
            if self._audit is not None:
                audit_update(state, changes, version, self._audit)
        with hold_publish_lock(self._store, self._generator, request.wait_seconds) as lock:
            now = self._store.pointer(self._generator)
            if now is not None:
                refuse_during_canary(self._generator, now)
            if now is None or now.version != pointer.version or log.state(pointer.version).serial != patches.serial:
                return None
            entry = JournalEntry(
                patches.last_number + 1, pointer.version, state.number, made, batch.digest, request.note
            )
            made_of = version, batch, changes
            after = write_patch(self._store, journal, entry, made_of, rows, request.offsets, lock)
        self._state = after
        return self._report(after, changes, (rows, batch), entry, started)

    def _open_state(self, version: ServedVersion, patches: PatchState, journal: UpdateJournal) -> ServedState:
        """Return the state that the last call left, if it is still that of the store."""
        state = self._state
        if state is not None and (state.version, state.serial) == (version.number, patches.serial):
            return state
        self._state = None
        return open_state(self._out, self._generator, version, patches, journal)

    def _report(
        self,
        state: ServedState,
        changes: ChangedLists | None,
        batches: tuple[UpdateBatch, UpdateBatch],
        entry: JournalEntry | None,
        started: float,
    ) -> UpdateResult:
        """Return the result. batches: as read, and without what changes nothing."""
        self._state, (rows, batch) = state, batches
        return UpdateResult(
            self._generator,
            self._store.url,
            state.version,
            None if entry is None else entry.number,
            "nothing_changed" if batch.is_empty else "updated",
            count_changes(batch, changes, itself=state.joins_itself),
            state.queries.n,
            0 if changes is None else changes.n_joined,
            len(state.short),
            time.perf_counter() - started,
            state.number if entry is None else entry.parent,
            len(rows.gone) - len(batch.gone),
        )


def undo_patches(store: Store, generator: str, to: int) -> tuple[int, list[int]]:
    """Undo the patches of the current version with a number above `to`; return the version and their numbers.

    Raises StoreError if one of them was folded with older ones, NotFoundError if nothing is published, or if no patch
    of the version has a number as high as `to`.
    """
    log = find_patches(store, generator)
    with hold_publish_lock(store, generator, WAIT_SECONDS) as lock:
        pointer = store.pointer(generator)  # under the lock: a publish may have moved it
        if pointer is None:
            raise make_unpublished_error(store, generator)
        refuse_during_canary(generator, pointer)
        state = log.state(pointer.version)
        newest = 0 if state.newest is None else state.newest.number
        if to > newest:
            known = f"the newest patch in force is {newest}" if newest else "none of its patches is in force"
            raise NotFoundError(
                f"version {pointer.version:06d} of {generator} has no patch {to}: {known}; `nearcast published "
                f"{generator}` lists them"
            )
        undone = [patch.number for patch in state.patches if patch.number > to]
        log.roll_back(pointer.version, to, lock)
    return pointer.version, undone


def _read_batches(state: ServedState, inputs: BatchInputs | Sequence[BatchInputs]) -> UpdateBatch:
    """Read batches, and merge them into one."""
    several = [inputs] if isinstance(inputs, BatchInputs) else inputs
    batches = [read_batch(state.spec, state.items, state.queries, one) for one in several]
    merged = merge_batches(batches)
    if len(batches) == 1:
        return merged
    digest = fingerprint([batch.digest for batch in batches])
    return replace(merged, queries=merged.items if state.joins_itself else merged.queries, digest=digest)


def refuse_during_canary(generator: str, pointer: Pointer) -> None:
    """Raise BusyError while a canary is live: both of its versions keep the facts that they are compared with."""
    if pointer.canary is not None:
        raise BusyError(
            f"{generator} has a canary, version {pointer.canary.version:06d}, and updates wait for its end; promote or "
            "withdraw it with nearcast canary. Items are removed at once with nearcast overlay"
        )


def _is_known(rows: UpdateBatch, newest: JournalEntry | None, made: float) -> bool:
    """Return whether the journal needs no entry of a batch that changes nothing. newest: the newest entry in force.

    The version that is published next may serve other rows. It gets the entries after its inputs were read, or in
    the minute before: so an entry of the same batch in this minute is enough.
    """
    if rows.is_empty:
        return True
    return newest is not None and newest.digest == rows.digest and made - newest.made <= CLOCK_SKEW_SECONDS


def drop_unchanged(batch: UpdateBatch, state: ServedState) -> UpdateBatch:
    """Return the batch without rows that are served as they are, and without ids that are not served."""
    itself = state.joins_itself
    items = _drop_equal(batch.items, state.items)
    queries = items if itself else _drop_equal(batch.queries, state.queries)
    gone = batch.gone.take(np.flatnonzero(state.items.find(batch.gone) >= 0))
    return replace(batch, items=items, gone=gone, queries=queries)


def _drop_equal(batch: BatchRows, table: LiveTable) -> BatchRows:
    at = table.find(batch.rows.ids)
    both = np.flatnonzero(at >= 0)
    if not len(both):
        return batch
    served: LiveRows = table.rows(at[both])
    newer = batch.rows.take(both)
    differs = (served.vectors != newer.vectors).any(axis=1)
    pairs = zip(*(rows.with_ids(table.columns).to_pylist() for rows in (served, newer)), strict=True)
    differs |= np.fromiter((repr(old) != repr(new) for old, new in pairs), np.bool_, len(both))  # NaN is itself
    kept = at < 0
    kept[both[differs]] = True
    return batch.take(np.flatnonzero(kept))


def compute_changes(version: ServedVersion, state: ServedState, batch: UpdateBatch, listener: Listener) -> ChangedLists:
    """Compute the lists that change."""
    memory = max(1 << 28, machine.available_memory() // 4)
    resources = Resources(state.spec.threads or machine.default_threads(), memory)
    return change_lists(state, batch, version.reader, resources, listener.progress)


def require_few(changes: ChangedLists, lists: int, most: float) -> None:
    """Raise AuditError if the share of existing lists that change is above `most`."""
    share = (len(changes.keys) - changes.n_new) / max(1, lists)
    if share > most:
        raise AuditError(
            f"the batch would change {share:.1%} of the {lists:,} lists, and audit.max_lists_changed is {most:.1%}; "
            "check its vectors and attributes, split it, or allow more with --max-lists-changed"
        )


def write_patch(
    store: Store,
    journal: UpdateJournal,
    entry: JournalEntry,
    made_of: tuple[ServedVersion, UpdateBatch, ChangedLists],
    rows: UpdateBatch,
    offsets: Mapping[str, Any],
    lock: PublishLock,
) -> ServedState:
    """Commit the entry of the journal, then write the patch, then the caches; return the state after it.

    rows: the batch with rows that this version has already: a newer one may not have them.
    """
    version, batch, changes = made_of
    log = find_patches(store, version.facts.generator)
    journal.remove_leftovers(entry.number - 1)
    journal.write(entry, rows, changes.after.short)
    pairs = encode_pairs(version.facts, batch, changes)
    facts = PatchFacts(
        entry.number,
        entry.version,
        format_utc(entry.made),
        entry.made,
        count_changes(batch, changes, itself=changes.after.joins_itself),
        dict(offsets),
        entry.note,
        journal.name,
    )
    log.write(facts, pairs, lock)
    patches = log.state(entry.version)
    after = replace(changes.after, number=entry.number, serial=patches.serial)
    write_cached(journal.artifacts, entry, after)
    journal.merge(patches)
    return after


def encode_pairs(
    facts: VersionFacts, batch: UpdateBatch, changes: ChangedLists
) -> dict[Space, list[tuple[bytes, bytes]]]:
    """Return the keys and values of a patch; an empty value removes a key."""
    lists = list(zip(changes.keys, changes.values, strict=True))
    removed = [(key, b"") for key in encode_keys(batch.gone)]
    items = _encode_columns(batch.items.rows, facts.columns) + removed
    if changes.after.joins_itself:
        lists += removed
    elif facts.rules and facts.rules["own_query_columns"]:
        rows = _encode_columns(batch.queries.rows, facts.rules["queries"])
        items += [(encode_query_key(key), value) for key, value in rows]
    return {Space.LISTS: lists, Space.ITEMS: items}


def _encode_columns(rows: LiveRows, stored: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return the pairs of the stored columns, in the order of a publish: that of the table. Facts may be sorted."""
    names = [name for name in rows.attributes.column_names if name in stored]
    values = encode_items(rows.attributes.select(names)) if names else [b"{}"] * len(rows.ids)
    return list(zip(encode_keys(rows.ids), values, strict=True))


def count_changes(batch: UpdateBatch, changes: ChangedLists | None, *, itself: bool) -> dict[str, int]:
    """Return the counts of a patch."""
    return {
        "lists": 0 if changes is None else len(changes.keys),
        "items": len(batch.items.rows.ids),
        "gone": len(batch.gone),
        "queries": 0 if itself else len(batch.queries.rows.ids),
    }
