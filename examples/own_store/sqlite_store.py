"""An own store, in SQLite: a file per version, a file for the pointer, and a database for the overlay.

    <root>/<generator>/versions/000007/pairs.db, manifest.json     current     overlay.db     .lock

The contract is in `nearcast.stores.base`; the suite that every store passes is tests/contract/test_stores.py.
It takes no live updates: `SqliteStore` has no method `patches`.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path

from nearcast import files
from nearcast.errors import BusyError, NotFoundError, StoreError
from nearcast.stores.base import TOKEN_SECONDS, ExchangeResult, OverlayChanges, OverlayEntry, Pointer, Space
from nearcast.stores.names import format_version, is_generator, validate_generator

PAGE = 1000  # rows that a reader takes at once
WAIT = 30.0  # seconds to wait for another process that writes to the overlay
OVERLAY = """
create table if not exists entries (key blob primary key, serial integer not null unique, entry blob not null);
create table if not exists state (epoch integer not null, serial integer not null);
create table if not exists tokens (token text primary key, until real not null)
"""


def open_sqlite(url):
    """Open the store in the folder of a URL, sqlite:PATH."""
    return SqliteStore(Path(url.removeprefix("sqlite:")).absolute())


@contextlib.contextmanager
def translated(path):
    """Raise errors of SQLite and of the system as store errors that name the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path} cannot be used ({error}); see that the disk has room and who may read it") from error


class SqliteStore:
    """Versions of all generators in one folder."""

    in_process = True

    def __init__(self, root):
        self.root, self.url = root, f"sqlite:{root}"

    def folder(self, generator):
        return self.root / validate_generator(generator)

    def generators(self):
        return sorted(p.parent.name for p in self.root.glob("*/current") if is_generator(p.parent.name))

    @contextlib.contextmanager
    def lock(self, generator):
        with files.hold_lock(self.folder(generator) / ".lock", f"{generator} in {self.url}"):
            held = SqliteLock()
            try:
                yield held
            finally:
                held.lost = True

    def write(self, generator, version):
        folder = self.folder(generator) / "versions" / format_version(version)
        with translated(folder):
            for left in folder.parent.glob("*"):
                if left == folder or not files.is_done(left):  # we hold the lock: no other process writes it
                    shutil.rmtree(left)
            return Writer(files.fresh_folder(folder))

    def versions(self, generator):
        found = (self.folder(generator) / "versions").glob("[0-9]*")
        return sorted(int(path.name) for path in found if files.is_done(path))

    def open(self, generator, version, *, verify):
        folder = self.folder(generator) / "versions" / format_version(version)
        if not files.is_done(folder):
            raise NotFoundError(
                f"{self.url} has no version {version} of {generator}; it has {self.versions(generator)}"
            )
        return Reader(folder / "pairs.db", files.verify(folder, contents=verify)["facts"])

    def retire(self, generator, version):
        folder = self.folder(generator) / "versions" / format_version(version)
        with translated(folder):
            (folder / files.MANIFEST).unlink(missing_ok=True)  # first, so that no reader opens an incomplete version
            shutil.rmtree(folder, ignore_errors=not folder.exists())  # a process with an open file can still read it

    def pointer(self, generator):
        path = self.folder(generator) / "current"
        with translated(path):
            return Pointer.from_bytes(path.read_bytes(), str(path)) if path.exists() else None

    def point(self, generator, pointer, held):
        held.check()
        path = self.folder(generator) / "current"
        with translated(path):
            files.write_text(path, pointer.to_bytes().decode())

    def overlay(self, generator):
        return Overlay(self.folder(generator) / "overlay.db")

    def now(self):
        return time.time()  # one machine, one clock

    def close(self):
        pass


class SqliteLock:
    """The lock on a file. The system releases it when the process ends."""

    lost = False

    def check(self):
        if self.lost:
            raise BusyError("the lock is not held any more; take it again")


class Writer:
    """Writer of one version. No reader opens the version before its manifest exists."""

    def __init__(self, folder):
        self.path = folder / "pairs.db"
        with translated(self.path):
            self.database = sqlite3.connect(self.path, check_same_thread=False)
            for space in Space:
                self.database.execute(f"create table {space} (key blob primary key, value blob not null) without rowid")

    def put(self, space, pairs):
        with translated(self.path), self.database:
            self.database.executemany(f"insert or replace into {space} values (?, ?)", pairs)

    def finish(self, facts):
        with translated(self.path):
            self.database.close()
            files.finish(self.path.parent, {"facts": dict(facts)})

    def discard(self):
        self.database.close()
        shutil.rmtree(self.path.parent, ignore_errors=True)


class Reader:
    """Reader of a finished version: one connection, one thread at a time. It outlives the removal of the file."""

    def __init__(self, path, facts):
        self.path, self.facts, self.turn = path, facts, threading.Lock()
        with translated(path):
            self.database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            self.all("select count(*) from sqlite_master")  # opens the file

    def all(self, statement, *values):
        with translated(self.path), self.turn:
            return self.database.execute(statement, values).fetchall()

    def get_many(self, space, keys):
        found = [self.all(f"select value from {space} where key = ?", key) for key in keys]
        return [rows[0][0] if rows else None for rows in found]

    def pairs(self, space):
        rows = self.all(f"select key, value from {space} order by key limit {PAGE}")
        while rows:
            yield from rows
            rows = self.all(f"select key, value from {space} where key > ? order by key limit {PAGE}", rows[-1][0])

    def some_keys(self, space, count, seed):
        keys = [key for (key,) in self.all(f"select key from {space} order by key")]
        return sorted(random.Random(seed).sample(keys, min(count, len(keys))))

    def check(self):
        pass  # SQLite finds damage while it reads

    def close(self):
        self.database.close()


class Overlay:
    """The overlay log of a generator. SQLite lets one process write at a time; others wait."""

    def __init__(self, path):
        self.path = path

    @contextlib.contextmanager
    def begin(self, how):
        with translated(self.path), contextlib.closing(sqlite3.connect(self.path, timeout=WAIT)) as database:
            database.isolation_level = None  # begin and commit explicitly
            database.execute(f"begin {how}")
            if how == "immediate":
                for statement in OVERLAY.split(";"):
                    database.execute(statement)
            yield database
            database.execute("commit")

    def state(self, database):
        return database.execute("select epoch, serial from state").fetchone() or (1 + random.getrandbits(48), 0)

    def keep(self, database, epoch, serial):
        database.execute("delete from state")
        database.execute("insert into state values (?, ?)", (epoch, serial))

    def write(self, entries):
        if not entries:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.begin("immediate") as database:
            epoch, serial = self.state(database)
            for number, entry in enumerate(entries, serial + 1):
                row = (entry.key(), number, entry.to_bytes())
                database.execute("insert or replace into entries values (?, ?, ?)", row)
            self.keep(database, epoch, serial + len(entries))

    def changes(self, *, epoch=-1, serial=0):
        if not self.path.exists():
            return OverlayChanges(0, 0, ())
        with self.begin("deferred") as database:
            if not database.execute("select 1 from sqlite_master").fetchall():
                return OverlayChanges(0, 0, ())  # another process is creating it
            now, newest = self.state(database)
            after = serial if now == epoch else 0
            rows = database.execute("select entry from entries where serial > ? order by serial", (after,))
            return OverlayChanges(now, newest, tuple(OverlayEntry.from_bytes(row[0]) for row in rows))

    def get(self, key):
        if not self.path.exists():
            return None
        with self.begin("immediate") as database:
            row = database.execute("select entry from entries where key = ?", (key,)).fetchone()
            return row[0] if row else None

    def exchange(self, entry, held, *, token="", now=0.0):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.begin("immediate") as database:
            database.execute("delete from tokens where until <= ?", (now,))
            if token and database.execute("select 1 from tokens where token = ?", (token,)).fetchone():
                return ExchangeResult.REPEATED
            row = database.execute("select entry from entries where key = ?", (entry.key(),)).fetchone()
            if (row[0] if row else None) != held:
                return ExchangeResult.CHANGED
            if token:
                database.execute("insert into tokens values (?, ?)", (token, now + TOKEN_SECONDS))
            epoch, serial = self.state(database)
            new = (entry.key(), serial + 1, entry.to_bytes())
            database.execute("insert or replace into entries values (?, ?, ?)", new)
            self.keep(database, epoch, serial + 1)
            return ExchangeResult.WRITTEN

    def purge(self, keys, *, upto):
        if not self.path.exists():
            return
        with self.begin("immediate") as database:
            epoch, serial = self.state(database)
            database.executemany("delete from entries where key = ? and serial <= ?", [(key, upto) for key in keys])
            self.keep(database, epoch + 1, serial)

    def repair(self):
        self.changes()  # raises an error if the file cannot be read: restore a copy of it, or remove it
