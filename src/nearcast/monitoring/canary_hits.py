"""Count the hits of a canary: engagements whose item is in the list of their key, in each version, in the share alone.

Whoever was shown a list can only engage with its items, so the arm that answers has an advantage: docs/canary.md says
how to read the figures. Knows nothing of rules.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.measure.canary_figures import HitFigures
from nearcast.publishing.engagement import LogColumns, convert_ids, convert_seconds
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.table_version import TableVersion, open_version
from nearcast.serve.view import View
from nearcast.stores.base import Pointer, Store
from nearcast.stores.canary_share import Canary, hash_key
from nearcast.times import parse_utc

__all__ = ["count_hits"]

KEYS_AT_ONCE = 4096


def count_hits(
    store: Store, generator: str, pointer: Pointer, canary: Canary, log: pa.Table, columns: LogColumns
) -> HitFigures:
    """Count the hits of the engagements since the canary started; of all of them if the log has no time.

    log: one row per engagement, with the columns key and item. Raises NotFoundError if a version was removed,
    InputError if keys or items are neither text nor whole numbers.
    """
    if columns.time is not None:
        recent = convert_seconds(log[columns.time], columns.time) >= parse_utc(canary.since)
        log = log.filter(pa.array(recent))
    log = log.select([columns.key, columns.item]).drop_null()
    log_keys, log_items = (convert_ids(log[name], name).combine_chunks() for name in (columns.key, columns.item))
    versions = [open_version(store, generator, number, verify=False) for number in (pointer.version, canary.version)]
    ids = versions[0].query_ids
    coded = pc.dictionary_encode(log_keys)
    keys = [
        converted if (converted := convert_key(key, ids)) is not None else key for key in coded.dictionary.to_pylist()
    ]
    inside = [at for at, key in enumerate(keys) if hash_key(generator, canary.version, str(key)) < canary.threshold]
    pairs = _group_items(coded.indices.to_numpy(), log_items, inside)
    totals = [_count_in_lists(version, pointer, keys, pairs) for version in versions]
    return HitFigures(sum(len(items) for items in pairs.values()), *totals)


def _group_items(codes: np.ndarray, items: pa.Array, inside: list[int]) -> dict[int, list[str]]:
    """Return the engaged items of each key of the share, as text."""
    rows = np.flatnonzero(np.isin(codes, inside))
    pairs: dict[int, list[str]] = {}
    for code, item in zip(codes[rows].tolist(), items.take(pa.array(rows)).to_pylist(), strict=True):
        pairs.setdefault(code, []).append(str(item))
    return pairs


def _count_in_lists(version: TableVersion, pointer: Pointer, keys: list[object], pairs: dict[int, list[str]]) -> int:
    view, hits, places = View(version, OverlayState(version.item_ids), pointer), 0, list(pairs)
    for start in range(0, len(places), KEYS_AT_ONCE):
        batch = places[start : start + KEYS_AT_ONCE]
        lists = view.get_stored([keys[at] for at in batch], 0.0)
        ids = lists.ids.to_pylist()
        for row, at in enumerate(batch):
            held = set(map(str, ids[lists.offsets[row] : lists.offsets[row + 1]]))
            hits += sum(item in held for item in pairs[at])
    return hits
