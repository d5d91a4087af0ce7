"""The overlay of a generator in Redis, each change of which is one step of the server.

    <prefix>:overlay:entries    hash: key of the entry -> the entry
    <prefix>:overlay:log        sorted set: key of the entry, by serial
    <prefix>:overlay:state      hash: epoch, serial of the newest entry

Knows nothing of what entries mean.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from nearcast.stores.base import Changes, OverlayEntry
from nearcast.stores.redis_connection import Connection

__all__ = ["RedisOverlay"]

# ARGV: the epoch of an overlay that is new, then key and entry in turn
WRITE = """
redis.call('HSETNX', KEYS[3], 'epoch', ARGV[1])
for i = 2, #ARGV, 2 do
  local serial = redis.call('HINCRBY', KEYS[3], 'serial', 1)
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], string.format('%.0f', serial), ARGV[i])
end
return redis.status_reply('OK')
"""

# ARGV: the epoch that the reader knows, and the serial
READ = """
local state = redis.call('HMGET', KEYS[3], 'epoch', 'serial')
if not state[1] then return {'0', '0'} end
local from = '-inf'
if state[1] == ARGV[1] then from = '(' .. ARGV[2] end
local found = {state[1], state[2]}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], from, '+inf')) do
  found[#found + 1] = redis.call('HGET', KEYS[1], key)
end
return found
"""

# ARGV: the last serial that may go, then keys
PURGE = """
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
for i = 2, #ARGV do
  local serial = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if serial and tonumber(serial) <= tonumber(ARGV[1]) then
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return redis.call('HINCRBY', KEYS[3], 'epoch', 1)
"""


class RedisOverlay:
    """The overlay under one prefix of keys."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._keys = [f"{prefix}:overlay:{name}" for name in ("entries", "log", "state")]
        self._write, self._read, self._purge = map(connection.script, (WRITE, READ, PURGE))

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each takes the place of an older one with the same key."""
        if entries:
            flat = [data for entry in entries for data in (entry.key(), entry.to_bytes())]
            self._write(self._keys, [1 + secrets.randbits(48), *flat])  # never the epoch that a lost overlay had

    def changes(self, *, epoch: int = -1, serial: int = 0) -> Changes:
        """What was written after `serial`; everything where the epoch is another. One round trip if nothing was."""
        known = self._connection.run("HMGET", self._keys[2], "epoch", "serial")
        if known == [str(epoch).encode(), str(serial).encode()]:
            return Changes(epoch, serial, ())
        if known[0] is None:
            return Changes(0, 0, ())
        now, newest, *entries = self._read(self._keys, [epoch, serial])
        return Changes(int(now), int(newest), tuple(map(OverlayEntry.from_bytes, entries)))

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Forget entries with these keys unless they were written after serial `upto`; starts a new epoch."""
        self._purge(self._keys, [upto, *keys])
