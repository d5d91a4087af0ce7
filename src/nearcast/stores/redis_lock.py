"""The publishers' lock of a generator in Redis: a key that expires unless its holder renews it. Knows no publishing."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from nearcast.errors import BusyError
from nearcast.stores.redis_connection import RedisConnection
from nearcast.stores.renewed_lock import (
    LASTS_TIMEOUTS,
    describe_holder,
    make_held_error,
    make_lost_error,
    renew_lock,
)

__all__ = ["RedisLock", "hold_lock"]

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
        return make_lost_error(self.what, not now, _read_holder(now))


@contextlib.contextmanager
def hold_lock(connection: RedisConnection, key: str, what: str) -> Iterator[RedisLock]:
    """Hold the lock. Raises BusyError at once if another process holds it."""
    value = json.dumps({"holder": describe_holder(), "token": secrets.token_hex(16)}).encode()
    lasts = max(1, round(1000 * LASTS_TIMEOUTS * connection.settings.timeout))
    if not connection.run("SET", key, value, "NX", "PX", lasts):
        now = connection.run("GET", key)
        if now != value:  # it is ours if the first answer was lost on the way
            raise make_held_error(what, _read_holder(now))
    renew, release = connection.script(RENEW), connection.script(RELEASE)
    with renew_lock(
        lambda: bool(renew([key], [value, lasts])), lambda: release([key], [value]), connection.settings.timeout
    ):
        yield RedisLock(connection, key, value, what)


def _read_holder(value: bytes | None) -> str | None:
    try:
        return str(json.loads(value or b"")["holder"])
    except (ValueError, KeyError, TypeError):
        return None
