"""The store in Redis or Valkey: the pairs of a version in hashes, so that retiring it is a few thousand expiries.

    nearcast:generators                     set: generators that have a pointer
    nearcast:<generator>:current            the pointer
    nearcast:<generator>:lock               publishers' lock; expires unless it is renewed
    nearcast:<generator>:loads              hash: load -> its version, buckets and state, while its keys do not expire
    nearcast:<generator>:versions           hash: finished version -> load
    nearcast:<generator>:v:7:facts          hash: load, buckets, lists and items (how many), facts (JSON)
    nearcast:<generator>:patches, ...       newer values of some keys; see `redis_patches`
    nearcast:<generator>:v:7:<load>:lists:123   hash: the pairs whose crc32(key) modulo buckets is 123; also items

Every attempt to write a version is a load with its own name: a writer that lost its lock cannot write into the next.
Readers read the load in the facts together with the data or after it; the facts of a retired version expire before its
data. In a Cluster the names of keys that scripts and transactions use together have the tag of their generator,
nearcast:{<generator>}:current, so that they are on one node; pairs have no tag and are spread over all nodes.
Connections are in `redis_connection`.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager

from nearcast.errors import NotFoundError, StoreError
from nearcast.stores.base import OverlayLog, PatchLog, Pointer, PublishLock
from nearcast.stores.names import validate_generator
from nearcast.stores.redis_connection import RedisConnection
from nearcast.stores.redis_lock import RedisLock, hold_lock
from nearcast.stores.redis_overlay import RedisOverlay
from nearcast.stores.redis_patches import PatchedRedisReader, RedisPatches
from nearcast.stores.redis_url import parse_url
from nearcast.stores.redis_version import (
    FINISHED,
    LEAVING,
    LOADING,
    MANY,
    Load,
    RedisWriter,
    open_version,
    split,
)

__all__ = ["RedisStore", "open_redis"]

GENERATORS = "nearcast:generators"
LEAD_SECONDS = 60.0  # the facts of a retired version expire so long before its data

# KEYS: lock, pointer. ARGV: expected value of the lock, pointer
POINT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""


def open_redis(url: str) -> RedisStore:
    """Open the store at a URL. Raises StoreError if it cannot be reached, SpecError if it is of another kind."""
    connection = RedisConnection(parse_url(url))
    connection.check_server()
    return RedisStore(connection)


class RedisStore:
    """Versions of all generators in one database of a server, or in a Cluster."""

    in_process = False

    def __init__(self, connection: RedisConnection) -> None:
        self.url = connection.settings.url
        self._connection = connection

    def generators(self) -> list[str]:
        """Return the generators that have a pointer, sorted."""
        names = sorted(name.decode() for name in self._connection.run("SMEMBERS", GENERATORS))
        found = self._connection.run_all([("EXISTS", f"{self._prefix(name)}:current") for name in names])
        return [name for name, has_pointer in zip(names, found, strict=True) if has_pointer]

    def lock(self, generator: str) -> AbstractContextManager[PublishLock]:
        """Hold the publishers' lock of a generator. Raises BusyError at once if another process holds it."""
        return hold_lock(self._connection, f"{self._prefix(generator)}:lock", f"{generator} in {self.url}")

    def write(self, generator: str, version: int) -> RedisWriter:
        """Start to write a version; remove unfinished versions."""
        self._refuse_eviction()
        self._remove(generator, version, leftovers=True)
        self._patches(generator).retire(version)
        load = Load(self._prefix(generator), secrets.token_hex(4), version, self._connection.settings.buckets)
        self._connection.run("HSET", load.loads_key, load.name, load.to_record(LOADING))
        return RedisWriter(self._connection, load)

    def versions(self, generator: str) -> list[int]:
        """Return the finished versions, ascending."""
        return sorted(map(int, self._connection.run("HKEYS", f"{self._prefix(generator)}:versions")))

    def open(self, generator: str, version: int, *, verify: bool) -> PatchedRedisReader:
        """Open a finished version, and check that all its buckets exist; `verify` counts its pairs.

        Raises NotFoundError, or DamagedError if a part of it was lost.
        """
        prefix = self._prefix(generator)
        commands = [("HGET", f"{prefix}:versions", version), ("HGETALL", f"{prefix}:v:{version}:facts")]
        name, facts = self._connection.read_at_once(commands)
        if name is None:
            have = ", ".join(map(str, self.versions(generator))) or "none"
            raise NotFoundError(f"{self.url} has no version {version} of {generator}; it has {have}")
        reader = open_version(self._connection, prefix, version, name.decode(), facts, verify=verify)
        patched = PatchedRedisReader(self._patches(generator), version, reader)
        if verify:
            patched.check_all()
        return patched

    def retire(self, generator: str, version: int) -> None:
        """Remove a version, finished or not. Open readers can read it during the time of grace."""
        self._remove(generator, version, leftovers=False)
        self._patches(generator).retire(version)

    def pointer(self, generator: str) -> Pointer | None:
        """Return the pointer; None before the first publish."""
        key = f"{self._prefix(generator)}:current"
        data = self._connection.run("GET", key)
        return None if data is None else Pointer.from_bytes(data, f"{key} in {self.url}")

    def point(self, generator: str, pointer: Pointer, lock: PublishLock) -> None:
        """Move the pointer in one step. Raises BusyError, without a move, if the lock was lost."""
        assert isinstance(lock, RedisLock), "a lock of this store"
        self._connection.run("SADD", GENERATORS, generator)  # a name without a pointer is not listed
        keys = [lock.key, f"{self._prefix(generator)}:current"]
        if not self._connection.script(POINT)(keys, [lock.value, pointer.to_bytes()]):
            raise lock.make_error()
        self._connection.confirm(keys[:1])

    def overlay(self, generator: str) -> OverlayLog:
        """Return the overlay log of a generator; an empty one if nothing was written."""
        return RedisOverlay(self._connection, self._prefix(generator))

    def patches(self, generator: str) -> PatchLog:
        """Return the patches of a generator; none if nothing was written."""
        return self._patches(generator)

    def _patches(self, generator: str) -> RedisPatches:
        return RedisPatches(self._connection, self._prefix(generator))

    def now(self) -> float:
        """Return seconds since 1970 by the server's clock."""
        seconds, micros = self._connection.run("TIME")
        return int(seconds) + int(micros) / 1e6

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _remove(self, generator: str, version: int, *, leftovers: bool) -> None:
        """Retire a version; with `leftovers` also the unfinished loads of killed publishers, since we hold the lock."""
        prefix = self._prefix(generator)
        name = self._connection.run("HGET", f"{prefix}:versions", version)
        loads = self._read_loads(prefix)
        if name is not None and name.decode() not in {load.name for load, _ in loads}:  # its record was lost
            known = self._connection.run("HGET", f"{prefix}:v:{version}:facts", "buckets")
            lost = Load(prefix, name.decode(), version, int(known or self._connection.settings.buckets))
            loads.append((lost, FINISHED))
        for load, state in loads:
            if state == LOADING and (leftovers or load.version == version):
                for names in split(load.list_buckets(), MANY):
                    self._connection.unlink(names)
                self._connection.run("HDEL", load.loads_key, load.name)
            if state == FINISHED and load.version == version:
                self._hide(load)
            if state == LEAVING or (state == FINISHED and load.version == version):
                self._expire(load)

    def _refuse_eviction(self) -> None:
        """Raise StoreError if the server may evict any key: evicted keys would look like missing ones."""
        for memory in self._connection.read_memory_facts():
            policy = str(memory.get("maxmemory_policy"))
            if int(memory.get("maxmemory", 0)) and policy.startswith("allkeys"):
                raise StoreError(
                    f"{self.url} throws keys away when its memory is full (maxmemory-policy {policy}), those of "
                    "published versions too; set it to noeviction or to one of the volatile policies"
                )

    def _read_loads(self, prefix: str) -> list[tuple[Load, str]]:
        found = self._connection.run("HGETALL", f"{prefix}:loads")
        return [Load.from_record(prefix, name.decode(), record) for name, record in found.items()]

    def _hide(self, load: Load) -> None:
        """Remove the version from the list of versions, and set the expiry of its facts."""
        grace = self._connection.settings.grace
        self._connection.run_all(
            [
                ("HDEL", load.versions_key, load.version),
                ("HSET", load.loads_key, load.name, load.to_record(LEAVING)),
                ("PEXPIRE", load.facts_key, round(1000 * (grace - min(LEAD_SECONDS, grace / 4)))),
            ],
            at_once=True,
        )

    def _expire(self, load: Load) -> None:
        """Set the expiry of a version's data. Repeated from the start after an interruption."""
        grace = round(1000 * self._connection.settings.grace)
        for names in split(load.list_buckets(), MANY):
            self._connection.run_all([("PEXPIRE", name, grace) for name in names])
        self._connection.run("HDEL", load.loads_key, load.name)

    def _prefix(self, generator: str) -> str:
        """Return the prefix of the names of a generator's keys; in a Cluster they all have one slot."""
        name = validate_generator(generator)
        return f"nearcast:{{{name}}}" if self._connection.is_cluster else f"nearcast:{name}"
