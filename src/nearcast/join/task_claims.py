"""Claims of tasks: small objects that say which worker works on a task, so that others take other tasks.

Claims save work and decide nothing: a task that two workers do at once is committed once. A claim that does not change
for a while is stale, and the task is taken over. Time is measured by the clock of the waiting worker, between two looks
at the claim; no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nearcast.errors import NearcastError, NotFoundError
from nearcast.storage.base import Storage

__all__ = ["CLAIMS", "STALE_SECONDS", "TaskClaims"]

CLAIMS = "claims"  # folder in the storage of a run
STALE_SECONDS = 120.0
BEATS = 4  # a claim is written again so many times until it would be stale


@dataclass(slots=True)
class SeenClaim:
    """A claim of another worker as this one saw it first."""

    etag: str
    since: float  # monotonic time


class TaskClaims:
    """Claims of one worker in the storage of a run.

    owner: name of the worker that stays when a scheduler starts it again, such as "3 of 40"; it takes over its own old
    claims at once. Empty for a worker without such a name.
    """

    def __init__(self, storage: Storage, owner: str = "", *, stale_seconds: float = STALE_SECONDS) -> None:
        self.owner = owner
        self.stale_seconds = stale_seconds
        self._storage = storage
        self._seen: dict[str, SeenClaim] = {}

    def take(self, task: str) -> bool:
        """Claim a task; take over a stale claim. Return whether the task is this worker's now."""
        name = f"{CLAIMS}/{task}"
        if self._storage.create(name, self._describe(0)):
            return True
        found = self._storage.stat(name)
        if found is None:
            return self._storage.create(name, self._describe(0))
        seen, now = self._seen.get(task), time.monotonic()
        if seen is None or seen.etag != found.etag:
            self._seen[task] = SeenClaim(found.etag, now)
            is_stale = bool(self.owner) and self._read_owner(name) == self.owner
        else:
            is_stale = now - seen.since >= self.stale_seconds
        return is_stale and self._storage.replace(name, self._describe(0), found.etag)

    @contextlib.contextmanager
    def hold(self, task: str) -> Iterator[None]:
        """Write the claim again and again while the block runs, then delete it."""
        stopped = threading.Event()
        thread = threading.Thread(target=self._beat, args=(task, stopped), name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join(self.stale_seconds)
            with contextlib.suppress(NearcastError, OSError):
                self._storage.delete(f"{CLAIMS}/{task}")

    def count(self, stage: str) -> int:
        """Count the claims of a stage."""
        return sum(1 for _ in self._storage.list_objects(f"{CLAIMS}/{stage}"))

    def _beat(self, task: str, stopped: threading.Event) -> None:
        number = 0
        while not stopped.wait(self.stale_seconds / BEATS):
            number += 1
            with contextlib.suppress(NearcastError, OSError):  # the next beat tries again; claims decide nothing
                self._storage.write(f"{CLAIMS}/{task}", self._describe(number))

    def _read_owner(self, name: str) -> str:
        try:
            return str(json.loads(self._storage.read(name))["owner"])
        except (NotFoundError, ValueError, KeyError, TypeError):
            return ""

    def _describe(self, beat: int) -> bytes:
        facts = {"owner": self.owner, "host": os.uname().nodename, "process": os.getpid(), "beat": beat}
        return json.dumps(facts | {"time": time.time()}).encode()
