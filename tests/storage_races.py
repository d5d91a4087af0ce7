"""Writers that create the same objects at the same moment: exactly one of them wins each time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from nearcast.storage.base import Storage


def race_to_create(storage: Storage, *, writers: int, rounds: int) -> None:
    """Let threads create an object per round. Asserts that each has one winner, and the winner's bytes."""
    barrier = threading.Barrier(writers)

    def create(writer: int) -> list[bool]:
        won = []
        for round_ in range(rounds):
            barrier.wait(300)
            won.append(storage.create(f"race/{round_:03d}", f"writer {writer}".encode()))
        return won

    with ThreadPoolExecutor(writers) as pool:
        results = list(pool.map(create, range(writers)))
    for round_, winners in enumerate(zip(*results, strict=True)):
        assert sum(winners) == 1
        assert storage.read(f"race/{round_:03d}") == f"writer {winners.index(True)}".encode()
