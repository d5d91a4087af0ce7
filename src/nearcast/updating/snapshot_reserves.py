"""The reserves of the snapshot that is served: lists that its run stored wider than they are published.

Positions are those of the snapshot's tables. Knows nothing of updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nearcast.files import is_done
from nearcast.join.reserve_folders import concat_reserves, read_reserve_folder
from nearcast.knn.reserve_lists import Reserve, ReserveShape
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray

__all__ = ["SnapshotReserves", "open_reserves"]


class SnapshotReserves:
    """The reserves of a snapshot, in folders per range of its queries."""

    def __init__(self, folders: Sequence[Path], starts: IntArray, shape: ReserveShape, *, is_exact: bool) -> None:
        self.shape = shape
        self.is_exact = is_exact  # of an exact join; an approximate one may have missed items above a bound
        self._folders = folders
        self._starts = starts  # (ranges + 1,) first query of each range
        self._compared: set[Path] = set()  # folders whose bytes were compared with their hashes

    def read(self, positions: IntArray) -> Reserve:
        """Read the reserves of queries by their ascending positions. Raises DamagedError."""
        cuts = np.searchsorted(positions, self._starts)
        parts = []
        for number, folder in enumerate(self._folders):
            rows = positions[cuts[number] : cuts[number + 1]] - self._starts[number]
            if len(rows):
                parts.append(read_reserve_folder(folder, rows, contents=folder not in self._compared))
                self._compared.add(folder)
        return concat_reserves(parts, slice(None))


def open_reserves(snapshot: Snapshot, artifacts: Path) -> SnapshotReserves | None:
    """Open the reserves of a snapshot among its artifacts; None if its run stored none, or they are not there.

    Lists under several caps have none here: their limits are not relaxed, so that few lists could be filled up again.
    """
    record = snapshot.manifest.run.reserves
    if record is None:
        return None
    sizes = record["shape"]
    shape = ReserveShape(sizes["k"], sizes["width"], tuple(sizes["max_per_group"]), tuple(sizes["relaxed"]))
    folders = [artifacts / record["name"] / f"{number:06d}" for number in range(len(record["splits"]))]
    if len(shape.max_per_group) > 1 or not folders or not all(map(is_done, folders)):
        return None
    starts = np.array([split[0] for split in record["splits"]] + [record["splits"][-1][1]])
    return SnapshotReserves(folders, starts, shape, is_exact=bool(record["is_exact"]))
