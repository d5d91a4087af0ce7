"""What a peer library is to the benchmark: two functions of arrays, and the values to try for each of their settings.

Holds no library. `peers.py` has the table of all peers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

__all__ = ["Array", "Axes", "Peer", "Settings", "steps"]

Array = np.ndarray[Any, Any]
Settings = Mapping[str, Any]
Axes = Mapping[str, Sequence[Any]]  # of each setting the values to try, in order


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that joins by inner product: build an index, then search all queries."""

    name: str
    package: str
    environment: str  # in environments.py
    build: Callable[[Array, Settings, int], Any]  # items, build settings, threads
    search: Callable[[Any, Array, int, Settings, int], Array]  # index, queries, k, settings, threads -> positions
    start: Callable[[int], Settings] = lambda _n: {}  # of n items: the build that a sweep begins with
    build_axes: Callable[[int], Axes] = lambda _n: {}  # of n items; the first matters most
    search_axes: Callable[[Settings, int, int], Axes] = lambda _build, _k, _n: {}  # the recall grows along the last
    exact: bool = False  # scores every pair, with 8 bits or more
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Of the package in the environment that runs this; raises PackageNotFoundError where it is not installed."""
        return version(self.package)


def steps(first: int, last: int, ratio: float) -> list[int]:
    """Whole numbers from first to last, each about `ratio` times the one before."""
    values = [min(first, last)]
    while values[-1] < last:
        values.append(min(last, max(values[-1] + 1, round(values[-1] * ratio))))
    return values
