"""The overlay of a generator in its own LMDB environment, which several processes may write; see `lmdb_records`.

Writers check all pages before they map the file, and again if it changed without a transaction. They allocate the lock
file before they map it. The cost of a write does not depend on the number of entries. Readers map nothing: they read
page by page (`lmdb_pages`), so that a cut or damaged file is an error and no crash, and they need no write permission.
The journal beside the file (`lmdb_journal`) has a second copy of the entries that remove items, for `repair`. Knows
nothing of the meaning of entries.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nearcast.errors import DamagedError, StoreError
from nearcast.files import link_file, refuse_link
from nearcast.stores.base import ExchangeResult, OverlayChanges, OverlayEntry
from nearcast.stores.lmdb_environment import (
    DATA,
    LOCK,
    SharedEnvironment,
    load_lmdb,
    open_shared,
    release_environment,
    translate_read_errors,
    translate_write_errors,
)
from nearcast.stores.lmdb_journal import Journal, Line, LockedJournal
from nearcast.stores.lmdb_pages import Tree, check_pages, newest_transaction, read_tree
from nearcast.stores.lmdb_records import (
    CHECK,
    ENTRY,
    LOG,
    SERIAL,
    STATE,
    TOKEN,
    add_entries,
    decode_state,
    draw_epoch,
    encode_entry_key,
    iterate_removals,
    put_entry,
    put_state,
    read_changes,
    read_count,
    read_entry,
    remember_token,
    salvage_entries,
)

__all__ = ["LmdbOverlay"]

MAP_BYTES = 4 << 30  # about ten million entries; takes only address space, and is equal in all processes
MOST_READERS = 1024  # readers of earlier versions of nearcast take one slot of the lock file each
UNLOCKED_READS = 3
CHECKS, CHECK_SECONDS = 5, 0.01  # while the file may be being replaced
NOTHING = OverlayChanges(epoch=0, serial=0, entries=())

T = TypeVar("T")


@dataclass(frozen=True)
class _Seen:
    """The state of the file after the last write or check of this process."""

    size: int
    changed: int  # nanoseconds since 1970
    transaction: int


@dataclass
class LmdbOverlay:
    """The overlay in a folder, which the first write creates. Safe to use from many threads and after a fork."""

    folder: Path
    _shared: SharedEnvironment | None = field(default=None, repr=False)
    _seen: _Seen | None = field(default=None, repr=False)

    @functools.cached_property
    def journal(self) -> Journal:
        """The journal beside the folder."""
        return Journal(self.folder.with_name(f"{self.folder.name}.journal"))

    @functools.cached_property
    def _data(self) -> Path:
        return self.folder / DATA

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each replaces an older one with the same key."""
        if entries:
            with self._environment() as (environment, journal), environment.begin(write=True) as txn:
                add_entries(txn, entries, journal)

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """Return the entries after `serial`; all if the epoch differs. Raises DamagedError if entries are lost."""
        never_written = None if self.journal.exists() else NOTHING  # the process was killed before its first write
        return self._read(lambda tree: read_changes(tree, epoch, serial, self._data, never_written), NOTHING)

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes of the last entry with this key; None if there is none."""
        return self._read(lambda tree: read_entry(tree, key, self._data), None)

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry if its key still holds `held`; with a token only once."""
        with self._environment() as (environment, journal), environment.begin(write=True) as txn:
            name = hashlib.blake2b(token.encode(), digest_size=32).digest()
            if token and txn.get(TOKEN + name) is not None:
                return ExchangeResult.REPEATED
            known = txn.get(ENTRY + encode_entry_key(entry.key()))
            if (None if known is None else bytes(known[8:])) != held:
                return ExchangeResult.CHANGED
            if token:
                remember_token(txn, name, now)
            add_entries(txn, [entry], journal)
            return ExchangeResult.WRITTEN

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Delete entries with these keys unless they were written after serial `upto`, and start a new epoch."""
        if not self._exists():
            return
        with self._environment() as (environment, journal):
            with environment.begin(write=True) as txn:
                state = decode_state(txn.get(STATE))
                if state is None:
                    return
                count = read_count(txn, state)
                for key in map(encode_entry_key, keys):
                    known = txn.get(ENTRY + key)
                    if known is not None and SERIAL.unpack_from(known)[0] <= upto:
                        txn.delete(ENTRY + key)
                        txn.delete(CHECK + key)
                        txn.delete(LOG + known[:8])
                        count = None if count is None else count - 1
                put_state(txn, state[0] + 1, state[1], count)
                removals = list(iterate_removals(txn))
            with contextlib.suppress(OSError):  # the journal may hold more than needed
                journal.replace(removals)

    def repair(self) -> str | None:
        """Rebuild a damaged or lost overlay from its journal and pages. Return a description; None if it is whole.

        The damaged files are moved beside it. Raises StoreError if the disk is full; nothing has changed then.
        """
        if not self._must_exist():
            return None
        with translate_write_errors(self.journal.path):
            moved = self.journal.move_irregular_file()
        with translate_write_errors(self._data), self.journal.hold_lock() as journal:
            try:
                self._check()
                return moved
            except DamagedError as error:
                what = str(error).partition("; heal it with")[0]
            self.close()
            found = salvage_entries(self._data, self.journal.read())
            serial = max(
                [time.time_ns() // 1_000_000, *(serial for serial, _ in found)]
            )  # above every serial that a reader knows
            entries = [(serial + number, entry) for number, (_, entry) in enumerate(found, 1)]
            aside = self._replace_folder(self._create_folder(entries, serial))
            with contextlib.suppress(OSError):  # the journal still holds all of them
                journal.replace([line for line in entries if line[1].field is None])
        removals = sum(entry.field is None for _, entry in found)
        return (
            f"{what}. Written anew with the {len(found):,} entries that were found, {removals:,} of which remove or "
            f"restore items. Look through them with `nearcast overlay NAME list`: newer values of columns may be "
            f"lost, and forgotten entries may be back. The damaged files are in {aside}"
        )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        shared, self._shared = self._shared, None
        if shared is not None:
            release_environment(shared)

    def _read(self, read: Callable[[Tree], T], nothing: T) -> T:
        """Return the result of `read` on the newest state; `nothing` if no entry was ever written."""
        path = self._data
        with translate_read_errors(path):
            if not self._exists():
                return nothing
            try:
                return read_tree(path, read, UNLOCKED_READS)
            except StoreError:  # writers change it faster than it can be read
                with self.journal.locked_by_reader():
                    return read_tree(path, read)

    def _exists(self) -> bool:
        """Return whether the file exists. Raises DamagedError if it existed and is missing."""
        path = self._data
        for attempt in range(CHECKS):
            try:
                facts = path.lstat()
                if not stat.S_ISREG(facts.st_mode):
                    raise DamagedError(f"{path} is no regular file; heal it with publish --repair")
                return True
            except (FileNotFoundError, NotADirectoryError):
                if not self._must_exist():
                    return False
                if attempt + 1 < CHECKS:
                    time.sleep(CHECK_SECONDS)  # `repair` may be between its two steps
        raise DamagedError(
            f"{path} is missing, with all removals and changes; heal it with publish --repair, or put the file back"
        )

    def _must_exist(self) -> bool:
        return os.path.lexists(self.folder) or self.journal.exists()

    def _check(self) -> None:
        """Raise DamagedError unless all entries can be read and the file can be written."""
        if self._exists():
            check_pages(self._data)
            read_tree(self._data, lambda tree: read_changes(tree, -1, 0, self._data, None))
            refuse_link(self.folder / LOCK)

    @contextlib.contextmanager
    def _environment(self) -> Iterator[tuple[Any, LockedJournal]]:
        """Open the environment for one writer, under the lock; create it if it does not exist."""
        with translate_write_errors(self._data):
            if not self._exists():
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._create()
            with self.journal.hold_lock() as journal:
                environment = self._open(journal).environment
                try:
                    environment.reader_check()  # free the slots of killed readers, which would keep old pages in use
                    yield environment, journal
                    self._record_state(environment.info()["last_txnid"])
                except load_lmdb().Error:
                    self.close()  # after some errors LMDB must be opened again
                    raise

    def _create(self) -> None:
        """Create an empty overlay atomically."""
        with contextlib.ExitStack() as stack:
            fresh = self._create_folder([], 0)  # not visible to others yet
            stack.callback(shutil.rmtree, fresh, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster
                fresh.rename(self.folder)
        if not self._exists():
            raise DamagedError(f"{self.folder} cannot be created; check what occupies its path")

    def _create_folder(self, lines: Sequence[Line], serial: int) -> Path:
        """Create a new folder beside the overlay with these entries. serial: of the newest entry, if there are none."""
        fresh = self.folder.with_name(f"{self.folder.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
        fresh.mkdir()
        try:
            opened = contextlib.closing(load_lmdb().open(str(fresh), map_size=MAP_BYTES, lock=False))
            with opened as environment, environment.begin(write=True) as txn:
                for line in lines:
                    put_entry(txn, *line)
                put_state(txn, draw_epoch(), lines[-1][0] if lines else serial, len(lines))
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return fresh

    def _replace_folder(self, fresh: Path) -> Path:
        """Replace the overlay by a new folder in one step; return the path of the old one."""
        data, aside = self._data, self.folder.with_name(f"{self.folder.name}.damaged-{time.time_ns()}")
        if not self.folder.is_dir():
            if os.path.lexists(self.folder):
                self.folder.rename(aside)
            fresh.rename(self.folder)
            return aside
        aside.mkdir()
        for path in (data, self.folder / LOCK):
            if path.is_symlink() or path.is_dir():
                path.rename(aside / path.name)
        if data.exists():
            link_file(data, aside / DATA)
        (self.folder / LOCK).unlink(missing_ok=True)  # it belongs to the old file
        os.replace(fresh / DATA, data)
        shutil.rmtree(fresh, ignore_errors=True)
        return aside

    def _open(self, journal: LockedJournal) -> SharedEnvironment:
        """Return the environment of the current file, for a writer."""
        shared = self._shared
        if shared is not None and not shared.inherited and self._is_unchanged(shared) and shared.lock_is_whole():
            return shared
        self.close()  # the file was replaced, cut or changed, or this is a forked child
        self._record_state(newest_transaction(self._data))
        check_pages(self._data)
        if not journal.has_lines():
            journal.clear()  # it may belong to another file
        self._shared = open_shared(self.folder, locks=True, map_size=MAP_BYTES, max_readers=MOST_READERS)
        return self._shared

    def _is_unchanged(self, shared: SharedEnvironment) -> bool:
        """Return whether the file changed only by committed transactions since the last check."""
        facts, seen = self._data.lstat(), self._seen
        if seen is None or (facts.st_dev, facts.st_ino) != shared.identity or facts.st_size < seen.size:
            return False
        if (facts.st_size, facts.st_mtime_ns) == (seen.size, seen.changed):
            return True
        return newest_transaction(self._data) > seen.transaction

    def _record_state(self, transaction: int) -> None:
        """Record the state of the file. Call it under the lock."""
        self._seen = None
        with contextlib.suppress(OSError):  # the write is done; the next writer checks the file again
            facts = self._data.lstat()
            self._seen = _Seen(facts.st_size, facts.st_mtime_ns, transaction)
