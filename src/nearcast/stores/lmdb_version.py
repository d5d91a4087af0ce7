"""One version in LMDB: an environment in a folder, with a named database per space. Writer and reader.

The file does not change once its manifest exists, so readers take no locks. Knows nothing of pointers and locks; `lmdb`
describes the layout.
"""

from __future__ import annotations

import os
import random
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add, itemgetter
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, StoreError
from nearcast.files import finish, verify
from nearcast.stores.base import Pair, Space
from nearcast.stores.lmdb_environment import (
    DATA,
    SharedEnvironment,
    load_lmdb,
    open_shared,
    release_environment,
    translate_read_error,
    translate_read_errors,
    translate_write_errors,
)

__all__ = ["LmdbReader", "LmdbWriter", "flush_folder", "open_version_folder"]

FIRST_MAP_BYTES = 256 << 20  # doubled whenever it is full
TRANSACTION_BYTES = 64 << 20  # pages that a transaction has changed are in memory until it is committed
SAMPLED_KEYS = 8192  # at least so many keys of a large space are stored as a sample, evenly spread
SAMPLE = "sample"
DATABASES = (*Space, SAMPLE)

Get = Callable[[bytes], bytes | None]


class LmdbWriter:
    """A version that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / DATA
        self._samples = {space: KeySample() for space in Space}
        self.size = 0  # bytes of all keys and values so far
        with translate_write_errors(self._path):
            # No LMDB locks: no reader can open it yet, and the publishers' lock excludes writers. `finish` flushes.
            self._environment = load_lmdb().open(
                str(folder), map_size=FIRST_MAP_BYTES, max_dbs=len(DATABASES), lock=False, sync=False, meminit=False
            )
            self._databases = {name: self._environment.open_db(name.encode()) for name in DATABASES}

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs; ascending keys within a space are fastest. Raises StoreError if the disk is full."""
        ends = list(accumulate(_pair_sizes(pairs), initial=0))
        with translate_write_errors(self._path):
            for piece in _split(pairs, ends):
                self._commit(space, piece)
        self._samples[space].add(pairs)
        self.size += ends[-1]

    def _commit(self, space: Space, pairs: Sequence[Pair]) -> None:
        while True:
            try:
                with self._environment.begin(db=self._databases[space], write=True) as txn:
                    _, added = txn.cursor().putmulti(pairs, append=True)
                    if added < len(pairs):  # some keys do not come after all stored keys
                        txn.cursor().putmulti(pairs)
                return
            except load_lmdb().MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Make all pairs durable, then mark the version as finished, with its facts."""
        with translate_write_errors(self._path):
            sampled = {space: sample.encode() for space, sample in self._samples.items()}
            with self._environment.begin(db=self._databases[SAMPLE], write=True) as txn:
                for space, packed in sampled.items():
                    txn.put(space.encode(), packed)
            self._environment.sync(True)
            self._environment.close()
            finish(self._folder, {"format": 1, "facts": dict(facts)})
            for folder in (self._folder, self._folder.parent, self._folder.parent.parent):
                flush_folder(folder)

    def count(self, space: Space) -> int:
        """Return the number of pairs so far."""
        with translate_write_errors(self._path), self._environment.begin() as txn:
            return int(txn.stat(self._databases[space])["entries"])

    def discard(self) -> None:
        """Remove the pairs."""
        self._environment.close()
        with translate_write_errors(self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)


@dataclass
class KeySample:
    """Every 2^n-th key of a space: at least SAMPLED_KEYS keys of a large space."""

    stride: int = 1
    seen: int = 0
    keys: list[bytes] = field(default_factory=list)

    def add(self, pairs: Sequence[Pair]) -> None:
        """Add the keys of the next pairs that belong to the sample."""
        self.keys += [key for key, _ in pairs[-self.seen % self.stride :: self.stride]]
        self.seen += len(pairs)
        while len(self.keys) >= 2 * SAMPLED_KEYS:
            del self.keys[1::2]
            self.stride *= 2

    def encode(self) -> bytes:
        """Return the keys, each after its length in 2 bytes; empty for a small space, which can be read whole."""
        if self.stride == 1:
            return b""
        return b"".join(len(key).to_bytes(2, "little") + key for key in self.keys)


def _decode_sample(data: bytes) -> Iterator[bytes]:
    end = 0
    while end < len(data):
        start = end + 2
        end = start + int.from_bytes(data[end:start], "little")
        yield data[start:end]


class LmdbReader:
    """A finished version, open. All readers of it in a process share one environment."""

    def __init__(self, path: Path, facts: Mapping[str, Any], shared: SharedEnvironment) -> None:
        self.facts = facts
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # gives its size, also after the folder was removed
        opened = os.fstat(self._file)
        self._size, self._written = opened.st_size, opened.st_mtime_ns
        self._shared: SharedEnvironment | None = shared
        self._databases = shared.databases
        self._lmdb_error, self._bad_key = load_lmdb().Error, load_lmdb().BadValsizeError
        self._longest_key = shared.environment.max_key_size()
        # `get` of transactions that no call uses now. The file never changes, so a transaction stays good, and to begin
        # one costs as much as some look-ups.
        self._free: dict[Space, list[Get]] = {space: [] for space in Space}

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key."""
        try:  # no `with translate_read_errors`: entering a generator costs 1 of the 14 microseconds of a look-up
            get = self._take(space)
            try:
                values = list(map(get, keys))  # a quarter faster than getmulti, which returns pairs
            except self._bad_key:  # a key that is empty or too long for LMDB
                values = [get(key) if 0 < len(key) <= self._longest_key else None for key in keys]
        except (self._lmdb_error, OSError) as error:
            raise translate_read_error(self._path, error) from error
        self._free[space].append(get)
        return values

    def get_from(
        self, readers: Mapping[int, LmdbReader], numbers: Sequence[int], space: Space, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        """Return the value that readers[numbers[i]] has for keys[i]."""
        try:
            getters = {number: reader._take(space) for number, reader in readers.items()}
            values = [getters[number](key) for number, key in zip(numbers, keys, strict=True)]
        except (self._lmdb_error, OSError):  # one by one: an error names its file, and LMDB refuses some keys
            return [readers[number].get_many(space, [key])[0] for number, key in zip(numbers, keys, strict=True)]
        for number, reader in readers.items():
            reader._free[space].append(getters[number])
        return values

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs, ascending by key."""
        with translate_read_errors(self._path), self._begin(space) as txn:
            yield from txn.cursor()

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, sampled over the version, ascending."""
        with translate_read_errors(self._path), self._begin(space) as txn:
            total = txn.stat(self._databases[space])["entries"]
            noted = list(_decode_sample(txn.get(space.encode(), db=self._databases[SAMPLE]))) if count < total else []
            if len(noted) >= count:
                return sorted(random.Random(seed).sample(noted, count))
            if count >= total:
                return list(txn.cursor().iternext(values=False))
            numbers = set(random.Random(seed).sample(range(total), count))
            return [key for number, key in enumerate(txn.cursor().iternext(values=False)) if number in numbers]

    def count(self, space: Space) -> int:
        """Return the number of pairs of a space."""
        with translate_read_errors(self._path), self._begin(space) as txn:
            return int(txn.stat(self._databases[space])["entries"])

    def close(self) -> None:
        """Release the environment; its last user closes it."""
        shared, self._shared = self._shared, None
        if shared is not None:
            self._free = {space: [] for space in Space}
            os.close(self._file)
            release_environment(shared)

    def check(self) -> None:
        """Raise DamagedError if the file was cut or written since it was opened."""
        self._check_size()
        if os.fstat(self._file).st_mtime_ns != self._written:
            raise DamagedError(f"{self._path} was written to while it was open; publish with --repair if this stays")

    def _check_size(self) -> None:
        """Raise DamagedError if the file is shorter than its map: access behind its end kills the process."""
        if not os.pread(self._file, 1, self._size - 1):  # a third of the time of `fstat`
            size = os.fstat(self._file).st_size
            raise DamagedError(
                f"{self._path} was cut to {size:,} of {self._size:,} bytes while it was open; publish with --repair"
            )

    def _take(self, space: Space) -> Get:
        """Return `get` of a transaction that no other call uses; give it back to `_free` after a call without error."""
        if self._shared is not None:
            self._check_size()
        try:
            return self._free[space].pop()  # one step, also among threads
        except IndexError:
            get: Get = self._begin(space).get
            return get

    def _begin(self, space: Space) -> Any:
        shared = self._shared
        if shared is None:
            raise StoreError(f"{self._path} was closed and cannot be read any more; open it again")
        self._check_size()
        return shared.environment.begin(db=self._databases[space])


def open_version_folder(folder: Path, *, contents: bool) -> LmdbReader:
    """Open the folder of a version. contents: compare its bytes with their hashes. Raises DamagedError, StoreError."""
    path = folder / DATA
    with translate_read_errors(path):
        # Before it is mapped: access behind the end of a mapped file kills the process.
        manifest = verify(folder, contents=contents)
        if "facts" not in manifest or DATA not in manifest.get("files", {}):
            raise DamagedError(f"{folder / 'manifest.json'} is no manifest of a version; publish again with --repair")
        size = path.stat().st_size
        shared = open_shared(folder, locks=False, databases=DATABASES, readonly=True, readahead=False, map_size=size)
        return LmdbReader(path, manifest["facts"], shared)


def _split(pairs: Sequence[Pair], ends: Sequence[int]) -> Iterator[Sequence[Pair]]:
    """Yield pieces of at most TRANSACTION_BYTES, or of one pair. ends: bytes up to each pair, from 0."""
    start = 0
    while start < len(pairs):
        stop = max(start + 1, bisect_right(ends, ends[start] + TRANSACTION_BYTES, start) - 1)
        yield pairs[start:stop]
        start = stop


def _pair_sizes(pairs: Sequence[Pair]) -> Iterator[int]:
    """Yield the bytes of each key and its value."""
    return map(add, map(len, map(itemgetter(0), pairs)), map(len, map(itemgetter(1), pairs)))


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
