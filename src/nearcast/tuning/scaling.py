"""How work grows with the number of items: scale a trial on a sample to the whole job.

Trials keep the number of items per cell, so that a sample is a small picture of the whole tables: its neighborhoods and
its cells are wider. In the whole tables more cells are near a query, by a measured power of the size; the number of
centres grows with it. Each tuned engine is a class and a row of TUNED_ENGINES. Numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nearcast.engines.base import SearchParams

__all__ = [
    "EXACT_POINT",
    "TUNED_ENGINES",
    "Configuration",
    "Growth",
    "build_work",
    "query_work",
    "scale_scanned",
    "scale_settings",
]

TRAINED_PER_CELL = 16  # rows of k-means in `dense`
ROUNDS = 5
PACKING = 500  # vectors scanned in the time that one item is rounded and packed


@dataclass(frozen=True, slots=True)
class Configuration:
    """An engine and the settings of its index, for the whole job."""

    engine: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the configuration in words."""
        words = ", ".join(f"{name} {value:,}" for name, value in self.settings.items())
        return f"{self.engine} {words}".strip()


EXACT_POINT = Configuration("dense", {"cells": 1})


@dataclass(frozen=True, slots=True)
class Growth:
    """How a query's work grows with the items, at equal items per cell. Counted on two samples."""

    power: float = 0.6  # of the scanned items; the default was measured on packages
    overhead: float = 0.0  # constant seconds per query of a join by cells
    exact_overhead: float = 0.0  # constant seconds per query of an exact join


def scale_settings(point: Configuration, share: float) -> dict[str, Any]:
    """Return the settings for a sample of this share of the items, with equal items per cell."""
    scaled = dict(point.settings)
    for name in ("cells", "nlist"):
        if scaled.get(name, 1) > 1:
            scaled[name] = max(2, round(scaled[name] * share))
    return scaled


def scale_scanned(n_items: int, scanned: float, sampled_items: int, growth: Growth) -> float:
    """Return the items scanned per query among n_items, from those scanned in a sample, at equal items per cell."""
    return min(n_items, math.pow(n_items / sampled_items, growth.power) * scanned)


def query_work(
    point: Configuration, n_items: int, params: SearchParams, scanned: float | None, sampled_items: int, growth: Growth
) -> float:
    """Return the vectors that a query is compared with, among n_items, with settings for so many.

    params, scanned: search parameters on a sample of `sampled_items`, and the items scanned per query there.
    """
    operation = SampledOperation(params, scanned, sampled_items, growth)
    return TUNED_ENGINES[point.engine].query_work(point.settings, n_items, operation)


def build_work(point: Configuration, n_items: int) -> float:
    """Return the vectors that are compared while the index is built with these settings."""
    return TUNED_ENGINES[point.engine].build_work(point.settings, n_items)


@dataclass(frozen=True, slots=True)
class SampledOperation:
    """An operating point on a sample, with the growth of its work."""

    params: SearchParams
    scanned: float | None  # items per query; None if the engine does not count
    sampled_items: int
    growth: Growth


class TunedEngine(Protocol):
    """The search space of an engine, and the work of its index. An engine without one is not tuned."""

    def default_settings(self, n_items: int) -> dict[str, int]:
        """Return the settings of the first trial."""
        ...

    def propose_settings(self, proposal: Any, n_items: int) -> dict[str, int]:
        """Return settings drawn from the search space by an Optuna trial."""
        ...

    def query_work(self, settings: Mapping[str, Any], n_items: int, operation: SampledOperation) -> float:
        """Return the vectors that a query is compared with, among n_items, with settings for so many."""
        ...

    def build_work(self, settings: Mapping[str, Any], n_items: int) -> float:
        """Return the vectors that are compared while the index is built."""
        ...

    def overhead(self, growth: Growth, scanned: float | None) -> float:
        """Return the seconds per query that do not grow with the items."""
        ...


class TunedDense:
    """Cells of the engine `dense`; one cell for the exact join."""

    def default_settings(self, n_items: int) -> dict[str, int]:
        """Return the default number of cells."""
        return {"cells": max(2, round(6.5 * math.sqrt(n_items)))}

    def propose_settings(self, proposal: Any, n_items: int) -> dict[str, int]:
        """Draw the number of cells."""
        return {"cells": proposal.suggest_int("cells", *_root_range(n_items, 1.5, 20), log=True)}

    def query_work(self, settings: Mapping[str, Any], n_items: int, operation: SampledOperation) -> float:
        """Count the centres and the scanned items."""
        cells = int(settings.get("cells", 1))
        if cells == 1 or "reach" not in operation.params or operation.scanned is None:
            return n_items
        return cells + scale_scanned(n_items, operation.scanned, operation.sampled_items, operation.growth)

    def build_work(self, settings: Mapping[str, Any], n_items: int) -> float:
        """Count packing, training and assignment."""
        cells = int(settings.get("cells", 1))
        if cells == 1:
            return PACKING * n_items
        groups = cells / 8 + math.sqrt(cells)  # centres that a row is compared with, through groups of them
        return PACKING * n_items + (n_items + ROUNDS * min(n_items, TRAINED_PER_CELL * cells)) * groups

    def overhead(self, growth: Growth, scanned: float | None) -> float:
        """Return the measured overhead of a join by cells, or of an exact join."""
        return growth.overhead if scanned is not None else growth.exact_overhead


class TunedIvf:
    """Cells of the engine `faiss-ivf`."""

    def default_settings(self, n_items: int) -> dict[str, int]:
        """Return the default number of cells."""
        return {"nlist": max(2, round(4 * math.sqrt(n_items)))}

    def propose_settings(self, proposal: Any, n_items: int) -> dict[str, int]:
        """Draw the number of cells."""
        return {"nlist": proposal.suggest_int("nlist", *_root_range(n_items, 1, 16), log=True)}

    def query_work(self, settings: Mapping[str, Any], n_items: int, operation: SampledOperation) -> float:
        """Count the centres and the items of the probed cells."""
        cells = int(settings["nlist"])
        more = math.pow(n_items / operation.sampled_items, operation.growth.power)
        return cells + min(1.0, more * operation.params["nprobe"] / cells) * n_items

    def build_work(self, settings: Mapping[str, Any], n_items: int) -> float:
        """Count ten rounds over 64 rows per cell, then all items."""
        cells = int(settings["nlist"])
        return (n_items + 640.0 * cells) * cells

    def overhead(self, growth: Growth, scanned: float | None) -> float:
        """Return 0: it is not measured."""
        return 0.0


class TunedHnsw:
    """The graph of the engine `faiss-hnsw`."""

    def default_settings(self, n_items: int) -> dict[str, int]:
        """Return settings of a graph that is fast to build."""
        return {"m": 16, "ef_construction": 100}

    def propose_settings(self, proposal: Any, n_items: int) -> dict[str, int]:
        """Draw the links per item and the candidates of an insertion."""
        m = proposal.suggest_int("m", 8, 48, step=8)
        return {"m": m, "ef_construction": proposal.suggest_int("ef_construction", 40, 400, log=True)}

    def query_work(self, settings: Mapping[str, Any], n_items: int, operation: SampledOperation) -> float:
        """Count ef * log n, or all items for the exact operating point."""
        ef = operation.params.get("ef_search", n_items)
        return ef * math.log2(max(2, n_items)) if ef < operation.sampled_items else n_items

    def build_work(self, settings: Mapping[str, Any], n_items: int) -> float:
        """Count n log n."""
        return n_items * math.log2(max(2, n_items))

    def overhead(self, growth: Growth, scanned: float | None) -> float:
        """Return 0: it is not measured."""
        return 0.0


TUNED_ENGINES: Mapping[str, TunedEngine] = {
    "dense": TunedDense(),
    "faiss-ivf": TunedIvf(),
    "faiss-hnsw": TunedHnsw(),
}


def _root_range(n_items: int, low: float, high: float) -> tuple[int, int]:
    """Return the range from low to high times the root of the items."""
    root = math.sqrt(n_items)
    first = max(2, round(low * root))
    return first, max(first + 1, round(high * root))
