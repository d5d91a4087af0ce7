"""Records runs, publishes and rollbacks in the history, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.errors import AuditError
from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.files import fingerprint
from nearcast.history.event_log import append
from nearcast.publishing.publication import Publication
from nearcast.storage.locations import Location
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import Snapshot, list_snapshots
from nearcast.times import parse_utc

__all__ = [
    "record_canary",
    "record_evaluation",
    "record_failed_audit",
    "record_publication",
    "record_run",
    "record_runs",
    "record_undone_patches",
    "run_facts",
]

DECIDES = (  # settings of the spec: lists under other values are not comparable
    *("metric", "k", "exclude_self", "min_score", "caps", "rules", "surplus", "exposure", "score", "rank"),
)


def record_run(out: Location, snapshot: Snapshot) -> str | None:
    """Add a run, once. Return an error text, or None."""
    made = fingerprint([snapshot.name, snapshot.manifest.facts["run"], snapshot.manifest.fingerprint])
    return append(
        out,
        snapshot.generator,
        "run",
        snapshot.version,
        run_facts(snapshot.manifest),
        seconds=parse_utc(snapshot.manifest.run.created),
        identity=f"run {snapshot.generator} {made}",
    )


def record_runs(out: Location, generator: str) -> str | None:
    """Add the runs of snapshots that the history lacks: of killed runs, or of an older nearcast."""
    errors = [record_run(out, snapshot) for snapshot in list_snapshots(out, generator)]
    return next((error for error in errors if error), None)


def record_publication(out: Location, done: Publication) -> str | None:
    """Add a publish or rollback that changed the published version, or the start of a canary."""
    if done.outcome == "canary_started":
        return record_canary(out, done.generator, done.version, "started", done.as_dict())
    if done.outcome not in ("published", "rolled_back"):
        return None
    facts = done.as_dict() | {"accepted": dict(done.accepted or {})}
    return append(out, done.generator, "publish" if done.outcome == "published" else "rollback", done.version, facts)


def record_evaluation(out: Location, evaluation: Evaluation) -> str | None:
    """Add an evaluation by labels."""
    facts = evaluation.as_dict()
    return append(out, evaluation.generator, "evaluate", evaluation.version, facts)


def record_undone_patches(out: Location, generator: str, version: int, undone: Sequence[int]) -> str | None:
    """Add a rollback of patches, unless there were none."""
    return append(out, generator, "undo", version, {"patches": list(undone)}) if undone else None


def record_canary(
    out: Location, generator: str, version: int, outcome: str, facts: Mapping[str, Any] | None = None
) -> str | None:
    """Add a change of a canary: started, share, promoted or withdrawn. A promotion is also recorded as a publish."""
    return append(out, generator, "canary", version, {**(facts or {}), "outcome": outcome})


def record_failed_audit(out: Location, generator: str, version: int | None, error: AuditError) -> str | None:
    """Add a publish that the audit refused."""
    assert isinstance(error.findings, tuple)
    findings = [finding.as_dict() for finding in error.findings]
    return append(out, generator, "publish", version, {"outcome": "audit_failed", "findings": findings})


def run_facts(manifest: Manifest) -> dict[str, Any]:
    """Return the facts of a manifest that runs are compared by."""
    inputs, run, engine, spec = manifest.inputs, manifest.run, manifest.engine, manifest.spec
    return {
        "version": manifest.version,
        "compared_with": manifest.compared_with,  # by the measures of change; None: the snapshot before
        "settings": fingerprint({name: spec.get(name) for name in DECIDES}),
        "measures": dict(manifest.measures),
        "slices": manifest.slices,
        "likely_metric": manifest.likely_metric,
        "promise": dict(manifest.facts["promise"]),
        **({} if manifest.labels is None else {"labels": manifest.labels}),
        "k": manifest.k,
        "metric": manifest.metric,
        "sides": {name: _table_facts(inputs[name]) for name in ("items", "queries") if name in inputs},
        "engine": {"name": engine.name, "settings": engine.settings, "effort": engine.params},
        "seconds": dict(run.seconds),
        "seconds_total": run.seconds_total,
        "peak_memory_bytes": run.peak_memory_bytes,
        "estimate": run.estimate,
        "created": run.created,
        "fingerprint": manifest.fingerprint,
        "nearcast": manifest.software,
    }


def _table_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rows": facts["rows"],
        "vectors": facts["vectors"],
        "norms": facts["norms"],
        "problems": {p["kind"]: p["count"] for p in facts["problems"]},
        "files": {part["name"]: part["blake2b"] for part in facts["files"]},
        "embedding": facts["embedding"],
    }
