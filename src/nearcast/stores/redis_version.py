"""One version in Redis: names of its keys, writer and reader.

Knows nothing of pointers and locks; `redis` describes the layout.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from nearcast.errors import DamagedError, GoneError, StoreError
from nearcast.stores.base import Pair, Space
from nearcast.stores.redis_connection import RedisConnection
from nearcast.types import IntArray

__all__ = [
    "FINISHED",
    "LEAVING",
    "LOADING",
    "MANY",
    "PUT_BYTES",
    "READ_KEYS",
    "Load",
    "RedisReader",
    "RedisWriter",
    "open_version",
    "remove_tag",
    "split",
]

PUT_BYTES = 4 << 20  # sent at a time
READ_KEYS = 1000  # looked up at a time: the server is blocked for about a millisecond
READ_BUCKETS = 16  # read whole at a time
CHECKED_BUCKETS = 256  # checked at a time, several times a second
MANY = 1000  # keys of one removal, or commands sent at a time

LOADING, FINISHED, LEAVING = "loading", "finished", "leaving"

# KEYS: loads, facts, versions. ARGV: load, its record, version, then fields and values of the facts
FINISH = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[1])
return 1
"""

# KEYS: facts. ARGV: prefix of buckets, then pairs of bucket and key; a bucket is a number or a whole name.
# Returns a value per pair (for a missing key the number of pairs in its bucket), the load, the serial of the patches
FIND = """
local found = {}
for i = 2, #ARGV, 2 do
  local bucket = ARGV[i]
  if string.byte(bucket) < 58 then bucket = ARGV[1] .. bucket end
  local value = redis.call('HGET', bucket, ARGV[i + 1])
  if not value then value = redis.call('HLEN', bucket) end
  found[#found + 1] = value
end
found[#found + 1] = redis.call('HGET', KEYS[1], 'load')
found[#found + 1] = redis.call('HGET', KEYS[1], 'patch_serial')
return found
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """One attempt to write a version, and the names of its keys."""

    prefix: str
    name: str
    version: int
    n_buckets: int

    @property
    def loads_key(self) -> str:
        """Key of the list of loads."""
        return f"{self.prefix}:loads"

    @property
    def versions_key(self) -> str:
        """Key of the list of finished versions."""
        return f"{self.prefix}:versions"

    @property
    def facts_key(self) -> str:
        """Key of the facts of the version."""
        return f"{self.prefix}:v:{self.version}:facts"

    def prefix_of(self, space: Space) -> str:
        """Return the prefix of the names of the buckets of a space. Without a tag: a Cluster spreads them."""
        return f"{remove_tag(self.prefix)}:v:{self.version}:{self.name}:{space}:"

    def list_space_buckets(self, space: Space) -> list[str]:
        """Return the names of the buckets of a space."""
        first = self.prefix_of(space)
        return [f"{first}{number}" for number in range(self.n_buckets)]

    def list_buckets(self) -> list[str]:
        """Return the names of all buckets."""
        return [name for space in Space for name in self.list_space_buckets(space)]

    def to_record(self, state: str) -> str:
        """Encode it for the list of loads."""
        return json.dumps({"version": self.version, "buckets": self.n_buckets, "state": state})

    @staticmethod
    def from_record(prefix: str, name: str, record: bytes) -> tuple[Load, str]:
        """Decode a load and its state. Raises DamagedError."""
        try:
            fields = json.loads(record)
            return Load(prefix, name, int(fields["version"]), int(fields["buckets"])), str(fields["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{prefix}:loads holds {record[:100]!r} for {name} ({error}); remove that field"
            ) from error


class RedisWriter:
    """A version that is being written."""

    def __init__(self, connection: RedisConnection, load: Load) -> None:
        self._connection = connection
        self._load = load
        self._counts = dict.fromkeys(Space, 0)

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs, a few megabytes at a time. Raises StoreError if the load was lost meanwhile."""
        first, n_buckets = self._load.prefix_of(space), self._load.n_buckets
        load_exists = ("HEXISTS", self._load.loads_key, self._load.name)
        for batch in split(pairs, PUT_BYTES, lambda pair: len(pair[0]) + len(pair[1])):
            grouped: dict[int, list[bytes]] = defaultdict(list)
            for key, value in batch:
                grouped[zlib.crc32(key) % n_buckets] += (key, value)
            commands = [("HSET", f"{first}{bucket}", *flat) for bucket, flat in grouped.items()]
            if not self._connection.run_all([*commands, load_exists])[-1]:
                raise self._make_lost_error()
            self._counts[space] += len(batch)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Check that all pairs are stored, then mark the version as finished, with its facts."""
        load = self._load
        fields: dict[str, str | int | bytes] = {"format": 1, "load": load.name, "buckets": load.n_buckets}
        for space, count in self._counts.items():
            lengths = _count_pairs(self._connection, load, space)
            if sum(lengths) != count:
                raise self._make_lost_error()
            fields |= {space.value: count, _filled_field(space): _encode_filled(lengths)}
            fields[_lengths_field(space)] = np.array(lengths, "<u4").tobytes()
        fields["facts"] = json.dumps(dict(facts))
        self._connection.confirm(load.list_buckets())
        flat = [part for field in fields.items() for part in field]
        keys = [load.loads_key, load.facts_key, load.versions_key]
        arguments = [load.name, load.to_record(FINISHED), load.version, *flat]
        if not self._connection.script(FINISH)(keys, arguments):
            raise self._make_lost_error()

    def discard(self) -> None:
        """Remove the pairs."""
        for names in split(self._load.list_buckets(), MANY):
            self._connection.unlink(names)
        self._connection.run("HDEL", self._load.loads_key, self._load.name)

    def _make_lost_error(self) -> StoreError:
        return StoreError(
            f"{self._connection.settings.url} has lost the loaded data of version {self._load.version}: it was "
            f"started anew, or another publisher has the lock; publish again"
        )


class RedisReader:
    """A finished version, open. lengths: the pairs of each bucket; one with fewer pairs has lost some."""

    def __init__(
        self,
        connection: RedisConnection,
        load: Load,
        facts: Mapping[str, Any],
        counts: dict[Space, int],
        lengths: dict[Space, IntArray],
    ) -> None:
        self.facts = facts
        self._connection = connection
        self._load = load
        self._counts = counts
        self._lengths = lengths
        self._find = connection.script(FIND)
        self._next_check = 0
        self._lost_bucket: str | None = None

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key.

        Raises GoneError if the version was retired, DamagedError if a bucket or pairs of it were lost: these are never
        missing keys.
        """
        first, n_buckets = self._load.prefix_of(space), self._load.n_buckets
        if len(keys) == 1:  # a value is always right: only a miss must be checked
            number = zlib.crc32(keys[0]) % n_buckets
            value = self._connection.run("HGET", f"{first}{number}", keys[0])
            if value is None:
                (length,) = self._read([("HLEN", f"{first}{number}")])
                self._check_bucket(space, number, length)
            return [value]
        values: list[bytes | None] = []
        for batch in split(keys, READ_KEYS):
            values += self.find(space, list(map(self.bucket_of, batch)), batch)[0]
        return values

    def bucket_of(self, key: bytes) -> int:
        """Return the number of the bucket of a key."""
        return zlib.crc32(key) % self._load.n_buckets

    def find(self, space: Space, buckets: Sequence[int | str], keys: Sequence[bytes]) -> tuple[list[Any], bytes | None]:
        """Return the values of keys in these buckets, and the serial of the version's patches during the call.

        A bucket that is a name belongs to a patch; the value for a key that it lacks is the number of its pairs. Errors
        as in `get_many`.
        """
        if self._connection.is_cluster:
            found, name, serial = self._find_on_nodes(space, buckets, keys)
        else:
            arguments: list[Any] = [self._load.prefix_of(space)]
            for bucket, key in zip(buckets, keys, strict=True):
                arguments += (bucket, key)
            *found, name, serial = self._find([self._load.facts_key], arguments)
        self._check_load(name)
        for at, value in enumerate(found):
            bucket = buckets[at]
            if isinstance(value, int) and isinstance(bucket, int):
                self._check_bucket(space, bucket, value)
                found[at] = None
        return found, serial

    def _find_on_nodes(
        self, space: Space, buckets: Sequence[int | str], keys: Sequence[bytes]
    ) -> tuple[list[Any], bytes | None, bytes | None]:
        """Do what the script FIND does, with a request for every node at the same time.

        The serial may be read before or after the values. It was the serial at some moment of the call, and pairs never
        change, so they are right for the patches of that moment.
        """
        first = self._load.prefix_of(space)
        names = [bucket if isinstance(bucket, str) else f"{first}{bucket}" for bucket in buckets]
        commands: list[tuple[Any, ...]] = [("HGET", name, key) for name, key in zip(names, keys, strict=True)]
        *found, (name, serial) = self._connection.run_all(
            [*commands, ("HMGET", self._load.facts_key, "load", "patch_serial")]
        )
        missing = [at for at, value in enumerate(found) if value is None]
        lengths = self._connection.run_all([("HLEN", names[at]) for at in missing]) if missing else []
        for at, length in zip(missing, lengths, strict=True):
            found[at] = length
        return found, name, serial

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs, bucket by bucket."""
        for numbers in split(range(self._load.n_buckets), READ_BUCKETS):
            for found in self._read_buckets("HGETALL", space, numbers):
                yield from found.items()

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, ascending, from a few buckets: each bucket is a random sample of the keys."""
        numbers = list(range(self._load.n_buckets))
        rng = random.Random(seed)
        rng.shuffle(numbers)
        enough = 4 * count if count < self._counts[space] else self._counts[space]
        keys: list[bytes] = []
        for batch in split(numbers, READ_BUCKETS):
            if len(keys) >= enough:
                break
            for found in self._read_buckets("HKEYS", space, batch):
                keys += found
        keys.sort()
        return keys if len(keys) <= count else sorted(rng.sample(keys, count))

    def verify_count(self) -> None:
        """Count the pairs. Raises DamagedError if the server has lost some."""
        for space, written in self._counts.items():
            lengths = _count_pairs(self._connection, self._load, space)
            if sum(lengths) != written:
                raise DamagedError(
                    f"{self._load.prefix_of(space)}* in {self._connection.settings.url} holds {sum(lengths):,} pairs "
                    f"where {written:,} were written; publish again with --repair"
                )
            self._lengths[space] = np.array(lengths, np.int64)

    def count(self, space: Space) -> int:
        """Return the number of pairs of a space."""
        return self._counts[space]

    def check(self) -> None:
        """Check some buckets, others with every call. Raises DamagedError if one was lost."""
        total = len(Space) * self._load.n_buckets
        numbers = range(self._next_check, min(total, self._next_check + CHECKED_BUCKETS))
        self._next_check = numbers.stop % total
        again = [] if self._lost_bucket is None else [self._lost_bucket]
        self._check_there([*again, *self._list_filled(numbers)])

    def check_all(self) -> None:
        """Check all buckets. Raises DamagedError if one was lost."""
        for numbers in split(range(len(Space) * self._load.n_buckets), 8 * MANY):
            self._check_there(self._list_filled(numbers))

    def close(self) -> None:
        """Do nothing: the store owns the connections."""

    def _list_filled(self, numbers: Sequence[int]) -> list[str]:
        """Return the names of the buckets with pairs. Numbers continue from one space to the next."""
        names = []
        spaces, n_buckets = list(Space), self._load.n_buckets
        for number in numbers:
            space, number = spaces[number // n_buckets], number % n_buckets
            if self._lengths[space][number]:
                names.append(f"{self._load.prefix_of(space)}{number}")
        return names

    def _check_there(self, names: Sequence[str]) -> None:
        each = [("EXISTS", name) for name in names]
        together = [("EXISTS", *part) for part in split(names, MANY)]
        if sum(self._read(each if self._connection.is_cluster else together)) < len(names):
            for name, there in zip(names, self._read(each), strict=True):
                if not there:
                    self._raise_lost(name)
        self._lost_bucket = None

    def _read_buckets(self, command: str, space: Space, numbers: Sequence[int]) -> list[Any]:
        """Return the contents of these buckets. Raises GoneError, or DamagedError if one was lost."""
        first = self._load.prefix_of(space)
        answers = self._read([(command, f"{first}{number}") for number in numbers])
        for number, found in zip(numbers, answers, strict=True):
            self._check_bucket(space, number, len(found))
        return answers

    def _check_bucket(self, space: Space, number: int, length: int) -> None:
        """Raise DamagedError if a bucket has fewer pairs than were written, GoneError if the version was retired."""
        if length != self._lengths[space][number]:
            self._raise_lost(f"{self._load.prefix_of(space)}{number}", length)

    def _raise_lost(self, bucket: str, length: int = 0) -> None:
        load = self._load
        (current,) = self._read([("HGET", load.versions_key, load.version)])
        if current != load.name.encode():  # it is retired, in its time of grace
            self._check_load(None)
        self._lost_bucket = bucket if length == 0 else None
        url = self._connection.settings.url
        if length:
            raise DamagedError(
                f"{bucket} in {url} has {length:,} pairs and should have more; with them a part of version "
                f"{load.version} was lost: a replica took over that did not have them, or they were deleted; publish "
                "again with --repair"
            )
        raise DamagedError(
            f"{bucket} is not in {url} any more, and with it a part of version {load.version}: the server threw it "
            "away, or it was deleted; publish again with --repair"
        )

    def _read(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the answers. Raises GoneError if the version was retired before the last of them."""
        *answers, name = self._connection.run_all([*commands, ("HGET", self._load.facts_key, "load")])
        self._check_load(name)
        return answers

    def _check_load(self, name: bytes | None) -> None:
        if name != self._load.name.encode():
            url = self._connection.settings.url
            raise GoneError(f"version {self._load.version} was taken away from {url}; open the current one")


def open_version(
    connection: RedisConnection, prefix: str, version: int, name: str, fields: dict[bytes, bytes], *, verify: bool
) -> RedisReader:
    """Open a version by the fields of its facts. Raises DamagedError if they are invalid or a bucket was lost.

    verify: count the pairs.
    """
    key = f"{prefix}:v:{version}:facts"
    try:
        if not fields:
            raise ValueError("it was lost")
        if fields[b"format"] != b"1":
            raise ValueError(f"its format is {fields[b'format'].decode()}, and this version of nearcast reads 1")
        if fields[b"load"] != name.encode():
            raise ValueError("it is of another load")
        facts, n_buckets = json.loads(fields[b"facts"]), int(fields[b"buckets"])
        counts = {space: int(fields[space.encode()]) for space in Space}
        stored = {space: fields.get(_lengths_field(space).encode()) for space in Space}
        lengths = {space: np.frombuffer(field, "<u4") for space, field in stored.items() if field is not None}
        if any(len(numbers) != n_buckets for numbers in lengths.values()):
            raise ValueError("it does not say how many pairs its buckets hold")
    except (KeyError, ValueError) as error:
        text = f"{key} in {connection.settings.url} is damaged ({error}); publish again with --repair"
        raise DamagedError(text) from error
    reader = RedisReader(connection, Load(prefix, name, version, n_buckets), facts, counts, lengths)
    if verify or len(lengths) < len(Space):  # an older nearcast did not store how many pairs the buckets hold
        reader.verify_count()
    else:
        reader.check_all()
    return reader


def _count_pairs(connection: RedisConnection, load: Load, space: Space) -> list[int]:
    """Return the number of pairs of each bucket of a space."""
    lengths: list[int] = []
    for names in split(load.list_space_buckets(space), MANY):
        lengths += connection.run_all([("HLEN", name) for name in names])
    return lengths


def _encode_filled(lengths: Sequence[int]) -> bytes:
    """Return a bit per bucket, lowest first: whether it has pairs."""
    bits = bytearray(-(-len(lengths) // 8))
    for number, length in enumerate(lengths):
        if length:
            bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def _filled_field(space: Space) -> str:
    return f"{space}_filled"  # for readers of nearcast 0.1


def _lengths_field(space: Space) -> str:
    return f"{space}_lengths"


def remove_tag(prefix: str) -> str:
    """Return a prefix without the braces that keep keys in one slot of a Cluster."""
    return prefix.replace("{", "").replace("}", "")


def split(things: Sequence[T], most: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[Sequence[T]]:
    """Yield pieces of a sequence whose sizes add up to at most `most`, or of one element."""
    start = total = 0
    for number, thing in enumerate(things):
        total += size(thing)
        if total > most and number > start:
            yield things[start:number]
            start, total = number, size(thing)
    if len(things) > start:
        yield things[start:]
