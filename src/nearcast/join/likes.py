"""Groups of items that are nearly the same: whatever a chain of pairs of at least some cosine connects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearcast.engines.base import Resources
from nearcast.engines.dense import DenseEngine, DenseSettings
from nearcast.knn.constraints import Constraints
from nearcast.types import IntArray, Metric, Progress, Vectors

__all__ = ["alike_groups", "connected"]

LIKES = 32  # of each item that are looked at; larger groups hang together all the same, by chains
BLOCK_ROWS = 1 << 16


def alike_groups(items: Vectors, least: float, resources: Resources, progress: Progress) -> npt.NDArray[np.int32]:
    """(m,) a group for every item that has a like, -1 for the others. An exact join of the items with themselves."""
    index = DenseEngine().build(
        items, Metric.COSINE, DenseSettings(cells=1), seed=0, resources=resources, progress=progress
    )
    lefts, rights = [], []
    for start in range(0, items.n, BLOCK_ROWS):
        rows = np.arange(start, min(items.n, start + BLOCK_ROWS))
        found = index.join(
            items.read(start, start + len(rows)),
            LIKES,
            effort=index.efforts(LIKES)[-1],
            exclude=rows,
            constraints=Constraints(min_score=least),
            resources=resources,
            progress=progress,
        )
        places, slots = np.nonzero(found.positions >= 0)
        lefts.append(rows[places])
        rights.append(found.positions[places, slots])
    none = np.empty(0, np.int64)
    return connected(items.n, np.concatenate([none, *lefts]), np.concatenate([none, *rights]))


def connected(n: int, lefts: IntArray, rights: IntArray) -> npt.NDArray[np.int32]:
    """(n,) which of the components of a graph each node is in, numbered by their first nodes; -1 for a node alone.

    Every node takes the smallest label around it, and then its label's label, until nothing changes: few rounds.
    """
    label = np.arange(n)
    while len(lefts):
        least = np.minimum(label[lefts], label[rights])
        before = label.copy()
        np.minimum.at(label, label[lefts], least)
        np.minimum.at(label, label[rights], least)
        np.minimum.at(label, lefts, least)
        np.minimum.at(label, rights, least)
        label = label[label]
        if np.array_equal(before, label):
            break
    linked = np.zeros(n, np.bool_)
    linked[lefts] = linked[rights] = True
    groups = np.full(n, -1, np.int32)
    groups[linked] = np.unique(label[linked], return_inverse=True)[1]
    return groups
