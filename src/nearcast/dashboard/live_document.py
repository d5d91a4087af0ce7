"""The dashboard document of a running service: the records in the snapshot folder, with the service's figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nearcast.dashboard.document import PageCache, build_headline, list_history_generators, wrap_pages
from nearcast.dashboard.list_explorer import (
    compare_key,
    compare_lists,
    find_keys,
    format_value,
    list_display_columns,
    read_labels,
)
from nearcast.dashboard.patch_list import describe_updates
from nearcast.dashboard.removals import list_view_removals
from nearcast.dashboard.series import build_overview
from nearcast.errors import NearcastError
from nearcast.monitoring.alert import ALERT_TEXTS, LEVELS
from nearcast.serve.lookup_data import LookupOptions
from nearcast.serve.view import View
from nearcast.service.generator_service import Service
from nearcast.service.served_tables import list_columns
from nearcast.storage.locations import Location
from nearcast.table.snapshot import Snapshot, list_snapshots

__all__ = ["LiveDocument"]

FRESH_SECONDS = 5.0  # the document is rebuilt after this time


class LiveDocument:
    """The document of the generators that a service answers for. Blocks: its methods run in threads."""

    def __init__(self, service: Service, out: Location, pictures: Sequence[str], *, explains: bool) -> None:
        self._service = service
        self._out = out
        self._fixed = {"live": True, "explains": explains, "pictures": list(pictures)}
        self._pages = PageCache(out)
        self._built = -FRESH_SECONDS  # on the monotonic clock
        self._document: dict[str, Any] = {}

    def refresh(self) -> None:
        """Rebuild the document, unless it was rebuilt in the last seconds."""
        if time.monotonic() - self._built < FRESH_SECONDS:
            return
        numbers = list_history_generators(self._out, tuple(self._service.served), served=True)
        self._document = wrap_pages(self._pages.build(numbers))
        self._built = time.monotonic()

    def build_overview(self) -> dict[str, Any]:
        """Return the document with every generator in brief."""
        states, counts = self._service.states(), self._read_counts()
        pages = [self._add_state(page, states.get(page["name"]), counts) for page in self._document["generators"]]
        pages.sort(key=lambda page: page["state"]["level"] not in ("bad", "warn"))  # stable: the worst stay first
        return self._document | {
            "headline": build_headline([page["state"] for page in pages], now=time.time()),
            "generators": [build_overview(page) for page in pages],
            "now": time.time(),
            **self._fixed,
        }

    def build_generator(self, name: str) -> dict[str, Any]:
        """Return the page of one generator."""
        page = next(page for page in self._document["generators"] if page["name"] == name)
        versions = [snapshot.version for snapshot in list_snapshots(self._out, name)][::-1]
        page = self._add_state(page, self._service.states().get(name), self._read_counts())
        return page | {"versions": versions, "updates": self._describe_updates(name)}

    def _describe_updates(self, name: str) -> dict[str, Any] | None:
        """Return the live updates of the served version; None without any, and if the store cannot be read."""
        served = self._service.served.get(name)
        try:
            return None if served is None else describe_updates(served.lookup.read_patches())
        except NearcastError:
            return None

    def _read_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of keys and of misses by generator, over all workers."""
        names = {f"nearcast_{what}_total": what for what in ("keys", "misses")}
        return {names[name]: counts for name, counts in self._service.metrics.read_counts(*names).items()}

    def _add_state(self, page: dict[str, Any], state: Any, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
        """Return the page with the version that answers now, and the number of look-ups."""
        name, now = page["name"], time.time()
        asked = {what: by_generator.get(name, 0) for what, by_generator in counts.items()}
        page = page | {"asked": asked | {"since": self._service.began}}
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
        return _add_not_following(page, self._service.find_failing_since(name)) if state.error else page

    def open_view(self, name: str) -> View:
        """Return the view that a generator answers from."""
        return self._service.generator(name).lookup.view()

    def _find_snapshot(self, name: str) -> Snapshot | None:
        """Return the snapshot that answers, if its folder is here."""
        served = self.open_view(name).version.number
        return next((s for s in list_snapshots(self._out, name) if s.version == served), None)

    def find_keys(self, name: str, text: str) -> list[dict[str, Any]]:
        """Return keys that match a text; none if the snapshot's folder is elsewhere."""
        snapshot = self._find_snapshot(name)
        return [] if snapshot is None else find_keys(snapshot, text)

    def compare_lists(self, name: str, key: str, before: int | None) -> dict[str, Any]:
        """Return the list of a key in the served version and in an older snapshot. before: its number."""
        view, snapshot = self.open_view(name), self._find_snapshot(name)
        snapshots = list_snapshots(self._out, name)
        older = [s for s in snapshots if s.version < view.version.number]
        if before is not None:
            older = [s for s in snapshots if s.version == before]
        other = older[-1] if older else None
        if snapshot is None:
            return _compare_stored_list(view, key, other)
        columns = list_display_columns(snapshot)
        lists = compare_key(snapshot, other, key, columns, list_view_removals(view))
        label = read_labels(snapshot, [lists["key"]]).get(lists["key"], "") if lists["now"] else ""
        return lists | {"columns": list(columns), "label": label}


def _add_not_following(page: dict[str, Any], since: float) -> dict[str, Any]:
    """Add the problem that the service cannot follow its store: unreachable, or a newer version cannot be opened."""
    words = ALERT_TEXTS["not_following"]
    problem = {
        "check": "not_following",
        "title": words.title,
        "text": "the store cannot be reached, or a newer version cannot be opened; see the log",
        "effect": words.effect,
        "level": words.level,
        "since": since,
        "version": None,
        "follows": (),
        "evidence": None,
        "of": "runs",
    }
    state = page["state"]
    level = "bad" if state["level"] == "bad" else words.level
    return page | {"state": state | {"level": level, "word": LEVELS[level], "troubles": [*state["troubles"], problem]}}


def _compare_stored_list(view: View, key: str, other: Snapshot | None) -> dict[str, Any]:
    """Return a list as the store holds it, if its snapshot's folder is elsewhere. Removed items are not in it."""
    columns = list_columns(view)
    answer = view.get(key, LookupOptions(fields=columns))
    rows = [
        {"id": item, "score": score, "columns": {n: format_value(answer.columns[n][slot]) for n in columns}}
        for slot, (item, score) in enumerate(zip(answer.ids, answer.scores, strict=True))
    ]
    now = {"snapshot": view.snapshot, "key": answer.key, "reason": answer.reason, "candidates": rows}
    now_or_none = now if answer.found else None
    before = compare_key(other, None, key, list_display_columns(other))["now"] if other is not None else None
    page = {"key": answer.key, "label": "", "columns": columns, "now": now_or_none, "before": before}
    return page | compare_lists(before, now_or_none)
