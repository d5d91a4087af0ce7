"""ASGI applications of single routes: read the request, validate it, call a function, send its response.

The arguments of an endpoint are read from its signature: `name` and `key` come from the path, `parameters` from the
query, `body` is JSON, `limits` are the service's, `media` is the media type that the client accepts. A `Page` is a GET
route made elsewhere. Knows nothing of look-ups.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from nearcast.service.media_types import ANSWER_TYPES, JSON_TYPE, choose_media_type
from nearcast.service.request_schemas import LookupParameters, parse_body, parse_parameters
from nearcast.service.responses import CLOSE, Receive, RefusedError, Reply, Send, error_reply

__all__ = ["Endpoint", "EndpointApp", "Limits", "Page", "PageApp", "PageRequest"]

Scope = MutableMapping[str, Any]
Endpoint = Callable[..., Awaitable[Reply]]

PATH_ARGUMENTS = (("name", 3), ("key", 5))  # parts of a path between slashes
NO_PARAMETERS = LookupParameters()
MAX_PARAMETERS = 100
INVALID_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request."""

    keys: int = 1000  # keys, or vectors
    body_bytes: int = 1_000_000


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for a page: the decoded parts of its path, and its query parameters."""

    parts: tuple[str, ...]
    parameters: Mapping[str, str]
    takes_gzip: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A GET route beside the service's endpoints. `open`: needs no token, so it must not reveal anything served."""

    path: str  # in Starlette's syntax
    answer: Callable[[PageRequest], Awaitable[Reply]]
    open: bool = False


class RouteApp:
    """A route as an ASGI application: `respond` makes the response, refusals and errors become JSON."""

    def __init__(self, path: str) -> None:
        self.path = path  # the name of the route in metrics

    async def respond(self, scope: Scope, receive: Receive) -> Reply:
        """Return the response of a request. Raises RefusedError."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            reply = await self.respond(scope, receive)
        except RefusedError as refusal:
            reply = refusal.reply()
        except Exception:
            log.exception("a request could not be answered")
            reply = error_reply(500, "internal", "the service has made a mistake; its log says more")
        await reply.send(send)


class EndpointApp(RouteApp):
    """An endpoint as an ASGI application. Its arguments are validated before it is called."""

    def __init__(self, path: str, endpoint: Endpoint, limits: Limits) -> None:
        super().__init__(path)
        signature = inspect.signature(endpoint, eval_str=True).parameters
        self._endpoint = endpoint
        self._max_bytes = limits.body_bytes
        self._constants = {"limits": limits} if "limits" in signature else {}
        self._path_arguments = tuple((name, index) for name, index in PATH_ARGUMENTS if name in signature)
        self._has_parameters = "parameters" in signature
        self._has_media = "media" in signature
        self._body = signature["body"].annotation if "body" in signature else None

    async def respond(self, scope: Scope, receive: Receive) -> Reply:
        """Return the response of the endpoint."""
        arguments: dict[str, Any] = dict(self._constants)
        if self._has_media:
            arguments["media"] = _read_media(scope)
        if self._path_arguments:
            arguments |= _read_path(scope, self._path_arguments)
        if self._has_parameters:
            query = scope["query_string"]
            arguments["parameters"] = (
                parse_parameters(LookupParameters, _group_parameters(decode_query(query))) if query else NO_PARAMETERS
            )
        if self._body is not None:
            arguments["body"] = parse_body(self._body, await read_body(scope, receive, self._max_bytes))
        return await self._endpoint(**arguments)


class PageApp(RouteApp):
    """A page as an ASGI application."""

    def __init__(self, page: Page) -> None:
        super().__init__(page.path)
        self._page = page

    async def respond(self, scope: Scope, _receive: Receive) -> Reply:
        """Return the response of the page."""
        parts = tuple(decode_path(part) for part in _raw_path(scope).strip(b"/").split(b"/"))
        accepts = next((value for name, value in scope["headers"] if name == b"accept-encoding"), b"")
        return await self._page.answer(
            PageRequest(parts, dict(decode_query(scope["query_string"])), b"gzip" in accepts)
        )


def _raw_path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw[len(scope.get("root_path", "")) :]


def _read_path(scope: Scope, arguments: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Return the arguments in the path. It is split before decoding, so that a key may hold an escaped slash."""
    parts = _raw_path(scope).split(b"/", 5)
    if any(index >= len(parts) for _, index in arguments):  # a slash of the route itself was escaped
        raise RefusedError(404, "not_found", "not found; /docs says what there is")
    return {name: decode_path(parts[index]) for name, index in arguments}


def _read_media(scope: Scope) -> str:
    """Return the media type of the answer. Raises RefusedError if the client accepts none that there is."""
    accepts = [value for name, value in scope["headers"] if name == b"accept"]
    if not accepts or accepts == [b"*/*"]:
        return JSON_TYPE
    media = choose_media_type(b",".join(accepts).decode("latin-1"))
    if media is None:
        message = f"Accept allows none of {', '.join(ANSWER_TYPES)}; name one of them, or leave the header out"
        raise RefusedError(406, "not_acceptable", message)
    return media


def _group_parameters(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return query parameters by name. Raises RefusedError for a repeated name, except fallback_key."""
    parameters: dict[str, Any] = {}
    for name, value in pairs:
        if name == "fallback_key":
            parameters.setdefault(name, []).append(value)
        elif name in parameters:
            raise RefusedError(422, "invalid", f"{name[:50]} is given more than once")
        else:
            parameters[name] = value
    return parameters


def decode_path(raw: bytes) -> str:
    """Return a part of a path as text. Raises RefusedError if it is not percent-encoded UTF-8."""
    escaped = b"%" in raw
    if escaped and INVALID_ESCAPE.search(raw):
        raise RefusedError(400, "bad_encoding", "the path holds a % that two hexadecimal digits do not follow")
    try:
        return (unquote_to_bytes(raw) if escaped else raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(400, "bad_encoding", "the path is not UTF-8 once its %-escapes are read") from None


def decode_query(raw: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query string in order. Raises RefusedError if it is not percent-encoded UTF-8."""
    if not raw:
        return []
    if INVALID_ESCAPE.search(raw):
        raise RefusedError(400, "bad_encoding", "the query holds a % that two hexadecimal digits do not follow")
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeError:
        raise RefusedError(400, "bad_encoding", "the query is not UTF-8 once its %-escapes are read") from None
    except ValueError:
        raise RefusedError(422, "invalid", f"the query has more than {MAX_PARAMETERS} parameters") from None


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the JSON body of a request. Raises RefusedError if it is not JSON, or larger than `max_bytes`."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise RefusedError(415, "not_json", "send the body as JSON, with `Content-Type: application/json`", CLOSE)
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
        raise RefusedError(415, "encoded", "send the body as it is, without a Content-Encoding", CLOSE)
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "disconnected", "the connection was closed before the body was whole")
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(413, "body_too_large", f"the body is larger than {max_bytes:,} bytes; send fewer keys", CLOSE)
