"""The overlay of a generator in DynamoDB: batches of entries in a log, and a state that names the log.

    p = <generator>, s = overlay            the state: epoch, serial of the newest entry, log, batches; its stamp
    p = <generator>, s = overlay-log:<id>   every log that was ever begun: a missing state beside one was lost
    p = <generator>#overlay#<id>            a log; s = b and the serial, 8 bytes: the entries up to this serial
    p = <generator>#tokens                  tokens of exchanges; x: when they expire, for the table's time to live

A transaction adds a batch and replaces the state, if its stamp is the one that was read. Every batch names the serial
before it, so a lost batch is an error. A log of many batches, and one after a purge, is written anew under another id.
Knows nothing of the meaning of entries.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nearcast.errors import DamagedError, StoreError
from nearcast.stores.base import TOKEN_SECONDS, ExchangeResult, OverlayChanges, OverlayEntry
from nearcast.stores.dynamodb_table import ConditionFailedError, DynamoTable, ItemKey, read_whole, split_value

__all__ = ["DynamoOverlay"]

STATE, LOG, BATCH = b"overlay", b"overlay-log:", b"b"
MOST_BATCHES = 200  # then the log is written anew, with the last entry of each key
TRIES = 100  # other writers may be faster

Numbered = tuple[int, bytes]  # serial, entry


@dataclass(frozen=True, slots=True)
class StoredOverlay:
    """The state of an overlay."""

    epoch: int
    serial: int
    log: str
    batches: int = 0
    stamp: str = ""  # of the item that was read; empty: there is none


class DynamoOverlay:
    """The overlay of one generator."""

    def __init__(self, table: DynamoTable, generator: str) -> None:
        self._table, self._generator = table, generator
        self._known = StoredOverlay(-1, 0, "")
        self._entries: dict[bytes, bytes] = {}  # by key, of the state that is known

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each takes the place of an older one with the same key."""
        for _ in range(TRIES if entries else 0):
            if self._append(self._read_state() or self._begin(), [entry.to_bytes() for entry in entries]):
                return
        if entries:
            raise self._make_busy_error()

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """Return the entries after `serial`; all if the epoch differs. Raises DamagedError if entries are lost."""
        state = self._read_state()
        while state is not None:
            after = serial if epoch == state.epoch else 0
            found = self._read_log(state, after)
            if found is not None:
                last: dict[bytes, OverlayEntry] = {}
                for _, data in found:
                    entry = OverlayEntry.from_bytes(data)
                    last.pop(entry.key(), None)
                    last[entry.key()] = entry
                return OverlayChanges(state.epoch, state.serial, tuple(last.values()))
            before, state = state, self._read_state()
            if state is not None and state.stamp == before.stamp:
                raise self._make_lost_error("batches of its log")
        return OverlayChanges(0, 0, ())

    def get(self, key: bytes) -> bytes | None:
        """Return the bytes of the last entry with this key; None if there is none."""
        self._follow()
        return self._entries.get(key)

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry if its key still holds `held`; with a token only once."""
        name: ItemKey = (f"{self._generator}#tokens", hashlib.sha256(token.encode()).digest())
        for _ in range(TRIES):
            used = self._table.get(name) if token else None
            if used is not None and float(used["x"]["N"]) > now:
                return ExchangeResult.REPEATED
            self._follow()
            if self._entries.get(entry.key()) != held:
                return ExchangeResult.CHANGED
            state = self._known if self._known.stamp else self._begin()
            step = {"Put": {"Item": {**split_value(name, b"")[0], "x": {"N": repr(now + TOKEN_SECONDS)}}}}
            if self._append(state, [entry.to_bytes()], *([step] if token else [])):
                return ExchangeResult.WRITTEN
        raise self._make_busy_error()

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Delete entries with these keys unless they were written after serial `upto`, and start a new epoch."""
        removed = set(keys)
        for _ in range(TRIES):
            state = self._read_state()
            if state is None:
                return
            found = self._read_log(state, 0)
            if found is None:
                self.changes()  # raises if it is lost: else it was written anew meanwhile
                continue
            kept = [(n, data) for n, data in _keep_last(found) if n > upto or _key_of(data) not in removed]
            if self._write_anew(replace(state, epoch=state.epoch + 1), kept):
                return
        raise self._make_busy_error()

    def repair(self) -> str | None:
        """Rebuild a damaged or lost log from its remains. Return a description of the loss; None if it is whole."""
        try:
            self.changes()
            return None
        except DamagedError as error:
            entries: list[Numbered] = []
            for log in self._list_logs():
                for item in self._query(log, 1, (1 << 63) - 1):
                    value = read_whole(self._table, [item])[0]
                    entries += [] if value is None else _decode_batch(value)[1]
            kept = _keep_last(sorted(entries))
            serial = max([time.time_ns() // 1_000_000, *(n for n, _ in kept)]) + 1
            stamp = self._read_stamp()
            if not self._write_anew(StoredOverlay(1 + secrets.randbits(48), serial, "", 0, stamp), kept):
                raise self._make_busy_error() from None
            return f"{error}. Written anew with the {len(kept):,} entries that are left; look through them"

    def _follow(self) -> None:
        """Bring the known entries up to the newest serial."""
        state = self._read_state()
        if state is None:
            self._known, self._entries = StoredOverlay(-1, 0, ""), {}
        elif state.stamp != self._known.stamp:
            changes = self.changes(epoch=self._known.epoch, serial=self._known.serial)
            fresh = {} if changes.epoch != self._known.epoch else self._entries
            self._entries = {**fresh, **{entry.key(): entry.to_bytes() for entry in changes.entries}}
            # if others wrote meanwhile, `_append` finds another stamp
            self._known = replace(state, epoch=changes.epoch, serial=changes.serial)

    def _read_stamp(self) -> str:
        item = self._table.get((self._generator, STATE))
        return "" if item is None else str(item["stamp"]["S"])

    def _read_state(self) -> StoredOverlay | None:
        """Return the state; None if nothing was ever written. Raises DamagedError if it was lost."""
        item = self._table.get((self._generator, STATE))
        if item is None:
            if not self._list_logs(limit=1):
                return None
            item = self._table.get((self._generator, STATE))  # the first entry may have come in between
            if item is None:
                raise self._make_lost_error("its state")
        try:
            return StoredOverlay(**json.loads(item["v"]["B"]), stamp=item["stamp"]["S"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._make_lost_error(f"its state ({error!r})") from error

    def _list_logs(self, limit: int = 0) -> list[str]:
        items = self._table.query(self._generator, first=LOG, last=LOG + b"\xff", names_only=True, limit=limit)
        return [item["s"]["B"][len(LOG) :].decode() for item in items]

    def _begin(self) -> StoredOverlay:
        return StoredOverlay(1 + secrets.randbits(48), 0, secrets.token_hex(8))

    def _append(self, state: StoredOverlay, entries: Sequence[bytes], *steps: dict[str, Any]) -> bool:
        """Add a batch. Return whether the state was still this one."""
        if not state.stamp or state.batches >= MOST_BATCHES:
            numbered = [] if not state.stamp else self._read_log(state, 0)
            if numbered is None:
                return False
            return self._write_anew(state, [*_keep_last(numbered)], *steps, more=entries)
        new = replace(state, serial=state.serial + len(entries), batches=state.batches + 1)
        batch = list(enumerate(entries, state.serial + 1))
        return self._commit(state, new, batch, state.serial, *steps)

    def _write_anew(
        self, state: StoredOverlay, kept: Sequence[Numbered], *steps: dict[str, Any], more: Sequence[bytes] = ()
    ) -> bool:
        """Write a new log with these entries, and new ones after them. Return whether the state was still this one."""
        log = secrets.token_hex(8)
        new = replace(state, serial=state.serial + len(more), log=log, batches=1)
        written = self._commit(state, new, [*kept, *enumerate(more, state.serial + 1)], 0, *steps)
        self._remove_log(state.log if written else log)
        return written

    def _commit(
        self, state: StoredOverlay, new: StoredOverlay, batch: Sequence[Numbered], before: int, *steps: dict[str, Any]
    ) -> bool:
        """Write a batch and the state in one step, if the state is still this one."""
        value = json.dumps({"before": before, "entries": [[n, data.decode()] for n, data in batch]}).encode()
        name: ItemKey = (f"{self._generator}#overlay#{new.log}", BATCH + new.serial.to_bytes(8, "big"))
        item, *parts = split_value(name, value)
        self._table.put_items(parts)
        fields = {name: number for name, number in asdict(new).items() if name != "stamp"}
        record = split_value((self._generator, STATE), json.dumps(fields).encode())[0]
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(p)"}
        if state.stamp:
            condition = {
                "ConditionExpression": "stamp = :stamp",
                "ExpressionAttributeValues": {":stamp": {"S": state.stamp}},
            }
        put_state = {"Put": {"Item": {**record, "stamp": {"S": secrets.token_hex(8)}}, **condition}}
        begun = {"Put": {"Item": split_value((self._generator, LOG + new.log.encode()), b"")[0]}}
        try:
            self._table.transact(put_state, {"Put": {"Item": item}}, *([begun] if new.log != state.log else []), *steps)
        except ConditionFailedError:
            return False
        return True

    def _remove_log(self, log: str) -> None:
        if log:
            self._table.delete_partitions([f"{self._generator}#overlay#{log}"])
            name = split_value((self._generator, LOG + log.encode()), b"")[0]
            self._table.call("delete_item", Key=name)

    def _query(self, log: str, first: int, last: int) -> Iterator[dict[str, Any]]:
        names = [BATCH + number.to_bytes(8, "big") for number in (first, last)]
        return self._table.query(f"{self._generator}#overlay#{log}", first=names[0], last=names[1])

    def _read_log(self, state: StoredOverlay, after: int) -> list[Numbered] | None:
        """Return the entries after a serial; None if the log was written anew meanwhile, or has lost a batch."""
        if after >= state.serial:
            return []
        found: list[Numbered] = []
        reached = after
        for item in self._query(state.log, after + 1, state.serial):
            value = read_whole(self._table, [item])[0]
            if value is None:
                return None
            before, entries = _decode_batch(value)
            if before > reached:
                return None
            found += [(number, data) for number, data in entries if number > after]
            reached = int.from_bytes(item["s"]["B"][len(BATCH) :], "big")
        return found if reached == state.serial else None

    def _make_lost_error(self, what: str) -> DamagedError:
        return DamagedError(
            f"the overlay of {self._generator} in {self._table.settings.url} has lost {what}: items were deleted; "
            "heal it with publish --repair"
        )

    def _make_busy_error(self) -> StoreError:
        return StoreError(
            f"the overlay of {self._generator} in {self._table.settings.url} is written by so many that this entry "
            "found no turn; try again"
        )


def _decode_batch(value: bytes) -> tuple[int, list[Numbered]]:
    """Return the serial before a batch, and its entries."""
    try:
        fields = json.loads(value)
        return int(fields["before"]), [(int(number), text.encode()) for number, text in fields["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the overlay holds a batch that cannot be read ({error!r}); publish --repair") from error


def _key_of(data: bytes) -> bytes:
    return OverlayEntry.from_bytes(data).key()


def _keep_last(entries: Collection[Numbered]) -> list[Numbered]:
    """Return the last entry of each key, by serial."""
    last = {_key_of(data): (number, data) for number, data in sorted(entries)}
    return sorted(last.values())
