"""How work grows with the number of items: what a trial on a sample says of the whole job.

Trials keep the number of items per cell, so that a sample is a small picture of the whole: its neighborhoods are wider,
and its cells are too. More cells come near a query in the whole, by a power of its size that is measured; the centres
to choose from grow with it. Takes numbers, gives numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearcast.engines.base import SearchParams

__all__ = ["Configuration", "Growth", "build_work", "items_met", "query_work", "settings_at"]

TRAINED_PER_CELL = 16  # rows of k-means in `dense`
ROUNDS = 5
PACKING = 500  # vectors that could be scanned while one item is rounded and packed


@dataclass(frozen=True, slots=True)
class Configuration:
    """An engine and the settings of its index, as the whole job would have them."""

    engine: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The point in words."""
        words = ", ".join(f"{name} {value:,}" for name, value in self.settings.items())
        return f"{self.engine} {words}".strip()


EXACT_POINT = Configuration("dense", {"cells": 1})


@dataclass(frozen=True, slots=True)
class Growth:
    """How a query's work grows with the items, at as many items in a cell. By counting, on two samples."""

    power: float = 0.6  # of the items met; as measured on packages, where it cannot be measured
    overhead: float = 0.0  # seconds of a query in a join by cells that do not grow
    exact_overhead: float = 0.0  # the same in an exact join


def settings_at(point: Configuration, share: float) -> dict[str, Any]:
    """The settings for a sample of this share of the items: as many items in a cell as in the whole."""
    scaled = dict(point.settings)
    for name in ("cells", "nlist"):
        if scaled.get(name, 1) > 1:
            scaled[name] = max(2, round(scaled[name] * share))
    return scaled


def items_met(n_items: int, rows_met: float, sampled_items: int, growth: Growth) -> float:
    """How many of n_items a query meets that met so many of a sample, at as many items in a cell."""
    return min(n_items, math.pow(n_items / sampled_items, growth.power) * rows_met)


def query_work(
    point: Configuration, n_items: int, params: SearchParams, rows_met: float | None, sampled_items: int, growth: Growth
) -> float:
    """Return the vectors that a query is compared with, among n_items, with settings for so many.

    params, rows_met: search parameters on a sample of `sampled_items`, and the items scanned per query there.
    """
    more = math.pow(n_items / sampled_items, growth.power)
    if point.engine == "faiss-hnsw":
        ef = params.get("ef_search", n_items)
        return ef * math.log2(max(2, n_items)) if ef < sampled_items else n_items
    if point.engine == "faiss-ivf":
        cells = int(point.settings["nlist"])
        return cells + min(1.0, more * params["nprobe"] / cells) * n_items
    cells = int(point.settings.get("cells", 1))
    if cells == 1 or "reach" not in params or rows_met is None:
        return n_items
    return cells + items_met(n_items, rows_met, sampled_items, growth)


def build_work(point: Configuration, n_items: int) -> float:
    """Vectors that are held against another one while the index is built, with the settings as they are."""
    if point.engine == "faiss-hnsw":
        return n_items * math.log2(max(2, n_items))
    if point.engine == "faiss-ivf":
        cells = int(point.settings["nlist"])
        return (n_items + 640.0 * cells) * cells  # ten rounds over 64 rows a cell, then all items
    cells = int(point.settings.get("cells", 1))
    if cells == 1:
        return PACKING * n_items
    groups = cells / 8 + math.sqrt(cells)  # centres that a row is held against, through groups of them
    return PACKING * n_items + (n_items + ROUNDS * min(n_items, TRAINED_PER_CELL * cells)) * groups
