"""Lists as the explorer shows them: of one key in two snapshots, with what came, went and moved; keys by what is typed.

Reads snapshots; knows nothing of HTTP and of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import NotFoundError
from nearcast.parquet import open_dataset
from nearcast.table.snapshot import Candidates, Snapshot

__all__ = ["Removal", "columns_shown", "compared", "keys_like", "labels_of", "list_of", "side_by_side"]

LONGEST_VALUE = 4_000  # characters of a column's value; a picture is kept whole or left out
LARGEST_PICTURE = 60_000
PICTURE = "data:image/"


@dataclass(frozen=True, slots=True)
class Removal:
    """Items that the overlay has taken out, by id: what is said of them."""

    rules: Mapping[Any, str] = field(default_factory=dict)


def columns_shown(snapshot: Snapshot) -> tuple[str, ...]:
    """The item columns that the spec shows to people, else its attributes."""
    items = snapshot.manifest.spec.get("items") or {}
    names = items.get("display") or items.get("attributes") or ()
    held = open_dataset(snapshot.folder / "items").schema.names
    return tuple(name for name in names if name in held)


def list_of(snapshot: Snapshot, key: str | int, columns: Sequence[str], removal: Removal | None = None) -> Any:
    """A list as plain data, None where there is no such key. What the overlay took out says by which rule."""
    try:
        found = snapshot.lookup(key, tuple(columns))
    except NotFoundError:
        return None
    return plain_list(snapshot, found, removal)


def plain_list(snapshot: Snapshot, found: Candidates, removal: Removal | None) -> dict[str, Any]:
    """A list of a snapshot as plain data."""
    rules = removal.rules if removal else {}
    rows = [
        {
            "id": item,
            "score": round(float(found.scores[place]), 6),
            "columns": {name: shown(values[place]) for name, values in found.columns.items()},
            **({"removed": rules[item]} if item in rules else {}),
        }
        for place, item in enumerate(found.ids)
    ]
    return {"snapshot": snapshot.name, "key": found.query, "reason": found.reason, "candidates": rows}


def shown(value: Any) -> Any:
    """A column's value as the page can show it: a number, a truth, or text of some length."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    if text.startswith(PICTURE):
        return text if len(text) <= LARGEST_PICTURE else "a picture that is too large to show"
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def compared(
    now: Snapshot, before: Snapshot | None, key: str | int, columns: Sequence[str], removal: Removal | None = None
) -> dict[str, Any]:
    """A key's lists in two snapshots as plain data, with the difference where both have it."""
    here = list_of(now, key, columns, removal)
    there = list_of(before, key, columns_shown(before)) if before is not None else None
    return {"key": here["key"] if here else key, "now": here, "before": there} | difference(there, here)


def difference(before: Any, now: Any) -> dict[str, Any]:
    """The difference of two plain lists; nothing where one of them is missing."""
    if before is None or now is None:
        return {}
    old, new = ([row["id"] for row in one["candidates"]] for one in (before, now))
    return {"diff": side_by_side(old, new)}


def side_by_side(before: Sequence[Any], now: Sequence[Any]) -> dict[str, Any]:
    """What came, went and moved between two lists of ids, best first; ranks count from 1."""
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


def keys_like(snapshot: Snapshot, typed: str, most: int = 12) -> list[dict[str, Any]]:
    """Keys that begin with what was typed, then keys whose display columns hold it; with a label each."""
    table = open_dataset(snapshot.folder / "candidates")
    ids = table.to_table(columns=["query_id"], filter=_begins(table, typed)).column("query_id")
    found = ids.slice(0, most).to_pylist()
    if len(found) < most and len(typed) > 1:
        found += [key for key in _named(snapshot, typed, most) if key not in set(found)]
    labels = labels_of(snapshot, found[:most])
    return [{"key": key, "label": labels.get(key, "")} for key in found[:most]]


def _begins(table: Any, typed: str) -> Any:
    column = pc.field("query_id")
    if pa.types.is_integer(table.schema.field("query_id").type):
        column = column.cast(pa.string())
    return pc.starts_with(column, typed)


def _named(snapshot: Snapshot, typed: str, most: int) -> list[Any]:
    """Keys whose text columns hold what was typed, in any case."""
    dataset = _about_queries(snapshot)
    names = [n for n in _labels(snapshot, dataset) if pa.types.is_string(dataset.schema.field(n).type)]
    if not names:
        return []
    holds = pc.match_substring(pc.field(names[0]), typed, ignore_case=True)
    for name in names[1:]:
        holds = holds | pc.match_substring(pc.field(name), typed, ignore_case=True)
    found: list[Any] = dataset.head(most, columns=["id"], filter=holds).column("id").to_pylist()
    return found


def labels_of(snapshot: Snapshot, keys: Sequence[Any]) -> dict[Any, str]:
    """What keys are called: their text columns, where the snapshot has some."""
    dataset = _about_queries(snapshot)
    names = _labels(snapshot, dataset)
    if not names or not keys:
        return {}
    wanted = pa.array(keys, dataset.schema.field("id").type)
    rows = dataset.to_table(columns=["id", *names], filter=pc.field("id").isin(wanted)).to_pylist()
    return {row["id"]: " · ".join(str(shown(row[n])) for n in names if row[n] is not None) for row in rows}


def _about_queries(snapshot: Snapshot) -> Any:
    folder = snapshot.folder / "queries"
    return open_dataset(folder if folder.is_dir() else snapshot.folder / "items")


def _labels(snapshot: Snapshot, dataset: Any) -> list[str]:
    """The first columns that name a query; pictures do not."""
    spec = snapshot.manifest.spec
    side = spec.get("queries") or spec.get("items") or {}
    names = side.get("display") or side.get("attributes") or ()
    kinds = {name: dataset.schema.field(name).type for name in names if name in dataset.schema.names}
    return [name for name, kind in kinds.items() if pa.types.is_string(kind) and "image" not in name][:2]
