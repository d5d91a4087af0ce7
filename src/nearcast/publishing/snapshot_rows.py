"""Read the Parquet files of a snapshot, one row group at a time. Errors name the damaged file.

One row group is in memory at a time and reading takes one core: a publish may run beside a service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.eligibility import parse_rule, serialize_rules
from nearcast.errors import DamagedError
from nearcast.stores.value_format import ID_BYTES, STRING, UINT32, encode_keys, id_kind, id_type
from nearcast.table.snapshot import Snapshot

__all__ = [
    "SnapshotShape",
    "count_payload",
    "count_queries",
    "estimate_payload",
    "find_lists",
    "iterate_items",
    "iterate_lists",
    "iterate_queries",
    "read_shape",
]

LISTS = ("query_id", "candidate_ids", "scores", "reason")
ITEM_ROWS = 1 << 14  # items encoded at a time: some megabytes
SAMPLED_GROUPS = 16  # row groups that the size of string ids is estimated from


@dataclass(frozen=True, slots=True)
class SnapshotShape:
    """Counts and types of a snapshot that its copy needs."""

    keys: int
    items: int
    query_ids: str  # int64 or string
    item_ids: str
    id_kind: int  # how item ids are encoded, see `stores.value_format`
    columns: Mapping[str, str]  # item columns and their Arrow types
    rules: Mapping[str, Any] | None = None  # from `serialize_rules`, and whether queries hold columns


def read_shape(snapshot: Snapshot) -> SnapshotShape:
    """Read the schemas and the ids of all items."""
    with _translate_errors(snapshot):
        queries = pq.read_schema(_list_files(snapshot, "candidates")[0])
        items = pq.read_schema(_list_files(snapshot, "items")[0])
    kind, count = UINT32, 0
    for batch in iterate_items(snapshot, columns=("id",)):
        kind, count = max(kind, id_kind(batch.column("id"))), count + len(batch)
    item_ids = items.field("id").type
    return SnapshotShape(
        keys=snapshot.n_rows,
        items=count,
        query_ids=id_type(queries.field("query_id").type),
        item_ids=id_type(item_ids),
        id_kind=kind if pa.types.is_integer(item_ids) else STRING,
        columns={field.name: str(field.type) for field in items if field.name != "id"},
        rules=_read_rules(snapshot, items),
    )


def _read_rules(snapshot: Snapshot, items: pa.Schema) -> dict[str, Any] | None:
    """Return the rules of the spec with the types of their columns; None without rules."""
    rules = [parse_rule(rule["name"], rule["keep"]) for rule in snapshot.manifest.spec.get("rules", ())]
    if not rules:
        return None
    own = snapshot.has("queries")  # otherwise queries are the items
    with _translate_errors(snapshot):
        queries = pq.read_schema(_list_files(snapshot, "queries")[0]) if own else items
    facts = serialize_rules(rules, items, queries)
    return {**facts, "own_query_columns": own and bool(facts["queries"])}


def iterate_lists(snapshot: Snapshot, columns: Sequence[str] = LISTS) -> Iterator[pa.Table]:
    """Yield the candidate table by row group. Column `scores` has the scores that order the lists."""
    names = [snapshot.score_column if name == "scores" else name for name in columns]
    for path in _list_files(snapshot, "candidates"):
        with _translate_errors(snapshot), pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield (
                    file.read_row_group(number, columns=names, use_threads=False)
                    .select(names)
                    .rename_columns(list(columns))
                )


def iterate_items(snapshot: Snapshot, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield batches of the items: id and columns."""
    for path in _list_files(snapshot, "items"):
        with _translate_errors(snapshot), pq.ParquetFile(path) as file:
            yield from file.iter_batches(ITEM_ROWS, columns=columns, use_threads=False)


def count_queries(snapshot: Snapshot) -> int:
    """Return the number of rows of the query table."""
    with _translate_errors(snapshot):
        return sum(int(pq.read_metadata(path).num_rows) for path in _list_files(snapshot, "queries"))


def iterate_queries(snapshot: Snapshot, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of the queries: id and these columns."""
    for path in _list_files(snapshot, "queries"):
        with _translate_errors(snapshot), pq.ParquetFile(path) as file:
            yield from file.iter_batches(ITEM_ROWS, columns=["id", *columns], use_threads=False)


def estimate_payload(snapshot: Snapshot, shape: SnapshotShape) -> int:
    """Estimate the bytes of all keys, ids and scores. Exact for integer ids; for strings from sampled row groups."""
    measures, k = snapshot.manifest.measures, snapshot.manifest.k
    slots = int(measures.get("surplus_slots", round(measures["fill_rate"] * snapshot.n_rows * k)))
    if shape.query_ids == "int64" and shape.id_kind != STRING:
        return 8 * shape.keys + (4 + ID_BYTES[shape.id_kind]) * slots
    rows = size = 0
    for group in _sample_groups(snapshot):
        rows, size = rows + len(group), size + count_payload(group, shape)
    return round(size * snapshot.n_rows / rows) if rows else 0


def count_payload(group: pa.Table, shape: SnapshotShape) -> int:
    """Return the bytes of the keys, ids and scores of these rows."""
    ids = pc.list_flatten(group.column("candidate_ids"))
    keys = 8 * len(group) if shape.query_ids == "int64" else _count_text_bytes(group.column("query_id"))
    names = _count_text_bytes(ids) if shape.id_kind == STRING else ID_BYTES[shape.id_kind] * len(ids)
    return keys + 4 * len(ids) + names


def find_lists(snapshot: Snapshot, keys: Sequence[bytes]) -> dict[bytes, list[Any]]:
    """Return the candidates of the keys that are in the snapshot. keys: as encoded for a store."""
    requested = set(keys)
    found: dict[bytes, list[Any]] = {}
    for path in _list_files(snapshot, "candidates"):
        with _translate_errors(snapshot), pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                ids = file.read_row_group(number, columns=["query_id"], use_threads=False).column(0)
                here = encode_keys(ids.combine_chunks())
                rows = [row for row, key in enumerate(here) if key in requested]
                if rows:
                    lists = file.read_row_group(number, columns=["candidate_ids"], use_threads=False)
                    taken = lists.column(0).take(pa.array(rows)).to_pylist()
                    found.update(zip((here[row] for row in rows), taken, strict=True))
    return found


def _sample_groups(snapshot: Snapshot) -> Iterator[pa.Table]:
    paths = list(_list_files(snapshot, "candidates"))
    with _translate_errors(snapshot):
        counts = [pq.read_metadata(path).num_row_groups for path in paths]
    ends = np.cumsum(counts)
    chosen = np.unique(np.linspace(0, int(ends[-1]) - 1, SAMPLED_GROUPS).astype(np.int64)) if ends[-1] else ends[:0]
    for number in chosen:
        file_index = int(np.searchsorted(ends, number, side="right"))
        with _translate_errors(snapshot), pq.ParquetFile(paths[file_index]) as file:
            within = int(number - (ends[file_index] - counts[file_index]))
            yield file.read_row_group(within, columns=["query_id", "candidate_ids"], use_threads=False)


def _count_text_bytes(texts: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.binary_length(texts)).as_py() or 0)


def _list_files(snapshot: Snapshot, part: str) -> list[Path]:
    found = sorted(snapshot.fetch(part).glob("part-*.parquet"))
    if not found:
        raise DamagedError(f"{snapshot.url}/{part} holds no files; restore them, or run again")
    return found


@contextlib.contextmanager
def _translate_errors(snapshot: Snapshot) -> Iterator[None]:
    """Raise DamagedError, which names the changed file, for an error of Arrow or the file system."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        snapshot.verify()
        raise DamagedError(f"{snapshot.url} cannot be read: {error}") from error
