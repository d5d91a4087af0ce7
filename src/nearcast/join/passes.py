"""The number of passes that a memory budget needs: items that do not fit it are joined shard by shard, and each fits.

A pass holds the index of one shard while it is built, then maps the index and the vectors of the shard. The number
depends on sizes, engine and budget alone, never on threads or on what a machine has free: a budget that a spec sets
gives the same shards on every machine.
"""

from __future__ import annotations

from dataclasses import replace

from nearcast.engines.base import Engine, EngineSettings, JoinShape
from nearcast.spec import GeneratorSpec

__all__ = ["FIXED_BYTES", "LIBRARY_BYTES", "budget_of_process", "bytes_of_pass", "count_passes"]

FIXED_BYTES = 128 << 20  # Python, its libraries, and what they keep when they are first used
LIBRARY_BYTES = 48 << 20  # of that: what Arrow, BLAS and faiss take when they are first used
SMALLEST_SHARD = 4_096  # items; smaller ones save no memory
DEFAULT_WORKERS = 2  # of `processes`


def budget_of_process(spec: GeneratorSpec, budget_bytes: int) -> int:
    """Return the memory that one process of a run may use. spec: as planned, without the limits of a host.

    budget_bytes: of the process that asks. It is shared by the workers of `processes` if the spec sets no memory.
    """
    if spec.run.worker_memory is not None:
        return min(budget_bytes, spec.run.worker_memory)
    if spec.run.runner == "processes" and spec.memory is None:
        return budget_bytes // (spec.run.workers or DEFAULT_WORKERS)
    return budget_bytes


def bytes_of_pass(engine: Engine, settings: EngineSettings, shape: JoinShape, shards: int) -> int:
    """Return the memory that one of so many shards needs: of its build, or of its files and the buffers of a join.

    Rules are compiled for all items and queries before the index of one shard; for several, for a shard while it is
    joined.
    """
    rows = -(-shape.n_items // shards)
    found = engine.estimate_sizes(replace(shape, n_items=rows), settings)
    needed = 0 if found is None else max(found.memory_bytes, found.mapped_bytes + found.working_bytes)
    of_items, of_queries = rows * shape.attribute_bytes[0], shape.n_queries * shape.attribute_bytes[1]
    return FIXED_BYTES + (max(needed, of_items + of_queries) if shards == 1 else needed + of_items)


def count_passes(engine: Engine, settings: EngineSettings, shape: JoinShape, memory_bytes: int) -> int:
    """Return the smallest number of shards that fit the memory; the largest number that saves memory if none does."""
    low, high = 1, max(1, -(-shape.n_items // SMALLEST_SHARD))
    while low < high:  # halves the interval
        middle = (low + high) // 2
        fits = bytes_of_pass(engine, settings, shape, middle) <= memory_bytes
        low, high = (low, middle) if fits else (middle + 1, high)
    return low
