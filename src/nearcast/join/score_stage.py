"""The stages `terms` and `score`: check the score terms, then write each range of both scored tables, a task per range.

Runs without score terms have no such tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast.join.run_tasks import ingested_names, open_ingested
from nearcast.join.score_terms import ScoreTerms, check_score_terms, plan_scored_tables, write_scored_range
from nearcast.join.task_context import TaskContext
from nearcast.runners.base import TaskCall

__all__ = ["do_score", "do_terms", "list_score_calls", "list_terms_calls"]


def list_terms_calls(context: TaskContext) -> list[TaskCall]:
    """Return the call, if the spec has score terms."""
    return [TaskCall("terms", "terms", {})] if context.run.spec.score.columns else []


def do_terms(context: TaskContext, _args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Check the score terms of all items; return the largest addend."""
    terms = check_score_terms(context.run.spec, open_ingested(context))
    assert terms is not None
    return {"largest": terms.largest if math.isfinite(terms.largest) else None}  # a table without items has none


def list_score_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per range of both tables."""
    if not context.run.spec.score.columns:
        return []
    names = dict(zip(("items", "queries"), ingested_names(context), strict=True))
    ranges = [(kind, number) for kind, name in names.items() for number in range(_count_ranges(context, name))]
    return [
        TaskCall(f"score/{call:06d}", "score", {"table": kind, "range": number})
        for call, (kind, number) in enumerate(ranges)
    ]


def do_score(context: TaskContext, args: Mapping[str, Any], _folder: Path) -> dict[str, Any]:
    """Write one range of a scored table."""
    run, inputs = context.run, open_ingested(context)
    facts = run.results.facts("terms")
    assert facts is not None, "task terms is not finished"
    terms = ScoreTerms(run.spec.score, -math.inf if facts["largest"] is None else float(facts["largest"]))
    items, queries = plan_scored_tables(inputs, terms)
    write_scored_range({"items": items, "queries": queries}[args["table"]], int(args["range"]), run.artifacts)
    return {}


def _count_ranges(context: TaskContext, name: str) -> int:
    """Return the number of ranges of a table, from its facts."""
    facts = context.run.artifacts.facts(name)
    assert facts is not None, name
    return len(facts["ranges"]["names"]) if "ranges" in facts else 1
