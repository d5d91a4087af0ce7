"""The end of a run: the verdict on the promise, the facts of the manifest, and the snapshot made to appear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nearcast.errors import TargetError
from nearcast.files import finish
from nearcast.join.context import RunContext, Workspace
from nearcast.join.inputs import Sources
from nearcast.join.run_plan import planned_fingerprint
from nearcast.sources.validate_rows import Report
from nearcast.spec import GeneratorSpec
from nearcast.table.manifest import Manifest, TargetCheck
from nearcast.table.snapshot import Snapshot, snapshots_folder

__all__ = ["finish_snapshot", "input_facts", "size_of", "stop_below_promise", "tidy", "verdict"]


def verdict(run: RunContext, measures: Mapping[str, float], *, exactly: bool) -> TargetCheck:
    """Whether the promise is kept: by the lower bound; with full effort there only must be no miss.

    exactly: the join left nothing out.
    """
    promised, low = run.spec.recall, measures["recall_low"]
    # No sample proves a promise of 1, unless it holds all queries: full effort does; but one miss disproves it.
    kept = measures["recall"] == 1.0 if exactly else low >= promised
    reason = None
    if not kept:
        measured = run.spec.k if run.spec.rank is None else run.spec.join_k  # before a model has chosen
        reason = (
            f"recall@{measured} is {measures['recall']:.4f} with a 95% interval from {low:.4f}, "
            f"and {promised:g} was promised"
        )
    return TargetCheck(promised, kept, reason)


def stop_below_promise(snapshot: Snapshot) -> None:
    """Raise TargetError where the snapshot's own verdict says so."""
    target = snapshot.manifest.target
    if not target.met:
        raise TargetError(
            f"snapshot {snapshot.name} is below its promise: {target.reason}; it is kept at {snapshot.folder}; "
            "raise the engine's effort or lower `recall`",
            snapshot,
        )


def input_facts(sources: Sources, report: Report, spec: GeneratorSpec) -> dict[str, Any]:
    """Both sides as the manifest tells of them: files, checks, figures."""

    def side(source: Any, digests: Any, facts: Any) -> dict[str, Any]:
        return {"embedding": source.embedding, "files": digests, **asdict(facts)}

    facts = {"items": side(spec.items, sources.item_digests, report.items)}
    if sources.queries is not sources.items:
        facts["queries"] = side(spec.query_source, sources.query_digests, report.queries)
    return facts


def finish_snapshot(run: RunContext, folder: Path, facts: dict[str, Any]) -> Snapshot:
    """Make the snapshot appear, whole and at once, then tidy up what it does not need."""
    finish(folder, facts)
    home = snapshots_folder(run.workspace.out, run.spec.name)
    home.mkdir(exist_ok=True)
    place = home / f"{facts['version']:06d}"
    os.rename(folder, place)
    snapshot = Snapshot(place, Manifest(facts))
    tidy(run.workspace, snapshot)
    return snapshot


def tidy(workspace: Workspace, snapshot: Snapshot) -> None:
    """Remove the work that led to a snapshot, and the artifacts that it was not made of."""
    work, artifacts = workspace.work, workspace.artifacts
    planned = planned_fingerprint(work)
    if work.exists() and planned in (
        None,
        snapshot.manifest.fingerprint,
    ):  # None: killed while removing it
        shutil.rmtree(work)
    if artifacts.is_dir() and not work.exists():
        for path in artifacts.iterdir():
            if path.name not in snapshot.manifest.artifacts and path != workspace.truths:
                shutil.rmtree(path)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
