"""The overlay of a generator in Redis, each change of which is one step of the server.

    <prefix>:overlay:entries    hash: key of the entry -> the entry
    <prefix>:overlay:log        sorted set: key of the entry, by serial
    <prefix>:overlay:state      hash: epoch, serial of the newest entry
    <prefix>:overlay:tokens     sorted set: token of an exchange, by until when it is remembered

Knows nothing of what entries mean.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from nearcast.stores.base import TOKEN_SECONDS, Changes, Exchanged, OverlayEntry
from nearcast.stores.redis_connection import Connection

__all__ = ["RedisOverlay"]

RESENT_SECONDS = 60.0  # in which a command whose answer was lost may be sent again

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

# ARGV: the epoch of an overlay that is new, key, entry, what the key is to hold ('' for nothing), token, the time, and
# until when the token is remembered
EXCHANGE = """
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', ARGV[6])
if redis.call('ZSCORE', KEYS[4], ARGV[5]) then return 'repeated' end
if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[4] then return 'changed' end
redis.call('HSETNX', KEYS[3], 'epoch', ARGV[1])
local serial = redis.call('HINCRBY', KEYS[3], 'serial', 1)
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[2], string.format('%.0f', serial), ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[7], ARGV[5])
return 'written'
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
        self._keys = [f"{prefix}:overlay:{name}" for name in ("entries", "log", "state", "tokens")]
        scripts = (WRITE, READ, PURGE, EXCHANGE)
        self._write, self._read, self._purge, self._exchange = map(connection.script, scripts)

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

    def get(self, key: bytes) -> bytes | None:
        """The last entry with this key, as it was written; None where there is none."""
        held: bytes | None = self._connection.run("HGET", self._keys[0], key)
        return held

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> Exchanged:
        """Add an entry only where its key still holds `held`; with a token once only."""
        # A client sends a command again when its connection breaks: one of its own keeps that from counting twice.
        name, remembered = (token, TOKEN_SECONDS) if token else (secrets.token_hex(16), RESENT_SECONDS)
        epoch, times = 1 + secrets.randbits(48), (repr(now), repr(now + remembered))
        told = self._exchange(self._keys, [epoch, entry.key(), entry.to_bytes(), held or b"", name, *times])
        outcome = Exchanged(told.decode())
        return Exchanged.WRITTEN if outcome is Exchanged.REPEATED and not token else outcome

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Forget entries with these keys unless they were written after serial `upto`; starts a new epoch."""
        self._purge(self._keys, [upto, *keys])
