"""Run tasks in several processes of this machine, which share its cores and its memory.

Each worker runs one call at a time and lives until the runner is closed, so that it opens an index once. A stage with
fewer calls than workers gives each of them more cores. A worker that dies (SIGKILL, out of memory) is replaced and its
call tried again. Knows nothing of kNN.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from nearcast.errors import WorkerError
from nearcast.runners.attempts import CallQueue
from nearcast.runners.base import Perform, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.call_messages import encode_area, encode_call, name_perform, read_reply
from nearcast.runners.runner_options import refuse_unknown_options
from nearcast.runners.worker import MEMORY_VARIABLE, THREADS_VARIABLE, HostResources, host_resources

__all__ = ["ProcessRunner", "make_process_runner"]

DEFAULT_WORKERS = 2
STOP_SECONDS = 5.0  # that a worker has to end after its pipe was closed


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker process, and the call that it is running."""

    process: subprocess.Popen[bytes]
    replies: int  # file descriptor
    call: TaskCall | None = None
    received: bytearray = field(default_factory=bytearray)

    def send(self, line: str) -> None:
        """Write a line to the worker's standard input. A dead worker is noticed by its closed pipe of replies."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()


class ProcessRunner(AbstractContextManager["ProcessRunner"]):
    """Runs tasks in worker processes. Starts them with the first call; `close` stops them."""

    name = "processes"
    on_this_host = True

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or DEFAULT_WORKERS
        self._pool: list[WorkerProcess] = []
        self._share: HostResources | None = None  # of this process, divided among the workers

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        """Yield outcomes as they arrive. See `Runner.run`."""
        shared, queue = encode_area(name_perform(perform), area), CallQueue(calls)
        variables = self._divide(len(calls))
        finished = False
        try:
            while queue or any(worker.call for worker in self._pool):
                self._hand_out(shared, variables, queue)
                for worker in self._wait(queue.seconds_to_next()):
                    outcome = self._receive(worker, queue)
                    if outcome is None:
                        continue
                    if outcome.error is not None:
                        self._stop([worker for worker in self._pool if worker.call is not None])
                        yield outcome
                        finished = True
                        return
                    yield outcome
            finished = True
        finally:
            if not finished:  # an error, or the caller reads no further
                self._stop([worker for worker in self._pool if worker.call is not None])

    def close(self) -> None:
        """Stop all workers."""
        self._stop(list(self._pool))

    def _hand_out(self, shared: str, variables: Mapping[str, str], queue: CallQueue) -> None:
        """Give a call to every free worker; start workers as long as there are fewer than allowed."""
        while len(self._pool) < self.workers or any(worker.call is None for worker in self._pool):
            call = queue.take()
            if call is None:
                return
            worker = next((worker for worker in self._pool if worker.call is None), None) or self._start()
            worker.call = call
            worker.send(json.dumps({"variables": variables, "message": [shared, encode_call(call)]}))

    def _divide(self, calls: int) -> dict[str, str]:
        """Return the environment variables of a worker while so many calls run at once."""
        whole = self._share = self._share or host_resources()
        parts = max(1, min(self.workers, calls))
        return {
            THREADS_VARIABLE: str(max(1, whole.threads // parts)),
            MEMORY_VARIABLE: str(whole.memory_bytes // parts),
        }

    def _start(self) -> WorkerProcess:
        variables = self._divide(self.workers)
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", variables[THREADS_VARIABLE])
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "nearcast.runners.process_worker", str(write_end)],
                stdin=subprocess.PIPE,
                pass_fds=[write_end],
                env={**os.environ, **variables},
                start_new_session=True,  # Ctrl-C reaches the driver alone, which then stops its workers
            )
        except OSError as error:
            os.close(read_end)
            raise WorkerError(f"a worker process could not be started ({error}); give fewer workers") from error
        finally:
            os.close(write_end)
        worker = WorkerProcess(process, read_end)
        self._pool.append(worker)
        worker.send(json.dumps({"path": [folder or os.getcwd() for folder in sys.path]}))
        return worker

    def _wait(self, seconds: float | None) -> list[WorkerProcess]:
        """Wait until a worker replies or dies, at most so many seconds. Return those with something to read."""
        with selectors.DefaultSelector() as selector:
            for worker in self._pool:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(seconds)]

    def _receive(self, worker: WorkerProcess, queue: CallQueue) -> TaskOutcome | None:
        """Read what a worker has sent. Return an outcome if that was one; queue the call again after a failure."""
        read = os.read(worker.replies, 1 << 16)
        if not read:
            self._replace(worker, queue)
            return None
        worker.received += read
        if not worker.received.endswith(b"\n"):
            return None
        reply = read_reply(worker.received.decode())
        worker.received.clear()
        call, worker.call = worker.call, None
        if reply.error is not None and call is not None:
            queue.fail(call, reply.error)
        return reply.outcome

    def _replace(self, worker: WorkerProcess, queue: CallQueue) -> None:
        """Remove a dead worker and queue its call again. Another worker is started when it is needed."""
        call = worker.call
        code = worker.process.wait(STOP_SECONDS) if worker.call else 0
        self._stop([worker])
        if call is not None:
            queue.fail(call, WorkerError(f"its worker process {_describe_end(code)}"))

    def _stop(self, workers: Sequence[WorkerProcess]) -> None:
        """Kill busy workers, whose tasks may be run again; end the others by closing their pipe."""
        for worker in workers:
            self._pool.remove(worker)
            if worker.call is not None:
                worker.process.kill()
            with contextlib.suppress(BrokenPipeError):
                assert worker.process.stdin is not None
                worker.process.stdin.close()
        for worker in workers:
            try:
                worker.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            os.close(worker.replies)


def make_process_runner(workers: int | None, options: Mapping[str, Any]) -> ProcessRunner:
    """Return the runner. Raises SpecError for options."""
    refuse_unknown_options("processes", options, ())
    return ProcessRunner(workers)


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        name += ", probably for its memory: give fewer workers, or less memory to each (NEARCAST_MEMORY)"
    return f"was ended by {name}"
