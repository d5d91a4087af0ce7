"""The contract of a runner, one suite for all of them. A new runner is a row in RUNNERS and passes this."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from nearcast.runners.local import LocalRunner

RUNNERS = {"local": LocalRunner}

every_runner = pytest.mark.parametrize("make", RUNNERS.values(), ids=RUNNERS)


@dataclass(frozen=True)
class WriteTask:
    """A task with its outcome in a folder, as tasks of a join have it: a runner may work in other processes."""

    number: int
    folder: Path
    fails: bool = False


def write(task: WriteTask) -> None:
    """Append a line to the task's file, or fail."""
    if task.fails:
        raise ArithmeticError(f"task {task.number} fails")
    with (task.folder / str(task.number)).open("a") as file:
        file.write("once\n")


def tasks_in(folder: Path, n: int, *, failing: int | None = None) -> list[WriteTask]:
    return [WriteTask(number, folder, number == failing) for number in range(n)]


def written(folder: Path) -> dict[int, str]:
    return {int(path.name): path.read_text() for path in folder.iterdir()}


@every_runner
@pytest.mark.parametrize("n", [1, 2, 17])
def test_each_task_runs_once(make, tmp_path, n):
    make().run(write, tasks_in(tmp_path, n), lambda task: None)
    assert written(tmp_path) == dict.fromkeys(range(n), "once\n")


@every_runner
def test_no_tasks_are_no_work(make):
    make().run(write, [], lambda task: pytest.fail("there is no task to be done"))


@every_runner
def test_done_is_called_once_for_each_task_and_after_it(make, tmp_path):
    seen = []

    def done(task):
        assert (tmp_path / str(task.number)).exists()
        seen.append(task.number)

    make().run(write, tasks_in(tmp_path, 9), done)
    assert sorted(seen) == list(range(9))


@every_runner
def test_done_is_called_in_the_process_of_the_caller(make, tmp_path):
    processes = set()
    make().run(write, tasks_in(tmp_path, 3), lambda task: processes.add(os.getpid()))
    assert processes == {os.getpid()}


@every_runner
def test_an_error_of_a_task_is_raised_and_the_task_is_not_done(make, tmp_path):
    seen = []
    with pytest.raises(ArithmeticError, match="task 3 fails"):
        make().run(write, tasks_in(tmp_path, 8, failing=3), lambda task: seen.append(task.number))
    assert 3 not in seen
    assert set(seen) <= set(written(tmp_path))


@every_runner
def test_an_error_of_done_is_raised(make, tmp_path):
    def done(task):
        raise LookupError("done fails")

    with pytest.raises(LookupError, match="done fails"):
        make().run(write, tasks_in(tmp_path, 4), done)


@every_runner
def test_after_an_error_the_remaining_tasks_can_be_run(make, tmp_path):
    seen = []
    with pytest.raises(ArithmeticError):
        make().run(write, tasks_in(tmp_path, 6, failing=2), lambda task: seen.append(task.number))
    rest = [task for task in tasks_in(tmp_path, 6) if task.number not in seen]
    make().run(write, rest, lambda task: seen.append(task.number))
    assert sorted(seen) == list(range(6))
