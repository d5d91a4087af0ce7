"""Follow a change feed: waiting batches become one update, and the offset of the feed is stored with it.

So none is applied twice. A batch that is refused is set aside: its name and error are kept with the offset, and the
next one is read. Errors of the store, the source or the lock are tried again.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearcast.errors import (
    AuditError,
    BudgetError,
    BusyError,
    GoneError,
    InputError,
    NearcastError,
    NotFoundError,
    StorageError,
    StoreError,
)
from nearcast.join.listener import Listener
from nearcast.settings.publish_tables import AuditSpec
from nearcast.storage.locations import Location
from nearcast.storage.path_errors import explain_os_error
from nearcast.stores import make_unpublished_error
from nearcast.stores.base import Store, find_patches, store_time
from nearcast.updating.change_feed import ChangeFeed, FeedBatch
from nearcast.updating.read_batch import BatchInputs
from nearcast.updating.update import Updater, UpdateRequest, UpdateResult

__all__ = ["FollowFigures", "Follower", "describe_figures"]

TRIED_AGAIN = (BusyError, StoreError, StorageError, GoneError, NotFoundError, BudgetError, OSError)  # full disks too
REMEMBERED = 1_000  # batches whose freshness is kept
SET_ASIDE = 20  # names and errors that are kept with the offset
ERROR_LETTERS = 300
MOST_BATCHES = 100  # in one update
NAMED = 5  # of them in the note of the patch


@dataclass(slots=True)
class FollowFigures:
    """What a follower has done since it began."""

    batches: int = 0
    items: int = 0
    lists: int = 0
    set_aside: int = 0
    failures: int = 0  # errors after which it tries again
    busy_seconds: float = 0.0
    waiting: float | None = None  # when the oldest batch that is not in force arrived
    freshness: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # seconds from arrival to force

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest batch that is not in force."""
        return 0.0 if self.waiting is None else max(0.0, time.time() - self.waiting)

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
        audit: AuditSpec,
        most_rows: int,
        listener: Listener | None = None,
    ) -> None:
        self.figures = FollowFigures()
        self._feed = feed
        self._store = store
        self.generator = generator
        self._limits = (audit.max_lists_changed, most_rows)
        self._listener = listener or Listener()
        self._updater = Updater(store, generator, out, self._listener, audit)
        self._stored: dict[str, Any] | None = None  # the record of the feed, as it was read or written last

    def catch_up(self) -> list[UpdateResult]:
        """Apply all batches that have arrived; small ones together. Raises the errors of the store and the source."""
        known = self._read_offset()
        self.figures.waiting = self._feed.oldest_waiting(known["offset"])
        results, was_refused = list[UpdateResult](), True
        while was_refused:  # the rest of a refused file is skipped
            was_refused = False
            for group in _join_batches(self._feed.read(known["offset"]), self._limits[1]):
                started = time.perf_counter()
                applied, known, was_refused = self._apply_group(group, known)
                results += applied
                self.figures.busy_seconds += time.perf_counter() - started
                if was_refused:
                    break
        self.figures.waiting = self._feed.oldest_waiting(known["offset"])
        return results

    def run(self, every_seconds: float, stopped: Callable[[float], bool]) -> None:
        """Catch up again and again, until `stopped(seconds)`, which waits, returns True."""
        self._read_offset()  # errors that no waiting mends are raised at once
        last = ""
        while True:
            try:
                self.catch_up()
                last = ""
            except TRIED_AGAIN as error:
                self.figures.failures += 1
                self._see_waiting()
                text = str(explain_os_error(error) if isinstance(error, OSError) else error)
                if text != last:
                    last = text
                    self._listener.note(f"trying again: {text}")
            if stopped(every_seconds):
                return

    def _see_waiting(self) -> None:
        """Look which batch waits after an error, so that the lag grows; nothing changes if the source fails too."""
        with contextlib.suppress(NearcastError, OSError):
            self.figures.waiting = self._feed.oldest_waiting(None if self._stored is None else self._stored["offset"])

    def _apply_group(
        self, group: Sequence[FeedBatch], known: dict[str, Any]
    ) -> tuple[list[UpdateResult], dict[str, Any], bool]:
        """Apply batches as one update; each by itself if that is refused.

        Return the results, the offset after them, and whether the feed has to be read again from there.
        """
        if len(group) > 1:
            try:
                result, known = self._apply(group, known)
                return [result], known, False
            except (InputError, AuditError):
                pass
        results = []
        for batch in group:
            try:
                result, known = self._apply([batch], known)
                results.append(result)
            except (InputError, AuditError) as error:
                known = self._set_aside(batch, error, known)
                if batch.offset_if_refused is not None:
                    return results, known, True
        return results, known, False

    def _apply(self, group: Sequence[FeedBatch], known: dict[str, Any]) -> tuple[UpdateResult, dict[str, Any]]:
        """Apply batches as one update. Return the result, and the offset after it."""
        for batch in group:
            if batch.error is not None:
                raise batch.error
        known = {**known, "offset": group[-1].offset}
        result = self._update([batch.inputs for batch in group], known, f"follow: {_name_batches(group)}")
        figures, now = self.figures, store_time(self._store)
        figures.freshness.extend(max(0.0, now - batch.arrived) for batch in group)
        figures.batches += len(group)
        figures.items += sum(batch.rows for batch in group)
        figures.lists += result.counts["lists"]
        return result, known

    def _set_aside(self, batch: FeedBatch, error: Exception, known: dict[str, Any]) -> dict[str, Any]:
        """Keep the name and the error of a batch with the offset after it. Return the offset."""
        self.figures.set_aside += 1
        self._listener.note(f"{batch.name} is set aside: {error}")
        aside = [*known["set_aside"], [batch.name, str(error)[:ERROR_LETTERS]]][-SET_ASIDE:]
        offset = batch.offset if batch.offset_if_refused is None else batch.offset_if_refused
        known = {**known, "offset": offset, "set_aside": aside, "count": known["count"] + 1}
        self._update([BatchInputs()], known, f"follow: {batch.name} is set aside")
        return known

    def _update(self, inputs: Sequence[BatchInputs], known: dict[str, Any], note: str) -> UpdateResult:
        figures = self.figures
        fresh = {"p50": figures.quantile(0.5), "p99": figures.quantile(0.99), "batches": len(figures.freshness)}
        kept = {**known, **({"freshness": fresh} if figures.freshness else {})}
        name, before = self._feed.name, self._stored
        result = self._updater.apply(UpdateRequest(inputs, self._limits[0], note, {name: kept}, {name: before}))
        self._stored = kept
        return result

    def _read_offset(self) -> dict[str, Any]:
        """Return how far the feed has been read. A rollback of patches or to another version does not move it back.

        Raises NotFoundError if nothing is published, StoreError if the store takes no patches.
        """
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self.generator)
        known = find_patches(self._store, self.generator).state(pointer.version).offsets.get(self._feed.name)
        self._stored = known
        return {"offset": None, "set_aside": [], "count": 0} if known is None else dict(known)


def _join_batches(batches: Iterator[FeedBatch], most_rows: int) -> Iterator[list[FeedBatch]]:
    """Yield batches that are applied together; one with an error, and one of the most rows, by itself."""
    group, rows = list[FeedBatch](), 0
    for batch in batches:
        if group and (batch.error is not None or rows + batch.rows > most_rows or len(group) == MOST_BATCHES):
            yield group
            group, rows = [], 0
        group.append(batch)
        rows += batch.rows
        if batch.error is not None:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _name_batches(group: Sequence[FeedBatch]) -> str:
    names = [batch.name for batch in group]
    return ", ".join(names) if len(names) <= NAMED else f"{names[0]} to {names[-1]}, {len(names)} files"


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
        ("failures_total", "counter", "errors of the store or the source, tried again", figures.failures),
    ]
    lines = []
    for name, kind, text, value in rows:
        lines += [f"# HELP nearcast_follow_{name} {text}", f"# TYPE nearcast_follow_{name} {kind}"]
        lines.append(f'nearcast_follow_{name}{{generator="{generator}"}} {value}')
    lines.append("# HELP nearcast_follow_freshness_seconds seconds from a batch's arrival until it is in force")
    lines.append("# TYPE nearcast_follow_freshness_seconds summary")
    for share in (0.5, 0.99):
        labels = f'generator="{generator}",quantile="{share:g}"'
        lines.append(f"nearcast_follow_freshness_seconds{{{labels}}} {figures.quantile(share)}")
    lines.append(f'nearcast_follow_freshness_seconds_count{{generator="{generator}"}} {figures.batches}')
    return "\n".join(lines) + "\n"
