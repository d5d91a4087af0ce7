"""Unfinished work in a storage: the sign of life of those who work there, and the removal of work that nobody does.

Who works on a run keeps a claim there, which changes four times in two minutes, also while a task lasts for hours. Work
is abandoned if none of its objects changes between two looks, two minutes apart by the clock of the one who looks: no
two clocks are compared. The one who removes writes `closed.json` first and then looks once more; who begins to work
claims first and then looks for `closed.json`. So one of both sees the other, without any lock.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from nearcast.errors import StorageError
from nearcast.join.task_claims import CLAIMS, STALE_SECONDS, TaskClaims
from nearcast.storage.base import Storage
from nearcast.storage.open_storage import open_storage

__all__ = ["WAIT_SECONDS", "remove_abandoned", "sign_of_life"]

CLOSED = "closed.json"  # somebody removes this work
WAIT_SECONDS = STALE_SECONDS  # between two looks: four changes of a claim
COMMITS = ("done.json", "manifest.json")
DELETES_AT_ONCE = 16


@contextlib.contextmanager
def sign_of_life(work: str, *, stale_seconds: float = STALE_SECONDS) -> Iterator[None]:
    """Show that this process works on the run at a location. Raises StorageError if its work is being removed.

    stale_seconds: the sign changes four times in so many seconds.
    """
    storage = open_storage(work)
    claims = TaskClaims(storage, stale_seconds=min(stale_seconds, STALE_SECONDS))
    name = f"workers/{secrets.token_hex(8)}"
    claims.take(name)
    with claims.hold(name):
        if storage.stat(CLOSED) is not None:
            raise StorageError(f"the work at {work} is being removed by `nearcast clean`; when it has ended, run again")
        yield


def remove_abandoned(works: Sequence[str], wait_seconds: float = WAIT_SECONDS, *, dry_run: bool = False) -> list[str]:
    """Remove work at these locations that nobody works on. Return the locations whose work was removed.

    dry_run: remove nothing.
    """
    storages = [open_storage(work) for work in works]
    first = [_look(storage) for storage in storages]
    if not any(first):
        return []
    time.sleep(wait_seconds)
    remove = _is_unchanged if dry_run else _remove
    return [storage.url for storage, seen in zip(storages, first, strict=True) if seen and remove(storage, seen)]


def _look(storage: Storage) -> dict[str, str]:
    return {each.name: each.etag for each in storage.list_objects() if each.name != CLOSED}


def _is_unchanged(storage: Storage, seen: dict[str, str]) -> bool:
    return _look(storage) == seen


def _remove(storage: Storage, seen: dict[str, str]) -> bool:
    """Remove all objects, commits first, unless one has changed since they were seen."""
    if not _is_unchanged(storage, seen):
        return False
    storage.write(CLOSED, secrets.token_hex(8).encode())
    if not _is_unchanged(storage, seen):  # somebody has begun
        storage.delete(CLOSED)
        return False
    commits = [name for name in seen if name.rpartition("/")[2] in COMMITS and not name.startswith(f"{CLAIMS}/")]
    with ThreadPoolExecutor(DELETES_AT_ONCE, "nearcast-clean") as pool:
        for names in (commits, sorted(set(seen) - set(commits))):
            list(pool.map(storage.delete, names))
    storage.delete(CLOSED)
    return True
