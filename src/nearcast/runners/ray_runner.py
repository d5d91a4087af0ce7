"""Run tasks on Ray, as core tasks. Only calls and outcomes go through Ray: data travel by storage.

Ray runs a call again if its worker or its node dies. A fault that a task raises comes back as a value, so that it keeps
its class, and is tried again from here. Knows nothing of kNN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nearcast.errors import MissingExtraError, WorkerError
from nearcast.runners.attempts import MOST_ATTEMPTS, CallQueue, name_call
from nearcast.runners.base import TaskCall, TaskOutcome
from nearcast.runners.call_messages import encode_call, perform_message, read_reply
from nearcast.runners.cluster_runner import ClusterRunner
from nearcast.runners.runner_options import refuse_unknown_options
from nearcast.runners.worker import TaskRoom, host_resources, reserve_room

__all__ = ["RayOptions", "RayRunner", "make_ray_runner", "perform_on_ray"]

ADDRESS_VARIABLE = "RAY_ADDRESS"
IN_FLIGHT = 64  # calls that Ray holds at least, so that a cluster that grows sees that it should


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Options of the runner `ray`."""

    address: str | None = None  # of a cluster; default: RAY_ADDRESS, else a Ray of this machine alone
    cores: int | None = None  # of each task; default: those of the smallest node


class RayRunner(ClusterRunner):
    """Runs tasks on a Ray cluster, or on a Ray that it starts on this machine and stops with `close`."""

    name = "ray"

    def __init__(self, workers: int | None = None, options: RayOptions | None = None) -> None:
        super().__init__(workers)
        self.options = options or RayOptions()
        self._ray: Any = None

    def _run_queue(self, shared: str, queue: CallQueue) -> Iterator[TaskOutcome]:
        """Keep as many calls in Ray as it has room for, and more."""
        ray, calls = self._connect(), len(queue)
        cores = self.options.cores or self._smallest_node()
        remote = ray.remote(num_cpus=cores, max_retries=MOST_ATTEMPTS - 1, retry_exceptions=False)(perform_on_ray)
        running: dict[Any, TaskCall] = {}
        try:
            while queue or running:
                there = self._count_slots(cores)  # a cluster may grow
                most = self.workers or max(IN_FLIGHT, 2 * there)
                slots = max(1, min(there, most))
                room = TaskRoom(cores, slots, min(calls, slots))
                while len(running) < most and (call := queue.take()) is not None:
                    running[remote.remote(shared, encode_call(call), room)] = call
                ended, _ = ray.wait(list(running), timeout=queue.seconds_to_next()) if running else ([], [])
                for reference in ended:
                    outcome = self._receive(reference, running.pop(reference), queue)
                    if outcome is not None:
                        yield outcome
                        if outcome.error is not None:
                            return
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _stop(self) -> None:
        self._ray.shutdown()
        self._ray = None

    def _receive(self, reference: Any, call: TaskCall, queue: CallQueue) -> TaskOutcome | None:
        """Return the outcome of a call; queue it again after a fault. Raises if Ray gave up."""
        try:
            reply = read_reply(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            text = " ".join(str(error).split())
            lost = self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError
            if isinstance(error, lost):  # Ray itself has tried again
                raise name_call(WorkerError(f"its Ray worker was lost: {text}"), call, MOST_ATTEMPTS) from error
            raise WorkerError(f"task {call.name} was given up by Ray: {text}") from error
        if reply.error is not None:
            queue.fail(call, reply.error)
        return reply.outcome

    def _connect(self) -> Any:
        """Return the module `ray`, connected. Uses the connection of this process if there is one."""
        if self._ray is not None and self._ray.is_initialized():
            return self._ray
        self._ray = ray = _import_ray()
        if ray.is_initialized():
            return ray
        address = self.options.address or os.environ.get(ADDRESS_VARIABLE)
        try:
            if address:
                ray.init(address=address, logging_level="WARNING")
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cores = host_resources().threads
                ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="WARNING")
                self._is_ours = True
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {address}" if address else "on this machine"
            raise WorkerError(f"Ray {where} cannot be reached ({error}); start it, or correct the address") from error
        return ray

    def _list_cores(self) -> list[int]:
        """Return the cores of each node that has some."""
        alive = (node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"])
        return [int(cores) for cores in alive if cores >= 1]

    def _smallest_node(self) -> int:
        """Return the cores of a task: a node runs one task at a time, unless fewer nodes than workers are there."""
        cores = self._list_cores()
        if not cores:
            raise WorkerError("the Ray cluster has no node with a core; add one with `ray start --num-cpus`")
        return max(1, min(cores) // -(-(self.workers or 1) // len(cores)))

    def _count_slots(self, cores: int) -> int:
        return sum(there // cores for there in self._list_cores())


def perform_on_ray(shared: str, call: str, room: TaskRoom) -> str:
    """Run a call on a Ray worker. It may use the cores that Ray reserved for it, or more in a short stage."""
    reserve_room(room)
    return perform_message(shared, call)


def make_ray_runner(workers: int | None, options: Mapping[str, Any]) -> RayRunner:
    """Return the runner. Raises SpecError for unknown options, MissingExtraError if Ray is not installed."""
    refuse_unknown_options("ray", options, RayOptions.__slots__)
    _import_ray()
    return RayRunner(workers, RayOptions(**options))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("runner 'ray' needs Ray: pip install 'nearcast[ray]'") from error
    return ray
