"""Look-ups of a generator's weight tables, each opened at its first use. Knows nothing of the meaning of the tables."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from nearcast.errors import DamagedError, NotFoundError
from nearcast.serve.lookup_data import Answer, LookupState
from nearcast.serve.resolvers import Key, Row
from nearcast.stores.names import table_name

__all__ = ["TableLookup", "WeightTables"]

RETRY_SECONDS = 10.0  # until a table that could not be opened is tried again


class TableLookup(Protocol):
    """The part of a `Lookup` that a weight table needs."""

    generator: str

    def get(self, key: Key) -> Answer:
        """Return the items of one key with their weights as scores."""
        ...

    def refresh(self) -> LookupState:
        """Poll the store now."""
        ...

    def close(self) -> None:
        """Close the look-up."""
        ...

    @property
    def error(self) -> str | None:
        """Why a newer version is not applied."""
        ...

    @property
    def state(self) -> LookupState:
        """The version that answers."""
        ...


class WeightTables:
    """The weight tables of one generator, by name. `open_table` is called once per table; `close` closes them all."""

    def __init__(self, generator: str, open_table: Callable[[str], TableLookup]) -> None:
        self._generator = generator
        self._open_table = open_table
        self._lookups: dict[str, TableLookup] = {}
        self._failures: dict[str, tuple[DamagedError, float]] = {}  # the error, and the time of the next try
        self.lock = threading.Lock()

    def row(self, table: str, key: Key) -> Row:
        """Return the items of a key with their weights, without items that the table's overlay has removed.

        Empty if the table does not have the key. Raises NotFoundError if the table was never published.
        """
        answer = self.lookup(table).get(key)
        return list(zip(answer.ids, answer.scores, strict=True))

    def lookup(self, table: str) -> TableLookup:
        """Return the look-up of a table; open it at the first call. Raises NotFoundError if it was never published."""
        lookup = self._lookups.get(table)
        if lookup is None:
            with self.lock:
                lookup = self._lookups.get(table) or self._open(table)
                self._lookups[table] = lookup
        return lookup

    def list_opened(self) -> dict[str, TableLookup]:
        """Return the open look-ups by their names in the store."""
        return {lookup.generator: lookup for lookup in list(self._lookups.values())}

    def failures(self) -> dict[str, str]:
        """Return the error text of each table that could not be opened, by its name in the store."""
        return {table_name(self._generator, table): str(error) for table, (error, _) in list(self._failures.items())}

    def _open(self, table: str) -> TableLookup:
        name, failure = table_name(self._generator, table), self._failures.get(table)
        if failure is not None and time.monotonic() < failure[1]:
            raise failure[0]  # verification reads the whole table: too slow for every request
        try:
            lookup = self._open_table(name)
        except DamagedError as error:
            self._failures[table] = error, time.monotonic() + RETRY_SECONDS
            raise
        except NotFoundError as error:
            message = f"{self._generator} has no table {table!r} in its store"
            raise NotFoundError(f"{message}; `nearcast table {self._generator} {table} LOG` makes one") from error
        self._failures.pop(table, None)
        return lookup

    def close(self) -> None:
        """Close all open look-ups."""
        with self.lock:
            lookups, self._lookups = self._lookups, {}
        for lookup in lookups.values():
            lookup.close()
