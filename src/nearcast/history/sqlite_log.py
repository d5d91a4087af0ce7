"""The history of a local folder: one SQLite file with a row per event.

SQLite is in the standard library, appends of several processes are atomic, and many tools read it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from nearcast.errors import DamagedError
from nearcast.files import refuse_link
from nearcast.history.history_event import HistoryEvent

__all__ = ["FILE", "SqliteLog"]

FILE = "history.sqlite"
FORMAT = 1
LOCK_SECONDS = 10.0  # to wait for another process that appends
TABLES = """
create table if not exists events (
    number integer primary key,
    generator text not null,
    kind text not null,
    seconds real not null,
    version integer,
    identity text unique,
    facts text not null
);
create index if not exists events_of_generator on events (generator, kind, number);
"""


class SqliteLog:
    """The events of a folder in the order in which they were added."""

    def __init__(self, out: Path) -> None:
        self.place = str(out / FILE)
        self._out = out
        self._path = out / FILE

    def append(self, event: HistoryEvent, identity: str | None) -> str | None:
        """Insert a row."""
        if not self._out.is_dir():  # a machine with the store, without the snapshots
            return None
        facts = json.dumps(event.facts, default=str, allow_nan=False)
        row = (event.generator, event.kind, event.seconds, event.version, identity, facts)
        try:
            with _open(self._path) as database, database:
                _prepare(database, self._path)
                columns = "generator, kind, seconds, version, identity, facts"
                database.execute(f"insert or ignore into events ({columns}) values (?, ?, ?, ?, ?, ?)", row)
        except (OSError, sqlite3.Error, DamagedError) as error:
            return f"the history {self._path} was not written: {error}"
        return None

    def read(self, generator: str | None, kinds: Sequence[str], last: int | None) -> list[HistoryEvent]:
        """Select rows."""
        path = self._path
        if not path.is_file():
            return []
        conditions, values = ["1 = 1"], []
        if generator is not None:
            conditions.append("generator = ?")
            values.append(generator)
        if kinds:
            conditions.append(f"kind in ({', '.join('?' * len(kinds))})")
            values += kinds
        query = f"select generator, kind, seconds, version, facts from events where {' and '.join(conditions)}"
        try:
            with _open(path) as database:
                _check_format(database, path)
                limit = -1 if last is None else last
                rows = database.execute(f"{query} order by number desc limit ?", (*values, limit))
                events = [
                    HistoryEvent(name, kind, when, version, json.loads(facts))
                    for name, kind, when, version, facts in rows
                ]
        except (sqlite3.Error, ValueError) as error:
            raise DamagedError(f"{path} cannot be read ({error}); move it away, and a new history begins") from error
        return events[::-1]

    def newest(self) -> dict[str, int]:
        """Select the highest number of each generator."""
        path = self._path
        if not path.is_file():
            return {}
        try:
            with _open(path) as database:
                _check_format(database, path)
                return dict(database.execute("select generator, max(number) from events group by generator"))
        except sqlite3.Error as error:
            raise DamagedError(f"{path} cannot be read ({error}); move it away, and a new history begins") from error


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    if _check_format(database, path) == 0:
        database.executescript(TABLES)
        database.execute(f"pragma user_version = {FORMAT}")


def _check_format(database: sqlite3.Connection, path: Path) -> int:
    version = int(database.execute("pragma user_version").fetchone()[0])
    if version > FORMAT:
        raise DamagedError(f"{path} is a history of format {version}, and this nearcast reads {FORMAT}; upgrade it")
    return version


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    refuse_link(path)
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
        yield database
