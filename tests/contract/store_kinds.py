"""Kinds of stores that the suites of the contract run on, and helpers to write and open versions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.stores import open_store
from nearcast.stores.base import Space, Store
from servers import HERE

REDIS_KINDS = ["redis", "redis+cluster", "redis+sentinel"]
KINDS = ["lmdb", *REDIS_KINDS, "dynamodb", "sqlite"]
SLOW_KINDS = ["dynamodb"]  # its server for tests takes a millisecond per item
WORKER = Path(__file__).with_name("store_worker.py")
PATIENCE = 180.0  # seconds; nothing here takes long, but machines do stall
SHOP = "shop"


@dataclass(frozen=True)
class Place:
    """Where a store of some kind is, empty at first."""

    url: str
    more: Path  # for other processes: what PYTHONPATH must hold
    damage_pointer: Callable[[str, bytes], None]
    connect: Callable[[], contextlib.AbstractContextManager[Any]] | None = None  # a plain client of a Redis
    ports: tuple[int, ...] = ()  # of all primaries of a Redis

    @property
    def prefix(self) -> str:
        """The prefix of the keys that scripts in Redis use together."""
        return f"nearcast:{{{SHOP}}}" if "+cluster" in self.url else f"nearcast:{SHOP}"

    def with_timeout(self, seconds: float) -> str:
        """The URL with a timeout, where a lock lasts four of these."""
        if self.url.startswith("dynamodb:"):  # its server for tests answers one request at a time, of many
            seconds = max(seconds, 4.0)
        return self.url if self.url.startswith(("lmdb:", "sqlite:")) else f"{self.url}&timeout={seconds}"

    def open(self) -> Store:
        return open_store(self.url)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Another process that uses the store."""
        command = [sys.executable, str(WORKER), *map(str, words)]
        env = os.environ | {"PYTHONPATH": str(self.more)}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def load(store, version=1, lists=(), items=(), facts=None, generator=SHOP):
    """Write and finish a version."""
    with store.lock(generator):
        writer = store.write(generator, version)
        writer.put(Space.LISTS, list(lists))
        writer.put(Space.ITEMS, list(items))
        writer.finish(facts or {})


@contextlib.contextmanager
def opened(store, version=1, generator=SHOP, verify=True):
    reader = store.open(generator, version, verify=verify)
    try:
        yield reader
    finally:
        reader.close()


def numbered(n, start=0):
    """n pairs in ascending order of their keys."""
    return [(f"key{i:06d}".encode(), f"value {i}".encode()) for i in range(start, start + n)]


@contextlib.contextmanager
def limited_memory(ports, room):
    """Every Redis on these ports takes so many bytes more."""
    import redis

    clients = [redis.Redis(HERE, port) for port in ports]
    try:
        for client in clients:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + room)
        yield
    finally:
        for client in clients:
            client.config_set("maxmemory", 0)
            client.close()


def find_keys(place, pattern):
    """The keys of a Redis that match, on all primaries."""
    import redis

    found = []
    for port in place.ports:
        with contextlib.closing(redis.Redis(HERE, port)) as client:
            found += client.keys(pattern)
    return found
