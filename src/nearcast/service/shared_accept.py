"""Accept connections from a socket that several workers share, so that each of them has about as many.

The kernel wakes all workers for a new connection, and whoever is first would have it: a few clients with long
connections could then load one worker and leave another idle. A worker that has more connections than another therefore
lets a new one pass for a moment. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import time
from collections.abc import Callable, Sized
from pathlib import Path

__all__ = ["ConnectionCounts", "SharedAcceptor"]

ABSENT = 0xFFFFFFFF  # the count of a worker that accepts nothing
SLACK = 1  # connections more than the least: a wider gap grows with every burst
PASS_SECONDS = 0.001  # for which a connection is left to the others, which may be busy or hang
MOST_AT_ONCE = 4  # connections that are accepted in one round of the event loop
PAUSE_SECONDS = 1.0  # after the process has run out of file descriptors

log = logging.getLogger(__name__)


class ConnectionCounts:
    """The number of connections of each worker, in memory that they share."""

    def __init__(self, file: Path, workers: int) -> None:
        self._workers = 2 * workers + 2  # numbers from 1; while workers are restarted, there are more of them
        if not file.exists():
            file.write_bytes(b"\xff" * 4 * self._workers)
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(descriptor, 4 * self._workers)
        os.close(descriptor)
        self._counts = memoryview(self._map).cast("I")

    def set(self, number: int, connections: int) -> None:
        """Set the count of a worker."""
        self._counts[number] = connections

    def forget(self, number: int) -> None:
        """Note that a worker accepts no more connections."""
        self._counts[number] = ABSENT

    def find_least(self) -> int:
        """Return the least count of a worker that accepts connections."""
        return min(self._counts[: self._workers])


class SharedAcceptor:
    """Accepts connections in the running event loop until it is closed."""

    def __init__(
        self,
        listening: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Sized,
        counts: ConnectionCounts,
        number: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening, self._make_protocol = listening, make_protocol
        self._connections, self._counts, self._number = connections, counts, number
        self._opening: set[asyncio.Task[object]] = set()
        self._pass_until: float | None = None
        self._is_closed = False
        listening.setblocking(False)
        self.publish_count()
        self._loop.add_reader(listening.fileno(), self._accept)

    def publish_count(self) -> int:
        """Tell the other workers how many connections this one has, and return the number."""
        count = len(self._connections) + len(self._opening)
        if not self._is_closed:
            self._counts.set(self._number, count)
        return count

    def close(self) -> None:
        """Accept no more connections."""
        if not self._is_closed:
            self._is_closed = True
            self._counts.forget(self._number)
            self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        if self._lets_pass():
            return
        for _ in range(MOST_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another worker has it, or the client has left
            except OSError as error:
                log.warning("no connection can be accepted for %g s: %s", PAUSE_SECONDS, error)
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            if self._has_most():
                return

    def _lets_pass(self) -> bool:
        """Return whether to leave a connection to the other workers for now."""
        now = time.monotonic()
        if not self._has_most() or (self._pass_until is not None and now >= self._pass_until):
            self._pass_until = None
            return False
        self._pass_until = self._pass_until or now + PASS_SECONDS
        return True

    def _has_most(self) -> bool:
        """Return whether another worker has clearly fewer connections."""
        return self.publish_count() > self._counts.find_least() + SLACK

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the client has left
            connection.close()

    def _resume(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listening.fileno(), self._accept)
