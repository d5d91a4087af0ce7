"""One HTTP connection: deadlines, limits of the request head, and errors as JSON, around uvicorn's parser.

Uvicorn waits for the rest of a request without limit, answers parse errors as plain text, and closes a connection while
the client still sends, which resets it before the client has read the answer. This module adds a total deadline for
each head, body and answer, the checks of RFC 9112, and a close that lets the client read. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from nearcast.service.responses import CLOSE, SAFE, Headers, error_reply

if TYPE_CHECKING:
    UvicornProtocol = Any  # uvicorn's, which is imported where it is mixed in
else:
    UvicornProtocol = object

__all__ = ["BoundedConnection", "expire_regularly"]

MAX_HEAD_BYTES = 65_536
LINGER_SECONDS = 2.0  # for the client to read the last answer and to stop sending
NEW_GRACE_SECONDS = 2.0  # while the service stops: for the first request of a new connection
IDLE_GRACE_SECONDS = 0.5  # while the service stops: for a request in flight on an idle connection
ALLOWED: Headers = ((b"allow", b"GET, HEAD, POST"),)
METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64} [^ ]")
HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

HeadError = tuple[int, str, str, Headers]  # status, code, message, headers


class BoundedConnection(UvicornProtocol):  # type: ignore[misc]
    """A mixin before uvicorn's connection. Call `expire` about once a second."""

    seconds: float  # for each head, body and answer
    observe: Callable[[int], None]  # called with the status of an error that the application does not see

    def connection_made(self, transport: Any) -> None:
        """Wait for the head of a request."""
        self.in_head, self.started, self.served = True, False, False
        self.head_bytes, self.first = 0, b""
        self.head_until: float | None = self.loop.time() + self.seconds
        self.body_until: float | None = None
        self.answer_until = self.close_until = float("inf")
        self.refusal: bytes | None = None  # sent after the answers before it
        self.leaving = False  # nothing more is read, and the connection closes soon
        self.ended = False  # the client sends no more, but may still read
        self.running: Any = None  # the answer under way, or the last one
        super().connection_made(transport)
        self.closing = GentleTransport(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the answer under way, which may belong to an earlier request than the newest."""
        if self.running is not None:
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    # incoming data

    def data_received(self, data: bytes) -> None:
        """Parse data, unless the connection is closing."""
        if self.leaving:
            return
        if self.head_until is None and self.body_until is None:
            self.head_until = self.loop.time() + self.seconds  # also for blank lines, which start no request
        if len(self.first) < 128:
            self.first += data[:128]
        in_head_before = self.in_head and self.started
        super().data_received(data)
        if self.in_head and not self.leaving:
            self.head_bytes += len(data) if in_head_before else 0
            self._check_head_size()

    def on_message_begin(self) -> None:
        """Start a request head."""
        if self.leaving:
            return
        self.in_head, self.started, self.head_bytes = True, True, 0
        if self.head_until is None:
            self.head_until = self.loop.time() + self.seconds
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        if not self.leaving:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        if not self.leaving:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the answer, unless the head is refused."""
        if self.leaving:
            return
        self._check_head_size()
        refusal = None if self.leaving else self._check_head()
        if refusal is not None:
            self.refuse(*refusal)
        if self.leaving:
            return
        self.in_head = False
        self.head_until, self.body_until = None, self.loop.time() + self.seconds
        super().on_headers_complete()
        self.cycle.transport = self.closing
        if self.parser.should_upgrade() or self.close_until != float("inf"):
            self.cycle.keep_alive = False  # data after an upgrade is not parsed

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        if not self.leaving:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self.leaving:
            return
        self.body_until, self.in_head, self.started, self.first = None, True, False, b""
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next answer, or wait for the next head."""
        self.served = True
        self.answer_until = self.loop.time() + self.seconds
        if self.leaving and self.refusal is None:
            self.server_state.total_requests += 1
            self.pipeline.clear()
            return
        super().on_response_complete()
        if self.refusal is not None and not self._is_answering():
            self._send_refusal()

    def eof_received(self) -> Any:
        """Finish the complete requests of a client that sends no more; refuse an incomplete one."""
        self.ended = True
        if self.leaving and self.refusal is None:
            return None  # the client has read the answer, or does not read it
        if not self.leaving and (self.started or self.body_until is not None):
            self.refuse(400, "bad_request", "the connection ended before the request was whole")
        elif self._is_answering() and self.cycle is not None:
            self.cycle.keep_alive = False
        return True if self._is_answering() or self.refusal is not None else None

    # checks of the head

    def _check_head_size(self) -> None:
        """Refuse a head that is too long, in one piece or in several."""
        if not self.started:
            return
        headers = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if max(self.head_bytes, len(self.url) + headers) <= MAX_HEAD_BYTES:
            return
        if len(self.url) + 4096 > MAX_HEAD_BYTES or not self.headers:
            self.refuse(414, "url_too_long", "the URL is too long; send long keys in the body of a POST")
        else:
            self.refuse(431, "head_too_large", f"the request's headers are larger than {MAX_HEAD_BYTES:,} bytes")

    def _check_head(self) -> HeadError | None:
        """Return the error of the head, or None: RFC 9112, sections 3.2 and 6.1, and RFC 9110, section 10.1.1."""
        version, hosts, coding, expected = self.parser.get_http_version(), [], b"", b""
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                coding = (coding + b"," if coding else b"") + value.strip().lower()
            elif name == b"expect":
                expected = value.strip().lower()
        if version not in ("1.0", "1.1"):
            return 400, "http_version", f"HTTP/{version} is not supported; send HTTP/1.1", ()
        if len(hosts) > 1:
            return 400, "bad_host", f"the request has {len(hosts)} Host headers; send one", ()
        if not hosts and version == "1.1":
            return 400, "bad_host", "the request has no Host header, which HTTP/1.1 requires", ()
        if hosts and not HOST.fullmatch(hosts[0].strip()):
            return 400, "bad_host", "the Host header is not a host with an optional port", ()
        if coding and version == "1.0":
            return 400, "bad_request", "HTTP/1.0 has no Transfer-Encoding; send a Content-Length", ()
        if coding and coding != b"chunked":
            return 501, "transfer_coding", "the only transfer coding that is supported is chunked", ()
        if self.parser.get_method() == b"CONNECT":
            return 405, "method_not_allowed", "CONNECT is not allowed; /docs says what there is", ALLOWED
        if self.parser.should_upgrade() and self._has_body():  # the parser would drop the body
            return 400, "upgrade", "no other protocol is supported; leave out the Upgrade header", ()
        if expected and expected != b"100-continue" and version == "1.1":
            return 417, "expectation_failed", "the only expectation that can be met is 100-continue", ()
        return None

    def _has_body(self) -> bool:
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return lengths not in ([], [b"0"]) or any(name == b"transfer-encoding" for name, _ in self.headers)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse a request that cannot be parsed. Uvicorn calls this in its handler of the parser's error."""
        if self.leaving:
            return
        kind = type(sys.exception()).__name__
        if self.first.startswith(b"\x16\x03"):
            self.refuse(400, "bad_request", "this port speaks plain HTTP, and TLS was sent")
        elif self.first.startswith(b"PRI * HTTP/2"):
            self.refuse(400, "http_version", "HTTP/2 is not supported; send HTTP/1.1")
        elif "InvalidMethod" in kind and METHOD.match(self.first.lstrip(b"\r\n")):
            self.refuse(405, "method_not_allowed", "the method is not allowed; /docs says what there is", ALLOWED)
        else:
            self.refuse(400, "bad_request", "the request is not valid HTTP/1.1")

    # errors and closing

    def refuse(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        """Answer with an error after the answers of earlier requests, read no more, and close.

        If the answer of this request has started already, close the connection without another answer.
        """
        if self.leaving:
            return
        self.leaving = True
        self._unset_keepalive_if_required()
        current = self.cycle if not self.in_head else None  # the error is in the body of a request under way
        waiting = current is not None and any(cycle is current for cycle, _ in self.pipeline)
        if current is not None:
            if current.response_started:
                self.close_gently()
                return
            self.pipeline.clear()
            current.disconnected = True
            current.message_event.set()
        else:
            self.observe(status)
        reply = error_reply(status, code, message, headers + SAFE + CLOSE)
        is_head = self.started and self.parser is not None and self.parser.get_method() == b"HEAD"
        fields = [*self.server_state.default_headers, *reply.headers, (b"content-length", b"%d" % len(reply.body))]
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in fields]
        self.refusal = b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if is_head else reply.body)
        self.head_until = self.body_until = None
        if not (waiting or self._is_answering()):
            self._send_refusal()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or not (
            self.cycle is None or self.cycle.response_complete or self.cycle.disconnected
        )

    def _send_refusal(self) -> None:
        refusal, self.refusal = self.refusal, None
        if refusal is not None and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.transport.write(refusal)
            self.close_gently()

    def close_gently(self) -> None:
        """Send all written data and the end of the stream; close when the client closes, or after `LINGER_SECONDS`.

        Closing a socket with unread data resets it, and the client may lose an answer that it has not read yet.
        """
        if self.transport.is_closing():
            return
        self.leaving, self.refusal = True, None
        self.head_until = self.body_until = None
        self.answer_until = self.loop.time() + self.seconds
        self.close_until = self.loop.time() + LINGER_SECONDS
        self.flow.resume_reading()
        if self.ended or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()

    def shutdown(self) -> None:
        """Close after the answer under way, or after a short grace for a request in flight."""
        if self.leaving:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            return
        now = self.loop.time()
        grace = IDLE_GRACE_SECONDS if self.served else NEW_GRACE_SECONDS
        self.close_until = now + (self.seconds if self.started else grace)

    def expire(self, now: float) -> None:
        """Refuse a request, or close the connection, if its deadline has passed."""
        closing = self.transport.is_closing()
        if closing:
            self.answer_until = min(self.answer_until, now + self.seconds)
        if self.transport.get_write_buffer_size():
            if now > self.answer_until:
                self.transport.abort()  # the client does not read, and the buffer would stay forever
        elif closing or (self.leaving and self.refusal is not None):
            pass  # the refusal follows the answers before it, and then the connection closes
        elif now > self.close_until and (self.leaving or not (self.started or self._is_answering())):
            self.transport.close()
        elif self.flow.read_paused:
            self._extend_deadlines(now)  # the service has paused reading
        elif self.body_until is not None and now > self.body_until:
            self.refuse(408, "timeout", f"the body did not arrive within {self.seconds:g} s")
        elif self.head_until is not None and now > self.head_until:
            if self.started:
                self.refuse(408, "timeout", f"the head of the request did not arrive within {self.seconds:g} s")
            else:
                self.transport.close()

    def _extend_deadlines(self, now: float) -> None:
        if self.body_until is not None:
            self.body_until = now + self.seconds
        if self.head_until is not None:
            self.head_until = now + self.seconds


class GentleTransport:
    """The transport that an answer uses: it closes gently and ignores writes after the client has gone."""

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection, self._transport = connection, connection.transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def close(self) -> None:
        self._connection.close_gently()


async def expire_regularly(connections: set[Any], every: float) -> None:
    """Enforce the deadlines of all connections of a server, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every)
        now = loop.time()
        for connection in list(connections):
            connection.expire(now)
