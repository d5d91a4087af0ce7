"""Generators and expansion tables that one process serves: opening, health, and retries.

A table that cannot be opened, or cannot follow the store, is reported and does not affect the others. Knows nothing
of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from nearcast.ads.expansion_table import Expansion
from nearcast.errors import NearcastError
from nearcast.serve.lookup import Lookup
from nearcast.serve.lookup_data import LookupState
from nearcast.serve.view import View
from nearcast.serve.weight_lookups import TableLookup
from nearcast.service.metrics import Metrics, measure_process
from nearcast.service.online_search import OnlineSearch
from nearcast.service.responses import RefusedError
from nearcast.service.worker_states import WorkerState, WorkerStates

__all__ = ["RETRY_SOON", "ServedGenerator", "ServedTables", "UnopenedTable", "list_columns"]

MAX_SILENT_SECONDS = 5.0  # without a response of a network store; after that the service is not ready
REOPEN_SECONDS = 60.0  # until a table that could not be opened is tried again: verification reads all of it
CANDIDATE_FIELDS = frozenset({"id", "score"})  # of every candidate; a column of that name would replace them
RETRY_SOON = ((b"retry-after", b"1"),)
RETRY_LATER = ((b"retry-after", b"10"),)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedGenerator:
    """An open generator."""

    lookup: Lookup
    in_process: bool  # its store reads in microseconds, without a network
    online: OnlineSearch | None = None


@dataclass(frozen=True, slots=True)
class UnopenedTable:
    """A table of the store that could not be opened, and how to try again."""

    error: str
    is_expansion: bool
    open: Callable[[], ServedGenerator | Expansion]
    published: Callable[[], object] = lambda: None  # the current pointer: after it has moved, the next try is at once
    tried: object = None  # the pointer of the last try
    retry: float = 0.0  # monotonic time of the next try


@dataclass(slots=True)
class LoggedErrors:
    """The last errors of a table in the log, so that each is logged once."""

    following: str | None = None
    since: float = 0.0  # of that error, in seconds since 1970
    is_failing: bool = False  # look-ups fail


@dataclass(slots=True)
class ServedTables:
    """Everything that one process serves. Belongs to one event loop. The look-ups are closed by their owner."""

    served: dict[str, ServedGenerator]
    metrics: Metrics
    pool: ThreadPoolExecutor
    draining: bool = False  # this process is stopping: it asks clients to close connections
    expansions: dict[str, Expansion] = field(default_factory=dict)
    unopened: dict[str, UnopenedTable] = field(default_factory=dict)
    workers: WorkerStates | None = None  # the other processes of the service, if there are any
    began: float = field(default_factory=time.time)  # start of the service
    _reopening: bool = False
    _logged: dict[str, LoggedErrors] = field(default_factory=dict)

    def generator(self, name: str) -> ServedGenerator:
        """Return a generator by name. Raises RefusedError that names the generators that are served."""
        try:
            return self.served[name]
        except KeyError:
            if name in self.unopened:
                message = "no version of this generator could be opened; the log of the service says why"
                raise RefusedError(503, "not_ready", message, RETRY_SOON) from None
            known = ", ".join(self.served)
            raise RefusedError(404, "unknown_generator", f"no such generator is served; there are {known}") from None

    def k(self, name: str) -> int:
        """Return the generator's k, candidates per key. Raises RefusedError if no version is open."""
        try:
            return self.generator(name).lookup.view().version.facts.k
        except NearcastError:
            raise RefusedError(503, "not_ready", "no version of this generator is open", RETRY_SOON) from None

    def online(self, name: str) -> OnlineSearch:
        """Return the online index of a generator. Raises RefusedError if none is served."""
        online = self.generator(name).online
        if online is None:
            message = f"{name} is served without an online index; start the service with --online and its spec"
            raise RefusedError(404, "no_online_index", message)
        return online

    def expansion(self, name: str | None) -> Expansion:
        """Return an expansion table by name, or the only one. Raises RefusedError if there is no such table."""
        unopened = self.unopened_expansions
        if name in unopened or (name is None and unopened and not self.expansions):
            message = "no version of this expansion table could be opened"
            raise RefusedError(503, "not_ready", message, RETRY_LATER)
        if name is None and len(self.expansions) == 1 and not unopened:
            return next(iter(self.expansions.values()))
        known = ", ".join([*self.expansions, *unopened]) or "none"
        if name is None:
            raise RefusedError(422, "which_expansion", f"expansion is to name a table; served are {known}")
        try:
            return self.expansions[name]
        except KeyError:
            message = f"no such expansion table is served; there are {known}"
            raise RefusedError(404, "unknown_expansion", message) from None

    def states(self) -> dict[str, LookupState]:
        """Return the state of every generator that has an open version."""
        states = {}
        for name, served in self.served.items():
            with contextlib.suppress(NearcastError):  # closed, or not open yet after a fork
                states[name] = served.lookup.state
        return states

    def all_states(self) -> dict[str, LookupState]:
        """Return the states of generators, of their weight tables, and of expansion tables."""
        states = {}
        for name, table in self._list_open_tables():
            with contextlib.suppress(NearcastError):
                states[name] = table.state
        return states

    @property
    def unopened_expansions(self) -> list[str]:
        """Expansion tables of the store that could not be opened."""
        return [name for name, table in self.unopened.items() if table.is_expansion]

    def list_unopened(self) -> list[str]:
        """Return the names of all tables that could not be opened, weight tables included."""
        return [*self.unopened, *(name for name in self._list_failures() if name not in self.served)]

    def _list_failures(self) -> dict[str, str]:
        return {name: text for served in self.served.values() for name, text in served.lookup.tables.failures().items()}

    def _list_open_tables(self) -> Iterator[tuple[str, TableLookup | Expansion]]:
        for name, served in list(self.served.items()):
            yield name, served.lookup
            for table, lookup in served.lookup.tables.list_opened().items():
                if table not in self.served:
                    yield table, lookup
        yield from list(self.expansions.items())

    def list_warnings(self) -> list[str]:
        """Return warnings on tables that are outdated or not open. The service stays ready. Names no files."""
        own = self._list_own_warnings()
        return own if self.workers is None else self.workers.merge_lists(own, lambda state: state.warnings)

    def _list_own_warnings(self) -> list[str]:
        warnings = [f"{name}: no version could be opened" for name in self.list_unopened()]
        outdated = [name for name, table in self._list_open_tables() if table.error]
        return warnings + [f"{name}: what is newer in the store is not served" for name in outdated]

    def list_problems(self) -> list[str]:
        """Return why the service, with all its workers, is not ready; empty if it is ready."""
        own = self._list_own_problems()
        if self.workers is not None:
            return self.workers.merge_problems(own)
        return ["the service is stopping", *own] if self.draining else own

    def _list_own_problems(self) -> list[str]:
        problems: list[str] = []
        in_process = all(served.in_process for served in self.served.values())
        lookups = {name: served.lookup for name, served in self.served.items()}
        lookups |= {name: table.lookup for name, table in self.expansions.items()}
        for name, lookup in lookups.items():
            try:
                lookup.view()
            except NearcastError:
                problems.append(f"{name}: no version is open")
                continue
            if not in_process and lookup.refreshed_seconds > MAX_SILENT_SECONDS:
                problems.append(f"{name}: the store has not answered for more than {MAX_SILENT_SECONDS:.0f} s")
        return problems

    def write_state(self) -> None:
        """Write the state of this process for the other workers, if there are any."""
        if self.workers is None:
            return
        self.metrics.count_processor_time()
        states = self.states()
        state = WorkerState(
            pid=os.getpid(),
            generators=", ".join(f"{name} {one.snapshot}" for name, one in states.items()),
            problems=self._list_own_problems(),
            warnings=self._list_own_warnings(),
            unopened=self.list_unopened(),
            gauges=self.metrics.source.read(),
            process=measure_process(),
            failing_since={name: logged.since for name, logged in self._logged.items() if logged.following},
        )
        try:
            self.workers.write_worker(state)
        except OSError as error:  # it has outgrown its file, and the disk is full
            log.warning("the state of this worker cannot be written: %s", error)

    def find_failing_since(self, name: str) -> float:
        """Return since when a generator does not follow the store, in seconds since 1970. Unknown: now."""
        logged, now = self._logged.get(name), time.time()
        own = logged.since if logged is not None and logged.following else now
        return own if self.workers is None else self.workers.find_failing_since(name, own)

    def check_tables(self) -> None:
        """Log each new error of following the store once, and its end; retry unopened tables; count canaries."""
        self._reopen()
        for name, served in self.served.items():
            with contextlib.suppress(NearcastError):  # closed, or not open yet after a fork
                if (tally := served.lookup.canary) is not None:
                    self.metrics.canaries.follow(name, tally)
        for name, text in self._list_failures().items():
            if name not in self.served:
                self._log_unopened(name, text)
        for name, table in self._list_open_tables():
            logged, error = self._logged.setdefault(name, LoggedErrors()), table.error
            if error and not logged.following:
                self.metrics.count_update_failure(name)
                logged.since = time.time()
            if error and error != logged.following:
                log.warning("%s still answers from the version that it has: %s", name, error)
            if logged.following and not error:
                log.warning("%s follows the store again, at %s", name, table.state.snapshot)
            logged.following = error

    def _log_unopened(self, name: str, text: str) -> None:
        logged = self._logged.setdefault(name, LoggedErrors())
        if logged.following != text:
            self.metrics.count_update_failure(name)
            log.warning("%s cannot be opened: %s", name, text)
        logged.following = text

    def _reopen(self) -> None:
        """Start a thread that tries to open the unopened tables: after the pointer has moved, and every minute."""
        for name, table in self.unopened.items():
            self._log_unopened(name, table.error)
        if self.unopened and not self._reopening:
            self._reopening = True
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self.pool, self._reopen_all, loop, dict(self.unopened))

    def _reopen_all(self, loop: asyncio.AbstractEventLoop, unopened: Mapping[str, UnopenedTable]) -> None:
        try:
            for name, table in unopened.items():
                self._reopen_one(loop, name, table)
        finally:
            self._reopening = False

    def _reopen_one(self, loop: asyncio.AbstractEventLoop, name: str, table: UnopenedTable) -> None:
        current: object = None
        try:
            current = table.published()
            if current == table.tried and time.monotonic() < table.retry:
                return
            opened = table.open()
        except Exception as error:  # the next check logs it if it is a new one
            failed = replace(table, error=str(error), tried=current, retry=time.monotonic() + REOPEN_SECONDS)
            loop.call_soon_threadsafe(self.unopened.update, {name: failed})
        else:
            loop.call_soon_threadsafe(self._add, name, opened)

    def _add(self, name: str, opened: ServedGenerator | Expansion) -> None:
        """Serve a table that could not be opened before. The next check logs that it follows the store again."""
        if isinstance(opened, Expansion):
            self.expansions[name] = opened
        else:
            self.served[name] = opened
        self.unopened.pop(name, None)


def list_columns(view: View) -> list[str]:
    """Return the item columns that a request may name."""
    return sorted(view.columns - CANDIDATE_FIELDS)
