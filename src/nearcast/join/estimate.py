"""What a run will take: seconds by stage, peak memory, disk; and whether that fits what was given."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.errors import BudgetError

if TYPE_CHECKING:
    from nearcast.engines.base import Estimate, JoinShape

__all__ = ["RunEstimate", "estimate_run", "stop_if_too_large"]

TABLE_BYTES = 192 << 20  # working set of assembling and measuring: one row group and its ids, several times
SECONDS_PER_SLOT = 250e-9  # to turn a slot into Parquet; measured on packages, two cores
OTHER_DISK = 1 << 20  # manifests, headers of files
SMALL_TABLE_BYTES, TABLE_BYTES_PER_SLOT = 32 << 20, 192
LIBRARY_BYTES = 64 << 20  # what Arrow, BLAS and faiss load and keep when they are first used
INGEST_PER_SCAN = 1.5  # writing what a scan has read costs about half of it again


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a whole run will take."""

    seconds: Mapping[str, float]  # by stage
    memory_bytes: int  # peak of the process
    disk_bytes: int
    budget_bytes: int
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what each keeps, on a sample of pairs

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what rules keep is told by a check alone."""
        rules = {"rules": {name: dict(facts) for name, facts in self.rules.items()}} if self.rules else {}
        return rules | {
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
            "seconds_total": round(sum(self.seconds.values()), 2),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "budget_bytes": self.budget_bytes,
        }


def estimate_run(
    shape: JoinShape,
    engine: Estimate,
    *,
    exact_seconds_per_pair: float,
    sampled_queries: int,
    read_seconds: float,
    input_bytes: int,
    read_memory_bytes: int,
    base_bytes: int,
    budget_bytes: int,
) -> RunEstimate:
    """Put the parts together: reading, index, join, table and truth."""
    slots = shape.n_queries * shape.request.k
    seconds = {
        "read": read_seconds * INGEST_PER_SCAN,
        **engine.seconds,
        "table": slots * SECONDS_PER_SLOT,
        "measure": sampled_queries * shape.n_items * exact_seconds_per_pair,
    }
    memory = base_bytes + LIBRARY_BYTES + max(engine.memory_bytes, _table_memory(slots), read_memory_bytes)
    disk = input_bytes + engine.disk_bytes + slots * (12 + 14) + OTHER_DISK  # the tasks' arrays, then the table
    return RunEstimate(seconds, memory, disk, budget_bytes)


def _table_memory(slots: int) -> int:
    """Peak of assembling and measuring: a row group or all of the table, whichever is less."""
    return min(TABLE_BYTES, SMALL_TABLE_BYTES + slots * TABLE_BYTES_PER_SLOT)


def stop_if_too_large(estimate: RunEstimate, engine: str, out: Path) -> None:
    """Raise BudgetError before the work starts, not after hours of it."""
    if estimate.memory_bytes > estimate.budget_bytes:
        way_out = "raise `memory`" if engine == "exact" else 'raise `memory`, or take engine = "exact", which streams'
        raise BudgetError(
            f"{engine} will need about {_size(estimate.memory_bytes)} of memory, and the budget is "
            f"{_size(estimate.budget_bytes)}; {way_out}"
        )
    free = shutil.disk_usage(out).free
    if estimate.disk_bytes > free:
        raise BudgetError(
            f"the run will write about {_size(estimate.disk_bytes)} to {out}, and {_size(free)} are free; "
            "make room, or set `out` to another disk"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
