"""The figures that the rules of the audit compare, and their findings. Plain values; computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.spec import AuditSpec

__all__ = [
    "NOTHING_CURRENT",
    "AuditFigures",
    "AuditRule",
    "CurrentFigures",
    "CurrentInputs",
    "Finding",
    "ValueChange",
    "VectorChange",
]

NOTHING_CURRENT = "nothing is current to compare with"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one audit rule."""

    rule: str
    measure: str
    bound: float | None
    found: float | None  # None: no current version to compare with
    passed: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ValueChange:
    """The change of one column, over sampled items or queries that are in both versions."""

    compared: int  # rows that have a value in both
    share: float  # rows that changed
    scaled: bool  # numbers: changed by a factor of 3 or more in one direction; other columns: another value
    example: str  # for example: 'DE' -> 'de'


@dataclass(frozen=True, slots=True)
class VectorChange:
    """The change of the vectors of one table, over sketched ids that are in both snapshots."""

    compared: int
    share: float  # ids with another vector
    dims: tuple[int, int]  # current and new


@dataclass(frozen=True, slots=True)
class CurrentInputs:
    """The inputs of the current version, compared with those of the snapshot."""

    items: int
    items_kept: float  # share of its items that are in the snapshot
    elapsed_seconds: float  # between the two runs
    profile: Mapping[str, Any] | None  # None: made by an older nearcast
    changes: Mapping[tuple[str, str], ValueChange]  # by table and column
    vectors: Mapping[str, VectorChange]  # by table; empty if the folder of the current snapshot is missing


@dataclass(frozen=True, slots=True)
class CurrentFigures:
    """The current version, and a comparison over a sample of its keys."""

    name: str  # for example 000006
    keys: int
    payload_bytes: int
    sampled: int  # keys in the sample
    kept: int  # sampled keys that are in the snapshot
    overlap: float  # mean share of a current list that is in the snapshot's list
    compared: int  # keys with a current list: the overlap is their mean
    inputs: CurrentInputs | None = None  # None: not gathered


@dataclass(frozen=True, slots=True)
class AuditFigures:
    """The figures of a snapshot that the rules compare."""

    name: str
    k: int
    measures: Mapping[str, float]
    recall_target: float
    target_met: bool  # by the run's own check
    keys: int
    payload_bytes: int
    age_seconds: float  # negative if a clock went backwards
    rolled_back: bool
    current: CurrentFigures | None
    items: int = 0
    metric: str = ""
    profile: Mapping[str, Any] | None = None  # of its inputs; None: made by an older nearcast
    rule_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by table: columns that rules compare
    labels: Evaluation | None = None  # None: no labels
    promises: Mapping[str, float] = field(default_factory=dict)  # by metric of the labels


@dataclass(frozen=True, slots=True)
class AuditRule:
    """A row of the table of audit rules."""

    name: str
    settings: tuple[str, ...]  # of the spec's [audit] table
    meaning: str
    find: Callable[[AuditFigures, AuditSpec], Finding]
