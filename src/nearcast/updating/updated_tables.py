"""The tables of a version before and after a batch, as the steps of an update share them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from nearcast.join.compile_constraints import compile_columns, list_constraint_columns
from nearcast.knn.constraints import Constraints
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.ingest import Inputs
from nearcast.types import IntArray
from nearcast.updating.live_table import LiveTable
from nearcast.updating.read_batch import UpdateBatch
from nearcast.updating.served_state import ServedState

__all__ = ["UpdatedTables"]


@dataclass(frozen=True, slots=True, eq=False)
class UpdatedTables:
    """The state before, the batch, and the tables after it."""

    state: ServedState
    batch: UpdateBatch
    items: LiveTable
    queries: LiveTable
    resources: Resources

    def request(self, rows: IntArray, items: IntArray | None = None) -> tuple[JoinRequest, Inputs]:
        """Return the request of an exact join of these queries with all items, or with some, and both tables."""
        spec = self.state.spec
        inputs = Inputs(self.items.as_ingested(items), self.queries.as_ingested(rows), self.state.metric)
        request = JoinRequest(self.state.metric, spec.k, exclude_self=spec.exclude_self)
        query_columns, item_columns = list_constraint_columns(spec)
        if spec.rules or spec.caps or spec.min_score is not None:
            found = compile_columns(
                spec, self.queries.attributes(query_columns, rows), self.items.attributes(item_columns, items)
            )
            request = replace(request, constraints=found)
        exclude = find_own_items(inputs, np.arange(len(rows))) if spec.exclude_self else None
        return replace(request, exclude=exclude), inputs

    def compile_caps(self) -> Constraints:
        """Return the caps over all items, without other constraints."""
        spec = self.state.spec.model_copy(update={"rules": (), "min_score": None})
        columns = list_constraint_columns(spec)[1]
        return compile_columns(spec, pa.table({"id": self.queries.ids.slice(0, 0)}), self.items.attributes(columns))
