"""How work grows with the number of items: scale a trial on a sample to the whole job.

Trials keep the number of items per cell, so that a sample is a small picture of the whole tables: its neighborhoods and
its cells are wider. In the whole tables more cells are near a query, by a measured power of the size; the number of
centres grows with it. Numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearcast.engines.base import SearchParams

__all__ = ["Configuration", "Growth", "build_work", "query_work", "scale_scanned", "settings_at"]

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


def settings_at(point: Configuration, share: float) -> dict[str, Any]:
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
    more = math.pow(n_items / sampled_items, growth.power)
    if point.engine == "faiss-hnsw":
        ef = params.get("ef_search", n_items)
        return ef * math.log2(max(2, n_items)) if ef < sampled_items else n_items
    if point.engine == "faiss-ivf":
        cells = int(point.settings["nlist"])
        return cells + min(1.0, more * params["nprobe"] / cells) * n_items
    cells = int(point.settings.get("cells", 1))
    if cells == 1 or "reach" not in params or scanned is None:
        return n_items
    return cells + scale_scanned(n_items, scanned, sampled_items, growth)


def build_work(point: Configuration, n_items: int) -> float:
    """Return the vectors that are compared while the index is built with these settings."""
    if point.engine == "faiss-hnsw":
        return n_items * math.log2(max(2, n_items))
    if point.engine == "faiss-ivf":
        cells = int(point.settings["nlist"])
        return (n_items + 640.0 * cells) * cells  # ten rounds over 64 rows a cell, then all items
    cells = int(point.settings.get("cells", 1))
    if cells == 1:
        return PACKING * n_items
    groups = cells / 8 + math.sqrt(cells)  # centres that a row is compared with, through groups of them
    return PACKING * n_items + (n_items + ROUNDS * min(n_items, TRAINED_PER_CELL * cells)) * groups
