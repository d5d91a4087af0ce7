"""Uniform samples of the keys that a service looks up, for `nearcast monitor`.

A request costs one subtraction per key: the number of keys to skip until the next sampled one is drawn in advance
(Li, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))", 1994, algorithm L). A thread writes the
samples to files. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from nearcast.errors import NearcastError
from nearcast.serve.lookup_data import NOWHERE, TABLE, Answer
from nearcast.serve.sample_files import open_sample_files
from nearcast.storage.locations import Location

__all__ = ["SAMPLES", "AnswerRows", "Reservoir", "SampleWriter", "SampledLookup", "read_sampled_lookups"]

SAMPLES = "lookups"  # folder of the samples, below the location of the snapshots
SAMPLE_SIZE = 1_000  # keys per generator and period
PERIOD_SECONDS = 3_600.0  # of one file
CLOSE_SECONDS = 5.0
FILES_KEPT_SECONDS = 7 * 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampledLookup:
    """A look-up in a sample."""

    key: str | int
    found: bool
    source: str  # "table", the name of a fallback, or "none"

    @property
    def missed(self) -> bool:
        """The table does not have the key."""
        return not self.found

    @property
    def used_fallback(self) -> bool:
        """The candidates come from a fallback."""
        return self.source not in (TABLE, NOWHERE)


class AnswerRows(Protocol):
    """Answers by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Answer: ...


class Reservoir:
    """A uniform sample of all look-ups that were added. One thread adds, other threads read."""

    def __init__(self, size: int = SAMPLE_SIZE, seed: int | None = None) -> None:
        self._size = size
        self._random = random.Random(seed)
        self.clear()

    def clear(self) -> None:
        """Start a new sample."""
        self.seen = 0
        self._sample: list[SampledLookup] = []
        self._skip = 0
        self._w = 1.0

    def add(self, answers: AnswerRows) -> None:
        """Add these look-ups to the population of the sample."""
        n = len(answers)
        self.seen += n
        if self._skip >= n:
            self._skip -= n
            return
        position = self._skip
        while position < n:
            self._keep(answers[position])
            position += 1 + self._draw_skip()
        self._skip = position - n

    def sample(self) -> list[SampledLookup]:
        """Return the sample so far."""
        return list(self._sample)

    def _keep(self, answer: Answer) -> None:
        lookup = SampledLookup(answer.key, answer.found, answer.source)
        if len(self._sample) < self._size:
            self._sample.append(lookup)
        else:
            self._sample[self._random.randrange(self._size)] = lookup

    def _draw_skip(self) -> int:
        if len(self._sample) < self._size:
            return 0
        self._w *= math.exp(math.log(1.0 - self._random.random()) / self._size)
        return int(math.log(1.0 - self._random.random()) / math.log1p(-self._w)) if self._w < 1.0 else 0


class SampleWriter:
    """A reservoir per generator, and a thread that writes them: one file per generator, process and hour."""

    def __init__(self, place: Location, generators: Iterable[str]) -> None:
        self._files = open_sample_files(place)
        self._reservoirs = {name: Reservoir() for name in generators}
        self._began = time.time()
        self._stop = threading.Event()
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name="nearcast-samples", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, generator: str, answers: AnswerRows) -> None:
        """Add these look-ups to the population of the sample."""
        self._reservoirs[generator].add(answers)

    def close(self) -> None:
        """Stop the thread and write the samples."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self.write()

    def write(self) -> None:
        """Write every sample that is not empty. If the folder cannot be written, log one warning."""
        now = time.time()
        try:
            for name, reservoir in self._reservoirs.items():
                if reservoir.seen:
                    text = json.dumps(self._describe(name, reservoir, now))
                    self._files.write(f"{name}-{int(self._began)}", text)
            if now - self._began > PERIOD_SECONDS:
                self._began = now
                for reservoir in self._reservoirs.values():
                    reservoir.clear()
                self._remove_old(now)
        except (OSError, NearcastError) as error:
            if not self._has_warned:
                log.warning("looked-up keys are not sampled: %s", error)
            self._has_warned = True

    def _describe(self, generator: str, reservoir: Reservoir, now: float) -> dict[str, Any]:
        rows = [[one.key, one.found, one.source] for one in reservoir.sample()]
        return {"generator": generator, "began": self._began, "until": now, "seen": reservoir.seen, "sample": rows}

    def _remove_old(self, now: float) -> None:
        self._files.remove_old(now - FILES_KEPT_SECONDS)

    def _work(self) -> None:
        while not self._stop.wait(self._files.write_seconds):
            self.write()


def read_sampled_lookups(
    place: Location, generator: str, *, since: float, size: int, seed: int = 0
) -> tuple[list[SampledLookup], int]:
    """Return a sample of the look-ups of all services since a time (seconds since 1970), and their total number.

    Files are sampled in proportion to the look-ups that each represents. An unreadable file is skipped: it is being
    written, or comes from another program.
    """
    pools: list[tuple[int, list[SampledLookup]]] = []
    for text in open_sample_files(place).read_all(f"{generator}-"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            facts = json.loads(text)
            if facts["generator"] == generator and float(facts["until"]) >= since and facts["sample"]:
                pools.append((int(facts["seen"]), [SampledLookup(*row) for row in facts["sample"]]))
    seen = sum(count for count, _ in pools)
    if not pools or seen <= size:
        return [one for _, sample in pools for one in sample], seen
    chance = random.Random(seed)
    for _, sample in pools:
        chance.shuffle(sample)
    drawn = chance.choices([sample for _, sample in pools], [count for count, _ in pools], k=size)
    return [sample.pop() for sample in drawn if sample], seen
