"""The index of the last full join, which incremental runs use again for the items that are still there.

    reserve-<fingerprint>/index/   now.npy: position of each indexed item among the items of the run, -1 for none

Each incremental run writes the positions for the next one. A missing or damaged index is no error: it is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.engines.base import Index, IndexSpec
from nearcast.errors import DamagedError, NotFoundError
from nearcast.files import verify
from nearcast.join.reserves import name_reserves, open_request
from nearcast.join.run_mode import read_base
from nearcast.join.run_tasks import open_prepared
from nearcast.join.task_context import TaskContext
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["move_index", "open_earlier_index"]

NOW = "now.npy"


def move_index(context: TaskContext, base: Mapping[str, Any], now: IntArray) -> None:
    """Store the positions that the items of the last full join have in this run.

    base: the record of the last reserves. now: (items of the last run,) their positions in this run, -1 for none.
    """
    if base.get("index") is None:
        return
    if base["index"]["moved"] is not None:
        try:
            earlier = _read_positions(context, base["index"]["moved"])
        except (NotFoundError, DamagedError):
            return  # the index has no positions from now on, until the next full join
        now = np.where(earlier == EMPTY_POSITION, EMPTY_POSITION, now[np.maximum(earlier, 0)])

    def write(folder: Path) -> dict[str, Any]:
        np.save(folder / NOW, now)
        return {"items": len(now)}

    context.run.artifacts.commit(f"{name_reserves(context, base['name'])}/index", write)


def open_earlier_index(context: TaskContext) -> tuple[Index, IntArray] | None:
    """Return the index of the last full join, and the positions of the items that are not in it.

    None if there is no such index: on several item shards, under rules, for an engine that cannot move its items, and
    where files are missing or damaged.
    """
    run, base, prepared = context.run, read_base(context), open_prepared(context)
    if base.get("index") is None or prepared.shards is not None:
        return None
    if open_request(context).constraints.eligibility is not None:
        return None
    vectors, spec = prepared.inputs.items.vectors, IndexSpec(prepared.inputs.metric, run.settings, run.spec.seed)
    try:
        now = _read_positions(context, f"{name_reserves(context, base['name'])}/index")
        folder = run.artifacts.open(base["index"]["name"])
        verify(folder, contents=False)
        index = run.engine.open_moved(folder, vectors, spec, now)
    except (NotFoundError, DamagedError):
        return None
    if index is None:
        return None
    is_indexed = np.zeros(vectors.n, np.bool_)
    is_indexed[now[now >= 0]] = True
    return index, np.flatnonzero(~is_indexed)


def _read_positions(context: TaskContext, name: str) -> IntArray:
    folder = context.run.artifacts.open(name)
    verify(folder, contents=True)
    return map_array(folder / NOW)
