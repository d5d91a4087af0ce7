"""Tables that are ingested by tasks of several processes: the bytes of one process, through kills and changes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from nearcast.errors import InputError
from nearcast.join.context import RunContext
from nearcast.join.listener import Listener
from nearcast.runners import make_runner
from nearcast.sources.stage_rows import StageSettings

N, RANGE_ROWS, UNIT_ROWS = 900, 200, 150
INGEST_STAGES = ("sample", "bounds", "split", "resplit", "range", "tables")

DRIVER = """
import os, signal, sys
import nearcast, test_ingest_stages as case
from nearcast.join.listener import Listener

class KilledAt(Listener):
    def progress(self, stage, done, total):
        if stage == sys.argv[2] and done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

case.cut_into_ranges()
nearcast.run(case.SPEC, base=sys.argv[1], runner="processes", workers=2, listener=KilledAt())
"""

SPEC = {
    "name": "test",
    "metric": "inner_product",
    "k": 4,
    "engine": "exact",
    "checks": {"wrong_dimension": "drop", "duplicate_id": "drop", "null_vector": "keep", "null_id": "drop"},
    "items": {"path": "items", "attributes": ["price"]},
    "queries": {"path": "queries.parquet"},
}


def cut_into_ranges(settings=setattr):
    """Let this process cut tables of a few hundred rows into ranges; the survey tells the workers."""

    def stage_settings(run):
        folder = run.workspace.artifacts
        return StageSettings(run.read_bytes, 1, folder, range_rows=RANGE_ROWS, unit_rows=UNIT_ROWS)

    settings(RunContext, "stage_settings", property(stage_settings))


def write_tables(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    vectors = [list(row) for row in rng.normal(size=(N, 5)).astype(np.float32)]
    vectors[300] = vectors[300][:2]  # the first of a unit
    vectors[7] = None
    ids: list[str | None] = [f"item-{i}" for i in rng.permutation(N)]
    ids[20], ids[700], ids[701] = None, ids[3], ids[650]
    table = pa.table({"id": ids, "vector": pa.array(vectors, pa.list_(pa.float32())), "price": rng.normal(size=N)})
    (folder / "items").mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, N, 300)):
        pq.write_table(table.slice(start, 300), folder / "items" / f"{part}.parquet", row_group_size=50)
    queries = [list(row) for row in rng.normal(size=(40, 5)).astype(np.float32)]
    pq.write_table(pa.table({"id": list(range(40)), "vector": queries}), folder / "queries.parquet")


def hash_artifacts(out: Path) -> dict[str, str]:
    artifacts = out / "test" / "artifacts"
    return {
        path.relative_to(artifacts).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(artifacts.rglob("*"))
        if path.is_file() and path.relative_to(artifacts).parts[0].startswith(("items-", "queries-"))
    }


def candidates(snapshot):
    return pa.concat_tables([pq.read_table(path) for path in sorted((snapshot.folder / "candidates").glob("*"))])


@pytest.fixture
def local(tmp_path: Path, monkeypatch):
    """A local run over ranges, and the hashes of its artifacts."""
    write_tables(tmp_path)
    cut_into_ranges(monkeypatch.setattr)
    snapshot = nearcast.run(SPEC | {"out": "local"}, base=tmp_path).snapshot
    return snapshot, hash_artifacts(tmp_path / "local")


def test_the_tasks_of_two_processes_write_the_artifacts_of_one(local, tmp_path):
    stages = []

    class Told(Listener):
        def progress(self, stage, done, total):
            stages.append(stage)

    with closing(make_runner("processes", 2)) as runner:
        snapshot = nearcast.run(SPEC, base=tmp_path, runner=runner, listener=Told()).snapshot
    assert [stage for stage in dict.fromkeys(stages) if stage in INGEST_STAGES] == list(INGEST_STAGES)
    assert hash_artifacts(tmp_path / "nearcast") == local[1]
    assert candidates(snapshot).equals(candidates(local[0]))
    assert snapshot.manifest.as_dict()["inputs"] == local[0].manifest.as_dict()["inputs"]
    assert snapshot.manifest.as_dict()["inputs"]["items"]["problems"]


@pytest.mark.parametrize("stage", ["sample", "split", "range"])
def test_a_driver_that_is_killed_in_a_stage_of_ingestion_is_continued(stage, local, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), stage]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL
    work = tmp_path / "nearcast" / "test" / "work"
    before = {path: path.stat().st_mtime_ns for path in work.glob(f"{stage}/items/*/manifest.json")}
    assert len(before) >= 2
    notes = []

    class Told(Listener):
        def note(self, text):
            notes.append(text)

    snapshot = nearcast.run(SPEC, base=tmp_path, runner="processes", workers=2, listener=Told()).snapshot
    assert any("tasks were done before: continuing" in text for text in notes)
    assert hash_artifacts(tmp_path / "nearcast") == local[1]
    assert candidates(snapshot).equals(candidates(local[0]))


@pytest.mark.parametrize("stage", ["sample", "bounds"])
def test_a_file_that_changes_between_two_stages_stops_the_run(stage, local, tmp_path):
    class Changes(Listener):
        def progress(self, name, done, total):
            if name == stage and done == total:
                path = tmp_path / "items" / "2.parquet"
                table = pq.read_table(path)
                pq.write_table(table.slice(1), path, row_group_size=50)

    with pytest.raises(InputError, match=r"items/2\.parquet changed while it was read; run again"):
        nearcast.run(SPEC, base=tmp_path, runner="processes", workers=2, listener=Changes())
    names = [path.name for path in (tmp_path / "nearcast" / "test" / "artifacts").glob("items-*")]
    assert not any(name.startswith("items-") and not name.endswith("-ranges") for name in names)


def test_bad_rows_stop_the_run_with_the_words_of_a_local_run(local, tmp_path):
    strict = SPEC | {"checks": {}}
    texts = []
    for more in ({"out": "one"}, {"out": "two", "runner": "processes"}):
        options = {key: more[key] for key in more if key == "runner"}
        with pytest.raises(InputError, match="the inputs did not pass the checks") as failed:
            nearcast.run(strict | {"out": more["out"]}, base=tmp_path, **options)
        texts.append(str(failed.value))
    assert texts[0] == texts[1]
    assert texts[0].count("rows have") + texts[0].count("row has") == 4
