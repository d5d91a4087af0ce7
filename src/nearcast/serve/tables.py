"""Look-ups of the tables of a generator, each opened when a request first needs it. Knows nothing of what they mean."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from nearcast.errors import NotFoundError
from nearcast.serve.resolvers import Key, Row
from nearcast.stores.tables import table_name

if TYPE_CHECKING:
    from nearcast.serve.lookup import Lookup

__all__ = ["Tables"]


class Tables:
    """The tables of one generator, by name. `open` is called once for each; `close` closes what was opened."""

    def __init__(self, generator: str, opened: Callable[[str], Lookup]) -> None:
        self._generator = generator
        self._opened = opened
        self._lookups: dict[str, Lookup] = {}
        self.lock = threading.Lock()

    def row(self, table: str, key: Key) -> Row:
        """The items of a key with their weights, without those that the table's overlay has taken out.

        Empty where the table has no such key; NotFoundError where it was never published.
        """
        answer = self.lookup(table).get(key)
        return list(zip(answer.ids, answer.scores, strict=True))

    def lookup(self, table: str) -> Lookup:
        """The look-up of a table, which is closed with these. NotFoundError where it was never published."""
        lookup = self._lookups.get(table)
        if lookup is None:
            with self.lock:
                lookup = self._lookups.get(table) or self._open(table)
                self._lookups[table] = lookup
        return lookup

    def _open(self, table: str) -> Lookup:
        name = table_name(self._generator, table)
        try:
            return self._opened(name)
        except NotFoundError as error:
            message = f"{self._generator} has no table {table!r} in its store"
            raise NotFoundError(f"{message}; `nearcast table {self._generator} {table} LOG` makes one") from error

    def close(self) -> None:
        """Let go of them."""
        with self.lock:
            lookups, self._lookups = self._lookups, {}
        for lookup in lookups.values():
            lookup.close()
