"""The contract of an engine: build an index over the items, answer kNN joins with it, save and open it.

A join takes all queries of a task at once. An engine that only searches is adapted to joins in its own file. Every
engine returns the scores that `knn.scores` defines, whatever it scans with. Knows nothing of ids, specs or snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from nearcast.errors import SpecError
from nearcast.knn.constraints import Constraints
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.types import AnyArray, IntArray, Metric, Neighbors, Progress, Vectors, no_progress

__all__ = [
    "CAPS",
    "MIN_SCORE",
    "RULES",
    "Engine",
    "EngineSettings",
    "Estimate",
    "Index",
    "IndexSpec",
    "JoinRequest",
    "JoinShape",
    "Resources",
    "SearchParams",
    "Workload",
    "require_constraint_kinds",
    "require_constraints",
]

RULES, CAPS, MIN_SCORE = "rules", "caps", "min_score"  # kinds of constraints that an engine may support in its join

SearchParams = Mapping[str, int]
"""Search parameters of an engine, for example {"nprobe": 32}. Empty for an engine without any."""


class EngineSettings(BaseModel):
    """Base class of the settings of an engine: parameters of the index, and search parameters that the user fixes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class JoinShape:
    """A join request and the sizes of its two tables, for estimates."""

    request: JoinRequest
    n_items: int
    n_queries: int
    dim: int
    item_bytes: int  # bytes per component of a stored item
    attribute_bytes: tuple[int, int] = (0, 0)  # of an item and of a query: attributes that rules and caps read


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated cost of a join."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage
    memory_bytes: int = 0  # peak that no other process can use, without what this process uses already
    disk_bytes: int = 0  # of the saved index
    mapped_bytes: int = 0  # of the files that a join maps: index and vectors
    working_bytes: int = 0  # of the buffers of a join


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """Metric, settings and seed of an index. With the items and the workload they decide its contents."""

    metric: Metric
    settings: EngineSettings
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """The join that an index is built for. An engine may fit the index to it; the recall target still holds."""

    request: JoinRequest
    n_queries: int
    sample: AnyArray  # (any, dim) some of the queries


class Index(Protocol):
    """An open index. One thread joins at a time; the index uses its own threads inside."""

    def operating_points(self, k: int) -> Sequence[SearchParams]:
        """Return the search parameters to choose from, cheapest first. The last are the most exact ones."""
        ...

    def is_exact(self, params: SearchParams) -> bool:
        """Return whether a join with these parameters scans every item, so that its lists are exact."""
        ...

    def join(
        self,
        queries: AnyArray,  # (n, dim)
        request: JoinRequest,  # for these queries; constraints of a kind that the engine supports
        params: SearchParams,
        resources: Resources,
        progress: Progress = no_progress,
    ) -> Neighbors:
        """Return the k best scanned items per query that the constraints allow."""
        ...

    def items_scanned(
        self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources
    ) -> float | None:
        """Return the mean number of items scanned per query, padding included; None if the engine does not count."""
        ...

    def count_found(
        self,
        queries: AnyArray,
        request: JoinRequest,
        truth: Neighbors,
        points: Sequence[SearchParams],
        resources: Resources,
    ) -> IntArray | None:
        """Predict (points, n) the number of true neighbours that joins at these points find; None if it takes joins."""
        ...

    def is_cheaper(self, queries: AnyArray, request: JoinRequest, params: SearchParams, resources: Resources) -> bool:
        """Return whether these parameters cost less than an exact join of these queries.

        Decides by counts, never by the clock: the decision changes the answer, so it must be the same in every run.
        """
        ...

    def save(self, folder: Path, resources: Resources) -> None:
        """Write the index into an empty folder, without the items' vectors. `Engine.open` reads it back."""
        ...


class Engine(Protocol):
    """Builds and opens indexes. Stateless."""

    name: str
    metrics: frozenset[Metric]
    exact: bool  # the exact operating point is proven exact and fast enough to be the reference of a calibration
    supports: frozenset[str]  # of RULES, CAPS and MIN_SCORE
    fits_workload: bool  # the index depends on the workload, and so must its fingerprint
    persists_index: bool  # False: nothing is built, so that an index folder is never written
    search_param: str | None  # search parameter of single-query search; None: the engine cannot search single queries
    max_scan_share: float  # a join that scans a larger share of the items is done exactly instead
    libraries: tuple[str, ...]  # modules whose version changes the index or the lists: all workers have the same one
    settings: type[EngineSettings]

    def is_exact(self, params: SearchParams) -> bool:
        """Return whether these parameters alone prove exact lists. False if that depends on the index."""
        ...

    def estimate(self, shape: JoinShape, items: Vectors, settings: EngineSettings, resources: Resources) -> Estimate:
        """Estimate time, memory and disk of build and join, from a short trial on a few of the real items."""
        ...

    def estimate_sizes(self, shape: JoinShape, settings: EngineSettings) -> Estimate | None:
        """Estimate memory and disk of index and join without a trial, so without seconds; None if that needs one."""
        ...

    def count_pairs(self, shape: JoinShape) -> Mapping[str, float]:
        """Return the work by stage with default settings, in pairs of an exact join: the same on every machine."""
        ...

    def build(
        self,
        items: Vectors,
        spec: IndexSpec,
        resources: Resources,
        *,
        workload: Workload | None = None,
        progress: Progress = no_progress,
    ) -> Index:
        """Build an index in memory. Equal items, spec and workload give equal answers, whatever the resources."""
        ...

    def open(self, folder: Path, items: Vectors, spec: IndexSpec) -> Index:
        """Open an index that `Index.save` wrote, over the same items. Raises DamagedError for unreadable files."""
        ...

    def open_moved(self, folder: Path, items: Vectors, spec: IndexSpec, now: IntArray) -> Index | None:
        """Open a saved index over a later table, for joins without rules with the items that both tables hold.

        now: (saved items,) the position of each in `items`, ascending; -1 for one that was removed or changed. Returns
        None if the engine cannot. Raises DamagedError for unreadable files.
        """
        ...


def require_constraints(engine: Engine, constraints: Constraints) -> None:
    """Raise SpecError if the engine does not support a kind of constraint that is set."""
    kinds = {
        RULES: constraints.eligibility is not None,
        CAPS: bool(constraints.caps),
        MIN_SCORE: constraints.min_score is not None,
    }
    require_constraint_kinds(engine, kinds)


def require_constraint_kinds(engine: Engine, kinds: Mapping[str, bool]) -> None:
    """Raise SpecError if the engine does not support one of the kinds of constraints that are True."""
    for kind, is_set in kinds.items():
        if is_set and kind not in engine.supports:
            raise SpecError(
                f'engine {engine.name} does not support {kind} inside its join; write engine = "dense" or "exact"'
            )
