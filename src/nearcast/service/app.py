"""The service as an ASGI application: routes behind a guard that checks tokens, limits the URL and counts requests.

Starlette serves the routes and FastAPI only describes them: its own handling of an endpoint takes longer than a
look-up. Knows nothing of look-ups.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import Any

from nearcast.errors import SpecError
from nearcast.service.endpoint import EndpointApp, Limits, Page, PageApp, RouteApp, Scope
from nearcast.service.endpoints import ROUTES
from nearcast.service.generator_service import Service
from nearcast.service.openapi import describe_api, render_docs
from nearcast.service.responses import (
    CLOSE,
    SAFE,
    Asgi,
    Headers,
    Receive,
    RefusedError,
    Reply,
    Send,
    error_reply,
    json_reply,
    need_extra,
)
from nearcast.service.tracing import TracedApp

__all__ = ["Guard", "Limits", "make_app", "parse_tokens"]

MAX_URL_BYTES = 16_384  # of path and query; keys of a table are far shorter
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})  # they reveal nothing that is served
NEED_TOKEN: Headers = ((b"www-authenticate", b'Bearer realm="nearcast"'),)
HTML: Headers = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
ERROR_CODES = {404: "not_found", 405: "method_not_allowed"}

Observer = Callable[[str, int, float], None]  # route, status, seconds
log = logging.getLogger(__name__)


def make_app(
    service: Service,
    *,
    limits: Limits = Limits(),  # noqa: B008
    tokens: Iterable[bytes] = (),
    pages: Sequence[Page] = (),
) -> Asgi:
    """Return the service as an application for any ASGI server.

    tokens: bearer tokens. If there are any, every path but /healthz, /readyz, /openapi.json and /docs needs one.
    pages: further GET routes, for example the page at /.
    Raises MissingExtraError if `nearcast[serve]` is not installed.
    """
    need_extra()
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    tokens = tuple(tokens)
    _register_path_type()
    schema = describe_api(ROUTES, limits, secured=bool(tokens))
    apps: list[tuple[str, str, RouteApp]] = [
        (route.method, route.path, EndpointApp(_route_name(route.path), partial(route.endpoint, service), limits))
        for route in ROUTES
    ]
    apps.append(("GET", "/openapi.json", FixedApp("/openapi.json", json_reply(schema))))
    apps.append(("GET", "/docs", FixedApp("/docs", Reply(render_docs(schema), 200, HTML))))
    apps += [("GET", page.path, PageApp(page)) for page in pages]
    routes = [Route(path, app, methods=[method]) for method, path, app in apps]
    router = Starlette(routes=routes, exception_handlers={HTTPException: _refuse_route})
    router.router.redirect_slashes = False
    guard = Guard(
        router,
        tokens=tokens,
        observe=service.metrics.count_request,
        is_draining=lambda: service.draining,
        open_paths=frozenset(page.path for page in pages if page.open),
    )
    return guard if service.tracing is None else TracedApp(guard, service.tracing)


class FixedApp(RouteApp):
    """A route whose response never changes."""

    def __init__(self, path: str, reply: Reply) -> None:
        super().__init__(path)
        self._reply = reply

    async def respond(self, _scope: Scope, _receive: Receive) -> Reply:
        """Return the response."""
        return self._reply


def _route_name(path: str) -> str:
    """Return the path without its path types: {key} for {key:anything}."""
    return re.sub(r":\w+}", "}", path)


def _register_path_type() -> None:
    """Register the path type `anything` with Starlette: the rest of a path, line breaks included."""
    from starlette.convertors import Convertor, register_url_convertor

    class AnythingConvertor(Convertor[str]):
        """The rest of a path."""

        regex = r"[\s\S]*"

        def convert(self, value: str) -> str:
            return value

        def to_string(self, value: str) -> str:
            return value

    register_url_convertor("anything", AnythingConvertor())


async def _refuse_route(_request: Any, error: Exception) -> Any:
    """Return the error response for an unknown path or method."""
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    assert isinstance(error, HTTPException)
    code = ERROR_CODES.get(error.status_code, "refused")
    reply = error_reply(error.status_code, code, f"{error.detail.lower()}; /docs says what there is")
    headers = {**dict(error.headers or {}), "content-type": "application/json"}
    return Response(reply.body, error.status_code, headers)


def parse_tokens(text: str, where: str) -> tuple[bytes, ...]:
    """Return the tokens of a file, one per line, so that an old token may stay valid while it is replaced.

    Raises SpecError if there is none, or if one cannot be sent in an HTTP header.
    """
    tokens = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not tokens:
        raise SpecError(f"{where} holds no token; write one line of letters and digits")
    for token in tokens:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise SpecError(f"{where} holds a token with blanks or with characters that no HTTP header can carry")
    return tuple(token.encode() for token in tokens)


class Guard:
    """ASGI middleware: checks the token and the length of the URL, adds headers, and observes each request."""

    def __init__(
        self,
        app: Asgi,
        *,
        tokens: Iterable[bytes],
        observe: Observer,
        is_draining: Callable[[], bool],
        open_paths: frozenset[str] = frozenset(),  # further paths that need no token
    ) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._open_paths = OPEN_PATHS | open_paths
        self._observe = observe
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":  # the server is configured to send nothing else
            raise NotImplementedError(scope["type"])
        begin = time.perf_counter()
        status = 0

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SAFE, *(CLOSE if self._is_draining() else ())]
            await send(message)

        refused = self._check(scope)
        try:
            if refused is None:
                await self._app(scope, receive, send_with_headers)
            else:
                await refused.send(send_with_headers)
        except asyncio.CancelledError:  # the service has stopped waiting for this request
            if not status:
                stopped = error_reply(503, "stopping", "the service has stopped; send it again", CLOSE)
                await stopped.send(send_with_headers)
        except Exception:
            log.exception("a request could not be answered")
            if not status:
                message = "the service has made a mistake; its log says more"
                await error_reply(500, "internal", message, CLOSE).send(send_with_headers)
        route = getattr(scope.get("endpoint"), "path", "other")
        self._observe(route, status, time.perf_counter() - begin)

    def _check(self, scope: Scope) -> Reply | None:
        """Return the error response for a request that must not reach the application, else None."""
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL_BYTES:
            message = f"the URL is longer than {MAX_URL_BYTES:,} bytes; send long keys in the body of a POST"
            return RefusedError(414, "url_too_long", message, CLOSE).reply()
        if self._tokens and scope["path"] not in self._open_paths and not self._has_token(scope["headers"]):
            message = "a token is needed: send the header `Authorization: Bearer TOKEN`"
            return RefusedError(401, "unauthorized", message, NEED_TOKEN).reply()
        return None

    def _has_token(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        header = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = header.partition(b" ")
        # every token is compared, so that the time tells nothing
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        return scheme.lower() == b"bearer" and any(matches)
