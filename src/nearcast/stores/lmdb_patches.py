"""Patches beside the versions of an LMDB store: an immutable environment per patch, and a list of those in force.

    <root>/<generator>/patches/state.json               the list, replaced in one step; see `patch_record`
                               000007/000123/           patch 123 of version 7: a folder like that of a version,
                                      000001-000122/    folded patches, or a group; see `patch_record`
                                   .../lists.crc32      hashes of the keys of a space; also items.crc32

Nothing that a reader has mapped changes, so a killed writer or a full disk leaves the list as it was, readers take no
locks and need no write permission, and a fork may go on reading. A reader keeps the list's file open: a file with
another inode is a newer list. Writers hold the publishers' lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from nearcast.errors import DamagedError, StoreError
from nearcast.files import fresh_folder, is_done, write_text
from nearcast.stores.base import Pair, PatchFacts, PublishLock, Space
from nearcast.stores.lmdb_environment import Identity, translate_read_errors, translate_write_errors
from nearcast.stores.lmdb_version import LmdbReader, LmdbWriter, flush_folder, open_version_folder
from nearcast.stores.names import format_version
from nearcast.stores.patch_index import Hashes, decode_hashes, encode_hashes, hash_keys
from nearcast.stores.patch_log import PairParts, SegmentLog, merge_parts
from nearcast.stores.patch_record import PatchRecords, Segment
from nearcast.stores.patched_pairs import OpenSegment, PatchedPairs

__all__ = ["LmdbPatches", "PatchedReader"]

STATE = "state.json"
READ_TRIES = 5  # a segment may be removed between the reading of the list and its opening


@dataclass(frozen=True)
class LmdbPatches(SegmentLog):
    """The patches of a generator, in a folder that the first patch creates."""

    groups_patches: ClassVar[bool] = True  # a look-up reads pages of every file that has one of its keys

    folder: Path
    versions: Path  # the folder of the versions

    @property
    def path(self) -> Path:
        """The file with the list of patches in force."""
        return self.folder / STATE

    def read(self) -> PatchRecords:
        """Read the list of patches. Raises DamagedError if it was lost, cut or changed."""
        records = self._read_list()
        return records.only([number for number in records.versions if is_done(self.versions / format_version(number))])

    def _read_list(self) -> PatchRecords:
        with translate_read_errors(self.path):
            try:
                data = self.path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                if not self._list_folders():
                    return PatchRecords()
                raise DamagedError(
                    f"{self.path} is missing, and patches are beside it; put it back, or publish again with --repair"
                ) from None
        return PatchRecords.from_bytes(data, str(self.path))

    def prepare(self, records: PatchRecords, version: int, lock: PublishLock) -> None:
        """Create the list if there is none: a missing list beside a segment is a lost one."""
        if not is_done(self.versions / format_version(version)):
            raise StoreError(f"{self.versions} has no version {version}; update the current one")
        if not self.path.exists():
            self.replace(records, version, lock)

    def retire(self, version: int) -> None:
        """Remove the patches of a version. Readers that have opened them keep them."""
        if not self.folder.exists():
            return
        with translate_write_errors(self.folder):
            shutil.rmtree(self.folder / format_version(version), ignore_errors=True)
            records = self._read_list()
            if version in records.versions:
                write_text(self.path, records.put(version, None).to_bytes().decode())

    def repair(self) -> str | None:
        """Replace a damaged list by an empty one. Return a description of the loss; None if it is whole."""
        try:
            self.read()
            return None
        except DamagedError as error:
            folders = self._list_folders()
            last = max((int(path.name.rpartition("-")[2]) for path in folders), default=0)
            with translate_write_errors(self.path):
                write_text(self.path, PatchRecords(last, last).to_bytes().decode())
                for path in folders:
                    shutil.rmtree(path, ignore_errors=True)
            return f"{error}. All patches up to number {last} are lost; a new snapshot contains their items"

    def _list_folders(self) -> list[Path]:
        return [path for path in self.folder.glob("[0-9]*/[0-9]*") if path.is_dir()]

    def open(self, version: int, reader: LmdbReader, *, verify: bool) -> PatchedReader:
        """Return a reader of a version and its patches. With `verify` they are opened at once, else at first use."""
        patched = PatchedReader(self, version, reader, verify=verify)
        if verify:
            try:
                patched.check()
            except BaseException:
                reader.close()
                raise
        return patched

    def open_segment(self, version: int, segment: Segment, *, contents: bool) -> LmdbReader:
        """Open a segment. Raises DamagedError or StoreError."""
        return open_version_folder(self._segment_folder(version, segment), contents=contents)

    def read_hashes(self, version: int, segment: Segment) -> dict[Space, Hashes]:
        """Read the hashes of a segment's keys. Raises DamagedError or StoreError."""
        folder = self._segment_folder(version, segment)
        with translate_read_errors(folder):
            return {space: decode_hashes((folder / f"{space}.crc32").read_bytes()) for space in Space}

    def _segment_folder(self, version: int, segment: Segment) -> Path:
        return self.folder / format_version(version) / segment.name

    def write_segment(self, version: int, name: str, parts: PairParts) -> Segment:
        """Write pairs into a new folder; later pairs overwrite earlier ones. Nothing is in force yet."""
        folder = self.folder / format_version(version) / name
        hashes: dict[Space, list[Hashes]] = {space: [hash_keys([])] for space in Space}
        with translate_write_errors(folder):
            fresh_folder(folder)
        writer = LmdbWriter(folder)
        try:
            for part in parts:
                for space, pairs in part.items():
                    writer.put(space, sorted(pairs))
                    hashes[space].append(hash_keys([key for key, _ in pairs]))
            counts = {space.value: writer.count(space) for space in Space}
            with translate_write_errors(folder):
                for space in Space:
                    (folder / f"{space}.crc32").write_bytes(encode_hashes(np.concatenate(hashes[space])))
            writer.finish({})
        except BaseException:
            with contextlib.suppress(StoreError):
                writer.discard()
            raise
        return Segment(name, writer.size, counts)

    def merge_segments(self, version: int, name: str, old: Sequence[Segment]) -> Segment:
        """Write the pairs of several segments, oldest first, into one."""
        with contextlib.ExitStack() as stack:
            readers = [self.open_segment(version, part, contents=True) for part in old]
            for reader in readers:
                stack.callback(reader.close)
            return self.write_segment(version, name, merge_parts(readers))

    def check_segment(self, version: int, segment: Segment) -> None:
        """Raise DamagedError or StoreError if a segment was lost or changed."""
        self.open_segment(version, segment, contents=True).close()

    def replace(self, records: PatchRecords, version: int, lock: PublishLock) -> None:  # noqa: ARG002  # of the base
        """Replace the list in one step, then remove the folders that it does not name."""
        lock.check()
        with translate_write_errors(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.path, records.to_bytes().decode())
            flush_folder(self.folder)
        used = {(number, part.name) for number, record in records.versions.items() for part in record.stored_segments}
        for path in self._list_folders():
            if (int(path.parent.name), path.name) not in used:
                shutil.rmtree(path, ignore_errors=True)  # the next writer tries again


class PatchedReader:
    """A version and its patches, open. Safe to use from many threads, and after a fork."""

    def __init__(self, log: LmdbPatches, version: int, reader: LmdbReader, *, verify: bool) -> None:
        self.facts = reader.facts
        self.unpatched = reader  # the version as it was published
        self._log = log
        self._version = version
        self._verify = verify
        self._state_path = str(log.path)
        self._state_file: int | None = None  # the open list: its inode is not given to another file
        self._identity: Identity | None = None
        self._failed: Identity | None = None  # a list that could not be used
        counts = {space: reader.count(space) for space in Space}
        self._pairs = PatchedPairs.of_version(reader, counts)
        self._segments: weakref.WeakValueDictionary[str, OpenSegment] = weakref.WeakValueDictionary()
        self._lock, self._process = threading.Lock(), os.getpid()

    @property
    def newest_patch(self) -> PatchFacts | None:
        """The newest patch that the last call saw."""
        return self._pairs.record.newest

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the newest values of these keys; None for a missing or removed key."""
        patched = self._current()
        if patched.segments:
            return patched.get_many(space, keys)
        return self.unpatched.get_many(space, keys)

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs with their newest values; ascending by key if there are no patches."""
        patched = self._current()
        return patched.pairs(space) if patched.segments else self.unpatched.pairs(space)

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, sampled over the version and its patches, ascending."""
        patched = self._current()
        return (
            patched.some_keys(space, count, seed) if patched.segments else self.unpatched.some_keys(space, count, seed)
        )

    def check(self) -> None:
        """Raise DamagedError if the version or a patch was cut or written since it was opened, or cannot be opened."""
        self.unpatched.check()
        self._failed = None
        self._current(raises=True)
        for segment in self._pairs.segments:
            segment.reader.check()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Release the environments; their last users close them."""
        self.unpatched.close()
        self._pairs = PatchedPairs.of_version(self.unpatched, self._pairs.counts)
        state_file, self._state_file = self._state_file, None
        if state_file is not None:
            os.close(state_file)

    def _current(self, *, raises: bool = False) -> PatchedPairs:
        """Return the patches in force. Costs a look at one file. A list that cannot be used leaves the last one."""
        try:
            facts = os.stat(self._state_path)
        except OSError as error:
            if self._identity is not None and raises:
                raise DamagedError(f"{self._state_path} cannot be read any more ({error}); put it back") from error
            return self._pairs
        identity = facts.st_dev, facts.st_ino
        if identity == self._identity or identity == self._failed:
            return self._pairs
        return self._refresh(raises=raises or self._identity is None)

    def _refresh(self, *, raises: bool) -> PatchedPairs:
        """Open the newest patches, unless another thread does: this one goes on with the last ones then."""
        if self._process != os.getpid():  # a thread of the parent may have held the lock
            self._lock, self._process = threading.Lock(), os.getpid()
        if not self._lock.acquire(blocking=raises):
            return self._pairs
        try:
            for tries_left in reversed(range(READ_TRIES)):
                with translate_read_errors(self._log.path):
                    opened = os.open(self._state_path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._pairs = self._open_patches(_read_list(opened, self._state_path))
                except (DamagedError, StoreError):
                    self._failed = _identify(opened)
                    os.close(opened)
                    if raises and not tries_left:
                        raise
                    continue
                old, self._state_file = self._state_file, opened
                self._identity, self._failed = _identify(opened), None
                if old is not None:
                    os.close(old)
                break
        finally:
            self._lock.release()
        return self._pairs

    def _open_patches(self, records: PatchRecords) -> PatchedPairs:
        record = records.versions.get(self._version)
        if record is None or record == self._pairs.record:  # none, or the version was retired: what is open stays
            return self._pairs
        segments = tuple(map(self._open_segment, record.segments))
        return PatchedPairs.build(self._pairs, record, segments)

    def _open_segment(self, segment: Segment) -> OpenSegment:
        known = self._segments.get(segment.name)
        if known is None:
            reader = self._log.open_segment(self._version, segment, contents=self._verify)
            known = OpenSegment(reader, self._log.read_hashes(self._version, segment))
            weakref.finalize(known, reader.close).atexit = False  # look-ups under way may finish
            self._segments[segment.name] = known
        return known


def _identify(opened: int) -> Identity:
    facts = os.fstat(opened)
    return facts.st_dev, facts.st_ino


def _read_list(opened: int, path: str) -> PatchRecords:
    with translate_read_errors(Path(path)):
        return PatchRecords.from_bytes(os.pread(opened, os.fstat(opened).st_size, 0), path)
