"""The manifest of a snapshot, typed: inputs, settings and measures.

`Manifest` reads and writes the JSON of manifest.json unchanged; it keeps the keys of other versions. See
`docs/snapshot-format.md` for the keys. Knows nothing of folders.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.table.candidate_schema import rows_per_group

__all__ = ["EngineRecord", "Manifest", "RunRecord", "TargetCheck"]

REQUIRED = ("generator", "version", "rows", "fingerprint", "spec", "engine", "measures", "promise", "run", "files")


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The engine of a join, its settings and its search parameters."""

    name: str
    settings: Mapping[str, Any]
    params: Mapping[str, int]  # JSON key "effort"
    calibration: Mapping[str, Any] | None  # None where the parameters were not calibrated

    def as_dict(self) -> dict[str, Any]:
        """Return the value of the JSON key `engine`."""
        return {
            "name": self.name,
            "settings": self.settings,
            "effort": dict(self.params),
            "calibration": self.calibration,
        }


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """The recall target of a run, and whether the measured recall meets it. JSON key "promise"."""

    recall: float
    met: bool  # JSON key "kept"
    reason: str | None  # why the target is missed; None where it is met

    def as_dict(self) -> dict[str, Any]:
        """Return the value of the JSON key `promise`."""
        return {"recall": self.recall, "kept": self.met, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Time, memory, disk and machine of a run: the part of a manifest that differs between equal runs."""

    created: str  # UTC, ISO 8601
    seconds: Mapping[str, float]  # by stage
    cpu_seconds: Mapping[str, float]  # by stage, of all threads
    seconds_total: float
    peak_memory_bytes: int
    disk_bytes: int
    estimate: Mapping[str, Any]
    tasks: int
    tasks_continued: int  # done by an earlier, interrupted run
    machine: Mapping[str, Any]
    artifacts: str | None = None  # location of the artifacts of a planned run; None: they are with the snapshots
    incremental: Mapping[str, Any] | None = None  # what changed, and why all was joined; None: it was not asked for
    reserves: Mapping[str, Any] | None = None  # wider lists, for the next incremental run

    def as_dict(self) -> dict[str, Any]:
        """Return the value of the JSON key `run`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Manifest(Mapping[str, Any]):
    """The manifest of a snapshot. `facts` is its JSON; properties give the values their types.

    As a mapping it works for one more minor release, with a DeprecationWarning; `as_dict` does not warn.
    """

    facts: Mapping[str, Any]

    @property
    def generator(self) -> str:
        """Name of the generator."""
        return str(self.facts["generator"])

    @property
    def version(self) -> int:
        """Number of the snapshot."""
        return int(self.facts["version"])

    @property
    def rows(self) -> int:
        """Rows of the candidate table."""
        return int(self.facts["rows"])

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the candidate table."""
        return str(self.facts["fingerprint"])

    @property
    def software(self) -> str | None:
        """Version of nearcast that ran the join."""
        return self.facts.get("nearcast")

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as plain data, with the defaults of the version that ran it."""
        return dict(self.facts["spec"])

    @property
    def k(self) -> int:
        """Candidates per query."""
        return int(self.facts["spec"]["k"])

    @property
    def group_rows(self) -> int:
        """Rows of a row group of the candidate table; the last one may have fewer."""
        return int(self.facts.get("group_rows") or rows_per_group(self.k))

    @property
    def metric(self) -> str:
        """The metric of the spec."""
        return str(self.facts["spec"]["metric"])

    @property
    def is_ranked(self) -> bool:
        """Whether a ranking model has ordered the lists."""
        return bool(self.facts["spec"].get("rank"))

    @property
    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Files, checks and figures of `items`, and of `queries` where they are another table."""
        return dict(self.facts["inputs"])

    @property
    def engine(self) -> EngineRecord:
        """The engine of the join."""
        engine = self.facts["engine"]
        return EngineRecord(engine["name"], engine["settings"], engine["effort"], engine.get("calibration"))

    @property
    def artifacts(self) -> Sequence[str]:
        """Names of the artifact folders that the snapshot was made of."""
        return list(self.facts["artifacts"])

    @property
    def measures(self) -> Mapping[str, float]:
        """All measures by name; see docs/measures.md."""
        return dict(self.facts["measures"])

    @property
    def target(self) -> TargetCheck:
        """The recall target, and whether it is met."""
        promise = self.facts["promise"]
        return TargetCheck(float(promise["recall"]), bool(promise["kept"]), promise.get("reason"))

    @property
    def run(self) -> RunRecord:
        """Time, memory and machine of the run."""
        run = self.facts["run"]
        return RunRecord(
            created=run["created"],
            seconds=run.get("seconds", {}),
            seconds_total=float(run["seconds_total"]),
            estimate=run.get("estimate", {}),
            cpu_seconds=run.get("cpu_seconds", {}),
            peak_memory_bytes=int(run.get("peak_memory_bytes", 0)),
            disk_bytes=int(run.get("disk_bytes", 0)),
            tasks=int(run.get("tasks", 0)),
            tasks_continued=int(run.get("tasks_continued", 0)),
            artifacts=run.get("artifacts"),
            incremental=run.get("incremental"),
            reserves=run.get("reserves"),
            machine=run.get("machine", {}),
        )

    @property
    def slices(self) -> Sequence[Mapping[str, Any]]:
        """Recall by slice."""
        return self.facts.get("slices") or ()

    @property
    def worst_queries(self) -> Sequence[Mapping[str, Any]]:
        """Sampled queries with the lowest recall, the lowest first."""
        return self.facts.get("worst_queries") or ()

    @property
    def likely_metric(self) -> str | None:
        """Another metric by which the lists have a higher recall; None where there is none."""
        return self.facts.get("likely_metric")

    @property
    def ties(self) -> str | None:
        """A warning where many scores are equal."""
        return self.facts.get("ties")

    @property
    def compared_with(self) -> Mapping[str, Any] | None:
        """The earlier snapshot that measures of change compare with: version, served."""
        return self.facts.get("compared_with")

    @property
    def profile(self) -> Mapping[str, Any] | None:
        """Measures of the inputs, for the audit of the next snapshot."""
        return self.facts.get("profile")

    @property
    def overfetch(self) -> Mapping[str, Any] | None:
        """Lengths and shortages of planned over-fetch. JSON key "surplus"."""
        return self.facts.get("surplus")

    @property
    def labels(self) -> Mapping[str, Any] | None:
        """Which labels the run used, and the metrics by them; None without labels."""
        return self.facts.get("labels")

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the manifest as plain data."""
        return dict(self.facts)

    def missing_keys(self) -> list[str]:
        """Return the required keys that the manifest lacks."""
        return [key for key in REQUIRED if key not in self.facts]

    def __getitem__(self, key: str) -> Any:
        _warn()
        return self.facts[key]

    def __iter__(self) -> Iterator[str]:
        _warn()
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)


def _warn() -> None:
    warnings.warn(
        "reading Snapshot.manifest as a mapping is deprecated: use its properties, as in manifest.measures, or "
        "manifest.as_dict()",
        DeprecationWarning,
        stacklevel=3,
    )
