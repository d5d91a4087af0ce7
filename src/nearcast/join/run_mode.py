"""Whether a run is incremental, as its tasks decided. `compare_stage` and `accept_stage` take the decisions."""

from __future__ import annotations

from typing import Any

from nearcast.join.task_context import TaskContext

__all__ = ["ACCEPT", "COMPARE", "begins_incremental", "describe_mode", "joins_in_full", "read_base"]

COMPARE, ACCEPT = "compare", "accept"  # names of the tasks


def begins_incremental(context: TaskContext) -> bool:
    """Return whether the run updates the lists of the last snapshot. The result may still be refused."""
    return context.run.spec.run.incremental and context.read_facts(COMPARE)["reason"] is None


def joins_in_full(context: TaskContext) -> bool:
    """Return whether all queries are joined with all items: not if updated lists were accepted."""
    return not begins_incremental(context) or context.read_facts(ACCEPT)["reason"] is not None


def read_base(context: TaskContext) -> dict[str, Any]:
    """Return the record of the reserves that an incremental run updates."""
    base: dict[str, Any] = context.read_facts(COMPARE)["base"]
    return base


def describe_mode(context: TaskContext) -> dict[str, Any] | None:
    """Return facts for the manifest: incremental or not and why, changes of both tables, lists updated and joined."""
    if not context.run.spec.run.incremental:
        return None
    compared = context.read_facts(COMPARE)
    facts = {"incremental": False, "reason": compared["reason"], "changes": compared["changes"], "lists": None}
    if compared["reason"] is None:
        accepted = context.read_facts(ACCEPT)
        facts["incremental"], facts["reason"] = accepted["reason"] is None, accepted["reason"]
        facts["lists"] = accepted["lists"]
    return facts
