"""A process that uses a damaged store in every way, heals it, and uses it again. Run by `test_damaged_stores.py`.

It may end with any exit code of ours and never by a signal; what was removed never comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nearcast
import nearcast.ads.expansion_table
import nearcast.ads.publish_expansion
import nearcast.api.publications  # (imported once, by the server that the processes are forked from)
import nearcast.api.refreshing
import nearcast.monitoring.monitor_pass
import nearcast.serve.lookup
import nearcast.stores.lmdb
import nearcast.stores.redis
from nearcast.errors import NearcastError, NotFoundError

with contextlib.suppress(ImportError):
    import pandas  # noqa: F401 (what pyarrow imports at the first look-up otherwise)
    import redis  # noqa: F401

KEYS = [f"q{number:03d}" for number in range(0, 60, 3)]
LATER = "i0599"  # an item that nobody has removed yet


def expand_spec(folder: Path) -> Path:
    return folder / "ads.toml"


class Survivor:
    """What is done to one store. `removed` are items, and `paused` ads, that no answer may hold."""

    def __init__(self, folder: Path, store: str, removed: list[str], paused: list[int]) -> None:
        self.folder, self.store = folder, store
        self.removed, self.paused = set(removed), set(paused)
        self.faults: list[str] = []
        self.outcomes: dict[str, int] = {}

    def attempt(self, name: str, act: Callable[[], Any]) -> bool:
        """Do something; an error of ours is an answer, and any other exception is a fault."""
        try:
            act()
            self.outcomes[name] = 0
        except NearcastError as error:
            self.outcomes[name] = error.exit_code
            if not str(error).strip() or error.exit_code == 1:
                self.faults.append(f"{name}: {error!r}")
        except BaseException:
            self.faults.append(f"{name}: {traceback.format_exc()}")
            self.outcomes[name] = -1
        return self.outcomes[name] == 0

    def use(self) -> None:
        """Every verb that reads or writes a store."""
        self.attempt("look up", self.look_up)
        self.attempt("look up ads", self.look_up_ads)
        self.attempt("published", lambda: nearcast.published("shop", store=self.store, out="nearcast"))
        self.attempt("list", lambda: self.overlay("shop").entries())
        self.attempt("remove", lambda: self.overlay("shop").remove([LATER]))
        self.attempt("restore", lambda: self.overlay("shop").restore([LATER]))
        self.attempt("update", lambda: self.overlay("shop").update("i0003", "name", "new"))
        self.attempt("pause", lambda: self.overlay("ads").remove([5]))
        self.attempt("dry run", lambda: nearcast.publish("shop", store=self.store, out="nearcast", dry_run=True))
        self.attempt("publish", lambda: nearcast.publish("shop", store=self.store, out="nearcast"))
        self.attempt("monitor", lambda: nearcast.monitor("shop.toml", store=self.store))
        self.attempt("expand", lambda: nearcast.expand("ads.toml", store=self.store))
        self.attempt("roll back", lambda: nearcast.roll_back("shop", store=self.store, out="nearcast"))
        self.attempt("publish 2", lambda: nearcast.publish("shop", 2, store=self.store, out="nearcast"))
        self.attempt("look up", self.look_up)
        self.attempt("look up ads", self.look_up_ads)

    def heal(self) -> None:
        """The documented commands; after them everything works."""
        for act in (
            lambda: nearcast.publish("shop", 2, store=self.store, out="nearcast", repair=True),
            lambda: nearcast.expand("ads.toml", store=self.store, repair=True),
            self.look_up,
            self.look_up_ads,
            lambda: self.overlay("shop").remove([LATER]),
            self.roll_back_if_possible,
            lambda: nearcast.publish("shop", 2, store=self.store, out="nearcast"),
            lambda: self.overlay("shop").entries(),
            self.look_up,
        ):
            try:
                act()
            except BaseException:
                self.faults.append(f"after the repair: {traceback.format_exc()}")

    def roll_back_if_possible(self) -> None:
        """An older version that was damaged is not there any more."""
        with contextlib.suppress(NotFoundError):
            nearcast.roll_back("shop", store=self.store, out="nearcast")

    def overlay(self, name: str) -> Any:
        return nearcast.overlay(self.store, name)

    def look_up(self) -> None:
        with nearcast.open(self.store, "shop", refresh_seconds=0.02) as lookup:
            self.ask(lookup)

    def ask(self, lookup: Any) -> None:
        """Answers are whole lists without what was removed, or errors."""
        answers = lookup.get_many(KEYS)
        self.check("get_many", answers.ids.to_pylist())
        if not answers.found.all():
            self.faults.append("a key was not found")
        self.check("get", [item for key in KEYS[:5] for item in lookup.get(key).ids])

    def look_up_ads(self) -> None:
        with (
            nearcast.open(self.store, "shop", refresh_seconds=3600) as lookup,
            nearcast.open_expansion(self.store, "ads", refresh_seconds=3600) as ads,
        ):
            found = ads.ads(lookup, KEYS, k=1000)
            if back := self.paused & set(found.ads):
                self.faults.append(f"paused ads came back: {back}")
            self.check("ads", found.items)

    def check(self, where: str, items: Any) -> None:
        if back := self.removed & set(items):
            self.faults.append(f"{where}: removed items came back: {back}")


def survive(
    folder: Path,
    store: str,
    known: dict[str, list[Any]],
    report: Path,
    running: Callable[[], None],
    clear: Callable[[], None],
) -> None:
    """Use the store, heal it and use it again. `running` damages it while a reader is open.

    clear: takes away what is no file, as the errors say.
    """
    os.chdir(folder)
    survivor = Survivor(folder, store, known["removed"], known["paused"])
    with _written(survivor, report):
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(NearcastError):
                lookup = stack.enter_context(nearcast.open(store, "shop", refresh_seconds=0.01))
                running()
                for _ in range(3):
                    survivor.attempt("ask on", lambda: survivor.ask(lookup))
                    lookup.refresh()
            running()
        survivor.use()
        clear()
        survivor.heal()


def use(folder: Path, store: str, known: dict[str, list[Any]], report: Path) -> None:
    """Use the store and leave it as it is then."""
    os.chdir(folder)
    survivor = Survivor(folder, store, known["removed"], known["paused"])
    with _written(survivor, report):
        survivor.use()


def write_on(folder: Path, store: str, known: dict[str, list[Any]], started: Path) -> None:
    """Write to the overlays, expand, publish, roll back and retire, until somebody kills us."""
    os.chdir(folder)
    survivor = Survivor(folder, store, known["removed"], known["paused"])
    survivor.look_up()
    started.write_text("")
    while True:
        for number in range(20):
            survivor.overlay("shop").remove([f"other-{number}"])
        survivor.overlay("shop").restore([f"other-{number}" for number in range(20)])
        survivor.overlay("ads").remove([5])
        nearcast.expand("ads.toml", store=store)
        nearcast.roll_back("shop", store=store, out="nearcast")
        nearcast.publish("shop", 2, store=store, out="nearcast")


@contextlib.contextmanager
def _written(survivor: Survivor, report: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        survivor.faults.append(traceback.format_exc())
    finally:
        report.write_text(json.dumps({"faults": survivor.faults, "outcomes": survivor.outcomes}))


class Damage:
    """What happens to one file. Can be sent to another process, and done twice."""

    def __init__(self, path: Path, how: str | int) -> None:
        self.path, self.how = path, how

    def __call__(self) -> None:
        path, how = self.path, self.how
        if isinstance(how, int):
            if path.is_file() and path.stat().st_size > how:
                os.truncate(path, how)
        elif how == "missing":
            path.unlink(missing_ok=True)
        elif how == "folder" and path.is_file():
            path.unlink()
            path.mkdir()
        elif how == "link" and not path.is_symlink():
            path.unlink(missing_ok=True)
            path.symlink_to("/dev/null")
        elif how == "zeros" and path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
        elif how == "noise" and path.is_file():
            path.write_bytes(os.urandom(path.stat().st_size))


class Clearing:
    """Removes what is in the place of a file and is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        if self.path.is_symlink():
            self.path.unlink()
        elif self.path.is_dir():
            self.path.rmdir()


def nothing() -> None:
    """No damage."""
