"""States that the workers of one service share: a folder with a file per worker, and one of the supervisor.

A worker writes its state once a second, the supervisor writes which workers serve. Any worker can therefore answer for
the whole service. Counters of the workers are in the same folder; `service.metrics` writes them. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from nearcast.service.shared_accept import ConnectionCounts

__all__ = ["ServiceState", "WorkerPlace", "WorkerState", "WorkerStates"]

VARIABLE = "NEARCAST_WORKER"  # of the environment of a worker: its `WorkerPlace`
STALE_SECONDS = 5.0  # without a new state; the worker then counts as not ready
SERVICE_FILE = "service"
CONNECTIONS_FILE = "connections"
COUNTER_BYTES = 128 << 10  # of a file of counters, for series that name no table
COUNTER_BYTES_PER_TABLE = 16 << 10  # about 40 series of at most 400 bytes with their labels and texts
STATE_BYTES, STATE_BYTES_PER_TABLE = 16 << 10, 2 << 10
HEADER = struct.Struct("<II")  # length and CRC-32 of the JSON text that follows
READS = 100  # of a state that is being written


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What the supervisor gives to a worker: the shared folder, its number there, and the descriptor of the socket."""

    folder: Path
    number: int
    descriptor: int

    def to_environment(self) -> dict[str, str]:
        """Return the environment variable that holds the place."""
        return {VARIABLE: json.dumps([str(self.folder), self.number, self.descriptor])}

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the place of this process; None if it is not a worker."""
        text = os.environ.pop(VARIABLE, None)  # not for processes that this one starts
        if text is None:
            return None
        folder, number, descriptor = json.loads(text)
        return cls(Path(folder), number, descriptor)

    def open_socket(self) -> socket.socket:
        """Return the socket that all workers share."""
        return socket.socket(fileno=self.descriptor)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What the supervisor says of the service."""

    workers: int  # how many should serve
    serving: list[int] = field(default_factory=list)  # numbers of the workers that serve
    draining: bool = False  # the whole service is stopping
    restarts: int = 0  # workers started in place of one that ended unexpectedly
    began: float = 0.0  # seconds since 1970


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker says of itself."""

    pid: int
    generators: str  # names and snapshots, for a message
    problems: list[str] = field(default_factory=list)  # why it is not ready
    warnings: list[str] = field(default_factory=list)
    unopened: list[str] = field(default_factory=list)  # tables that it could not open
    gauges: dict[str, dict[str, float]] = field(default_factory=dict)  # generator: gauge: value
    process: dict[str, float] = field(default_factory=dict)  # process metric: value
    failing_since: dict[str, float] = field(default_factory=dict)  # generator: since when it does not follow the store
    written: float = 0.0  # by the monotonic clock, which all processes of a machine share


class WorkerStates:
    """The shared folder, as one worker or the supervisor uses it."""

    def __init__(self, folder: Path, number: int | None = None) -> None:
        self.folder = folder
        self.number = number

    def write_service(self, state: ServiceState) -> None:
        """Replace the state of the service. Only the supervisor does."""
        _write(self.folder / SERVICE_FILE, asdict(state))

    def read_service(self) -> ServiceState:
        """Return the state of the service."""
        state = _read(self.folder / SERVICE_FILE)
        assert state is not None, "the supervisor writes it before it starts a worker"
        return ServiceState(**state)

    def write_worker(self, state: WorkerState) -> None:
        """Replace the state of this worker."""
        _write(self._worker_file(self.number), asdict(state) | {"written": time.monotonic()})

    def read_worker(self, number: int) -> WorkerState | None:
        """Return the state of a worker; None before it serves."""
        state = _read(self._worker_file(number))
        return None if state is None else WorkerState(**state)

    def forget_worker(self, number: int) -> None:
        """Remove the state of a worker that has ended. Its counters stay, for the sums."""
        self._worker_file(number).unlink(missing_ok=True)

    def read_others(self, service: ServiceState) -> list[WorkerState | None]:
        """Return the states of the other workers that serve; None for one that has not responded for a while."""
        now = time.monotonic()
        states = [self.read_worker(number) for number in service.serving if number != self.number]
        return [state if state and now - state.written < STALE_SECONDS else None for state in states]

    def merge_problems(self, own: Iterable[str]) -> list[str]:
        """Return why the service is not ready: the problems of all workers, and workers that are missing."""
        service = self.read_service()
        others = self.read_others(service)
        problems = ["the service is stopping"] if service.draining else []
        if self.number in service.serving:
            problems += own
        problems += [problem for state in others if state for problem in state.problems]
        missing = service.workers - len(service.serving)
        if missing > 0:
            problems.append(f"{missing} of {service.workers} workers are not started")
        silent = others.count(None)
        if silent:
            problems.append(f"{silent} of {service.workers} workers have not responded for {STALE_SECONDS:g} s")
        return list(dict.fromkeys(problems))

    def merge_lists(self, own: Iterable[str], read: Callable[[WorkerState], Iterable[str]]) -> list[str]:
        """Return the texts of this worker and of the others, each once."""
        others = [state for state in self.read_others(self.read_service()) if state]
        return list(dict.fromkeys([*own, *(text for state in others for text in read(state))]))

    def merge_gauges(
        self, own: Mapping[str, Mapping[str, float]], combine: Mapping[str, Callable[[Iterable[float]], float]]
    ) -> dict[str, dict[str, float]]:
        """Return each gauge of each generator over all workers. combine: gauge: how its values are combined."""
        states = [own, *(state.gauges for state in self.read_others(self.read_service()) if state)]
        merged: dict[str, dict[str, float]] = {}
        for generator in dict.fromkeys(name for state in states for name in state):
            values = [state[generator] for state in states if generator in state]
            merged[generator] = {
                gauge: merge([value[gauge] for value in values if not math.isnan(value[gauge])] or [math.nan])
                for gauge, merge in combine.items()
            }
        return merged

    def find_failing_since(self, generator: str, own: float) -> float:
        """Return since when a generator does not follow the store in any worker. own: in this one."""
        others = self.read_others(self.read_service())
        return min([own, *(state.failing_since.get(generator, own) for state in others if state)])

    def open_connection_counts(self) -> ConnectionCounts:
        """Open the number of connections of each worker."""
        return ConnectionCounts(self.folder / CONNECTIONS_FILE, self.read_service().workers)

    def list_counter_files(self) -> list[str]:
        """Return the files of the counters of all workers, former ones included."""
        return sorted(str(path) for path in self.folder.glob("*.db") if path.stat().st_size)

    def reserve(self, tables: int) -> None:
        """Allocate the files of this worker, so that a disk that is full later neither ends nor silences it.

        tables: number of generators and tables. Raises OSError if the disk is full.
        """
        _allocate(self.folder / f"counter_{self.number}.db", COUNTER_BYTES + COUNTER_BYTES_PER_TABLE * tables)
        _allocate(self.folder / f"histogram_{self.number}.db", COUNTER_BYTES)
        _allocate(self._worker_file(self.number), STATE_BYTES + STATE_BYTES_PER_TABLE * tables)

    def _worker_file(self, number: int | None) -> Path:
        return self.folder / f"worker-{number}"


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Write data over a file, in place: that needs no space on the disk."""
    text = json.dumps(data).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, HEADER.pack(len(text), zlib.crc32(text)) + text, 0)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the data of a file; None if it has none yet. It may be written at the same time."""
    for _ in range(READS):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        length, checksum = HEADER.unpack_from(content) if len(content) >= HEADER.size else (0, 0)
        text = content[HEADER.size : HEADER.size + length]
        if not length:
            return None
        if zlib.crc32(text) == checksum:
            return dict(json.loads(text))
    return None
