"""Supervise the workers of one service: start them, replace those that end, restart them one by one, stop them all.

The supervisor holds the socket, which every worker inherits and accepts connections from. So no connection is refused
or reset while one worker ends and another starts. A worker is a new process, not a fork: it has no locks or threads of
this one, and a restart takes new code, new tokens and new generators. SIGTERM stops the service, SIGHUP restarts its
workers. Knows nothing of look-ups or of HTTP.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearcast.service.server import DRAIN, FINISH_SECONDS, RETIRE, STOP
from nearcast.service.shared_accept import ConnectionCounts
from nearcast.service.worker_states import ServiceState, WorkerPlace, WorkerState, WorkerStates

__all__ = ["Supervisor", "share_folder"]

POLL_SECONDS = 0.1
HUNG_SECONDS = 30.0  # without a new state of a worker: its event loop does not run any more
LEAVE_SECONDS = FINISH_SECONDS + 10.0  # for a retired worker to end, after its drain
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # before a worker is started again; the first time there is none
STEADY_SECONDS = 60.0  # after that time without an unexpected end, the next start is at once again
MEMORY_FOLDER = Path("/dev/shm")
PREFIX = "nearcast-serve-"
ABANDONED_SECONDS = 60.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def share_folder() -> Iterator[Path]:
    """Make a folder for the states and counters of the workers, in memory if possible. It is removed at the end."""
    parent = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)  # cleaners of temporary folders leave locked ones alone
        yield folder
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of supervisors that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or belongs to another user
            if time.time() - folder.stat().st_mtime < ABANDONED_SECONDS:
                continue  # it may be so new that its lock is not held yet
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


@dataclass(slots=True, eq=False)
class Worker:
    """A process that serves, or is about to."""

    number: int
    process: subprocess.Popen[bytes]
    replaces: Worker | None = None  # retired as soon as this one is ready
    state: WorkerState | None = None  # None: it does not serve yet
    silent: float = 0.0  # seconds without a new state, as far as the supervisor was running
    leave_by: float | None = None  # monotonic time by which it must have ended; None: it is not retired

    def order(self, order: bytes) -> None:
        """Give an order. A worker that does not serve yet is ended at once."""
        with contextlib.suppress(OSError, ValueError):  # it has ended, or its pipe is closed
            assert self.process.stdin is not None
            self.process.stdin.write(order)
        if self.state is None:
            self.process.terminate()

    def describe_end(self) -> str:
        """Return how the process ended."""
        code = self.process.returncode
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


@dataclass(slots=True)
class Supervisor:
    """The supervisor of one service. `run` returns when the service has stopped."""

    command: Sequence[str]  # starts a worker
    bound: socket.socket
    folder: Path
    workers: int
    drain_seconds: float
    begun: Callable[[str], None]  # called with the generators once all workers serve
    exit_code: int = 0
    service: ServiceState = field(init=False)
    _states: WorkerStates = field(init=False)
    _connections: ConnectionCounts = field(init=False)
    _processes: list[Worker] = field(default_factory=list)
    _signals: list[int] = field(default_factory=list)
    _wake: threading.Event = field(default_factory=threading.Event)
    _to_restart: list[Worker] = field(default_factory=list)
    _has_served: bool = False
    _has_begun: bool = False
    _failures: int = 0  # unexpected ends, each soon after the one before
    _failed: float = 0.0  # time of the last one
    _next_start: float = 0.0

    def __post_init__(self) -> None:
        self.service = ServiceState(self.workers, began=time.time())
        self._states = WorkerStates(self.folder)
        self._states.write_service(self.service)
        self._connections = self._states.open_connection_counts()

    def run(self) -> int:
        """Supervise until a signal stops the service. Returns the exit code. Call it in the main thread."""
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, self._note_signal) for number in handled}
        last = time.monotonic()
        try:
            while self._processes or not self.service.draining:
                now = time.monotonic()
                self._take_signals()
                self._remove_ended(now)
                self._read_states(min(now - last, 1.0))  # no more, if this process was itself suspended
                if not self.service.draining:
                    self._start_missing(now)
                    self._restart_next()
                self._write_service()
                last = now
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
        finally:
            for worker in self._processes:  # only after an error of ours
                worker.process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.exit_code

    def _note_signal(self, number: int, _frame: Any) -> None:
        self._signals.append(number)
        self._wake.set()

    def _take_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGHUP and not self.service.draining:
                log.info("restarting %d workers one by one", self.workers)
                self._to_restart = [worker for worker in self._processes if worker.leave_by is None]
            elif number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGINT or self.service.draining:
                    self._stop(STOP)
                else:
                    self._stop(DRAIN)

    def _stop(self, order: bytes) -> None:
        """Stop all workers. The last of them to close the socket refuses further connections."""
        self.service = replace(self.service, draining=True)
        self._states.write_service(self.service)  # before the order: a worker that drains looks here
        self.bound.close()
        for worker in self._processes:
            worker.order(order)

    def _remove_ended(self, now: float) -> None:
        for worker in [worker for worker in self._processes if worker.process.poll() is not None]:
            self._processes.remove(worker)
            if worker.process.stdin is not None:
                worker.process.stdin.close()
            self._states.forget_worker(worker.number)
            self._connections.forget(worker.number)
            for other in self._processes:
                other.replaces = None if other.replaces is worker else other.replaces
            if self.service.draining:
                continue
            if not self._has_served:  # the first one: its error is on the screen
                self.exit_code = max(1, worker.process.returncode)
                self._stop(DRAIN)
            elif worker.replaces is not None:
                log.warning(
                    "worker %d cannot start (%s); the earlier workers go on", worker.number, worker.describe_end()
                )
                self._to_restart.clear()
            elif worker.leave_by is None:
                self._note_failure(worker, now)

    def _note_failure(self, worker: Worker, now: float) -> None:
        """Note that a worker has ended unexpectedly, and when the next one may start."""
        self._failures = 0 if now - self._failed > STEADY_SECONDS else self._failures + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (self._failures - 1)) if self._failures else 0.0
        self._failed, self._next_start = now, now + delay
        self.service = replace(self.service, restarts=self.service.restarts + 1)
        log.warning(
            "worker %d has ended with %s; another one starts in %.1f s", worker.number, worker.describe_end(), delay
        )

    def _read_states(self, elapsed: float) -> None:
        """Read the states of the workers. End one that has not written its state for a long time."""
        for worker in self._processes:
            state = self._states.read_worker(worker.number)
            if state is None or state.pid != worker.process.pid:
                continue
            is_new = worker.state is None or state.written != worker.state.written
            worker.state, worker.silent = state, 0.0 if is_new else worker.silent + elapsed
            self._has_served = True
            if worker.replaces is not None and not state.problems:
                self._retire(worker.replaces)
                worker.replaces = None
            is_late = worker.leave_by is not None and time.monotonic() > worker.leave_by
            if is_late or (worker.leave_by is None and not self.service.draining and worker.silent > HUNG_SECONDS):
                log.warning("worker %d does not respond, so it is killed", worker.number)
                worker.process.kill()

    def _retire(self, worker: Worker) -> None:
        worker.leave_by = time.monotonic() + self.drain_seconds + LEAVE_SECONDS
        worker.order(RETIRE)

    def _start_missing(self, now: float) -> None:
        """Start workers that are missing. The first one serves before the others start: it may build an index."""
        lasting = [worker for worker in self._processes if worker.leave_by is None and worker.replaces is None]
        most = self.workers if self._has_served else 1
        if len(lasting) < most and now >= self._next_start:
            for _ in range(most - len(lasting)):
                self._start(None)

    def _restart_next(self) -> None:
        """Start the replacement of the next worker, once the one before is replaced and has ended."""
        if not self._to_restart or any(w.replaces or w.leave_by is not None for w in self._processes):
            return
        worker = self._to_restart.pop(0)
        if worker in self._processes:  # one that has ended meanwhile is replaced already
            self._start(worker)
        if not self._to_restart:
            log.info("the last worker is being replaced")

    def _start(self, replaces: Worker | None) -> None:
        used = {worker.number for worker in self._processes}
        number = next(number for number in range(1, len(used) + 2) if number not in used)
        place = WorkerPlace(self.folder, number, self.bound.fileno())
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            bufsize=0,
            env=os.environ | place.to_environment(),
            pass_fds=[place.descriptor],
            process_group=0,  # Ctrl-C and the end of a terminal reach the supervisor alone
        )
        self._processes.append(Worker(number, process, replaces))

    def _write_service(self) -> None:
        """Write the state of the service if it has changed. Say once that all workers serve."""
        serving = [worker for worker in self._processes if worker.state and worker.leave_by is None]
        numbers = sorted(worker.number for worker in serving if worker.replaces is None)
        service = replace(self.service, serving=numbers)
        self.service = service
        if self._states.read_service() != service:
            self._states.write_service(service)
        if len(numbers) == self.workers and not self._has_begun:
            self._has_begun = True
            assert serving[0].state is not None
            self.begun(serving[0].state.generators)
