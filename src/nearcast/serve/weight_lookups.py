"""Look-ups of the tables of a generator, each opened when a request first needs it. Knows nothing of what they mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nearcast.errors import DamagedError, NotFoundError
from nearcast.serve.resolvers import Key, Row
from nearcast.stores.weight_tables import table_name

if TYPE_CHECKING:
    from nearcast.serve.lookup import Lookup

__all__ = ["Tables"]

RETRY_SECONDS = 10.0  # until a table that could not be opened is tried again


class Tables:
    """The tables of one generator, by name. `open` is called once for each; `close` closes what was opened."""

    def __init__(self, generator: str, opened: Callable[[str], Lookup]) -> None:
        self._generator = generator
        self._opened = opened
        self._lookups: dict[str, Lookup] = {}
        self._faults: dict[str, tuple[DamagedError, float]] = {}  # why a table cannot be opened, and when to try again
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

    def opened(self) -> dict[str, Lookup]:
        """The look-ups that are open, by the name of what they look up."""
        return {lookup.generator: lookup for lookup in list(self._lookups.values())}

    def faults(self) -> dict[str, str]:
        """Why tables that were asked for cannot be opened, by their names."""
        return {table_name(self._generator, table): str(error) for table, (error, _) in list(self._faults.items())}

    def _open(self, table: str) -> Lookup:
        name, fault = table_name(self._generator, table), self._faults.get(table)
        if fault is not None and time.monotonic() < fault[1]:
            raise fault[0]  # to look at every byte of it takes too long to be done for every request
        try:
            opened = self._opened(name)
        except DamagedError as error:
            self._faults[table] = error, time.monotonic() + RETRY_SECONDS
            raise
        except NotFoundError as error:
            message = f"{self._generator} has no table {table!r} in its store"
            raise NotFoundError(f"{message}; `nearcast table {self._generator} {table} LOG` makes one") from error
        self._faults.pop(table, None)
        return opened

    def close(self) -> None:
        """Let go of them."""
        with self.lock:
            lookups, self._lookups = self._lookups, {}
        for lookup in lookups.values():
            lookup.close()
