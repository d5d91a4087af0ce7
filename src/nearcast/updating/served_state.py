"""The state of a served version with its patches: current items and queries, and the score that each list asks for.

`ServedState` is a value: an update makes a new one. Knows nothing of stores' formats beyond the values of lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError, SpecError
from nearcast.publishing.snapshot_rows import iterate_lists
from nearcast.sources.ids import find_positions
from nearcast.spec import GeneratorSpec
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import REASONS, decode_lists, encode_keys, id_type
from nearcast.table.snapshot import Snapshot
from nearcast.types import FloatArray, IntArray, Metric
from nearcast.updating.live_table import LiveTable
from nearcast.updating.snapshot_reserves import SnapshotReserves

__all__ = ["ListBound", "ServedLists", "ServedState", "check_updatable", "read_lists", "read_table_lists"]

KEYS_AT_ONCE = 1 << 16
Lengths = npt.NDArray[np.int32]

NOT_PROBED = REASONS.index("not_probed")

ListBound = tuple[float, str | int]
"""Score and id: what is known of a list that has lost more than it kept. Unknown items are worse than this."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedLists:
    """What an update needs to know of all lists of a version; see `ServedState`."""

    thresholds: FloatArray
    lengths: Lengths
    short: Mapping[str | int, ListBound]


@dataclass(frozen=True, slots=True, eq=False)
class ServedState:
    """A version with its patches up to `number`."""

    spec: GeneratorSpec  # of the snapshot
    version: int
    metric: Metric  # of the vectors with score terms
    items: LiveTable
    queries: LiveTable  # the same object as `items` in a join of a table with itself
    thresholds: FloatArray  # (queries.n,) an item that scores less does not change the list
    lengths: Lengths  # (queries.n,) candidates of each list
    short: Mapping[str | int, ListBound]  # by id of the query: lists that may lack items below the bound
    id_kind: int  # how the version encodes ids of items
    reserves: SnapshotReserves | None = None  # of the snapshot
    number: int = 0  # newest patch in force; 0 for none
    serial: int = 0  # of the patches

    @property
    def joins_itself(self) -> bool:
        """Return whether the items are the queries."""
        return self.queries is self.items


def check_updatable(spec: GeneratorSpec) -> None:
    """Raise SpecError for a generator whose lists depend on more than pairs: it needs a run."""
    causes = {
        "[exposure] limits the lists of an item, so one list depends on all others": spec.exposure is not None,
        "[rank] orders candidates by a model that a look-up's score does not show": spec.rank is not None,
        "[overfetch] plans the length of every list from all items": spec.overfetch is not None,
        "a cap with near_duplicate_cosine groups items by all vectors": any(
            cap.near_duplicate_cosine is not None for cap in spec.caps
        ),
        "score.add under l2 shifts all scores by its largest value": spec.score.add is not None
        and spec.metric is Metric.L2,
    }
    found = [cause for cause, applies in causes.items() if applies]
    if found:
        raise SpecError(
            f"{spec.name} cannot be updated between runs: {'; '.join(found)}. Run and publish it again instead "
            "(`nearcast refresh`)"
        )


def read_lists(
    reader: Reader, queries: pa.Array, k: int, short: Mapping[str | int, ListBound], item_type: pa.DataType
) -> ServedLists:
    """Read the threshold and length of every list of a version with its patches, and the lists that may lack items.

    queries: (n,) ids. short: those that are known from the journal; lists of an approximate join are added. Raises
    DamagedError if the store lacks a list.
    """
    thresholds, counts = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int32)
    lacking: dict[str | int, ListBound] = {}
    ids = id_type(item_type)
    for start in range(0, len(queries), KEYS_AT_ONCE):
        part = queries.slice(start, KEYS_AT_ONCE)
        lists = decode_lists(reader.get_many(Space.LISTS, encode_keys(part)), ids)
        if not lists.found.all():
            missing = part[int(np.argmin(lists.found))].as_py()
            raise DamagedError(f"the store has no list of query {missing!r}, which its snapshot has; publish again")
        lengths = np.diff(lists.offsets)
        last = _last_scores(lists.scores, lists.offsets)
        counts[start : start + len(part)] = lengths
        thresholds[start : start + len(part)] = np.where(lengths >= k, last, np.float32(-np.inf))
        for row in np.flatnonzero((lengths < k) & (lists.reasons == NOT_PROBED)).tolist():
            query = part[row].as_py()
            bound = short.get(query)
            if bound is None:
                at = int(lists.offsets[row + 1]) - 1
                bound = (float(last[row]), lists.ids[at].as_py()) if lengths[row] else (np.inf, query)
            lacking[query] = bound
            thresholds[start + row] = np.float32(bound[0])
    return ServedLists(thresholds, counts, lacking)


def read_table_lists(snapshot: Snapshot, queries: pa.Array, k: int) -> ServedLists | None:
    """Read from the table of a snapshot what `read_lists` reads from its version: in a third of the time.

    None if the table lacks a query, or a list may lack items: its bound is an item, and needs the whole list.
    """
    parts: list[tuple[pa.Array, FloatArray, Lengths]] = []
    for group in iterate_lists(snapshot, ("query_id", "scores", "reason")):
        ids, scores, reasons = (group.column(name).combine_chunks() for name in group.column_names)
        if pc.any(pc.equal(reasons, REASONS[NOT_PROBED])).as_py():
            return None
        offsets = scores.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        last = _last_scores(scores.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])
        parts.append((ids.cast(queries.type), last, np.diff(offsets).astype(np.int32)))
    if not parts:
        return None
    ids = pa.concat_arrays([part[0] for part in parts])
    last, lengths = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
    if not ids.equals(queries):
        at = find_positions(queries, ids)
        if (at < 0).any():
            return None
        last, lengths = last[at], lengths[at]
    return ServedLists(np.where(lengths >= k, last, np.float32(-np.inf)), lengths, {})


def _last_scores(scores: FloatArray, offsets: IntArray) -> FloatArray:
    """Return (n,) the last score of each list, -inf for an empty one."""
    if not len(scores):
        return np.full(len(offsets) - 1, -np.inf, np.float32)
    filled = offsets[1:] > offsets[:-1]
    return np.where(filled, scores[np.maximum(offsets[1:] - 1, 0)], np.float32(-np.inf)).astype(np.float32)
