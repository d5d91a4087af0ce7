"""What the stages of one run share: the spec, the engine, where things go, what may be taken, what it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nearcast import machine
from nearcast.engines import choose_engine
from nearcast.engines.base import Engine, EngineSettings, Resources
from nearcast.errors import BudgetError, SpecError
from nearcast.join.listener import Listener
from nearcast.overfetch.survival_log import Counts
from nearcast.sources.parquet_files import ParquetFiles
from nearcast.sources.user_files import shown_path
from nearcast.spec import GeneratorSpec, parse_model

__all__ = ["STAGES", "RunContext", "prepare"]

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
SMALLEST_WORK = 64 << 20  # below that not even one block of each kind can be held
LARGEST_READ = 1 << 30  # more would not make reading faster


@dataclass(slots=True)
class RunContext:
    """What the stages of one run share."""

    spec: GeneratorSpec
    base: Path
    out: Path
    engine: Engine
    settings: EngineSettings
    listener: Listener
    budget_bytes: int
    base_bytes: int
    resources: Resources
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of all threads of this process
    lookups: ParquetFiles | None = None  # the log of look-ups that survival is learned from, as it was at the start
    lookup_counts: Counts | None = None  # what it says of each item

    @property
    def home(self) -> Path:
        """The folder of the generator."""
        return self.out / self.spec.name

    @property
    def artifacts(self) -> Path:
        """Intermediate results that the next run may use again."""
        return self.home / "artifacts"

    @property
    def truths(self) -> Path:
        """The exact neighbors of sampled queries, which later runs update. They outlive the snapshots."""
        return self.artifacts / "truth"

    @property
    def work(self) -> Path:
        """What is under way."""
        return self.home / "work"

    @property
    def read_bytes(self) -> int:
        """What reading the inputs may take."""
        return min(LARGEST_READ, self.resources.memory_bytes // 2)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu


def prepare(spec: GeneratorSpec, base: Path, listener: Listener) -> RunContext:
    """Resolve engine, settings and resources; BudgetError when not even the smallest blocks would fit."""
    _refuse_odd_name(base / spec.out)
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
    resources = Resources(spec.threads or machine.default_threads(), work_bytes)
    return RunContext(spec, base, base / spec.out, engine, settings, listener, budget, base_bytes, resources)


def _refuse_odd_name(out: Path) -> None:
    """SpecError for a folder that Arrow cannot write to: its names are UTF-8."""
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:
        shown = shown_path(out)
        raise SpecError(
            f"out is {shown}, a name that is not UTF-8, and Parquet cannot be written there; rename the folder, or "
            "name another: out"
        ) from None
