"""A uniform sample of the keys that a service is asked for, kept off the request path, for `nearcast monitor`.

Per key a request pays for one subtraction: how many keys are skipped until the next one is kept is drawn in advance
(Li, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))", 1994, algorithm L). A thread writes what
there is to a file now and then. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.files import write_text
from nearcast.serve.lookup_data import NOWHERE, TABLE, Answer, Answers

__all__ = ["SAMPLES", "LookedUp", "Reservoir", "SampleWriter", "read_looked_up"]

SAMPLES = "lookups"  # folder below that of the snapshots, where services leave what they were asked for
KEPT = 1_000  # keys of a generator and period
PERIOD_SECONDS = 3_600.0  # a file each
WRITE_SECONDS = 5.0
FILES_KEPT_SECONDS = 7 * 86_400.0
OWNER_ONLY = 0o600  # a sample holds keys of users

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A look-up of the sample."""

    key: str | int
    found: bool
    source: str  # "table", or what stood in for the list; "none"

    @property
    def missed(self) -> bool:
        """Whether the table does not have the key."""
        return not self.found

    @property
    def stood_in(self) -> bool:
        """Whether something else than the key's own list has answered."""
        return self.source not in (TABLE, NOWHERE)


class Reservoir:
    """A uniform sample of everything that was offered. Offered to by one thread, read by others."""

    def __init__(self, size: int = KEPT, seed: int | None = None) -> None:
        self._size = size
        self._random = random.Random(seed)
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.seen = 0
        self._kept: list[LookedUp] = []
        self._skip = 0
        self._w = 1.0

    def offer(self, answers: Sequence[Answer] | Answers) -> None:
        """Take note of these look-ups."""
        n = len(answers)
        self.seen += n
        if self._skip >= n:
            self._skip -= n
            return
        place = self._skip
        while place < n:
            self._keep(answers[place])
            place += 1 + self._next_skip()
        self._skip = place - n

    def kept(self) -> list[LookedUp]:
        """The sample so far."""
        return list(self._kept)

    def _keep(self, answer: Answer) -> None:
        one = LookedUp(answer.key, answer.found, answer.source)
        if len(self._kept) < self._size:
            self._kept.append(one)
        else:
            self._kept[self._random.randrange(self._size)] = one

    def _next_skip(self) -> int:
        if len(self._kept) < self._size:
            return 0
        self._w *= math.exp(math.log(1.0 - self._random.random()) / self._size)
        return int(math.log(1.0 - self._random.random()) / math.log1p(-self._w)) if self._w < 1.0 else 0


class SampleWriter:
    """Reservoirs by generator, and a thread that writes them: a file per generator, process and hour."""

    def __init__(self, folder: Path, generators: Iterable[str]) -> None:
        self._folder = folder
        self._reservoirs = {name: Reservoir() for name in generators}
        self._began = time.time()
        self._stop = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._work, name="nearcast-samples", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def offer(self, generator: str, answers: Sequence[Answer] | Answers) -> None:
        """Take note of these look-ups."""
        self._reservoirs[generator].offer(answers)

    def close(self) -> None:
        """Write what there is, and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(WRITE_SECONDS)
        self.write()

    def write(self) -> None:
        """Write every sample that is not empty. A folder that cannot be written is said once, and no more."""
        now = time.time()
        try:
            for name, reservoir in self._reservoirs.items():
                if reservoir.seen:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    write_text(self._path(name), json.dumps(self._facts(name, reservoir, now)), mode=OWNER_ONLY)
            if now - self._began > PERIOD_SECONDS:
                self._began = now
                for reservoir in self._reservoirs.values():
                    reservoir.clear()
                self._remove_old(now)
        except OSError as error:
            if not self._told:
                log.warning("looked-up keys are not sampled: %s", error)
            self._told = True

    def _path(self, generator: str) -> Path:
        return self._folder / f"{generator}-{int(self._began)}-{os.getpid()}.json"

    def _facts(self, generator: str, reservoir: Reservoir, now: float) -> dict[str, Any]:
        rows = [[one.key, one.found, one.source] for one in reservoir.kept()]
        return {"generator": generator, "began": self._began, "until": now, "seen": reservoir.seen, "sample": rows}

    def _remove_old(self, now: float) -> None:
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > FILES_KEPT_SECONDS:
                    path.unlink()

    def _work(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self.write()


def read_looked_up(
    folder: Path, generator: str, *, since: float, size: int, seed: int = 0
) -> tuple[list[LookedUp], int]:
    """A sample of the look-ups since a time (seconds since 1970) of all services, and how many there were.

    Samples of different files are drawn from in proportion to the look-ups that each stands for. A file that cannot
    be read is left out: it is being written, or is none of ours.
    """
    pools: list[tuple[int, list[LookedUp]]] = []
    for path in sorted(folder.glob(f"{generator}-*.json")) if folder.is_dir() else []:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["generator"] == generator and float(facts["until"]) >= since and facts["sample"]:
                pools.append((int(facts["seen"]), [LookedUp(*row) for row in facts["sample"]]))
    seen = sum(count for count, _ in pools)
    if not pools or seen <= size:
        return [one for _, sample in pools for one in sample], seen
    chance = random.Random(seed)
    for _, sample in pools:
        chance.shuffle(sample)
    drawn = chance.choices([sample for _, sample in pools], [count for count, _ in pools], k=size)
    return [sample.pop() for sample in drawn if sample], seen
