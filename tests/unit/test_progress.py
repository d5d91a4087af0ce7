"""Stages that read their input several times count all of it, and end at their total."""

from __future__ import annotations

import numpy as np

from builders import generator, source_spec, write_parquet
from nearcast.sources.ingest import ingest
from nearcast.sources.open_source import open_source
from nearcast.sources.scan_rows import scan_rows, select_rows


def test_reading_in_several_ranges_counts_each_pass_once(tmp_path):
    path = write_parquet(tmp_path / "items.parquet", list(range(9000)), list(np.ones((9000, 64), np.float32)))
    told = []
    source = open_source(source_spec(path), tmp_path)
    seen = scan_rows(source, memory_bytes=1 << 20, table="items")
    kept = select_rows(seen, generator())
    ingest(
        seen, kept, tmp_path / "side", {}, memory_bytes=1 << 20, table="items", progress=lambda *step: told.append(step)
    )
    done = [step[1] for step in told]
    assert done == sorted(set(done))
    assert done[-1] == told[-1][2] > 2 * 9000
