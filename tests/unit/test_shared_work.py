"""Workers that meet in a storage alone: claims, take-over, waiting, and what stops them all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearcast.errors import InputError, StorageError, WorkerError
from nearcast.join import shared_work, task_claims
from nearcast.join.run_progress import RunProgress, read_progress
from nearcast.join.shared_work import SharedRun, SharedStage, WorkOptions, work_on_stage, work_on_stages
from nearcast.join.task_claims import TaskClaims
from nearcast.runners.array_index import WorkShare
from nearcast.runners.base import TaskCall, TaskOutcome
from nearcast.runners.call_messages import describe_error
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.storage.local_storage import LocalStorage

FAST = {"poll_seconds": 0.02, "patience_seconds": 300.0}


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def list_calls(stage: str, n: int) -> SharedStage:
    return SharedStage(stage, lambda: [TaskCall(f"{stage}/{i:06d}", stage, {"number": i}) for i in range(n)])


class Worker:
    """A worker with its own view of the storage, whose tasks write their number."""

    def __init__(self, root: Path, owner: str = "", stale_seconds: float = 60.0) -> None:
        self.results = LocalArtifacts(root / "results")
        storage = LocalStorage(root)
        self.run = SharedRun(storage, self.results, TaskClaims(storage, owner, stale_seconds=stale_seconds))
        self.did: list[str] = []

    def perform(self, call: TaskCall) -> TaskOutcome:
        started = time.perf_counter()
        facts = self.results.facts(call.name)
        if facts is not None:
            return TaskOutcome(call.name, facts)

        def write(folder: Path) -> dict[str, Any]:
            (folder / "number").write_text(str(call.args["number"]))
            return {"number": call.args["number"]}

        self.results.ensure(call.name, write)
        self.did.append(call.name)
        return TaskOutcome(call.name, {}, seconds=time.perf_counter() - started)

    def work(self, *stages: SharedStage, **options: Any) -> list[shared_work.StageWork]:
        return work_on_stages(self.run, stages, self.perform, WorkOptions(**(FAST | options)), no_progress)


def test_one_worker_does_all_stages_in_order(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    done = worker.work(list_calls("one", 1), list_calls("many", 5))
    assert [(work.stage, work.tasks, work.done_here) for work in done] == [("one", 1, 1), ("many", 5, 5)]
    assert worker.did == ["one/000000", *(f"many/{i:06d}" for i in range(5))]
    assert list(LocalStorage(tmp_path).list_objects("claims")) == []


def test_workers_at_once_do_each_task_once_and_all_wait_for_the_end_of_a_stage(tmp_path: Path) -> None:
    workers = [Worker(tmp_path) for _ in range(4)]
    stages = list_calls("first", 40), list_calls("second", 30)
    threads = [
        threading.Thread(target=worker.work, args=stages, kwargs={"share": WorkShare(i, 4)})
        for i, worker in enumerate(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    did = sorted(name for worker in workers for name in worker.did)
    assert did == sorted([*(f"first/{i:06d}" for i in range(40)), *(f"second/{i:06d}" for i in range(30))])


def test_a_worker_that_only_does_its_share_leaves_the_other_tasks(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.work(list_calls("join", 7), share=WorkShare(1, 3), helps=False)
    assert worker.did == ["join/000001", "join/000004"]


def test_a_worker_helps_with_tasks_that_nobody_does(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.work(list_calls("join", 7), share=WorkShare(1, 3))
    assert worker.did == [f"join/{i:06d}" for i in (1, 4, 6, 5, 3, 2, 0)]


def test_a_claim_that_does_not_change_is_taken_over_and_one_that_does_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, now = LocalStorage(tmp_path), [0.0]
    monkeypatch.setattr(task_claims, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    dead, alive = TaskClaims(storage), TaskClaims(storage, stale_seconds=0.4)
    assert dead.take("join/0")
    assert alive.take("join/1")
    other = TaskClaims(storage, stale_seconds=60)
    with alive.hold("join/1"):
        taken = []
        for _ in range(3):  # looks at 0, 40 and 80 seconds
            taken.append([other.take(task) for task in ("join/0", "join/1")])
            wait_for_change(storage, "claims/join/1")
            now[0] += 40
    assert taken == [[False, False], [False, False], [True, False]]
    assert other.take("join/1")  # it was released


def wait_for_change(storage: LocalStorage, name: str) -> None:
    """Wait until an object is written again."""
    before, deadline = storage.stat(name), time.monotonic() + 120
    while storage.stat(name) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_is_started_again_takes_its_own_old_claims_at_once(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert TaskClaims(storage, "3 of 40").take("join/0")
    assert not TaskClaims(storage, "4 of 40").take("join/0")
    assert not TaskClaims(storage, "").take("join/0")
    assert TaskClaims(storage, "3 of 40").take("join/0")
    storage.write("claims/join/0", b"no JSON")
    assert not TaskClaims(storage, "3 of 40").take("join/0")


def test_a_stale_claim_is_taken_over_by_one_worker_alone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    TaskClaims(storage).take("join/0")
    others = [TaskClaims(storage, stale_seconds=0.0) for _ in range(8)]
    for other in others:
        other.take("join/0")  # the first look
    taken: list[bool] = []
    threads = [threading.Thread(target=lambda o=other: taken.append(o.take("join/0"))) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert taken.count(True) >= 1
    first_round = [claim for claim in taken if claim]
    assert len(first_round) == 1


def test_bad_input_stops_every_worker_with_the_same_error(tmp_path: Path) -> None:
    bad, waiting = Worker(tmp_path), Worker(tmp_path)

    def fail(call: TaskCall) -> TaskOutcome:
        return TaskOutcome(call.name, {}, describe_error(InputError("row 7 has no vector")))

    TaskClaims(LocalStorage(tmp_path)).take("join/000000")  # a worker that is still at it
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            waiting.work(list_calls("join", 1))
        except InputError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    with pytest.raises(InputError, match="row 7"):
        work_on_stages(bad.run, [list_calls("other", 1)], fail, WorkOptions(**FAST), no_progress)
    thread.join(120)
    assert [str(error) for error in errors] == ["row 7 has no vector"]
    assert errors[0].__notes__ == ["another worker met it in task other/000000"]
    assert json.loads((tmp_path / "failure.json").read_text())["error"]["exit_code"] == 3
    bad.run.clear_failure()
    bad.work(list_calls("other", 1))
    assert bad.did == ["other/000000"]


def test_an_error_that_may_pass_is_tried_again_and_then_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_work, "PAUSE_SECONDS", 0.0)
    worker, failures = Worker(tmp_path), [2]

    def flaky(call: TaskCall) -> TaskOutcome:
        if failures[0]:
            failures[0] -= 1
            raise StorageError("the server answers 503")
        return worker.perform(call)

    work_on_stage(worker.run, list_calls("join", 2), flaky, WorkOptions(**FAST), no_progress)
    assert worker.did == ["join/000000", "join/000001"]
    failures[0] = 3
    with pytest.raises(StorageError, match="503"):
        work_on_stage(worker.run, list_calls("more", 1), flaky, WorkOptions(**FAST), no_progress)
    assert not (tmp_path / "failure.json").exists()  # another attempt may succeed
    assert list(LocalStorage(tmp_path).list_objects("claims")) == []


def test_waiting_for_others_ends_when_none_of_them_finishes_anything(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    TaskClaims(LocalStorage(tmp_path)).take("join/000000")
    with pytest.raises(WorkerError, match=r"1 tasks of stage join, and none was finished for 0 s") as caught:
        worker.work(list_calls("join", 1), patience_seconds=0.2)
    assert caught.value.exit_code == 15


CHILD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from tests.unit.test_shared_work import Worker, list_calls
from nearcast.runners.array_index import WorkShare
worker = Worker(Path(sys.argv[1]), stale_seconds=1.0)
plain = worker.perform
def slow(call):
    print(call.name, flush=True)
    time.sleep(float(sys.argv[2]))
    return plain(call)
worker.perform = slow
worker.work(list_calls("join", 12), share=WorkShare(int(sys.argv[3]), 2))
"""


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """One of two processes is killed in the middle of a task; the other one finishes all of them."""
    root = Path(__file__).resolve().parent.parent.parent

    def start(seconds: str, index: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", CHILD, str(tmp_path), seconds, index]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root)

    victim = start("600", "0")
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "join/000000\n"
        helper = start("0.01", "1")
        os.kill(victim.pid, signal.SIGKILL)
        done, _ = helper.communicate(timeout=120)
    finally:
        victim.kill()
        victim.communicate(timeout=120)
    assert helper.returncode == 0
    assert done.split()[-1] == "join/000000"  # at the end, when its claim was stale
    assert LocalArtifacts(tmp_path / "results").list_names("join") == [f"join/{i:06d}" for i in range(12)]


def progress_of(root: Path, *stages: tuple[str, int], **more: Any) -> RunProgress:
    return read_progress(LocalStorage(root), [(name, lambda n=n: n) for name, n in stages], **more)


def test_progress_is_read_from_the_storage_alone(tmp_path: Path) -> None:
    empty = progress_of(tmp_path, ("one", 1), ("join", 10))
    assert [(s.tasks, s.done, s.seconds_left) for s in empty.stages] == [(1, 0, None), (None, 0, None)]
    worker = Worker(tmp_path)
    worker.work(list_calls("one", 1))
    worker.work(list_calls("join", 10), share=WorkShare(0, 2), helps=False)
    TaskClaims(LocalStorage(tmp_path)).take("join/000001")
    for i in range(0, 10, 2):
        os.utime(tmp_path / "results" / f"join/{i:06d}" / "manifest.json", (1000 + i, 1000 + i))
    found = progress_of(tmp_path, ("one", 1), ("join", 10), ("table", 4), estimates={"join": 40.0, "table": 8.0})
    assert [(s.stage, s.tasks, s.done, s.running) for s in found.stages] == [
        ("one", 1, 1, 0),
        ("join", 10, 5, 1),
        ("table", None, 0, 0),
    ]
    assert found.stages[1].seconds_left == pytest.approx(10)  # five tasks are left, and one is committed every 2 s
    assert found.stages[2].seconds_left == pytest.approx(4)  # the join takes half of its estimate
    assert found.seconds_left == pytest.approx(14)
    assert not found.is_done


def test_an_attempt_that_is_not_committed_is_no_progress(tmp_path: Path) -> None:
    attempt = tmp_path / "results" / "join" / ".attempt-000000-ab"
    attempt.mkdir(parents=True)
    (attempt / "manifest.json").write_text("{}")
    bucket = tmp_path / "results" / "join" / "000001" / "attempt-cd"
    bucket.mkdir(parents=True)
    (bucket / "manifest.json").write_text("{}")
    assert progress_of(tmp_path, ("join", 2)).stages[0].done == 0
    (bucket.parent / "done.json").write_text("{}")
    assert progress_of(tmp_path, ("join", 2)).stages[0].done == 1
