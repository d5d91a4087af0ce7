"""The folder of some reserves, an array per file: written, mapped, read. Knows nothing of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nearcast.artifact_files import map_array
from nearcast.files import link_file, verify
from nearcast.knn.reserve_lists import Reserve
from nearcast.knn.update_lists import KnownLists, concat_lists
from nearcast.types import AnyArray, IntArray, Neighbors

__all__ = [
    "FORMAT",
    "concat_reserves",
    "map_reserve_folder",
    "read_reserve_folder",
    "write_reserve_folder",
    "write_slots",
]

FORMAT = 1
SLOTS = ("positions.npy", "scores.npy")
OTHERS = ("bound_scores.npy", "bound_edges.npy", "labels.npy", "proving.npy")


def write_slots(folder: Path, reserve: Reserve) -> None:
    """Write the positions and scores of reserves into a folder."""
    positions: AnyArray = reserve.known.best.positions
    if positions.dtype != np.int32 and int(positions.max(initial=0)) < 1 << 31:
        positions = positions.astype(np.int32)
    np.save(folder / SLOTS[0], positions)
    np.save(folder / SLOTS[1], reserve.known.best.scores)


def write_reserve_folder(folder: Path, reserve: Reserve, *, slots_in: Path | None = None) -> dict[str, Any]:
    """Write reserves into a folder. slots_in: a folder that has the files of `write_slots`, to be linked."""
    if slots_in is None:
        write_slots(folder, reserve)
    else:
        for name in SLOTS:
            link_file(slots_in / name, folder / name)
    known = reserve.known
    arrays: tuple[AnyArray, ...] = (known.bound_scores, known.bound_edges)
    arrays += (reserve.labels.astype(np.int32), reserve.proving)
    for name, array in zip(OTHERS, arrays, strict=True):
        np.save(folder / name, array)
    return {"queries": len(known.bound_scores)}


def map_reserve_folder(folder: Path, *, contents: bool = False) -> Reserve:
    """Map the reserves of a folder, with the types that are stored. contents: compare every byte with the manifest.

    Raises DamagedError if a file was changed, or has another size.
    """
    verify(folder, contents=contents)
    positions, scores, bounds, edges, labels, proving = (map_array(folder / name) for name in (*SLOTS, *OTHERS))
    return Reserve(KnownLists(Neighbors(positions, scores), bounds, edges), labels, proving)


def read_reserve_folder(folder: Path, rows: IntArray | slice = slice(None), *, contents: bool = False) -> Reserve:
    """Read the reserves at these rows of a folder. contents and errors: as in `map_reserve_folder`."""
    stored = map_reserve_folder(folder, contents=contents)
    known = stored.known
    best = Neighbors(known.best.positions[rows].astype(np.int64), np.array(known.best.scores[rows]))
    some = KnownLists(best, np.array(known.bound_scores[rows]), np.array(known.bound_edges[rows]))
    return Reserve(some, stored.labels[:, rows].astype(np.int64), np.array(stored.proving[:, rows]))


def concat_reserves(parts: list[Reserve], order: IntArray | slice) -> Reserve:
    """Concatenate reserves of several sets of queries, and reorder them; a slice of all keeps their order."""
    known = concat_lists([part.known for part in parts], order)
    labels = np.concatenate([part.labels for part in parts], axis=1)[:, order]
    proving = np.concatenate([part.proving for part in parts], axis=1)[:, order]
    return Reserve(known, labels, proving)
