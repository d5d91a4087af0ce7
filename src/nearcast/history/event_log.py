"""Keep and read the history: one SQLite file, one row per event, rows are added and never changed.

SQLite, since it is in the standard library, takes short appends of many processes whole or not at all, and any tool
can read it. Knows nothing of what the facts mean.
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
PATIENCE_SECONDS = 10.0  # for another process that appends at the same moment
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
    """Something that happened to a generator. `seconds` since 1970; `facts` are plain data."""

    generator: str
    kind: str  # run, publish, rollback or monitor
    seconds: float
    version: int | None  # of the snapshot that it is about
    facts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
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
    """Add a row to the history of the folder `out`. Returns why it could not be, or None.

    What the row tells of has happened already, so a history that cannot be written is no reason to fail.
    identity: a second row with it is not added.
    """
    if not out.is_dir():  # a machine that has the store, and not the snapshots
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
    """The rows of a generator or of all, oldest first, of these kinds or of all; the last so many of them.

    None where there is no history. DamagedError where the file is no history that can be read.
    """
    path = out / FILE
    if not path.is_file():
        return []
    holds, values = ["1 = 1"], []
    if generator is not None:
        holds.append("generator = ?")
        values.append(generator)
    if kinds:
        holds.append(f"kind in ({', '.join('?' * len(kinds))})")
        values += kinds
    query = f"select generator, kind, seconds, version, facts from events where {' and '.join(holds)}"
    try:
        with _open(path) as database:
            _check_format(database, path)
            rows = database.execute(f"{query} order by number desc limit ?", (*values, -1 if last is None else last))
            found = [
                HistoryEvent(name, kind, when, version, json.loads(facts)) for name, kind, when, version, facts in rows
            ]
    except (sqlite3.Error, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); move it away, and a new history begins") from error
    return found[::-1]


def newest(out: Path) -> dict[str, int]:
    """The generators of a history, each with the number of its newest row: a higher one says that there is news.

    Nothing where there is no history. DamagedError where the file is no history that can be read.
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
    found = int(database.execute("pragma user_version").fetchone()[0])
    if found > FORMAT:
        raise DamagedError(f"{path} is a history of format {found}, and this nearcast reads {FORMAT}; upgrade it")
    return found


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    refuse_link(path)
    with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as database:
        yield database
