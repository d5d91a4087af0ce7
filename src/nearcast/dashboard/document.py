"""The one document that the page is drawn from: all generators of a folder, the worst first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.dashboard.generator import generator_page, tuned_at
from nearcast.dashboard.list_explorer import Removal
from nearcast.dashboard.sample_queries import telling_queries
from nearcast.errors import NotFoundError
from nearcast.history.event_log import newest, read
from nearcast.history.record import record_runs
from nearcast.measure.measures import MEASURES
from nearcast.table.snapshot import list_generators
from nearcast.version import __version__

__all__ = ["FORMAT", "Pages", "around", "document", "generators_of", "headline_of"]

FORMAT = 1
DAY_SECONDS = 86_400.0
STALE_SECONDS = 2 * DAY_SECONDS  # since the monitor last looked: then it is said how long ago that was
QUERIES = 6  # of every kind, for a generator
MOST_QUERIES = 400  # of every kind, for all of them: lists are most of the file
Removals = Callable[[str], Removal]


def generators_of(out: Path, only: Sequence[str] = (), *, served: bool = False) -> dict[str, int]:
    """The generators that have run here or have a history, each with the number of its newest event.

    Tables of a generator, which are published under GENERATOR.TABLE, are none themselves.
    served: those named are served from a store, whether or not anything of them is here. NotFoundError where one that
    is named is nowhere, or where there is none.
    """
    here = list_generators(out)
    for name in here:
        record_runs(out, name)  # of a killed run, or an older nearcast; a history that cannot be written is read
    numbers = dict.fromkeys([*here, *(only if served else ())], 0) | newest(out)
    missing = [name for name in only if name not in numbers]
    if missing or not numbers:
        known = ", ".join(sorted(numbers)) or "none"
        raise NotFoundError(f"no history of {', '.join(missing) or 'any generator'} in {out}; there are {known}")
    tables = {name for name in numbers if name not in here and name.rpartition(".")[0] in numbers} - set(only)
    return {name: number for name, number in numbers.items() if name not in tables and (not only or name in only)}


class Pages:
    """The pages of generators, each made anew only when its history has grown: a year of runs takes a while to read."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._made: dict[str, tuple[Any, dict[str, Any]]] = {}

    def of(self, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
        """The pages of these generators, the worst first; `numbers` as `generators_of` gives them."""
        for name, number in numbers.items():
            stamp = (number, tuned_at(self._out, name))
            if name not in self._made or self._made[name][0] != stamp:
                self._made[name] = (stamp, generator_page(self._out, name, read(self._out, name)))
        return sorted((dict(self._made[name][1]) for name in numbers), key=_worst_first)


def document(out: Path, only: Sequence[str] = (), *, removals: Removals | None = None, lists: bool = True) -> Any:
    """Everything that the page shows of these generators, or of all, as plain data.

    lists: with lists of some telling queries. removals: what the overlay has taken out of a generator's lists.
    NotFoundError where there is nothing to show.
    """
    pages = Pages(out).of(generators_of(out, only))
    if lists:
        each = max(1, min(QUERIES, MOST_QUERIES // len(pages)))
        for page in pages:
            name = page["name"]
            page["explorer"] = telling_queries(out, name, each, removals(name) if removals else None)
    return around(pages)


def around(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The document that holds these pages."""
    return {
        "format": FORMAT,
        "nearcast": __version__,
        "made": time.time(),
        "live": False,
        "headline": headline_of([page["state"] for page in pages], now=time.time()),
        "measures": {name: _measure(row) for name, row in MEASURES.items()},
        "generators": list(pages),
    }


def headline_of(states: Sequence[Mapping[str, Any]], *, now: float) -> dict[str, str]:
    """Return how these generators stand together, in a line with its level. `now` in seconds since 1970."""
    levels = [state["level"] for state in states]
    many = len(levels)
    for level, one, more in (
        ("bad", "is in trouble", "are in trouble"),
        ("warn", "deserves a look", "deserve a look"),
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
        return {"level": "ok", "text": f"Nothing was wrong when the monitor last looked, {days} ago"}
    return {"level": "ok", "text": "All is well" if many == 1 else f"All {many} generators are well"}


def _worst_first(page: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*page["rank"], page["name"])


def _measure(row: Any) -> dict[str, str]:
    return {"unit": row.unit, "better": row.better, "meaning": row.meaning}
