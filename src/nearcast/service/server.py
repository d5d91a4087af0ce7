"""Run the service on uvicorn: a socket, a loop, and a stop that no request notices.

On SIGTERM the service first stops being ready and asks each client to close its connection, while it answers as before;
after the time given for that, it takes no more connections, ends what is under way, and returns. A second signal, or
SIGINT, ends the first part at once, and one more the second part. Connections that the kernel has accepted by then are
answered, and later ones are refused: none is reset. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nearcast.errors import SpecError
from nearcast.service.connection import BoundedConnection, expire_regularly
from nearcast.service.generator_service import Service
from nearcast.service.responses import Asgi, need_extra

__all__ = ["bind", "is_loopback", "run_server"]

BACKLOG = 2048
IDLE_SECONDS = 75  # longer than proxies keep a connection idle, so that it is they who close it
FINISH_SECONDS = 20  # for requests under way once no more are taken
SWEEP_SECONDS = 1.0  # how often connections are held to their deadlines
HANDSHAKE_SECONDS = 0.1  # for connections that are being made when no more are taken
MOST_ROUNDS = 100_000  # of the loop, to accept what waits
SO_ATTACH_FILTER = 26  # of Linux
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
    app: Asgi,
    service: Service,
    bound: socket.socket,
    *,
    drain_seconds: float,
    timeout_seconds: float,
    begun: Callable[[], None],
) -> None:
    """Serve until a signal says to stop, and then end well. Belongs in the main thread.

    timeout_seconds: for the head of a request to arrive, then for its body, and then for its answer to be read.
    begun: called when connections are taken.
    """
    need_extra()
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Bounded(BoundedConnection, HttpToolsProtocol):
        """Uvicorn's connection with deadlines and limits."""

        seconds = timeout_seconds

        @staticmethod
        def observe(status: int) -> None:
            service.metrics.request("other", status, 0.0)

    class Draining(uvicorn.Server):
        """Uvicorn, with a stop in two parts and without raising the signal again at the end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun()

        async def main_loop(self) -> None:
            deadlines = asyncio.create_task(expire_regularly(self.server_state.connections, SWEEP_SECONDS))
            await super().main_loop()
            deadlines.cancel()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            deadlines = asyncio.create_task(expire_regularly(self.server_state.connections, SWEEP_SECONDS / 10))
            await accept_waiting(sockets or [])
            await super().shutdown(sockets)
            deadlines.cancel()

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
            else:
                service.draining = True
                loop.call_later(drain_seconds, self._end_drain)

        def _stop(self) -> None:
            self.force_exit = self.should_exit  # a signal while the last requests are finished
            self._end_drain()

        def _end_drain(self) -> None:
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


async def accept_waiting(listening: list[socket.socket]) -> None:
    """Let the loop accept all connections that clients believe to have, and let the kernel make no new ones.

    A listening socket that is closed resets every connection in its queue. So new ones are kept out first, by a filter
    in the kernel that drops their SYN packets (their clients are refused once the socket is closed); where there is no
    such filter, a connection made in the last microseconds may be reset.
    """
    for one in listening:
        _drop_syn_packets(one)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    waiting = select.poll()
    for one in listening:
        waiting.register(one, select.POLLIN)
    for _ in range(MOST_ROUNDS):
        if not waiting.poll(0):
            return
        await asyncio.sleep(0)


def _drop_syn_packets(listening: socket.socket) -> None:
    if sys.platform != "linux":
        return
    # Classic BPF on the TCP header: load the flags, and drop the packet if SYN is set and ACK is not.
    steps = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        listening.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(program))
        )


def _loop_factory() -> Callable[[], Any] | None:
    """Of uvloop where it can be installed, which is everywhere but on Windows."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
