"""The publishers' lock of a generator in Redis: a key that only its holder renews, and that a dead holder loses.

The server's clock decides when it is lost, never ours. Knows nothing of what is done under it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nearcast.errors import BusyError, StoreError
from nearcast.stores.redis_connection import Connection

__all__ = ["RedisHeld", "holding"]

LASTS_TIMEOUTS = 4  # so long that one or two answers which do not come in time lose nothing

RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True)
class RedisHeld:
    """A lock that we took. Whether it is still ours is the server's to say."""

    connection: Connection
    key: str
    value: bytes
    what: str

    def check(self) -> None:
        """BusyError where the lock was lost."""
        now = self.connection.run("GET", self.key)
        if now != self.value:
            raise self.lost(now)

    def lost(self, now: bytes | None = None) -> BusyError:
        """The error that tells of the loss."""
        whose = f"is held by {_holder(now)} now" if now else "ran out or was let go"
        return BusyError(f"the lock of {self.what} {whose}; start again")


@contextlib.contextmanager
def holding(connection: Connection, key: str, what: str) -> Iterator[RedisHeld]:
    """Hold the lock; BusyError at once where another process holds it."""
    value = _description()
    lasts = max(1, round(1000 * LASTS_TIMEOUTS * connection.settings.timeout))
    if not connection.run("SET", key, value, "NX", "PX", lasts):
        now = connection.run("GET", key)
        if now != value:  # it is ours where the first answer was lost on the way
            raise BusyError(f"{what} is held by {_holder(now)}; wait for it to end, or stop it")
    held, stop = RedisHeld(connection, key, value, what), threading.Event()
    renewal = threading.Thread(target=_renew, args=(held, lasts, stop), name="nearcast-lock", daemon=True)
    renewal.start()
    try:
        yield held
    finally:
        stop.set()
        renewal.join()
        with contextlib.suppress(StoreError):  # a lock that cannot be let go now runs out by itself
            connection.script(RELEASE)([key], [value])


def _renew(held: RedisHeld, lasts: int, stop: threading.Event) -> None:
    renew = held.connection.script(RENEW)
    while not stop.wait(held.connection.settings.timeout):
        with contextlib.suppress(StoreError):  # the next try may succeed; otherwise `check` tells who relies on it
            if not renew([held.key], [held.value, lasts]):
                return


def _description() -> bytes:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    return json.dumps({"holder": holder, "token": secrets.token_hex(16)}).encode()


def _holder(value: bytes | None) -> str:
    try:
        return str(json.loads(value or b"")["holder"])
    except (ValueError, KeyError, TypeError):
        return "another process"
