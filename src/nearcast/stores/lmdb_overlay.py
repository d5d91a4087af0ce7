"""The overlay of a generator in an LMDB environment of its own, which several processes may write.

    e + key of an entry     serial (8 bytes, big-endian), then the entry
    c + key of an entry     serial, then crc32 of the entry (4 bytes, big-endian)
    l + serial              key of the entry
    s                       epoch and serial of the newest entry (8 bytes each, big-endian)
    n                       epoch and serial, and how many entries there were then (8 bytes each)
    t + token               until when the token of an exchange is remembered (8 bytes, big-endian, microseconds)
    u + that time + token   nothing: tokens by when they are forgotten

Writers look through the file before they map it, and again where it changed and no transaction was committed; they
have room for its lock file before they map that. A write costs the same however many entries there are. Readers map
nothing: they read page by page (`lmdb_pages`), so a file that is cut or damaged is an error to them, and they need no
right to write. A second copy of what removes items is in the journal beside it (`lmdb_journal`), from which `repair`
heals. Knows nothing of what entries mean.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nearcast.errors import DamagedError, StoreError
from nearcast.files import link_file, refuse_link
from nearcast.stores.base import TOKEN_SECONDS, ExchangeResult, OverlayChanges, OverlayEntry
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
from nearcast.stores.lmdb_journal import HeldJournal, Journal, Line, checksum
from nearcast.stores.lmdb_pages import Tree, check_pages, newest_transaction, read_tree, salvage_pairs

__all__ = ["LmdbOverlay"]

MAP_BYTES = 4 << 30  # room for some ten million entries; takes address space only, and is the same for every process
MOST_READERS = 1024  # of earlier versions of nearcast, which take a slot of the lock file each
LONGEST_KEY, KEPT_OF_LONG = 480, 448
ENTRY, CHECK, LOG, STATE, COUNT, TOKEN, FORGET = b"e", b"c", b"l", b"s", b"n", b"t", b"u"
FORGOTTEN_AT_ONCE = 100
EPOCH_AND_SERIAL = struct.Struct(">QQ")
COUNTED = struct.Struct(">QQQ")
CHECKED = struct.Struct(">QI")
SERIAL = struct.Struct(">Q")
UNLOCKED_READS = 3
LOOKS, LOOK_SECONDS = 5, 0.01  # for a file that is being replaced
NOTHING = OverlayChanges(epoch=0, serial=0, entries=())

T = TypeVar("T")


@dataclass(frozen=True)
class _Seen:
    """The file as the last writer of this process left it, or found it whole."""

    size: int
    changed: int  # nanoseconds since 1970
    transaction: int


@dataclass
class LmdbOverlay:
    """The overlay in a folder, which is made by the first write. Safe to use from many threads and after a fork."""

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
        """Add entries in one step; each takes the place of an older one with the same key."""
        if entries:
            with self._environment() as (environment, journal), environment.begin(write=True) as txn:
                _add(txn, entries, journal)

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """What was written after `serial`; everything where the epoch is another. DamagedError where it was lost."""
        never_written = None if self.journal.exists() else NOTHING  # made by a version that was killed before writing
        return self._read(lambda tree: _changes(tree, epoch, serial, self._data, never_written), NOTHING)

    def get(self, key: bytes) -> bytes | None:
        """The last entry with this key, as it was written; None where there is none."""
        return self._read(lambda tree: _entry(tree, key, self._data), None)

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry only where its key still holds `held`; with a token once only."""
        with self._environment() as (environment, journal), environment.begin(write=True) as txn:
            name = hashlib.blake2b(token.encode(), digest_size=32).digest()
            if token and txn.get(TOKEN + name) is not None:
                return ExchangeResult.REPEATED
            known = txn.get(ENTRY + _stored(entry.key()))
            if (None if known is None else bytes(known[8:])) != held:
                return ExchangeResult.CHANGED
            if token:
                _remember(txn, name, now)
            _add(txn, [entry], journal)
            return ExchangeResult.WRITTEN

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Forget entries with these keys unless they were written after serial `upto`; starts a new epoch."""
        if not self._is_there():
            return
        with self._environment() as (environment, journal):
            with environment.begin(write=True) as txn:
                state = _state(txn.get(STATE))
                if state is None:
                    return
                count = _count(txn, state)
                for key in map(_stored, keys):
                    known = txn.get(ENTRY + key)
                    if known is not None and SERIAL.unpack_from(known)[0] <= upto:
                        txn.delete(ENTRY + key)
                        txn.delete(CHECK + key)
                        txn.delete(LOG + known[:8])
                        count = None if count is None else count - 1
                _keep_state(txn, state[0] + 1, state[1], count)
                removals = list(_removals(txn))
            with contextlib.suppress(OSError):  # it may hold more than it must
                journal.replace(removals)

    def repair(self) -> str | None:
        """Make an overlay that can be read of what is left of one that cannot. Returns what was found, None if whole.

        What removes items comes back from the journal, or from the pages that are left. The damaged files are kept
        beside it. Raises StoreError where the disk is full; then nothing has changed.
        """
        if not self._should_be_there():
            return None
        with translate_write_errors(self.journal.path):
            moved = self.journal.move_what_is_no_file()
        with translate_write_errors(self._data), self.journal.locked() as journal:
            try:
                self._check()
                return moved
            except DamagedError as error:
                what = str(error).partition("; heal it with")[0]
            self.close()
            found = _salvaged(self._data, self.journal.read())
            serial = max([time.time_ns() // 1_000_000, *(serial for serial, _ in found)])  # above all that readers know
            entries = [(serial + number, entry) for number, (_, entry) in enumerate(found, 1)]
            aside = self._put_in_place(self._fresh_folder(entries, serial))
            with contextlib.suppress(OSError):  # it holds no less
                journal.replace([line for line in entries if line[1].field is None])
        removals = sum(entry.field is None for _, entry in found)
        return (
            f"{what}. Written anew with the {len(found):,} entries that were found, {removals:,} of which remove or "
            f"restore items. Look through them with `nearcast overlay NAME list`: newer values of columns may be "
            f"lost, and what was forgotten may be back. What was damaged is kept in {aside}"
        )

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        shared, self._shared = self._shared, None
        if shared is not None:
            release_environment(shared)

    def _read(self, read: Callable[[Tree], T], nothing: T) -> T:
        """Return what `read` finds in the newest state, `nothing` where nothing was ever written."""
        path = self._data
        with translate_read_errors(path):
            if not self._is_there():
                return nothing
            try:
                return read_tree(path, read, UNLOCKED_READS)
            except StoreError:  # it is written to all the time
                with self.journal.locked_by_reader():
                    return read_tree(path, read)

    def _is_there(self) -> bool:
        """Return whether the file is there; DamagedError where it was and is no more."""
        path = self._data
        for look in range(LOOKS):
            try:
                facts = path.lstat()
                if not stat.S_ISREG(facts.st_mode):
                    raise DamagedError(f"{path} is no regular file; heal it with publish --repair")
                return True
            except (FileNotFoundError, NotADirectoryError):
                if not self._should_be_there():
                    return False
                if look + 1 < LOOKS:
                    time.sleep(LOOK_SECONDS)  # `repair` may be between its two steps
        raise DamagedError(
            f"{path} is missing, and with it what was removed or changed; heal it with publish --repair, or put the "
            "file back"
        )

    def _should_be_there(self) -> bool:
        return os.path.lexists(self.folder) or self.journal.exists()

    def _check(self) -> None:
        """Raise DamagedError unless all of it can be read and written."""
        if self._is_there():
            check_pages(self._data)
            read_tree(self._data, lambda tree: _changes(tree, -1, 0, self._data, None))
            refuse_link(self.folder / LOCK)

    @contextlib.contextmanager
    def _environment(self) -> Iterator[tuple[Any, HeldJournal]]:
        """Open it for a writer, who is alone until the end; made where nothing was written yet."""
        with translate_write_errors(self._data):
            if not self._is_there():
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self._make()
            with self.journal.locked() as journal:
                environment = self._opened(journal).environment
                try:
                    environment.reader_check()  # a killed reader would keep old pages from being used again
                    yield environment, journal
                    self._note(environment.info()["last_txnid"])
                except load_lmdb().Error:
                    self.close()  # after some errors LMDB wants to be opened anew
                    raise

    def _make(self) -> None:
        """Make an empty overlay, whole: nobody sees half of one."""
        with contextlib.ExitStack() as stack:
            fresh = self._fresh_folder([], 0)  # held by nobody yet
            stack.callback(shutil.rmtree, fresh, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster
                fresh.rename(self.folder)
        if not self._is_there():
            raise DamagedError(f"{self.folder} cannot be made; see what is in its place")

    def _fresh_folder(self, lines: Sequence[Line], serial: int) -> Path:
        """Return a new folder beside ours that holds these entries; `serial` is that of the newest if there is none."""
        fresh = self.folder.with_name(f"{self.folder.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
        fresh.mkdir()
        try:
            opened = contextlib.closing(load_lmdb().open(str(fresh), map_size=MAP_BYTES, lock=False))
            with opened as environment, environment.begin(write=True) as txn:
                for line in lines:
                    _put(txn, *line)
                _keep_state(txn, _new_epoch(), lines[-1][0] if lines else serial, len(lines))
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return fresh

    def _put_in_place(self, fresh: Path) -> Path:
        """Move a new file to its place in one step; a kill leaves the old or the new. Returns where the old one is."""
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

    def _opened(self, journal: HeldJournal) -> SharedEnvironment:
        """Return the environment that is in the folder now, for a writer."""
        shared = self._shared
        if shared is not None and not shared.inherited and self._is_known(shared) and shared.lock_is_whole():
            return shared
        self.close()  # another file came to this place, it was cut or changed, or a fork brought us here
        self._note(newest_transaction(self._data))
        check_pages(self._data)
        if not journal.has_lines():
            journal.clear()  # it may have been begun for another file
        self._shared = open_shared(self.folder, locks=True, map_size=MAP_BYTES, max_readers=MOST_READERS)
        return self._shared

    def _is_known(self, shared: SharedEnvironment) -> bool:
        """Return whether the file is as this process left it, or as other writers have made it of that."""
        facts, seen = self._data.lstat(), self._seen
        if seen is None or (facts.st_dev, facts.st_ino) != shared.identity or facts.st_size < seen.size:
            return False
        if (facts.st_size, facts.st_mtime_ns) == (seen.size, seen.changed):
            return True
        return newest_transaction(self._data) > seen.transaction

    def _note(self, transaction: int) -> None:
        """Note how the file is now, while no other process may write it."""
        self._seen = None
        with contextlib.suppress(OSError):  # what was written is written; the next writer finds what is amiss
            facts = self._data.lstat()
            self._seen = _Seen(facts.st_size, facts.st_mtime_ns, transaction)


def _add(txn: Any, entries: Sequence[OverlayEntry], journal: HeldJournal) -> None:
    """Write entries, to the journal first."""
    state = _state(txn.get(STATE))
    epoch, serial = state or (_new_epoch(), 0)
    count = _count(txn, (epoch, serial)) if state else 0
    if journal.is_empty() or (count is None and not journal.has_lines()):
        journal.begin(list(_removals(txn)))
        count = _counted(txn) if count is None else count
    lines = [(serial + number, entry) for number, entry in enumerate(entries, 1)]
    journal.append([line for line in lines if line[1].field is None])
    added = sum(_put(txn, *line) for line in lines)
    _keep_state(txn, epoch, serial + len(lines), None if count is None else count + added)


def _changes(tree: Tree, epoch: int, serial: int, path: Path, never_written: OverlayChanges | None) -> OverlayChanges:
    state = _state(tree.get(STATE))
    if state is None:
        if never_written is not None:
            return never_written
        raise DamagedError(f"{path} does not say what its newest entry is; heal it with publish --repair")
    if state == (epoch, serial):
        return OverlayChanges(epoch, serial, ())
    afresh = state[0] != epoch
    found = []
    for number, key in tree.scan(LOG + SERIAL.pack(0 if afresh else serial + 1)):
        if not number.startswith(LOG):
            break
        held = _held(tree, key, path)
        if held is None or held[:8] != number[1:]:
            raise DamagedError(f"{path} has lost the entry {key[:100]!r}; heal it with publish --repair")
        found.append(OverlayEntry.from_bytes(held[8:]))
    counted = tree.get(COUNT)
    if afresh and counted is not None:
        *of, count = COUNTED.unpack(counted)
        if tuple(of) == state and count != len(found):
            raise DamagedError(f"{path} holds {len(found)} entries where {count} were; heal it with publish --repair")
    return OverlayChanges(*state, tuple(found))


def _entry(tree: Tree, key: bytes, path: Path) -> bytes | None:
    """Return the entry with this key, as it was written."""
    held = _held(tree, _stored(key), path)
    return None if held is None else held[8:]


def _held(tree: Tree, key: bytes, path: Path) -> bytes | None:
    """Return serial and entry under a stored key. DamagedError where the entry is another than was written."""
    held, check = tree.get(ENTRY + key), tree.get(CHECK + key)
    known = held is not None and check is not None and check[:8] == held[:8]
    if known and CHECKED.unpack(check or b"")[1] != checksum((held or b"")[8:]):
        raise DamagedError(f"{path} holds another entry {key[:100]!r} than was written; heal it with publish --repair")
    return held


def _put(txn: Any, serial: int, entry: OverlayEntry) -> bool:
    """Write an entry in the place of an older one with its key; returns whether there was none."""
    key, number, data = _stored(entry.key()), SERIAL.pack(serial), entry.to_bytes()
    known = txn.get(ENTRY + key)
    if known is not None:
        txn.delete(LOG + known[:8])
    txn.put(ENTRY + key, number + data)
    txn.put(CHECK + key, CHECKED.pack(serial, checksum(data)))
    txn.put(LOG + number, key)
    return known is None


def _remember(txn: Any, token: bytes, now: float) -> None:
    """Note a token, and forget some whose time is over."""
    cursor, over = txn.cursor(), _moment(now)
    for _ in range(FORGOTTEN_AT_ONCE):
        if not cursor.set_range(FORGET):
            break
        key = bytes(cursor.key())
        if not key.startswith(FORGET) or key[1:9] > over:
            break
        txn.delete(TOKEN + key[9:])
        txn.delete(key)
    until = _moment(now + TOKEN_SECONDS)
    txn.put(TOKEN + token, until)
    txn.put(FORGET + until + token, b"")


def _moment(seconds: float) -> bytes:
    return SERIAL.pack(max(0, round(1e6 * seconds)))


def _state(known: bytes | None) -> tuple[int, int] | None:
    return EPOCH_AND_SERIAL.unpack(known) if known is not None and len(known) == EPOCH_AND_SERIAL.size else None


def _keep_state(txn: Any, epoch: int, serial: int, count: int | None) -> None:
    txn.put(STATE, EPOCH_AND_SERIAL.pack(epoch, serial))
    if count is None:
        txn.delete(COUNT)
    else:
        txn.put(COUNT, COUNTED.pack(epoch, serial, count))


def _count(txn: Any, state: tuple[int, int]) -> int | None:
    """Return how many entries there are in this state; None where an earlier version of nearcast has written since."""
    known = txn.get(COUNT)
    if known is None or COUNTED.unpack(known)[:2] != state:
        return None
    return int(COUNTED.unpack(known)[2])


def _removals(txn: Any) -> Iterator[Line]:
    """Yield the entries that remove or restore items, with their serials."""
    cursor = txn.cursor()
    if cursor.set_range(ENTRY):
        for key, value in cursor:
            if not key.startswith(ENTRY):
                break
            if len(key) < LONGEST_KEY and not key.endswith(b" null]"):
                continue  # of a column
            entry = OverlayEntry.from_bytes(value[8:])
            if entry.field is None:
                yield SERIAL.unpack_from(value)[0], entry


def _counted(txn: Any) -> int:
    """Return how many entries there are, by looking at each."""
    cursor = txn.cursor()
    if not cursor.set_range(ENTRY):
        return 0
    return sum(1 for _ in itertools.takewhile(lambda key: key.startswith(ENTRY), cursor.iternext(values=False)))


def _salvaged(path: Path, journal: Sequence[Line]) -> list[Line]:
    """Return the newest entry of each key that is in the journal or on a page of the file, in order of writing."""
    checks: set[tuple[int, int]] = set()
    numbered: set[int] = set()
    found: dict[bytes, Line] = {}
    held: list[tuple[int, bytes]] = []
    for key, value in salvage_pairs(path):
        if key.startswith(ENTRY) and len(value) > SERIAL.size:
            held.append((SERIAL.unpack_from(value)[0], value[8:]))
        elif key.startswith(CHECK) and len(value) == CHECKED.size:
            checks.add(CHECKED.unpack(value))
            numbered.add(CHECKED.unpack(value)[0])
    for serial, data in held:
        if serial in numbered and (serial, checksum(data)) not in checks:
            continue
        with contextlib.suppress(DamagedError):
            _take(found, serial, OverlayEntry.from_bytes(data))
    for serial, entry in journal:
        _take(found, serial, entry)
    return sorted(found.values(), key=lambda line: line[0])


def _take(found: dict[bytes, Line], serial: int, entry: OverlayEntry) -> None:
    key = entry.key()
    if key not in found or found[key][0] < serial:
        found[key] = serial, entry


def _new_epoch() -> int:
    return 1 + secrets.randbits(48)  # never what a removed overlay had


def _stored(key: bytes) -> bytes:
    """The key as LMDB can take it. The entry itself says what it is about."""
    if len(key) <= LONGEST_KEY:
        return key
    return key[:KEPT_OF_LONG] + b"\xff" + hashlib.blake2b(key, digest_size=32).digest()
