"""The plan of a run that workers share through a storage: written once, read by every worker and by the last step.

    <work>/plan.json   artifacts/   results/

The plan holds the spec, the identities of the inputs, and what every worker must have in common.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, NotFoundError, SpecError
from nearcast.files import fingerprint, write_text
from nearcast.join.context import RunContext, prepare
from nearcast.join.inputs import InMemoryTables, pin_versions
from nearcast.join.listener import Listener
from nearcast.join.measure_snapshot import EarlierSnapshot
from nearcast.join.run_plan import describe_changes
from nearcast.join.run_stages import make_area
from nearcast.join.shared_work import FINISHED
from nearcast.join.ship_model import ship_model
from nearcast.join.task_context import TaskContext
from nearcast.join.validate_run import open_run, refuse_out
from nearcast.runners.base import WorkArea
from nearcast.settings.run_tables import SHARD_KEYS
from nearcast.spec import GeneratorSpec
from nearcast.storage.locations import Location, absolute_location, parse_location, resolve_location
from nearcast.storage.open_storage import is_url, join_location, open_storage
from nearcast.table.snapshot import list_snapshots

__all__ = ["PLAN_OBJECT", "SharedPlan", "read_finished", "read_plan", "require_out", "write_plan"]

PLAN_OBJECT = "plan.json"
OUT_MARK = ".planned-here"  # in the folder of a generator: this is the machine that made the plan


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """A plan as it is stored."""

    work: str  # location
    plan: Mapping[str, Any]

    @property
    def area(self) -> WorkArea:
        """Return the locations of the run, with the plan."""
        return WorkArea(join_location(self.work, "artifacts"), join_location(self.work, "results"), self.plan)

    @property
    def generator(self) -> str:
        """Return the name of the generator."""
        return str(self.plan["spec"]["name"])


def write_plan(
    spec: GeneratorSpec,
    base: Path,
    work: Location,
    *,
    earlier: EarlierSnapshot,
    listener: Listener,
) -> SharedPlan:
    """Check the settings, identify the inputs, and write the plan unless an equal one is there.

    A finished plan is opened again if its snapshot is not the newest one any more: the run is wanted again.
    Raises the errors of a run that need no rows; SpecError if another plan is at this location.
    """
    root = absolute_location(parse_location(work))
    spec = pin_versions(spec, base)
    _refuse_input_folder(spec, base, root)
    area = SharedPlan(root, {}).area
    refuse_out(parse_location(root), "the location of the plan", works_here=False)
    refuse_out(resolve_location(base, spec.out), works_here=False)
    run = prepare(spec, base, listener, artifacts=area.artifacts, results=area.results)
    opened = open_run(run, InMemoryTables())
    context = TaskContext(run, opened.plan)
    context.earlier = None if earlier.snapshot is None else earlier.snapshot.version
    facts = {**make_area(context).plan, "earlier_is_served": earlier.served}
    if is_url(root) and not is_url(facts["out"]):
        facts |= _mark_out(run, listener)
    storage = open_storage(root)
    ship_model(spec, run.workspace.base, run.results)
    text = json.dumps(facts, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if not storage.create(PLAN_OBJECT, text.encode()):
        _refuse_other_plan(read_plan(work), facts)
        if read_finished(root):
            _reopen(run, root, text, opened.plan.fingerprint)
        else:
            listener.note(f"an equal plan is at {root} already: its finished tasks are used")
    return read_plan(work)


def _reopen(run: RunContext, root: str, text: str, planned: str) -> None:
    """Open a finished plan again, unless its snapshot is the newest. text: the plan, with the earlier snapshot of now.

    Its tasks were removed when it was finished.
    """
    snapshots = list_snapshots(run.workspace.out, run.spec.name)
    if snapshots and snapshots[-1].manifest.fingerprint == planned:
        run.listener.note(f"the run at {root} is finished: its snapshot is {snapshots[-1].url}")
        return
    storage = open_storage(root)
    storage.write(PLAN_OBJECT, text.encode())
    storage.delete(FINISHED)
    run.listener.note(f"the run at {root} was finished, and its snapshot is not the newest: it is planned again")


def read_finished(work: Location) -> dict[str, Any]:
    """Read what the last step recorded about a plan: its snapshot and version. Empty for an unfinished plan."""
    try:
        found = json.loads(open_storage(absolute_location(parse_location(work))).read(FINISHED))
    except (NotFoundError, ValueError):
        return {}
    return dict(found) if isinstance(found, dict) else {}


def _mark_out(run: RunContext, listener: Listener) -> dict[str, Any]:
    """Mark the local `out` of a plan whose work is in a bucket. Return what the plan says of it.

    The snapshot can be gathered where the mark is. Workers elsewhere cannot read the snapshots there.
    """
    mark = run.workspace.home / OUT_MARK
    mark.parent.mkdir(parents=True, exist_ok=True)
    if not mark.is_file():
        write_text(mark, secrets.token_hex(8))
    listener.note(
        f"out is {run.workspace.out}, a folder of this machine: gather here. The lists are not compared with an "
        "earlier snapshot, which workers elsewhere cannot read; with `out` in a bucket they are"
    )
    return {"out_mark": mark.read_text(encoding="utf-8"), "earlier": None}


def require_out(shared: SharedPlan, run: RunContext) -> None:
    """Raise SpecError if the plan's `out` is a folder of another machine."""
    expected, mark = shared.plan.get("out_mark"), run.workspace.home / OUT_MARK
    if expected is not None and (not mark.is_file() or mark.read_text(encoding="utf-8") != expected):
        raise SpecError(
            f"the snapshot goes to {shared.plan['out']}, a folder of the machine that made the plan; gather there, or "
            "plan with `out` in a bucket"
        )


def read_plan(work: Location) -> SharedPlan:
    """Read the plan at a location. Raises NotFoundError if there is none."""
    root = absolute_location(parse_location(work))
    try:
        facts = json.loads(open_storage(root).read(PLAN_OBJECT))
        SharedPlan(root, facts).generator, facts["parts"], facts["out"], facts["earlier"]
    except NotFoundError:
        raise NotFoundError(f"no plan at {root}; `nearcast plan SPEC --work {root}` writes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{root}/{PLAN_OBJECT} cannot be read ({error}); remove it and plan again") from error
    return SharedPlan(root, facts)


def _refuse_input_folder(spec: GeneratorSpec, base: Path, root: str) -> None:
    """Raise SpecError for a location in a folder of inputs: the Parquet files of the run would be read as rows."""
    for table in (spec.items, spec.queries):
        path = "" if table is None else table.folder
        folder = path and absolute_location(resolve_location(base, path)).rstrip("/")
        if folder and f"{root}/".startswith(f"{folder}/"):
            raise SpecError(
                f"{root} is in the inputs {folder}, so that files of the run would be read as rows; choose a location "
                "outside"
            )


def _refuse_other_plan(found: SharedPlan, facts: Mapping[str, Any]) -> None:
    """Raise SpecError if the stored plan has another result than this one."""
    old, new = dict(found.plan["parts"]), json.loads(json.dumps(facts["parts"]))
    if fingerprint(old) != fingerprint(new):
        changes = "; ".join(describe_changes(old, new))
        raise SpecError(
            f"{found.work} holds the plan of another run ({changes}); choose an empty location, or remove it"
        )
    for what, before, after in (
        ("out", found.plan["out"], facts["out"]),
        *(
            (f"run.{key}", found.plan["spec"]["run"].get(key), facts["spec"]["run"].get(key))
            for key in (*SHARD_KEYS, "incremental")
        ),
    ):
        if before != after:
            raise SpecError(
                f"{found.work} holds a plan with {what} = {before!r}, and this one has {after!r}; choose an empty "
                "location, or remove it"
            )
