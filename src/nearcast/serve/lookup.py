"""Look up candidates in a store, always in the current version. Knows nothing of HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nearcast.errors import GoneError, SpecError
from nearcast.serve.follow_store import REFRESH_SECONDS, StoreFollower
from nearcast.serve.lookup_data import Answer, Answers, Keys, LookupOptions
from nearcast.serve.merged_lookup import MergedAnswer, MergeQuery, answer_merged
from nearcast.serve.resolvers import Key
from nearcast.serve.view import View
from nearcast.serve.weight_lookups import WeightTables
from nearcast.stores import StoreLike

__all__ = ["Lookup", "open_lookup"]

Result = TypeVar("Result")


def open_lookup(
    store: StoreLike, generator: str, *, refresh_seconds: float = REFRESH_SECONDS, verify: bool = True
) -> Lookup:
    """Open a published generator for look-ups. The look-up follows every publish and rollback.

    store: a URL, for example lmdb:/srv/candidates or redis://host:6379/0, the path of an LMDB store, or an open store.
    refresh_seconds: how often a thread polls the store for a moved pointer and for overlay entries.
    verify: compare every byte of a version with its checksums before use, if the store supports it.
    Raises NotFoundError if nothing is published, StoreError if the store cannot be reached, DamagedError if the
    published version is damaged.
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


class Lookup(StoreFollower):
    """A generator in a store, open for look-ups. Made by `nearcast.open`; safe to use from many threads.

    It keeps working in a child process after a fork, where its first use starts a new thread.
    """

    def __init__(self, store: StoreLike, generator: str, *, refresh_seconds: float, verify: bool) -> None:
        self.tables = WeightTables(generator, self._open_table)
        super().__init__(store, generator, refresh_seconds=refresh_seconds, verify=verify)

    def _reset_threads(self) -> None:
        super()._reset_threads()
        self.tables.lock = threading.Lock()

    def close(self) -> None:
        """Stop following the store and close it if it was opened here. Calls under way finish."""
        self._closed = True
        self.tables.close()
        super().close()

    def get(
        self,
        key: str | int,
        *,
        k: int | None = None,
        min_score: float | None = None,
        fields: Sequence[str] = (),
        request: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Return the candidates of one key, best first, without items that the overlay has removed.

        key: a query id; text is converted to a number if the table's keys are numbers.
        k, min_score: keep only the first k eligible candidates, and only those with at least this score.
        fields: item columns to return, with the overlay's newer values. Raises NotFoundError for an unknown column.
        request: values for the rules by name: fields that rules read as request.NAME, and replacements for columns of
        the query. Every rule is applied; a missing field is null. Raises InputError for a field that no rule reads or
        that has another type.
        A missing key is no error: the answer has `found` False. Raises StoreError if the store cannot be read.
        """
        options = LookupOptions(k, min_score, fields, request)
        view = self._view or self.view()
        try:
            return view.get(key, options)
        except GoneError:
            return self._replace_view(view).get(key, options)

    def get_many(
        self,
        keys: Keys,
        *,
        k: int | None = None,
        min_score: float | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> Answers:
        """Return the candidates of n keys as arrays, all from one snapshot. Fastest for 1,000 to 10,000 keys a call.

        keys: a NumPy array of integers, a list of integers or strings, or an Arrow array. request: see `get`; it
        applies to all keys. If the generator has rules, each list is filtered on its own.
        """
        options = LookupOptions(k, min_score, (), request)
        return self.ask(lambda view: view.get_many(keys, options))

    def merged(
        self, keys: Sequence[tuple[Key, float]] = (), *, context: Mapping[str, Any] | None = None, **options: Any
    ) -> MergedAnswer:
        """Return the candidates of several keys as one list of k, without repetition, with a share for every key.

        keys: (key, weight) pairs, weights above 0. context: facts of the request by resolver name
        (`nearcast.serve.resolvers`): viewed, recent, session, phrase, person. options: k, by ("rank" or "score"),
        min_score, exclude (items to leave out), fields, most_keys, request: see `serve.merged_lookup.MergeQuery`.
        The k places are divided by weight among the keys that have candidates, and the answer holds that many of each
        key's best candidates (`nearcast.serve.merge_lists` describes the method).
        Raises SpecError for an unknown context, InputError for an invalid key or weight, NotFoundError for an unknown
        column or an unpublished table.
        """
        query = MergeQuery(keys, context or {}, **options)
        return self.ask(lambda view: answer_merged(view, query, self.tables.row)[0])

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return columns of items, a dictionary per id, with the overlay's newer values; None for a missing value."""
        return self.ask(lambda view: view.items(ids, fields))

    def removed(self, ids: Sequence[str | int]) -> list[bool]:
        """Return per id whether the overlay has removed the item. Reads memory only."""
        return self.view().removed(ids)

    def ask(self, query: Callable[[View], Result]) -> Result:
        """Return the result of a function of the current view. If its version was deleted, retry with a new view."""
        view = self._view or self.view()
        try:
            return query(view)
        except GoneError:
            return query(self._replace_view(view))

    def _open_table(self, name: str) -> Lookup:
        return open_lookup(self._store_argument, name, refresh_seconds=self._refresh_seconds, verify=self._verify)
