"""Stages that read or write in several steps count every row once, and end at their total."""

from __future__ import annotations

import numpy as np
import pytest

from builders import generator, source_spec, write_parquet
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.open_source import open_source
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.storage.artifacts import LocalArtifacts


@pytest.mark.parametrize(("range_rows", "threads"), [(1 << 20, 1), (2000, 1), (2000, 3)])
def test_ingestion_counts_every_row_of_every_stage_once(range_rows, threads, tmp_path):
    for part in range(3):
        ids = list(range(part * 3000, part * 3000 + 3000))
        write_parquet(tmp_path / "parts" / f"{part}.parquet", ids, list(np.ones((3000, 64), np.float32)))
    told = {}
    source = open_source(source_spec("parts"), tmp_path)

    def note(stage, done, total):
        told.setdefault(stage, []).append((done, total))

    settings = StageSettings(1 << 20, threads, tmp_path, range_rows)
    staged = stage_table(source, generator(), settings, "items", note)
    ingest_staged(
        staged, "items-1", LocalArtifacts(tmp_path / "made"), {"dim": 64, "dtype": "float32"},
        memory_bytes=1 << 20, table="items", progress=note,
    )  # fmt: skip
    assert set(told) == {"check items", "read items"} | ({"sample items"} if range_rows < 9000 else set())
    for steps in told.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1] == (9000, 9000)
    assert len(told["read items"]) > 4
