"""The page of one generator: status, series, marks, slices, distributions, tuning, replay, manifest.

Takes the events of the history and the files of the generator's folder, returns plain data. Computes no measure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.dashboard.label_figures import build_label_figures
from nearcast.dashboard.series import build_pass_series, build_run_series, round_number
from nearcast.errors import NearcastError
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_version
from nearcast.monitoring.explain_changes import find_recorded_changes
from nearcast.monitoring.serving_summary import list_newest_runs
from nearcast.monitoring.status import derive_status
from nearcast.storage.locations import Location
from nearcast.table.snapshot import find_snapshot, open_home

__all__ = ["build_generator_page", "read_json", "read_tuning_time"]

MOST_MARKS = 400
FRONTIER = "tuning/frontier.json"
SCORES = ("score_p01", "score_p50", "score_p99", "best_score_p50")
NORMS = ("min", "p01", "p25", "p50", "p75", "p99", "max")
LARGEST_FILE = 4_000_000  # bytes of a frontier or a replay that is read
HIDDEN = ("files", "artifacts")  # keys of a manifest that are long and not useful to a reader


def build_generator_page(out: Location, name: str, events: Sequence[HistoryEvent]) -> dict[str, Any]:
    """Return the page of one generator as plain data."""
    runs = list_newest_runs(events)
    status, live = derive_status(events), find_live_version(events)
    last = runs[-1].facts if runs else None
    return {
        "name": name,
        "state": status.as_dict(),
        "rank": list(status.rank),
        "live": None if live is None else {"version": live.version, "since": live.since, "made": live.made},
        "version": runs[-1].version if runs else None,
        "k": last["k"] if last else None,
        "metric": last["metric"] if last else None,
        "promise": dict(last["promise"]) if last else None,
        "engine": dict(last["engine"]) if last else None,
        "runs": build_run_series(events),
        "passes": build_pass_series(events),
        "marks": list_marks(events)[-MOST_MARKS:],
        "slices": _list_slices(last),
        "distributions": _compare_distributions(runs, events),
        "labels": build_label_figures(events),
        "frontier": _read_frontier(out, name),
        "replay": _read_replay(out, name, events),
        "compared_with": (last or {}).get("compared_with"),
        "changes": find_recorded_changes(events, runs[-1].version if runs else None),
        "manifest": _read_manifest(out, name, runs[-1].version if runs else None),
    }


def list_marks(events: Sequence[HistoryEvent]) -> list[dict[str, Any]]:
    """Return publishes, rollbacks, refused publishes and new alerts, oldest first."""
    marks: list[dict[str, Any]] = []
    known: set[str] = set()
    for event in events:
        if event.kind == "monitor":
            now = {str(a["check"]): f"{a.get('title') or a['check']}: {a['text']}" for a in event.facts["alerts"]}
            marks += [_make_mark(event, "alert", text) for check, text in now.items() if check not in known]
            known = set(now)
        elif event.kind == "rollback":
            marks.append(_make_mark(event, "rollback", f"rolled back to {event.version or 0:06d}"))
        elif event.kind == "undo":
            numbers = ", ".join(map(str, event.facts["patches"]))
            marks.append(_make_mark(event, "rollback", f"live updates were undone: patches {numbers}"))
        elif event.kind == "publish" and event.facts.get("outcome") == "audit_failed":
            failed = "; ".join(f"{f['rule']}: {f['text']}" for f in event.facts["findings"] if not f["passed"])
            marks.append(_make_mark(event, "audit", f"the audit refused {_format_version(event)}: {failed}"))
        elif event.kind == "publish":
            accepted = event.facts.get("accepted") or {}
            why = "".join(f"; {rule} accepted: {text}" for rule, text in accepted.items())
            marks.append(_make_mark(event, "publish", f"published {_format_version(event)}{why}" if why else None))
    return marks


def _make_mark(event: HistoryEvent, kind: str, text: str | None) -> dict[str, Any]:
    """Return a mark. text: None if the version says everything, since a year has many publishes."""
    mark = {"at": round(event.seconds), "kind": kind, "version": event.version}
    return mark if text is None else mark | {"text": text}


def _format_version(event: HistoryEvent) -> str:
    return "a snapshot" if event.version is None else f"{event.version:06d}"


def _list_slices(last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    names = ("by", "value", "queries", "recall", "low", "high", "below_promise")
    slices = (last or {}).get("slices") or []
    return sorted(({name: row.get(name) for name in names} for row in slices), key=lambda row: row["recall"] or 0)


def _compare_distributions(runs: Sequence[HistoryEvent], events: Sequence[HistoryEvent]) -> dict[str, Any] | None:
    """Return scores and norms of the newest run, and of the last run before it without an alert or a refusal."""
    if not runs:
        return None
    alerted = {e.facts.get("version") for e in events if e.kind == "monitor" and e.facts["alerts"]}
    alerted |= {e.version for e in events if e.facts.get("outcome") == "audit_failed"}
    before = [run for run in runs[:-1] if run.version not in alerted and run.facts["promise"]["kept"]]
    return {"now": _describe_distribution(runs[-1]), "then": _describe_distribution(before[-1]) if before else None}


def _describe_distribution(run: HistoryEvent) -> dict[str, Any]:
    measures, sides = run.facts["measures"], run.facts["sides"]
    norms = {side: {n: round_number(facts["norms"].get(n)) for n in NORMS} for side, facts in sides.items()}
    return {
        "version": run.version,
        "scores": {name: round_number(measures.get(name)) for name in SCORES},
        "norms": norms,
    }


def read_json(out: Location, name: str) -> Any:
    """Return the JSON of a small file in `out`; None if it is missing, too large or no JSON."""
    try:
        data = open_home(out).read_file(name)
        return None if data is None or len(data) > LARGEST_FILE else json.loads(data)
    except ValueError:
        return None


def read_tuning_time(out: Location, name: str) -> float:
    """Return when the last tuning was written, since the history does not record it; 0 if there is none."""
    return open_home(out).describe_file(f"{name}/{FRONTIER}")[0]


def _read_frontier(out: Location, name: str) -> dict[str, Any] | None:
    """Return the points of the last tuning, each with its settings and its seconds by recall target."""
    facts = read_json(out, f"{name}/{FRONTIER}")
    if not isinstance(facts, dict) or not isinstance(facts.get("found"), list):
        return None
    points = []
    for found in facts["found"]:
        costs = {target: round_number(cost.get("seconds")) for target, cost in (found.get("costs") or {}).items()}
        points.append({**_read_point(found), "costs": costs})
    return {
        "promise": facts.get("promise"),
        "points": points,
        "frontier": facts.get("frontier") or [],
        "chosen": _read_point(facts.get("suggestion") or {}),
        "reason": facts.get("reason"),
        "lines": facts.get("lines"),
        "exact_seconds": round_number(facts.get("exact_seconds")),
    }


def _read_point(found: Mapping[str, Any]) -> dict[str, Any]:
    point = found.get("point") or {}
    return {"engine": point.get("engine"), "settings": point.get("settings") or {}}


def _read_replay(out: Location, name: str, events: Sequence[HistoryEvent]) -> dict[str, Any] | None:
    """Return the last replay: candidates left after each stage by source.

    {"stages": [{"name", "offline", "online"}, ...], "requests": n, "hit_rate": {"offline", "online"}}, from the last
    event `replay`, or from <out>/<generator>/replay.json.
    """
    facts: Any = next((event.facts for event in reversed(events) if event.kind == "replay"), None)
    facts = read_json(out, f"{name}/replay.json") if facts is None else facts
    stages = facts.get("stages") if isinstance(facts, Mapping) else None
    return dict(facts) if isinstance(stages, list) and stages else None


def _read_manifest(out: Location, name: str, version: int | None) -> dict[str, Any] | None:
    try:
        manifest = find_snapshot(out, name, version).manifest.as_dict()
    except NearcastError:
        return None
    return {key: value for key, value in manifest.items() if key not in HIDDEN}
