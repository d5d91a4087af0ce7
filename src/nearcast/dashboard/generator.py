"""One generator as the page draws it: state, lines, marks, slices, distributions, tuning, replay, manifest.

Takes the events of its history and what its folder holds, gives plain data. Computes no measure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.dashboard.series import pass_series, rounded, run_series
from nearcast.errors import NearcastError
from nearcast.history.event_log import HistoryEvent
from nearcast.history.publish_events import find_live_version
from nearcast.monitoring.serving_summary import list_newest_runs
from nearcast.monitoring.status import derive_status
from nearcast.table.snapshot import find_snapshot

__all__ = ["generator_page", "read_plain", "tuned_at"]

MOST_MARKS = 400
FRONTIER = "frontier.json"
SCORES = ("score_p01", "score_p50", "score_p99", "best_score_p50")
NORMS = ("min", "p01", "p25", "p50", "p75", "p99", "max")
LARGEST_FILE = 4_000_000  # bytes of a frontier or a replay that is read
HIDDEN = ("files", "artifacts")  # of a manifest: long, and of no use to a reader


def generator_page(out: Path, name: str, events: Sequence[HistoryEvent]) -> dict[str, Any]:
    """Everything about one generator, as plain data."""
    runs = list_newest_runs(events)
    state, live = derive_status(events), find_live_version(events)
    last = runs[-1].facts if runs else None
    return {
        "name": name,
        "state": state.as_dict(),
        "rank": list(state.rank),
        "live": None if live is None else {"version": live.version, "since": live.since, "made": live.made},
        "version": runs[-1].version if runs else None,
        "k": last["k"] if last else None,
        "metric": last["metric"] if last else None,
        "promise": dict(last["promise"]) if last else None,
        "engine": dict(last["engine"]) if last else None,
        "runs": run_series(events),
        "passes": pass_series(events),
        "marks": marks_of(events)[-MOST_MARKS:],
        "slices": _slices(last),
        "distributions": _distributions(runs, events),
        "frontier": _frontier(out, name),
        "replay": _replay(out, name, events),
        "compared_with": (last or {}).get("compared_with"),
        "manifest": _manifest(out, name, runs[-1].version if runs else None),
    }


def marks_of(events: Sequence[HistoryEvent]) -> list[dict[str, Any]]:
    """What happened and is no number: publishes, rollbacks, failed audits, alerts; oldest first."""
    marks: list[dict[str, Any]] = []
    spoken: set[str] = set()
    for event in events:
        if event.kind == "monitor":
            now = {str(a["check"]): f"{a.get('title') or a['check']}: {a['text']}" for a in event.facts["alerts"]}
            marks += [_mark(event, "alert", text) for check, text in now.items() if check not in spoken]
            spoken = set(now)
        elif event.kind == "rollback":
            marks.append(_mark(event, "rollback", f"rolled back to {event.version or 0:06d}"))
        elif event.kind == "publish" and event.facts.get("outcome") == "audit_failed":
            failed = "; ".join(f"{f['rule']}: {f['text']}" for f in event.facts["findings"] if not f["passed"])
            marks.append(_mark(event, "audit", f"the audit stopped {_name(event)}: {failed}"))
        elif event.kind == "publish":
            accepted = event.facts.get("accepted") or {}
            why = "".join(f"; {rule} accepted: {text}" for rule, text in accepted.items())
            marks.append(_mark(event, "publish", f"published {_name(event)}{why}" if why else None))
    return marks


def _mark(event: HistoryEvent, kind: str, text: str | None) -> dict[str, Any]:
    """text: None where the version says all of it; a year has many publishes."""
    mark = {"at": round(event.seconds), "kind": kind, "version": event.version}
    return mark if text is None else mark | {"text": text}


def _name(event: HistoryEvent) -> str:
    return "a snapshot" if event.version is None else f"{event.version:06d}"


def _slices(last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    names = ("by", "value", "queries", "recall", "low", "high", "below_promise")
    slices = (last or {}).get("slices") or []
    return sorted(({name: row.get(name) for name in names} for row in slices), key=lambda row: row["recall"] or 0)


def _distributions(runs: Sequence[HistoryEvent], events: Sequence[HistoryEvent]) -> dict[str, Any] | None:
    """Scores and lengths of vectors of the newest run, beside the last run before it that nothing was said about."""
    if not runs:
        return None
    troubled = {e.facts.get("version") for e in events if e.kind == "monitor" and e.facts["alerts"]}
    troubled |= {e.version for e in events if e.facts.get("outcome") == "audit_failed"}
    before = [run for run in runs[:-1] if run.version not in troubled and run.facts["promise"]["kept"]]
    return {"now": _shape(runs[-1]), "then": _shape(before[-1]) if before else None}


def _shape(run: HistoryEvent) -> dict[str, Any]:
    measures, sides = run.facts["measures"], run.facts["sides"]
    norms = {side: {n: rounded(facts["norms"].get(n)) for n in NORMS} for side, facts in sides.items()}
    return {
        "version": run.version,
        "scores": {name: rounded(measures.get(name)) for name in SCORES},
        "norms": norms,
    }


def read_plain(path: Path) -> Any:
    """The JSON of a file; None where it is not there, is too long or is no JSON."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def tuned_at(out: Path, name: str) -> float:
    """When the last tuning was written down, which the history does not tell; 0 where there is none."""
    path = out / name / "tuning" / FRONTIER
    return path.stat().st_mtime if path.is_file() else 0.0


def _frontier(out: Path, name: str) -> dict[str, Any] | None:
    """The points of the last tuning, each with its settings and the seconds it takes by promise."""
    told = read_plain(out / name / "tuning" / FRONTIER)
    if not isinstance(told, dict) or not isinstance(told.get("found"), list):
        return None
    points = []
    for found in told["found"]:
        costs = {promise: rounded(cost.get("seconds")) for promise, cost in (found.get("costs") or {}).items()}
        points.append({**_point(found), "costs": costs})
    return {
        "promise": told.get("promise"),
        "points": points,
        "frontier": told.get("frontier") or [],
        "chosen": _point(told.get("suggestion") or {}),
        "reason": told.get("reason"),
        "lines": told.get("lines"),
        "exact_seconds": rounded(told.get("exact_seconds")),
    }


def _point(found: Mapping[str, Any]) -> dict[str, Any]:
    point = found.get("point") or {}
    return {"engine": point.get("engine"), "settings": point.get("settings") or {}}


def _replay(out: Path, name: str, events: Sequence[HistoryEvent]) -> dict[str, Any] | None:
    """The last replay: stages with what came through offline and online.

    {"stages": [{"name", "offline", "online"}, ...], "requests": n, "hit_rate": {"offline", "online"}}, as the facts of
    an event `replay`, or in <out>/<generator>/replay.json.
    """
    told: Any = next((event.facts for event in reversed(events) if event.kind == "replay"), None)
    told = read_plain(out / name / "replay.json") if told is None else told
    stages = told.get("stages") if isinstance(told, Mapping) else None
    return dict(told) if isinstance(stages, list) and stages else None


def _manifest(out: Path, name: str, version: int | None) -> dict[str, Any] | None:
    try:
        manifest = find_snapshot(out, name, version).manifest.as_dict()
    except NearcastError:
        return None
    return {key: value for key, value in manifest.items() if key not in HIDDEN}
