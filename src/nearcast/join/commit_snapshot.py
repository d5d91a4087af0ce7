"""The end of a run: check the recall target, write the manifest, commit the snapshot, remove the work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast import machine
from nearcast.errors import TargetError
from nearcast.files import fresh_folder, link_file
from nearcast.join.context import RunContext, Workspace
from nearcast.join.run_plan import planned_fingerprint
from nearcast.join.task_context import TaskContext
from nearcast.storage.artifacts import ArtifactFile, LocalArtifacts, open_artifacts
from nearcast.storage.open_storage import join_location
from nearcast.table.candidate_schema import FORMAT_VERSION
from nearcast.table.manifest import EngineRecord, Manifest, RunRecord, TargetCheck
from nearcast.table.snapshot import Snapshot, next_version
from nearcast.table.snapshot import commit_snapshot as commit_folder
from nearcast.times import format_utc
from nearcast.version import __version__

__all__ = ["check_target", "commit_snapshot", "draft_manifest", "raise_below_target", "record_run", "remove_work"]


def draft_manifest(
    context: TaskContext, inputs: Mapping[str, Any], join: Mapping[str, Any], table: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts of a written table with its inputs and settings, without measures.

    inputs, join, table: facts of the tasks that checked the inputs, planned the join and wrote the table.
    """
    run = context.run
    engine = EngineRecord(run.engine.name, run.settings.model_dump(), join["params"], join["calibration"])
    return {
        "format": FORMAT_VERSION,
        "generator": run.spec.name,
        "version": next_version(run.workspace.out, run.spec.name),
        "rows": table["rows"],
        **{key: table[key] for key in ("group_rows",) if key in table},
        "fingerprint": context.plan.fingerprint,
        "nearcast": __version__,
        "spec": context.spec.as_recorded(),
        "inputs": inputs["inputs"],
        "engine": engine.as_dict(),
        "artifacts": table["artifacts"],
    }


def check_target(run: RunContext, measures: Mapping[str, float], *, exact: bool) -> TargetCheck:
    """Check the recall target: the lower bound of recall must reach it. exact: the join scanned every item.

    An exact join must have no miss at all: a sample proves a recall of 1 only if it holds all queries, but one miss
    disproves it.
    """
    target, low = run.spec.recall, measures["recall_low"]
    met = measures["recall"] == 1.0 if exact else low >= target
    reason = None
    if not met:
        measured_k = run.spec.k if run.spec.rank is None else run.spec.join_k  # recall is measured before ranking
        reason = (
            f"recall@{measured_k} is {measures['recall']:.4f} with a 95% interval from {low:.4f}, "
            f"and {target:g} was promised"
        )
    return TargetCheck(target, met, reason)


def record_run(run: RunContext, estimate: Mapping[str, Any], tasks: int, continued: int) -> RunRecord:
    """Return time, memory, disk and machine of the run up to now."""
    workspace, meter = run.workspace, run.meter
    beside = (str(workspace.artifacts.absolute()), join_location(workspace.out, workspace.generator, "artifacts"))
    return RunRecord(
        created=format_utc(time.time()),
        seconds={stage: round(value, 3) for stage, value in meter.seconds.items()},
        cpu_seconds={stage: round(value, 3) for stage, value in meter.cpu_seconds.items()},
        seconds_total=round(meter.elapsed, 3),
        peak_memory_bytes=meter.peak_bytes,
        disk_bytes=_folder_bytes(workspace.work) + _folder_bytes(workspace.artifacts),
        estimate=estimate,
        tasks=tasks,
        tasks_continued=continued,
        machine=machine.describe(),
        artifacts=None if run.artifacts.url in beside else run.artifacts.url,
    )


def commit_snapshot(run: RunContext, files: Mapping[str, ArtifactFile], manifest: Manifest, seen: int) -> Snapshot:
    """Commit files, by their names in the snapshot, atomically. Files in a bucket are copied there where that can be.

    seen: the newest version when the run began; another driver may commit the same run meanwhile.
    """
    workspace = run.workspace
    draft, elsewhere = fresh_folder(workspace.work / "snapshot"), {}
    for name, file in files.items():
        if file.path is None:
            elsewhere[name] = file
            continue
        copy = draft / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        link_file(file.path, copy)
    out, generator = workspace.out, workspace.generator
    snapshot = commit_folder(out, generator, draft, manifest.facts, seen=seen, elsewhere=elsewhere)
    shutil.rmtree(draft, ignore_errors=True)
    return snapshot


def remove_work(run: RunContext, snapshot: Snapshot) -> None:
    """Remove the work that led to a snapshot, and all artifacts that it was not made of."""
    if run.results.url == LocalArtifacts(run.workspace.work).url:
        run.artifacts.sweep(older_than=0.0)  # attempts of killed workers; those of living ones are held
        _remove_local_work(run.workspace, snapshot)
        return
    run.results.remove("")
    run.artifacts.sweep()
    if _others_work(run):
        return  # a run of another host may read artifacts that are new
    for name in run.artifacts.list_names():
        if name.split("/")[0] not in snapshot.manifest.artifacts:
            run.artifacts.remove(name)


def _others_work(run: RunContext) -> bool:
    """Return whether the bucket of `out` holds unfinished work of another run of the generator."""
    home = run.workspace.out
    if not isinstance(home, str) or not run.results.url.startswith(join_location(home, run.spec.name, "work")):
        return False
    return bool(open_artifacts(join_location(home, run.spec.name, "work")).list_names())


def _remove_local_work(workspace: Workspace, snapshot: Snapshot) -> None:
    work, artifacts = workspace.work, workspace.artifacts
    planned = planned_fingerprint(work)
    if work.exists() and planned in (None, snapshot.manifest.fingerprint):  # None: killed while removing it
        shutil.rmtree(work)
    if artifacts.is_dir() and not work.exists():
        for path in artifacts.iterdir():
            if path.is_dir() and path.name not in snapshot.manifest.artifacts and path != workspace.truths:
                shutil.rmtree(path)


def raise_below_target(snapshot: Snapshot) -> None:
    """Raise TargetError if the snapshot's recall is below its target."""
    target = snapshot.manifest.target
    if not target.met:
        raise TargetError(
            f"snapshot {snapshot.name} is below its recall target: {target.reason}; it is kept at {snapshot.url}; "
            "change the engine's search parameters or lower `recall`",
            snapshot,
        )


def _folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
