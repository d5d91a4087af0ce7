"""What the workers of one service tell each other, and the supervisor with processes that only tell their state."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time

import pytest

from nearcast.cli.serve import WorkerCount
from nearcast.service import supervisor as supervising
from nearcast.service.metric_table import COMBINED_GAUGES
from nearcast.service.supervisor import Supervisor, share_folder
from nearcast.service.worker_states import STALE_SECONDS, ServiceState, WorkerState, WorkerStates

GAUGES = dict.fromkeys(COMBINED_GAUGES, 0.0)


@pytest.fixture
def pair(tmp_path):
    """Workers 1 and 2 of a service."""
    states = [WorkerStates(tmp_path, number) for number in (1, 2)]
    states[0].write_service(ServiceState(2, [1, 2]))
    for each in states:
        each.write_worker(WorkerState(os.getpid(), "shop 000001"))
    return states


def test_a_service_is_ready_when_all_workers_that_should_be_are(pair):
    first, second = pair
    assert first.merge_problems([]) == second.merge_problems([]) == []
    second.write_worker(WorkerState(1, "", problems=["shop: no version is open"]))
    assert first.merge_problems([]) == ["shop: no version is open"]
    assert first.merge_problems(["shop: no version is open"]) == ["shop: no version is open"], "told once"
    first.write_service(ServiceState(2, [1]))
    assert first.merge_problems([]) == ["1 of 2 workers are not started"]
    assert second.merge_problems(["of a worker that does not serve"]) == ["1 of 2 workers are not started"]
    first.write_service(ServiceState(2, [1, 2], draining=True))
    assert "the service is stopping" in first.merge_problems([])


def test_a_worker_that_is_silent_or_has_no_state_is_not_ready(pair, monkeypatch):
    first, second = pair
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + STALE_SECONDS + 1)
    assert first.merge_problems([]) == ["1 of 2 workers have not responded for 5 s"]
    second.forget_worker(2)
    assert first.merge_problems([]) == ["1 of 2 workers have not responded for 5 s"]


def test_a_state_that_is_half_written_is_not_read(pair):
    first, second = pair
    file = second.folder / "worker-2"
    file.write_bytes(file.read_bytes()[:-3] + b"...")
    assert first.read_worker(2) is None
    second.write_worker(WorkerState(5, "shop 000002"))
    assert first.read_worker(2).generators == "shop 000002"


def test_gauges_are_those_of_the_worker_that_is_the_furthest_behind(pair):
    first, second = pair
    theirs = GAUGES | {"nearcast_snapshot_version": 3, "nearcast_snapshot_age_seconds": 9, "nearcast_update_failing": 1}
    second.write_worker(WorkerState(1, "", gauges={"shop": theirs | {"nearcast_patch_age_seconds": math.nan}}))
    mine = GAUGES | {
        "nearcast_snapshot_version": 4,
        "nearcast_snapshot_age_seconds": 1,
        "nearcast_patch_age_seconds": 2,
    }
    merged = first.merge_gauges({"shop": mine, "ads": GAUGES}, COMBINED_GAUGES)
    assert merged["ads"] == GAUGES
    assert merged["shop"] == GAUGES | {
        "nearcast_snapshot_version": 3,
        "nearcast_snapshot_age_seconds": 9,
        "nearcast_update_failing": 1,
        "nearcast_patch_age_seconds": 2,
    }


def test_a_number_of_workers_is_a_number_or_one_per_core():
    convert = WorkerCount().convert
    assert convert("3", None, None) == 3
    assert convert("auto", None, None) == len(os.sched_getaffinity(0))
    for wrong in ("0", "many"):
        with pytest.raises(Exception, match=r"range|integer"):
            convert(wrong, None, None)


# the supervisor


def test_folders_of_killed_supervisors_are_removed_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(supervising, "MEMORY_FOLDER", tmp_path)
    (tmp_path / "nearcast-serve-new").mkdir()
    (tmp_path / "nearcast-serve-old").mkdir()
    with share_folder() as held:
        for folder in (held, tmp_path / "nearcast-serve-old"):
            os.utime(folder, (0, 0))
        with share_folder() as other:
            assert set(tmp_path.iterdir()) == {held, other, tmp_path / "nearcast-serve-new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "nearcast-serve-new"]


TELLS_ITS_STATE = """
import os, sys, time
from nearcast.service.worker_states import WorkerPlace, WorkerState, WorkerStates
place = WorkerPlace.from_environment()
states = WorkerStates(place.folder, place.number)
{before}
states.write_worker(WorkerState(os.getpid(), "shop 000001"))
{after}
"""
UNTIL_TOLD = "sys.stdin.read(1)"


class Supervised(threading.Thread):
    """Watches a supervisor from another thread, and stops it at the end."""

    def __init__(self, supervisor, holds):
        super().__init__()
        self.supervisor, self.holds, self.held = supervisor, holds, False

    def run(self):
        deadline = time.monotonic() + 180
        while not self.held and time.monotonic() < deadline:
            self.held = bool(self.holds(self.supervisor))
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)


def supervise(before="", after=UNTIL_TOLD, *, workers=2, until=lambda supervisor: supervisor.service.draining):
    """The exit code of a service of such workers, which is stopped once `until` holds."""
    command = [sys.executable, "-c", TELLS_ITS_STATE.format(before=before, after=after)]
    with share_folder() as folder, socket.socket() as bound:
        supervisor = Supervisor(command, bound, folder, workers, 0.0, lambda generators: None)
        watching = Supervised(supervisor, until)
        watching.start()
        code = supervisor.run()
        watching.held = True
        watching.join()
        assert not list(supervisor._processes)
    return code


@pytest.fixture(autouse=True)
def stopped_by_signal():
    """SIGTERM after the supervisor has ended does nothing here."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def all_serve(supervisor):
    return len(supervisor.service.serving) == supervisor.workers


def test_workers_serve_until_the_service_is_stopped():
    assert supervise(until=all_serve) == 0


def test_the_exit_code_of_a_first_worker_that_cannot_start_is_that_of_the_service():
    assert supervise(before="sys.exit(4)") == 4


def test_a_worker_that_ends_again_and_again_is_started_ever_later(caplog, monkeypatch):
    monkeypatch.setattr(supervising, "FIRST_DELAY", 0.05)
    caplog.set_level(logging.INFO)
    after = "sys.exit(3) if place.number == 2 else sys.stdin.read(1)"
    assert supervise(after=after, until=lambda supervisor: supervisor.service.restarts >= 4) == 0
    told = [record.getMessage() for record in caplog.records]
    assert [text.rpartition("starts in ")[2] for text in told[:4]] == ["0.0 s", "0.1 s", "0.1 s", "0.2 s"]
    assert told[0].startswith("worker 2 has ended with exit code 3")


def test_a_worker_that_hangs_is_killed_and_replaced(caplog, monkeypatch):
    monkeypatch.setattr(supervising, "HUNG_SECONDS", 0.3)
    supervise(after="time.sleep(60)", workers=1, until=lambda supervisor: supervisor.service.restarts >= 1)
    assert "worker 1 does not respond, so it is killed" in caplog.text


def test_a_restart_whose_first_new_worker_cannot_start_leaves_the_earlier_ones(caplog):
    served = []

    def is_given_up(supervisor):
        if all_serve(supervisor) and not served:
            served.extend(supervisor._processes)
            os.kill(os.getpid(), signal.SIGHUP)
        return "cannot start (exit code 5); the earlier workers go on" in caplog.text and (
            supervisor._processes == served
        )

    assert supervise(before="place.number > 2 and sys.exit(5)", until=is_given_up) == 0
