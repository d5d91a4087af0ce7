"""What the rules of the audit look at, and what they find. Plain values; computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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
    """What one rule has found."""

    rule: str
    measure: str
    bound: float | None
    found: float | None  # None: there was nothing to compare with
    passed: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ValueChange:
    """How the values of one column changed, of items (or queries) that are in both versions."""

    compared: int  # rows that have a value in both
    share: float  # that changed in the way that counts for the kind of the column
    scaled: bool  # of numbers: three times as much or as little, all the one way; else: another value
    example: str  # such as: 'DE' -> 'de'


@dataclass(frozen=True, slots=True)
class VectorChange:
    """How the vectors of one table changed, of sketched ids that are in both snapshots."""

    compared: int
    share: float  # whose vector is another one
    dims: tuple[int, int]  # then and now


@dataclass(frozen=True, slots=True)
class CurrentInputs:
    """The inputs of the version that is current, beside those of the snapshot."""

    items: int
    items_kept: float  # share of its items that the snapshot has too
    elapsed_seconds: float  # between the two runs
    profile: Mapping[str, Any] | None  # of the current version; None where an older nearcast made it
    changes: Mapping[tuple[str, str], ValueChange]  # by table and column
    vectors: Mapping[str, VectorChange]  # by table; empty where the current snapshot's folder is not here


@dataclass(frozen=True, slots=True)
class CurrentFigures:
    """The version that is current, and what a sample of its keys shows."""

    name: str  # such as 000006
    keys: int
    payload_bytes: int
    sampled: int  # keys that were looked at
    kept: int  # of these, keys of the snapshot too
    overlap: float  # mean share of their current lists that the snapshot has
    compared: int  # keys that the overlap is a mean of
    inputs: CurrentInputs | None = None  # None: not gathered


@dataclass(frozen=True, slots=True)
class AuditFigures:
    """The figures of a snapshot that rules look at."""

    name: str
    k: int
    measures: Mapping[str, float]
    promised: float
    kept: bool  # the run's own verdict on its promise
    keys: int
    payload_bytes: int
    age_seconds: float  # negative where a clock went backwards
    withdrawn: bool  # was rolled back from
    current: CurrentFigures | None
    items: int = 0
    metric: str = ""
    profile: Mapping[str, Any] | None = None  # of its inputs; None for a snapshot of an older nearcast
    rule_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by table: what rules compare


@dataclass(frozen=True, slots=True)
class AuditRule:
    """A row of the table of rules."""

    name: str
    settings: tuple[str, ...]  # of the spec's [audit] table
    meaning: str
    find: Callable[[AuditFigures, AuditSpec], Finding]
