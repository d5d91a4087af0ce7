"""Pages of a running service: the HTML shell, its scripts, its data, and lists by key.

Pages only read. They run in separate threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from nearcast.dashboard.live_document import LiveDocument
from nearcast.dashboard.page import PARTS, build_shell, encode_json, read_part, validate_origin
from nearcast.errors import NearcastError, NotFoundError
from nearcast.service.endpoint import Page, PageRequest
from nearcast.service.generator_service import Service
from nearcast.service.responses import RefusedError, Reply
from nearcast.storage.locations import Location

__all__ = ["Explain", "dashboard_pages"]

THREADS = 2  # a page may wait; look-ups do not wait for it
MOST_WAITING = 32
ROOT = "/dashboard/"
HTML = (b"content-type", b"text/html; charset=utf-8")
JSON = (b"content-type", b"application/json")
PRIVATE = ((b"referrer-policy", b"no-referrer"), (b"cross-origin-opener-policy", b"same-origin"))
BUSY = ((b"retry-after", b"1"),)

Result = TypeVar("Result")


class Explain(Protocol):
    """Explains why an item is, or is not, in a key's list: {"cause", "words", "rank", "score"}."""

    def __call__(self, generator: str, key: str, item: str, version: int) -> Mapping[str, Any]:
        """Explain a pair. Raises NearcastError if it cannot be explained."""
        ...


def dashboard_pages(
    service: Service, out: Location, *, pictures: Sequence[str] = (), explain: Explain | None = None
) -> list[Page]:
    """Return the pages of a service whose snapshots are in `out`. explain: offered on the page if there is one.

    / and its scripts need no token, since they hold no data; the data does. Raises SpecError for an invalid origin of
    pictures.
    """
    origins = tuple(validate_origin(origin) for origin in pictures)
    endpoints = _DashboardEndpoints(service, LiveDocument(service, out, origins, explains=explain is not None), explain)
    shell = build_shell(f"{ROOT}parts/", pictures=origins)
    front = Reply(shell.html, 200, (HTML, (b"content-security-policy", shell.policy.encode()), *PRIVATE))
    pages = [Page("/", _reply_always(front), open=True)]
    for name, kind in PARTS.items():
        reply = Reply(read_part(name), 200, ((b"content-type", kind.encode()),))
        pages.append(Page(f"{ROOT}parts/{name}", _reply_always(reply), open=True))
    of = f"{ROOT}generators/{{name}}/"
    pages += [Page(f"{ROOT}data", endpoints.get_overview), Page(f"{of}page", endpoints.get_generator)]
    pages += [Page(f"{of}keys", endpoints.find_keys), Page(f"{of}list", endpoints.get_list)]
    return [*pages, Page(f"{of}explain", endpoints.explain_pair)] if explain is not None else pages


def _reply_always(reply: Reply) -> Callable[[PageRequest], Any]:
    async def answer(_request: PageRequest) -> Reply:
        return reply

    return answer


@dataclass(slots=True)
class _DashboardEndpoints:
    """The endpoints of the dashboard's data. Belongs to one event loop."""

    service: Service
    document: LiveDocument
    explain: Explain | None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "nearcast-page"))
    waiting: int = 0
    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get_overview(self, request: PageRequest) -> Reply:
        """Return the document with every generator in brief, and the current figures of the service."""
        return await self._reply_fresh(request, self.document.build_overview)

    async def get_generator(self, request: PageRequest) -> Reply:
        """Return the page of one generator."""
        name = self._read_name(request)
        return await self._reply_fresh(request, lambda: self.document.build_generator(name))

    async def _reply_fresh(self, request: PageRequest, build: Callable[[], Any]) -> Reply:
        async with self.refreshing:  # one request refreshes the document, the others wait for it
            await self._run(self.document.refresh)
        body = await self._run(lambda: encode_json(build()))
        if not request.takes_gzip:
            return Reply(body, 200, (JSON,))
        packed = await self._run(lambda: gzip.compress(body, 3))
        return Reply(packed, 200, (JSON, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")))

    async def find_keys(self, request: PageRequest) -> Reply:
        """Return keys that match a text: ?q=."""
        name, text = self._read_name(request), request.parameters.get("q", "")
        return _reply_json(await self._run(lambda: {"keys": self.document.find_keys(name, text)}))

    async def get_list(self, request: PageRequest) -> Reply:
        """Return the list of a key now and before: ?key=, and ?before= for the number of another snapshot."""
        name, key = self._read_name(request), _read_parameter(request, "key")
        before = request.parameters.get("before", "")
        if before and not (before.isascii() and before.isdigit() and len(before) < 10):
            raise RefusedError(422, "invalid", "before must be the number of a snapshot")
        number = int(before) if before else None
        return _reply_json(await self._run(lambda: self.document.compare_lists(name, key, number)))

    async def explain_pair(self, request: PageRequest) -> Reply:
        """Return why an item is, or is not, in a list: ?key= and ?item=."""
        name = self._read_name(request)
        key, item = _read_parameter(request, "key"), _read_parameter(request, "item")
        explain = self.explain
        assert explain is not None
        version = self.document.open_view(name).version.number
        return _reply_json(await self._run(lambda: dict(explain(name, key, item, version))))

    def _read_name(self, request: PageRequest) -> str:
        """Return the generator in the path. Raises RefusedError if it is not served."""
        name = request.parts[2]
        self.service.generator(name)
        return name

    async def _run(self, task: Callable[[], Result]) -> Result:
        """Run a task in the pool. Raises RefusedError for its errors, or if too many requests wait."""
        if self.waiting >= MOST_WAITING:
            raise RefusedError(503, "overloaded", "too many requests for the page; try again", BUSY)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, task)
        except NotFoundError as error:  # names keys, ids and snapshots, and no files of the server
            raise RefusedError(404, "not_found", str(error)) from None
        except NearcastError:  # its text may name files of the server
            raise RefusedError(503, "not_ready", "the data of the page cannot be read; see the log") from None
        finally:
            self.waiting -= 1


def _read_parameter(request: PageRequest, name: str) -> str:
    value = request.parameters.get(name, "")
    if not value:
        raise RefusedError(422, "invalid", f"{name} is missing")
    return value


def _reply_json(data: Mapping[str, Any]) -> Reply:
    return Reply(encode_json(data), 200, (JSON,))
