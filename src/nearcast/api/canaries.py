"""Functions for a canary: read its figures, change its share, promote, withdraw and watch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nearcast.api.arguments import (
    SpecLike,
    StoreLike,
    input_path,
    open_generator_store,
    report_failure,
)
from nearcast.api.retaining import retain_after_publish
from nearcast.history.record import record_canary, record_publication
from nearcast.join.listener import Listener
from nearcast.monitoring.canary_hits import count_hits
from nearcast.monitoring.service_figures import FigureSource
from nearcast.monitoring.watch_canary import CanaryOutcome, CanaryReport, CanaryWatch, read_report, watch
from nearcast.publishing import move_canary
from nearcast.publishing.engagement import LogColumns, read_log
from nearcast.publishing.targets import PublishTarget
from nearcast.stores.base import Store
from nearcast.stores.canary_share import Canary

if TYPE_CHECKING:
    from nearcast.measure.canary_figures import HitFigures
    from nearcast.publishing.publication import Publication
    from nearcast.stores.base import Pointer

__all__ = [
    "CanarySource",
    "promote_canary",
    "read_canary",
    "set_canary_share",
    "watch_canary",
    "withdraw_canary",
]

EVERY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class CanarySource:
    """Where the figures of a canary come from: services, and perhaps a log of engagement."""

    services: Sequence[str] = ()  # URLs of all services that serve the generator
    token: str | None = None  # bearer token of the services
    engagement: str | Path | None = None  # Parquet file, folder or URL: one row per engagement
    key: str = "key"  # columns of the log
    item: str = "item"
    time: str | None = None  # rows from before the canary are left out


def read_canary(
    generator: SpecLike,
    source: CanarySource | None = None,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> CanaryReport:
    """Return the live canary, its figures and what the spec's rules say. Changes nothing.

    Raises NotFoundError if no canary is live, StoreError.
    """
    with _open_watch(generator, source, store, out, listener) as watched:
        pointer, canary = move_canary.read_live_canary(watched.store, watched.generator)
        return read_report(watched, hits=watched.read_hits(pointer, canary))


def set_canary_share(
    generator: SpecLike,
    share: float,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Canary:
    """Change the share of the live canary. Keys that were in the share stay in it if it grows."""
    with open_generator_store(generator, store, out) as (target, opened):
        canary = move_canary.change_canary_share(opened, target.generator, share)
    failure = record_canary(target.out, target.generator, canary.version, "share", {"share": share})
    report_failure(listener or Listener(), failure)
    return canary


def promote_canary(
    generator: SpecLike,
    *,
    why: str = "",
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Make the version of the live canary current, after reading every byte of it again.

    Raises NotFoundError if no canary is live, DamagedError if its bytes changed, BusyError, StoreError.
    """
    with open_generator_store(generator, store, out) as (target, opened):
        return _promote(opened, target, why, None, listener or Listener())


def withdraw_canary(
    generator: SpecLike,
    *,
    why: str = "",
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Canary:
    """End the live canary; the current version answers all keys again. Its version counts as rolled back.

    Raises NotFoundError if no canary is live, BusyError, StoreError.
    """
    with open_generator_store(generator, store, out) as (target, opened):
        return _withdraw(opened, target, why, None, listener or Listener())


def watch_canary(
    generator: SpecLike,
    source: CanarySource,
    *,
    every_seconds: float = EVERY_SECONDS,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
    show: Callable[[CanaryReport], None] = lambda _: None,
) -> CanaryOutcome:
    """Watch the live canary until the rules of the spec's [canary] promote or withdraw it.

    Ends as undecided, with the canary live, if too little is measured within `max_seconds`, or the store or the log
    cannot be read a minute after them. show: called after each look. Raises NotFoundError if no canary is live,
    SpecError for an invalid URL.
    """
    with _open_watch(generator, source, store, out, listener) as watched:
        return watch(watched, every_seconds, show)


@contextlib.contextmanager
def _open_watch(
    generator: SpecLike,
    source: CanarySource | None,
    store: StoreLike | None,
    out: str | Path | None,
    listener: Listener | None,
) -> Iterator[CanaryWatch]:
    listener, source = listener or Listener(), source or CanarySource()
    with open_generator_store(generator, store, out) as (target, opened):
        figures = FigureSource(target.generator, tuple(source.services), source.token)

        def read_hits(pointer: Pointer, canary: Canary) -> HitFigures | None:
            if source.engagement is None:
                return None
            columns = LogColumns(source.key, source.item, time=source.time)
            log = read_log(input_path(str(source.engagement)), columns, listener.note)
            return count_hits(opened, target.generator, pointer, canary, log, columns)

        def promote(canary: Canary, report: CanaryReport) -> None:
            _promote(opened, target, report.verdict.why, canary, listener)

        def withdraw(canary: Canary, report: CanaryReport) -> None:
            _withdraw(opened, target, report.verdict.why, canary, listener)

        yield CanaryWatch(opened, target.generator, target.canary, figures, read_hits, promote, withdraw, listener.note)


def _promote(store: Store, target: PublishTarget, why: str, expected: Canary | None, listener: Listener) -> Publication:
    done = move_canary.promote_canary(
        store, target.generator, target.publish, why, expected=expected, listener=listener
    )
    done = retain_after_publish(target, store, done, listener)
    report_failure(listener, record_canary(target.out, target.generator, done.version, "promoted", {"why": why}))
    report_failure(listener, record_publication(target.out, done))
    return done


def _withdraw(store: Store, target: PublishTarget, why: str, expected: Canary | None, listener: Listener) -> Canary:
    canary = move_canary.withdraw_canary(store, target.generator, why, expected=expected)
    report_failure(listener, record_canary(target.out, target.generator, canary.version, "withdrawn", {"why": why}))
    return canary
