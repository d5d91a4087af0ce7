"""Enter new items into full lists that lose nothing: most of the lists that an update changes.

The lists are read, changed and kept in the bytes of the store; all others are decoded, see `merge_touched`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from nearcast.kernels.insert_lists import EncodedIds, Entrants, can_insert, insert_candidates
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import STRING, UINT32, encode_keys, encode_texts
from nearcast.types import FloatArray, IntArray
from nearcast.updating.find_entrants import FoundEntrants
from nearcast.updating.updated_tables import UpdatedTables

__all__ = ["EnteredLists", "enter_lists"]

LISTS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class EnteredLists:
    """Lists after their new items."""

    rows: IntArray  # (n,) of the queries, ascending: lists that need nothing else
    thresholds: FloatArray  # (n,)
    changed: IntArray  # (c,) rows of those that changed, ascending
    keys: list[bytes]  # (c,)
    values: list[bytes]


def enter_lists(tables: UpdatedTables, found: FoundEntrants, is_plain: np.ndarray, reader: Reader) -> EnteredLists:
    """Return the new lists of queries whose entrants are all that changes them. is_plain: (queries,) flags of those.

    Lists that are not full are left out. Without native kernels, so are all.
    """
    spec = tables.state.spec
    ids = _encode_ids(tables.batch.items.rows.ids, tables.state.id_kind)
    plain = is_plain[found.rows]
    if not can_insert(ids):
        plain[:] = False
    if ids.kind == UINT32:  # lists that an id of 8 bytes may enter are encoded anew
        wide = np.zeros(tables.queries.n, np.bool_)
        wide[found.rows[(ids.numbers < 0)[found.columns] | (ids.numbers >= 1 << 32)[found.columns]]] = True
        plain &= ~wide[found.rows]
    listed, columns, scores = found.rows[plain], found.columns[plain].astype(np.uint32), found.scores[plain]
    starts = np.flatnonzero(np.diff(listed, prepend=-1))
    rows, ends = listed[starts], np.append(starts, len(listed)).astype(np.uint64)
    parts = [EnteredLists(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64), [], [])]
    for first in range(0, len(rows), LISTS_AT_ONCE):
        part = rows[first : first + LISTS_AT_ONCE]
        edges = ends[first : first + len(part) + 1]
        a, b = int(edges[0]), int(edges[-1])
        keys = encode_keys(tables.queries.ids.take(pa.array(part)))
        stored = [value or b"" for value in reader.get_many(Space.LISTS, keys)]
        entrants = Entrants(edges - edges[0], columns[a:b], scores[a:b])
        new = insert_candidates(stored, entrants, ids, spec.k, tables.resources.threads)
        done = np.ones(len(part), np.bool_)
        done[new.other] = False
        changed_keys = keys if len(new.rows) == len(keys) else [keys[row] for row in new.rows.tolist()]
        parts.append(EnteredLists(part[done], new.last[done], part[new.rows], changed_keys, new.values))
    return EnteredLists(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.thresholds for part in parts]),
        np.concatenate([part.changed for part in parts]),
        [key for part in parts for key in part.keys],
        [value for part in parts for value in part.values],
    )


def _encode_ids(ids: pa.Array, kind: int) -> EncodedIds:
    if kind != STRING:
        numbers = ids.to_numpy(zero_copy_only=False).astype(np.int64)
        return EncodedIds(kind, numbers, np.zeros(1, np.uint64), np.empty(0, np.uint8))
    offsets, texts = encode_texts(ids)
    return EncodedIds(kind, np.empty(0, np.int64), offsets.astype(np.uint64), np.frombuffer(texts, np.uint8))
