"""One version in Redis: the names of its keys, how it is loaded, and how it is read.

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

from nearcast.errors import DamagedError, GoneError, StoreError
from nearcast.stores.base import Pair, Space
from nearcast.stores.redis_connection import Connection

__all__ = ["FINISHED", "LEAVING", "LOADING", "MANY", "Load", "RedisReader", "RedisWriter", "opened", "pieces"]

PUT_BYTES = 4 << 20  # sent together while loading
READ_KEYS = 1000  # asked for together; the server does nothing else meanwhile, for about a millisecond
READ_BUCKETS = 16  # read whole together
MANY = 1000  # keys in one command that removes them, or commands sent together

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

# KEYS: facts. ARGV: what buckets begin with, then bucket and key in turn
FIND = """
local found = {}
for i = 2, #ARGV, 2 do
  found[#found + 1] = redis.call('HGET', ARGV[1] .. ARGV[i], ARGV[i + 1])
end
found[#found + 1] = redis.call('HGET', KEYS[1], 'load')
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
        """Where loads are listed."""
        return f"{self.prefix}:loads"

    @property
    def versions_key(self) -> str:
        """Where finished versions are listed."""
        return f"{self.prefix}:versions"

    @property
    def facts_key(self) -> str:
        """Where the facts of the version are."""
        return f"{self.prefix}:v:{self.version}:facts"

    def space(self, space: Space) -> str:
        """What the buckets of a space begin with."""
        return f"{self.prefix}:v:{self.version}:{self.name}:{space}:"

    def space_buckets(self, space: Space) -> list[str]:
        """The buckets of a space."""
        first = self.space(space)
        return [f"{first}{number}" for number in range(self.n_buckets)]

    def buckets(self) -> list[str]:
        """All buckets."""
        return [name for space in Space for name in self.space_buckets(space)]

    def record(self, state: str) -> str:
        """As it is listed."""
        return json.dumps({"version": self.version, "buckets": self.n_buckets, "state": state})

    @staticmethod
    def from_record(prefix: str, name: str, record: bytes) -> tuple[Load, str]:
        """As it was listed, and its state."""
        try:
            fields = json.loads(record)
            return Load(prefix, name, int(fields["version"]), int(fields["buckets"])), str(fields["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{prefix}:loads holds {record[:100]!r} for {name} ({error}); remove that field"
            ) from error


class RedisWriter:
    """A version under way."""

    def __init__(self, connection: Connection, load: Load) -> None:
        self._connection = connection
        self._load = load
        self._counts = dict.fromkeys(Space, 0)

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs, a few megabytes at a time. StoreError where the load was lost meanwhile."""
        first, n_buckets = self._load.space(space), self._load.n_buckets
        still_there = ("HEXISTS", self._load.loads_key, self._load.name)
        for some in pieces(pairs, PUT_BYTES, lambda pair: len(pair[0]) + len(pair[1])):
            grouped: dict[int, list[bytes]] = defaultdict(list)
            for key, value in some:
                grouped[zlib.crc32(key) % n_buckets] += (key, value)
            commands = [("HSET", f"{first}{bucket}", *flat) for bucket, flat in grouped.items()]
            if not self._connection.run_all([*commands, still_there])[-1]:
                raise self._lost()
            self._counts[space] += len(some)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """See that every pair is there, and then declare the version finished, with these facts about it."""
        load = self._load
        for space, count in self._counts.items():
            if _count(self._connection, load, space) != count:
                raise self._lost()
        fields: dict[str, str | int] = {"format": 1, "load": load.name, "buckets": load.n_buckets}
        fields |= {space.value: count for space, count in self._counts.items()}
        fields["facts"] = json.dumps(dict(facts))
        flat = [part for field in fields.items() for part in field]
        keys = [load.loads_key, load.facts_key, load.versions_key]
        arguments = [load.name, load.record(FINISHED), load.version, *flat]
        if not self._connection.script(FINISH)(keys, arguments):
            raise self._lost()

    def discard(self) -> None:
        """Remove what was written."""
        for names in pieces(self._load.buckets(), MANY):
            self._connection.run("UNLINK", *names)
        self._connection.run("HDEL", self._load.loads_key, self._load.name)

    def _lost(self) -> StoreError:
        return StoreError(
            f"{self._connection.settings.url} has lost what was loaded of version {self._load.version}: it was "
            f"started anew, or another publisher has the lock; publish again"
        )


class RedisReader:
    """A finished version."""

    def __init__(self, connection: Connection, load: Load, facts: Mapping[str, Any], counts: dict[Space, int]) -> None:
        self.facts = facts
        self._connection = connection
        self._load = load
        self._counts = counts
        self._find = connection.script(FIND)

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, None for a key that is not there. GoneError where the version is."""
        first, n_buckets = self._load.space(space), self._load.n_buckets
        if len(keys) == 1:  # a value is right wherever it comes from: only a miss may be a wrong one
            value = self._connection.run("HGET", f"{first}{zlib.crc32(keys[0]) % n_buckets}", keys[0])
            if value is None:
                self._read([])
            return [value]
        values: list[bytes | None] = []
        for some in pieces(keys, READ_KEYS):
            arguments: list[Any] = [first]
            for key in some:
                arguments += (zlib.crc32(key) % n_buckets, key)
            *found, name = self._find([self._load.facts_key], arguments)
            self._check(name)
            values += found
        return values

    def pairs(self, space: Space) -> Iterator[Pair]:
        """All pairs, bucket by bucket."""
        for names in pieces(self._load.space_buckets(space), READ_BUCKETS):
            for found in self._read([("HGETALL", name) for name in names]):
                yield from found.items()

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Up to `count` keys, ascending: from a few buckets, since a bucket is a random part of all keys."""
        rng, names = random.Random(seed), self._load.space_buckets(space)
        rng.shuffle(names)
        enough = 4 * count if count < self._counts[space] else self._counts[space]
        keys: list[bytes] = []
        for some in pieces(names, READ_BUCKETS):
            if len(keys) >= enough:
                break
            for found in self._read([("HKEYS", name) for name in some]):
                keys += found
        keys.sort()
        return keys if len(keys) <= count else sorted(rng.sample(keys, count))

    def count(self) -> None:
        """DamagedError where pairs are missing, as they are when the server has lost or thrown away some."""
        for space, written in self._counts.items():
            found = _count(self._connection, self._load, space)
            if found != written:
                raise DamagedError(
                    f"{self._load.space(space)}* in {self._connection.settings.url} holds {found:,} pairs where "
                    f"{written:,} were written; publish again with --repair"
                )

    def close(self) -> None:
        """Nothing is held: connections are the store's."""

    def _read(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers, if the version was still there after the last of them."""
        *answers, name = self._connection.run_all([*commands, ("HGET", self._load.facts_key, "load")])
        self._check(name)
        return answers

    def _check(self, name: bytes | None) -> None:
        if name != self._load.name.encode():
            url = self._connection.settings.url
            raise GoneError(f"version {self._load.version} was taken away from {url}; open the current one")


def opened(connection: Connection, prefix: str, version: int, name: str, fields: dict[bytes, bytes]) -> RedisReader:
    """The version that these fields of its facts tell of; DamagedError where they do not."""
    key = f"{prefix}:v:{version}:facts"
    try:
        if fields[b"format"] != b"1":
            raise ValueError(f"its format is {fields[b'format'].decode()}, and this version of nearcast reads 1")
        if fields[b"load"] != name.encode():
            raise ValueError("it is of another load")
        facts, n_buckets = json.loads(fields[b"facts"]), int(fields[b"buckets"])
        counts = {space: int(fields[space.encode()]) for space in Space}
    except (KeyError, ValueError) as error:
        text = f"{key} in {connection.settings.url} is not as it was written ({error}); publish again with --repair"
        raise DamagedError(text) from error
    return RedisReader(connection, Load(prefix, name, version, n_buckets), facts, counts)


def _count(connection: Connection, load: Load, space: Space) -> int:
    names = load.space_buckets(space)
    return sum(sum(connection.run_all([("HLEN", name) for name in some])) for some in pieces(names, MANY))


def pieces(things: Sequence[T], most: int, size: Callable[[T], int] = lambda _: 1) -> Iterator[Sequence[T]]:
    """Pieces of a sequence whose sizes add up to `most`, or of one thing."""
    start = total = 0
    for place, thing in enumerate(things):
        total += size(thing)
        if total > most and place > start:
            yield things[start:place]
            start, total = place, size(thing)
    if len(things) > start:
        yield things[start:]
