"""Folders of small snapshots that were never committed, for tests of homes, which do not look into the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.table.candidate_schema import candidate_schema, rows_per_group
from nearcast.table.snapshot_home import SnapshotHome
from nearcast.table.write_table import GROUPS_PER_FILE

K = 4


def write_snapshot_folder(folder: Path, *, n: int = 20, seed: int = 0, files_of: int | None = None) -> Path:
    """Candidates of the queries q0000.. among the items i0000.., the items, and a sketch.

    files_of: rows of one file of candidates, of several row groups; default: one file.
    """
    rng = np.random.default_rng(seed)
    ids = [f"q{row:06d}" for row in range(n)]
    lists = [[f"i{item:04d}" for item in rng.choice(50, K, replace=False)] for _ in ids]
    schema = candidate_schema(pa.string(), pa.string())
    table = pa.table(
        {
            "query_id": ids,
            "candidate_ids": lists,
            "scores": [sorted(rng.random(K).astype(np.float32).tolist(), reverse=True) for _ in ids],
            "length": [K] * n,
            "reason": [None] * n,
        }
    ).cast(schema)
    rows = rows_per_group(K) * GROUPS_PER_FILE if files_of is None else files_of
    group = rows_per_group(K) if files_of is None else max(1, files_of // 4)
    (folder / "candidates").mkdir(parents=True)
    for number, start in enumerate(range(0, n, rows)):
        path = folder / "candidates" / f"part-{number:05d}.parquet"
        pq.write_table(table.slice(start, rows), path, row_group_size=group)
    (folder / "items").mkdir()
    items = pa.table({"id": [f"i{item:04d}" for item in range(50)], "name": [f"item {item}" for item in range(50)]})
    pq.write_table(items, folder / "items" / "part-00000.parquet")
    (folder / "sketch").mkdir()
    pq.write_table(pa.table({"id": ["i0000"], "vector": [[1.0, 0.0]]}), folder / "sketch" / "items.parquet")
    return folder


def snapshot_facts(fingerprint: str, *, n: int = 20) -> dict[str, Any]:
    """The facts of a manifest, as many as a snapshot needs to be opened."""
    return {
        "generator": "shop",
        "version": 0,
        "rows": n,
        "fingerprint": fingerprint,
        "spec": {"k": K, "metric": "cosine", "items": {"display": ["name"]}},
        "inputs": {},
        "engine": {"name": "exact", "settings": {}, "effort": {}},
        "artifacts": [],
        "measures": {"recall": 1.0},
        "promise": {"recall": 1.0, "kept": True, "reason": None},
        "run": {"created": "2026-11-27T20:00:00Z", "seconds_total": 1.0},
    }


def remove_snapshot(home: SnapshotHome, generator: str, version: int) -> bool:
    """Remove a snapshot as retention does. Return False if somebody holds it."""
    if not home.hide(generator, version):
        return False
    home.remove_hidden(generator, version)
    return True
