"""What a worker may use of its host, which plans it refuses, and how it measures a task."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from nearcast import errors, machine
from nearcast.errors import InputError, NearcastError, SpecError, StorageError, WorkerError
from nearcast.join.driver_mark import mark_area, require_mark
from nearcast.machine import ContainerLimits, container_limits
from nearcast.runners.attempts import CallQueue
from nearcast.runners.base import TaskCall, TaskOutcome, WorkArea
from nearcast.runners.call_messages import (
    describe_error,
    encode_area,
    encode_call,
    perform_message,
    read_reply,
    restore_error,
)
from nearcast.runners.worker import (
    TaskRoom,
    _measure_host,
    describe_worker,
    host_resources,
    require_same_worker,
    reserve_room,
    run_task,
)
from nearcast.sources.user_files import ChangedInputError
from runner_tasks import calls

GIB = 1 << 30


def group_files(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_at_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_limits_of_a_container_with_cgroups_of_version_2(tmp_path):
    group_files(
        tmp_path, cgroup_at_controllers="cpu memory", cpu_at_max="150000 100000\n", memory_at_max="2147483648\n"
    )
    group_files(tmp_path, own="0::/\n")
    assert container_limits(tmp_path, tmp_path / "own") == ContainerLimits(2, 2 * GIB)


def test_limits_of_groups_above_count_too_and_the_smallest_rules(tmp_path):
    group_files(
        tmp_path,
        cgroup_at_controllers="cpu memory",
        pods__memory_at_max=str(3 * GIB),
        pods__cpu_at_max="max 100000",
        pods__one__memory_at_max="max",
        pods__one__memory_at_high=str(2 * GIB),
        pods__one__cpu_at_max="50000 100000",
        own="0::/pods/one\n",
    )
    assert container_limits(tmp_path, tmp_path / "own") == ContainerLimits(1, 2 * GIB)


def test_limits_of_cgroups_of_version_1(tmp_path):
    group_files(
        tmp_path,
        cpu__job__cpu_at_cfs_quota_us="400000",
        cpu__job__cpu_at_cfs_period_us="100000",
        memory__job__memory_at_limit_in_bytes=str(GIB),
        memory__memory_at_limit_in_bytes="9223372036854771712",
        own="8:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
    )
    assert container_limits(tmp_path, tmp_path / "own") == ContainerLimits(4, GIB)


@pytest.mark.parametrize("text", ["", "nonsense", "0::/../..\n", "1:cpu:/a\n2:memory:/b\n", "9:name=systemd:/\n"])
def test_without_limits_there_are_none(tmp_path, text):
    group_files(tmp_path, own=text, cpu__cpu_at_cfs_quota_us="-1", cpu__cpu_at_cfs_period_us="100000", cpu_at_max="max")
    assert container_limits(tmp_path, tmp_path / "own") == ContainerLimits()
    assert container_limits(tmp_path, tmp_path / "missing") == ContainerLimits()


@pytest.fixture
def host(monkeypatch):
    """A host of 8 cores and 16 GiB, in a container of the given limits."""
    for name in ("NEARCAST_THREADS", "NEARCAST_MEMORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "default_threads", lambda: 8)
    monkeypatch.setattr(machine, "resident_memory", lambda: GIB)
    monkeypatch.setattr(machine, "available_memory", lambda: 15 * GIB)

    def limit(cores=None, memory_bytes=None):
        monkeypatch.setattr(machine, "container_limits", lambda: ContainerLimits(cores, memory_bytes))

    limit()
    return limit


def seen(threads=None, slots=1, tasks=1):
    _measure_host.cache_clear()
    reserve_room(None if threads is None else TaskRoom(threads, slots, tasks))
    resources = host_resources()
    reserve_room(None)
    _measure_host.cache_clear()
    return resources.threads, resources.memory_bytes / GIB


def test_a_worker_takes_all_cores_and_half_of_the_memory_of_its_host(host):
    assert seen() == (8, 8)


def test_the_container_limits_both(host):
    host(cores=2, memory_bytes=4 * GIB)
    assert seen() == (2, 2)


def test_cores_that_an_engine_reserved_bring_their_share_of_the_memory(host):
    assert seen(threads=2) == (2, 2)
    host(cores=4, memory_bytes=4 * GIB)
    assert seen(threads=2) == (2, 1)
    assert seen(threads=64) == (4, 2)


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("slots", [1, 2, 5, 40])
def test_tasks_of_a_short_stage_take_idle_slots_and_never_more_in_sum_than_the_run_has_or_the_host(host, cores, slots):
    for tasks in range(1, slots + 1):
        threads, memory = seen(cores, slots, tasks)
        assert min(cores, 8) <= threads <= 8
        assert threads == min(cores, 8) or threads * tasks <= min(8, cores * slots)
        assert memory == min(cores, 8)  # as reserved
    assert seen(cores, slots, slots)[0] == min(cores, 8)
    assert seen(cores, slots, 1)[0] == min(8, cores * slots)


def test_variables_of_the_host_come_first(host, monkeypatch):
    monkeypatch.setenv("NEARCAST_THREADS", "3")
    assert seen(threads=2) == seen(threads=2, slots=4, tasks=1) == (3, 3)
    monkeypatch.setenv("NEARCAST_MEMORY", "5GiB")
    assert seen() == (3, 5)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("NEARCAST_THREADS", "0", "NEARCAST_THREADS must be a number of threads, at least 1, got '0'"),
        ("NEARCAST_THREADS", "two", "NEARCAST_THREADS must be a number of threads, at least 1, got 'two'"),
        ("NEARCAST_MEMORY", "much", "NEARCAST_MEMORY must be an amount of memory such as \"4GB\", got 'much'"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(host, monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    with pytest.raises(WorkerError) as caught:
        host_resources()
    assert str(caught.value) == text


def test_a_worker_accepts_the_plan_of_an_equal_one_and_a_plan_that_says_nothing():
    require_same_worker(describe_worker())
    require_same_worker({})


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (
            {"version": "9.9.9"},
            r"has nearcast [0-9.]+, and the plan was made by 9\.9\.9; install nearcast 9\.9\.9 on every",
        ),
        ({"format": 99}, r"has the artifact format 1, and the plan was made by 99; install nearcast"),
        (
            {"libraries": {"pyarrow": "15.0.2"}},
            r"has pyarrow [0-9.]+, and .* pyarrow 15\.0\.2, whose version changes the",
        ),
        ({"libraries": {"numpy": "1.20"}}, r"has numpy [0-9]+\.[0-9]+, and .*; install numpy 1\.20 on every worker"),
        ({"libraries": {"no_such_library": "1.8"}}, r"has no no_such_library, and the plan was made with no_such_libr"),
    ],
)
def test_another_version_or_format_or_library_that_changes_bytes_is_refused(plan, text):
    with pytest.raises(WorkerError, match=text):
        require_same_worker(describe_worker() | plan)


def test_a_plan_has_the_parts_of_a_version_that_change_bytes():
    libraries = describe_worker(["faiss"])["libraries"]
    assert libraries["pyarrow"] == pa.__version__  # each Parquet file has it
    assert libraries["numpy"] == ".".join(np.__version__.split(".")[:2])
    assert set(libraries) == {"pyarrow", "numpy", "faiss"}


def test_a_worker_without_native_kernels_is_refused_and_any_instruction_set_is_not(monkeypatch):
    from nearcast.kernels import isa_info

    plan = describe_worker() | {"kernels": "native"}
    for isa in isa_info().available:
        monkeypatch.setenv("NEARCAST_ISA", isa)
        if isa == "numpy":
            with pytest.raises(WorkerError, match=r"has no native kernels \(NEARCAST_ISA asks for it\)"):
                require_same_worker(plan)
            require_same_worker(plan | {"kernels": "any"})
        else:
            require_same_worker(plan)
            with pytest.raises(WorkerError, match="has native kernels, and the plan was made by the NumPy fallback"):
                require_same_worker(plan | {"kernels": "numpy"})
    monkeypatch.setenv("NEARCAST_ISA", "sse2")
    with pytest.raises(WorkerError, match="cannot choose its kernels: NEARCAST_ISA is 'sse2'"):
        require_same_worker(plan)


def test_a_task_is_measured(monkeypatch):
    measured, looks = machine.resident_memory, []
    monkeypatch.setattr(machine, "resident_memory", lambda: looks.append(measured()) or looks[-1])

    def work():
        held, before = b"rows" * 75_000_000, len(looks)
        while len(looks) < before + 2:  # one of them may have begun earlier
            time.sleep(0.01)
        return {"rows": len(held)}

    outcome = run_task("join/000000", work)
    assert outcome.facts == {"rows": 300_000_000}
    assert outcome.seconds > 0
    assert outcome.peak_bytes > 200_000_000


@pytest.mark.parametrize("kind", [InputError, SpecError, errors.BudgetError, errors.MissingExtraError])
def test_a_fault_of_the_input_or_the_spec_is_a_value(kind):
    def work():
        raise kind("row 3 is empty")

    outcome = run_task("table/000001", work)
    assert outcome.error == {"class": kind.__name__, "text": "row 3 is empty", "exit_code": kind.exit_code}
    assert type(restore_error(outcome.error)) is kind


@pytest.mark.parametrize("kind", [StorageError, WorkerError, errors.DamagedError, OSError, MemoryError, KeyError])
def test_every_other_fault_is_raised(kind):
    def work():
        raise kind("once")

    with pytest.raises(kind):
        run_task("table/000001", work)


def test_every_error_survives_the_way_from_a_worker():
    for name in errors.__all__:
        error = getattr(errors, name)("what, got, way out")
        back = restore_error(describe_error(error))
        assert (type(back), str(back)) == (type(error), str(error))
    assert type(restore_error(describe_error(ChangedInputError("items changed")))) is errors.InputError
    assert str(restore_error(describe_error(KeyError("a")))) == "KeyError: 'a'"

    class OwnInputError(errors.InputError):
        """An error of one module, which is restored as the public one that it is."""

    assert type(restore_error(describe_error(OwnInputError("text")))) is errors.InputError
    assert str(restore_error(describe_error(MemoryError()))) == "MemoryError"


def sum_up(place: WorkArea, call: TaskCall) -> TaskOutcome:
    return TaskOutcome(call.name, {"sum": sum(call.args["numbers"]), "plan": dict(place.plan)}, seconds=0.5)


def test_a_call_and_its_outcome_survive_the_way_to_a_worker_and_back():
    place, call = WorkArea("/a", "s3://b/r", {"k": 5}), TaskCall("join/000001", "sum", {"numbers": [1, 2, 3]})
    name = f"{sum_up.__module__}:sum_up"
    reply = read_reply(perform_message(encode_area(name, place), encode_call(call)))
    assert reply.outcome == sum_up(place, call)
    assert reply.error is None


@pytest.mark.parametrize("name", ["no_such_module:perform", "json:no_such_function"])
def test_a_worker_that_lacks_the_function_says_what_to_install(name):
    reply = read_reply(perform_message(encode_area(name, WorkArea("/a", "/b")), encode_call(TaskCall("a", "b", {}))))
    assert isinstance(reply.error, WorkerError)
    assert "cannot import" in str(reply.error)
    assert "install the same packages on every worker" in str(reply.error)


def test_a_worker_that_does_not_see_the_folder_of_the_driver_refuses_and_writes_nothing(tmp_path):
    place = WorkArea(str(tmp_path / "artifacts"), str(tmp_path / "results"), {"k": 5})
    marked = mark_area(place)
    assert mark_area(place) == marked  # a second driver finds the mark of the first
    require_mark(marked)
    require_mark(place)
    (tmp_path / "artifacts").rename(tmp_path / "of another host")
    text = "does not see .*/artifacts, a folder of the driver: set `out` to a bucket, or to a folder of a file sys"
    with pytest.raises(WorkerError, match=text):
        require_mark(marked)
    assert [path.name for path in tmp_path.iterdir()] == ["of another host"]
    mark_area(place)  # by another driver, on the worker's host
    with pytest.raises(WorkerError, match=text):
        require_mark(marked)
    bucket = WorkArea("s3://bucket/artifacts", "s3://bucket/results")
    assert mark_area(bucket) == bucket


def test_a_failed_call_waits_while_others_go_on_and_its_last_attempt_raises():
    queue = CallQueue(calls(2), most_attempts=3)
    first, second = queue.take(), queue.take()
    assert (first.name, second.name) == ("join/000000", "join/000001")
    queue.fail(first, StorageError("slow"))
    assert queue.take() is None
    assert len(queue) == 1
    assert 0 < queue.seconds_to_next() <= 0.25
    queue.fail(first, StorageError("slow"))
    with pytest.raises(StorageError, match="task join/000000 failed in all 3 attempts: slow"):
        queue.fail(first, StorageError("slow"))


def test_importing_the_runners_imports_no_engine_of_a_cluster():
    code = (
        "import sys, nearcast.runners, nearcast.runners.worker; print(*{'pyspark', 'ray', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout.split() == []
    assert done.returncode == 0, done.stderr


def test_errors_of_nearcast_are_errors_of_nearcast_when_they_come_back():
    assert isinstance(restore_error({"class": "SystemExit", "text": "", "exit_code": 1}), NearcastError)
