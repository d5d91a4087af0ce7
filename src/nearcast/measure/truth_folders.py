"""The folders of the truth cache: lists of a sample of queries, and the state of the items they were joined with.

    <home>/lists-...   ids and vector hashes of the queries, their lists, and the bounds of these
    <home>/state-...   ids and vector hashes of all items, to find the changes since

A folder is used if it is finished, undamaged, and named by its manifest. Knows nothing of joins.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.files import MANIFEST, fingerprint, finish, fresh_folder, is_done, read_manifest, verify
from nearcast.knn.update_lists import KnownLists
from nearcast.sources.changes import BLOCK_IDS, HASH_BYTES, Hashes, TableState, hash_rows, iterate_hashes
from nearcast.sources.ids import read_id_chunks, read_ids, write_ids
from nearcast.sources.ingest import IngestedTable
from nearcast.types import FileVectors, IntArray, Neighbors, Vectors
from nearcast.version import __version__

__all__ = [
    "CachedLists",
    "Note",
    "cached_lists",
    "ensure_state",
    "lists_folder",
    "open_lists",
    "open_state",
    "prune",
    "update_state",
    "write_lists",
]

MAX_SAMPLES = 6  # one of a report and two of a calibration, for two specs or two days
FORMAT = 1

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CachedLists:
    """Lists of a sample of queries."""

    facts: dict[str, Any]  # everything that decides them; their name is its fingerprint
    ids: pa.Array  # (queries,)
    hashes: npt.NDArray[np.uint8]  # (queries, HASH_BYTES) of their vectors
    known: KnownLists
    state: str  # name of the folder of the items' state


def lists_folder(home: Path, facts: dict[str, Any]) -> Path:
    """Return the folder of the lists that these facts name."""
    return home / f"lists-{_make_name(facts)}"


def write_lists(home: Path, lists: CachedLists) -> None:
    """Write lists into their folder."""
    folder = fresh_folder(lists_folder(home, lists.facts))
    write_ids(folder / "queries.arrow", lists.ids)
    arrays = {
        "hashes": lists.hashes,
        "positions": lists.known.best.positions,
        "scores": lists.known.best.scores,
        "bound_scores": lists.known.bound_scores,
        "bound_edges": lists.known.bound_edges,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
    finish(folder, {"decided_by": lists.facts, "state": lists.state})


def open_lists(folder: Path, note: Note) -> CachedLists | None:
    """Return the lists of a folder, in memory; None if there are none, or if they were damaged and removed."""
    manifest = _verify_folder(folder, "lists", note)
    if manifest is None:
        return None
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    return CachedLists(
        manifest["decided_by"],
        pa.concat_arrays([read_ids(folder / "queries.arrow")]),
        arrays["hashes"],
        KnownLists(Neighbors(arrays["positions"], arrays["scores"]), arrays["bound_scores"], arrays["bound_edges"]),
        manifest["state"],
    )


def cached_lists(home: Path, note: Note) -> Iterator[CachedLists]:
    """Yield all cached lists, newest first."""
    for folder in _newest_first(home):
        lists = open_lists(folder, note)
        if lists is not None:
            yield lists


def ensure_state(home: Path, items: IngestedTable, note: Note) -> Path:
    """Return the folder with the state of the items. Reads all vectors once if it must be written."""
    folder = _state_folder(home, items.fingerprint)
    if _verify_folder(folder, "state", note) is None:
        _write_state(folder, items, iterate_hashes(items.vectors))
    return folder


def update_state(home: Path, last: str, items: IngestedTable, before: IntArray, note: Note) -> None:
    """Write the state of the items with the hashes that an earlier state has; nothing if there is no earlier state.

    last: fingerprint of the earlier items. before: (items,) the position there of each item that has the same id and
    vector, -1 for others. Reads the vectors of these others alone.
    """
    old, folder = open_state(_state_folder(home, last), note), _state_folder(home, items.fingerprint)
    if old is not None and not is_done(folder):
        _write_state(folder, items, _copy_hashes(old.hashes, items, before))


def _copy_hashes(old: Vectors, items: IngestedTable, before: IntArray) -> Iterator[Hashes]:
    for start in range(0, len(before), BLOCK_IDS):
        positions = np.asarray(before[start : start + BLOCK_IDS])
        block = np.empty((len(positions), HASH_BYTES), np.uint8)
        known = np.flatnonzero(positions >= 0)
        if len(known):
            first, last = positions[known[0]], positions[known[-1]]  # they ascend, as ids do
            block[known] = old.read(int(first), int(last) + 1)[positions[known] - first]
        others = np.flatnonzero(positions < 0)
        if len(others):
            block[others] = hash_rows(items.vectors.take(start + others))
        yield block


def _state_facts(items: str) -> dict[str, Any]:
    return {"items": items, "nearcast": [__version__, FORMAT]}


def _state_folder(home: Path, items: str) -> Path:
    return home / f"state-{_make_name(_state_facts(items))}"


def _write_state(folder: Path, items: IngestedTable, blocks: Iterator[Hashes]) -> None:
    fresh_folder(folder)
    write_ids(folder / "ids.arrow", items.ids)
    header = {"descr": "|u1", "fortran_order": False, "shape": (items.vectors.n, HASH_BYTES)}
    with (folder / "hashes.npy").open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            block.tofile(out)
    finish(folder, {"decided_by": _state_facts(items.fingerprint)})


def open_state(folder: Path, note: Note) -> TableState | None:
    """Return the state in a folder, mapped; None if there is none, or if it was damaged and removed."""
    if _verify_folder(folder, "state", note) is None:
        return None
    return TableState(read_id_chunks(folder / "ids.arrow"), FileVectors.open(folder / "hashes.npy"))


def prune(home: Path) -> None:
    """Remove all but the newest lists and their states."""
    newest = _newest_first(home)[:MAX_SAMPLES]
    states = {read_manifest(folder)["state"] for folder in newest}
    for path in home.iterdir():
        if path not in newest and path.name not in states:
            _remove(path)


def _make_name(facts: dict[str, Any]) -> str:
    return fingerprint(facts)[:16]


def _newest_first(home: Path) -> list[Path]:
    done = [path for path in home.glob("lists-*") if is_done(path)]
    return sorted(done, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name), reverse=True)


def _verify_folder(folder: Path, kind: str, note: Note) -> dict[str, Any] | None:
    """Return the manifest of a finished and undamaged folder, else None. Removes a damaged folder."""
    if not is_done(folder):
        return None
    try:
        manifest = verify(folder, contents=True)
        if folder.name != f"{kind}-{_make_name(manifest.get('decided_by', {}))}":
            raise DamagedError(f"{folder} does not hold the contents that its name states")
    except DamagedError as error:
        note(f"cached truth is removed, and computed again: {error}")
        _remove(folder)
        return None
    return manifest


def _remove(folder: Path) -> None:
    """Remove a folder, its manifest first: a folder that is half removed then counts as unfinished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
