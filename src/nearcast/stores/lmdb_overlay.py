"""The overlay of a generator in an LMDB environment of its own, which several processes may write.

    e + key of an entry     serial (8 bytes, big-endian), then the entry
    l + serial              key of the entry
    s                       epoch and serial of the newest entry (8 bytes each, big-endian)
    t + token               until when the token of an exchange is remembered (8 bytes, big-endian, microseconds)
    u + that time + token   nothing: tokens by when they are forgotten

Where the folder cannot be written, readers take no locks and check afterwards that nothing was committed while they
read. Knows nothing of what entries mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nearcast.errors import StoreError
from nearcast.stores.base import TOKEN_SECONDS, Changes, Exchanged, OverlayEntry
from nearcast.stores.lmdb_environment import DATA, Shared, file_identity, let_go, open_shared, reading, writing

__all__ = ["LmdbOverlay"]

MAP_BYTES = 4 << 30  # room for some ten million entries; takes address space only, and is the same for every process
MOST_READERS = 1024
LONGEST_KEY, KEPT_OF_LONG = 480, 448
ENTRY, LOG, STATE, TOKEN, FORGET = b"e", b"l", b"s", b"t", b"u"
FORGOTTEN_AT_ONCE = 100
EPOCH_AND_SERIAL = struct.Struct(">QQ")
SERIAL = struct.Struct(">Q")
ATTEMPTS = 100  # reads without locks, before we give up
NOTHING = Changes(epoch=0, serial=0, entries=())
Found = TypeVar("Found")


@dataclass
class LmdbOverlay:
    """The overlay in a folder, which is made by the first write. Safe to use from many threads and after a fork."""

    folder: Path
    _shared: Shared | None = field(default=None, repr=False)

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each takes the place of an older one with the same key."""
        if not entries:
            return
        with self._transaction() as txn:
            epoch, serial = _state(txn) or (1 + secrets.randbits(48), 0)  # never what a removed overlay had
            for entry in entries:
                serial += 1
                _put(txn, entry, serial)
            txn.put(STATE, EPOCH_AND_SERIAL.pack(epoch, serial))

    def get(self, key: bytes) -> bytes | None:
        """The last entry with this key, as it was written; None where there is none."""
        with reading(self.folder / DATA):
            shared = self._opened(make=False)
            return None if shared is None else _consistently(shared, lambda txn: _entry(txn, key))

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> Exchanged:
        """Add an entry only where its key still holds `held`; with a token once only."""
        with self._transaction() as txn:
            name = hashlib.blake2b(token.encode(), digest_size=32).digest()
            if token and txn.get(TOKEN + name) is not None:
                return Exchanged.REPEATED
            if _entry(txn, entry.key()) != held:
                return Exchanged.CHANGED
            if token:
                _remember(txn, name, now)
            epoch, serial = _state(txn) or (1 + secrets.randbits(48), 0)
            _put(txn, entry, serial + 1)
            txn.put(STATE, EPOCH_AND_SERIAL.pack(epoch, serial + 1))
            return Exchanged.WRITTEN

    def changes(self, *, epoch: int = -1, serial: int = 0) -> Changes:
        """What was written after `serial`; everything where the epoch is another."""
        with reading(self.folder / DATA):
            shared = self._opened(make=False)
            if shared is None:
                return NOTHING
            return _consistently(shared, lambda txn: _changes(txn, epoch, serial))

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Forget entries with these keys unless they were written after serial `upto`; starts a new epoch."""
        if not (self.folder / DATA).exists():
            return
        with self._transaction() as txn:
            state = _state(txn)
            if state is None:
                return
            for key in map(_stored, keys):
                known = txn.get(ENTRY + key)
                if known is not None and SERIAL.unpack_from(known)[0] <= upto:
                    txn.delete(ENTRY + key)
                    txn.delete(LOG + known[:8])
            txn.put(STATE, EPOCH_AND_SERIAL.pack(state[0] + 1, state[1]))

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        shared, self._shared = self._shared, None
        if shared is not None:
            let_go(shared)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with writing(self.folder / DATA):
            self.folder.mkdir(parents=True, exist_ok=True)
            shared = self._opened(make=True)
            assert shared is not None, "it was made"
            environment = shared.environment
            environment.reader_check()  # a killed reader would keep old pages from being used again
            with environment.begin(write=True) as txn:
                yield txn

    def _opened(self, *, make: bool) -> Shared | None:
        """The environment that is in the folder now; None where there is none and none is to be made."""
        identity, shared = file_identity(self.folder / DATA), self._shared
        if shared is not None and shared.identity == identity and not shared.inherited:
            return shared
        if identity is None and not make:
            return None
        self.close()  # another file came to this place, or a fork brought us here
        may_write = os.access(self.folder, os.W_OK)
        settings: dict[str, Any] = {"map_size": MAP_BYTES, "readonly": not may_write}
        if may_write:
            settings["max_readers"] = MOST_READERS
        self._shared = open_shared(self.folder, locks=may_write, **settings)
        return self._shared


def _put(txn: Any, entry: OverlayEntry, serial: int) -> None:
    """Write an entry in the place of an older one with its key."""
    key, number = _stored(entry.key()), SERIAL.pack(serial)
    known = txn.get(ENTRY + key)
    if known is not None:
        txn.delete(LOG + known[:8])
    txn.put(ENTRY + key, number + entry.to_bytes())
    txn.put(LOG + number, key)


def _entry(txn: Any, key: bytes) -> bytes | None:
    known: bytes | None = txn.get(ENTRY + _stored(key))
    return None if known is None else bytes(known[8:])


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


def _changes(txn: Any, epoch: int, serial: int) -> Changes:
    state = _state(txn)
    if state is None:
        return NOTHING
    if state == (epoch, serial):
        return Changes(epoch, serial, ())
    found = []
    cursor = txn.cursor()
    if cursor.set_range(LOG + SERIAL.pack(serial + 1 if state[0] == epoch else 0)):
        for number, key in cursor:
            if not number.startswith(LOG):
                break
            found.append(OverlayEntry.from_bytes(txn.get(ENTRY + key)[8:]))
    return Changes(*state, tuple(found))


def _consistently(shared: Shared, read: Callable[[Any], Found]) -> Found:
    """What `read` finds in one state of the file."""
    environment = shared.environment
    for _ in range(ATTEMPTS):
        with environment.begin() as txn:
            before = txn.id()
            found = read(txn)
        if shared.locks:
            return found
        with environment.begin() as txn:
            if txn.id() == before:  # without locks, pages that we read may have been written anew meanwhile
                return found
    raise StoreError(f"{environment.path()} changes faster than it can be read without locks; let it be written to")


def _state(txn: Any) -> tuple[int, int] | None:
    known = txn.get(STATE)
    return EPOCH_AND_SERIAL.unpack(known) if known is not None else None


def _stored(key: bytes) -> bytes:
    """The key as LMDB can take it. The entry itself says what it is about."""
    if len(key) <= LONGEST_KEY:
        return key
    return key[:KEPT_OF_LONG] + b"\xff" + hashlib.blake2b(key, digest_size=32).digest()
