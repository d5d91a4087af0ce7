"""Look-ups from a store: follows the pointer and the overlay, and answers every call from one `View`.

A thread looks for news. A new version is opened and verified beside the old one and swapped in whole; one that
cannot be opened is refused, the old one stays, and `state` says why. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa

from nearcast.errors import DamagedError, GoneError, NearcastError, NotFoundError, SpecError, StoreError
from nearcast.serve.background import Watch
from nearcast.serve.lookup_answers import Answer, Answers
from nearcast.serve.lookup_keys import Keys
from nearcast.serve.merged_lookup import MergedAnswer, Mix, answer_merged
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.resolvers import Key
from nearcast.serve.view import View, open_version
from nearcast.serve.weight_lookups import Tables
from nearcast.stores import StoreLike, make_unpublished_error, resolve_store
from nearcast.stores.base import Changes, OverlayLog, Pointer, Store, check_reader
from nearcast.stores.version_facts import VersionFacts

__all__ = ["Lookup", "LookupState", "open_lookup"]

REFRESH_SECONDS = (
    0.25  # so that an overlay entry is in force within a second of being written, also when one poll fails
)
RETRY_SECONDS = 30.0  # until a version that was refused is tried again: verifying it reads all of it
PASSING = (StoreError, NotFoundError, GoneError)  # what the next poll may find mended
CLOSE_SECONDS = 5.0  # that closing waits for a poll under way

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LookupState:
    """Where a look-up stands."""

    generator: str
    store: str  # without a password
    version: int
    snapshot: str  # such as 000007
    serial: int  # of the pointer that led to this version
    age_seconds: float  # of the snapshot
    refreshed_seconds: float  # since the store was last asked for news, and answered
    overlay: int  # entries in force
    error: str | None  # why what is newer in the store is not followed
    version_facts: VersionFacts

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the version as JSON data; see `docs/store-format.md`."""
        return self.version_facts.to_json()


def open_lookup(
    store: StoreLike, generator: str, *, refresh_seconds: float = REFRESH_SECONDS, verify: bool = True
) -> Lookup:
    """Open what is published of a generator, for look-ups that follow every publish and rollback.

    store: a URL such as lmdb:/srv/candidates or redis://host:6379/0, a path (of an LMDB store), or an open store.
    refresh_seconds: how often a thread asks the store for a moved pointer and for overlay entries.
    verify: compare every byte of a version with what was written before it is used, where the store can.
    Raises NotFoundError where nothing is published, StoreError where the store cannot be reached, DamagedError
    where what is published is not as it was written.
    """
    if refresh_seconds <= 0:
        raise SpecError(f"refresh_seconds is {refresh_seconds}: give a time above 0")
    lookup = Lookup(store, generator, refresh_seconds=refresh_seconds, verify=verify)
    try:
        lookup.view()
    except BaseException:
        lookup.close()
        raise
    return lookup


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A version that could not be opened, and when to try it again."""

    pointer: Pointer
    text: str
    retry: float  # on the monotonic clock


class Lookup:
    """A generator in a store, open for look-ups. Made by `nearcast.open`; safe to use from many threads.

    Keeps working in a child process after a fork, where it starts a watching thread of its own at its first use.
    """

    def __init__(self, store: StoreLike, generator: str, *, refresh_seconds: float, verify: bool) -> None:
        self.generator = generator
        self._given = store
        self._refresh_seconds = refresh_seconds
        self._verify = verify
        self._closed = False
        self._store: Store | None = None
        self._overlay: OverlayLog | None = None
        self._view: View | None = None
        self._resting: View | None = None  # of the parent process, until it is used in this one
        self._refusal: _Refusal | None = None
        self._trouble: str | None = None  # of the last poll
        self._has_lost_pairs = False  # what is open: it is opened anew when it is whole again
        self._refreshed = 0.0
        self.tables = Tables(generator, self._table)
        self._follower: weakref.WeakMethod[Callable[[], None]] | None = None
        self._without_threads()
        _ALIVE.add(self)

    def _without_threads(self) -> None:
        self._watch: Watch | None = None
        self._opener: threading.Thread | None = None
        self.tables.lock = threading.Lock()
        self._lock = threading.RLock()  # held to read news and to swap: shortly
        self._opening = threading.RLock()  # held while a version is opened, which may take long

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop following and let go of the store. Calls under way still end well where the store is a file."""
        self._closed = True
        self.tables.close()
        if self._watch is not None:
            self._watch.stop(CLOSE_SECONDS)
        with self._lock:
            self._view, self._resting, store, self._store = None, None, self._store, None
        if store is not None and store is not self._given:
            store.close()

    def get(
        self,
        key: str | int,
        *,
        k: int | None = None,
        min_score: float | None = None,
        fields: Sequence[str] = (),
        request: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The candidates of one key, best first, without items that are gone.

        key: an id of the query side; text is taken as a number where the table's keys are numbers.
        k, min_score: only the first k that are left, and only those with at least this score.
        fields: item columns to add, with the overlay's newer values; NotFoundError for one that there is not.
        request: what rules may know of it, by name: fields that they ask for as request.NAME, and stand-ins for the
        query's own columns. Every rule is applied; what is not brought is null. InputError names a field that no rule
        asks for, or that is of another type.
        A key that is not there is an answer with `found` False. StoreError where the store cannot say.
        """
        view = self._view or self.view()
        try:
            return view.get(key, k=k, min_score=min_score, fields=fields, request=request)
        except GoneError:
            return self._after(view).get(key, k=k, min_score=min_score, fields=fields, request=request)

    def get_many(
        self,
        keys: Keys,
        *,
        k: int | None = None,
        min_score: float | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> Answers:
        """The candidates of n keys as arrays, all of one snapshot. Fastest for 1,000 to 10,000 keys a call.

        keys: a NumPy array of integers, a list of integers or strings, or an Arrow array. request: see `get`; one for
        all keys. With rules, lists are judged one by one.
        """
        return self.ask(lambda view: view.get_many(keys, k=k, min_score=min_score, request=request))

    def merged(
        self, keys: Sequence[tuple[Key, float]] = (), *, context: Mapping[str, Any] | None = None, **wanted: Any
    ) -> MergedAnswer:
        """The candidates of several keys as one list of k, none twice, with a share for every key.

        keys: (key, weight) pairs, weights above 0. context: what the request knows, by the names of resolvers
        (`nearcast.serve.resolvers`): viewed, recent, session, phrase, person. wanted: k, by ("rank" or "score"),
        min_score, exclude (items that are not wanted), fields, most_keys, request: see `serve.merged_lookup.Mix`.
        The k places are shared out by weight among the keys that have candidates, and so many of each key's best are in
        the answer (`nearcast.serve.merge_lists` says it in full).
        Raises SpecError for a context that nobody knows, InputError for a key or weight that is none, NotFoundError for
        a column that there is not, or a table that was not published.
        """
        mix = Mix(keys, context or {}, **wanted)
        return self.ask(lambda view: answer_merged(view, mix, self.tables.row)[0])

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """These columns of items, a dictionary per id, with the overlay's newer values; None for what is not there."""
        return self.ask(lambda view: view.items(ids, fields))

    def removed(self, ids: Sequence[str | int]) -> list[bool]:
        """Whether the overlay has taken these items out, an answer per id. Reads memory only."""
        return self.view().removed(ids)

    def ask(self, question: Callable[[View], Result]) -> Result:
        """The result of a function of one view; of the current one where its version was taken away meanwhile."""
        view = self._view or self.view()
        try:
            return question(view)
        except GoneError:
            return question(self._after(view))

    def view(self) -> View:
        """What answers at this moment: one version and one overlay, which stay as they are for as long as it is held.

        A view of a network store may find its version expired after a while, which is a GoneError: see `ask`.
        """
        view = self._view
        return view if view is not None else self._begin()

    def follow_with(self, follower: Callable[[], None]) -> None:
        """Call a method of somebody after every round of the watching thread, for as long as its object is there."""
        self._follower = weakref.WeakMethod(follower)

    @property
    def refreshed_seconds(self) -> float:
        """Since the store was last asked for news, and answered."""
        return time.monotonic() - self._refreshed

    @property
    def error(self) -> str | None:
        """Why what is newer in the store is not followed, if it is not."""
        refusal = self._refusal
        return refusal.text if refusal is not None else self._trouble

    @property
    def state(self) -> LookupState:
        """Where this look-up stands. Reads memory only, but all of the overlay: not for every request."""
        view, store = self.view(), self._store
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
        )

    def refresh(self) -> LookupState:
        """Ask the store for news now, and follow them before this returns. What stands in the way is in `error`.

        A version that was refused is tried again.
        """
        self.view()
        with self._noting_trouble():
            self._poll()
            self._catch_up()
        return self.state

    def _table(self, name: str) -> Lookup:
        return open_lookup(self._given, name, refresh_seconds=self._refresh_seconds, verify=self._verify)

    def _begin(self) -> View:
        """Open everything at the start, or take up what a forked process has inherited; and watch."""
        with self._opening, self._lock:
            if self._closed:
                raise StoreError(f"the look-up of {self.generator} was closed; open it again")
            if self._view is not None:
                return self._view
            self._view = view = self._resting or self._opened()
            self._resting = None
            self._watch = Watch(self._look_for_news, self._refresh_seconds, f"nearcast-{self.generator}")
            self._watch.start()
            return view

    def _opened(self) -> View:
        """What is current."""
        if self._store is None:
            self._store = resolve_store(self._given)
        self._overlay = self._store.overlay(self.generator)
        changes = self._overlay.changes()  # before the pointer: see `_poll`
        pointer = self._store.pointer(self.generator)
        if pointer is None:
            raise make_unpublished_error(self._store, self.generator)
        version = open_version(self._store, self.generator, pointer.version, verify=self._verify)
        pa.array([0]).to_numpy()  # imports pandas where there is one: not in a request, nor while somebody forks
        self._refreshed = time.monotonic()
        return View(version, OverlayState(version.item_ids).apply(changes), pointer)

    def _look_for_news(self) -> None:
        """One round of the watching thread. A new version is opened on a thread of its own: overlays do not wait."""
        with self._noting_trouble():
            pointer = self._poll()
            busy = self._opener is not None and self._opener.is_alive()
            if not busy and self._is_news(pointer):
                self._opener = threading.Thread(
                    target=self._open_in_background, name=f"nearcast-{self.generator}-open", daemon=True
                )
                self._opener.start()
        follower = self._follower and self._follower()
        if follower is not None:
            with self._noting_trouble():
                follower()

    def _open_in_background(self) -> None:
        with self._noting_trouble():
            self._catch_up()

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Keep the last view, and the reason, whatever goes wrong: a thread that dies would follow nothing more."""
        try:
            yield
        except Exception as error:
            self._trouble = _in_words(error)

    def _poll(self) -> Pointer:
        """Take in the overlay's news; returns where the pointer is.

        The overlay is read before the pointer: a publisher moves the pointer first and then purges what the new
        version knows itself. So whoever sees the purge sees the move too, and keeps what is purged until it
        answers from the new version.
        """
        with self._lock:
            view, store, log = self._view, self._store, self._overlay
            if view is None or store is None or log is None:
                raise StoreError(f"the look-up of {self.generator} was closed; open it again")
            known = view.overlay
            changes, trouble = self._overlay_news(log, known, in_process=store.in_process)
            behind = True
            try:
                pointer = store.pointer(self.generator)
                if pointer is None:
                    raise make_unpublished_error(store, self.generator)
                behind = pointer != view.pointer
            finally:
                overlay = known if changes is None else known.apply(changes, keep_purged=behind)
                if overlay is not known:
                    self._view = replace(view, overlay=overlay)
            lost = _lost_pairs(view, is_current=not behind)
            self._has_lost_pairs = lost is not None
            self._trouble = trouble or lost
            if changes is not None:
                self._refreshed = time.monotonic()
            if not (behind or self._has_lost_pairs):
                self._refusal = None
            return pointer

    def _overlay_news(
        self, log: OverlayLog, known: OverlayState, *, in_process: bool
    ) -> tuple[Changes | None, str | None]:
        """What is new in the overlay; None, and why, where it is damaged: the last state of it stays in force then.

        A server that does not answer is an error, since it would not answer for the pointer either.
        """
        try:
            changes = log.changes(epoch=-1 if known.carried else known.epoch, serial=known.serial)
            if changes.serial < known.serial:
                raise DamagedError(
                    f"the overlay of {self.generator} went back from serial {known.serial} to {changes.serial}, as it "
                    "does in an older copy of the store; what was removed since stays removed here; restore the newest "
                    "copy, or heal it with publish --repair"
                )
            return changes, None
        except NearcastError as error:
            if not (isinstance(error, DamagedError) or in_process):
                raise
            return None, _in_words(error)

    def _is_news(self, pointer: Pointer) -> bool:
        view, refusal = self._view, self._refusal
        if view is None or (pointer == view.pointer and not self._has_lost_pairs):
            return False
        return refusal is None or refusal.pointer != pointer or time.monotonic() >= refusal.retry

    def _catch_up(self, *, gone: View | None = None) -> None:
        """Open the current version and swap it in. gone: a view that must be replaced, whatever is current."""
        with self._opening:
            store = self._store
            if store is None:
                return
            if gone is not None and self._view is not None and self._view.version is not gone.version:
                return  # another thread was faster
            pointer = store.pointer(self.generator)
            if pointer is None:
                raise make_unpublished_error(store, self.generator)
            mended = self._has_lost_pairs
            if gone is None and self._view is not None and self._view.pointer == pointer and not mended:
                return
            try:
                version = open_version(store, self.generator, pointer.version, verify=self._verify)
            except Exception as error:
                wait = 0.0 if isinstance(error, PASSING) else RETRY_SECONDS
                text = (mended and self._trouble) or _in_words(error)  # what was lost, as long as it is
                self._refusal = _Refusal(pointer, text, time.monotonic() + wait)
                raise
            with self._lock:
                if self._view is None:  # closed meanwhile
                    return
                overlay = self._view.overlay.typed(version.item_ids)
                self._view = View(version, overlay, pointer)
                self._refusal = None
                if overlay.carried or mended:
                    self._poll()

    def _after(self, gone: View) -> View:
        """The view to ask again after a version was taken away."""
        try:
            self._catch_up(gone=gone)
        except NotFoundError as error:
            raise StoreError(f"{self.generator} {gone.snapshot} was taken away from the store: {error}") from error
        return self.view()

    def _left_in_parent(self) -> None:
        """In a forked child: the parent's threads are not here, and one of them may have held a lock.

        What is open may be used on: a store is made for that. The first use finds no view and starts a thread.
        """
        self._resting, self._view = self._view or self._resting, None
        self._without_threads()


_ALIVE: weakref.WeakSet[Lookup] = weakref.WeakSet()


def _lost_pairs(view: View, *, is_current: bool) -> str | None:
    """Why some keys cannot be answered, where the store has lost pairs of the version that is open.

    is_current: it is what the pointer names, which nobody takes away.
    """
    try:
        check_reader(view.version.reader)
    except DamagedError as error:
        return str(error)
    except GoneError:
        if is_current:
            return f"{view.snapshot} is current, but what the store said of it is lost; publish again with --repair"
    except StoreError:
        pass  # the next round will tell
    return None


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, NearcastError) else f"{type(error).__name__}: {error}"


def _forked() -> None:
    for lookup in list(_ALIVE):
        lookup._left_in_parent()


os.register_at_fork(after_in_child=_forked)
