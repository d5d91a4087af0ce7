"""The contract of an engine: build an index of the items, answer joins from it, keep it in a folder.

A join is the first-class verb: all queries of a task at once. An engine that only searches is adapted to it
in its own file. Whatever an engine scans with, the scores it returns are those of `knn.scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from nearcast.errors import SpecError
from nearcast.knn.constraints import FREE, Constraints
from nearcast.types import AnyArray, IntArray, Metric, Neighbors, Progress, Vectors

__all__ = [
    "CAPS",
    "MIN_SCORE",
    "RULES",
    "Effort",
    "Engine",
    "EngineSettings",
    "Estimate",
    "Index",
    "JoinShape",
    "Resources",
    "Workload",
    "refuse_kinds",
    "refuse_unhonoured",
]

RULES, CAPS, MIN_SCORE = "rules", "caps", "min_score"  # what an engine may honour inside its join

Effort = Mapping[str, int]
"""How hard an index works for a query, in the engine's own terms, such as {"nprobe": 32}. Empty: no choice."""


class EngineSettings(BaseModel):
    """Base of every engine's settings. What changes the index belongs here; effort is found, or forced here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class JoinShape:
    """The size of a join, for estimates."""

    n_items: int
    n_queries: int
    dim: int
    item_bytes: int  # bytes of one component as the items are kept
    k: int
    recall: float = 1.0  # that is promised


@dataclass(frozen=True, slots=True)
class Resources:
    """What a join may take. None of it changes the answer."""

    threads: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a join will take, as far as is known before it."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage
    memory_bytes: int = 0  # peak, beyond what the process has already
    disk_bytes: int = 0  # of the index


@dataclass(frozen=True, slots=True)
class Workload:
    """What an index will be asked. An engine may fit its index to it; the answers stay within the promise."""

    n_queries: int
    k: int
    recall: float
    sample: AnyArray  # (any, dim) some of the queries
    constraints: Constraints = FREE  # of all queries, in their order; an engine may lay items out for them


class Index(Protocol):
    """Items made ready by an engine. Safe to join from one thread at a time; it uses its own threads inside."""

    def efforts(self, k: int) -> Sequence[Effort]:
        """Efforts to choose from, cheapest first. The last is full effort: as exact as the engine can be."""
        ...

    def is_full(self, effort: Effort) -> bool:
        """Whether a join with this effort leaves nothing out, so that its lists are exact: a forced one may be less."""
        ...

    def join(
        self,
        queries: AnyArray,  # (n, dim)
        k: int,
        *,
        effort: Effort,
        exclude: IntArray | None,  # (n,) the item position that each query must not get, -1 for none
        constraints: Constraints = FREE,  # of these queries; of a kind that the engine honours
        resources: Resources,
        progress: Progress,
    ) -> Neighbors:
        """The k best items of every query that this effort finds among those that the constraints leave."""
        ...

    def pays(
        self, queries: AnyArray, k: int, effort: Effort, resources: Resources, constraints: Constraints = FREE
    ) -> bool:
        """Whether an effort costs less than full effort, judging by these queries.

        By counting, never by the clock: the choice decides the answer, and must be the same in every run.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write into an empty folder what `Engine.open` needs besides the vectors."""
        ...


class Engine(Protocol):
    """Builds and opens indexes. Has no state of its own."""

    name: str
    metrics: frozenset[Metric]
    exact: bool  # full effort is exact by construction, not by luck
    honours: frozenset[str]  # of RULES, CAPS and MIN_SCORE
    fits_workload: bool  # the index depends on the workload, and so must its fingerprint
    settings: type[EngineSettings]

    def estimate(
        self, shape: JoinShape, items: Vectors, metric: Metric, settings: EngineSettings, resources: Resources
    ) -> Estimate:
        """Time, memory and disk of build and join, from a quick trial on a few of the real items."""
        ...

    def build(
        self,
        items: Vectors,
        metric: Metric,
        settings: EngineSettings,
        *,
        workload: Workload | None = None,
        seed: int,
        resources: Resources,
        progress: Progress,
    ) -> Index:
        """Make an index in memory, for a workload if known. Equal arguments give equal answers, resources aside."""
        ...

    def open(self, folder: Path, items: Vectors, metric: Metric, settings: EngineSettings) -> Index:
        """Open what `Index.save` has written, over the same items."""
        ...


def refuse_unhonoured(engine: Engine, constraints: Constraints) -> None:
    """SpecError where the engine would not obey a constraint: none is ever left out in silence."""
    asked = {
        RULES: constraints.eligibility is not None,
        CAPS: bool(constraints.caps),
        MIN_SCORE: constraints.min_score is not None,
    }
    refuse_kinds(engine, asked)


def refuse_kinds(engine: Engine, asked: Mapping[str, bool]) -> None:
    """SpecError where the engine does not support a kind of constraint that is asked for."""
    for kind, wanted in asked.items():
        if wanted and kind not in engine.honours:
            raise SpecError(
                f'engine {engine.name} does not honour {kind} inside its join; write engine = "dense" or "exact"'
            )
