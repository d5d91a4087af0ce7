"""Incremental runs that are killed at many moments and run again end with the bytes of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.crash.test_killed_runs import ended, start, write_generator

from nearcast.table.snapshot import list_snapshots


def pass_night(folder: Path) -> None:
    """Change a few vectors, and give some rows new ids."""
    rng = np.random.default_rng(3)
    for name, share in (("items", 0.02), ("queries", 0.01)):
        table = pq.read_table(folder / f"{name}.parquet")
        vectors = table.column("vector").combine_chunks().flatten().to_numpy().reshape(len(table), 32).copy()
        rows = rng.choice(len(table), int(share * len(table)), replace=False)
        vectors[rows] = rng.standard_normal((len(rows), 32))
        ids = table.column("id").to_pylist()
        for row in rows[::2]:
            ids[row] = f"{ids[row]}-new"
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
        pq.write_table(pa.table({"id": ids, "vector": column}), folder / f"{name}.parquet")


def second_snapshot(spec: Path) -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the files of the second snapshot, and the manifest's facts of how it was made."""
    made = list_snapshots(spec.parent / "nearcast", "g")[-1]
    assert made.version == 2
    files = {path.name: path.read_bytes() for path in sorted((made.folder / "candidates").glob("*.parquet"))}
    return files, dict(made.manifest.run.incremental or {})


@pytest.mark.parametrize(
    ("engine", "kills"),
    [
        ("exact", 5),
        pytest.param("exact", 30, marks=pytest.mark.slow),
        pytest.param("dense", 30, marks=pytest.mark.slow),
    ],
)
def test_an_incremental_run_killed_at_many_moments_ends_with_the_same_bytes(tmp_path: Path, engine: str, kills: int):
    undisturbed = write_generator(tmp_path / "undisturbed", engine)
    undisturbed.write_text(f"{undisturbed.read_text()}[run]\nincremental = true\n")
    assert ended(start(undisturbed)) == 0
    shutil.copytree(undisturbed.parent, tmp_path / "killed")
    killed = tmp_path / "killed" / undisturbed.name
    for spec in (undisturbed, killed):
        pass_night(spec.parent)
    began = time.monotonic()
    assert ended(start(undisturbed)) == 0
    lasts = time.monotonic() - began
    files, facts = second_snapshot(undisturbed)
    assert facts["incremental"], facts["reason"]

    moments, evening = random.Random(7), tmp_path / "evening"
    shutil.copytree(killed.parent / "nearcast", evening)
    done = 0
    while done < kills:
        process = start(killed)
        if ended(process, timeout=moments.uniform(0.05, 1.0) * lasts) is None:
            process.kill()
            process.join()
            done += 1
        else:  # finished before its kill: begin the night again
            assert process.exitcode == 0
            assert second_snapshot(killed) == (files, facts)
            shutil.rmtree(killed.parent / "nearcast")
            shutil.copytree(evening, killed.parent / "nearcast")
    assert ended(start(killed)) == 0
    assert second_snapshot(killed) == (files, facts)
