"""The values that the stages of a run share: the spec, the workspace (folders), the meter (time and memory)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import Engine, EngineSettings, Resources
from nearcast.errors import BudgetError, SpecError
from nearcast.join.listener import Listener
from nearcast.sources.stage_rows import StageSettings
from nearcast.sources.user_files import shown_path
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.storage.artifacts import Artifacts, open_artifacts
from nearcast.storage.locations import Location, host_folder, resolve_location

__all__ = ["STAGES", "Meter", "RunContext", "Workspace", "prepare"]

STAGES = (
    "hash",
    "check",
    "estimate",
    "read",
    "rules",
    "build",
    "calibrate",
    "join",
    "choose",
    "table",
    "measure",
    "overlap",
    "profile",
)
SMALLEST_WORK = 64 << 20  # one block of each kind does not fit into less
LARGEST_READ = 1 << 30  # reading is not faster with more


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one generator."""

    base: Path  # paths of the spec are relative to it
    out: Location  # holds the folders of all generators; may be in a bucket
    generator: str
    models: Path | None = None  # folder of the ranking model, where it was sent to this host; None: `base`

    @property
    def model_base(self) -> Path:
        """Folder that the ranking model's name is relative to."""
        return self.models or self.base

    @property
    def home(self) -> Path:
        """Folder of the generator on this host: for work, locks and caches."""
        return host_folder(self.out) / self.generator

    @property
    def artifacts(self) -> Path:
        """Intermediate results that later runs may use again."""
        return self.home / "artifacts"

    @property
    def truths(self) -> Path:
        """Exact neighbors of sampled queries. Later runs update them; they outlive the snapshots."""
        return self.artifacts / "truth"

    @property
    def work(self) -> Path:
        """Unfinished work of the current run."""
        return self.home / "work"


class Meter:
    """Measures time and memory of a run: wall and CPU seconds by stage, in total, and the peak of resident memory."""

    def __init__(self, base_bytes: int, budget_bytes: int) -> None:
        self.base_bytes = base_bytes  # resident memory before the run
        self.budget_bytes = budget_bytes  # limit of the process
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}  # of all threads of the process
        self._started = time.perf_counter()
        self._peak: machine.PeakMemory | None = None
        self._worker_peak = 0
        self._of_tasks = 0.0

    @contextmanager
    def run(self) -> Iterator[None]:
        """Measure total time and peak memory from here to the end of the block."""
        with machine.PeakMemory() as self._peak:
            self._started = time.perf_counter()
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - started, time.process_time() - cpu)

    def add(self, stage: str, seconds: float, cpu_seconds: float) -> None:
        """Add the time of work in another process to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.cpu_seconds[stage] = self.cpu_seconds.get(stage, 0.0) + cpu_seconds

    def copy_stages(self) -> dict[str, tuple[float, float]]:
        """Return wall and CPU seconds by stage up to now."""
        return {name: (self.seconds[name], self.cpu_seconds[name]) for name in self.seconds}

    def stages_since(self, earlier: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Return wall and CPU seconds by stage since an earlier copy."""
        now = self.copy_stages()
        before = {name: earlier.get(name, (0.0, 0.0)) for name in now}
        spent = {name: (now[name][0] - before[name][0], now[name][1] - before[name][1]) for name in now}
        return {name: pair for name, pair in spent.items() if name not in earlier or pair[0] > 0}

    def count_tasks(self, stages: Mapping[str, tuple[float, float]], peak_bytes: int) -> None:
        """Replace wall and CPU seconds by those of all tasks of a run that several workers did."""
        self.seconds = {name: seconds for name, (seconds, _) in stages.items()}
        self.cpu_seconds = {name: cpu_seconds for name, (_, cpu_seconds) in stages.items()}
        self._of_tasks = sum(self.seconds.values())
        self.note_peak(peak_bytes)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began; of a run that several workers did, at least the sum of its tasks."""
        return max(time.perf_counter() - self._started, self._of_tasks)

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of the run up to now, of the largest of its processes."""
        return max(self._worker_peak, 0 if self._peak is None else self._peak.bytes)

    def note_peak(self, peak_bytes: int) -> None:
        """Note the peak resident memory of a worker process."""
        self._worker_peak = max(self._worker_peak, peak_bytes)


@dataclass(frozen=True, slots=True)
class RunContext:
    """The spec of a run with its engine and resources, the workspace, the meter, and the listener."""

    spec: GeneratorSpec
    engine: Engine
    settings: EngineSettings
    resources: Resources
    workspace: Workspace
    artifacts: Artifacts  # tables, indexes and constraints, which later runs may use again
    results: Artifacts  # of the tasks of this run
    meter: Meter
    listener: Listener

    @property
    def read_bytes(self) -> int:
        """Memory limit of reading the inputs, in bytes."""
        return min(LARGEST_READ, self.resources.memory_bytes // 2)

    @property
    def stage_settings(self) -> StageSettings:
        """Limits of reading a table, with a scratch folder in the workspace."""
        return StageSettings(self.read_bytes, self.resources.threads, self.workspace.artifacts)


def prepare(
    spec: GeneratorSpec,
    base: Path,
    listener: Listener,
    *,
    artifacts: str | None = None,
    results: str | None = None,
) -> RunContext:
    """Choose the engine, parse its settings and derive the resources.

    artifacts, results: locations of the run's artifacts; default: in the folder of the generator.
    Raises BudgetError if the smallest blocks do not fit into the memory, SpecError for settings or an `out` that
    cannot be used.
    """
    _refuse_name_not_utf8(resolve_location(base, spec.out))
    engine = choose_engine(spec.engine)
    settings = parse_model(engine.settings, spec.engine_settings, f"engine_settings of {engine.name}")
    base_bytes = machine.resident_memory()
    budget = spec.memory or (base_bytes + machine.available_memory()) // 2
    work_bytes = budget - base_bytes
    if work_bytes < SMALLEST_WORK:
        raise BudgetError(
            f"memory is {budget / 1e6:.0f} MB, and Python with its libraries takes {base_bytes / 1e6:.0f} MB of it; "
            f"give at least {(base_bytes + SMALLEST_WORK) / 1e6:.0f} MB"
        )
    workspace = Workspace(base, resolve_location(base, spec.out), spec.name)
    return RunContext(
        spec,
        engine,
        settings,
        Resources(spec.threads or machine.default_threads(), work_bytes),
        workspace,
        open_artifacts(artifacts or workspace.artifacts),
        open_artifacts(results or workspace.work),
        Meter(base_bytes, budget),
        listener,
    )


def _refuse_name_not_utf8(out: Location) -> None:
    """Raise SpecError for a folder name that is not UTF-8: Arrow cannot write there."""
    if not isinstance(out, Path):
        return
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        shown = shown_path(out)
        raise SpecError(
            f"out is {shown}, a name that is not UTF-8, and Parquet cannot be written there; rename the folder, or "
            "set `out` to another"
        ) from None
