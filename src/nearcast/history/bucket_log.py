"""The history of a bucket: one JSON object per event, created once and never changed.

    <out>/history/<generator>/001766600000123-publish-5f0c.json     milliseconds since 1970, kind, identity

Events are ordered by their names: by time, then by identity. An event without an identity is put after all events that
are there, even if a clock was wrong: a rollback is never sorted before the publish that it undoes. Bodies are read in
parallel and kept in the host's cache by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, NearcastError, NotFoundError
from nearcast.files import PARTIAL, fingerprint
from nearcast.history.history_event import HistoryEvent
from nearcast.storage.host_cache import HostCache
from nearcast.storage.open_storage import open_storage

__all__ = ["BucketLog"]

FOLDER = "history"
FORMAT = 1
READS = 16  # events at a time
DIGITS = 15  # of the milliseconds


@dataclass(frozen=True, slots=True, order=True)
class EventName:
    """What the name of an event's object says."""

    order: str  # time and identity
    generator: str
    kind: str
    name: str


class BucketLog:
    """The events of a location in a bucket."""

    def __init__(self, out: str) -> None:
        self.place = f"{out}/{FOLDER}"
        self._storage = open_storage(out)
        self._cache = HostCache().root / FOLDER / fingerprint(out)[:16]
        self._known: set[str] = set()  # names that were seen

    def append(self, event: HistoryEvent, identity: str | None) -> str | None:
        """Create an object."""
        facts = {"format": FORMAT, **event.as_dict()}
        body = json.dumps(facts, default=str, allow_nan=False).encode()
        try:
            when = round(1000 * event.seconds)
            if identity is None:
                last = max((int(name.order[:DIGITS]) for name in self._list(event.generator)), default=0)
                when = max(when, last + 1)
            mark = secrets.token_hex(8) if identity is None else fingerprint(identity)[:16]
            name = f"{FOLDER}/{event.generator}/{when:0{DIGITS}d}-{event.kind}-{mark}.json"
            if name in self._known or (not self._known and name in {one.name for one in self._list(event.generator)}):
                return None  # events are never removed: no request is needed to know it
            self._storage.create(name, body)
            self._known.add(name)
        except (NearcastError, OSError) as error:
            return f"the history {self.place} was not written: {error}"
        return None

    def read(self, generator: str | None, kinds: Sequence[str], last: int | None) -> list[HistoryEvent]:
        """List the names, then read the chosen objects in parallel."""
        names = sorted(name for name in self._list(generator) if not kinds or name.kind in kinds)
        chosen = names if last is None else names[max(0, len(names) - last) :]
        with ThreadPoolExecutor(READS, "nearcast-history") as pool:
            events = list(pool.map(self._read_event, chosen))
        return [event for event in events if event is not None]

    def newest(self) -> dict[str, int]:
        """Count the events of each generator: none is ever removed."""
        counts: dict[str, int] = {}
        for name in self._list(None):
            counts[name.generator] = counts.get(name.generator, 0) + 1
        return counts

    def _list(self, generator: str | None) -> Iterator[EventName]:
        prefix = FOLDER if generator is None else f"{FOLDER}/{generator}"
        for found in self._storage.list_objects(prefix):
            owner, _, file = found.name.removeprefix(f"{FOLDER}/").partition("/")
            when, _, rest = file.removesuffix(".json").partition("-")
            kind, _, mark = rest.rpartition("-")
            if file.endswith(".json") and when.isdigit() and kind:  # anything else is not ours
                self._known.add(found.name)
                yield EventName(f"{when}-{mark}", owner, kind, found.name)

    def _read_event(self, name: EventName) -> HistoryEvent | None:
        """Read an event, from the cache if it is there. Returns None if it was removed by hand."""
        cached = self._cache / name.generator / Path(name.name).name
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return _parse(json.loads(cached.read_bytes()))
        try:
            body = self._storage.read(name.name)
            event = _parse(json.loads(body))
        except NotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self._storage.url}/{name.name}"
            raise DamagedError(
                f"{where} cannot be read ({error}); remove it: the history goes on without it"
            ) from error
        with contextlib.suppress(OSError):  # a full disk does not keep anyone from reading
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{PARTIAL}{secrets.token_hex(4)}")
            partial.write_bytes(body)
            os.replace(partial, cached)
        return event


def _parse(facts: Any) -> HistoryEvent:
    if facts["format"] > FORMAT:
        raise DamagedError(f"the history has events of format {facts['format']}, and this nearcast reads {FORMAT}")
    return HistoryEvent(facts["generator"], facts["kind"], facts["seconds"], facts["version"], facts["facts"])
