"""HTTP responses: status, body and headers; errors as JSON. Knows nothing of look-ups or web frameworks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nearcast.errors import MissingExtraError
from nearcast.files import finite_json

__all__ = [
    "CLOSE",
    "SAFE",
    "Asgi",
    "Headers",
    "Message",
    "RefusedError",
    "Reply",
    "encode",
    "error_reply",
    "json_reply",
    "need_extra",
]

Headers = tuple[tuple[bytes, bytes], ...]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SAFE: Headers = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
CLOSE: Headers = ((b"connection", b"close"),)
JSON: Headers = ((b"content-type", b"application/json"),)
LIBRARIES = ("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn")


def need_extra() -> None:
    """Raise MissingExtraError if a library of the service is not installed. Call it before anything slow."""
    for name in LIBRARIES:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(f"the HTTP service needs {name}: pip install 'nearcast[serve]'") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response: nothing is sent before the whole body exists."""

    body: bytes
    status: int = 200
    headers: Headers = JSON

    async def send(self, send: Send) -> None:
        """Send the response, with its length."""
        headers = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class RefusedError(Exception):
    """An HTTP error response. The text is for the client and must not name files of the server."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def reply(self) -> Reply:
        """Return the error as a response."""
        return error_reply(self.status, self.code, self.message, self.headers)


def error_reply(status: int, code: str, message: str, headers: Headers = ()) -> Reply:
    """Return an error response as JSON. All errors have this form."""
    return json_reply({"error": {"code": code, "message": message}}, status, headers)


def json_reply(data: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """Return a response with plain data as JSON."""
    return Reply(encode(data), status, JSON + headers)


def encode(data: Any) -> bytes:
    """Return plain data as JSON. NaN and infinity become null."""
    import orjson

    try:
        return orjson.dumps(data)
    except TypeError:  # an overlay value holds an integer beyond 64 bits, which orjson cannot write
        return json.dumps(finite_json(data)).encode()
