"""The dashboard document: plain data about all generators of a folder, the worst first; and the page as one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.dashboard.generator import build_generator_page, read_tuning_time
from nearcast.dashboard.list_explorer import RemovedItems
from nearcast.dashboard.page import build_static_page, validate_origin
from nearcast.dashboard.removals import make_removals_reader
from nearcast.dashboard.sample_queries import sample_queries
from nearcast.errors import NotFoundError, SpecError
from nearcast.files import write_text
from nearcast.history.event_log import newest, read
from nearcast.history.record import record_runs
from nearcast.measure.measures import MEASURES
from nearcast.storage.locations import Location
from nearcast.table.snapshot import list_generators, open_home
from nearcast.version import __version__

__all__ = [
    "FILE",
    "FORMAT",
    "PageCache",
    "build_document",
    "build_headline",
    "list_history_generators",
    "wrap_pages",
    "write_page",
]

FILE = "dashboard.html"
FORMAT = 1
DAY_SECONDS = 86_400.0
STALE_SECONDS = 2 * DAY_SECONDS  # after this time without a monitor pass the headline names its age
QUERIES = 6  # of every kind, for a generator
MOST_QUERIES = 400  # of every kind, for all generators: lists are the largest part of the file
FindRemoved = Callable[[str], RemovedItems]


def list_history_generators(out: Location, only: Sequence[str] = (), *, served: bool = False) -> dict[str, int]:
    """Return the generators that have run here or have a history, each with the number of its newest event.

    Tables of a generator, published under GENERATOR.TABLE, are not listed. served: the generators in `only` are served
    from a store, so they are listed even if nothing of them is here. Raises NotFoundError if a generator in `only` is
    not found, or if there is none.
    """
    here = list_generators(out)
    for name in here:
        record_runs(out, name)  # of a killed run, or an older nearcast; a history that cannot be written can be read
    numbers = dict.fromkeys([*here, *(only if served else ())], 0) | newest(out)
    missing = [name for name in only if name not in numbers]
    if missing or not numbers:
        known = ", ".join(sorted(numbers)) or "none"
        raise NotFoundError(f"no history of {', '.join(missing) or 'any generator'} in {out}; there are {known}")
    tables = {name for name in numbers if name not in here and name.rpartition(".")[0] in numbers} - set(only)
    return {name: number for name, number in numbers.items() if name not in tables and (not only or name in only)}


class PageCache:
    """The pages of generators. A page is rebuilt only if its history has grown: a year of runs is slow to read."""

    def __init__(self, out: Location) -> None:
        self._out = out
        self._pages: dict[str, tuple[Any, dict[str, Any]]] = {}

    def build(self, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return the pages of these generators, the worst first. numbers: from `list_history_generators`."""
        for name, number in numbers.items():
            stamp = (number, read_tuning_time(self._out, name))
            if name not in self._pages or self._pages[name][0] != stamp:
                self._pages[name] = (stamp, build_generator_page(self._out, name, read(self._out, name)))
        return sorted((dict(self._pages[name][1]) for name in numbers), key=_sort_key)


def build_document(
    out: Location, only: Sequence[str] = (), *, removals: FindRemoved | None = None, lists: bool = True
) -> dict[str, Any]:
    """Return everything that the page shows of these generators, or of all, as plain data.

    lists: include the lists of sample queries. removals: finds the items that the overlay removes from a generator's
    lists. Raises NotFoundError if there is nothing to show.
    """
    pages = PageCache(out).build(list_history_generators(out, only))
    if lists:
        each = max(1, min(QUERIES, MOST_QUERIES // len(pages)))
        for page in pages:
            name = page["name"]
            page["explorer"] = sample_queries(out, name, each, removals(name) if removals else None)
    return wrap_pages(pages)


def wrap_pages(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the document that holds these pages."""
    return {
        "format": FORMAT,
        "nearcast": __version__,
        "made": time.time(),
        "live": False,
        "headline": build_headline([page["state"] for page in pages], now=time.time()),
        "measures": {
            name: {"unit": row.unit, "better": row.better, "meaning": row.meaning} for name, row in MEASURES.items()
        },
        "generators": list(pages),
    }


def build_headline(states: Sequence[Mapping[str, Any]], *, now: float) -> dict[str, str]:
    """Return one line on all generators, with its level. now: seconds since 1970."""
    levels = [state["level"] for state in states]
    many = len(levels)
    for level, one, more in (
        ("bad", "has a problem", "have problems"),
        ("warn", "has a warning", "have warnings"),
        ("unknown", "is not monitored", "are not monitored"),
        ("idle", "has not run yet", "have not run yet"),
    ):
        count = levels.count(level)
        if count:
            generators = "generator" if many == 1 else "generators"
            return {"level": level, "text": f"{count} of {many} {generators} {one if count == 1 else more}"}
    ago = now - min((state["looked"] for state in states if state["looked"] is not None), default=now)
    if ago > STALE_SECONDS:
        days = f"{ago / DAY_SECONDS:.0f} days"
        return {"level": "ok", "text": f"The last monitor pass, {days} ago, found no problem"}
    return {"level": "ok", "text": "The generator is healthy" if many == 1 else f"All {many} generators are healthy"}


def _sort_key(page: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*page["rank"], page["name"])


def write_page(
    out: Location,
    path: Path | None = None,
    *,
    generators: Sequence[str] = (),
    store: str | None = None,
    lists: bool = True,
    pictures: Sequence[str] = (),
) -> Location:
    """Write one self-contained HTML file about these generators, or about all of `out`, and return its location.

    path: of a local file; default is <out>/dashboard.html. store: URL of the store whose overlay marks removed items.
    lists: include lists of sample queries, the largest part of the file. pictures: origins from which pictures may be
    loaded, for example https://img.example.com; without any, the file needs no network. Raises NotFoundError if nothing
    has run in `out`, SpecError for an invalid origin.
    """
    home = open_home(out)
    origins = [validate_origin(origin) for origin in pictures]
    if not home.exists():
        raise NotFoundError(f"nothing has run in {out}; run a generator first, or name its folder with --out")
    if path is not None and not path.parent.is_dir():
        raise SpecError(f"{path.parent} is no folder; make it, or name another file")
    document = build_document(out, generators, lists=lists, removals=make_removals_reader(store)) | {
        "pictures": origins
    }
    page = build_static_page(document, pictures=origins)
    if path is None:
        return home.write_file(FILE, page)
    write_text(path, page.decode())
    return path


def __getattr__(name: str) -> Any:
    """Return `build_document` under its earlier name, `document`, with a warning."""
    if name != "document":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import warnings

    warnings.warn(f"{__name__}.document is now {__name__}.build_document", DeprecationWarning, stacklevel=2)
    return build_document
