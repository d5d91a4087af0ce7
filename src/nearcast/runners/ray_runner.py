"""Run tasks on Ray, as core tasks. Only calls and outcomes go through Ray: data travel by storage.

Ray runs a call again if its worker or its node dies. A fault that a task raises comes back as a value, so that it keeps
its class, and is tried again from here. Knows nothing of kNN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from nearcast.errors import MissingExtraError, WorkerError
from nearcast.runners.attempts import MOST_ATTEMPTS, CallQueue, name_call
from nearcast.runners.base import Perform, TaskCall, TaskOutcome, WorkArea
from nearcast.runners.call_messages import encode_area, encode_call, name_perform, perform_message, read_reply
from nearcast.runners.runner_options import refuse_unknown_options
from nearcast.runners.worker import host_resources, reserve_cores

__all__ = ["RayOptions", "RayRunner", "make_ray_runner", "perform_on_ray"]

ADDRESS_VARIABLE = "RAY_ADDRESS"
IN_FLIGHT = 64  # calls that Ray holds at least, so that a cluster that grows sees that it should


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Options of the runner `ray`."""

    address: str | None = None  # of a cluster; default: RAY_ADDRESS, else a Ray of this machine alone
    cores: int | None = None  # of each task; default: those of the smallest node


class RayRunner:
    """Runs tasks on a Ray cluster, or on a Ray that it starts on this machine and stops with `close`."""

    name = "ray"
    on_this_host = False

    def __init__(self, workers: int | None = None, options: RayOptions | None = None) -> None:
        self.workers = workers  # tasks at once; default: as many as the cluster has room for
        self.options = options or RayOptions()
        self._ray: Any = None
        self._is_ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, perform: Perform, area: WorkArea, calls: Sequence[TaskCall]) -> Iterator[TaskOutcome]:
        """Yield outcomes as they arrive. See `Runner.run`."""
        shared, queue = encode_area(name_perform(perform), area), CallQueue(calls)
        if not calls:
            return
        ray = self._connect()
        cores = self.options.cores or self._smallest_node()
        remote = ray.remote(num_cpus=cores, max_retries=MOST_ATTEMPTS - 1, retry_exceptions=False)(perform_on_ray)
        running: dict[Any, TaskCall] = {}
        try:
            while queue or running:
                most = self.workers or max(IN_FLIGHT, 2 * self._count_slots(cores))
                while len(running) < most and (call := queue.take()) is not None:
                    running[remote.remote(shared, encode_call(call), cores)] = call
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

    def close(self) -> None:
        """Stop the Ray that this runner started; leave a cluster as it is."""
        if self._is_ours:
            self._ray.shutdown()
            self._ray, self._is_ours = None, False

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


def perform_on_ray(shared: str, call: str, cores: int) -> str:
    """Run a call on a Ray worker. It may use the cores that Ray reserved for it."""
    reserve_cores(cores)
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
