"""The page of a running service: its shell, its parts, its data, and lists by key. Reads alone, and never on the loop.

What it shows of a generator is what the folder of the snapshots records, with what the service knows now beside it.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nearcast.dashboard.document import Pages, around, generators_of, headline_of
from nearcast.dashboard.list_explorer import columns_shown, compared, difference, keys_like, labels_of, shown
from nearcast.dashboard.overview import brief
from nearcast.dashboard.page import PARTS, check_origin, encoded, part, shell
from nearcast.dashboard.removals import removals_of_view
from nearcast.errors import NearcastError, NotFoundError
from nearcast.monitoring.alert import ALERT_TEXTS, LEVELS
from nearcast.serve.lookup_data import LookupOptions
from nearcast.serve.view import View
from nearcast.service.endpoint import Page, PageRequest
from nearcast.service.generator_service import Service
from nearcast.service.responses import RefusedError, Reply
from nearcast.service.served_tables import list_columns
from nearcast.table.snapshot import Snapshot, list_snapshots

__all__ = ["Explain", "dashboard_pages"]

THREADS = 2  # a page waits rather than a look-up
MOST_WAITING = 32
FRESH_SECONDS = 5.0  # the document is made anew after that
ROOT = "/dashboard/"
HTML = (b"content-type", b"text/html; charset=utf-8")
JSON = (b"content-type", b"application/json")
BUSY = ((b"retry-after", b"1"),)

Result = TypeVar("Result")


class Explain(Protocol):
    """Says why an item is, or is not, in a key's list: {"cause", "words", "rank", "score"}."""

    def __call__(self, generator: str, key: str, item: str, version: int) -> Mapping[str, Any]:
        """Explain a pair. NearcastError where it cannot be."""
        ...


def dashboard_pages(
    service: Service, out: Path, *, pictures: Sequence[str] = (), explain: Explain | None = None
) -> list[Page]:
    """The pages of a service whose snapshots are in `out`. explain: offered on the page where there is one.

    / and what it is made of need no token, since they tell nothing; the data does. SpecError for an origin of
    pictures that is none.
    """
    origins = tuple(check_origin(origin) for origin in pictures)
    live = _Live(service, out, origins, explain)
    begin = shell(f"{ROOT}parts/", pictures=origins)
    front = Reply(begin.html, 200, (HTML, (b"content-security-policy", begin.policy.encode()), *_PRIVATE))
    pages = [Page("/", _always(front), open=True)]
    for name, kind in PARTS.items():
        held = Reply(part(name), 200, ((b"content-type", kind.encode()),))
        pages.append(Page(f"{ROOT}parts/{name}", _always(held), open=True))
    of = f"{ROOT}generators/{{name}}/"
    pages += [Page(f"{ROOT}data", live.data), Page(f"{of}page", live.whole)]
    pages += [Page(f"{of}keys", live.keys), Page(f"{of}list", live.lists)]
    return [*pages, Page(f"{of}explain", live.explained)] if explain is not None else pages


_PRIVATE = ((b"referrer-policy", b"no-referrer"), (b"cross-origin-opener-policy", b"same-origin"))


def _always(reply: Reply) -> Callable[[PageRequest], Any]:
    async def answer(_request: PageRequest) -> Reply:
        return reply

    return answer


@dataclass(slots=True)
class _Live:
    """The data of the page. Belongs to one event loop."""

    service: Service
    out: Path
    pictures: tuple[str, ...]
    explain: Explain | None
    began: float = field(default_factory=time.time)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "nearcast-page"))
    waiting: int = 0
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    made: float = -FRESH_SECONDS  # on the monotonic clock
    pages: Pages = field(init=False)
    document: dict[str, Any] = field(default_factory=dict)
    astray: dict[str, float] = field(default_factory=dict)  # generator: since when its store is not followed

    def __post_init__(self) -> None:
        self.pages = Pages(self.out)

    async def data(self, request: PageRequest) -> Reply:
        """The document with every generator in brief, and what the service knows now."""
        return await self._told(request, self._now)

    async def whole(self, request: PageRequest) -> Reply:
        """All that is known of one generator."""
        name = self._name(request)
        return await self._told(request, lambda: self._page(name))

    async def _told(self, request: PageRequest, tell: Callable[[], Any]) -> Reply:
        async with self.making:  # one makes it, the others wait for that one
            await self._asked(self._refresh)
        body = await self._asked(lambda: encoded(tell()))
        if not request.takes_gzip:
            return Reply(body, 200, (JSON,))
        packed = await self._asked(lambda: gzip.compress(body, 3))
        return Reply(packed, 200, (JSON, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")))

    async def keys(self, request: PageRequest) -> Reply:
        """Keys for what was typed: ?q=."""
        name, typed = self._name(request), request.parameters.get("q", "")
        return _json(await self._asked(lambda: {"keys": self._keys(name, typed)}))

    async def lists(self, request: PageRequest) -> Reply:
        """The list of a key now and before: ?key=, and ?before= for the number of another snapshot."""
        name, key, before = self._name(request), _needed(request, "key"), request.parameters.get("before", "")
        if before and not (before.isascii() and before.isdigit() and len(before) < 10):
            raise RefusedError(422, "invalid", "before: the number of a snapshot")
        return _json(await self._asked(lambda: self._list(name, key, int(before) if before else None)))

    async def explained(self, request: PageRequest) -> Reply:
        """Why an item is, or is not, in a list: ?key= and ?item=."""
        name, key, item = self._name(request), _needed(request, "key"), _needed(request, "item")
        explain = self.explain
        assert explain is not None
        version = self._view(name).version.number
        return _json(await self._asked(lambda: dict(explain(name, key, item, version))))

    def _name(self, request: PageRequest) -> str:
        name = request.parts[2]
        self.service.generator(name)  # refused where it is not served
        return name

    async def _asked(self, ask: Callable[[], Result]) -> Result:
        if self.waiting >= MOST_WAITING:
            raise RefusedError(503, "overloaded", "too many are looking at the page; try again", BUSY)
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, ask)
        except NotFoundError as error:  # of keys, ids and snapshots: nothing of the server
            raise RefusedError(404, "not_found", str(error)) from None
        except NearcastError:  # its text may name files of the server
            raise RefusedError(503, "not_ready", "what the page needs cannot be read; the log says more") from None
        finally:
            self.waiting -= 1

    def _refresh(self) -> None:
        """Make the document anew, but not more often than every few seconds."""
        if time.monotonic() - self.made < FRESH_SECONDS:
            return
        numbers = generators_of(self.out, tuple(self.service.served), served=True)
        self.document = around(self.pages.of(numbers))
        self.made = time.monotonic()

    def _now(self) -> dict[str, Any]:
        states = self.service.states()
        pages = [self._with_state(page, states.get(page["name"])) for page in self.document["generators"]]
        pages.sort(key=lambda page: page["state"]["level"] not in ("bad", "warn"))  # stable: the worst stay first
        return self.document | {
            "headline": headline_of([page["state"] for page in pages], now=time.time()),
            "generators": [brief(page) for page in pages],
            "live": True,
            "now": time.time(),
            "explains": self.explain is not None,
            "pictures": list(self.pictures),
        }

    def _page(self, name: str) -> dict[str, Any]:
        page = next(page for page in self.document["generators"] if page["name"] == name)
        versions = [snapshot.version for snapshot in _snapshots(self.out, name)][::-1]
        return self._with_state(page, self.service.states().get(name)) | {"versions": versions}

    def _with_state(self, page: dict[str, Any], state: Any) -> dict[str, Any]:
        """A generator with what answers for it, and how often it was asked."""
        name, now = page["name"], time.time()
        counted = self.service.metrics.read_counter
        asked = {what: counted(f"nearcast_{what}_total", name) for what in ("keys", "misses")} | {"since": self.began}
        page = page | {"asked": asked}
        if state is None:
            return page
        since = (page["live"] or {}).get("since", now - state.age_seconds)
        known = page["live"] or {}
        page["live"] = {"version": state.version, "since": since, "made": now - state.age_seconds}
        if known.get("version") != state.version:  # published from elsewhere, or not followed yet
            seen = f"This service answers from snapshot {state.version:06d}."
            page["state"] = page["state"] | {"seen": seen, "became": ""}
            if page["state"]["level"] == "idle":  # runs, and their history, are elsewhere
                unknown = {"level": "unknown", "word": LEVELS["unknown"], "watched": "The monitor has not run yet."}
                page["state"] = page["state"] | unknown
        if not state.error:
            self.astray.pop(name, None)
            return page
        return _not_following(page, self.astray.setdefault(name, now))

    def _view(self, name: str) -> View:
        return self.service.generator(name).lookup.view()

    def _snapshot(self, name: str) -> Snapshot | None:
        """The snapshot that answers, where its folder is here; else None."""
        served = self._view(name).version.number
        return next((s for s in _snapshots(self.out, name) if s.version == served), None)

    def _keys(self, name: str, typed: str) -> list[dict[str, Any]]:
        snapshot = self._snapshot(name)
        return [] if snapshot is None else keys_like(snapshot, typed)

    def _list(self, name: str, key: str, before: int | None) -> dict[str, Any]:
        view, snapshot = self._view(name), self._snapshot(name)
        older = [s for s in _snapshots(self.out, name) if s.version < view.version.number]
        if before is not None:
            older = [s for s in _snapshots(self.out, name) if s.version == before]
        beside = older[-1] if older else None
        if snapshot is None:
            return _from_store(view, key, beside)
        columns = columns_shown(snapshot)
        told = compared(snapshot, beside, key, columns, removals_of_view(view))
        label = labels_of(snapshot, [told["key"]]).get(told["key"], "") if told["now"] else ""
        return told | {"columns": list(columns), "label": label}


def _snapshots(out: Path, name: str) -> list[Snapshot]:
    return list_snapshots(out, name)


def _not_following(page: dict[str, Any], since: float) -> dict[str, Any]:
    """A generator whose service cannot follow its store: it is unreachable, or what is newer cannot be opened."""
    words = ALERT_TEXTS["not_following"]
    told = {
        "check": "not_following",
        "title": words.title,
        "text": "the store is not reached, or what is newer cannot be opened; the log says why",
        "effect": words.effect,
    }
    trouble = told | {
        "level": words.level,
        "since": since,
        "version": None,
        "follows": (),
        "evidence": None,
        "of": "runs",
    }
    state = page["state"]
    level = "bad" if state["level"] == "bad" else words.level
    return page | {"state": state | {"level": level, "word": LEVELS[level], "troubles": [*state["troubles"], trouble]}}


def _from_store(view: View, key: str, beside: Snapshot | None) -> dict[str, Any]:
    """The list as the store has it, where the folder of its snapshot is elsewhere: what was taken out is not in it."""
    columns = list_columns(view)
    answer = view.get(key, LookupOptions(fields=columns))
    rows = [
        {"id": item, "score": score, "columns": {n: shown(answer.columns[n][place]) for n in columns}}
        for place, (item, score) in enumerate(zip(answer.ids, answer.scores, strict=True))
    ]
    now = {"snapshot": view.snapshot, "key": answer.key, "reason": answer.reason, "candidates": rows}
    told = now if answer.found else None
    before = compared(beside, None, key, columns_shown(beside))["now"] if beside is not None else None
    found = {"key": answer.key, "label": "", "columns": columns, "now": told, "before": before}
    return found | difference(before, told)


def _needed(request: PageRequest, name: str) -> str:
    value = request.parameters.get(name, "")
    if not value:
        raise RefusedError(422, "invalid", f"{name} is needed")
    return value


def _json(data: Mapping[str, Any]) -> Reply:
    return Reply(encoded(data), 200, (JSON,))
