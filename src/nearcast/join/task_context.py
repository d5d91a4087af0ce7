"""The values that a task function gets: the run on this host, the plan, and inputs that only the driver may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nearcast.errors import InputError
from nearcast.join.context import RunContext
from nearcast.join.inputs import InMemoryTables
from nearcast.join.run_plan import RunPlan, describe_changes
from nearcast.join.validate_run import OpenedRun, open_run
from nearcast.spec import GeneratorSpec

__all__ = ["TaskContext"]


@dataclass(slots=True)
class TaskContext:
    """A run as a worker sees it. One object per process and run; it keeps what several tasks open."""

    run: RunContext
    plan: RunPlan
    tables: InMemoryTables = field(default_factory=InMemoryTables)  # of the driver; empty in other processes
    earlier: int | None = None  # version of the snapshot that the measures of change compare with
    opened: OpenedRun | None = None
    planned: GeneratorSpec | None = None  # the spec without the limits of this host; None: the run's own
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def measure_name(self) -> str:
        """Return the name of the task that measures the snapshot: it depends on the earlier one."""
        return f"measure/{self.earlier or 0:06d}"

    @property
    def spec(self) -> GeneratorSpec:
        """Return the spec as the user wrote it."""
        return self.planned or self.run.spec

    def open_sources(self) -> OpenedRun:
        """Open the inputs, or return the ones that the driver has opened.

        Raises InputError if they differ from those that the run was planned for.
        """
        if self.opened is None:
            opened = open_run(self.run, self.tables)
            if opened.plan.fingerprint != self.plan.fingerprint:
                changes = "; ".join(describe_changes(dict(self.plan.parts), dict(opened.plan.parts)))
                raise InputError(
                    f"the inputs differ from those that the run was planned for ({changes}); plan again, at an empty "
                    "location"
                )
            self.opened = opened
        return self.opened
