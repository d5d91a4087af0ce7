"""Queries that tell something, with their lists in the newest two snapshots: the explorer of a page that asks nobody.

Random ones, those with the worst recall (as the run has written down), the shortest lists, the most changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.dashboard.list_explorer import Removal, columns_shown, compared, labels_of
from nearcast.errors import NearcastError
from nearcast.table.snapshot import Snapshot, list_snapshots

__all__ = ["WHY", "telling_queries"]

LOOKED_THROUGH = 2_000  # rows among which the shortest and the most changed are found
WHY: Mapping[str, str] = {
    "worst": "lowest recall",
    "short": "shortest list",
    "changed": "most changed",
    "random": "drawn at random",
}


def telling_queries(out: Path, name: str, each: int, removal: Removal | None = None) -> dict[str, Any] | None:
    """Up to `each` queries of every kind, with their lists now and before; None where there is no snapshot."""
    snapshots = list_snapshots(out, name)
    if not snapshots:
        return None
    now, before = snapshots[-1], snapshots[-2] if len(snapshots) > 1 else None
    try:
        picked = dict(_picked(now, before, each))
        labels = labels_of(now, list(picked))
        columns = columns_shown(now)
        told = [
            {"label": labels.get(key, ""), "why": why} | compared(now, before, key, columns, removal)
            for key, why in picked.items()
        ]
    except NearcastError:  # a snapshot that is damaged: the page shows everything else
        return None
    return {
        "now": now.name,
        "before": before.name if before else None,
        "columns": list(columns),
        "queries": told,
    }


def _picked(now: Snapshot, before: Snapshot | None, each: int) -> Iterator[tuple[Any, str]]:
    """Keys and why they were picked; of a key that is picked twice the later reason counts, so the gravest is last."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(now.n_rows, min(now.n_rows, LOOKED_THROUGH), replace=False))
    table = now.rows(rows)
    keys, lengths = table.column("query_id").to_pylist(), table.column("length").to_numpy()
    yield from ((keys[place], WHY["random"]) for place in rng.permutation(len(keys))[:each])
    if before is not None:
        yield from ((key, WHY["changed"]) for key in _most_changed(table, before, each))
    short = np.argsort(lengths, kind="stable")[:each]
    k = now.manifest.k
    yield from ((keys[place], WHY["short"]) for place in short if lengths[place] < k)
    worst = now.manifest.worst_queries
    yield from ((row["query"], f"{WHY['worst']}, {row['recall']:.0%}") for row in worst[:each])


def _most_changed(table: Any, before: Snapshot, each: int) -> list[Any]:
    """The keys of these rows whose lists share least with the older snapshot's."""
    keys = table.column("query_id").to_pylist()
    if not keys or table.schema.field("query_id").type != before.lists_between(None, keys[0]).schema.field(0).type:
        return []
    older = before.lists_between(keys[0], None)
    wanted = set(keys)
    old = {
        key: set(ids)
        for key, ids in zip(older.column(0).to_pylist(), older.column(1).to_pylist(), strict=True)
        if key in wanted
    }
    shares = [
        (len(old[key] & set(ids)) / max(1, len(old[key])), place)
        for place, (key, ids) in enumerate(zip(keys, table.column("candidate_ids").to_pylist(), strict=True))
        if key in old
    ]
    return [keys[place] for _, place in sorted(shares)[:each]]
