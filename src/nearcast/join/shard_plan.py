"""The item shards of a run: how many, which items, what cannot work on shards, and the vectors of one shard.

A run with one shard is a run as ever: nothing here changes it. Positions are cut, so that the shards depend on the
number of items alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nearcast.eligibility import collect_columns
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.errors import SpecError
from nearcast.files import fingerprint
from nearcast.join.compile_constraints import parse_rules
from nearcast.join.context import RunContext
from nearcast.join.passes import FIXED_BYTES, LIBRARY_BYTES, budget_of_process, count_passes
from nearcast.join.shard_constraints import CapColumn, defer_constraints, order_caps
from nearcast.knn.constraints import Constraints
from nearcast.knn.item_shards import cut_items
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.sources.ranged_table import cut_at, edges_of
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import Artifacts
from nearcast.types import FileVectors, RangeOfVectors, Vectors

__all__ = [
    "ItemShards",
    "choose_shards",
    "count_shards",
    "open_shard_vectors",
    "plan_shards",
    "refuse_on_shards",
    "shard_artifacts",
]

COPY_ROWS = 1 << 16
BASE_STEP = 64 << 20  # by which a budget is reduced, so that it differs little between processes
VALUE_BYTES = 48  # of a value of an attribute, as it is read and compiled


@dataclass(frozen=True, slots=True)
class ItemShards:
    """The shards of the items of a run, two or more, none empty, and its caps."""

    ranges: tuple[tuple[int, int], ...]  # start and stop of each shard, in order
    caps_by: tuple[CapColumn, ...] = ()  # smallest groups first

    def make_constraints(self, spec: GeneratorSpec, inputs: Inputs) -> Constraints:
        """Return the constraints of a run, which are compiled for a shard when it is joined."""
        return defer_constraints(spec, inputs, self.ranges, self.caps_by)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. `from_dict` reads it back."""
        return {
            "count": len(self.ranges),
            "items": self.ranges[-1][1],
            "caps": [[cap.column, cap.most] for cap in self.caps_by],
        }

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> ItemShards:
        """Read what `as_dict` returned."""
        ranges = cut_items(facts["items"], facts["count"])
        return cls(tuple(ranges), tuple(CapColumn(column, most) for column, most in facts["caps"]))


def count_shards(spec: GeneratorSpec, n_items: int, vector_bytes: int) -> int:
    """Return the number of shards that a spec asks for: 1 by default, and never more than items."""
    asked = spec.run.shards or 1
    if spec.run.shard_bytes is not None:
        asked = -(-n_items * vector_bytes // spec.run.shard_bytes)
    return max(1, min(asked, n_items))


def choose_shards(run: RunContext, planned: GeneratorSpec, shape: JoinShape) -> int:
    """Return the number of shards that the spec sets, else as many as the memory of a process needs.

    planned: the spec without the limits of this host.
    """
    spec = run.spec
    if spec.run.shards is not None or spec.run.shard_bytes is not None:
        return count_shards(spec, shape.n_items, shape.dim * shape.item_bytes)
    if has_near_duplicate_caps(spec):
        return 1
    item_columns, query_columns, _ = collect_columns(parse_rules(spec))
    columns = len({*item_columns, *(cap.by for cap in spec.caps)}), len(query_columns)
    shape = replace(shape, attribute_bytes=(columns[0] * VALUE_BYTES, columns[1] * VALUE_BYTES))
    return _fit_shards(run, shape, budget_of_process(planned, run.meter.budget_bytes))


def _fit_shards(run: RunContext, shape: JoinShape, budget_bytes: int) -> int:
    """Return the number of shards that the budget needs; more in a process that held more than Python before the run.

    Such a process is a notebook with tables in memory, for example. Others have the same number on every machine.
    """
    count = count_passes(run.engine, run.settings, shape, budget_bytes)
    more = run.meter.base_bytes + LIBRARY_BYTES - FIXED_BYTES
    sizes = run.engine.estimate_sizes(replace(shape, n_items=-(-shape.n_items // count)), run.settings)
    if more <= 0 or sizes is None:
        return count
    needed = FIXED_BYTES + more + max(sizes.memory_bytes, sizes.working_bytes)
    if needed <= budget_bytes:
        return count
    return count_passes(run.engine, run.settings, shape, budget_bytes - -(-more // BASE_STEP) * BASE_STEP)


def plan_shards(run: RunContext, planned: GeneratorSpec, inputs: Inputs) -> ItemShards | None:
    """Return the shards of the items that are joined; None for one. Raises SpecError or BudgetError for caps.

    planned: the spec without the limits of this host.
    """
    spec, items, queries = run.spec, inputs.items.vectors, inputs.queries.vectors
    request = JoinRequest(inputs.metric, spec.join_k, spec.recall)
    count = choose_shards(run, planned, JoinShape(request, items.n, queries.n, items.dim, items.dtype.itemsize))
    if count == 1:
        return None
    refuse_on_shards(spec)
    ranges = cut_items(items.n, count)
    return ItemShards(tuple(ranges), tuple(order_caps(spec, inputs.items, memory_bytes=run.resources.memory_bytes)))


def has_near_duplicate_caps(spec: GeneratorSpec) -> bool:
    """Return whether a cap groups items by the similarity of their vectors."""
    return any(cap.near_duplicate_cosine is not None for cap in spec.caps)


def refuse_on_shards(spec: GeneratorSpec) -> None:
    """Raise SpecError for settings that need all items at once, with the reason and the way out.

    Rules, caps by columns, minimum scores, score terms, over-fetch, exposure caps and ranking work on shards.
    """
    if has_near_duplicate_caps(spec):
        raise SpecError(
            "a cap with near_duplicate_cosine compares every item with all others, and no task of a run with "
            "several item shards holds all items; write the groups into a column before the run and cap by it, or "
            "leave run.shards out"
        )


def shard_artifacts(items: IngestedTable, shards: ItemShards) -> set[str]:
    """Return the names of the artifacts that hold vectors of shards."""
    return {
        _vectors_name(items, *cut)
        for cut in shards.ranges
        if items.ranges is not None and _one_range(items, *cut) is None
    }


def open_shard_vectors(artifacts: Artifacts, items: IngestedTable, start: int, stop: int) -> Vectors:
    """Return the vectors of the items start..stop-1, which can be mapped as one array.

    They are a view where the table is one file, or the shard lies in one id range. Otherwise they are copied into an
    artifact of their own, once.
    """
    if items.ranges is None:
        return RangeOfVectors(items.vectors, start, stop)
    inside = _one_range(items, start, stop)
    if inside is not None:
        number, first, last = inside
        return RangeOfVectors(FileVectors.open(items.ranges.open(number) / "vectors.npy"), first, last)
    vectors = items.vectors

    def write(folder: Path) -> dict[str, Any]:
        header = {
            "descr": np.lib.format.dtype_to_descr(vectors.dtype),
            "fortran_order": False,
            "shape": (stop - start, vectors.dim),
        }
        with (folder / "vectors.npy").open("wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for block in _read_blocks(vectors, start, stop):
                np.ascontiguousarray(block).tofile(out)
        return {"of": items.fingerprint, "start": start, "stop": stop}

    return FileVectors.open(artifacts.ensure(_vectors_name(items, start, stop), write) / "vectors.npy")


def _one_range(items: IngestedTable, start: int, stop: int) -> tuple[int, int, int] | None:
    """Return the id range that holds these positions, and their places there; None if they lie in several."""
    assert items.ranges is not None
    parts = list(cut_at(edges_of(items.ranges.vectors), start, stop))
    return parts[0] if len(parts) == 1 else None


def _vectors_name(items: IngestedTable, start: int, stop: int) -> str:
    return f"shard-{fingerprint([items.fingerprint, start, stop])[:16]}"


def _read_blocks(vectors: Vectors, start: int, stop: int) -> Iterator[Any]:
    for first in range(start, stop, COPY_ROWS):
        yield vectors.read(first, min(stop, first + COPY_ROWS))
