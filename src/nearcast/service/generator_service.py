"""The service without HTTP: runs look-ups, in the event loop or on a thread, and turns errors into refusals.

A look-up in a store of this process takes microseconds and runs in the event loop. A look-up over a network, a long one
and a search run on a thread. The number of waiting look-ups is limited; further ones are refused at once. Errors of a
store become refusals with a reason, never an error 500.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from nearcast.ads.ad_answer import AdAnswer, AdRequest
from nearcast.ads.expansion_table import Expansion
from nearcast.errors import InputError, NearcastError, NotFoundError
from nearcast.serve.key_sampling import AnswerRows
from nearcast.serve.lookup import Lookup
from nearcast.serve.lookup_data import Answer, Answers, LookupOptions, LookupState
from nearcast.serve.merged_lookup import MergedAnswer, MergeQuery, answer_merged
from nearcast.serve.resolvers import Key, Row, reads_table
from nearcast.serve.view import View
from nearcast.service.answer_batch import AnswerBatch
from nearcast.service.fallback import KeyQuery, answer_keys, apply_fallback
from nearcast.service.metrics import new_metrics
from nearcast.service.online_search import SearchResult, read_columns, search_online
from nearcast.service.request_schemas import AdsRequest
from nearcast.service.responses import RefusedError
from nearcast.service.served_tables import (
    RETRY_SOON,
    LoggedErrors,
    ServedGenerator,
    ServedTables,
    UnopenedTable,
    list_columns,
)
from nearcast.service.tracing import Tracing
from nearcast.service.worker_states import WorkerStates
from nearcast.types import FloatArray

__all__ = ["Service", "new_service"]

LONG = 32  # keys; a look-up of more runs on a thread, so that other requests do not wait for it
THREADS = 16
MAX_WAITING = 256  # look-ups on threads, or waiting for one

Result = TypeVar("Result")
Observer = Callable[[str, AnswerRows], None]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Service(ServedTables):
    """The look-ups of one process. Made by `new_service`; belongs to one event loop."""

    most_waiting: int = MAX_WAITING
    waiting: int = 0
    sampled: Observer | None = None  # called with the answers of every look-up by key
    tracing: Tracing | None = None

    def close(self) -> None:
        """Stop the threads. The look-ups are closed by their owner."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def look_up(self, name: str, query: KeyQuery, options: LookupOptions) -> Answer:
        """Return the candidates of one key."""
        served = self.generator(name)
        online = served.online if query.vector is not None else None

        def read(view: View) -> Answer:
            _validate_fields(view, options.fields)
            answer = view.get(query.key, options)
            if answer.ids:
                return answer

            def fall_back(arm: View) -> Answer:
                listed = answer if arm.snapshot == answer.snapshot else arm.get(query.key, options)
                return listed if listed.ids else apply_fallback(arm, listed, query, options, online)

            return view.read_arm(view.find_arm(answer.snapshot), fall_back)

        answer = await self._run(name, served.lookup, read, on_thread=not served.in_process or online is not None)
        self._count_answers(name, (answer,))
        return answer

    async def look_up_many(
        self, name: str, queries: Sequence[KeyQuery], options: LookupOptions, encode: Callable[[AnswerBatch], bytes]
    ) -> bytes:
        """Return the encoded candidates of many keys, in their order. `encode` runs on the thread of the look-up."""
        served = self.generator(name)
        by_vector = served.online is not None and any(query.vector is not None for query in queries)

        def read(view: View) -> tuple[AnswerBatch, bytes]:
            _validate_fields(view, options.fields)
            answers = answer_keys(view, queries, options, served.online)
            return answers, encode(answers)

        on_thread = not served.in_process or by_vector or len(queries) > LONG
        answers, body = await self._run(name, served.lookup, read, on_thread=on_thread)
        self.metrics.count_batch(name, answers)
        if self.sampled is not None:
            self.sampled(name, answers)
        return body

    async def merge(self, name: str, query: MergeQuery) -> MergedAnswer:
        """Return the candidates of several keys as one list. Raises RefusedError if a weight table is missing."""
        served = self.generator(name)

        def row(table: str, key: Key) -> Row:
            try:
                return served.lookup.tables.row(table, key)
            except NotFoundError:
                raise RefusedError(404, "no_table", f"{name} has no table {table} in its store; publish one") from None

        def read(view: View) -> tuple[MergedAnswer, list[Answer]]:
            _validate_fields(view, query.fields)
            answer, lists = answer_merged(view, query, row)
            return answer, list(lists)

        on_thread = not served.in_process or reads_table(query.context)  # a table may have to be opened first
        answer, lists = await self._run(name, served.lookup, read, on_thread=on_thread)
        self._count_answers(name, lists)
        return answer

    async def find_ads(self, name: str, expansion: Expansion, request: AdsRequest) -> AdAnswer:
        """Return the ads of an expansion table for keys of a generator."""
        served = self.generator(name)
        query = AdRequest(request.request, request.k, tuple(request.fields), request.now)

        def read(view: View) -> AdAnswer:
            try:
                return expansion.ads_of(view, request.keys, request.weights, request.candidates_per_key, query)
            except (InputError, NotFoundError) as error:
                raise RefusedError(422, "invalid", str(error)) from None

        on_thread = not served.in_process or len(request.keys) > LONG
        promoted = await self._run(name, served.lookup, read, on_thread=on_thread)
        self._count_answers(name, promoted.looked_up)
        self.metrics.count_ads(expansion.name, len(promoted))
        return promoted

    async def search(self, name: str, vectors: FloatArray, options: LookupOptions) -> SearchResult:
        """Return the nearest items of these (n, dim) vectors. Raises RefusedError if no online index is served."""
        served = self.generator(name)
        online = self.online(name)

        def read(view: View) -> SearchResult:
            _validate_fields(view, options.fields)
            lists = search_online(view, online, vectors, options)
            columns = read_columns(view, [row.ids for row in lists], options.fields) if options.fields else []
            return SearchResult(lists, columns, view.snapshot)

        result = await self._run(name, served.lookup, read, on_thread=True)
        self.metrics.count_searches(name, sum(row.removed for row in result.lists), len(vectors))
        return result

    def convert_vectors(self, name: str, rows: Sequence[Sequence[float]]) -> FloatArray:
        """Return vectors as an (n, dim) array. Raises RefusedError if they do not fit the online index."""
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

    def _count_answers(self, name: str, answers: Sequence[Answer] | Answers) -> None:
        self.metrics.count_answers(name, answers)
        if self.sampled is not None:
            self.sampled(name, answers)

    async def _run(self, name: str, lookup: Lookup, read: Callable[[View], Result], *, on_thread: bool) -> Result:
        """Return the result of `read` for the current view. Errors become RefusedError; the first one is logged."""
        try:
            ask = lookup.ask if self.tracing is None else self.tracing.trace_lookup(name, lookup.ask)
            result = await self._run_on_thread(name, ask, read) if on_thread else ask(read)
        except InputError as error:
            raise RefusedError(422, "invalid", str(error)) from None
        except NearcastError as error:
            self.metrics.count_store_error(name)
            logged = self._logged.setdefault(name, LoggedErrors())
            if not logged.is_failing:
                log.warning("%s cannot be looked up: %s", name, error)
            logged.is_failing = True
            message = "the store did not answer; try again"
            raise RefusedError(503, "store_unavailable", message, RETRY_SOON) from None
        known = self._logged.get(name)
        if known is not None and known.is_failing:
            known.is_failing = False
            log.warning("%s can be looked up again", name)
        return result

    async def _run_on_thread(
        self, name: str, ask: Callable[[Callable[[View], Result]], Result], read: Callable[[View], Result]
    ) -> Result:
        if self.waiting >= self.most_waiting:
            self.metrics.count_overload(name)
            raise RefusedError(503, "overloaded", "too many look-ups are waiting; try again", RETRY_SOON)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, ask, read)
        finally:
            self.waiting -= 1


def new_service(
    served: Mapping[str, ServedGenerator],
    *,
    threads: int = THREADS,
    most_waiting: int = MAX_WAITING,
    sampled: Observer | None = None,
    expansions: Mapping[str, Expansion] | None = None,
    unopened: Mapping[str, UnopenedTable] | None = None,
    workers: WorkerStates | None = None,
) -> Service:
    """Return a service of these generators, which are closed by their owner.

    threads, most_waiting: threads for look-ups, and the limit of look-ups that use or wait for one.
    sampled: called with the answers of every look-up by key.
    expansions: expansion tables by name, closed by their owner. unopened: tables that could not be opened; the service
    tries again while it serves the others. workers: the other processes of the service.
    """

    def states() -> Mapping[str, LookupState]:
        return service.all_states()

    missing = dict(unopened or {})
    generators = [*served, *(name for name, table in missing.items() if not table.is_expansion)]
    metrics = new_metrics(
        generators, states, lambda: not service.list_problems(), lambda: service.list_unopened(), workers
    )
    service = Service(
        served=dict(served),
        metrics=metrics,
        pool=ThreadPoolExecutor(threads, "nearcast-look-up"),
        most_waiting=most_waiting,
        sampled=sampled,
        expansions=dict(expansions or {}),
        unopened=missing,
        workers=workers,
        began=time.time() if workers is None else workers.read_service().began,
    )
    return service


def _validate_fields(view: View, fields: Sequence[str]) -> None:
    """Raise RefusedError for a field that is not an item column, also if there are no candidates."""
    if fields and not set(fields) <= set(columns := list_columns(view)):
        there = ", ".join(columns) or "none"
        raise RefusedError(422, "unknown_field", f"fields names a column that the items do not have; they have {there}")


def __getattr__(name: str) -> Any:
    if name == "Served":
        message = "nearcast.service.generator_service.Served is now nearcast.service.served_tables.ServedGenerator"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return ServedGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
