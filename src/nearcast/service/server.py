"""Run the service on uvicorn: a socket, an event loop, and a stop that drops no request.

SIGTERM starts the first phase: the service is not ready and asks clients to close their connections, but still
answers. After `drain_seconds` the second phase starts: it accepts no more connections, finishes the requests under
way, and returns. A second signal, or SIGINT, ends the first phase at once, and one more ends the second. Connections
that the kernel has accepted by then are answered and later ones are refused; none is reset.

A worker of several gets orders from its supervisor instead of signals. `RETIRE` ends one worker: it accepts no more
connections at once, since the others do, and asks its clients to connect again. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nearcast.errors import SpecError
from nearcast.service.connection import BoundedConnection, expire_regularly
from nearcast.service.generator_service import Service
from nearcast.service.responses import Asgi, need_extra
from nearcast.service.shared_accept import SharedAcceptor

if TYPE_CHECKING:
    UvicornServer = Any  # uvicorn's, which is imported where it is mixed in
else:
    UvicornServer = object

__all__ = ["DRAIN", "FINISH_SECONDS", "RETIRE", "STOP", "bind", "is_loopback", "run_server"]

RETIRE, DRAIN, STOP = b"r", b"d", b"s"  # orders: end this worker, end the service, do not wait any longer

BACKLOG = 2048
IDLE_SECONDS = 75  # longer than proxies keep a connection idle, so that the proxy closes it first
FINISH_SECONDS = 20  # for requests under way in the second phase
SWEEP_SECONDS = 1.0  # between checks of the deadlines of connections
HANDSHAKE_SECONDS = 0.1  # for TCP handshakes under way at the start of the second phase
MAX_ROUNDS = 100_000  # of the loop, to accept waiting connections
SO_ATTACH_FILTER = 26  # Linux constant
SWITCH_SECONDS = 0.001  # so that a long look-up on a thread does not delay the event loop

log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Return whether the host is a loopback address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to this address. It refuses connections until it is served; port 0 takes a free port.

    Raises SpecError if the address is not available.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the address may have been in use a moment ago
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _make_address_error(host, port, error) from error
    return bound


def _make_address_error(host: str, port: int, error: OSError) -> SpecError:
    return SpecError(f"{host} port {port} cannot be had ({error.strerror or error}); choose another --host or --port")


class DrainingServer(UvicornServer):  # type: ignore[misc]
    """A mixin before uvicorn's server: stops in two phases, and does not raise the signal again at the end."""

    service: Service
    drain_seconds: float
    on_start: Callable[[], None]
    orders: int | None  # descriptor that a supervisor writes orders to; None: signals give them
    acceptor: SharedAcceptor | None = None  # of a worker: it shares the socket with others
    is_retired: bool = False  # the other workers accept the connections that wait

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections. Raises SpecError if another process does so on this address since `bind`."""
        assert sockets is not None
        workers, listening = self.service.workers, sockets[0]
        try:
            listening.listen(BACKLOG)
        except OSError as error:
            host, port = listening.getsockname()[:2]
            raise _make_address_error(host, port, error) from error
        if workers is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            counts, connections = workers.open_connection_counts(), self.server_state.connections
            self.acceptor = SharedAcceptor(listening, self._make_protocol, connections, counts, workers.number or 0)
        self.on_start()

    def _make_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def on_tick(self, counter: int) -> bool:
        """Do what is due ten times a second. Return whether to stop."""
        if self.acceptor is not None:
            self.acceptor.publish_count()
        return bool(await super().on_tick(counter))

    async def main_loop(self) -> None:
        """Serve until `should_exit`, and enforce the deadlines of connections."""
        deadlines = asyncio.create_task(expire_regularly(self.server_state.connections, SWEEP_SECONDS))
        await super().main_loop()
        deadlines.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that wait, then finish the requests under way."""
        deadlines = asyncio.create_task(expire_regularly(self.server_state.connections, SWEEP_SECONDS / 10))
        if not self.is_retired:
            await accept_waiting(sockets or [])
        if self.acceptor is not None:
            self.acceptor.close()
        await super().shutdown(sockets)
        deadlines.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT, or the orders of a supervisor, while the server runs."""
        loop = asyncio.get_running_loop()
        if self.orders is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor gets it as well, and gives orders
            loop.add_reader(self.orders, self._read_orders, loop)
            yield
            loop.remove_reader(self.orders)
            return
        loop.add_signal_handler(signal.SIGTERM, self._drain, loop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.service.draining:
            self._stop()
        else:
            self.service.draining = True
            loop.call_later(self.drain_seconds, self._end_drain)

    def _read_orders(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self.orders is not None
        orders = os.read(self.orders, 16)
        if not orders:
            log.warning("the supervisor has ended, so this worker ends too")
            loop.remove_reader(self.orders)
        if RETIRE in orders and not self.service.draining:
            self.is_retired = True
            if self.acceptor is not None:
                self.acceptor.close()
        if not self.service.draining:
            self._drain(loop)
        if STOP in orders:
            self._stop()

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # a signal while the last requests finish ends them
        self._end_drain()

    def _end_drain(self) -> None:
        self.service.draining = True
        self.should_exit = True


def run_server(
    app: Asgi,
    service: Service,
    bound: socket.socket,
    *,
    drain_seconds: float,
    timeout_seconds: float,
    begun: Callable[[], None],
    orders: int | None = None,
) -> None:
    """Serve until a signal, then stop without dropping a request. Call it in the main thread.

    timeout_seconds: limit for the head of a request to arrive, for its body to arrive, and for its answer to be read.
    begun: called when the server accepts connections. orders: descriptor that a supervisor writes orders to.
    """
    need_extra()
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Connection(BoundedConnection, HttpToolsProtocol):
        """Uvicorn's connection with deadlines and limits."""

        seconds = timeout_seconds

        @staticmethod
        def observe(status: int) -> None:
            service.metrics.count_request("other", status, 0.0)

    class Server(DrainingServer, uvicorn.Server):
        """Uvicorn's server with a graceful stop."""

    async def check_tables() -> None:
        service.check_tables()
        service.write_state()

    config = uvicorn.Config(
        app,
        http=Connection,
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
        callback_notify=check_tables,
        timeout_notify=1,
    )
    server = Server(config)
    server.service, server.drain_seconds, server.on_start, server.orders = service, drain_seconds, begun, orders
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # objects of the start live as long as the process: the collector need not visit them
    with asyncio.Runner(loop_factory=_find_loop_factory()) as runner:
        runner.run(server.serve(sockets=[bound]))


async def accept_waiting(listening: list[socket.socket]) -> None:
    """Accept all connections in the queues of these sockets, while the kernel makes no new ones.

    Closing a listening socket resets every connection in its queue. A kernel filter therefore drops SYN packets first;
    those clients are refused once the socket is closed. Without such a filter, a connection made in the last
    microseconds may be reset.
    """
    for one in listening:
        _drop_syn_packets(one)
    await asyncio.sleep(HANDSHAKE_SECONDS)
    waiting = select.poll()
    for one in listening:
        waiting.register(one, select.POLLIN)
    for _ in range(MAX_ROUNDS):
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


def _find_loop_factory() -> Callable[[], Any] | None:
    """Return the loop factory of uvloop; None on Windows, where uvloop does not exist."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
