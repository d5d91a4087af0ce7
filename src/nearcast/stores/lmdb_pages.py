"""Read the pages of an LMDB file without a map: check them, read pairs, and salvage pairs of a damaged file.

LMDB does not validate its file. A page behind the end of the file, or an offset out of a page, kills the process.
This module checks a file that may be truncated or damaged before it is mapped. Format: LMDB 0.9 on 64-bit little-endian
machines. Knows nothing of the meaning of keys and values.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nearcast.errors import DamagedError, StoreError

__all__ = ["Tree", "check_pages", "newest_transaction", "read_tree", "salvage_pairs"]

MAGIC, VERSION = 0xBEEFC0DE, 1
META = struct.Struct("<II8xQ48s48sQQ")  # magic, version, address, size of the map, two databases, last page, txn
DATABASE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower and upper end of the free room
PAGES_OF_VALUE = struct.Struct("<I")  # at the offset of lower and upper: pages of a large value
NODE = struct.Struct("<HHHH")  # size, low and high (in branches: number of the child), flags, size of the key
NUMBER = struct.Struct("<Q")
BRANCH, LEAF, OVERFLOW, META_PAGE = 0x01, 0x02, 0x04, 0x08
BIG_VALUE, SUB_DATABASE, DUPLICATES = 0x01, 0x02, 0x04
HEADER_BYTES, NODE_BYTES = PAGE.size, NODE.size
NO_PAGE = (1 << 64) - 1
DEEPEST = 32
ATTEMPTS = 100  # while other processes write: they may reuse freed pages during a read

T = TypeVar("T")


class _BrokenPageError(Exception):
    """An invalid page. The text names the page and the fault."""


@dataclass(frozen=True)
class _Meta:
    page_bytes: int
    roots: tuple[tuple[int, int], ...]  # page and depth: of the free pages, of the pairs
    txn: int


@dataclass(frozen=True)
class _File:
    """An open file, read page by page, each page once."""

    descriptor: int
    page_bytes: int
    known: dict[int, bytes] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        """Number of whole pages."""
        return os.fstat(self.descriptor).st_size // self.page_bytes

    def read(self, number: int, count: int = 1) -> bytes:
        """Return `count` pages. Raises _BrokenPageError if the file ends before."""
        size = count * self.page_bytes
        data = os.pread(self.descriptor, size, number * self.page_bytes)
        if len(data) < size:
            raise _BrokenPageError(f"page {number} is needed and the file ends before it")
        return data


class Tree:
    """The pairs of one committed state of a file, by key."""

    def __init__(self, file: _File, meta: _Meta) -> None:
        self._file = file
        self._root, self._depth = meta.roots[1]

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        found = next(self.scan(key), None)
        return found[1] if found is not None and found[0] == key else None

    def scan(self, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose keys are not before `first`, ascending."""
        if self._root == NO_PAGE:
            return
        if not 0 < self._depth <= DEEPEST:
            raise _BrokenPageError(f"a tree of depth {self._depth}")
        yield from self._walk_below(self._root, self._depth, first)

    def _walk_below(self, number: int, depth: int, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        data = self._read_page(number)
        kind = LEAF if depth == 1 else BRANCH
        offsets = _read_offsets(data, number, kind, self._file.page_bytes)
        start = self._search(data, number, kind, offsets, first)
        for offset in offsets[start:]:
            low, high, flags, begin, end = _read_node(data, number, kind, offset, self._file.page_bytes)
            if kind == BRANCH:
                yield from self._walk_below(low | high << 16 | flags << 32, depth - 1, first)
            elif flags & BIG_VALUE:
                overflow = NUMBER.unpack_from(data, end)[0]
                yield data[begin:end], _read_large_value(self._file, overflow, low | high << 16)
            elif flags & (SUB_DATABASE | DUPLICATES):
                raise _BrokenPageError(f"page {number} holds another database")
            else:
                yield data[begin:end], data[end : end + (low | high << 16)]

    def _search(self, data: bytes, number: int, kind: int, offsets: tuple[int, ...], first: bytes) -> int:
        """Return the first leaf node not before the key, or the branch node whose child may hold it."""
        low, high = (1, len(offsets)) if kind == BRANCH else (0, len(offsets))  # a branch's first key is left out
        while low < high:
            middle = (low + high) // 2
            _, _, _, begin, end = _read_node(data, number, kind, offsets[middle], self._file.page_bytes)
            key = data[begin:end]
            if key < first or (kind == BRANCH and key == first):
                low = middle + 1
            else:
                high = middle
        return low - 1 if kind == BRANCH else low

    def _read_page(self, number: int) -> bytes:
        known = self._file.known
        if number not in known:
            if number < 2:
                raise _BrokenPageError(f"page {number} holds no pairs")
            known[number] = self._file.read(number)
        return known[number]


def read_tree(path: Path, read: Callable[[Tree], T], attempts: int = ATTEMPTS) -> T:
    """Return the result of `read` on one state of the file, which other processes may write meanwhile.

    Raises DamagedError for a missing or invalid page, StoreError if the file changes faster than it can be read.
    """
    return _read(path, lambda file, meta: read(Tree(file, meta)), attempts)


def check_pages(path: Path) -> None:
    """Raise DamagedError unless every reachable page is in the file and valid. Takes about 1.3 s per million pairs."""
    _read(path, _check_all, ATTEMPTS)


def newest_transaction(path: Path) -> int:
    """Return the number of the last committed transaction. Raises DamagedError for an invalid header."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _read_newest_meta(path, descriptor).txn
    finally:
        os.close(descriptor)


def _read(path: Path, read: Callable[[_File, _Meta], T], attempts: int) -> T:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for _ in range(attempts):
            meta = _read_newest_meta(path, descriptor)
            broken = ""
            try:
                found = read(_File(descriptor, meta.page_bytes), meta)
            except (_BrokenPageError, DamagedError) as error:
                if _read_newest_meta(path, descriptor) == meta:
                    raise (
                        _make_error(path, str(error), descriptor) if isinstance(error, _BrokenPageError) else error
                    ) from None
                broken = str(error)
            if not broken and _read_newest_meta(path, descriptor) == meta:
                return found
        raise StoreError(f"{path} changes faster than it can be read; try again, or write to it less often")
    finally:
        os.close(descriptor)


def salvage_pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield all pairs on valid pages, also of older states. Yields nothing if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            yield from _salvage(path, descriptor)
    finally:
        os.close(descriptor)


def _salvage(path: Path, descriptor: int) -> Iterator[tuple[bytes, bytes]]:
    try:
        page_bytes = _read_newest_meta(path, descriptor).page_bytes
    except DamagedError:
        page_bytes = os.sysconf("SC_PAGE_SIZE")
    file = _File(descriptor, page_bytes)
    for number in range(file.pages):
        with contextlib.suppress(_BrokenPageError, OSError):
            yield from _iterate_pairs(file, number)


def _make_error(path: Path, what: str, descriptor: int) -> DamagedError:
    size = os.fstat(descriptor).st_size
    return DamagedError(f"{path} is damaged: {what} ({size:,} bytes); heal it with publish --repair")


def _read_newest_meta(path: Path, descriptor: int) -> _Meta:
    first = _read_meta(descriptor, 0)
    second = _read_meta(descriptor, first.page_bytes if first else os.sysconf("SC_PAGE_SIZE"))
    if first is None or second is None:  # LMDB reads the first alone to learn how large pages are
        raise _make_error(path, "its first two pages are not LMDB meta pages", descriptor)
    return max(first, second, key=lambda meta: meta.txn)


def _read_meta(descriptor: int, offset: int) -> _Meta | None:
    data = os.pread(descriptor, HEADER_BYTES + META.size, offset)
    if len(data) < HEADER_BYTES + META.size:
        return None
    _, _, flags, _, _ = PAGE.unpack_from(data)
    magic, version, _, free, main, _, txn = META.unpack_from(data, HEADER_BYTES)
    databases = [DATABASE.unpack(database) for database in (free, main)]
    page_bytes = databases[0][0]
    if not (flags & META_PAGE and magic == MAGIC and version == VERSION):
        return None
    if page_bytes < 512 or page_bytes > 65536 or page_bytes & (page_bytes - 1):
        return None
    return _Meta(page_bytes, tuple((root, depth) for *_, depth, _, _, _, _, root in databases), txn)


def _check_all(file: _File, meta: _Meta) -> None:
    """Raise _BrokenPageError for an invalid reachable page."""
    n_pages, seen = file.pages, set[int]()
    for root, depth in meta.roots:
        if root == NO_PAGE:
            continue
        if not 0 < depth <= DEEPEST:
            raise _BrokenPageError(f"a tree of depth {depth}")
        open_pages = [(root, depth)]
        while open_pages:
            number, depth_left = open_pages.pop()
            if not 2 <= number < n_pages:
                raise _BrokenPageError(f"page {number} is needed and the file has {n_pages}")
            if number in seen:
                raise _BrokenPageError(f"page {number} has two parents")
            seen.add(number)
            data = file.read(number)
            kind = LEAF if depth_left == 1 else BRANCH
            for low, high, flags, _, end in _iterate_nodes(data, number, kind, file.page_bytes):
                if kind == BRANCH:
                    open_pages.append((low | high << 16 | flags << 32, depth_left - 1))
                elif flags & BIG_VALUE:
                    _read_large_value(file, NUMBER.unpack_from(data, end)[0], low | high << 16)
                elif flags & (SUB_DATABASE | DUPLICATES):
                    raise _BrokenPageError(f"page {number} holds another database")


def _read_offsets(data: bytes, number: int, kind: int, page_bytes: int) -> tuple[int, ...]:
    """Return the offsets of the nodes of a page."""
    own, _, flags, lower, upper = PAGE.unpack_from(data)
    if own != number or flags & (BRANCH | LEAF | OVERFLOW | META_PAGE) != kind:
        raise _BrokenPageError(f"page {number} is another page than it should be")
    if not HEADER_BYTES <= lower <= upper <= page_bytes or lower % 2:
        raise _BrokenPageError(f"page {number} has bounds outside the page")
    count = (lower - HEADER_BYTES) // 2
    if count < (2 if kind == BRANCH else 1):
        raise _BrokenPageError(f"page {number} is empty")
    offsets: tuple[int, ...] = struct.unpack_from(f"<{count}H", data, HEADER_BYTES)
    return offsets


def _read_node(data: bytes, number: int, kind: int, offset: int, page_bytes: int) -> tuple[int, int, int, int, int]:
    """Return a node: low, high, flags, and where the key starts and ends."""
    if not HEADER_BYTES <= offset <= page_bytes - NODE_BYTES:
        raise _BrokenPageError(f"page {number} leads out of itself")
    low, high, flags, key_bytes = NODE.unpack_from(data, offset)
    start = offset + NODE_BYTES
    value_bytes = 0 if kind == BRANCH else 8 if flags & BIG_VALUE else low | high << 16
    if start + key_bytes + value_bytes > page_bytes:
        raise _BrokenPageError(f"page {number} holds a pair that is longer than it")
    return low, high, flags, start, start + key_bytes


def _iterate_nodes(data: bytes, number: int, kind: int, page_bytes: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the nodes of a page, each as `_node` returns it."""
    for offset in _read_offsets(data, number, kind, page_bytes):
        yield _read_node(data, number, kind, offset, page_bytes)


def _read_large_value(file: _File, number: int, size: int) -> bytes:
    """Return the large value that starts on this page."""
    if not 2 <= number < file.pages:
        raise _BrokenPageError(f"page {number} is needed and the file has {file.pages}")
    own, _, flags, _, _ = PAGE.unpack_from(file.read(number))
    count = -(-(size + HEADER_BYTES) // file.page_bytes)
    data = file.read(number, count)
    (held,) = PAGES_OF_VALUE.unpack_from(data, 12)  # may be larger: a shorter value replaced a longer one
    if own != number or not flags & OVERFLOW or not count <= held <= file.pages - number:
        raise _BrokenPageError(f"page {number} is another page than it should be")
    return data[HEADER_BYTES : HEADER_BYTES + size]


def _iterate_pairs(file: _File, number: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a leaf page; nothing for other pages."""
    data = file.read(number)
    if PAGE.unpack_from(data)[2] & (BRANCH | LEAF | OVERFLOW | META_PAGE) != LEAF:
        return
    for low, high, flags, start, end in _iterate_nodes(data, number, LEAF, file.page_bytes):
        if flags & BIG_VALUE:
            try:
                yield data[start:end], _read_large_value(file, NUMBER.unpack_from(data, end)[0], low | high << 16)
            except _BrokenPageError:
                continue
        elif not flags & (SUB_DATABASE | DUPLICATES):
            yield data[start:end], data[end : end + (low | high << 16)]
