"""Runs that are killed at random moments and run again end with the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.crash.processes import SERVER
from tests.crash.worker import work


def write_generator(folder: Path, engine: str) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir()
    for name, n in (("items", 6_000), ("queries", 3_000)):
        vectors = rng.standard_normal((n, 32)).astype(np.float32)
        ids = pa.array([f"{name[0]}{i:05d}" for i in rng.permutation(n)])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
        pq.write_table(pa.table({"id": ids, "vector": column}), folder / f"{name}.parquet")
    spec = folder / "generator.toml"
    recall = 1.0 if engine == "exact" else 0.8
    spec.write_text(
        f'name = "g"\nmetric = "cosine"\nk = 10\nrecall = {recall}\nengine = "{engine}"\nthreads = 1\nmemory = "1GB"\n'
        '[items]\npath = "items.parquet"\n[queries]\npath = "queries.parquet"\n'
        "[measure]\nsample = 300\ncalibration = 200\n"
    )
    return spec


def start(spec: Path, log: Path | None = None, halt: tuple[str, int] | None = None) -> ForkServerProcess:
    process = SERVER.Process(target=work, args=(spec, log, halt))
    process.start()
    return process


def children_of(process: ForkServerProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has ended this very moment
        return []


def ended(process: ForkServerProcess, timeout: float | None = None) -> int | None:
    process.join(timeout)
    return process.exitcode


def bytes_of_snapshot(spec: Path) -> dict[str, str]:
    """A hash per file of the snapshot; of the manifest, without the part that tells of times and machines."""
    folder = spec.parent / "nearcast" / "g" / "snapshots" / "000001"
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            del manifest["run"]
            content = json.dumps(manifest, sort_keys=True).encode()
        hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


def files_below(spec: Path) -> set[str]:
    home = spec.parent / "nearcast" / "g"
    return {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("engine", "kills"),
    [
        ("exact", 5),
        pytest.param("exact", 20, marks=pytest.mark.slow),
        pytest.param("faiss-ivf", 20, marks=pytest.mark.slow),
        pytest.param("faiss-hnsw", 20, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, engine: str, kills: int) -> None:
    undisturbed = write_generator(tmp_path / "undisturbed", engine)
    assert ended(start(undisturbed)) == 0  # the first also starts the server of processes
    began = time.monotonic()
    again = write_generator(tmp_path / "again", engine)
    assert ended(start(again)) == 0
    lasts = time.monotonic() - began

    killed = write_generator(tmp_path / "killed", engine)
    moments = random.Random(7)
    killed_so_far = 0
    while killed_so_far < kills:
        process = start(killed)
        if ended(process, timeout=moments.uniform(0.05, 1.0) * lasts) is None:
            assert children_of(process) == []
            process.kill()
            process.join()
            killed_so_far += 1
        else:  # finished before its kill: take the result away, and go on
            assert process.exitcode == 0
            shutil.rmtree(killed.parent / "nearcast" / "g" / "snapshots" / "000001")
    assert ended(start(killed)) == 0
    assert bytes_of_snapshot(killed) == bytes_of_snapshot(undisturbed)
    assert files_below(killed) == files_below(undisturbed)


def test_a_run_killed_in_each_stage_after_the_join_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = write_generator(tmp_path / "undisturbed", "exact")
    killed = write_generator(tmp_path / "killed", "exact")
    for spec in (undisturbed, killed):
        spec.write_text(f"{spec.read_text()}[exposure]\nmax_lists_per_item = 9\ncandidates_per_query = 30\n")
    assert ended(start(undisturbed)) == 0
    for begun in (
        "work/.attempt-choose-*",
        "work/choose/manifest.json",
        "work/table/.attempt-*",
        "work/table/[!.]*/*.json",
    ):
        kill_when(killed, begun)
    assert ended(start(killed)) == 0
    assert bytes_of_snapshot(killed) == bytes_of_snapshot(undisturbed)
    assert files_below(killed) == files_below(undisturbed)


def test_a_changed_setting_starts_afresh_and_says_why(tmp_path: Path) -> None:
    spec = write_generator(tmp_path / "g", "exact")
    kill_when(spec, "work/join/[!.]*/manifest.json")
    spec.write_text(spec.read_text().replace("k = 10", "k = 7"))
    error = finish(spec)
    assert "k was 10 and is 7" in error


def test_other_shards_start_afresh_at_recall_1_and_say_why(tmp_path: Path) -> None:
    spec = write_generator(tmp_path / "g", "exact")
    kill_when(spec, "work/join/[!.]*/manifest.json")
    spec.write_text(f"{spec.read_text()}[run]\nshards = 3\n")
    error = finish(spec)
    assert "run.shards was None and is 3" in error
    assert "continuing" not in error


def test_a_changed_input_starts_afresh_and_names_the_file(tmp_path: Path) -> None:
    spec = write_generator(tmp_path / "g", "exact")
    kill_when(spec, "work/join/[!.]*/manifest.json")
    table = pq.read_table(tmp_path / "g" / "items.parquet").slice(1)
    pq.write_table(table, tmp_path / "g" / "items.parquet")
    assert "items changed: items.parquet" in finish(spec)


def test_a_continued_run_says_how_much_was_done_before(tmp_path: Path) -> None:
    spec = write_generator(tmp_path / "g", "exact")
    kill_when(spec, "work/join/[!.]*/manifest.json")
    assert "tasks were done before: continuing" in finish(spec)
    manifest = json.loads((tmp_path / "g/nearcast/g/snapshots/000001/manifest.json").read_text())
    assert manifest["run"]["tasks_continued"] > 0


def test_the_second_of_two_runs_at_once_refuses_and_names_the_first(tmp_path: Path) -> None:
    spec = write_generator(tmp_path / "g", "exact")
    first = start(spec, halt=("work/plan.json", signal.SIGSTOP))  # holds the lock for as long as the second takes
    while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED:
        assert first.is_alive(), "the run ended before it could be disturbed"
        time.sleep(0.01)
    try:
        second = subprocess.run([nearcast(), "run", str(spec)], capture_output=True, text=True, check=False)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 5
    assert f"generator 'g' is held by process {first.pid}" in second.stderr
    assert ended(first) == 0


def nearcast() -> str:
    return str(Path(sys.executable).with_name("nearcast"))


def kill_when(spec: Path, pattern: str) -> None:
    """Start a run that is killed as soon as a file of this pattern is there."""
    assert ended(start(spec, halt=(pattern, signal.SIGKILL))) == -signal.SIGKILL


def finish(spec: Path) -> str:
    """Run to the end; returns what was logged."""
    log = spec.parent / "log.txt"
    assert ended(start(spec, log)) == 0
    return log.read_text()
