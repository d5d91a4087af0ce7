"""An endpoint as an ASGI application: reads the request, checks it, calls the endpoint, sends the reply.

What an endpoint takes is read from its signature: `name` and `key` are of the path, `parameters` of the query, and
`body` is JSON. Knows nothing of what endpoints do.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

from nearcast.service.limits import Limits, query_of, read_body, text_of
from nearcast.service.responses import Receive, RefusedError, Reply, Send, error_reply
from nearcast.service.schemas import KeyParameters, check, check_json

__all__ = ["Endpoint", "Prepared", "names_in"]

Scope = MutableMapping[str, Any]
Endpoint = Callable[..., Awaitable[Reply]]

PLACES = (("name", 3), ("key", 5))  # parts of a path between slashes
PLAIN = KeyParameters()  # of a request without parameters
log = logging.getLogger(__name__)


class Prepared:
    """An endpoint as an application: its arguments checked, its reply sent, its refusals told."""

    def __init__(self, path: str, endpoint: Endpoint, limits: Limits) -> None:
        wanted = inspect.signature(endpoint).parameters
        self.path = path  # as the route is called in metrics
        self._endpoint = endpoint
        self._most_bytes = limits.body_bytes
        self._places = tuple((name, place) for name, place in PLACES if name in wanted)
        self._parameters = "parameters" in wanted
        self._body = wanted["body"].annotation if "body" in wanted else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            reply = await self._endpoint(**await self._arguments(scope, receive))
        except RefusedError as refusal:
            reply = refusal.reply()
        except Exception:
            log.exception("a request could not be answered")
            reply = error_reply(500, "internal", "the service has made a mistake; its log says more")
        await reply.send(send)

    async def _arguments(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        arguments = _from_path(scope, self._places) if self._places else {}
        if self._parameters:
            query = scope["query_string"]
            arguments["parameters"] = check(KeyParameters, _once(query_of(query))) if query else PLAIN
        if self._body is not None:
            arguments["body"] = check_json(self._body, await read_body(scope, receive, self._most_bytes))
        return arguments


def _from_path(scope: Scope, places: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Parts of the path as they were sent: once decoded, a slash of a key looks like one of the path."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    parts = raw[len(scope.get("root_path", "")) :].split(b"/", 5)
    if any(place >= len(parts) for _, place in places):  # one of the path's own slashes was escaped
        raise RefusedError(404, "not_found", "not found; /docs says what there is")
    return {name: text_of(parts[place]) for name, place in places}


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parameters by name; refused where one is given twice that means one thing."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name == "fallback_key":
            found.setdefault(name, []).append(value)
        elif name in found:
            raise RefusedError(422, "invalid", f"{name[:50]} is given more than once")
        else:
            found[name] = value
    return found


def names_in(fields: str | None) -> tuple[str, ...]:
    """The names of a comma-separated list, each once."""
    return tuple(dict.fromkeys(name for name in fields.split(",") if name)) if fields else ()
