"""Send requests to an HTTP server at a rate that does not depend on its answers, and measure the response times.

Requests are due at random moments (a Poisson process), and a response time counts from that moment. So if the server
stalls, all requests that are due during the stall are late. Without a rate, every connection sends the next request
after each answer. Needs one core, since it never sleeps.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HERE = "127.0.0.1"
PATIENCE = 10.0  # seconds that the last answers are waited for

OnAnswer = Callable[[int, float, bytes], None]  # number of the request, when it was sent, body


@dataclass(slots=True)
class Driven:
    """Results of a run. Times in seconds."""

    answered: int = 0
    errors: int = 0  # another status than 200, a broken connection, no answer at all
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first_errors: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Figures for a table: milliseconds."""
        spread = np.percentile(self.latencies, [50, 90, 99, 99.9, 100]) * 1000 if self.latencies else [float("nan")] * 5
        names = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
        return {
            "requests": self.answered,
            "errors": self.errors,
            "first_errors": self.first_errors,
            "seconds": self.seconds,
            "requests_per_second": self.answered / max(self.seconds, 1e-9),
            **{name: round(float(value), 3) for name, value in zip(names, spread, strict=True)},
        }


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    number: int = -1
    due: float = 0.0
    sent: float = 0.0
    received: bytes = b""
    size: int = -1  # of the whole answer, once its head is there


def get(path: str) -> bytes:
    """Return a GET request as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {HERE}\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """Return a POST request of JSON as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HERE}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def summary_of(*arguments: Any) -> dict[str, Any]:
    """`drive(...).summary()`: a function that another process can be told."""
    return drive(*arguments).summary()


def drive(
    port: int,
    requests: Sequence[bytes],
    rate: float | None,
    seconds: float,
    connections: int = 32,
    seed: int = 0,
    on_answer: OnAnswer | None = None,
) -> Driven:
    """Send random requests for a number of seconds."""
    driver = _Driver(port, requests, connections, seed, on_answer)
    try:
        driver.run(rate, seconds)
    finally:
        driver.close()
    return driver.result


class _Driver:
    """The connections and the schedule of requests."""

    def __init__(
        self, port: int, requests: Sequence[bytes], connections: int, seed: int, on_answer: OnAnswer | None
    ) -> None:
        self.result = Driven()
        self._port, self._requests, self._on_answer = port, requests, on_answer
        self._rng = np.random.default_rng(seed)
        self._poll = select.epoll()
        self._busy: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque(self._connect() for _ in range(connections))

    def run(self, rate: float | None, seconds: float) -> None:
        """Until the time is over and the last answers are there."""
        gaps = np.empty(0) if rate is None else self._rng.exponential(1 / rate, int(2 * rate * seconds) + 100)
        arrivals = np.cumsum(gaps)
        arrivals = arrivals[arrivals < seconds].tolist()
        drawn = self._rng.integers(len(self._requests), size=max(len(arrivals), 1 << 20)).tolist()
        waiting: deque[float] = deque()
        following = sent = 0
        start = time.perf_counter()
        while True:
            now = time.perf_counter() - start
            if rate is None and now < seconds:
                waiting.extend([now] * (len(self._idle) - len(waiting)))
            while following < len(arrivals) and arrivals[following] <= now:
                waiting.append(arrivals[following])
                following += 1
            while waiting and self._idle:
                self._send(drawn[sent % len(drawn)], start + waiting.popleft())
                sent += 1
            self._receive()
            over = now >= seconds and following == len(arrivals) and not waiting and not self._busy
            if over or now > seconds + PATIENCE:
                break
        self.result.seconds = time.perf_counter() - start
        unanswered = len(self._busy) + len(waiting)
        if unanswered:
            self._failed(f"{unanswered} requests were not answered", unanswered)

    def close(self) -> None:
        """Let go of the connections."""
        for connection in (*self._idle, *self._busy.values()):
            connection.socket.close()
        self._poll.close()

    def _connect(self) -> _Connection:
        made = socket.create_connection((HERE, self._port), timeout=PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._poll.register(made.fileno(), select.EPOLLIN)
        return _Connection(made)

    def _send(self, number: int, due: float) -> None:
        connection = self._idle.popleft()
        connection.number, connection.due, connection.sent = number, due, time.perf_counter()
        self._busy[connection.socket.fileno()] = connection
        try:
            connection.socket.sendall(self._requests[number])
        except OSError as error:
            self._replace(connection, f"could not be sent: {error}")

    def _receive(self) -> None:
        for descriptor, _ in self._poll.poll(0):
            connection = self._busy.get(descriptor)
            if connection is None:
                self._drop_idle(descriptor)
                continue
            try:
                data = connection.socket.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError as error:
                self._replace(connection, f"broke: {error}")
                continue
            if not data:
                self._replace(connection, "was closed before the answer")
                continue
            connection.received += data
            if connection.size < 0:
                connection.size = _size(connection.received)
            if 0 <= connection.size <= len(connection.received):
                self._done(connection)

    def _done(self, connection: _Connection) -> None:
        answer, connection.received, connection.size = connection.received, b"", -1
        if answer[9:12] != b"200":
            self._failed(answer[:300].decode(errors="replace"))
        else:
            self.result.answered += 1
            self.result.latencies.append(time.perf_counter() - connection.due)
            if self._on_answer is not None:
                self._on_answer(connection.number, connection.sent, answer[answer.index(b"\r\n\r\n") + 4 :])
        del self._busy[connection.socket.fileno()]
        self._idle.append(connection)

    def _replace(self, connection: _Connection, reason: str) -> None:
        self._failed(f"a connection {reason}")
        del self._busy[connection.socket.fileno()]
        connection.socket.close()
        self._idle.append(self._connect())

    def _drop_idle(self, descriptor: int) -> None:
        """A server may close a connection that asks for nothing; we open another one."""
        for connection in self._idle:
            if connection.socket.fileno() == descriptor:
                self._idle.remove(connection)
                connection.socket.close()
                self._idle.append(self._connect())
                return

    def _failed(self, reason: str, count: int = 1) -> None:
        self.result.errors += count
        if len(self.result.first_errors) < 5:
            self.result.first_errors.append(reason)


def _size(received: bytes) -> int:
    """Bytes of the whole answer, or -1 before its head is there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return -1
    head = received[:end].lower()
    at = head.find(b"content-length:")
    return end + 4 + (int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
