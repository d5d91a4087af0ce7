"""Sample queries of the static page, with their lists in the newest two snapshots.

Random queries, those with the lowest recall (recorded by the run), the shortest lists, and the most changed lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nearcast.dashboard.list_explorer import RemovedItems, compare_key, list_display_columns, read_labels
from nearcast.errors import NearcastError
from nearcast.storage.locations import Location
from nearcast.table.snapshot import Snapshot, list_snapshots

__all__ = ["WHY", "sample_queries"]

LOOKED_THROUGH = 2_000  # rows among which the shortest and the most changed lists are found
WHY: Mapping[str, str] = {
    "worst": "lowest recall",
    "short": "shortest list",
    "changed": "most changed",
    "random": "drawn at random",
}


def sample_queries(out: Location, name: str, each: int, removal: RemovedItems | None = None) -> dict[str, Any] | None:
    """Return up to `each` queries of every kind, with their lists now and before; None if there is no snapshot."""
    snapshots = list_snapshots(out, name)
    if not snapshots:
        return None
    now, before = snapshots[-1], snapshots[-2] if len(snapshots) > 1 else None
    try:
        picked = dict(_pick_keys(now, before, each))
        labels = read_labels(now, list(picked))
        columns = list_display_columns(now)
        queries = [
            {"label": labels.get(key, ""), "why": why} | compare_key(now, before, key, columns, removal)
            for key, why in picked.items()
        ]
    except NearcastError:  # a damaged snapshot: the page shows everything else
        return None
    return {
        "now": now.name,
        "before": before.name if before else None,
        "columns": list(columns),
        "queries": queries,
    }


def _pick_keys(now: Snapshot, before: Snapshot | None, each: int) -> Iterator[tuple[Any, str]]:
    """Yield keys and why they were picked. The last reason of a key counts, so the most important kind comes last."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(now.n_rows, min(now.n_rows, LOOKED_THROUGH), replace=False))
    table = now.rows(rows)
    keys, lengths = table.column("query_id").to_pylist(), table.column("length").to_numpy()
    yield from ((keys[row], WHY["random"]) for row in rng.permutation(len(keys))[:each])
    if before is not None:
        yield from ((key, WHY["changed"]) for key in _find_most_changed(table, before, each))
    short = np.argsort(lengths, kind="stable")[:each]
    k = now.manifest.k
    yield from ((keys[row], WHY["short"]) for row in short if lengths[row] < k)
    worst = now.manifest.worst_queries
    yield from ((row["query"], f"{WHY['worst']}, {row['recall']:.0%}") for row in worst[:each])


def _find_most_changed(table: Any, before: Snapshot, each: int) -> list[Any]:
    """Return the keys of these rows whose lists have the smallest overlap with the older snapshot."""
    keys = table.column("query_id").to_pylist()
    if not keys or table.schema.field("query_id").type != before.lists_between(None, keys[0]).schema.field(0).type:
        return []
    older = before.lists_between(keys[0], None)
    sampled = set(keys)
    old = {
        key: set(ids)
        for key, ids in zip(older.column(0).to_pylist(), older.column(1).to_pylist(), strict=True)
        if key in sampled
    }
    shares = [
        (len(old[key] & set(ids)) / max(1, len(old[key])), row)
        for row, (key, ids) in enumerate(zip(keys, table.column("candidate_ids").to_pylist(), strict=True))
        if key in old
    ]
    return [keys[row] for _, row in sorted(shares)[:each]]
