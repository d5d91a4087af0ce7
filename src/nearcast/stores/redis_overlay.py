"""The overlay of a generator in Redis. Each change is one script on the server.

    <prefix>:overlay:entries    hash: key of the entry -> the entry
    <prefix>:overlay:log        sorted set: key of the entry, by serial
    <prefix>:overlay:state      hash: epoch, serial of the newest entry; count of entries, and at which epoch:serial
    <prefix>:overlay:tokens     sorted set: token of an exchange, by its expiry
    <prefix>:overlay:removals   hash: a second copy of the entries that remove or restore items
    nearcast:overlays           hash: generator -> serial of the newest entry of its overlay

Any of these keys can be lost: a server may evict keys, or restart without data or with older data. So every read
compares the keys: a lost overlay is an error and never an empty one. `repair` rebuilds it from its remains. Knows
nothing of the meaning of entries.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from nearcast.errors import DamagedError
from nearcast.stores.base import TOKEN_SECONDS, ExchangeResult, OverlayChanges, OverlayEntry
from nearcast.stores.redis_connection import RedisConnection
from nearcast.stores.redis_version import remove_tag

__all__ = ["RedisOverlay"]

OVERLAYS = "nearcast:overlays"
KINDS = ("entries", "log", "state", "tokens", "removals")
RESENT_SECONDS = 60.0  # a command whose answer was lost may be sent again for so long

# KEYS: as above, in this order. ARGV[1]: generator. `lost` returns a description of the loss; nil if there is none.
COMMON = """
local entries, log, state, tokens, removals, overlays = unpack(KEYS)
local function lost()
  local at = redis.call('HMGET', state, 'epoch', 'serial', 'count', 'counted')
  local newest = redis.call('HGET', overlays, ARGV[1])
  local held, logged = redis.call('HLEN', entries), redis.call('EXISTS', log)
  if not at[1] or not at[2] then
    local copied = redis.call('EXISTS', removals)
    if newest or held > 0 or logged == 1 or copied == 1 then return 'its state (' .. state .. ')' end
    return nil
  end
  if newest and tonumber(newest) > tonumber(at[2]) then
    return 'entries ' .. at[2] .. ' to ' .. newest .. ', as an older copy of its data has'
  end
  if held > 0 and logged == 0 then return 'its log (' .. log .. ')' end
  if held == 0 and logged == 1 then return 'its entries (' .. entries .. ')' end
  if at[4] == at[1] .. ':' .. at[2] and tonumber(at[3]) ~= held then
    return tonumber(at[3]) - held .. ' of ' .. at[3] .. ' entries (' .. entries .. ')'
  end
  return nil
end
local function put(epoch, key, entry, removes)
  redis.call('HSETNX', state, 'epoch', epoch)
  local serial = redis.call('HINCRBY', state, 'serial', 1)
  redis.call('HSET', entries, key, entry)
  redis.call('ZADD', log, string.format('%.0f', serial), key)
  if removes == '1' then redis.call('HSET', removals, key, entry) end
end
local function settle()
  local at = redis.call('HMGET', state, 'epoch', 'serial')
  redis.call('HSET', state, 'count', redis.call('HLEN', entries), 'counted', at[1] .. ':' .. at[2])
  redis.call('HSET', overlays, ARGV[1], at[2])
end
"""

# ARGV: generator, epoch of a new overlay, then triples: key, entry, '1' if the entry removes the item
WRITE = (
    COMMON
    + """
local gone = lost()
if gone then return gone end
for i = 3, #ARGV, 3 do put(ARGV[2], ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
settle()
return false
"""
)

# ARGV: generator, epoch of a new overlay, key, entry, whether it removes ('1'), expected entry of the key ('' for
# none), token, time, expiry of the token
EXCHANGE = (
    COMMON
    + """
local gone = lost()
if gone then return gone end
redis.call('ZREMRANGEBYSCORE', tokens, '-inf', ARGV[8])
if redis.call('ZSCORE', tokens, ARGV[7]) then return {'repeated'} end
if (redis.call('HGET', entries, ARGV[3]) or '') ~= ARGV[6] then return {'changed'} end
put(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
settle()
redis.call('ZADD', tokens, ARGV[9], ARGV[7])
return {'written'}
"""
)

# ARGV: generator, epoch and serial of the reader
READ = (
    COMMON
    + """
local gone = lost()
if gone then return gone end
local at = redis.call('HMGET', state, 'epoch', 'serial')
if not at[1] then return {'0', '0'} end
local found, from = {at[1], at[2]}, '-inf'
if at[1] == ARGV[2] then
  if at[2] == ARGV[3] then return found end
  from = '(' .. ARGV[3]
end
for _, key in ipairs(redis.call('ZRANGEBYSCORE', log, from, '+inf')) do
  local entry = redis.call('HGET', entries, key)
  if not entry then return 'the entry ' .. key end
  found[#found + 1] = entry
end
return found
"""
)

# ARGV: generator, last serial to delete, then keys
PURGE = (
    COMMON
    + """
local gone = lost()
if gone then return gone end
if redis.call('EXISTS', state) == 0 then return false end
for i = 3, #ARGV do
  local serial = redis.call('ZSCORE', log, ARGV[i])
  if serial and tonumber(serial) <= tonumber(ARGV[2]) then
    redis.call('ZREM', log, ARGV[i])
    redis.call('HDEL', entries, ARGV[i])
    redis.call('HDEL', removals, ARGV[i])
  end
end
redis.call('HINCRBY', state, 'epoch', 1)
settle()
return false
"""
)

# ARGV: generator, the new epoch, a serial above those of all readers. Returns nil if the overlay is whole, else the
# loss in words, the number of entries left, and the number of known entries that are lost.
REPAIR = (
    COMMON
    + """
local gone = lost()
local known = redis.call('ZRANGEBYSCORE', log, '-inf', '+inf')
if not gone then
  for _, key in ipairs(known) do
    if redis.call('HEXISTS', entries, key) == 0 then gone = 'the entry ' .. key end
  end
  if not gone then return false end
end
local order, listed, missing = {}, {}, 0
local function take(key)
  if listed[key] then return end
  listed[key] = true
  local entry = redis.call('HGET', entries, key) or redis.call('HGET', removals, key)
  if entry then order[#order + 1] = {key, entry} else missing = missing + 1 end
end
for _, key in ipairs(known) do take(key) end
for _, key in ipairs(redis.call('HKEYS', entries)) do take(key) end
for _, key in ipairs(redis.call('HKEYS', removals)) do take(key) end
local serial = tonumber(ARGV[3])
for _, old in ipairs({redis.call('HGET', state, 'serial'), redis.call('HGET', overlays, ARGV[1])}) do
  if old and tonumber(old) > serial then serial = tonumber(old) end
end
redis.call('DEL', entries, log, state)
redis.call('HSET', state, 'epoch', ARGV[2], 'serial', string.format('%.0f', serial))
for _, pair in ipairs(order) do put(ARGV[2], pair[1], pair[2], '0') end
settle()
return {gone, #order, missing}
"""
)


class RedisOverlay:
    """The overlay of one generator, under a prefix of keys."""

    def __init__(self, connection: RedisConnection, prefix: str) -> None:
        self._connection = connection
        self._name = remove_tag(prefix).partition(":")[2]
        registry = f"{prefix}:overlay:newest" if connection.is_cluster else OVERLAYS  # a script needs keys of one slot
        self._keys = [f"{prefix}:overlay:{name}" for name in KINDS] + [registry]
        scripts = map(connection.script, (WRITE, EXCHANGE, READ, PURGE, REPAIR))
        self._write, self._exchange, self._read, self._purge, self._repair = scripts

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each takes the place of an older one with the same key."""
        if entries:
            flat: list[bytes | int] = []
            for entry in entries:
                flat += [entry.key(), entry.to_bytes(), int(entry.field is None)]
            self._check(self._write(self._keys, [self._name, _draw_epoch(), *flat]))
            self._connection.confirm(self._keys[:1])

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """Return the entries after `serial`; all if the epoch differs. Raises DamagedError if entries are lost."""
        found = self._read(self._keys, [self._name, epoch, serial])
        self._check(found)
        now, newest, *entries = found
        return OverlayChanges(int(now), int(newest), tuple(map(OverlayEntry.from_bytes, entries)))

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes of the last entry with this key; None if there is none."""
        held: bytes | None = self._connection.run("HGET", self._keys[0], key)
        return held

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry if its key still holds `held`; with a token only once."""
        # A client sends a command again when its connection breaks: a random token keeps it from counting twice.
        name, remembered = (token, TOKEN_SECONDS) if token else (secrets.token_hex(16), RESENT_SECONDS)
        new = [entry.key(), entry.to_bytes(), int(entry.field is None)]
        condition = [held or b"", name, repr(now), repr(now + remembered)]
        answer = self._exchange(self._keys, [self._name, _draw_epoch(), *new, *condition])
        self._check(answer)
        self._connection.confirm(self._keys[:1])
        outcome = ExchangeResult(answer[0].decode())
        return ExchangeResult.WRITTEN if outcome is ExchangeResult.REPEATED and not token else outcome

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Delete entries with these keys unless they were written after serial `upto`, and start a new epoch."""
        self._check(self._purge(self._keys, [self._name, upto, *keys]))

    def repair(self) -> str | None:
        """Rebuild the overlay from its remains. Return a description of the loss; None if it is whole."""
        found = self._repair(self._keys, [self._name, _draw_epoch(), time.time_ns() // 1_000_000])
        if found is None:
            return None
        lost, left, missing = found
        return (
            f"{self._connection.settings.url} had lost {_decode_text(lost)}. Written anew with the {left:,} entries "
            f"that are left; {missing:,} that were known are lost. Look through them with "
            f"`nearcast overlay NAME list`: newer values of columns may be lost"
        )

    def _check(self, answer: object) -> None:
        if isinstance(answer, bytes):
            raise DamagedError(
                f"the overlay of {self._name} in {self._connection.settings.url} has lost {_decode_text(answer)}: the "
                f"server threw keys away, or has older data than it had; heal it with publish --repair"
            )


def _draw_epoch() -> int:
    return 1 + secrets.randbits(48)  # a lost overlay had another one


def _decode_text(answer: bytes) -> str:
    return answer.decode(errors="backslashreplace")
