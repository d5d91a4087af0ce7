"""The contract of a store: versions of key-value pairs, their patches, a pointer to a version, and an overlay log.

To add a store, implement `Store`, `Writer`, `Reader`, `OverlayLog` and `PublishLock`; add a row to `stores.STORES`, or
an entry point in another package; run tests/contract/test_stores.py. `examples/own_store` is a complete one.
`PatchLog` is optional: a store without it takes no live updates.

A version is written once, under the publishers' lock. It can be opened when it is finished, and never changes. Patches
beside it hold newer values of some keys. Readers find the current version by the pointer, which moves in one step. The
overlay is a log of newer facts about items. Keys and values are bytes; `stores.value_format` encodes them. Knows
nothing of snapshots and audits.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from nearcast.errors import DamagedError, StoreError
from nearcast.stores.canary_share import Canary

__all__ = [
    "TOKEN_SECONDS",
    "ExchangeResult",
    "OverlayChanges",
    "OverlayEntry",
    "OverlayLog",
    "Pair",
    "PatchFacts",
    "PatchLog",
    "PatchState",
    "Pointer",
    "PointerEvent",
    "PublishLock",
    "Reader",
    "Space",
    "Store",
    "Writer",
    "check_reader",
    "find_patches",
    "get_unpatched",
    "newest_patch",
    "read_patch_state",
    "repair_overlay",
    "repair_patches",
    "store_time",
]

Pair = tuple[bytes, bytes]
TOKEN_SECONDS = 86_400.0  # how long the token of an exchange is remembered
MOST_EVENTS = 100  # per pointer, which stays below some kilobytes


class Space(StrEnum):
    """The two spaces of a version. Each is a separate map."""

    LISTS = "lists"  # key of a query -> its candidates
    ITEMS = "items"  # key of an item -> its columns


@dataclass(frozen=True, slots=True)
class PointerEvent:
    """A move of the pointer."""

    kind: str  # published, rolled_back; canary_started, canary_share, canary_withdrawn: the current version stays
    version: int
    when: str  # UTC, for display; moves are ordered by serial, since clocks go backwards
    note: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """The current version of a generator, and the last moves of the pointer."""

    version: int
    serial: int  # grows by one with every move
    withdrawn: tuple[int, ...] = ()  # versions that were rolled back
    events: tuple[PointerEvent, ...] = ()  # newest last
    canary: Canary | None = None  # a second version that answers a share of the keys

    def move(self, event: PointerEvent, withdrawn: tuple[int, ...]) -> Pointer:
        """Return the pointer after one more move, without a canary."""
        return Pointer(event.version, self.serial + 1, withdrawn, self._add(event))

    def with_canary(
        self, event: PointerEvent, canary: Canary | None, withdrawn: tuple[int, ...] | None = None
    ) -> Pointer:
        """Return the pointer after its canary has started, changed or ended. The current version stays."""
        left = self.withdrawn if withdrawn is None else withdrawn
        return Pointer(self.version, self.serial + 1, left, self._add(event), canary)

    def _add(self, event: PointerEvent) -> tuple[PointerEvent, ...]:
        return (*self.events, event)[-MOST_EVENTS:]

    @property
    def in_use(self) -> tuple[int, ...]:
        """The versions that look-ups read: the current one, and the canary's."""
        return (self.version,) if self.canary is None else (self.version, self.canary.version)

    @property
    def moved_serial(self) -> int:
        """The serial with which this version became current: later ones changed the canary alone."""
        later = 0
        for event in reversed(self.events):
            if not event.kind.startswith("canary"):
                break
            later += 1
        return self.serial - later

    def to_bytes(self) -> bytes:
        """Encode it as a store keeps it. A pointer without a canary has the bytes of earlier releases."""
        fields = asdict(self)
        if self.canary is None:
            del fields["canary"]
        return json.dumps({"format": 1, **fields}).encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Pointer:
        """Decode it. Raises DamagedError, which names `where`."""
        try:
            fields = json.loads(data)
            if fields["format"] != 1:
                raise ValueError(f"its format is {fields['format']}, and this version of nearcast reads 1")
            events = tuple(PointerEvent(**event) for event in fields["events"])
            canary = Canary.from_json(fields["canary"]) if fields.get("canary") else None
            return Pointer(int(fields["version"]), int(fields["serial"]), tuple(fields["withdrawn"]), events, canary)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{where} is no pointer ({error}); publish again with --repair") from error


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """A newer fact about an item. Of several entries with the same item and field the last one written counts."""

    item: str | int
    field: str | None  # None: the item itself; value is then True (removed) or None
    value: Any  # JSON data
    written: float  # seconds since 1970, by the writer's clock
    until: float | None = None  # end of its validity; None: no end
    lifted: bool = False  # restored: the entry counts as never written
    note: str = ""

    def key(self) -> bytes:
        """Return the key of the entry: item and field."""
        return json.dumps([self.item, self.field], ensure_ascii=False).encode()

    def to_bytes(self) -> bytes:
        """Encode it as a store keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(data: bytes) -> OverlayEntry:
        """Decode it. Raises DamagedError."""
        try:
            return OverlayEntry(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DamagedError(f"the overlay holds an entry that cannot be read ({error}): {data[:100]!r}") from error


@dataclass(frozen=True, slots=True)
class OverlayChanges:
    """The entries of an overlay log that a reader has not read yet."""

    epoch: int  # if it differs from the last one, `entries` is the whole log: discard earlier ones
    serial: int  # of the newest entry; pass it to the next call
    entries: tuple[OverlayEntry, ...]


class ExchangeResult(StrEnum):
    """The result of `OverlayLog.exchange`."""

    WRITTEN = "written"
    CHANGED = "changed"  # another entry was written in between; nothing is written
    REPEATED = "repeated"  # the token was used before; nothing is written


class OverlayLog(Protocol):
    """The overlay log of a generator. Any process may write at any time, without the publishers' lock."""

    def write(self, entries: Sequence[OverlayEntry]) -> None:
        """Add entries in one step; each replaces an older one with the same key."""
        ...

    def changes(self, *, epoch: int = -1, serial: int = 0) -> OverlayChanges:
        """Return the entries after `serial`; all if the epoch differs.

        Called several times a second: it must be cheap if there are none.
        """
        ...

    def get(self, key: bytes) -> bytes | None:
        """Return the last entry with this key, as `OverlayEntry.to_bytes` wrote it; None if there is none."""
        ...

    def exchange(self, entry: OverlayEntry, held: bytes | None, *, token: str = "", now: float = 0.0) -> ExchangeResult:
        """Add an entry if `get` of its key still returns `held`, in one step (compare and swap).

        token: an exchange with this token is done once within TOKEN_SECONDS. now: seconds since 1970.
        """
        ...

    def purge(self, keys: Sequence[bytes], *, upto: int) -> None:
        """Delete entries with these keys unless they were written after serial `upto`, and start a new epoch."""
        ...

    def repair(self) -> str | None:
        """Rebuild a damaged or lost log from its remains. Return a description of the loss; None if it is whole."""
        ...


class PublishLock(Protocol):
    """The publishers' lock of a generator, held."""

    def check(self) -> None:
        """Raise BusyError if the lock was lost. A network store may lose it."""
        ...


@dataclass(frozen=True, slots=True)
class PatchFacts:
    """The facts of a patch: newer values of some keys of a version."""

    number: int  # grows by one with every patch of a generator, over all versions; not used again after a rollback
    version: int  # version of the store that it changes
    when: str  # UTC, for display
    made: float  # seconds since 1970, by the store's clock
    counts: Mapping[str, int]  # lists, items, gone, queries
    offsets: Mapping[str, Any] = field(default_factory=dict)  # by source: JSON data, see `PatchState.offsets`
    note: str = ""
    journal: str = ""  # see `PatchState.journal`

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> PatchFacts:
        """Build it from the JSON data of `asdict`. Raises KeyError, TypeError or ValueError."""
        numbers = {"number": int(fields["number"]), "version": int(fields["version"]), "made": float(fields["made"])}
        return PatchFacts(**{**fields, **numbers})


@dataclass(frozen=True, slots=True)
class PatchState:
    """The patches of a version that are in force."""

    serial: int = 0  # grows with every change of the patches: write, roll back, compact
    last_number: int = 0  # highest number that a patch of the generator ever had; 0: it never had one
    patches: tuple[PatchFacts, ...] = ()  # oldest first, without the folded ones
    folded: PatchFacts | None = (
        None  # all patches that cannot be rolled back any more: number of the last, sum of counts
    )
    # how far `nearcast follow` has read each source: of the newest patch that was written with it, of any version, also
    # if that patch was rolled back or its version retired
    offsets: Mapping[str, Any] = field(default_factory=dict)
    # of the newest patch, of any version: names the journal that has the rows of this store's patches
    journal: str = ""

    @property
    def newest(self) -> PatchFacts | None:
        """The newest patch in force; None if there is none."""
        return self.patches[-1] if self.patches else self.folded


class PatchLog(Protocol):
    """The patches of a generator's versions. Readers of a version return patched values by themselves."""

    def state(self, version: int) -> PatchState:
        """Return the patches of a version. Called several times a second: cheap. Raises StoreError, DamagedError."""
        ...

    def write(self, patch: PatchFacts, pairs: Mapping[Space, Sequence[Pair]], lock: PublishLock) -> None:
        """Add a patch in one step: newer values of these keys. Keys are unique; an empty value removes the key.

        Raises StoreError if its number is not `last_number + 1` or the version is missing, BusyError if the lock was
        lost; the patches are as before then. May fold the oldest patches if there are many.
        """
        ...

    def roll_back(self, version: int, to: int, lock: PublishLock) -> None:
        """Remove the patches of a version with a number above `to`, in one step.

        Raises StoreError if one of them is folded, BusyError if the lock was lost.
        """
        ...

    def compact(self, version: int, keep: int, lock: PublishLock) -> None:
        """Fold all patches of a version but the newest `keep`. Look-ups do not change."""
        ...


class Writer(Protocol):
    """A version that is being written. Readers cannot open it before `finish`."""

    def put(self, space: Space, pairs: Sequence[Pair]) -> None:
        """Add pairs. Keys are unique; within a space they mostly ascend over all calls, which is fastest."""
        ...

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Make all pairs durable, then mark the version as finished. facts: JSON data, kept with the version."""
        ...

    def discard(self) -> None:
        """Remove the pairs. Also safe after a failed `finish`."""
        ...


class Reader(Protocol):
    """A finished version, open. Safe to use from many threads, and until it is closed, also if it is retired.

    Every call sees the patches that are in force when it begins, and one state of them.
    """

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts that the writer passed to `finish`."""
        ...

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key.

        Raises StoreError if the store fails, GoneError if the version was retired: its keys are never reported missing.
        """
        ...

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs, in any order."""
        ...

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, sampled over the version; all keys if there are not more."""
        ...

    def check(self) -> None:
        """Raise DamagedError if pairs were lost since it was opened. Called several times a second: cheap."""
        ...

    def close(self) -> None:
        """Close the version."""
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
    """Return seconds since 1970 by the store's clock; by this machine's clock if the store has no `now`."""
    now = getattr(store, "now", time.time)
    return float(now())


class Store(Protocol):
    """A store: it holds the versions, the pointer and the overlay of many generators."""

    url: str  # without a password, for messages
    in_process: bool  # look-ups do not wait for a network, so an event loop may call them

    def generators(self) -> list[str]:
        """Return the generators that have a pointer, sorted."""
        ...

    def lock(self, generator: str) -> AbstractContextManager[PublishLock]:
        """Hold the publishers' lock of a generator. Raises BusyError at once if another process holds it."""
        ...

    def write(self, generator: str, version: int) -> Writer:
        """Start to write a version; remove leftovers of an unfinished attempt. Call it under the lock."""
        ...

    def versions(self, generator: str) -> list[int]:
        """Return the finished versions, ascending."""
        ...

    def open(self, generator: str, version: int, *, verify: bool) -> Reader:
        """Open a finished version. Raises NotFoundError, or DamagedError with the name of the damaged part.

        verify: compare every byte with the checksums, if the store has them (about a second per gigabyte).
        """
        ...

    def retire(self, generator: str, version: int) -> None:
        """Remove a version, finished or not, and its patches. Open readers may finish. Call it under the lock."""
        ...

    def pointer(self, generator: str) -> Pointer | None:
        """Return the pointer; None before the first publish."""
        ...

    def point(self, generator: str, pointer: Pointer, lock: PublishLock) -> None:
        """Move the pointer in one step. Raises BusyError, without a move, if the lock was lost."""
        ...

    def overlay(self, generator: str) -> OverlayLog:
        """Return the overlay log of a generator; an empty one if nothing was written."""
        ...

    def patches(self, generator: str) -> PatchLog:
        """Return the patches of a generator. A store of another package may lack the method; see `find_patches`."""
        ...

    def now(self) -> float:
        """Return seconds since 1970 by the clock that all writers of the store share."""
        ...

    def close(self) -> None:
        """Close connections and files."""
        ...


def check_reader(reader: Reader) -> None:
    """Raise DamagedError if a version has lost pairs. A reader of another package may lack `check`."""
    check = getattr(reader, "check", None)
    if check is not None:
        check()


def repair_overlay(log: OverlayLog) -> str | None:
    """Repair an overlay; return a description of the loss, None if it is whole.

    Raises DamagedError if the log of another package is damaged and has no `repair`.
    """
    repair = getattr(log, "repair", None)
    if repair is not None:
        return str(loss) if (loss := repair()) is not None else None
    log.changes()
    return None


def newest_patch(reader: Reader) -> PatchFacts | None:
    """Return the newest patch that the last call of a reader saw; None if there is none. Reads memory only."""
    newest: PatchFacts | None = getattr(reader, "newest_patch", None)
    return newest


def repair_patches(store: Store, generator: str) -> str | None:
    """Repair the list of a generator's patches; return a description of the loss, None if it is whole."""
    log = getattr(store, "patches", lambda _: None)(generator)
    repair = getattr(log, "repair", None)
    return None if repair is None else repair()


def get_unpatched(reader: Reader) -> Reader:
    """Return a reader of a version as it was published, without its patches. Close only the given reader."""
    unpatched: Reader = getattr(reader, "unpatched", reader)
    return unpatched


def find_patches(store: Store, generator: str) -> PatchLog:
    """Return the patches of a generator. Raises StoreError if the store of another package has none."""
    patches = getattr(store, "patches", None)
    if patches is None:
        raise StoreError(
            f"{store.url} takes no live updates: its store has no method `patches`; publish a snapshot instead"
        )
    log: PatchLog = patches(generator)
    return log


def read_patch_state(store: Store, generator: str, version: int) -> PatchState:
    """Return the patches of a version that are in force; none if the store takes no patches."""
    return find_patches(store, generator).state(version) if hasattr(store, "patches") else PatchState()
