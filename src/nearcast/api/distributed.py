"""Functions for runs that several hosts share through a storage: plan, and gather the snapshot at the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nearcast.api.arguments import SpecLike, resolve_spec
from nearcast.api.runs import finish_run, read_baseline
from nearcast.api.shared_runs import finish_plan
from nearcast.errors import TargetError
from nearcast.join.listener import Listener
from nearcast.join.run import Outcome, gather
from nearcast.join.shared_plan import SharedPlan, read_plan, write_plan
from nearcast.publishing.targets import read_snapshot_target
from nearcast.storage.locations import Location, parse_location, resolve_location
from nearcast.table.snapshot import Snapshot, list_snapshots

if TYPE_CHECKING:
    from nearcast.runners.base import Runner

__all__ = ["gather_run", "plan_run"]


def plan_run(
    spec: SpecLike, work: Location, *, base: str | Path | None = None, listener: Listener | None = None
) -> SharedPlan:
    """Check the settings and identify the inputs of a run, and write its plan to the location `work`.

    An equal plan that is there already is kept, with its finished tasks; a finished one is opened again unless its
    snapshot is the newest. Raises SpecError if another plan is there.
    """
    parsed, folder = resolve_spec(spec, base, None, None)
    listener = listener or Listener()
    out = resolve_location(folder, parsed.out)
    earlier = read_baseline(out, parsed.name, listener).choose(list_snapshots(out, parsed.name))
    return write_plan(parsed, folder, work, earlier=earlier, listener=listener)


def gather_run(work: Location, *, runner: Runner | None = None, listener: Listener | None = None) -> Outcome:
    """Run the tasks of a plan that are not done, and commit the snapshot.

    runner: runs those tasks; by default this process. If the snapshot is committed already, it is returned.
    Raises TargetError if the snapshot is below its recall target; it is kept.
    """
    shared, listener = read_plan(parse_location(work)), listener or Listener()
    out = parse_location(shared.plan["out"])
    try:
        outcome = gather(shared, listener, partial(finish_plan, work), runner)
    except TargetError as error:
        if isinstance(error.snapshot, Snapshot):
            finish_run(read_snapshot_target(error.snapshot.generator, out), error.snapshot, listener)
        raise
    finish_plan(work, outcome.snapshot)
    if not outcome.reused:
        finish_run(read_snapshot_target(outcome.snapshot.generator, out), outcome.snapshot, listener)
    return outcome
