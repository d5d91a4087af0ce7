"""The contract of a store: versions of a table as key-value pairs, a pointer to the current one, and an overlay log.

A version is written once, under a lock, and can be opened when it is finished. Readers find the current version by
the pointer, which is moved in one step. The overlay is a log of facts about items that came after the snapshots.
Keys and values are bytes: what they mean is `stores.values`' to say. Knows nothing of snapshots or audits.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

from nearcast.errors import DamagedError

__all__ = [
    "TOKEN_SECONDS",
    "ExchangeResult",
    "OverlayChanges",
    "OverlayEntry",
    "OverlayLog",
    "Pair",
    "Pointer",
    "PointerEvent",
    "PublishLock",
    "Reader",
    "Space",
    "Store",
    "Writer",
    "check_reader",
    "repair_overlay",
    "store_time",
]

Pair = tuple[bytes, bytes]
TOKEN_SECONDS = 86_400.0  # that the token of an exchange is remembered
MOST_EVENTS = 100  # kept in a pointer, so that it stays a few kilobytes


class Space(StrEnum):
    """What a pair of a version is about."""

    LISTS = "lists"  # a query's key: its candidates
    ITEMS = "items"  # an item's key: its columns


@dataclass(frozen=True, slots=True)
class PointerEvent:
    """A move of the pointer."""

    kind: str  # published, rolled_back
    version: int
    when: str  # UTC, for people: order is by serial, since clocks go backwards
    note: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which version is current, and how that came about."""

    version: int
    serial: int  # grows by one with every move
    withdrawn: tuple[int, ...] = ()  # versions that were rolled back from
    events: tuple[PointerEvent, ...] = ()  # newest last

    def moved(self, event: PointerEvent, withdrawn: tuple[int, ...]) -> Pointer:
        """The pointer after one more move."""
        events = (*self.events, event)[-MOST_EVENTS:]
        return Pointer(event.version, self.serial + 1, withdrawn, events)

    def to_bytes(self) -> bytes:
        """As a store keeps it."""
        return json.dumps({"format": 1, **asdict(self)}).encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Pointer:
        """As it was kept; DamagedError names `where`."""
        try:
            fields = json.loads(data)
            if fields["format"] != 1:
                raise ValueError(f"its format is {fields['format']}, and this version of nearcast reads 1")
            events = tuple(PointerEvent(**event) for event in fields["events"])
            return Pointer(int(fields["version"]), int(fields["serial"]), tuple(fields["withdrawn"]), events)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{where} is no pointer ({error}); publish again with --repair") from error


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """One fact about an item that snapshots may not know yet. The last one written for (item, field) counts."""

    item: str | int
    field: str | None  # None: whether the item may be returned at all; value is then True (gone) or None
    value: Any  # JSON data
    written: float  # seconds since 1970, by the writer's clock
    until: float | None = None  # no longer in force from then on
    lifted: bool = False  # taken back: as if it had never been written
    note: str = ""

    def key(self) -> bytes:
        """What identifies the entry: item and field."""
        return json.dumps([self.item, self.field], ensure_ascii=False).encode()

    def to_bytes(self) -> bytes:
        """As a store keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(data: bytes) -> OverlayEntry:
        """As it was kept."""
        try:
            return OverlayEntry(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DamagedError(f"the overlay holds an entry that cannot be read ({error}): {data[:100]!r}") from error


@dataclass(frozen=True, slots=True)
class OverlayChanges:
    """What of an overlay log a reader has not seen yet."""

    epoch: int  # another epoch than before: forget everything, and take `entries` as all there is
    serial: int  # of the newest entry; ask for what comes after it next time
    entries: tuple[OverlayEntry, ...]


class ExchangeResult(StrEnum):
    """What came of an exchange."""

    WRITTEN = "written"
    CHANGED = "changed"  # another entry had come in between: nothing was written
    REPEATED = "repeated"  # it was done before: nothing was written


class OverlayLog(Protocol):
    """The overlay of a generator. Any process may write at any time; it is not under the publishers' lock."""

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each takes the place of an older one with the same key."""
        ...

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """What was written after `serial`; everything where the epoch is another. Cheap where nothing was."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """The last entry with this key, as `OverlayEntry.to_bytes` wrote it; None where there is none."""
        ...

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry only where `get` of its key still gives `held`, in one step: whoever lost begins anew.

        token: of an exchange, which is done once however often it is asked for within TOKEN_SECONDS; `now` is the time.
        """
        ...

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Forget entries with these keys unless they were written after serial `upto`; starts a new epoch."""
        ...

    def repair(self) -> str | None:
        """Make a damaged or lost overlay that can be read, of what is left. Returns what was lost; None if whole."""
        ...


class PublishLock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """BusyError where the lock was lost, as a network store may lose it."""
        ...


class Writer(Protocol):
    """A version under way. Nobody reads it before `finish`."""

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs. Keys are unique, and within a space mostly ascending over all calls (fastest so)."""
        ...

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Make everything durable and then declare the version finished, with these facts about it."""
        ...

    def discard(self) -> None:
        """Remove what was written. Also safe after `finish` failed."""
        ...


class Reader(Protocol):
    """A finished version, open. Safe to use from many threads; usable until closed, even when retired meanwhile."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the writer gave to `finish`."""
        ...

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of these keys, None for a key that is not there. StoreError where the store cannot say.

        Never None for a key of a version that has been taken away meanwhile: that is a GoneError.
        """
        ...

    def pairs(self, space: Space) -> Iterator[Pair]:
        """All pairs, in the store's own order."""
        ...

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Up to `count` keys spread over the version: all of them where there are not more."""
        ...

    def check(self) -> None:
        """DamagedError where pairs were lost since it was opened. Cheap: it is called several times a second."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


_EARLIER_NAMES = {
    "Changes": OverlayChanges,
    "Event": PointerEvent,
    "Exchanged": ExchangeResult,
    "Held": PublishLock,
}


def __getattr__(name: str) -> Any:
    """Return a class by its earlier name, for stores of other packages; delete this in the second release after 0.1."""
    if name not in _EARLIER_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _EARLIER_NAMES[name]
    warnings.warn(f"{__name__}.{name} is now {new.__name__}; import that", DeprecationWarning, stacklevel=2)
    return new


def store_time(store: Store) -> float:
    """Seconds since 1970 by a store's clock; by this machine's for a store of another package that has none."""
    now = getattr(store, "now", time.time)
    return float(now())


class Store(Protocol):
    """Where snapshots are served from."""

    url: str  # without a password, for messages
    in_process: bool  # look-ups do not wait for a network: they may be done on an event loop

    def generators(self) -> list[str]:
        """Generators that have a pointer, sorted."""
        ...

    def lock(self, generator: str) -> AbstractContextManager[PublishLock]:
        """The publishers' lock of a generator; BusyError at once where another process holds it."""
        ...

    def write(self, generator: str, version: int) -> Writer:
        """Start a version, throwing away what an unfinished attempt has left. Only under the lock."""
        ...

    def versions(self, generator: str) -> list[int]:
        """Finished versions that can be opened, ascending."""
        ...

    def open(self, generator: str, version: int, *, verify: bool) -> Reader:
        """Open a finished version. NotFoundError where there is none; DamagedError names the file that differs.

        verify: compare every byte with what was written, where the store can (about a second per gigabyte).
        """
        ...

    def retire(self, generator: str, version: int) -> None:
        """Take a version away, finished or not; those who have it open may finish. Only under the lock."""
        ...

    def pointer(self, generator: str) -> Pointer | None:
        """Where the pointer is, or None before the first publish."""
        ...

    def point(self, generator: str, pointer: Pointer, held: PublishLock) -> None:
        """Move the pointer in one step; BusyError, and no move, where the lock was lost."""
        ...

    def overlay(self, generator: str) -> OverlayLog:
        """The overlay of a generator; an empty one where nothing was written."""
        ...

    def now(self) -> float:
        """Seconds since 1970 by the clock that all writers of the store share, whatever their own clocks say."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...


def check_reader(reader: Reader) -> None:
    """Raise DamagedError where a version has lost pairs. Readers of a store of your own may have no `check`."""
    check = getattr(reader, "check", None)
    if check is not None:
        check()


def repair_overlay(log: OverlayLog) -> str | None:
    """Repair an overlay, and return what was lost; None where it is whole. DamagedError where its store cannot."""
    repair = getattr(log, "repair", None)
    if repair is not None:
        return str(said) if (said := repair()) is not None else None
    log.changes()
    return None
