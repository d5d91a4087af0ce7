"""What the service takes from outside: bearer tokens, the sizes of bodies, and keys as URLs write them.

Plain ASGI, so that it costs microseconds. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from nearcast.errors import SpecError
from nearcast.service.responses import Asgi, Headers, Receive, RefusedError, Reply, Send, error_reply

__all__ = ["CLOSE", "SAFE", "Guard", "Limits", "query_of", "read_body", "text_of", "tokens_of"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Observer = Callable[[str, int, float], None]

LONGEST_URL = 16_384  # bytes of path and query; a key of a table is far shorter
MOST_PARAMETERS = 100
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})  # they tell nothing of what is served
SAFE: Headers = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
CLOSE: Headers = ((b"connection", b"close"),)
NEED_TOKEN: Headers = ((b"www-authenticate", b'Bearer realm="nearcast"'),)
WRONG_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may bring at most."""

    keys: int = 1000  # keys, or vectors
    body_bytes: int = 1_000_000


def tokens_of(text: str, where: str) -> tuple[bytes, ...]:
    """The tokens of a file: one a line, so that an old one may stay valid while it is replaced."""
    tokens = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not tokens:
        raise SpecError(f"{where} holds no token; write one line of letters and digits")
    for token in tokens:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise SpecError(f"{where} holds a token with blanks or with characters that no HTTP header can carry")
    return tuple(token.encode() for token in tokens)


class Guard:
    """ASGI around the service: no request gets in without a token where one is set, and each one is observed."""

    def __init__(
        self,
        app: Asgi,
        *,
        tokens: Iterable[bytes],
        observe: Observer,
        draining: Callable[[], bool],
        open_paths: frozenset[str] = frozenset(),  # beside those that are always open
    ) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._open = OPEN_PATHS | open_paths
        self._observe = observe
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # the server is set to send nothing else
            raise NotImplementedError(scope["type"])
        begin = time.perf_counter()
        status = 0

        async def answering(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SAFE, *(CLOSE if self._draining() else ())]
            await send(message)

        refused = self._refused(scope)
        try:
            if refused is None:
                await self._app(scope, receive, answering)
            else:
                await refused.send(answering)
        except asyncio.CancelledError:  # it has taken longer than the end of the service waits
            if not status:
                await (
                    RefusedError(503, "stopping", "the service has stopped; send it again", CLOSE)
                    .reply()
                    .send(answering)
                )
        except Exception:
            log.exception("a request could not be answered")
            if not status:
                message = "the service has made a mistake; its log says more"
                await error_reply(500, "internal", message, CLOSE).send(answering)
        route = getattr(scope.get("endpoint"), "path", "other")
        self._observe(route, status, time.perf_counter() - begin)

    def _refused(self, scope: Scope) -> Reply | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_URL:
            message = f"the URL is longer than {LONGEST_URL:,} bytes; send long keys in the body of a POST"
            return RefusedError(414, "url_too_long", message, CLOSE).reply()
        if self._tokens and scope["path"] not in self._open and not self._has_token(scope["headers"]):
            message = "a token is needed: send the header `Authorization: Bearer TOKEN`"
            return RefusedError(401, "unauthorized", message, NEED_TOKEN).reply()
        return None

    def _has_token(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        same = [hmac.compare_digest(token.strip(), known) for known in self._tokens]  # all of them: no early end
        return scheme.lower() == b"bearer" and any(same)


async def read_body(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """The JSON body of a request; refused where it says, or turns out, to be longer than it may be."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise RefusedError(415, "not_json", "send the body as JSON, with `Content-Type: application/json`", CLOSE)
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
        raise RefusedError(415, "encoded", "send the body as it is, without a Content-Encoding", CLOSE)
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > most_bytes:
        raise _too_large(most_bytes)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "disconnected", "the connection was closed before the body was whole")
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(most_bytes: int) -> RefusedError:
    return RefusedError(413, "body_too_large", f"the body is larger than {most_bytes:,} bytes; send fewer keys", CLOSE)


def text_of(raw: bytes) -> str:
    """A part of a path as text. Refused where it is not percent-encoded UTF-8."""
    escaped = b"%" in raw
    if escaped and WRONG_ESCAPE.search(raw):
        raise RefusedError(400, "bad_encoding", "the path holds a % that two hexadecimal digits do not follow")
    try:
        return (unquote_to_bytes(raw) if escaped else raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, "bad_encoding", "the path is not UTF-8 once its %-escapes are read") from None


def query_of(raw: bytes) -> list[tuple[str, str]]:
    """The parameters of a query string, in order. Refused where it is not percent-encoded UTF-8."""
    if not raw:
        return []
    if WRONG_ESCAPE.search(raw):
        raise RefusedError(400, "bad_encoding", "the query holds a % that two hexadecimal digits do not follow")
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS)
    except UnicodeError:
        raise RefusedError(400, "bad_encoding", "the query is not UTF-8 once its %-escapes are read") from None
    except ValueError:
        raise RefusedError(422, "invalid", f"the query has more than {MOST_PARAMETERS} parameters") from None
