"""The folders of kept truth: lists of a sample of queries, and the state of the items that they were found among.

    <home>/lists-...   ids and vector hashes of the queries, their lists, and what bounds these
    <home>/state-...   ids and vector hashes of all items, to tell what has changed since

A folder is believed when it is finished, undamaged, and named by what its manifest says. Knows nothing of joins.
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
from nearcast.sources.changes import HASH_BYTES, State, hash_blocks
from nearcast.sources.ids import read_ids, write_ids
from nearcast.sources.ingest import IngestedTable
from nearcast.types import FileVectors, Neighbors
from nearcast.version import __version__

__all__ = ["KeptLists", "have_state", "kept_lists", "lists_folder", "open_lists", "open_state", "prune", "write_lists"]

KEPT = 6  # samples: a report's and two of a calibration, for two specs in turn or for two days
FORMAT = 1

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KeptLists:
    """Lists of a sample of queries."""

    facts: dict[str, Any]  # what decides them; they are named by it
    ids: pa.Array  # (queries,)
    hashes: npt.NDArray[np.uint8]  # (queries, HASH_BYTES) of their vectors
    known: KnownLists
    state: str  # name of the folder of the items' state


def lists_folder(home: Path, facts: dict[str, Any]) -> Path:
    """Where lists that are decided by these facts are."""
    return home / f"lists-{_name(facts)}"


def write_lists(home: Path, lists: KeptLists) -> None:
    """Keep lists."""
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


def open_lists(folder: Path, note: Note) -> KeptLists | None:
    """The lists of a folder, in memory; None where there are none, or only damaged ones, which are removed."""
    manifest = _sound(folder, "lists", note)
    if manifest is None:
        return None
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    return KeptLists(
        manifest["decided_by"],
        pa.concat_arrays([read_ids(folder / "queries.arrow")]),
        arrays["hashes"],
        KnownLists(Neighbors(arrays["positions"], arrays["scores"]), arrays["bound_scores"], arrays["bound_edges"]),
        manifest["state"],
    )


def kept_lists(home: Path, note: Note) -> Iterator[KeptLists]:
    """All lists that are kept, the newest first."""
    for folder in _newest_first(home):
        lists = open_lists(folder, note)
        if lists is not None:
            yield lists


def have_state(home: Path, items: IngestedTable, note: Note) -> Path:
    """Have the state of the items in a folder. Reads all vectors once where it is not there."""
    facts = {"items": items.folder.name, "nearcast": [__version__, FORMAT]}
    folder = home / f"state-{_name(facts)}"
    if _sound(folder, "state", note) is None:
        fresh_folder(folder)
        write_ids(folder / "ids.arrow", items.ids)
        header = {"descr": "|u1", "fortran_order": False, "shape": (items.vectors.n, HASH_BYTES)}
        with (folder / "hashes.npy").open("wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for block in hash_blocks(items.vectors):
                block.tofile(out)
        finish(folder, {"decided_by": facts})
    return folder


def open_state(folder: Path, note: Note) -> State | None:
    """The state in a folder, mapped; None where there is none, or only a damaged one, which is removed."""
    if _sound(folder, "state", note) is None:
        return None
    return State(read_ids(folder / "ids.arrow"), FileVectors.open(folder / "hashes.npy"))


def prune(home: Path) -> None:
    """Keep the newest lists, and the states that they need."""
    newest = _newest_first(home)[:KEPT]
    states = {read_manifest(folder)["state"] for folder in newest}
    for path in home.iterdir():
        if path not in newest and path.name not in states:
            _remove(path)


def _name(facts: dict[str, Any]) -> str:
    return fingerprint(facts)[:16]


def _newest_first(home: Path) -> list[Path]:
    done = [path for path in home.glob("lists-*") if is_done(path)]
    return sorted(done, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name), reverse=True)


def _sound(folder: Path, kind: str, note: Note) -> dict[str, Any] | None:
    """The manifest of a finished folder whose every file is as it was written; a damaged folder is removed."""
    if not is_done(folder):
        return None
    try:
        manifest = verify(folder, contents=True)
        if folder.name != f"{kind}-{_name(manifest.get('decided_by', {}))}":
            raise DamagedError(f"{folder} does not hold what its name says")
    except DamagedError as error:
        note(f"kept truth is thrown away, and found anew: {error}")
        _remove(folder)
        return None
    return manifest


def _remove(folder: Path) -> None:
    """Its manifest first: a folder that is half removed is an unfinished one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
