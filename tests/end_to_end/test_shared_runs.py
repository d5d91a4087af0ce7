"""Runs on several processes, and runs that several hosts share through a storage, give the bytes of a local run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from nearcast.api import shared_runs
from nearcast.api.cost_estimates import estimate_spec
from nearcast.api.distributed import gather_run, plan_run
from nearcast.api.shared_runs import work_on
from nearcast.errors import InputError, NotFoundError, SpecError, StorageError
from nearcast.join import shard_tasks
from nearcast.join.listener import Listener
from nearcast.join.perform_task import perform_in
from nearcast.join.task_context import TaskContext
from nearcast.knn import query_splits
from nearcast.runners import make_runner
from nearcast.runners.array_index import WorkShare
from nearcast.runners.base import Perform, Runner, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.local import LocalRunner
from nearcast.storage import host_cache
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.open_storage import open_storage
from nearcast.table.snapshot import list_snapshots
from s3_server import s3_server, s3_url

__all__ = ["s3_server", "s3_url"]

MODEL = "import helper\n\ndef score(batch):\n    return helper.flip(batch.column('score').to_numpy())\n"


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, object]:
    """A spec with rules and caps over tables in a folder apart from the spec's own."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for name, n in (("items", 3_000), ("queries", 2_500)):
        vectors = rng.standard_normal((n, 16)).astype(np.float32)
        ids = [f"{name[0]}{i}" for i in range(n)]
        table = pa.table({"id": ids, "vector": list(vectors), "shelf": rng.integers(0, 5, n)})
        pq.write_table(table, data / f"{name}.parquet")
    return {
        "name": "g",
        "metric": "cosine",
        "k": 10,
        "recall": 0.9,
        "engine": "dense",
        "items": {"path": str(data / "items.parquet"), "attributes": ["shelf"]},
        "queries": {"path": str(data / "queries.parquet"), "attributes": ["shelf"]},
        "rules": [{"name": "elsewhere", "keep": "item.shelf != query.shelf"}],
        "caps": [{"by": "shelf", "max_per_list": 4}],
        "measure": {"sample": 200, "calibration": 100},
    }


class RecordingListener(Listener):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def two_processes() -> Iterator[Runner]:
    with closing(make_runner("processes", 2)) as runner:
        yield runner


def hash_files(folder: Path) -> dict[str, str]:
    """A hash per file; of the manifest without times, machine and the location of the output."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            del manifest["run"], manifest["spec"]["out"]
            content = json.dumps(manifest, sort_keys=True).encode()
        hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


def run_into(spec: dict[str, object], folder: Path, **options: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return hash_files(nearcast.run(spec | {"out": str(folder / "out")}, base=folder, **options).snapshot.folder)


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_two_processes_give_the_bytes_of_one(shop, tmp_path, recall):
    spec = shop | {"recall": recall}
    assert run_into(spec, tmp_path / "b", runner="processes", workers=2) == run_into(spec, tmp_path / "a")


def test_a_plan_that_is_gathered_gives_the_bytes_of_a_run(shop, tmp_path, two_processes):
    (tmp_path / "b").mkdir()
    plan_run(shop | {"out": str(tmp_path / "b" / "out")}, tmp_path / "work", base=tmp_path / "b")
    gathered = gather_run(tmp_path / "work", runner=two_processes)
    assert not gathered.reused
    assert hash_files(gathered.snapshot.folder) == run_into(shop, tmp_path / "a")
    assert gather_run(tmp_path / "work").reused
    assert not (tmp_path / "work" / "results").exists()


@pytest.mark.parametrize(("shards", "recall"), [(1, 0.9), (2, 0.9), (2, 1.0)])
def test_a_job_for_each_stage_that_the_plan_shows_does_all_work(shop, tmp_path, shards, recall):
    spec = shop | {"out": str(tmp_path / "out"), "recall": recall, "run": {"shards": shards}}
    spec |= {"exposure": {"max_lists_per_item": 50, "candidates_per_query": 12}}
    plan_run(spec, tmp_path / "work", base=tmp_path)
    rows = [stage.stage for stage in estimate_spec(spec, base=tmp_path).stages]
    assert rows[0] == "ingest"
    assert ("calibrate" in rows) == (recall < 1)
    for row in rows:
        shares = [work_on(tmp_path / "work", share=WorkShare(index, 2), stage=row) for index in (0, 1)]
        assert sum(stage.done_here for share in shares for stage in share) > 0 or row == "calibrate"
    assert sum(stage.done_here for stage in work_on(tmp_path / "work")) == 0


def change_items(shop: dict[str, object], keep: int) -> None:
    path = Path(shop["items"]["path"])
    pq.write_table(pq.read_table(path).slice(0, keep), path)


def test_the_manifest_of_a_gathered_run_has_the_times_of_all_workers(shop, tmp_path):
    alone = nearcast.run(shop | {"out": str(tmp_path / "alone")}, base=tmp_path).snapshot.manifest.run
    plan_run(shop | {"out": str(tmp_path / "out")}, tmp_path / "work", base=tmp_path)
    done = work_on(tmp_path / "work")
    run = gather_run(tmp_path / "work").snapshot.manifest.run  # has done no task itself
    assert set(run.seconds) == set(run.cpu_seconds) == set(alone.seconds)
    rounding = 0.001 * len(run.seconds)
    assert 0 < sum(run.cpu_seconds.values()) <= sum(stage.cpu_seconds for stage in done) + rounding
    assert run.seconds_total >= sum(run.seconds.values()) - rounding
    assert run.peak_memory_bytes >= max(stage.peak_bytes for stage in done) // 2


def test_a_gather_copies_within_the_bucket_and_downloads_nothing(shop, tmp_path, s3_url, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "worker"))
    plan_run(shop | {"out": f"{s3_url}/out"}, f"{s3_url}/work", base=tmp_path)
    work_on(f"{s3_url}/work")
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "gather"))
    made = gather_run(f"{s3_url}/work").snapshot
    assert list((tmp_path / "gather").rglob("*.parquet")) == []
    made.verify()
    expected = run_into(shop, tmp_path / "a")
    found = {
        name: hashlib.sha256(open_storage(made.url).read(name)).hexdigest() for name in made.manifest.facts["files"]
    }
    assert found == {name: value for name, value in expected.items() if name != "manifest.json"}


@pytest.mark.slow
def test_open_files_and_cache_of_a_worker_do_not_grow_with_its_tasks(shop, tmp_path, s3_url, monkeypatch):
    monkeypatch.setattr(query_splits, "TASK_BYTES", 1)
    monkeypatch.setattr(query_splits, "SMALLEST_TASK", 200)
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEARCAST_CACHE_BYTES", "3000000")
    plan_run(shop | {"out": f"{s3_url}/out", "run": {"shards": 3}}, f"{s3_url}/work", base=tmp_path)
    held: dict[str, list[int]] = {}
    sizes: list[int] = []

    def perform(context: TaskContext, call: TaskCall) -> TaskOutcome:
        outcome = perform_in(context, call)
        held.setdefault(call.kind, []).append(len(host_cache._in_use))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()))
        return outcome

    monkeypatch.setattr(shared_runs, "perform_in", perform)
    opened = count_calls(monkeypatch, shard_tasks, "open_shard_index")
    before = set(host_cache._in_use)
    work_on(f"{s3_url}/work")
    assert len(held["join_shard"]) == 3 * 13
    assert max(held["join_shard"]) == held["join_shard"][0]
    assert max(held["merge"]) <= held["merge"][0]
    assert len(opened) == 3  # not once per task
    assert max(sizes) < 4_000_000
    assert set(host_cache._in_use) == before
    assert gather_run(f"{s3_url}/work").snapshot.manifest.target.met


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    """Count the calls of a function of a module."""
    calls: list[None] = []
    function = getattr(module, name)

    def counted(*args: Any) -> Any:
        calls.append(None)
        return function(*args)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_finished_plan_is_seen_as_finished_also_after_another_run(shop, tmp_path):
    spec = shop | {"out": str(tmp_path / "out"), "engine": "exact", "recall": 1.0}
    plan_run(spec, tmp_path / "work", base=tmp_path)
    first = gather_run(tmp_path / "work").snapshot
    original = Path(shop["items"]["path"]).read_bytes()
    change_items(shop, keep=2_900)
    nearcast.run(spec, base=tmp_path)
    again = gather_run(tmp_path / "work")
    assert (again.reused, again.snapshot.version) == (True, first.version)
    assert work_on(tmp_path / "work") == []

    Path(shop["items"]["path"]).write_bytes(original)
    listener = RecordingListener()
    plan_run(spec, tmp_path / "work", base=tmp_path, listener=listener)  # its snapshot is not the newest any more
    assert "its snapshot is not the newest: it is planned again" in listener.notes[-1]
    assert {stage.stage: stage.done_here for stage in work_on(tmp_path / "work")}["join"] == 1
    last = gather_run(tmp_path / "work").snapshot
    assert (last.version, last.manifest.facts["compared_with"]["version"]) == (3, 2)
    plan_run(spec, tmp_path / "work", base=tmp_path, listener=listener)
    assert "is finished: its snapshot is" in listener.notes[-1]
    assert gather_run(tmp_path / "work").reused


def test_a_finished_plan_whose_snapshot_was_removed_says_so(shop, tmp_path):
    spec = shop | {"out": str(tmp_path / "out"), "engine": "exact", "recall": 1.0}
    plan_run(spec, tmp_path / "work", base=tmp_path)
    shutil.rmtree(gather_run(tmp_path / "work").snapshot.folder)
    with pytest.raises(NotFoundError, match=r"its snapshot 1 was removed since; `nearcast plan SPEC --work"):
        gather_run(tmp_path / "work")
    plan_run(spec, tmp_path / "work", base=tmp_path)
    assert not gather_run(tmp_path / "work").reused


class FasterHost(LocalRunner):
    """Runs tasks here, and lets another host do something before the stage of this task."""

    def __init__(self, task: str, act: Callable[[], object]) -> None:
        self.task = task
        self.act = act

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        if calls[0].kind == self.task:
            self.act()
        yield from super().run(perform, area, calls)


@pytest.mark.parametrize("task", ["join", "table", "measure"])
def test_of_two_gathers_at_once_both_return_the_snapshot_of_the_faster(shop, tmp_path, s3_url, monkeypatch, task):
    spec = shop | {"out": f"{s3_url}/out", "engine": "exact", "recall": 1.0}
    plan_run(spec, f"{s3_url}/work", base=tmp_path)

    def gather_on_another_host() -> None:
        with monkeypatch.context() as patched:
            patched.setenv("NEARCAST_CACHE", str(tmp_path / "another host"))
            assert not gather_run(f"{s3_url}/work").reused

    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    slower = gather_run(f"{s3_url}/work", runner=FasterHost(task, gather_on_another_host))
    assert (slower.reused, slower.snapshot.version) == (True, 1)
    assert [snapshot.version for snapshot in list_snapshots(f"{s3_url}/out", "g")] == [1]


def test_a_gather_whose_work_is_removed_says_so_and_the_next_one_finishes(shop, tmp_path, s3_url, monkeypatch):
    monkeypatch.setenv("NEARCAST_CACHE", str(tmp_path / "cache"))
    spec = shop | {"out": f"{s3_url}/out", "engine": "exact", "recall": 1.0}
    plan_run(spec, f"{s3_url}/work", base=tmp_path)
    removing = FasterHost("table", lambda: open_artifacts(f"{s3_url}/work/results").remove(""))
    with pytest.raises(StorageError, match=r"work of the run was removed by another process .*; gather again"):
        gather_run(f"{s3_url}/work", runner=removing)
    assert gather_run(f"{s3_url}/work").snapshot.version == 1


def test_a_ranking_model_beside_the_spec_travels_to_other_hosts(shop, tmp_path, two_processes):
    spec = {key: value for key, value in shop.items() if key != "caps"} | {
        "rank": {"function": "model:score", "fetch": 20}
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(MODEL)
        (tmp_path / name / "helper.py").write_text("def flip(scores):\n    return -scores\n")
    expected = run_into(spec, tmp_path / "a")
    plan_run(spec | {"out": str(tmp_path / "out")}, tmp_path / "work", base=tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert hash_files(gather_run(tmp_path / "work", runner=two_processes).snapshot.folder) == expected


def test_a_location_that_holds_the_plan_of_another_run_is_refused(shop, tmp_path):
    plan_run(shop, tmp_path / "work", base=tmp_path)
    plan_run(shop, tmp_path / "work", base=tmp_path)
    with pytest.raises(
        SpecError, match=r"holds the plan of another run \(k was 10 and is 12\); choose an empty location"
    ):
        plan_run(shop | {"k": 12}, tmp_path / "work", base=tmp_path)


def test_a_location_in_a_folder_of_inputs_is_refused_before_a_file_is_written(shop, tmp_path):
    folder = Path(shop["items"]["path"]).parent
    before = sorted(folder.iterdir())
    for place in (folder, folder / "runs"):
        with pytest.raises(SpecError, match="would be read as rows; choose a location outside"):
            plan_run(shop | {"items": {**shop["items"], "path": str(folder)}}, place, base=tmp_path)
    assert sorted(folder.iterdir()) == before


def test_inputs_that_changed_after_the_plan_are_refused_by_the_worker(shop, tmp_path, two_processes):
    plan_run(shop, tmp_path / "work", base=tmp_path)
    path = Path(shop["items"]["path"])
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)
    with pytest.raises(InputError, match="differ from those that the run was planned for"):
        gather_run(tmp_path / "work", runner=two_processes)


def test_a_location_without_a_plan_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFoundError, match="`nearcast plan SPEC --work"):
        gather_run(tmp_path / "work")
