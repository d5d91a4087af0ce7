"""The publishers' lock of a generator in Redis: a key that expires unless its holder renews it.

Only the server's clock decides when it expires. Knows nothing of publishing.
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
from nearcast.stores.redis_connection import RedisConnection

__all__ = ["RedisLock", "hold_lock"]

LASTS_TIMEOUTS = 4  # so that one or two late answers do not lose the lock

RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True)
class RedisLock:
    """A lock that this process took. The server knows whether it still holds it."""

    connection: RedisConnection
    key: str
    value: bytes
    what: str

    def check(self) -> None:
        """Raise BusyError if the lock was lost."""
        now = self.connection.run("GET", self.key)
        if now != self.value:
            raise self.make_error(now)

    def make_error(self, now: bytes | None = None) -> BusyError:
        """Return the error for a lost lock. now: the current value of the key."""
        whose = f"is held by {_read_holder(now)} now" if now else "expired or was released"
        return BusyError(f"the lock of {self.what} {whose}; start again")


@contextlib.contextmanager
def hold_lock(connection: RedisConnection, key: str, what: str) -> Iterator[RedisLock]:
    """Hold the lock. Raises BusyError at once if another process holds it."""
    value = _describe_process()
    lasts = max(1, round(1000 * LASTS_TIMEOUTS * connection.settings.timeout))
    if not connection.run("SET", key, value, "NX", "PX", lasts):
        now = connection.run("GET", key)
        if now != value:  # it is ours if the first answer was lost on the way
            raise BusyError(f"{what} is held by {_read_holder(now)}; wait for it to end, or stop it")
    held, stop = RedisLock(connection, key, value, what), threading.Event()
    renewal = threading.Thread(target=_renew, args=(held, lasts, stop), name="nearcast-lock", daemon=True)
    renewal.start()
    try:
        yield held
    finally:
        stop.set()
        renewal.join()
        with contextlib.suppress(StoreError):  # a lock that cannot be released now expires by itself
            connection.script(RELEASE)([key], [value])


def _renew(held: RedisLock, lasts: int, stop: threading.Event) -> None:
    renew = held.connection.script(RENEW)
    while not stop.wait(held.connection.settings.timeout):
        with contextlib.suppress(StoreError):  # the next attempt may succeed; otherwise `check` raises
            if not renew([held.key], [held.value, lasts]):
                return


def _describe_process() -> bytes:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    return json.dumps({"holder": holder, "token": secrets.token_hex(16)}).encode()


def _read_holder(value: bytes | None) -> str:
    try:
        return str(json.loads(value or b"")["holder"])
    except (ValueError, KeyError, TypeError):
        return "another process"
