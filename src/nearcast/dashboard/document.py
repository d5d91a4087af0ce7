"""The one document that the page is drawn from: all generators of a folder, the worst first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.dashboard.generator import generator_page
from nearcast.dashboard.lists import Removal
from nearcast.dashboard.samples import telling_queries
from nearcast.errors import NotFoundError
from nearcast.history.record import record_runs
from nearcast.history.store import read
from nearcast.measure.measures import MEASURES
from nearcast.table.snapshot import list_generators
from nearcast.version import __version__

__all__ = ["FORMAT", "document", "generators_of"]

FORMAT = 1
QUERIES = 6  # of every kind, for a generator
MOST_QUERIES = 400  # of every kind, for all of them: lists are most of the file
Removals = Callable[[str], Removal]


def generators_of(out: Path, only: Sequence[str] = (), *, served: bool = False) -> dict[str, list[Any]]:
    """The events of every generator that has run here or has a history. NotFoundError where there is none.

    served: those named are served from a store, whether or not anything of them is here.
    """
    for name in list_generators(out):
        record_runs(out, name)  # of a killed run, or an older nearcast; a history that cannot be written is read
    events: dict[str, list[Any]] = {name: [] for name in [*list_generators(out), *(only if served else ())]}
    for event in read(out):
        events.setdefault(event.generator, []).append(event)
    missing = [name for name in only if name not in events]
    if missing or not events:
        known = ", ".join(sorted(events)) or "none"
        raise NotFoundError(f"no history of {', '.join(missing) or 'any generator'} in {out}; there are {known}")
    return {name: rows for name, rows in events.items() if not only or name in only}


def document(
    out: Path,
    only: Sequence[str] = (),
    *,
    samples: bool = True,
    removals: Removals | None = None,
    served: bool = False,
) -> dict[str, Any]:
    """Everything that the page shows of these generators, or of all, as plain data.

    samples: with lists of some telling queries. removals: what the overlay has taken out of a generator's lists.
    served: they are served from a store, and need not have run here.
    """
    events = generators_of(out, only, served=served)
    pages = sorted((generator_page(out, name, rows) for name, rows in events.items()), key=_worst_first)
    if samples:
        each = max(1, min(QUERIES, MOST_QUERIES // len(pages)))
        for page in pages:
            name = page["name"]
            page["explorer"] = telling_queries(out, name, each, removals(name) if removals else None)
    return {
        "format": FORMAT,
        "nearcast": __version__,
        "made": time.time(),
        "live": False,
        "measures": {name: _measure(row) for name, row in MEASURES.items()},
        "generators": pages,
    }


def _worst_first(page: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*page["rank"], page["name"])


def _measure(row: Any) -> dict[str, str]:
    return {"unit": row.unit, "better": row.better, "meaning": row.meaning}
