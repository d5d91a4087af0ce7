"""Functions that update a served version between two runs: a batch, or a feed of files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nearcast.api.arguments import (
    SpecLike,
    StoreLike,
    open_target_store,
    report_failure,
    resolve_store_target,
    resolve_target,
)
from nearcast.errors import NearcastError, SpecError
from nearcast.history.record import record_undone_patches
from nearcast.join.listener import Listener
from nearcast.publishing.targets import PublishTarget
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.stores import make_unpublished_error
from nearcast.stores.base import Store
from nearcast.table.snapshot import Snapshot, find_snapshot
from nearcast.updating.file_feed import MOST_ROWS, FileFeed
from nearcast.updating.follow import Follower
from nearcast.updating.journal import JournalEntry, list_journals
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.table_feed import TableFeed
from nearcast.updating.update import Updater, UpdateRequest, UpdateResult, undo_patches

__all__ = ["list_updates", "open_follower", "roll_back_updates", "update"]


def update(
    generator: SpecLike,
    *,
    items: object | None = None,
    gone: object | None = None,
    queries: object | None = None,
    note: str = "",
    max_lists_changed: float | None = None,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> UpdateResult:
    """Bring new, changed and removed items, and new queries, into the current version as one patch.

    generator: a name, or a spec with its [publish] and [audit] tables; lists follow the rules of the served snapshot.
    items, queries: a Parquet file, a folder of them, a URL, or a table in memory, with the columns of the source.
    gone: ids of removed items: a text file with one id per line, a Parquet file, a URL of either, or ids in memory.
    max_lists_changed: share of the lists that may change. Default: that of the spec's [audit]. The state after the
    update is judged by the other rules of [audit] that totals and changed lists can be judged by.
    A batch that is served already changes nothing: it may be repeated. After more than a minute that writes an empty
    patch, and the next publish applies the batch too. Readers see all of a patch within a second, or nothing.
    Raises InputError for a bad batch, AuditError if a rule fails, NotFoundError if nothing is
    published or the snapshot is not in `out`, SpecError for a generator that needs a run, BusyError while another
    process publishes, StoreError. Nothing has changed after an error.
    """
    if max_lists_changed is not None and not 0 <= max_lists_changed <= 1:
        raise SpecError(f"max_lists_changed must be in [0, 1], got {max_lists_changed}; write 0.2 for a fifth")
    target = resolve_target(generator, out, None)
    most = target.audit.max_lists_changed if max_lists_changed is None else max_lists_changed
    with open_target_store(store, target) as opened:
        updater = Updater(opened, target.generator, target.out, listener, target.audit)
        return updater.apply(UpdateRequest(BatchInputs(items, gone, queries), most, note))


def roll_back_updates(
    generator: SpecLike,
    to: int,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> list[int]:
    """Undo the patches of the current version with a number above `to`; return their numbers.

    Raises StoreError if one of them was folded with older ones, NotFoundError if nothing is published, or if no patch
    of the version has a number as high as `to`.
    """
    if to < 0:
        raise SpecError(f"the number of a patch must be 0 or more, got {to}; 0 undoes all")
    target = resolve_store_target(generator, out)
    with open_target_store(store, target) as opened:
        version, undone = undo_patches(opened, target.generator, to)
    report_failure(listener or Listener(), record_undone_patches(target.out, target.generator, version, undone))
    return undone


def list_updates(snapshot: Snapshot) -> list[JournalEntry]:
    """Return the updates of a snapshot's version in all stores, oldest first in each, from the journals beside it.

    Those of patches that were rolled back are among them: `nearcast.published` says which patches are in force. Empty
    if the journal cannot be read.
    """
    try:
        journals = list_journals(snapshot.out, snapshot.generator)
        return [entry for journal in journals for entry in journal.list_entries(snapshot.version)]
    except (NearcastError, OSError):
        return []


@contextlib.contextmanager
def open_follower(
    generator: SpecLike,
    source: str,
    *,
    again: Sequence[str] = (),
    max_rows: int = MOST_ROWS,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Iterator[Follower]:
    """Open a follower of the Parquet files in a folder or bucket, or of the versions of a table; see `nearcast follow`.

    `catch_up()` applies what has arrived. again: names, or patterns of names, of files to apply once more; for a table,
    anything: all changes since the served snapshot. max_rows: of an update; smaller files are applied together, larger
    ones in parts.
    """
    target = resolve_target(generator, out, None)
    with open_target_store(store, target) as opened:
        yield Follower(
            _open_feed(source, opened, target, max_rows, again, listener or Listener()),
            opened,
            target.generator,
            target.out,
            audit=target.audit,
            most_rows=max_rows,
            listener=listener,
        )


def _open_feed(
    source: str, store: Store, target: PublishTarget, max_rows: int, again: Sequence[str], listener: Listener
) -> FileFeed | TableFeed:
    if not TABLE_LOCATION.fullmatch(source):
        return FileFeed(source, most_rows=max_rows, again=again, note=listener.note)
    pointer = store.pointer(target.generator)
    if pointer is None:
        raise make_unpublished_error(store, target.generator)
    snapshot = find_snapshot(target.out, target.generator, pointer.version)
    return TableFeed(source, snapshot, most_rows=max_rows, is_again=bool(again))
