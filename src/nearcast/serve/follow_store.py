"""Follow a generator in a store: a thread polls the pointer and the overlay and swaps in whole new views.

A new version is opened and verified beside the old one. If it cannot be opened, the old version stays in use and
`error` says why. Knows nothing of the look-ups that use the views.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from nearcast.errors import DamagedError, GoneError, NearcastError, NotFoundError, StoreError
from nearcast.serve.canary_tally import CanaryTally
from nearcast.serve.canary_view import CanaryView, make_canary_view
from nearcast.serve.lookup_data import LookupState
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.table_version import TableVersion, open_version
from nearcast.serve.view import View
from nearcast.stores import StoreLike, make_unpublished_error, resolve_store
from nearcast.stores.base import (
    OverlayChanges,
    OverlayLog,
    PatchState,
    Pointer,
    Store,
    check_reader,
    newest_patch,
    read_patch_state,
)

__all__ = ["REFRESH_SECONDS", "RETRY_SECONDS", "TRANSIENT_ERRORS", "ClosesOnExit", "StoreFollower", "describe_error"]

REFRESH_SECONDS = 0.25  # an overlay entry is in force within a second of being written, even if one poll fails
RETRY_SECONDS = 30.0  # until a rejected version is tried again: verification reads all of it
TRANSIENT_ERRORS = (StoreError, NotFoundError, GoneError)  # the next poll may succeed
CLOSE_SECONDS = 5.0  # how long `close` waits for a poll under way


class ClosesOnExit:
    """A base for objects with a `close` method: `with` closes them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the resources of the object."""
        raise NotImplementedError


class PeriodicThread:
    """A daemon thread that calls a method every `seconds`. It does not keep the method's object alive."""

    def __init__(self, method: Callable[[], Any], seconds: float, name: str) -> None:
        self._stop = threading.Event()
        weak: weakref.WeakMethod[Callable[[], Any]] = weakref.WeakMethod(method)
        self._thread = threading.Thread(
            target=_call_periodically, args=(weak, seconds, self._stop), name=name, daemon=True
        )

    def start(self) -> None:
        """Start the thread. The first call comes after the first wait."""
        self._thread.start()

    def stop(self, wait_seconds: float) -> None:
        """Stop the thread, and wait at most this long for a call under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)


def _call_periodically(weak: weakref.WeakMethod[Callable[[], Any]], seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        method = weak()
        if method is None:
            return
        method()
        del method  # a reference would keep the object alive until the next call


@dataclass(frozen=True, slots=True)
class _RejectedVersion:
    """A version that could not be opened."""

    pointer: Pointer
    error: str
    retry: float  # monotonic time of the next try


class StoreFollower(ClosesOnExit):
    """The current view of a generator in a store. Safe to use from many threads.

    It keeps working in a child process after a fork, where its first use starts a new thread.
    """

    def __init__(self, store: StoreLike, generator: str, *, refresh_seconds: float, verify: bool) -> None:
        self.generator = generator
        self._store_argument = store
        self._refresh_seconds = refresh_seconds
        self._verify = verify
        self._closed = False
        self._store: Store | None = None
        self._overlay: OverlayLog | None = None
        self._view: View | None = None
        self._inherited_view: View | None = None  # of the parent process, until its first use in this process
        self._rejected: _RejectedVersion | None = None
        self._rejected_canary: _RejectedVersion | None = None  # the current version answers all keys meanwhile
        self._poll_error: str | None = None  # of the last poll
        self._tally: CanaryTally | None = None  # of the last canary: its figures survive a view
        self._has_lost_pairs = False  # the open version lost pairs in the store; reopened once it is complete again
        self._refreshed = 0.0
        self._callback: weakref.WeakMethod[Callable[[], None]] | None = None
        self._reset_threads()
        _FOLLOWERS.add(self)

    def _reset_threads(self) -> None:
        self._poller: PeriodicThread | None = None
        self._opener: threading.Thread | None = None
        self._lock = threading.RLock()  # held shortly: to poll and to swap views
        self._opening = threading.RLock()  # held while a version is opened, which may take long

    def close(self) -> None:
        """Stop the thread and close the store if it was opened here. Calls under way finish."""
        self._closed = True
        if self._poller is not None:
            self._poller.stop(CLOSE_SECONDS)
        with self._lock:
            self._view, self._inherited_view, store, self._store = None, None, self._store, None
        if store is not None and store is not self._store_argument:
            store.close()

    def view(self) -> View:
        """Return the current view: one version and one overlay state, which do not change while it is held.

        A view of a network store may find its version expired and raise GoneError; `Lookup.ask` handles that.
        """
        view = self._view
        return view if view is not None else self._start()

    def call_after_poll(self, callback: Callable[[], None]) -> None:
        """Call a bound method after every poll of the thread, as long as its object is alive."""
        self._callback = weakref.WeakMethod(callback)

    @property
    def refreshed_seconds(self) -> float:
        """Seconds since the last successful poll of the store."""
        return time.monotonic() - self._refreshed

    @property
    def error(self) -> str | None:
        """Why a newer version or overlay entry is not applied; None if all is applied."""
        rejected = self._rejected or self._rejected_canary
        return rejected.error if rejected is not None else self._poll_error

    @property
    def canary(self) -> CanaryTally | None:
        """The tally of the canary that is open beside the current version; None without one. See docs/canary.md."""
        view = self.view()
        return view.tally if isinstance(view, CanaryView) else None

    @property
    def state(self) -> LookupState:
        """The current state. Reads memory only, but counts the whole overlay: do not call it for every request."""
        view, store = self.view(), self._store
        patch = newest_patch(view.version.reader)
        return LookupState(
            generator=self.generator,
            store=store.url if store is not None else "",
            version=view.version.number,
            snapshot=view.snapshot,
            serial=view.pointer.serial,
            age_seconds=view.age_seconds,
            refreshed_seconds=self.refreshed_seconds,
            overlay=view.overlay.size(time.time()),
            error=self.error,
            version_facts=view.version.facts,
            patch=0 if patch is None else patch.number,
            patch_age_seconds=None if patch is None else max(0.0, time.time() - patch.made),
            canary=view.canary if isinstance(view, CanaryView) else None,
        )

    def read_patches(self) -> PatchState:
        """Read the patches of the current version from the store."""
        view, store = self.view(), self._store
        return PatchState() if store is None else read_patch_state(store, self.generator, view.version.number)

    def refresh(self) -> LookupState:
        """Poll the store now and apply its changes before returning. An error is reported in `error`, not raised.

        A rejected version is tried again.
        """
        self.view()
        with self._recording_errors():
            self._poll()
            self._open_current(retry=True)
            self._measure_canary()
        return self.state

    def _start(self) -> View:
        """Open the current version, or take over the view inherited by a fork, and start the thread."""
        with self._opening, self._lock:
            if self._closed:
                raise StoreError(f"the look-up of {self.generator} was closed; open it again")
            if self._view is not None:
                return self._view
            self._view = view = self._inherited_view or self._open_view()
            self._inherited_view = None
            self._poller = PeriodicThread(self._poll_regularly, self._refresh_seconds, f"nearcast-{self.generator}")
            self._poller.start()
            return view

    def _open_view(self) -> View:
        if self._store is None:
            self._store = resolve_store(self._store_argument)
        self._overlay = self._store.overlay(self.generator)
        changes = self._overlay.changes()  # before the pointer: see `_poll`
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self.generator)
        version = open_version(self._store, self.generator, pointer.version, verify=self._verify)
        pa.array([0]).to_numpy()  # imports pandas if installed: must not happen in a request, nor while forking
        self._refreshed = time.monotonic()
        view = View(version, OverlayState(version.item_ids).apply(changes), pointer)
        return self._add_canary(self._store, view, None)

    def _poll_regularly(self) -> None:
        """Poll once. A new version is opened on its own thread, so that overlay entries do not wait for it."""
        with self._recording_errors():
            pointer = self._poll()
            busy = self._opener is not None and self._opener.is_alive()
            if not busy and self._must_open(pointer):
                self._opener = threading.Thread(
                    target=self._open_in_background, name=f"nearcast-{self.generator}-open", daemon=True
                )
                self._opener.start()
            self._measure_canary()
        callback = self._callback and self._callback()
        if callback is not None:
            with self._recording_errors():
                callback()

    def _open_in_background(self) -> None:
        with self._recording_errors():
            self._open_current()

    @contextlib.contextmanager
    def _recording_errors(self) -> Iterator[None]:
        """Record any error instead of raising it: the thread must survive, and the last view stays in use."""
        try:
            yield
        except Exception as error:
            self._poll_error = describe_error(error)

    def _poll(self) -> Pointer:
        """Apply new overlay entries and return the pointer.

        The overlay is read before the pointer. A publisher moves the pointer first and then purges the entries that
        the new version already contains. A reader that sees the purge therefore sees the move too, and keeps the
        purged entries until it uses the new version.
        """
        with self._lock:
            view, store, log = self._view, self._store, self._overlay
            if view is None or store is None or log is None:
                raise StoreError(f"the look-up of {self.generator} was closed; open it again")
            overlay = view.overlay
            changes, error = self._read_overlay(log, overlay, in_process=store.in_process)
            behind = True
            try:
                pointer = store.pointer(self.generator)
                if pointer is None:
                    raise make_unpublished_error(store, self.generator)
                behind = pointer != view.pointer
            finally:
                newer = overlay if changes is None else overlay.apply(changes, keep_purged=behind)
                if newer is not overlay:
                    self._view = view.with_overlay(newer)
            lost = _describe_lost_pairs(view, is_current=not behind)
            self._has_lost_pairs = lost is not None
            self._drop_lost_canary()
            self._poll_error = error or lost
            if changes is not None:
                self._refreshed = time.monotonic()
            if not (behind or self._has_lost_pairs):
                self._rejected = None
            return pointer

    def _read_overlay(
        self, log: OverlayLog, overlay: OverlayState, *, in_process: bool
    ) -> tuple[OverlayChanges | None, str | None]:
        """Return the new changes, or None and an error text if the overlay is damaged: its last state stays in force.

        A server that does not respond raises StoreError, since it would not respond for the pointer either.
        """
        try:
            changes = log.changes(epoch=-1 if overlay.keeps_purged else overlay.epoch, serial=overlay.serial)
            if changes.serial < overlay.serial:
                raise DamagedError(
                    f"the overlay of {self.generator} went back from serial {overlay.serial} to {changes.serial}, as "
                    "it does in an older copy of the store; later removals stay in force here; restore the "
                    "newest copy, or heal it with publish --repair"
                )
            return changes, None
        except NearcastError as error:
            if not (isinstance(error, DamagedError) or in_process):
                raise
            return None, describe_error(error)

    def _must_open(self, pointer: Pointer) -> bool:
        view, rejected = self._view, self._rejected
        if view is None:
            return False
        if pointer == view.pointer and not self._has_lost_pairs:
            without = self._rejected_canary
            return without is not None and time.monotonic() >= without.retry
        return rejected is None or rejected.pointer != pointer or time.monotonic() >= rejected.retry

    def _open_current(self, *, gone: View | None = None, retry: bool = False) -> None:
        """Open the current version, and its canary, and swap them in. A version that is open already is kept.

        gone: a view to replace even if the pointer has not moved. retry: try a rejected canary again.
        """
        with self._opening:
            store = self._store
            if store is None:
                return
            view, repaired = self._view, self._has_lost_pairs
            if gone is not None and view is not None and not _list_versions(gone) <= _list_versions(view):
                return  # another thread was faster
            pointer = store.pointer(self.generator)
            if pointer is None:
                raise make_unpublished_error(store, self.generator)
            without = self._rejected_canary
            waits = without is None or (time.monotonic() < without.retry and not retry)
            if gone is None and view is not None and view.pointer == pointer and not repaired and waits:
                return
            held = view if gone is None and not repaired else None
            try:
                if held is not None and _is_open(pointer, held.pointer):
                    version = held.version
                else:
                    version = open_version(store, self.generator, pointer.version, verify=self._verify)
            except Exception as error:
                wait = 0.0 if isinstance(error, TRANSIENT_ERRORS) else RETRY_SECONDS
                text = (repaired and self._poll_error) or describe_error(error)  # lost pairs are the first cause
                self._rejected = _RejectedVersion(pointer, text, time.monotonic() + wait)
                raise
            with self._lock:
                if self._view is None:  # closed in the meantime
                    return
                overlay = self._view.overlay.convert(version.item_ids)
            opened = self._add_canary(store, View(version, overlay, pointer), held)
            with self._lock:
                if self._view is None:
                    return
                overlay = self._view.overlay.convert(version.item_ids)
                self._view = opened if overlay is opened.overlay else opened.with_overlay(overlay)
                self._rejected = None
                if overlay.keeps_purged or repaired:
                    self._poll()

    def _add_canary(self, store: Store, view: View, held: View | None) -> View:
        """Return the view with the canary of its pointer; without it if it cannot be opened.

        held: the view until now; its canary stays open if it is the same one.
        """
        canary, before = view.pointer.canary, held if isinstance(held, CanaryView) else None
        if canary is None:
            self._rejected_canary = self._tally = None
            return view
        if before is not None and canary.is_same(before.canary):
            return make_canary_view(view, before.canary_arm, canary, before.tally)
        try:
            version = open_version(store, self.generator, canary.version, verify=self._verify)
        except Exception as error:
            wait = 0.0 if isinstance(error, TRANSIENT_ERRORS) else RETRY_SECONDS
            text = f"the canary {canary.version:06d} cannot be opened: {describe_error(error)}"
            self._rejected_canary = _RejectedVersion(view.pointer, text, time.monotonic() + wait)
            return view
        self._rejected_canary = None
        arm = View(version, view.overlay.convert(version.item_ids), view.pointer)
        last = self._tally
        if last is None or not canary.is_same(last.canary):
            last = self._tally = CanaryTally(canary)
        return make_canary_view(view, arm, canary, last)

    def _drop_lost_canary(self) -> None:
        """Let the current version answer all keys if the store has lost pairs of the canary."""
        view = self._view
        if not isinstance(view, CanaryView):
            return
        lost = _describe_lost_pairs(view.canary_arm, is_current=True)
        if lost is not None:
            self._rejected_canary = _RejectedVersion(view.pointer, lost, time.monotonic() + RETRY_SECONDS)
            self._view = View(view.version, view.overlay, view.pointer)

    def _measure_canary(self) -> None:
        view = self._view
        if isinstance(view, CanaryView):
            view.tally.measure_waiting()

    def _replace_view(self, gone: View) -> View:
        """Return a view to retry with after the version of `gone` was deleted."""
        try:
            self._open_current(gone=gone)
        except NotFoundError as error:
            raise StoreError(f"{self.generator} {gone.snapshot} was taken away from the store: {error}") from error
        return self.view()

    def _reset_after_fork(self) -> None:
        """Drop the parent's threads and locks, which do not exist or may be held in the child.

        Open stores support use after a fork. The first use finds no view and starts a thread.
        """
        self._inherited_view, self._view = self._view or self._inherited_view, None
        self._reset_threads()


def _is_open(pointer: Pointer, held: Pointer) -> bool:
    """Return whether the version of a pointer is the version of `held`: only the canary has changed between them."""
    return pointer.version == held.version and pointer.moved_serial == held.moved_serial


def _list_versions(view: View) -> set[TableVersion]:
    return {view.version, view.canary_arm.version} if isinstance(view, CanaryView) else {view.version}


_FOLLOWERS: weakref.WeakSet[StoreFollower] = weakref.WeakSet()


def _describe_lost_pairs(view: View, *, is_current: bool) -> str | None:
    """Return an error text if the store has lost pairs of the open version, else None.

    is_current: the pointer names this version, so no process may delete it.
    """
    try:
        check_reader(view.version.reader)
    except DamagedError as error:
        return str(error)
    except GoneError:
        if is_current:
            return f"{view.snapshot} is current, but the store has lost its facts; publish again with --repair"
    except StoreError:
        pass  # the next poll reports it
    return None


def describe_error(error: Exception) -> str:
    """Return the text of an error; the type is added for an error that is not nearcast's own."""
    return str(error) if isinstance(error, NearcastError) else f"{type(error).__name__}: {error}"


def _reset_all_after_fork() -> None:
    for follower in list(_FOLLOWERS):
        follower._reset_after_fork()


os.register_at_fork(after_in_child=_reset_all_after_fork)
