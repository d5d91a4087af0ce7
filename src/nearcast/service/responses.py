"""Replies of the HTTP service: status, body and headers; refusals as JSON. Knows nothing of look-ups or frameworks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nearcast.errors import MissingExtraError
from nearcast.files import finite_json

__all__ = ["Asgi", "Headers", "RefusedError", "Reply", "encode", "error_reply", "json_reply", "need_extra"]

Headers = tuple[tuple[bytes, bytes], ...]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

JSON: Headers = ((b"content-type", b"application/json"),)
LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


def need_extra() -> None:
    """MissingExtraError where a library of the service is not installed: before anything slow is begun."""
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(f"the HTTP service needs {name}: pip install 'nearcast[serve]'") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: all of it is there before the first byte is sent."""

    body: bytes
    status: int = 200
    headers: Headers = JSON

    async def send(self, send: Send) -> None:
        """Send it, with its length."""
        headers = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class RefusedError(Exception):
    """A request that is not answered as it was meant: its text is for the client, and never names a file."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def reply(self) -> Reply:
        """As JSON."""
        return error_reply(self.status, self.code, self.message, self.headers)


def error_reply(status: int, code: str, message: str, headers: Headers = ()) -> Reply:
    """An error in the one shape that all of them have."""
    return json_reply({"error": {"code": code, "message": message}}, status, headers)


def json_reply(data: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """Plain data as JSON."""
    return Reply(encode(data), status, JSON + headers)


def encode(data: Any) -> bytes:
    """Plain data as JSON: null for NaN and infinity, which JSON does not have."""
    import orjson

    try:
        return orjson.dumps(data)
    except TypeError:  # an overlay's value holds an integer beyond 64 bits, which only the slow encoder writes
        return json.dumps(finite_json(data)).encode()
