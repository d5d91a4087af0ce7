"""The service without its HTTP: generators by name, where their look-ups run, and what is said when one cannot be done.

A look-up in a store of this process takes microseconds and is done where it is asked for. One that waits for a network,
a long one, or a search, is done on a thread; so many may wait, and then the rest is refused at once. Whatever a store
does, the answer is a refusal with a reason, and never an error of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from nearcast.ads.ad_answer import AdAnswer
from nearcast.ads.expansion_table import Expansion
from nearcast.errors import InputError, NearcastError, NotFoundError
from nearcast.serve.lookup import Lookup
from nearcast.serve.lookup_data import Answer, Answers, LookupOptions, LookupState
from nearcast.serve.merged_lookup import MergedAnswer, MergeQuery, answer_merged
from nearcast.serve.resolvers import Key, Row, reads_table
from nearcast.serve.view import View
from nearcast.serve.weight_lookups import TableLookup
from nearcast.service.ads_request import question
from nearcast.service.ads_schemas import AdsWanted
from nearcast.service.fallback import KeyQuery, answer_key, answer_keys
from nearcast.service.metrics import Metrics, new_metrics
from nearcast.service.online_search import CandidateList, OnlineSearch, read_columns, search_online
from nearcast.service.responses import RefusedError
from nearcast.types import FloatArray

__all__ = ["Searched", "Served", "Service", "Unopened", "columns_in", "new_service"]

LONG = 32  # keys or so; more take longer than the requests beside them should wait
THREADS = 16
MOST_WAITING = 256  # on threads, or for one
SILENT_SECONDS = 5.0  # without an answer from a network store, and the service is not ready
OWN_FIELDS = frozenset({"id", "score"})  # of every candidate; a column of that name would take their place
REOPEN_SECONDS = 60.0  # until what could not be opened is tried again: to look at every byte takes a while
AGAIN = ((b"retry-after", b"1"),)

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A generator that is served."""

    lookup: Lookup
    in_process: bool  # as its store says
    online: OnlineSearch | None = None


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found, with the columns that were wanted."""

    found: list[CandidateList]
    columns: list[dict[str, list[Any]]]
    snapshot: str


@dataclass(frozen=True, slots=True)
class Unopened:
    """Something in the store that could not be opened, and how to try again."""

    error: str
    is_expansion: bool
    open: Callable[[], Served | Expansion]
    published: Callable[[], object] = lambda: None  # what is current: another one is tried at once
    tried: object = None  # what was current then
    retry: float = 0.0  # on the monotonic clock, when the same is tried again


@dataclass(slots=True)
class _Trouble:
    """What was last said in the log about a generator, so that it is said once."""

    following: str | None = None
    answering: bool = False


@dataclass(slots=True)
class Service:
    """Everything that is served by one process. Made by `new_service`; belongs to one event loop."""

    served: dict[str, Served]
    metrics: Metrics
    pool: ThreadPoolExecutor
    most_waiting: int
    draining: bool = False  # stops being ready, and asks clients to leave
    waiting: int = 0
    sampled: Callable[[str, Sequence[Answer] | Answers], None] | None = None  # told of every look-up by key
    expansions: dict[str, Expansion] = field(default_factory=dict)
    unopened: dict[str, Unopened] = field(default_factory=dict)
    _reopening: bool = False
    _trouble: dict[str, _Trouble] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of the threads. The look-ups are their owner's to close."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def generator(self, name: str) -> Served:
        """What is served under a name; refused with the names that there are."""
        try:
            return self.served[name]
        except KeyError:
            if name in self.unopened:
                message = "no version of this generator could be opened; the log of the service says why"
                raise RefusedError(503, "not_ready", message, AGAIN) from None
            known = ", ".join(self.served)
            raise RefusedError(404, "unknown_generator", f"no such generator is served; there are {known}") from None

    def k(self, name: str) -> int:
        """Candidates per key of the version that answers; refused where none is open."""
        try:
            return self.generator(name).lookup.view().version.facts.k
        except NearcastError:
            raise RefusedError(503, "not_ready", "no version of this generator is open", AGAIN) from None

    async def candidates(self, name: str, question: KeyQuery, wanted: LookupOptions) -> Answer:
        """The candidates of one key."""
        served = self.generator(name)
        online = served.online if question.vector is not None else None

        def ask(view: View) -> Answer:
            _check_fields(view, wanted.fields)
            return answer_key(view, question, wanted, online)

        there = served.in_process and online is None
        answer = await self._asked(name, served.lookup, ask, elsewhere=not there)
        self._answered(name, (answer,))
        return answer

    async def many_candidates(
        self, name: str, questions: Sequence[KeyQuery], wanted: LookupOptions, tell: Callable[[list[Answer]], bytes]
    ) -> bytes:
        """What `tell` makes of the candidates of many keys, in their order. It is called where the look-up is done."""
        served = self.generator(name)
        by_vector = served.online is not None and any(question.vector is not None for question in questions)

        def ask(view: View) -> tuple[list[Answer], bytes]:
            _check_fields(view, wanted.fields)
            answers = answer_keys(view, questions, wanted, served.online)
            return answers, tell(answers)

        there = served.in_process and not by_vector and len(questions) <= LONG
        answers, told = await self._asked(name, served.lookup, ask, elsewhere=not there)
        self._answered(name, answers)
        return told

    async def merged(self, name: str, mix: MergeQuery) -> MergedAnswer:
        """The candidates of several keys as one list; refused where a table is needed that there is not."""
        served = self.generator(name)

        def row(table: str, key: Key) -> Row:
            try:
                return served.lookup.tables.row(table, key)
            except NotFoundError:
                raise RefusedError(404, "no_table", f"{name} has no table {table} in its store; publish one") from None

        def ask(view: View) -> tuple[MergedAnswer, list[Answer]]:
            _check_fields(view, mix.fields)
            answer, lists = answer_merged(view, mix, row)
            return answer, list(lists)

        there = served.in_process and not reads_table(mix.context)  # a table may have to be opened first
        answer, lists = await self._asked(name, served.lookup, ask, elsewhere=not there)
        self._answered(name, lists)
        return answer

    async def ads(self, name: str, expansion: Expansion, wanted: AdsWanted) -> AdAnswer:
        """What an expansion table promotes for keys of a generator."""
        served = self.generator(name)
        there = served.in_process and len(wanted.keys) <= LONG
        promoted = await self._asked(name, served.lookup, question(expansion, wanted), elsewhere=not there)
        self._answered(name, promoted.looked_up)
        self.metrics.promoted(expansion.name, len(promoted))
        return promoted

    async def search(self, name: str, vectors: FloatArray, wanted: LookupOptions) -> Searched:
        """What is near these (n, dim) vectors; refused where no online index is served."""
        served = self.generator(name)
        online = self.online(name)

        def ask(view: View) -> Searched:
            _check_fields(view, wanted.fields)
            found = search_online(view, online, vectors, wanted)
            columns = read_columns(view, [row.ids for row in found], wanted.fields) if wanted.fields else []
            return Searched(found, columns, view.snapshot)

        answer = await self._asked(name, served.lookup, ask, elsewhere=True)
        self.metrics.searched(name, sum(row.removed for row in answer.found), len(vectors))
        return answer

    def online(self, name: str) -> OnlineSearch:
        """The online index of a generator; refused where none is served."""
        online = self.generator(name).online
        if online is None:
            message = f"{name} is served without an online index; start the service with --online and its spec"
            raise RefusedError(404, "no_online_index", message)
        return online

    def vectors(self, name: str, rows: Sequence[Sequence[float]]) -> FloatArray:
        """Vectors as an (n, dim) array; refused where they do not fit the online index."""
        dim = self.online(name).dim
        for number, row in enumerate(rows):
            if len(row) != dim:
                message = f"vector {number} has {len(row):,} dimensions; the online index of {name} has {dim:,}"
                raise RefusedError(422, "wrong_dimension", message)
        with np.errstate(over="ignore"):
            array = np.array(rows, np.float32).reshape(len(rows), dim)
        if not np.isfinite(array).all():
            raise RefusedError(422, "invalid", "vectors: a number is too large for 32 bits")
        return array

    def states(self) -> dict[str, LookupState]:
        """Where every look-up stands, without those that stand nowhere."""
        found = {}
        for name, served in self.served.items():
            with contextlib.suppress(NearcastError):  # closed, or not open again yet after a fork
                found[name] = served.lookup.state
        return found

    def all_states(self) -> dict[str, LookupState]:
        """Where every look-up stands, those of expansion tables and of tables that requests are resolved by too."""
        found = {}
        for name, followed in self._followed():
            with contextlib.suppress(NearcastError):
                found[name] = followed.state
        return found

    @property
    def unopened_expansions(self) -> list[str]:
        """Expansion tables of the store that could not be opened."""
        return [name for name, what in self.unopened.items() if what.is_expansion]

    def faulty(self) -> list[str]:
        """What could not be opened at all."""
        faults = [name for served in self.served.values() for name in served.lookup.tables.failures()]
        return [*self.unopened, *(name for name in faults if name not in self.served)]

    def _followed(self) -> Iterator[tuple[str, TableLookup | Expansion]]:
        for name, served in list(self.served.items()):
            yield name, served.lookup
            for table, lookup in served.lookup.tables.opened().items():
                if table not in self.served:
                    yield table, lookup
        yield from list(self.expansions.items())

    def remarks(self) -> list[str]:
        """What is not served as it should be, and takes nothing else down. Without texts that name files."""
        remarks = [f"{name}: no version could be opened" for name in self.faulty()]
        not_followed = [name for name, followed in self._followed() if followed.error]
        return remarks + [f"{name}: what is newer in the store is not served" for name in not_followed]

    def reasons(self) -> list[str]:
        """Why requests should not be sent here; none is good news."""
        reasons = ["the service is stopping"] if self.draining else []
        in_process = all(served.in_process for served in self.served.values())
        lookups = {name: served.lookup for name, served in self.served.items()}
        for name, lookup in (lookups | {name: table.lookup for name, table in self.expansions.items()}).items():
            try:
                lookup.view()
            except NearcastError:
                reasons.append(f"{name}: no version is open")
                continue
            if not in_process and lookup.refreshed_seconds > SILENT_SECONDS:
                reasons.append(f"{name}: the store has not answered for more than {SILENT_SECONDS:.0f} s")
        return reasons

    def watch(self) -> None:
        """Say in the log, once, where a look-up has stopped following the store, or follows it again."""
        self._open_again()
        faults = {
            name: text for served in self.served.values() for name, text in served.lookup.tables.failures().items()
        }
        for name, text in faults.items():
            if name not in self.served:
                self._say_fault(name, text)
        for name, followed in self._followed():
            trouble, error = self._trouble.setdefault(name, _Trouble()), followed.error
            if error and not trouble.following:
                self.metrics.refused(name)
            if error and error != trouble.following:
                log.warning("%s still answers from what it has: %s", name, error)
            if trouble.following and not error:
                log.warning("%s follows the store again, at %s", name, followed.state.snapshot)
            trouble.following = error

    def _say_fault(self, name: str, text: str) -> None:
        trouble = self._trouble.setdefault(name, _Trouble())
        if trouble.following != text:
            self.metrics.refused(name)
            log.warning("%s cannot be opened: %s", name, text)
        trouble.following = text

    def _open_again(self) -> None:
        """Try on a thread to open what could not be opened: when another version is current, and now and then."""
        for name, what in self.unopened.items():
            self._say_fault(name, what.error)
        if self.unopened and not self._reopening:
            self._reopening = True
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self.pool, self._open_some, loop, dict(self.unopened))

    def _open_some(self, loop: asyncio.AbstractEventLoop, unopened: Mapping[str, Unopened]) -> None:
        try:
            for name, what in unopened.items():
                self._open_one(loop, name, what)
        finally:
            self._reopening = False

    def _open_one(self, loop: asyncio.AbstractEventLoop, name: str, what: Unopened) -> None:
        current: object = None
        try:
            current = what.published()
            if current == what.tried and time.monotonic() < what.retry:
                return
            opened = what.open()
        except Exception as error:  # said in the log by the next round, where it is another
            news = replace(what, error=str(error), tried=current, retry=time.monotonic() + REOPEN_SECONDS)
            loop.call_soon_threadsafe(self.unopened.update, {name: news})
        else:
            loop.call_soon_threadsafe(self._adopt, name, opened)

    def _adopt(self, name: str, opened: Served | Expansion) -> None:
        """Serve what can be opened now; what was said of it in the log is taken back by the next round."""
        if isinstance(opened, Expansion):
            self.expansions[name] = opened
        else:
            self.served[name] = opened
        self.unopened.pop(name, None)

    def _answered(self, name: str, answers: Sequence[Answer] | Answers) -> None:
        self.metrics.answered(name, answers)
        if self.sampled is not None:
            self.sampled(name, answers)

    async def _asked(self, name: str, lookup: Lookup, ask: Callable[[View], Result], *, elsewhere: bool) -> Result:
        """The answer to a question, here or on a thread."""
        try:
            result = await self._elsewhere(name, lookup, ask) if elsewhere else lookup.ask(ask)
        except InputError as error:
            raise RefusedError(422, "invalid", str(error)) from None
        except NearcastError as error:
            self.metrics.store_failed(name)
            trouble = self._trouble.setdefault(name, _Trouble())
            if not trouble.answering:
                log.warning("%s cannot be looked up: %s", name, error)
            trouble.answering = True
            message = "the store did not answer; try again"
            raise RefusedError(503, "store_unavailable", message, AGAIN) from None
        known = self._trouble.get(name)
        if known is not None and known.answering:
            known.answering = False
            log.warning("%s can be looked up again", name)
        return result

    async def _elsewhere(self, name: str, lookup: Lookup, ask: Callable[[View], Result]) -> Result:
        if self.waiting >= self.most_waiting:
            self.metrics.overloaded(name)
            raise RefusedError(503, "overloaded", "too many look-ups are waiting; try again", AGAIN)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, lookup.ask, ask)
        finally:
            self.waiting -= 1


def new_service(
    served: Mapping[str, Served],
    *,
    threads: int = THREADS,
    most_waiting: int = MOST_WAITING,
    sampled: Callable[[str, Sequence[Answer] | Answers], None] | None = None,
    expansions: Mapping[str, Expansion] | None = None,
    unopened: Mapping[str, Unopened] | None = None,
) -> Service:
    """A service of these generators, which stay their owner's to close. sampled: told of every look-up by key.

    expansions: tables of what is promoted for their candidates, by name; also their owner's.
    unopened: what could not be opened: it is tried again while the rest is served.
    """

    def states() -> Mapping[str, LookupState]:
        return service.all_states()

    missing = dict(unopened or {})
    generators = [*served, *(name for name, what in missing.items() if not what.is_expansion)]
    metrics = new_metrics(generators, states, lambda: not service.reasons(), lambda: service.faulty())
    pool = ThreadPoolExecutor(threads, "nearcast-look-up")
    service = Service(dict(served), metrics, pool, most_waiting, sampled=sampled, expansions=dict(expansions or {}))
    service.unopened = missing
    return service


def columns_in(view: View) -> list[str]:
    """The item columns that a request may name."""
    return sorted({*view.version.facts.columns, *view.overlay.fields} - OWN_FIELDS)


def _check_fields(view: View, fields: Sequence[str]) -> None:
    """Refused where a field is no column of the items, also where no candidate would have shown it."""
    if fields and not set(fields) <= set(held := columns_in(view)):
        there = ", ".join(held) or "none"
        raise RefusedError(422, "unknown_field", f"fields names a column that the items do not have; they have {there}")
