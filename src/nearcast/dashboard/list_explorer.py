"""The list explorer: the list of a key in two snapshots with their difference, and keys that match a text.

Reads snapshots; does not know HTTP or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import NotFoundError
from nearcast.table.snapshot import Candidates, Snapshot

__all__ = [
    "RemovedItems",
    "compare_key",
    "compare_lists",
    "diff_ids",
    "find_keys",
    "format_value",
    "list_display_columns",
    "read_labels",
    "read_list",
]

LONGEST_VALUE = 4_000  # characters of a value; a picture is complete or left out
LARGEST_PICTURE = 60_000
PICTURE = "data:image/"


@dataclass(frozen=True, slots=True)
class RemovedItems:
    """The items that the overlay removes, by id, with a sentence on each."""

    rules: Mapping[Any, str] = field(default_factory=dict)


def list_display_columns(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the display columns of the items in the spec, else its attributes."""
    items = snapshot.manifest.spec.get("items") or {}
    names = items.get("display") or items.get("attributes") or ()
    held = snapshot.dataset("items").schema.names
    return tuple(name for name in names if name in held)


def read_list(snapshot: Snapshot, key: str | int, columns: Sequence[str], removal: RemovedItems | None = None) -> Any:
    """Return a list as plain data, with a reason at each removed item; None if there is no such key."""
    try:
        found = snapshot.lookup(key, tuple(columns))
    except NotFoundError:
        return None
    return convert_list(snapshot, found, removal)


def convert_list(snapshot: Snapshot, found: Candidates, removal: RemovedItems | None) -> dict[str, Any]:
    """Return a list of a snapshot as plain data."""
    rules = removal.rules if removal else {}
    rows = [
        {
            "id": item,
            "score": round(float(found.scores[slot]), 6),
            "columns": {name: format_value(values[slot]) for name, values in found.columns.items()},
            **({"removed": rules[item]} if item in rules else {}),
        }
        for slot, item in enumerate(found.ids)
    ]
    return {"snapshot": snapshot.name, "key": found.query, "reason": found.reason, "candidates": rows}


def format_value(value: Any) -> Any:
    """Return a value as the page can show it: a number, a boolean, or text of limited length."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    if text.startswith(PICTURE):
        return text if len(text) <= LARGEST_PICTURE else "a picture that is too large to show"
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def compare_key(
    now: Snapshot, before: Snapshot | None, key: str | int, columns: Sequence[str], removal: RemovedItems | None = None
) -> dict[str, Any]:
    """Return a key's lists in two snapshots as plain data, with their difference if both have the key."""
    here = read_list(now, key, columns, removal)
    there = read_list(before, key, list_display_columns(before)) if before is not None else None
    return {"key": here["key"] if here else key, "now": here, "before": there} | compare_lists(there, here)


def compare_lists(before: Any, now: Any) -> dict[str, Any]:
    """Return the difference of two lists; empty if one of them is missing."""
    if before is None or now is None:
        return {}
    old, new = ([row["id"] for row in one["candidates"]] for one in (before, now))
    return {"diff": diff_ids(old, new)}


def diff_ids(before: Sequence[Any], now: Sequence[Any]) -> dict[str, Any]:
    """Return new, removed and moved ids between two lists, best first; ranks count from 1."""
    old = {item: rank for rank, item in enumerate(before, 1)}
    new = {item: rank for rank, item in enumerate(now, 1)}
    return {
        "came": [{"id": item, "rank": rank} for item, rank in new.items() if item not in old],
        "went": [{"id": item, "rank": rank} for item, rank in old.items() if item not in new],
        "moved": [
            {"id": item, "from": old[item], "to": rank}
            for item, rank in new.items()
            if item in old and old[item] != rank
        ],
        "kept": sum(item in old for item in new),
    }


def find_keys(snapshot: Snapshot, text: str, limit: int = 12) -> list[dict[str, Any]]:
    """Return keys that begin with a text, then keys whose display columns hold it; with a label each."""
    table = snapshot.dataset("candidates")
    ids = table.to_table(columns=["query_id"], filter=_match_prefix(table, text)).column("query_id")
    found = ids.slice(0, limit).to_pylist()
    if len(found) < limit and len(text) > 1:
        found += [key for key in _find_by_label(snapshot, text, limit) if key not in set(found)]
    labels = read_labels(snapshot, found[:limit])
    return [{"key": key, "label": labels.get(key, "")} for key in found[:limit]]


def _match_prefix(table: Any, text: str) -> Any:
    column = pc.field("query_id")
    if pa.types.is_integer(table.schema.field("query_id").type):
        column = column.cast(pa.string())
    return pc.starts_with(column, text)


def _find_by_label(snapshot: Snapshot, text: str, limit: int) -> list[Any]:
    """Return keys whose text columns hold a text, ignoring case."""
    dataset = _open_query_columns(snapshot)
    names = [n for n in _list_label_columns(snapshot, dataset) if pa.types.is_string(dataset.schema.field(n).type)]
    if not names:
        return []
    holds = pc.match_substring(pc.field(names[0]), text, ignore_case=True)
    for name in names[1:]:
        holds = holds | pc.match_substring(pc.field(name), text, ignore_case=True)
    found: list[Any] = dataset.head(limit, columns=["id"], filter=holds).column("id").to_pylist()
    return found


def read_labels(snapshot: Snapshot, keys: Sequence[Any]) -> dict[Any, str]:
    """Return the labels of keys from their text columns, if the snapshot has any."""
    dataset = _open_query_columns(snapshot)
    names = _list_label_columns(snapshot, dataset)
    if not names or not keys:
        return {}
    ids = pa.array(keys, dataset.schema.field("id").type)
    rows = dataset.to_table(columns=["id", *names], filter=pc.field("id").isin(ids)).to_pylist()
    return {row["id"]: " · ".join(str(format_value(row[n])) for n in names if row[n] is not None) for row in rows}


def _open_query_columns(snapshot: Snapshot) -> Any:
    return snapshot.dataset("queries" if snapshot.has("queries") else "items")


def _list_label_columns(snapshot: Snapshot, dataset: Any) -> list[str]:
    """Return the first two text columns of a query, without pictures."""
    spec = snapshot.manifest.spec
    table_spec = spec.get("queries") or spec.get("items") or {}
    names = table_spec.get("display") or table_spec.get("attributes") or ()
    kinds = {name: dataset.schema.field(name).type for name in names if name in dataset.schema.names}
    return [name for name, kind in kinds.items() if pa.types.is_string(kind) and "image" not in name][:2]
