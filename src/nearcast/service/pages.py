"""Pages beside the service's own endpoints: made elsewhere, handed in, and answered under the same guard.

Knows nothing of what a page shows.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nearcast.service.limits import query_of, text_of
from nearcast.service.responses import Receive, RefusedError, Reply, Send, error_reply

__all__ = ["Page", "PageRequest", "Paged"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a page is asked for: the parts of its path as they were sent, decoded, and its parameters."""

    parts: tuple[str, ...]
    parameters: Mapping[str, str]
    takes_gzip: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A path that answers GET. `open`: without a token, so it must tell nothing of what is served."""

    path: str  # as Starlette writes it
    answer: Callable[[PageRequest], Awaitable[Reply]]
    open: bool = False


class Paged:
    """A page as an application: its request read, its reply sent, its refusals told."""

    def __init__(self, page: Page) -> None:
        self.path = page.path  # as the route is called in metrics
        self._page = page

    async def __call__(self, scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        """One request."""
        try:
            reply = await self._page.answer(_request(scope))
        except RefusedError as refusal:
            reply = refusal.reply()
        except Exception:
            log.exception("a page could not be made")
            reply = error_reply(500, "internal", "the service has made a mistake; its log says more")
        await reply.send(send)


def _request(scope: MutableMapping[str, Any]) -> PageRequest:
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    path = raw[len(scope.get("root_path", "")) :]
    accepts = next((value for name, value in scope["headers"] if name == b"accept-encoding"), b"")
    parts = tuple(text_of(part) for part in path.strip(b"/").split(b"/"))
    return PageRequest(parts, dict(query_of(scope["query_string"])), b"gzip" in accepts)
