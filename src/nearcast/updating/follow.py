"""Follow a change feed: one update per batch, with the offset of the feed in the patch, so that none is applied twice.

A batch that is refused is set aside: its name and error are kept with the offset, and the next one is read. Errors of
the store or the lock are tried again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearcast.errors import AuditError, BusyError, InputError, NotFoundError, StorageError, StoreError
from nearcast.join.listener import Listener
from nearcast.storage.locations import Location
from nearcast.stores import make_unpublished_error
from nearcast.stores.base import Store, read_patch_state, store_time
from nearcast.updating.change_feed import ChangeFeed, FeedBatch
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.update import Updater, UpdateRequest, UpdateResult

__all__ = ["FollowFigures", "Follower", "describe_figures"]

REMEMBERED = 1_000  # batches whose freshness is kept
SET_ASIDE = 20  # names and errors that are kept with the offset
ERROR_LETTERS = 300


@dataclass(slots=True)
class FollowFigures:
    """What a follower has done since it began."""

    batches: int = 0
    items: int = 0
    lists: int = 0
    set_aside: int = 0
    busy_seconds: float = 0.0
    lag_seconds: float = 0.0  # age of the oldest batch that is not in force
    freshness: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # seconds from arrival to force

    def quantile(self, share: float) -> float:
        """Return a quantile of the freshness, 0 before the first batch."""
        return float(np.quantile(list(self.freshness), share)) if self.freshness else 0.0


class Follower:
    """Follows one feed into one generator."""

    def __init__(
        self,
        feed: ChangeFeed,
        store: Store,
        generator: str,
        out: Location,
        *,
        max_lists_changed: float,
        listener: Listener | None = None,
    ) -> None:
        self.figures = FollowFigures()
        self._feed = feed
        self._store = store
        self._generator = generator
        self._most = max_lists_changed
        self._listener = listener or Listener()
        self._updater = Updater(store, generator, out, self._listener)

    def catch_up(self) -> list[UpdateResult]:
        """Apply all batches that have arrived. Raises the errors of the store."""
        known = self._read_offset()
        results = []
        for batch in self._feed.read(known["offset"]):
            started = time.perf_counter()
            result, known = self._apply(batch, known)
            self.figures.busy_seconds += time.perf_counter() - started
            if result is not None:
                results.append(result)
                self.figures.freshness.append(max(0.0, store_time(self._store) - batch.arrived))
        waiting = self._feed.oldest_waiting(known["offset"])
        self.figures.lag_seconds = 0.0 if waiting is None else max(0.0, time.time() - waiting)
        return results

    def run(self, every_seconds: float, stopped: Callable[[float], bool]) -> None:
        """Catch up again and again, until `stopped(seconds)`, which waits, returns True."""
        while True:
            try:
                self.catch_up()
            except (BusyError, StoreError, StorageError) as error:
                self._listener.note(f"trying again: {error}")
            if stopped(every_seconds):
                return

    def _apply(self, batch: FeedBatch, known: dict[str, Any]) -> tuple[UpdateResult | None, dict[str, Any]]:
        """Apply a batch, or set it aside. Return the result, and the offset after it."""
        known = {**known, "offset": batch.offset}
        try:
            if batch.error is not None:
                raise batch.error
            result = self._update(batch.inputs, known, f"follow: {batch.name}")
        except (InputError, AuditError) as error:
            self.figures.set_aside += 1
            self._listener.note(f"{batch.name} is set aside: {error}")
            aside = [*known["set_aside"], [batch.name, str(error)[:ERROR_LETTERS]]][-SET_ASIDE:]
            known = {"offset": batch.offset, "set_aside": aside, "count": known["count"] + 1}
            self._update(BatchInputs(), known, f"follow: {batch.name} is set aside")
            return None, known
        self.figures.batches += 1
        self.figures.items += batch.rows
        self.figures.lists += result.counts["lists"]
        return result, known

    def _update(self, inputs: BatchInputs, known: dict[str, Any], note: str) -> UpdateResult:
        request = UpdateRequest(inputs, self._most, note, {self._feed.name: known})
        return self._updater.apply(request)

    def _read_offset(self) -> dict[str, Any]:
        """Return how far the feed is in force, by the newest patch that tells."""
        pointer = self._store.pointer(self._generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self._generator)
        others = (version for version in self._store.versions(self._generator)[::-1] if version != pointer.version)
        for version in (pointer.version, *others):
            try:
                newest = read_patch_state(self._store, self._generator, version).newest
            except NotFoundError:  # retired at this moment
                continue
            if newest is not None and self._feed.name in newest.offsets:
                return dict(newest.offsets[self._feed.name])
        return {"offset": None, "set_aside": [], "count": 0}


def describe_figures(figures: FollowFigures, generator: str) -> str:
    """Return the figures as Prometheus text."""
    rate = figures.items / figures.busy_seconds if figures.busy_seconds else 0.0
    rows = [
        ("lag_seconds", "gauge", "age of the oldest batch that is not in force", figures.lag_seconds),
        ("batches_total", "counter", "batches in force", figures.batches),
        ("items_total", "counter", "rows of the batches in force", figures.items),
        ("items_per_second", "gauge", "rows per second of work", rate),
        ("lists_changed_total", "counter", "lists that were written", figures.lists),
        ("set_aside_total", "counter", "batches that were refused", figures.set_aside),
    ]
    lines = []
    for name, kind, text, value in rows:
        lines += [f"# HELP nearcast_follow_{name} {text}", f"# TYPE nearcast_follow_{name} {kind}"]
        lines.append(f'nearcast_follow_{name}{{generator="{generator}"}} {value:g}')
    lines.append("# HELP nearcast_follow_freshness_seconds seconds from a batch's arrival until it is in force")
    lines.append("# TYPE nearcast_follow_freshness_seconds summary")
    for share in (0.5, 0.99):
        labels = f'generator="{generator}",quantile="{share:g}"'
        lines.append(f"nearcast_follow_freshness_seconds{{{labels}}} {figures.quantile(share):g}")
    lines.append(f'nearcast_follow_freshness_seconds_count{{generator="{generator}"}} {len(figures.freshness)}')
    return "\n".join(lines) + "\n"
