"""The history: one SQLite file with a row per event. Rows are added and never changed.

SQLite is in the standard library, appends of several processes are atomic, and many tools read it. Knows nothing of the
facts' meaning.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError
from nearcast.files import refuse_link

__all__ = ["FILE", "HistoryEvent", "append", "newest", "read"]

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


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """An event of a generator. `seconds` since 1970; `facts` are plain data."""

    generator: str
    kind: str  # run, publish, rollback or monitor
    seconds: float
    version: int | None  # of the snapshot
    facts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "generator": self.generator,
            "kind": self.kind,
            "seconds": self.seconds,
            "version": self.version,
            "facts": dict(self.facts),
        }


def append(
    out: Path,
    generator: str,
    kind: str,
    version: int | None,
    facts: Mapping[str, Any],
    *,
    seconds: float | None = None,
    identity: str | None = None,
) -> str | None:
    """Add a row to the history of the folder `out`. Return an error text, or None.

    The event has happened already, so a history that cannot be written does not raise.
    identity: unique; a second row with it is not added.
    """
    if not out.is_dir():  # a machine with the store, without the snapshots
        return None
    when = time.time() if seconds is None else seconds
    row = (generator, kind, when, version, identity, json.dumps(facts, default=str, allow_nan=False))
    try:
        with _open(out / FILE) as database, database:
            _prepare(database, out / FILE)
            columns = "generator, kind, seconds, version, identity, facts"
            database.execute(f"insert or ignore into events ({columns}) values (?, ?, ?, ?, ?, ?)", row)
    except (OSError, sqlite3.Error, DamagedError) as error:
        return f"the history {out / FILE} was not written: {error}"
    return None


def read(
    out: Path, generator: str | None = None, kinds: Sequence[str] = (), last: int | None = None
) -> list[HistoryEvent]:
    """Read events, oldest first: of a generator or all, of these kinds or all, the last `last` or all.

    Returns an empty list without a history. Raises DamagedError if the file cannot be read as a history.
    """
    path = out / FILE
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
            rows = database.execute(f"{query} order by number desc limit ?", (*values, -1 if last is None else last))
            events = [
                HistoryEvent(name, kind, when, version, json.loads(facts)) for name, kind, when, version, facts in rows
            ]
    except (sqlite3.Error, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); move it away, and a new history begins") from error
    return events[::-1]


def newest(out: Path) -> dict[str, int]:
    """Return the number of each generator's newest row: a higher number means new events.

    Returns an empty mapping without a history. Raises DamagedError if the file cannot be read as a history.
    """
    path = out / FILE
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
