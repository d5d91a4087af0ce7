"""Run the service on uvicorn: a socket, a loop, and a stop that no request notices.

On SIGTERM the service first stops being ready and asks each client to close its connection, while it answers as before;
after the time given for that, it takes no more connections, ends what is under way, and returns. A second signal, or
SIGINT, ends the first part at once. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nearcast.errors import SpecError
from nearcast.serve.replies import Asgi, need_extra
from nearcast.serve.service import Service

__all__ = ["bind", "is_loopback", "run_server"]

BACKLOG = 2048
IDLE_SECONDS = 75  # longer than proxies keep a connection idle, so that it is they who close it
FINISH_SECONDS = 20  # for requests under way once no more are taken
MOST_HEAD_BYTES = 65_536
SWITCH_SECONDS = 0.001  # a long look-up on a thread lets the loop in so often


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in ("localhost", "::1") or host.startswith("127.")


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, which refuses connections until it is served; port 0 takes a free one.

    SpecError where the address cannot be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also right after another has left it
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        reason = error.strerror or error
        raise SpecError(f"{host} port {port} cannot be had ({reason}); choose another --host or --port") from error
    return bound


def run_server(
    app: Asgi, service: Service, bound: socket.socket, *, drain_seconds: float, begun: Callable[[], None]
) -> None:
    """Serve until a signal says to stop, and then end well. Belongs in the main thread.

    begun: called when connections are taken.
    """
    need_extra()
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(HttpToolsProtocol):
        """Does not collect the head of a request for ever."""

        in_head, head_bytes = True, 0

        def data_received(self, data: bytes) -> None:
            if self.in_head:
                if self.head_bytes > MOST_HEAD_BYTES:
                    self.send_400_response("the head of the request is too large")
                    return
                self.head_bytes += len(data)  # counted for the next time: a body may have come along with the head
            super().data_received(data)

        def on_message_begin(self) -> None:
            self.in_head, self.head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.in_head = False
            super().on_headers_complete()

    class Draining(uvicorn.Server):
        """Uvicorn, with a stop in two parts and without raising the signal again at the end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._drain, loop)
            loop.add_signal_handler(signal.SIGINT, self._stop)
            try:
                yield
            finally:
                loop.remove_signal_handler(signal.SIGTERM)
                loop.remove_signal_handler(signal.SIGINT)

        def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
            if service.draining:
                self._stop()
            service.draining = True
            loop.call_later(drain_seconds, self._stop)

        def _stop(self) -> None:
            service.draining = True
            self.should_exit = True

    async def watch() -> None:
        service.watch()

    config = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        backlog=BACKLOG,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        callback_notify=watch,
        timeout_notify=1,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked through again and again
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(Draining(config).serve(sockets=[bound]))


def _loop_factory() -> Callable[[], Any] | None:
    """Of uvloop where it can be installed, which is everywhere but on Windows."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
