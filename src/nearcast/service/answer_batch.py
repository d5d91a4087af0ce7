"""The answers of many keys as the store gave them, with the rows that a fallback has replaced, and their Arrow form.

Arrow has a row per key with the fields of the JSON answers. Its columns are made of the arrays of the look-up, without
an object per key. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.serve.canary_view import merge_answers
from nearcast.serve.lookup_data import TABLE, Answer, Answers, convert_key
from nearcast.stores.value_format import REASONS, IdType
from nearcast.types import IntArray

__all__ = ["AnswerBatch", "encode_arrow", "merge_batches"]

ID_TYPES: Mapping[IdType, pa.DataType] = {"int64": pa.int64(), "string": pa.string()}
BARRED = pa.map_(pa.string(), pa.int32())
JSON_ENCODING = {"encoding": "json"}  # metadata of a column whose values are JSON texts
# prefixes of the types of item columns, as the store names them, and the types of their JSON values
COLUMN_TYPES: tuple[tuple[tuple[str, ...], pa.DataType], ...] = (
    (("bool",), pa.bool_()),
    (("uint64",), pa.uint64()),
    (("int", "uint"), pa.int64()),
    (("halffloat", "float", "double"), pa.float64()),
    (("string", "large_string", "date", "time", "timestamp", "decimal"), pa.string()),
)


@dataclass(frozen=True, slots=True, eq=False)
class AnswerBatch:
    """The answers of n keys, in their order."""

    stored: Answers
    replaced: Mapping[int, Answer]  # row: its answer from a fallback, or without candidates; all empty rows
    key_type: IdType
    item_type: IdType
    columns: Sequence[Mapping[str, Sequence[Any]]] = ()  # requested item columns of each row; empty: none requested
    column_types: Mapping[str, str] = field(default_factory=dict)  # of item columns of the snapshot
    parts: Sequence[tuple[AnswerBatch, int]] = ()  # (n,) of several versions: the answers of one, and the row there

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> Answer:
        if self.parts:
            part, place = self.parts[row]
            return part[place]
        answer = self.replaced[row] if row in self.replaced else self.stored[row]
        return replace(answer, columns=self.columns[row]) if self.columns else answer

    def __iter__(self) -> Iterator[Answer]:
        return (self[row] for row in range(len(self)))


def merge_batches(parts: Sequence[AnswerBatch], positions: Sequence[Sequence[int]]) -> AnswerBatch:
    """Put the answers of several versions in the order of the keys. positions: of the answers of each part.

    As arrays, ids of different types become text, and so do item columns, as JSON.
    """
    places = [(part, row) for part in parts for row in range(len(part))]
    order = np.argsort(np.concatenate([np.asarray(at, np.int64) for at in positions]))
    rows = [answer for part in parts for answer in part.columns]
    replaced = {
        at[row]: answer for part, at in zip(parts, positions, strict=True) for row, answer in part.replaced.items()
    }
    types = [dict(part.column_types) for part in parts]
    names = dict.fromkeys(name for known in types for name in known)
    column_types = {
        name: held.pop() for name in names if len(held := {known[name] for known in types if name in known}) == 1
    }
    key_types, item_types = {part.key_type for part in parts}, {part.item_type for part in parts}
    return AnswerBatch(
        stored=merge_answers([part.stored for part in parts], positions),
        replaced=dict(sorted(replaced.items())),
        key_type=key_types.pop() if len(key_types) == 1 else "string",
        item_type=item_types.pop() if len(item_types) == 1 else "string",
        columns=[rows[at] for at in order] if rows else (),
        column_types=column_types,
        parts=[places[at] for at in order],
    )


def encode_arrow(batch: AnswerBatch) -> bytes:
    """Return the answers as an Arrow IPC stream of one record batch, with a row per key."""
    stored, n = batch.stored, len(batch)
    key_type = ID_TYPES[batch.key_type]
    keys = pa.array(_convert_keys(stored.keys, batch.key_type), key_type)
    lists = _build_lists(batch)
    columns: dict[str, pa.Array] = {
        "key": keys,
        "found": pa.array(stored.found),
        "source": pa.array([TABLE] * n, pa.string()),
        "source_key": keys,
        "snapshot": pa.array(stored.snapshots or [stored.snapshot] * n, pa.string()),
        "age_seconds": pa.array(np.round(stored.ages_seconds or np.full(n, stored.age_seconds), 3)),
        "reason": pa.array(REASONS, pa.string()).take(pa.array(stored.reasons)),
        "stored": pa.array(stored.stored, pa.int32()),
        "removed": pa.array(stored.removed, pa.int32()),
        "barred": _build_barred(batch),
        "returned": lists.value_lengths(),
        "candidates": lists,
    }
    if batch.replaced:
        read: dict[str, Callable[[Answer], Any]] = {
            "source": lambda answer: answer.source,
            "source_key": lambda answer: _convert(answer.source_key, batch.key_type),
            "reason": lambda answer: answer.reason,
            "stored": lambda answer: answer.stored,
            "removed": lambda answer: answer.removed,
        }
        rows = pa.array(_mark_rows(batch))
        for name, value in read.items():
            values = pa.array([value(answer) for answer in batch.replaced.values()], columns[name].type)
            columns[name] = pc.replace_with_mask(columns[name], rows, values)
    table = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _mark_rows(batch: AnswerBatch) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (n,) whether a row is replaced. `replaced` is in the order of rows."""
    rows = np.zeros(len(batch), np.bool_)
    rows[list(batch.replaced)] = True
    return rows


def _build_lists(batch: AnswerBatch) -> pa.Array:
    """Return the candidates of each row: lists of a struct of id, score and the requested columns."""
    stored = batch.stored
    item_type = ID_TYPES[batch.item_type]
    ids, scores, lengths = stored.ids.cast(item_type), pa.array(stored.scores, pa.float32()), np.diff(stored.offsets)
    if batch.replaced:  # these rows are empty in `stored`
        answers = batch.replaced.values()
        more_ids = [_convert(item, batch.item_type) for answer in answers for item in answer.ids]
        more_scores = [score for answer in answers for score in answer.scores]
        own = np.repeat(stored.offsets[list(batch.replaced)], [len(answer.ids) for answer in answers])
        lengths[list(batch.replaced)] = [len(answer.ids) for answer in answers]
        order = np.insert(np.arange(len(ids)), own, len(ids) + np.arange(len(own)))
        ids = pa.concat_arrays([ids, pa.array(more_ids, item_type)]).take(pa.array(order))
        scores = pa.concat_arrays([scores, pa.array(more_scores, pa.float32())]).take(pa.array(order))
    fields = [pa.field("id", item_type), pa.field("score", pa.float32())]
    values = [ids, scores]
    for name in batch.columns[0] if batch.columns else ():
        made, column = _build_column(name, [value for row in batch.columns for value in row[name]], batch.column_types)
        fields.append(column)
        values.append(made)
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(values, fields=fields))


def _build_column(name: str, values: list[Any], types: Mapping[str, str]) -> tuple[pa.Array, pa.Field]:
    """Return an item column with its field: of the column's type, or JSON texts if a value is of another type."""
    text = types.get(name, "")
    kind = next((kind for prefixes, kind in COLUMN_TYPES if text.startswith(prefixes)), None)
    if kind is not None:
        try:
            return pa.array(values, kind), pa.field(name, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass  # the overlay has set a value of another type
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.string()), pa.field(name, pa.string(), metadata=JSON_ENCODING)


def _build_barred(batch: AnswerBatch) -> pa.Array:
    """Return the ineligible candidates of each row, by rule."""
    counts: list[list[tuple[str, int]]] = [[] for _ in range(len(batch))]
    for rule, numbers in batch.stored.barred.items():
        for row in np.flatnonzero(numbers).tolist():
            counts[row].append((rule, int(numbers[row])))
    for row, answer in batch.replaced.items():
        counts[row] = list(answer.barred.items())
    return pa.array(counts, BARRED)


def _convert_keys(keys: Sequence[Any] | IntArray, kind: IdType) -> Sequence[Any] | IntArray:
    """Return the keys in this type; only keys of several versions may have another."""
    if isinstance(keys, np.ndarray) and kind == "int64":
        return keys
    return [_convert(key, kind) for key in keys]


def _convert(value: Any, kind: IdType) -> Any:
    if value is None:
        return None
    return str(value) if kind == "string" else convert_key(value, kind)
