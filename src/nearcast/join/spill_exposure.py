"""The exposure cap for candidates that do not fit in memory: the matching of `knn.exposure`, with its state in files.

Lists are read in blocks. In a round, each query proposes to the candidates that it picks anew; the proposals to a range
of items are kept in one file, and an item keeps its best queries. Refusals are noted by block of queries, and the next
round reads these blocks alone. Rounds, lists and thresholds are those of `cap_exposure`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.artifact_files import map_array
from nearcast.files import fresh_folder
from nearcast.knn.exposure import AdmissionThresholds, list_score_losses, pack_lists, sum_losses
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["SpilledCap", "spill_exposure"]

PROPOSAL = np.dtype([("item", "i8"), ("query", "i8"), ("score", "f4"), ("slot", "i4")])
REFUSAL = np.dtype([("query", "i8"), ("slot", "i4")])
SORT_BYTES = 4 * PROPOSAL.itemsize  # of a proposal while it is sorted
PAIR_BYTES = 48  # of a candidate of a block
LARGEST_BLOCK = 1 << 20  # candidates

BoolArray = npt.NDArray[np.bool_]
Records = npt.NDArray[Any]
ReadLists = Callable[[int, int], Neighbors]  # lists of the queries start..stop-1


@dataclass(frozen=True, slots=True)
class SpilledCap:
    """The effects of a cap, without the lists, which `write` has got."""

    thresholds: AdmissionThresholds  # mapped from their files
    score_lost: float
    fill_lost: float
    full_items: int
    rounds: int


@dataclass(slots=True)
class _Matching:
    """The state of a matching in a scratch folder."""

    read: ReadLists
    blocks: Sequence[tuple[int, int]]  # queries of each block
    k: int
    max_lists: int
    folder: Path
    appearances: npt.NDArray[np.uint32]  # (m,) mapped: candidates lists of each item
    item_edges: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))  # first items of the ranges of items

    def propose_all(self) -> None:
        """Let every query propose to its first k candidates."""
        for block, (start, stop) in enumerate(self.blocks):
            lists = self.read(start, stop)
            admitted = lists.positions != EMPTY_POSITION
            np.save(self._admitted_file(block), admitted)
            self._note_proposals(lists, _pick(admitted, self.k), np.arange(start, stop))

    def propose_again(self, block: int) -> None:
        """Let the queries of a block that were refused propose to their next candidates."""
        path, start = self.folder / f"refused-{block}", self.blocks[block][0]
        refused = np.fromfile(path, REFUSAL)
        path.unlink()
        mapped = np.load(self._admitted_file(block), mmap_mode="r+")
        rows, back = np.unique(refused["query"] - start, return_inverse=True)
        lists = self.read(start, self.blocks[block][1])
        lists = Neighbors(lists.positions[rows], lists.scores[rows])
        admitted = np.array(mapped[rows])
        before = _pick(admitted, self.k)
        admitted[back.reshape(-1), refused["slot"]] = False
        mapped[rows] = admitted
        self._note_proposals(lists, _pick(admitted, self.k) & ~before, start + rows)

    def settle_range(self, number: int) -> None:
        """Let the items of a range keep their best queries, and note the others as refused."""
        path = self.folder / f"proposed-{number}"
        if not path.exists():
            return
        held = self.read_held(number)
        for new in _read_chunks(path, PROPOSAL):
            both = np.concatenate([held, new])
            both = both[np.lexsort((both["query"], -both["score"], both["item"]))]
            starts = np.flatnonzero(np.append(True, both["item"][1:] != both["item"][:-1]))
            rank = np.arange(len(both)) - np.repeat(starts, np.diff(np.append(starts, len(both))))
            held = both[rank < self.max_lists]
            self._note_refusals(both[rank >= self.max_lists])
        path.unlink()
        held.tofile(self.folder / f"held-{number}")

    def read_held(self, number: int) -> Records:
        """Read the proposals that the items of a range keep, by item, best query first."""
        path = self.folder / f"held-{number}"
        return np.fromfile(path, PROPOSAL) if path.exists() else np.empty(0, PROPOSAL)

    def list_refused(self) -> list[int]:
        """List the blocks with refused queries."""
        return [block for block in range(len(self.blocks)) if (self.folder / f"refused-{block}").exists()]

    def pick(self, block: int) -> tuple[Neighbors, BoolArray]:
        """Return the candidates of a block, and flags of those that form its lists."""
        admitted = np.array(map_array(self._admitted_file(block)))
        return self.read(*self.blocks[block]), _pick(admitted, self.k)

    def _note_proposals(self, lists: Neighbors, picked: BoolArray, queries: IntArray) -> None:
        rows, slots = np.nonzero(picked)
        items = lists.positions[rows, slots]
        limited = self.appearances[items] >= self.max_lists  # no other item is ever full
        rows, slots, items = rows[limited], slots[limited], items[limited]
        made = np.empty(len(rows), PROPOSAL)
        made["item"], made["score"], made["slot"] = items, lists.scores[rows, slots], slots
        made["query"] = queries[rows]
        numbers = np.searchsorted(self.item_edges, items, "right") - 1
        self._append(made, numbers, "proposed")

    def _note_refusals(self, refused: Records) -> None:
        starts = np.array([start for start, _ in self.blocks])
        made = np.empty(len(refused), REFUSAL)
        made["query"], made["slot"] = refused["query"], refused["slot"]
        self._append(made, np.searchsorted(starts, made["query"], "right") - 1, "refused")

    def _append(self, records: Records, numbers: IntArray, name: str) -> None:
        """Append each record to the file of its number."""
        order = np.argsort(numbers, kind="stable")
        numbers, records = numbers[order], records[order]
        cuts = np.flatnonzero(np.append(numbers[:1] >= 0, numbers[1:] != numbers[:-1]))
        for first, last in zip(cuts, np.append(cuts, len(numbers))[1:], strict=True):
            with (self.folder / f"{name}-{numbers[first]}").open("ab") as file:
                records[first:last].tofile(file)

    def _admitted_file(self, block: int) -> Path:
        return self.folder / f"admitted-{block}.npy"


def spill_exposure(
    read: ReadLists,
    write: Callable[[int, int, Neighbors], None],
    sizes: tuple[int, int, int],
    limits: tuple[int, int],
    folder: Path,
    memory_bytes: int,
) -> SpilledCap:
    """Apply an exposure cap to lists that are read in blocks; pass the lists of each block to `write`, in order.

    sizes: queries, candidates per query, items. limits: k, and the lists that an item may be in. folder: for scratch
    files, and `thresholds`. Takes the memory of a block of lists, or of a range of items; reads each block in every
    round in which one of its queries was refused.
    """
    (n, width, n_items), (k, max_lists) = sizes, limits
    scratch = fresh_folder(folder / "matching")
    rows = max(1, min(LARGEST_BLOCK, memory_bytes // 2 // PAIR_BYTES) // max(1, width))
    blocks = [(start, min(n, start + rows)) for start in range(0, n, rows)]
    matching = _Matching(
        read, blocks, k, max_lists, scratch, _new_array(scratch / "appearances.npy", n_items, np.uint32, 0)
    )
    for start, stop in blocks:
        positions = read(start, stop).positions
        items, counts = np.unique(positions[positions != EMPTY_POSITION], return_counts=True)
        matching.appearances[items] += counts.astype(np.uint32)
    matching.item_edges = _cut_items(matching.appearances, max_lists, memory_bytes // 2 // SORT_BYTES)
    matching.propose_all()
    rounds = 1
    while True:
        for number in range(len(matching.item_edges)):
            matching.settle_range(number)
        refused = matching.list_refused()
        if not refused:
            break
        rounds += 1
        for block in refused:
            matching.propose_again(block)
    thresholds, full = _write_thresholds(matching, n_items, folder)
    missing = compared = 0
    for block, (start, stop) in enumerate(blocks):
        lists, picked = matching.pick(block)
        uncapped = (lists.positions != EMPTY_POSITION) & (np.arange(lists.positions.shape[1]) < k)
        missing += int(np.count_nonzero(uncapped)) - int(np.count_nonzero(picked))
        lost = list_score_losses(lists, uncapped, picked)
        compared += len(lost)
        with (scratch / "losses").open("ab") as file:
            lost.tofile(file)
        write(start, stop, pack_lists(lists, picked, k))
    lost_score = sum_losses(_read_chunks(scratch / "losses", np.float64)) / compared if compared else 0.0
    shutil.rmtree(scratch)
    return SpilledCap(thresholds, lost_score, missing / max(1, n * k), full, rounds)


def _read_chunks(path: Path, dtype: npt.DTypeLike) -> Iterator[Records]:
    """Yield the values of a file, some at a time."""
    with path.open("rb") as file:
        while len(values := np.fromfile(file, dtype, LARGEST_BLOCK)):
            yield values


def _pick(admitted: BoolArray, k: int) -> BoolArray:
    """Return flags of the first k admitted candidates of each query."""
    first: BoolArray = admitted & (np.cumsum(admitted, axis=1) <= k)
    return first


def _new_array(path: Path, n: int, dtype: npt.DTypeLike, value: float) -> npt.NDArray[Any]:
    """Return a mapped (n,) array of one value; in memory if it is empty."""
    if n == 0:
        np.save(path, np.empty(0, dtype))
        return np.empty(0, dtype)
    array = np.lib.format.open_memmap(path, "w+", dtype, (n,))
    array[:] = value
    return array


def _cut_items(appearances: npt.NDArray[np.uint32], max_lists: int, most: int) -> IntArray:
    """Return the first items of ranges whose items keep about so many queries together, one item at least."""
    edges, held = [0], 0
    for start in range(0, len(appearances), LARGEST_BLOCK):
        counts = np.minimum(appearances[start : start + LARGEST_BLOCK], max_lists)
        sums = held + np.cumsum(counts, dtype=np.int64)
        numbers = sums // max(1, most)
        edges += (start + np.flatnonzero(np.diff(numbers, prepend=held // max(1, most)))).tolist()
        held = int(sums[-1])
    return np.unique(np.array(edges, np.int64))


def _write_thresholds(matching: _Matching, n_items: int, folder: Path) -> tuple[AdmissionThresholds, int]:
    """Write the thresholds of the full items. Return them mapped, and the number of full items."""
    home, full = fresh_folder(folder / "thresholds"), 0
    scores = _new_array(home / "scores.npy", n_items, np.float32, -np.inf)
    queries = _new_array(home / "queries.npy", n_items, np.int64, np.iinfo(np.int64).max)
    for number in range(len(matching.item_edges)):
        held = matching.read_held(number)
        ends = np.flatnonzero(np.append(held["item"][1:] != held["item"][:-1], len(held) > 0))
        lasts = held[ends[np.diff(ends, prepend=-1) >= matching.max_lists]]
        scores[lasts["item"]], queries[lasts["item"]] = lasts["score"], lasts["query"]
        full += len(lasts)
    return AdmissionThresholds(scores, queries), full
