"""Records of an LMDB overlay: the keys and values of its file, and how entries are written, read and salvaged.

    e + key of an entry     serial (8 bytes, big-endian), then the entry
    c + key of an entry     serial, then crc32 of the entry (4 bytes, big-endian)
    l + serial              key of the entry
    s                       epoch and serial of the newest entry (8 bytes each, big-endian)
    n                       epoch and serial, and the number of entries then (8 bytes each)
    t + token               expiry of the token of an exchange (8 bytes, big-endian, microseconds)
    u + expiry + token      empty: tokens in the order of their expiry

Works on a write transaction, or on a `Tree` of pages. Knows nothing of files, locks and the meaning of entries.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError
from nearcast.stores.base import TOKEN_SECONDS, OverlayChanges, OverlayEntry
from nearcast.stores.lmdb_journal import Line, LockedJournal, checksum
from nearcast.stores.lmdb_pages import Tree, salvage_pairs

__all__ = [
    "CHECK",
    "ENTRY",
    "LOG",
    "SERIAL",
    "STATE",
    "TOKEN",
    "add_entries",
    "decode_state",
    "draw_epoch",
    "encode_entry_key",
    "iterate_removals",
    "put_entry",
    "put_state",
    "read_changes",
    "read_count",
    "read_entry",
    "remember_token",
    "salvage_entries",
]

LONGEST_KEY, KEPT_OF_LONG = 480, 448
ENTRY, CHECK, LOG, STATE, COUNT, TOKEN, FORGET = b"e", b"c", b"l", b"s", b"n", b"t", b"u"
FORGOTTEN_AT_ONCE = 100
EPOCH_AND_SERIAL = struct.Struct(">QQ")
COUNTED = struct.Struct(">QQQ")
CHECKED = struct.Struct(">QI")
SERIAL = struct.Struct(">Q")


def add_entries(txn: Any, entries: Sequence[OverlayEntry], journal: LockedJournal) -> None:
    """Write entries: to the journal first, then to the transaction."""
    state = decode_state(txn.get(STATE))
    epoch, serial = state or (draw_epoch(), 0)
    count = read_count(txn, (epoch, serial)) if state else 0
    if journal.is_empty() or (count is None and not journal.has_lines()):
        journal.begin(list(iterate_removals(txn)))
        count = count_entries(txn) if count is None else count
    lines = [(serial + number, entry) for number, entry in enumerate(entries, 1)]
    journal.append([line for line in lines if line[1].field is None])
    added = sum(put_entry(txn, *line) for line in lines)
    put_state(txn, epoch, serial + len(lines), None if count is None else count + added)


def read_changes(
    tree: Tree, epoch: int, serial: int, path: Path, never_written: OverlayChanges | None
) -> OverlayChanges:
    """Return the entries after `serial`, or all entries if the epoch differs. Raises DamagedError if entries are lost.

    never_written: returned for a file without a state; None: such a file is damaged.
    """
    state = decode_state(tree.get(STATE))
    if state is None:
        if never_written is not None:
            return never_written
        raise DamagedError(f"{path} does not say what its newest entry is; heal it with publish --repair")
    if state == (epoch, serial):
        return OverlayChanges(epoch, serial, ())
    is_new_epoch = state[0] != epoch
    found = []
    for number, key in tree.scan(LOG + SERIAL.pack(0 if is_new_epoch else serial + 1)):
        if not number.startswith(LOG):
            break
        held = _read_record(tree, key, path)
        if held is None or held[:8] != number[1:]:
            raise DamagedError(f"{path} has lost the entry {key[:100]!r}; heal it with publish --repair")
        found.append(OverlayEntry.from_bytes(held[8:]))
    counted = tree.get(COUNT)
    if is_new_epoch and counted is not None:
        *of, count = COUNTED.unpack(counted)
        if tuple(of) == state and count != len(found):
            raise DamagedError(f"{path} holds {len(found)} entries where {count} were; heal it with publish --repair")
    return OverlayChanges(*state, tuple(found))


def read_entry(tree: Tree, key: bytes, path: Path) -> bytes | None:
    """Return the bytes of the entry with this key; None if there is none."""
    held = _read_record(tree, encode_entry_key(key), path)
    return None if held is None else held[8:]


def _read_record(tree: Tree, key: bytes, path: Path) -> bytes | None:
    """Return serial and entry of a stored key. Raises DamagedError if the checksum of the entry differs."""
    held, check = tree.get(ENTRY + key), tree.get(CHECK + key)
    known = held is not None and check is not None and check[:8] == held[:8]
    if known and CHECKED.unpack(check or b"")[1] != checksum((held or b"")[8:]):
        raise DamagedError(f"{path} holds another entry {key[:100]!r} than was written; heal it with publish --repair")
    return held


def put_entry(txn: Any, serial: int, entry: OverlayEntry) -> bool:
    """Write an entry, replacing an older one with its key. Return whether the key is new."""
    key, number, data = encode_entry_key(entry.key()), SERIAL.pack(serial), entry.to_bytes()
    known = txn.get(ENTRY + key)
    if known is not None:
        txn.delete(LOG + known[:8])
    txn.put(ENTRY + key, number + data)
    txn.put(CHECK + key, CHECKED.pack(serial, checksum(data)))
    txn.put(LOG + number, key)
    return known is None


def remember_token(txn: Any, token: bytes, now: float) -> None:
    """Store a token, and delete some expired ones."""
    cursor, over = txn.cursor(), _encode_moment(now)
    for _ in range(FORGOTTEN_AT_ONCE):
        if not cursor.set_range(FORGET):
            break
        key = bytes(cursor.key())
        if not key.startswith(FORGET) or key[1:9] > over:
            break
        txn.delete(TOKEN + key[9:])
        txn.delete(key)
    until = _encode_moment(now + TOKEN_SECONDS)
    txn.put(TOKEN + token, until)
    txn.put(FORGET + until + token, b"")


def _encode_moment(seconds: float) -> bytes:
    return SERIAL.pack(max(0, round(1e6 * seconds)))


def decode_state(known: bytes | None) -> tuple[int, int] | None:
    """Return epoch and serial; None for a missing or unreadable state."""
    return EPOCH_AND_SERIAL.unpack(known) if known is not None and len(known) == EPOCH_AND_SERIAL.size else None


def put_state(txn: Any, epoch: int, serial: int, count: int | None) -> None:
    """Write epoch, serial and the number of entries; None: the number is not known."""
    txn.put(STATE, EPOCH_AND_SERIAL.pack(epoch, serial))
    if count is None:
        txn.delete(COUNT)
    else:
        txn.put(COUNT, COUNTED.pack(epoch, serial, count))


def read_count(txn: Any, state: tuple[int, int]) -> int | None:
    """Return the number of entries in this state; None if an earlier version of nearcast has written since."""
    known = txn.get(COUNT)
    if known is None or COUNTED.unpack(known)[:2] != state:
        return None
    return int(COUNTED.unpack(known)[2])


def iterate_removals(txn: Any) -> Iterator[Line]:
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


def count_entries(txn: Any) -> int:
    """Count the entries by scanning all of them."""
    cursor = txn.cursor()
    if not cursor.set_range(ENTRY):
        return 0
    return sum(1 for _ in itertools.takewhile(lambda key: key.startswith(ENTRY), cursor.iternext(values=False)))


def salvage_entries(path: Path, journal: Sequence[Line]) -> list[Line]:
    """Return the newest entry of each key in the journal and on the pages of the file, in order of writing."""
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
            _keep_newest(found, serial, OverlayEntry.from_bytes(data))
    for serial, entry in journal:
        _keep_newest(found, serial, entry)
    return sorted(found.values(), key=lambda line: line[0])


def _keep_newest(found: dict[bytes, Line], serial: int, entry: OverlayEntry) -> None:
    key = entry.key()
    if key not in found or found[key][0] < serial:
        found[key] = serial, entry


def draw_epoch() -> int:
    """Return a random epoch."""
    return 1 + secrets.randbits(48)  # a removed overlay had another one


def encode_entry_key(key: bytes) -> bytes:
    """Return the key, shortened by a hash if it is too long for LMDB. The entry holds item and field in full."""
    if len(key) <= LONGEST_KEY:
        return key
    return key[:KEPT_OF_LONG] + b"\xff" + hashlib.blake2b(key, digest_size=32).digest()
