"""The embedded store: one LMDB environment per version in a folder; processes share the page cache.

    <root>/<generator>/.lock                        publishers' lock
                       current                      the pointer, replaced in one step
                       versions/000007/data.mdb     the pairs: a named database per space
                                       manifest.json    facts, size and hash; a version without it is unfinished
                       overlay/                     overlay log

The file of a version does not change once its manifest exists. So readers take no locks, and an open reader keeps its
version when the folder is removed. After a fork a child may go on reading; see `lmdb_environment`.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearcast.errors import BusyError, DamagedError, NotFoundError, StoreError
from nearcast.files import PARTIAL, finish, fresh_folder, hold_lock, is_done, verify, write_text
from nearcast.stores.base import OverlayLog, Pair, Pointer, PublishLock, Space
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
from nearcast.stores.lmdb_overlay import LmdbOverlay
from nearcast.stores.names import format_version, is_generator, validate_generator

__all__ = ["LmdbReader", "LmdbStore", "LmdbWriter", "open_lmdb"]

FIRST_MAP_BYTES = 256 << 20  # doubled whenever it is full
TRANSACTION_BYTES = 64 << 20  # pages that a transaction has changed are in memory until it is committed
SAMPLED_KEYS = 8192  # at least so many keys of a large space are stored as a sample, evenly spread
SAMPLE = "sample"
DATABASES = (*Space, SAMPLE)
RETIRED = ".retired-"
LEFT_SECONDS = 3600.0  # older leftovers belong to no running writer
SAME_CLOCK_SECONDS = 1.0  # two readings of one clock differ by less: clocks of file systems are coarse
AGREED_SECONDS = 1.0  # for so long after they agreed, this machine's clock replaces that of the file system
STEP_SECONDS = 0.01  # a larger difference to the monotonic clock means that the clock was set


def open_lmdb(url: str) -> LmdbStore:
    """Open the store in a folder, lmdb:PATH. The first write creates it."""
    root = Path(url.removeprefix("lmdb:"))
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file; an LMDB store is a folder")
    return LmdbStore(root.absolute())


class LmdbStore:
    """Versions of all generators in one folder."""

    in_process = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"lmdb:{root}"
        self._overlays: dict[str, LmdbOverlay] = {}
        self._guard = threading.Lock()
        self._agreed = (-math.inf, 0.0)  # when the clocks agreed, by the monotonic clock, and how far that one is off

    def generators(self) -> list[str]:
        """Return the generators that have a pointer, sorted."""
        with translate_read_errors(self.root):
            found = [path.parent.name for path in self.root.glob("*/current")]
        return sorted(filter(is_generator, found))

    @contextlib.contextmanager
    def lock(self, generator: str) -> Iterator[PublishLock]:
        """Hold the publishers' lock of a generator. Raises BusyError at once if another process holds it."""
        path = self._folder(generator) / ".lock"
        with contextlib.ExitStack() as stack:
            with translate_write_errors(path):
                stack.enter_context(hold_lock(path, f"{generator} in {self.url}"))
            _remove_leftovers(path.parent)
            held = FileLock(generator)
            stack.callback(held.release)
            yield held

    def write(self, generator: str, version: int) -> LmdbWriter:
        """Start to write a version; remove unfinished versions."""
        folder = self._version_folder(generator, version)
        self.retire(generator, version)
        with translate_write_errors(folder):
            for left in folder.parent.glob("*"):
                if left.is_dir() and not is_done(left):  # of a killed publisher, since we hold the lock
                    shutil.rmtree(left)
            fresh_folder(folder)
        return LmdbWriter(folder)

    def versions(self, generator: str) -> list[int]:
        """Return the finished versions, ascending."""
        folder = self._folder(generator) / "versions"
        with translate_read_errors(folder):
            return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and is_done(path))

    def open(self, generator: str, version: int, *, verify: bool) -> LmdbReader:
        """Open a finished version. Raises NotFoundError, or DamagedError, which names the changed file."""
        folder = self._version_folder(generator, version)
        try:
            if is_done(folder):
                return _open_version(folder, contents=verify)
        except (DamagedError, StoreError):
            if is_done(folder):
                raise  # otherwise it was retired meanwhile
        have = ", ".join(map(str, self.versions(generator))) or "none"
        raise NotFoundError(f"{self.url} has no version {version} of {generator}; it has {have}")

    def retire(self, generator: str, version: int) -> None:
        """Remove a version, finished or not. Open readers keep it."""
        folder = self._version_folder(generator, version)
        aside = folder.with_name(RETIRED + folder.name)
        with translate_write_errors(folder):
            if aside.exists():  # a process was killed here
                shutil.rmtree(aside)
            if folder.exists():
                folder.rename(aside)  # in one step, so that no reader opens half of it
                shutil.rmtree(aside)

    def pointer(self, generator: str) -> Pointer | None:
        """Return the pointer; None before the first publish."""
        path = self._folder(generator) / "current"
        with translate_read_errors(path):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Pointer.from_bytes(data, str(path))

    def point(self, generator: str, pointer: Pointer, lock: PublishLock) -> None:
        """Move the pointer in one step. Raises BusyError, without a move, if the lock was lost."""
        lock.check()
        path = self._folder(generator) / "current"
        with translate_write_errors(path):
            write_text(path, pointer.to_bytes().decode())
            _flush_folder(path.parent)

    def overlay(self, generator: str) -> OverlayLog:
        """Return the overlay log of a generator; an empty one if nothing was written."""
        with self._guard:
            return self._overlays.setdefault(generator, LmdbOverlay(self._folder(generator) / "overlay"))

    def now(self) -> float:
        """Return the seconds since 1970 by the clock of the file system, which all processes share.

        Creates a file once a second, and after a step of this machine's clock. That costs as much as a write.
        """
        (when, ahead), own, monotonic = self._agreed, time.time(), time.monotonic()
        if monotonic - when < AGREED_SECONDS and abs(own - monotonic - ahead) < STEP_SECONDS:
            return own
        try:
            with tempfile.TemporaryFile(dir=self.root) as made:
                stamp = os.fstat(made.fileno()).st_mtime
        except OSError:  # a full or read-only disk
            return time.time()
        own, monotonic = time.time(), time.monotonic()
        if not 0 <= own - stamp < SAME_CLOCK_SECONDS:
            return stamp
        self._agreed = monotonic, own - monotonic
        return own

    def close(self) -> None:
        """Close the overlays. Readers are closed one by one."""
        with self._guard:
            for overlay in self._overlays.values():
                overlay.close()
            self._overlays.clear()

    def _folder(self, generator: str) -> Path:
        return self.root / validate_generator(generator)

    def _version_folder(self, generator: str, version: int) -> Path:
        return self._folder(generator) / "versions" / format_version(version)


@dataclass
class FileLock:
    """A held lock on a file. The operating system keeps it while the file is open."""

    generator: str
    lost: bool = False

    def check(self) -> None:
        """Raise BusyError after `release`."""
        if self.lost:
            raise BusyError(f"the lock of {self.generator} is not held any more; take it again")

    def release(self) -> None:
        """Mark the lock as released."""
        self.lost = True


class LmdbWriter:
    """A version that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / DATA
        self._samples = {space: KeySample() for space in Space}
        with translate_write_errors(self._path):
            # No LMDB locks: no reader can open it yet, and the publishers' lock excludes writers. `finish` flushes.
            self._environment = load_lmdb().open(
                str(folder), map_size=FIRST_MAP_BYTES, max_dbs=len(DATABASES), lock=False, sync=False, meminit=False
            )
            self._databases = {name: self._environment.open_db(name.encode()) for name in DATABASES}

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs; ascending keys within a space are fastest. Raises StoreError if the disk is full."""
        with translate_write_errors(self._path):
            for piece in _split(pairs):
                self._commit(space, piece)
        self._samples[space].add(pairs)

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
                _flush_folder(folder)

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

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key."""
        try:  # no `with translate_read_errors`: entering a generator costs 1 of the 14 microseconds of a look-up
            with self._begin(space) as txn:
                try:
                    return list(map(txn.get, keys))  # a quarter faster than getmulti, which returns pairs
                except self._bad_key:  # a key that is empty or too long for LMDB
                    return [txn.get(key) if 0 < len(key) <= self._longest_key else None for key in keys]
        except (self._lmdb_error, OSError) as error:
            raise translate_read_error(self._path, error) from error

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

    def close(self) -> None:
        """Release the environment; its last user closes it."""
        shared, self._shared = self._shared, None
        if shared is not None:
            os.close(self._file)
            release_environment(shared)

    def check(self) -> None:
        """Raise DamagedError if the file was cut or written since it was opened."""
        self._check_size()
        if os.fstat(self._file).st_mtime_ns != self._written:
            raise DamagedError(f"{self._path} was written to while it was open; publish with --repair if this stays")

    def _check_size(self) -> None:
        """Raise DamagedError if the file is shorter than its map: access behind its end kills the process."""
        size = os.fstat(self._file).st_size
        if size < self._size:
            raise DamagedError(
                f"{self._path} was cut to {size:,} of {self._size:,} bytes while it was open; publish with --repair"
            )

    def _begin(self, space: Space) -> Any:
        shared = self._shared
        if shared is None:
            raise StoreError(f"{self._path} was closed and cannot be read any more; open it again")
        self._check_size()
        return shared.environment.begin(db=self._databases[space])


def _open_version(folder: Path, *, contents: bool) -> LmdbReader:
    path = folder / DATA
    with translate_read_errors(path):
        # Before it is mapped: access behind the end of a mapped file kills the process.
        manifest = verify(folder, contents=contents)
        if "facts" not in manifest or DATA not in manifest.get("files", {}):
            raise DamagedError(f"{folder / 'manifest.json'} is no manifest of a version; publish again with --repair")
        size = path.stat().st_size
        shared = open_shared(folder, locks=False, databases=DATABASES, readonly=True, readahead=False, map_size=size)
        return LmdbReader(path, manifest["facts"], shared)


def _remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed publishers from a generator's folder. Call it under the lock.

    Writers of the overlay do not take this lock: only old leftovers of theirs are removed.
    """
    versions = folder / "versions"
    left = [folder / f"{PARTIAL}current", *versions.glob(f"{RETIRED}*"), *versions.glob(f"{PARTIAL}*")]
    left += [path for path in versions.glob("[0-9]*") if path.is_dir() and not is_done(path)]
    left += [path for path in (*folder.glob("overlay.new-*"), *folder.glob(f"{PARTIAL}*")) if _is_old(path)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # the next publish tries again
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > LEFT_SECONDS
    return False


def _split(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Yield pieces of at most TRANSACTION_BYTES, or of one pair."""
    start = size = 0
    for number, (key, value) in enumerate(pairs):
        size += len(key) + len(value)
        if size > TRANSACTION_BYTES and number > start:
            yield pairs[start:number]
            start, size = number, len(key) + len(value)
    if len(pairs) > start:
        yield pairs[start:]


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
