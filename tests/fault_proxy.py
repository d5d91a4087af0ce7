"""A proxy before an S3 server that fails on purpose: errors, resets, delays, lost replies, ignored conditions.

`proxy.plan` is called with each request and returns the fault to inject, or None to pass the request on. `fail_first`
makes a plan for the first requests of a kind. Everything is on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servers import HERE

CONDITIONS = ("if-none-match", "if-match")


@dataclass(frozen=True)
class Fault:
    """What happens to a request."""

    status: int = 0  # answered without passing the request on
    code: str = "InternalError"  # of the answer with that status
    headers: dict[str, str] = field(default_factory=dict)  # of the answer with that status
    delay: float = 0.0  # seconds before the request is passed on
    reset: bool = False  # the connection breaks before the request is passed on
    lose_reply: bool = False  # the request is passed on, then the connection breaks
    cut_body: bool = False  # the reply breaks off in the middle of its body
    flip_body: bool = False  # one byte of the reply's body is changed
    ignore_conditions: bool = False  # If-Match and If-None-Match are not passed on


@dataclass(frozen=True)
class Request:
    """A request as the plan sees it."""

    method: str
    path: str  # with the query
    conditional: bool  # a put with If-Match or If-None-Match
    number: int  # from 0


Plan = Callable[[Request], Fault | None]


class FaultProxy:
    """Passes requests on to a port of this host, except for the faults of its plan."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self.plan: Plan = lambda request: None
        self.requests: list[Request] = []
        self.injected = 0
        self._server = ThreadingHTTPServer((HERE, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{HERE}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def decide(self, method: str, path: str, conditional: bool) -> Fault | None:
        """Note a request and return its fault."""
        with self._lock:
            request = Request(method, path, conditional, len(self.requests))
            self.requests.append(request)
            fault = self.plan(request)
            self.injected += fault is not None
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy, target = self, self._target

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def log_message(self, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                conditional = self.command == "PUT" and any(name.lower() in CONDITIONS for name in headers)
                fault = proxy.decide(self.command, self.path, conditional) or Fault()
                time.sleep(fault.delay)
                if fault.reset:
                    self.break_off()
                    return
                if fault.status:
                    data = f"<Error><Code>{fault.code}</Code><Message>a fault</Message></Error>".encode()
                    self.answer(fault.status, {**fault.headers, "content-length": str(len(data))}, data)
                    return
                if fault.ignore_conditions:
                    headers = {name: value for name, value in headers.items() if name.lower() not in CONDITIONS}
                status, reply, data = self.pass_on(body, headers)
                if fault.lose_reply:
                    self.break_off()
                    return
                if fault.flip_body and data:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if fault.cut_body and data:
                    self.answer(status, reply, data[: len(data) // 2])
                    self.wfile.flush()
                    self.break_off()
                    return
                self.answer(status, reply, data)

            def pass_on(self, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(HERE, target, timeout=60)
                with contextlib.closing(connection):
                    connection.request(self.command, self.path, body=body, headers=headers)
                    response = connection.getresponse()
                    data = response.read()
                    skip = ("transfer-encoding", "connection", "content-length")
                    reply = {name: value for name, value in response.getheaders() if name.lower() not in skip}
                    length = response.getheader("content-length") if self.command == "HEAD" else str(len(data))
                    reply["content-length"] = length or "0"
                    return response.status, reply, data

            def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response_only(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(data)

            def break_off(self) -> None:
                """Reset the connection."""
                self.close_connection = True
                linger = struct.pack("ii", 1, 0)
                with contextlib.suppress(OSError):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

        return Handler


def fail_first(count: int, fault: Fault, *, method: str = "", conditional: bool | None = None, path: str = "") -> Plan:
    """Make a plan that injects a fault into the first requests of a kind."""
    left = [count]

    def plan(request: Request) -> Fault | None:
        fits = (not method or request.method == method) and path in request.path
        if not fits or left[0] == 0 or (conditional is not None and request.conditional != conditional):
            return None
        left[0] -= 1
        return fault

    return plan


def fail_at_random(share: float, *faults: Fault, seed: int = 0) -> Plan:
    """Make a plan that injects one of the faults into a share of the requests."""
    draws = random.Random(seed)
    return lambda request: draws.choice(faults) if draws.random() < share else None


@contextlib.contextmanager
def faults_before(port: int) -> Iterator[FaultProxy]:
    """A proxy before a server on this port for a while."""
    proxy = FaultProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
