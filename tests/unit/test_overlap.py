"""Overlap of two snapshots: equal lists, shorter ones and empty ones count as the definition says, group by group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from nearcast.measure import sampled_recall
from nearcast.measure.sampled_recall import measure_overlap
from nearcast.table.candidate_schema import candidate_schema, rows_per_group
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot import Snapshot
from nearcast.table.write_table import file_name, write_file
from nearcast.types import no_progress

K = 4096  # 256 rows in a row group


def write_snapshot(folder, lists: dict[str, list[str]]) -> Snapshot:
    """Write a table with these lists, in the order of their queries."""
    (folder / "candidates").mkdir(parents=True)
    schema = candidate_schema(pa.string(), pa.string())
    rows = [
        {"query_id": key, "candidate_ids": ids, "scores": [0.0] * len(ids), "length": len(ids), "reason": None}
        for key, ids in sorted(lists.items())
    ]
    size = rows_per_group(K)
    groups = (pa.Table.from_pylist(rows[start : start + size], schema) for start in range(0, len(rows), size))
    write_file(folder / "candidates" / file_name(0), schema, size, groups)
    return Snapshot(folder, Manifest({"k": K, "rows": len(rows), "generator": "shop", "spec": {"k": K}}))


def define_overlap(old: dict[str, list[str]], new: dict[str, list[str]]) -> float:
    shares = [len(set(ids) & set(new[key])) / len(ids) for key, ids in old.items() if key in new and ids]
    return float(np.mean(shares)) if shares else 0.0


@pytest.mark.parametrize("n", [1, 255, 256, 257, 700])
@pytest.mark.parametrize("most_ranges", [1, 32])
def test_overlap_is_the_mean_share_of_each_old_list(tmp_path, monkeypatch, n, most_ranges):
    rng = np.random.default_rng(n)
    old = {f"q{row:04d}": [f"i{x}" for x in rng.choice(30, rng.integers(0, 9), replace=False)] for row in range(n)}
    new = {key: ids if rng.random() < 0.6 else ids[1:] + ["new"] * bool(rng.integers(2)) for key, ids in old.items()}
    gone = [key for key in old if rng.random() < 0.1]
    new = {key: ids for key, ids in new.items() if key not in gone} | {"q0000-new": ["i1"], "q9999": []}
    monkeypatch.setattr(sampled_recall, "MAX_RANGES", most_ranges)
    found = measure_overlap(write_snapshot(tmp_path / "1", old), write_snapshot(tmp_path / "2", new), no_progress)
    if most_ranges == 1 and n > 62:  # 64 rows are read
        assert 0.5 < found["overlap"] <= 1.0
        return
    assert found["overlap"] == pytest.approx(define_overlap(old, new), abs=1e-12)
    assert found["queries_kept"] == pytest.approx(1 - len(gone) / n)
