"""The values that a task function gets: the run on this host, the plan, and inputs that only the driver may hold.

What several tasks use is opened once and kept, and its files stay in the cache of the host as long. What one task opens
may be evicted when the task ends: open files and disk do not grow with the number of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nearcast.errors import InputError, NotFoundError
from nearcast.join.context import RunContext
from nearcast.join.inputs import InMemoryTables
from nearcast.join.run_plan import RunPlan, describe_changes
from nearcast.join.validate_run import OpenedRun, open_run
from nearcast.spec import GeneratorSpec
from nearcast.storage.host_cache import CacheSession

__all__ = ["TaskContext"]

Value = TypeVar("Value")


@dataclass(slots=True)
class TaskContext:
    """A run as a worker sees it. One object per process and run; it keeps what several tasks use, until `close`."""

    run: RunContext
    plan: RunPlan
    tables: InMemoryTables = field(default_factory=InMemoryTables)  # of the driver; empty in other processes
    earlier: int | None = None  # version of the snapshot that the measures of change compare with
    opened: OpenedRun | None = None
    planned: GeneratorSpec | None = None  # the spec without the limits of this host; None: the run's own
    kept: dict[str, Any] = field(default_factory=dict)
    sessions: dict[str, CacheSession] = field(default_factory=dict)  # of the kept values that have files open

    @property
    def measure_name(self) -> str:
        """Return the name of the task that measures the snapshot: it depends on the earlier one."""
        return f"measure/{self.earlier or 0:06d}"

    @property
    def spec(self) -> GeneratorSpec:
        """Return the spec as the user wrote it."""
        return self.planned or self.run.spec

    def keep(self, key: str, open_value: Callable[[], Value]) -> Value:
        """Return a value that tasks share; open it if it is missing. Its artifacts stay in place until `drop`."""
        if key not in self.kept:
            session = CacheSession()
            try:
                with session:
                    self.kept[key] = open_value()
            except BaseException:
                session.close()
                raise
            self.sessions[key] = session
        found: Value = self.kept[key]
        return found

    def drop(self, key: str) -> None:
        """Forget a value, and let its artifacts be evicted."""
        self.kept.pop(key, None)
        if (session := self.sessions.pop(key, None)) is not None:
            session.close()

    def close(self) -> None:
        """Forget all values with open files. Small facts stay."""
        for key in list(self.sessions):
            self.drop(key)

    def read_facts(self, name: str) -> dict[str, Any]:
        """Return the facts of a finished task. Raises NotFoundError if it was removed since."""
        key = f"facts of {name}"
        if key not in self.kept:
            facts = self.run.results.facts(name)
            if facts is None:
                raise NotFoundError(f"task {name} at {self.run.results.url} is not finished, or was removed; run again")
            self.kept[key] = facts
        found: dict[str, Any] = self.kept[key]
        return found

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
