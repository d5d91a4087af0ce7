"""One version in DynamoDB: the names of its items, writer and reader.

    p = <generator>#<version>#<load>#lists#<bucket>      the pairs whose crc32(key) modulo buckets is this; also items
        s = k<key>: the value of a key      s = d: sorted 64-bit hashes of the bucket's keys, uint64
    p = <generator>#<version>#<load>#facts, s = k        the facts, JSON

The hashes tell a missing key from a lost one. Knows nothing of pointers and locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError, GoneError, StoreError
from nearcast.stores.base import Pair, Space
from nearcast.stores.dynamodb_table import ConditionFailedError, DynamoTable, ItemKey, read_whole

__all__ = ["DynamoLoad", "DynamoReader", "DynamoWriter", "open_dynamodb_version"]

KEY, LAST_KEY, HASHES = b"k", b"l", b"d"
HASH_BYTES = 8
READ_BUCKETS = 32  # read whole at a time
KEPT_HASHES = 64  # buckets whose hashes a reader keeps in memory
MOST_PARTS_AT_ONCE = 100  # values that are put together from parts


@dataclass(frozen=True, slots=True)
class DynamoLoad:
    """One attempt to write a version, and the names of its partitions."""

    generator: str
    version: int
    name: str
    n_buckets: int

    def partition(self, space: Space, bucket: int) -> str:
        """Return the partition of a bucket."""
        return f"{self._prefix}#{space}#{bucket}"

    @property
    def _prefix(self) -> str:
        return f"{self.generator}#{self.version}#{self.name}"

    @property
    def facts_key(self) -> ItemKey:
        """The item of the facts."""
        return f"{self._prefix}#facts", KEY

    def list_partitions(self) -> list[str]:
        """Return all partitions."""
        buckets = [self.partition(space, bucket) for space in Space for bucket in range(self.n_buckets)]
        return [self.facts_key[0], *buckets]

    @property
    def loading_key(self) -> ItemKey:
        """The item that exists while the version is written."""
        return self.generator, b"load:" + self.name.encode()

    @property
    def version_key(self) -> ItemKey:
        """The item that makes the version a finished one."""
        return self.generator, b"version:%012d" % self.version

    def key_of(self, space: Space, key: bytes) -> ItemKey:
        """Return the item of a key."""
        return self.partition(space, zlib.crc32(key) % self.n_buckets), KEY + key

    def to_record(self, **more: Any) -> bytes:
        """Encode it."""
        return json.dumps({"version": self.version, "load": self.name, "buckets": self.n_buckets, **more}).encode()

    @staticmethod
    def from_record(generator: str, record: bytes, where: str) -> tuple[DynamoLoad, dict[str, Any]]:
        """Decode it and its other fields. Raises DamagedError."""
        try:
            fields = json.loads(record)
            load = DynamoLoad(generator, int(fields["version"]), str(fields["load"]), int(fields["buckets"]))
            return load, fields
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{where} is damaged ({error!r}); publish again with --repair") from error


class DynamoWriter:
    """A version that is being written."""

    def __init__(self, table: DynamoTable, load: DynamoLoad) -> None:
        self._table, self._load = table, load
        self._hashes: dict[tuple[Space, int], bytearray] = defaultdict(bytearray)

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs. Raises StoreError if the load was lost meanwhile."""
        self._table.put_values((self._load.key_of(space, key), value) for key, value in pairs)
        for key, _ in pairs:
            self._hashes[space, zlib.crc32(key) % self._load.n_buckets] += _hash(key)
        if self._table.get(self._load.loading_key) is None:
            raise self._make_lost_error()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the hashes of the keys and the facts, then mark the version as finished."""
        load, counts = self._load, dict.fromkeys(Space, 0)
        filled: dict[Space, list[int]] = {space: [] for space in Space}
        values: list[tuple[ItemKey, bytes]] = [(load.facts_key, json.dumps(dict(facts)).encode())]
        for (space, bucket), data in sorted(self._hashes.items()):
            hashes = np.sort(np.frombuffer(bytes(data), "<u8"))
            counts[space] += len(hashes)
            filled[space].append(bucket)
            values.append(((load.partition(space, bucket), HASHES), hashes.tobytes()))
        self._table.put_values(values)
        record = load.to_record(
            counts=counts, filled={space: _encode_numbers(filled[space], load.n_buckets) for space in Space}
        )
        partition, name = load.loading_key
        steps = (
            {"Delete": {"Key": _key(partition, name), "ConditionExpression": "attribute_exists(p)"}},
            {"Put": {"Item": {**_key(*load.version_key), "v": {"B": record}}}},
        )
        try:
            self._table.transact(*steps)
        except ConditionFailedError:
            raise self._make_lost_error() from None

    def discard(self) -> None:
        """Remove the pairs."""
        self._table.delete_partitions(self._load.list_partitions())
        self._table.call("delete_item", Key=_key(*self._load.loading_key))

    def _make_lost_error(self) -> StoreError:
        return StoreError(
            f"{self._table.settings.url} has lost the loaded data of version {self._load.version}: another publisher "
            "has the lock; publish again"
        )


class DynamoReader:
    """A finished version, open. filled: the buckets with pairs."""

    def __init__(
        self,
        table: DynamoTable,
        load: DynamoLoad,
        facts: Mapping[str, Any],
        counts: Mapping[Space, int],
        filled: Mapping[Space, frozenset[int]],
    ) -> None:
        self.facts = facts
        self._table, self._load, self._counts, self._filled = table, load, counts, filled
        self._hashes: OrderedDict[tuple[Space, int], npt.NDArray[np.uint64]] = OrderedDict()

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key.

        Raises GoneError if the version was retired, DamagedError if pairs were lost: these are never missing keys.
        """
        names = [self._load.key_of(space, key) for key in keys]
        found = self._table.get_many(names)
        missing = {name: key for name, key in zip(names, keys, strict=True) if name not in found}
        if missing:
            found.update(self._find_again(space, missing))
        values = dict(zip(found, self._read_values(list(found.values())), strict=True))
        return [values.get(name) for name in names]

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs, bucket by bucket."""
        for buckets in _pieces(sorted(self._filled[space]), READ_BUCKETS):
            for bucket, items in zip(buckets, self._read_buckets(space, buckets), strict=True):
                if len(items) != len(self._read_hashes(space, bucket)):
                    raise self._make_lost_error(f"{len(items):,} pairs are in {self._load.partition(space, bucket)}")
                for some in _pieces(items, MOST_PARTS_AT_ONCE):
                    for item, value in zip(some, self._read_values(some), strict=True):
                        yield item["s"]["B"][len(KEY) :], value

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, ascending, from a few buckets: each bucket is a random sample of the keys."""
        buckets, rng = sorted(self._filled[space]), random.Random(seed)
        rng.shuffle(buckets)
        enough = 4 * count if count < self._counts[space] else self._counts[space]
        keys: list[bytes] = []
        for some in _pieces(buckets, READ_BUCKETS):
            if len(keys) >= enough:
                break
            found = self._read_buckets(space, some, names_only=True)
            keys += [item["s"]["B"][len(KEY) :] for items in found for item in items]
        if len(keys) < min(count, self._counts[space]):
            raise self._make_lost_error(f"{len(keys):,} keys are left")
        keys.sort()
        return keys if len(keys) <= count else sorted(rng.sample(keys, count))

    def check(self) -> None:
        """Do nothing: the service stores every item in three places, and each check would cost money."""

    def close(self) -> None:
        """Do nothing: the store owns the connections."""

    def _read_buckets(self, space: Space, buckets: Sequence[int], *, names_only: bool = False) -> list[list[Any]]:
        def read(bucket: int) -> list[Any]:
            partition = self._load.partition(space, bucket)
            return list(self._table.query(partition, first=KEY, last=LAST_KEY, names_only=names_only))

        return self._table.map(read, buckets)

    def _read_values(self, items: Sequence[Any]) -> list[bytes]:
        values = []
        for value in read_whole(self._table, items):
            if value is None:
                raise self._make_lost_error("a part of a large value is missing")
            values.append(value)
        return values

    def _find_again(self, space: Space, missing: Mapping[ItemKey, bytes]) -> dict[ItemKey, Any]:
        """Return the items of keys that the version has, and that a read of an earlier state did not find."""
        there = [name for name, key in missing.items() if self._has(space, key)]
        found = self._table.get_many(there, consistent=True) if there else {}
        if len(found) < len(there):
            lost = next(name for name in there if name not in found)
            raise self._make_lost_error(f"{missing[lost][:100]!r} is not in {lost[0]}")
        return found

    def _has(self, space: Space, key: bytes) -> bool:
        """Return whether the version was written with a key."""
        bucket = zlib.crc32(key) % self._load.n_buckets
        if bucket not in self._filled[space]:
            return False
        hashes, wanted = self._read_hashes(space, bucket), np.frombuffer(_hash(key), "<u8")[0]
        at = int(hashes.searchsorted(wanted))
        return at < len(hashes) and bool(hashes[at] == wanted)

    def _read_hashes(self, space: Space, bucket: int) -> npt.NDArray[np.uint64]:
        known = self._hashes.get((space, bucket))
        if known is None:
            data = self._table.get_value((self._load.partition(space, bucket), HASHES))
            if data is None or len(data) % HASH_BYTES:
                raise self._make_lost_error(f"the hashes of {self._load.partition(space, bucket)} are missing")
            known = self._hashes[space, bucket] = np.frombuffer(data or b"", "<u8")
            while len(self._hashes) > KEPT_HASHES:
                with contextlib.suppress(KeyError):  # another thread removed it
                    self._hashes.popitem(last=False)
        return known

    def _make_lost_error(self, what: str) -> GoneError | DamagedError:
        """Return a GoneError if the version was retired, else a DamagedError."""
        url, load = self._table.settings.url, self._load
        record = self._table.get_value(load.version_key)
        if record is None or DynamoLoad.from_record(load.generator, record, url)[0].name != load.name:
            return GoneError(f"version {load.version} was taken away from {url}; open the current one")
        return DamagedError(
            f"version {load.version} of {load.generator} in {url} has lost pairs: {what}; publish again with --repair"
        )


def open_dynamodb_version(table: DynamoTable, generator: str, record: bytes) -> DynamoReader:
    """Open a version by its record. Raises DamagedError if a part of it cannot be read."""
    where = f"the record of a version of {generator} in {table.settings.url}"
    load, fields = DynamoLoad.from_record(generator, record, where)
    data = table.get_value(load.facts_key)
    try:
        facts = json.loads(data or b"")
        counts = {space: int(fields["counts"][space]) for space in Space}
        filled = {space: frozenset(_decode_numbers(fields["filled"][space])) for space in Space}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{where} or its facts are damaged ({error!r}); publish again with --repair") from error
    return DynamoReader(table, load, facts, counts, filled)


def _hash(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=HASH_BYTES).digest()


def _key(partition: str, name: bytes) -> dict[str, Any]:
    return {"p": {"B": partition.encode()}, "s": {"B": name}}


def _encode_numbers(numbers: Sequence[int], below: int) -> str:
    """Return a set of numbers as hexadecimal digits, a bit for each number."""
    bits = np.zeros(below, np.uint8)
    bits[list(numbers)] = 1
    return np.packbits(bits, bitorder="little").tobytes().hex()


def _decode_numbers(text: str) -> list[int]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), bitorder="little")
    return [int(number) for number in np.flatnonzero(bits)]


def _pieces(things: Sequence[Any], size: int) -> Iterator[Any]:
    starts = [*range(0, len(things), size), len(things)]
    for start, end in pairwise(starts):
        yield things[start:end]
