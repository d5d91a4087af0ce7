"""Read a version back from a store and compare it with what was written, and with the snapshot's rows.

The checksum covers every byte of every pair; the sample, decoded, shows that the pairs mean what the rows say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nearcast.errors import DamagedError
from nearcast.publishing.copy_snapshot import checksum
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import REASONS, decode_lists, encode_keys
from nearcast.table.candidate_schema import rows_per_group
from nearcast.table.snapshot import Snapshot
from nearcast.types import IntArray, Progress

__all__ = ["compare_sample", "read_back"]

SAMPLED_KEYS = 1_000
SAMPLED_GROUPS = 32  # row groups that they lie in, so that a long table is not read anew


def read_back(reader: Reader, where: str, progress: Progress) -> None:
    """DamagedError where the pairs are not as many, or not the ones, that the version's own facts tell of."""
    facts: Mapping[str, Any] = reader.facts
    if not {"keys", "items", "checksum"} <= facts.keys():
        raise DamagedError(f"{where} does not say what was written; publish it again")
    expected = {Space.LISTS: facts["keys"], Space.ITEMS: facts["items"] + facts.get("query_rows", 0)}
    for done, space in enumerate(Space):
        total, count = checksum(reader.pairs(space))
        if count != expected[space]:
            raise DamagedError(f"{where} holds {count:,} {space} where {expected[space]:,} were written")
        if total != facts["checksum"][space]:
            raise DamagedError(f"{where}: the checksum of its {space} is not that of what was written")
        progress("read back", done + 1, len(Space))


def compare_sample(reader: Reader, where: str, snapshot: Snapshot) -> None:
    """DamagedError where a sampled list, decoded, differs from the snapshot's row."""
    numbers = _sample(snapshot)
    if len(numbers) == 0:
        return
    rows = snapshot.rows(numbers)
    queries = rows.column("query_id").combine_chunks()
    lists = decode_lists(reader.get_many(Space.LISTS, encode_keys(queries)), reader.facts["item_ids"])
    ids, scores, ends = lists.ids.to_pylist(), lists.scores.tolist(), lists.offsets.tolist()
    for at, row in enumerate(rows.to_pylist()):
        first, end = ends[at], ends[at + 1]
        held = (ids[first:end], scores[first:end], REASONS[lists.reasons[at]])
        if not lists.found[at] or held != (row["candidate_ids"], row[snapshot.score_column], row["reason"]):
            raise DamagedError(f"{where}: the list of {row['query_id']!r} is not that of snapshot {snapshot.name}")


def _sample(snapshot: Snapshot) -> IntArray:
    """Numbers of rows, ascending, drawn by the version's number."""
    n, group_rows = snapshot.n_rows, rows_per_group(snapshot.manifest.k)
    if n <= SAMPLED_KEYS:
        return np.arange(n)
    rng = np.random.default_rng([snapshot.version, n])
    groups = -(-n // group_rows)
    chosen = rng.choice(groups, size=min(groups, SAMPLED_GROUPS), replace=False)
    each = -(-SAMPLED_KEYS // len(chosen))
    sizes = [min(group_rows, n - int(group) * group_rows) for group in chosen]
    drawn = [
        int(group) * group_rows + rng.choice(size, size=min(size, each), replace=False)
        for group, size in zip(chosen, sizes, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
