"""The plan of a run: everything that decides its result.

The plan is stored in the work folder. A run with an equal plan continues the work there; otherwise it deletes the work
and names the differences.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.files import fingerprint, write_text
from nearcast.spec import GeneratorSpec
from nearcast.version import __version__

__all__ = [
    "RunPlan",
    "describe_changes",
    "enter_work",
    "make_plan",
    "planned_fingerprint",
]

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that decides the result of a run."""

    parts: Mapping[str, Any]  # by name, so that a difference can be named

    @property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return fingerprint(self.parts)


def make_plan(
    spec: GeneratorSpec,
    engine: str,
    engine_settings: Mapping[str, Any],
    item_digests: list[dict[str, Any]],
    query_digests: list[dict[str, Any]],
    ranker: Mapping[str, Any] | None = None,
    lookup_digests: list[dict[str, str]] | None = None,
) -> RunPlan:
    """Collect the facts that decide the result: settings, engine, hashes of tables and log, ranking model, software."""
    return RunPlan(
        {
            "settings": spec.answer_settings(),
            "engine": {"name": engine, "settings": dict(engine_settings)},
            "items": [{"name": d["name"], "hash": d["blake2b"]} for d in item_digests],
            "queries": [{"name": d["name"], "hash": d["blake2b"]} for d in query_digests],
            "nearcast": __version__,
            **({} if ranker is None else {"ranker": dict(ranker)}),
            **({} if lookup_digests is None else {"lookups": lookup_digests}),
        }
    )


def enter_work(folder: Path, plan: RunPlan, settings: Mapping[str, Any]) -> str | None:
    """Prepare the work folder for a plan. Return why earlier work was deleted, or None.

    Work of an equal plan and equal settings stays, and the run continues it. settings: decide the tasks, and at recall
    1 not the result.
    """
    path = folder / PLAN_FILE
    reason = None
    planned = json.loads(json.dumps({"parts": plan.parts, "tasks": settings}))
    if path.is_file():
        old = _read_planned(path)
        if old == planned:
            return None
        reason = "; ".join(describe_changes(old, planned))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(path, json.dumps(planned, indent=1))
    return reason


def planned_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the plan in a work folder, None if there is none."""
    path = folder / PLAN_FILE
    return RunPlan(_read_planned(path)["parts"]).fingerprint if path.is_file() else None


def _read_planned(path: Path) -> dict[str, Any]:
    """Read the plan of earlier work. Earlier releases wrote its parts alone."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored if "parts" in stored else {"parts": stored, "tasks": {}}


def describe_changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield what differs between the parts of two plans, in words."""
    for key in [*new, *(k for k in old if k not in new)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from describe_changes(before, after, f"{prefix}{key}.")
        elif isinstance(after, list) and isinstance(before, list) and key in ("items", "queries"):
            known = {part["name"]: part["hash"] for part in before}
            changed = [p["name"] for p in after if known.get(p["name"]) != p["hash"]]
            changed += [f"{name} (gone)" for name in known if name not in {p["name"] for p in after}]
            if changed:
                yield f"{key} changed: {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''}"
        elif json.loads(json.dumps(after)) != before:
            name = f"{prefix}{key}".removeprefix("tasks.").removeprefix("parts.").removeprefix("settings.")
            yield f"{name} was {before!r} and is {after!r}"
