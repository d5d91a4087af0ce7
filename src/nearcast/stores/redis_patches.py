"""Patches beside the versions of a Redis store: immutable hashes per patch, and a list of those in force.

    nearcast:<generator>:patches                    the list; see `patch_record`
    nearcast:<generator>:patch_segments             hash: segment, in force or being written -> version and buckets
    nearcast:<generator>:v:7:facts                  field patch_serial: serial of the last change of version 7's patches
    nearcast:<generator>:v:7:p:<segment>:lists:3    hash: the pairs whose crc32(key) modulo buckets is 3; also items
    nearcast:<generator>:v:7:p:<segment>:crc32      hash: the hashes of the keys of each space

A script compares the lock, replaces the list and sets `patch_serial` in one step. Readers read `patch_serial` together
with the data, and read the list again if it changed. Every attempt to write a segment has a name of its own.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import weakref
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nearcast.errors import DamagedError, GoneError, StoreError
from nearcast.stores.base import Pair, PatchFacts, PublishLock, Space
from nearcast.stores.patch_index import decode_hashes, encode_hashes, hash_keys
from nearcast.stores.patch_log import PairParts, SegmentLog, read_parts
from nearcast.stores.patch_record import PatchRecord, PatchRecords, Segment
from nearcast.stores.patched_pairs import OpenSegment, PatchedPairs
from nearcast.stores.redis_connection import RedisConnection
from nearcast.stores.redis_lock import RedisLock
from nearcast.stores.redis_version import MANY, PUT_BYTES, READ_KEYS, RedisReader, remove_tag, split
from nearcast.types import IntArray

__all__ = ["PatchedRedisReader", "RedisPatches"]

BUCKET_PAIRS = 500  # pairs per hash of a segment: single commands stay small
SERIAL = "patch_serial"
GRACE_SECONDS = 60.0  # for which readers can read a segment that is no longer in force
READ_TRIES = 5  # the patches may change while they are read

# KEYS: lock, patches, versions, facts. ARGV: value of the lock, list, version, serial
REPLACE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[3], ARGV[3]) == 0 then return 1 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[4], 'patch_serial', ARGV[4])
return 2
"""


class PatchesChangedError(Exception):
    """The patches changed while a call was reading: it begins again."""


@dataclass(frozen=True, slots=True)
class SegmentKeys:
    """The names of the keys of a segment."""

    prefix: str
    version: int
    name: str
    n_buckets: int

    def bucket(self, space: Space, number: int) -> str:
        """Return the name of a hash of pairs."""
        return f"{remove_tag(self.prefix)}:v:{self.version}:p:{self.name}:{space}:{number}"

    @property
    def hashes(self) -> str:
        """The name of the hash that has the hashes of the keys."""
        return f"{remove_tag(self.prefix)}:v:{self.version}:p:{self.name}:crc32"

    def all(self) -> list[str]:
        """Return the names of all keys."""
        return [self.hashes, *(self.bucket(space, number) for space in Space for number in range(self.n_buckets))]


@dataclass(frozen=True)
class RedisPatches(SegmentLog):
    """The patches of a generator."""

    connection: RedisConnection
    prefix: str

    @property
    def key(self) -> str:
        """The key of the list of patches in force."""
        return f"{self.prefix}:patches"

    @property
    def registry(self) -> str:
        """The key of the list of all segments."""
        return f"{self.prefix}:patch_segments"

    def read(self) -> PatchRecords:
        """Read the list. Raises DamagedError if it was lost or changed."""
        commands = [("GET", self.key), ("HLEN", self.registry), ("HKEYS", f"{self.prefix}:versions")]
        data, segments, versions = self.connection.read_at_once(commands)
        where = f"{self.key} in {self.connection.settings.url}"
        if data is None:
            if segments:
                raise DamagedError(f"{where} was lost, and patches are beside it; publish again with --repair")
            return PatchRecords()
        return PatchRecords.from_bytes(data, where).only(list(map(int, versions)))

    def prepare(self, records: PatchRecords, version: int, lock: PublishLock) -> None:
        """Create the list if there is none: a missing list beside a segment is a lost one."""
        if not records.serial or not self.connection.run("HEXISTS", f"{self.prefix}:versions", version):
            self.replace(records, version, lock)

    def write_segment(self, version: int, name: str, parts: PairParts) -> Segment:
        """Write a segment that is not in force yet; later pairs overwrite earlier ones."""
        known = list(parts)
        return self._write(version, name, known, sum(len(pairs) for part in known for pairs in part.values()))

    def _write(self, version: int, name: str, parts: PairParts, n_pairs: int) -> Segment:
        keys = SegmentKeys(self.prefix, version, f"{name}-{secrets.token_hex(4)}", 1 + n_pairs // BUCKET_PAIRS)
        record = json.dumps({"version": version, "buckets": keys.n_buckets})
        self.connection.run("HSET", self.registry, keys.name, record)
        try:
            size, distinct = 0, dict[Space, set[bytes]]({space: set() for space in Space})
            for part in parts:
                for space, pairs in part.items():
                    self._put(keys, space, pairs)
                    distinct[space].update(key for key, _ in pairs)
                    size += sum(len(key) + len(value) for key, value in pairs)
            fields: list[str | bytes] = []
            for space in Space:
                lengths = _count_in_buckets(distinct[space], keys.n_buckets).astype("<u4").tobytes()
                fields += [space.value, encode_hashes(hash_keys(list(distinct[space]))), f"{space}_lengths", lengths]
            self.connection.run("HSET", keys.hashes, *fields)
            self.connection.confirm(keys.all())
        except BaseException:
            with contextlib.suppress(StoreError):
                self._remove(keys, 0)
            raise
        counts = {space.value: len(distinct[space]) for space in Space}
        return Segment(keys.name, size, {**counts, "buckets": keys.n_buckets})

    def merge_segments(self, version: int, name: str, old: Sequence[Segment]) -> Segment:
        """Write the pairs of several segments, oldest first, into one."""
        n_pairs = sum(part.counts[space] for part in old for space in Space)
        return self._write(version, name, (batch for part in old for batch in self._read_whole(version, part)), n_pairs)

    def _read_whole(self, version: int, segment: Segment) -> Iterator[Mapping[Space, Sequence[Pair]]]:
        """Yield the pairs of a segment. Raises DamagedError if some were lost: older values would take their place."""
        keys, counts = self.segment_keys(version, segment), dict.fromkeys(Space, 0)
        for batch in read_parts(RedisSegment(self.connection, keys)):
            for space, pairs in batch.items():
                counts[space] += len(pairs)
            yield batch
        if any(counts[space] != segment.counts[space] for space in Space):
            raise DamagedError(
                f"{keys.hashes} in {self.connection.settings.url} has lost pairs, and with them a part of a patch; "
                "roll the patch back, or publish again with --repair"
            )

    def replace(self, records: PatchRecords, version: int, lock: PublishLock) -> None:
        """Replace the list in one step, then remove the segments that it does not name. Raises BusyError."""
        assert isinstance(lock, RedisLock), "a lock of this store"
        keys = [lock.key, self.key, f"{self.prefix}:versions", f"{self.prefix}:v:{version}:facts"]
        done = self.connection.script(REPLACE)(keys, [lock.value, records.to_bytes(), version, records.serial])
        if done == 0:
            raise lock.make_error()
        if done == 1:
            url = self.connection.settings.url
            raise StoreError(f"{url} has no version {version} of {self.prefix}; update the current one")
        self.connection.confirm(keys[:1])
        self._sweep(records, GRACE_SECONDS)

    def retire(self, version: int) -> None:
        """Remove the patches of a version. Open readers can read them during the time of grace."""
        data = self.connection.run("GET", self.key)
        if data is not None:
            records = PatchRecords.from_bytes(data, self.key)
            if version in records.versions:
                records = records.put(version, None)
                self.connection.run("SET", self.key, records.to_bytes())
            self._sweep(records, self.connection.settings.grace)

    def repair(self) -> str | None:
        """Replace a damaged list by an empty one. Return a description of the loss; None if it is whole."""
        try:
            self.read()
            return None
        except DamagedError as error:
            last = max((int(name.rpartition("-")[0].rpartition("-")[2]) for name in self._read_registry()), default=0)
            records = PatchRecords(last, last)
            self.connection.run("SET", self.key, records.to_bytes())
            self._sweep(records, 0)
            return f"{error}. All patches up to number {last} are lost; a new snapshot contains their items"

    def segment_keys(self, version: int, segment: Segment) -> SegmentKeys:
        """Return the names of the keys of a segment in force."""
        return SegmentKeys(self.prefix, version, segment.name, segment.counts["buckets"])

    def _put(self, keys: SegmentKeys, space: Space, pairs: Sequence[Pair]) -> None:
        for batch in split(pairs, PUT_BYTES, lambda pair: len(pair[0]) + len(pair[1])):
            grouped: dict[int, list[bytes]] = defaultdict(list)
            for key, value in batch:
                grouped[zlib.crc32(key) % keys.n_buckets] += (key, value)
            commands = [("HSET", keys.bucket(space, number), *flat) for number, flat in grouped.items()]
            if not self.connection.run_all([*commands, ("HEXISTS", self.registry, keys.name)])[-1]:
                raise StoreError(
                    f"{self.connection.settings.url} has lost the patch that was being written: it was started anew, "
                    "or another publisher has the lock; update again"
                )

    def _read_registry(self) -> dict[str, SegmentKeys]:
        found = {}
        for name, record in self.connection.run("HGETALL", self.registry).items():
            fields = json.loads(record)
            text = name.decode()
            found[text] = SegmentKeys(self.prefix, int(fields["version"]), text, int(fields["buckets"]))
        return found

    def _sweep(self, records: PatchRecords, grace: float) -> None:
        """Remove the segments that are not in force, also those of killed writers. Call it under the lock."""
        used = {segment.name for record in records.versions.values() for segment in record.stored_segments}
        for name, keys in self._read_registry().items():
            if name not in used:
                self._remove(keys, grace)

    def _remove(self, keys: SegmentKeys, grace: float) -> None:
        for names in split(keys.all(), MANY):
            if grace:
                self.connection.run_all([("PEXPIRE", name, round(1000 * grace)) for name in names])
            else:
                self.connection.unlink(names)
        self.connection.run("HDEL", self.registry, keys.name)


@dataclass(frozen=True)
class RedisSegment:
    """The pairs of a segment, read whole."""

    connection: RedisConnection
    keys: SegmentKeys
    lengths: Mapping[Space, IntArray] | None = None  # pairs of each bucket; None if an older nearcast wrote it

    def has_lost(self, space: Space, number: int, length: int) -> bool:
        """Return whether a bucket with so many pairs has lost some."""
        return length == 0 if self.lengths is None else length != self.lengths[space][number]

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key."""
        raise NotImplementedError("`_View` reads all segments together")

    def get_from(
        self, readers: Mapping[int, object], numbers: Sequence[int], space: Space, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        """Raise NotImplementedError, as `get_many`."""
        raise NotImplementedError

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs, bucket by bucket."""
        for number in range(self.keys.n_buckets):
            yield from self.connection.run("HGETALL", self.keys.bucket(space, number)).items()

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:  # noqa: ARG002  # of `SegmentReader`
        """Return keys of the first buckets until there are `count`: each bucket is a random sample of the keys."""
        keys: list[bytes] = []
        for number in range(self.keys.n_buckets):
            keys += self.connection.run("HKEYS", self.keys.bucket(space, number))
            if len(keys) >= count:
                break
        return keys


@dataclass(frozen=True)
class _View:
    """A version under one state of its patches. held: read on after the patches have changed."""

    version: RedisReader
    serial: bytes | None
    held: bool = False

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys in the version itself."""
        return self.read((), space, keys, [0] * len(keys))

    def get_from(
        self, readers: Mapping[int, object], numbers: Sequence[int], space: Space, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        """Raise NotImplementedError: `read` takes several segments at once."""
        raise NotImplementedError

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs of the version itself."""
        return self.version.pairs(space)

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys of the version itself."""
        return self.version.some_keys(space, count, seed)

    def read(
        self, segments: Sequence[OpenSegment], space: Space, keys: Sequence[bytes], ordinals: Sequence[int]
    ) -> list[bytes | None]:
        """Return the value that the segment of this ordinal has for each key. Raises PatchesChangedError."""
        values: list[bytes | None] = []
        for batch in split(list(zip(keys, ordinals, strict=True)), READ_KEYS):
            buckets: list[int | str] = []
            for key, ordinal in batch:
                if ordinal == 0:
                    buckets.append(self.version.bucket_of(key))
                else:
                    names: SegmentKeys = segments[ordinal - 1].reader.keys  # type: ignore[attr-defined]
                    buckets.append(names.bucket(space, zlib.crc32(key) % names.n_buckets))
            found, serial = self.version.find(space, buckets, [key for key, _ in batch])
            if serial != self.serial and not self.held:
                raise PatchesChangedError
            for at, value in enumerate(found):
                if isinstance(value, int):
                    key, ordinal = batch[at]
                    segment: RedisSegment = segments[ordinal - 1].reader  # type: ignore[assignment]
                    if segment.has_lost(space, zlib.crc32(key) % segment.keys.n_buckets, value):
                        self._raise_lost(str(buckets[at]), changed=serial != self.serial)
                    found[at] = None
            values += found
        return values

    def _raise_lost(self, bucket: str, *, changed: bool) -> None:
        if changed:
            raise StoreError(f"{bucket} was folded while it was read; read again")
        raise DamagedError(
            f"{bucket} has lost pairs, and with them a part of a patch: the server threw them away, or they were "
            "deleted; roll the patch back, or publish again with --repair"
        )


class PatchedRedisReader:
    """A version and its patches, open. Every call reads the serial of the patches together with the data."""

    def __init__(self, log: RedisPatches, version: int, reader: RedisReader) -> None:
        self.facts = reader.facts
        self.unpatched = reader  # the version as it was published
        self._log = log
        self._version = version
        self._counts = {space: reader.count(space) for space in Space}
        self._segments: weakref.WeakValueDictionary[str, OpenSegment] = weakref.WeakValueDictionary()
        self._pairs = self._make_pairs(None)
        self._next_check = 0

    @property
    def newest_patch(self) -> PatchFacts | None:
        """The newest patch that the last call saw."""
        return self._pairs.record.newest

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the newest values of these keys; None for a missing or removed key. Errors as in `RedisReader`.

        Where patches change faster than all keys can be read, the values are those of the state that was read last.
        """
        for _ in range(READ_TRIES):
            try:
                return self._pairs.get_many(space, keys)
            except PatchesChangedError:
                self._refresh()
        return _hold(self._pairs).get_many(space, keys)

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs with their newest values, in the state of the patches when it begins."""
        return _hold(self._read_newest()).pairs(space)

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, sampled over the version and its patches, ascending."""
        pairs = self._read_newest()
        if not pairs.segments:
            return self.unpatched.some_keys(space, count, seed)
        return _hold(pairs).some_keys(space, count, seed)

    def check(self) -> None:
        """Check some buckets, and those of one patch, others with every call. Raises DamagedError if one was lost."""
        self.unpatched.check()
        segments = self._read_newest().segments
        if segments:
            self._next_check = (self._next_check + 1) % len(segments)
            self._check_segment(segments[self._next_check])

    def check_all(self) -> None:
        """Check all buckets of the patches. Raises DamagedError if one was lost."""
        for segment in self._read_newest().segments:
            self._check_segment(segment)

    def close(self) -> None:
        """Do nothing: the store owns the connections."""

    def _check_segment(self, segment: OpenSegment) -> None:
        names: SegmentKeys = segment.reader.keys  # type: ignore[attr-defined]
        for space in Space:
            filled = np.unique(segment.hashes[space] % names.n_buckets).tolist()
            buckets = [names.bucket(space, number) for number in filled]
            if not buckets or self._log.connection.count_existing(buckets) == len(buckets):
                continue
            if segment in self._read_newest().segments:  # it was not folded meanwhile
                raise DamagedError(
                    f"buckets of {names.hashes} are not in {self._log.connection.settings.url} any more; roll the "
                    "patch back, or publish again with --repair"
                )

    def _read_newest(self) -> PatchedPairs:
        """Return the patches in force now."""
        serial = self._log.connection.run("HGET", f"{self._log.prefix}:v:{self._version}:facts", SERIAL)
        if serial != self._pairs.version.serial:  # type: ignore[attr-defined]
            self._refresh()
        return self._pairs

    def _make_pairs(self, serial: bytes | None) -> PatchedPairs:
        view = _View(self.unpatched, serial)
        return PatchedPairs.of_version(view, self._counts, view.read)

    def _refresh(self) -> None:
        """Read the list, and the hashes of new segments. Raises GoneError if the version was retired."""
        log, number = self._log, self._version
        for tries_left in reversed(range(READ_TRIES)):
            commands = [
                ("HGET", f"{log.prefix}:v:{number}:facts", SERIAL),
                ("GET", log.key),
                ("HEXISTS", f"{log.prefix}:versions", number),
            ]
            serial, data, there = log.connection.read_at_once(commands)
            where = f"{log.key} in {log.connection.settings.url}"
            if not there:
                raise GoneError(f"version {number} was taken away from {where}; open the current one")
            if serial is not None and data is None:
                raise DamagedError(f"{where} was lost; publish again with --repair")
            record = PatchRecord() if data is None else PatchRecords.from_bytes(data, where).record(number)
            try:
                segments = tuple(self._open_segment(segment) for segment in record.segments)
            except DamagedError:
                if not tries_left:
                    raise
                continue
            fresh = self._make_pairs(serial)
            old = replace(self._pairs, version=fresh.version, read=fresh.read)
            self._pairs = PatchedPairs.build(old, record, segments)
            return

    def _open_segment(self, segment: Segment) -> OpenSegment:
        known = self._segments.get(segment.name)
        if known is None:
            keys = self._log.segment_keys(self._version, segment)
            stored = self._log.connection.run("HGETALL", keys.hashes)
            try:
                hashes = {space: decode_hashes(stored[space.value.encode()]) for space in Space}
                counts = {space: stored.get(f"{space}_lengths".encode()) for space in Space}
                lengths = {space: np.frombuffer(data, "<u4") for space, data in counts.items() if data is not None}
            except (KeyError, ValueError) as error:
                text = f"{keys.hashes} was lost ({error!r}); roll the patch back, or publish again with --repair"
                raise DamagedError(text) from error
            reader = RedisSegment(self._log.connection, keys, lengths if len(lengths) == len(Space) else None)
            known = self._segments[segment.name] = OpenSegment(reader, hashes)
        return known


def _hold(pairs: PatchedPairs) -> PatchedPairs:
    """Return the same state to be read on after it has changed: its segments stay for `GRACE_SECONDS`."""
    view = replace(pairs.version, held=True)  # type: ignore[type-var]
    return replace(pairs, version=view, read=view.read)  # type: ignore[attr-defined]


def _count_in_buckets(keys: Collection[bytes], n_buckets: int) -> IntArray:
    """Return the number of keys in each bucket."""
    return np.bincount(np.fromiter((zlib.crc32(key) % n_buckets for key in keys), np.int64), minlength=n_buckets)
