"""The request of a kNN join, and the resources it may use: the values that every engine, kernel and measure takes.

Knows nothing of ids, files or specs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nearcast.knn.constraints import FREE, Constraints
from nearcast.types import FloatArray, IntArray, Metric

__all__ = ["JoinRequest", "Resources"]


@dataclass(frozen=True, slots=True, eq=False)
class JoinRequest:
    """A kNN join: metric, list length, recall target, and the constraints on each query's list.

    `exclude_self` is stated in ids. Code that knows the ids resolves it into `exclude`; engines read `exclude` alone.
    """

    metric: Metric
    k: int
    recall: float = 1.0  # target; 1: exact lists
    exclude_self: bool = False  # whether the item with the query's own id is left out
    exclude: IntArray | None = None  # (n_queries,) position of the item left out of each list, -1 for none
    constraints: Constraints = FREE  # of all queries, in their order
    thresholds: FloatArray | None = None  # (n_queries,) float32, items that score less are left out; -inf: none are

    def of_queries(self, rows: IntArray | slice) -> JoinRequest:
        """Return the request for the queries at these positions, in this order."""
        exclude = None if self.exclude is None else self.exclude[rows]
        thresholds = None if self.thresholds is None else self.thresholds[rows]
        return replace(self, exclude=exclude, constraints=self.constraints.of_queries(rows), thresholds=thresholds)


@dataclass(frozen=True, slots=True)
class Resources:
    """Threads and memory that a join may use. They do not change the answer."""

    threads: int = 1
    memory_bytes: int = 1 << 30
