"""Versions of a table in a store, loaded through the contract alone: no snapshot, no audit."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from nearcast.stores.base import OverlayEntry, Pointer, PointerEvent, Space, Store
from nearcast.stores.value_format import encode_key, encode_lists, id_kind, id_type

Lists = Mapping[Any, Sequence[tuple[Any, float]]]  # key: (item, score), best first

CREATED = "2026-01-01T00:00:00Z"


def load(
    store: Store,
    generator: str,
    version: int,
    lists: Lists,
    items: Mapping[Any, Mapping[str, Any]] | None = None,
    *,
    reasons: Mapping[Any, str] | None = None,
    created: str = CREATED,
    columns: Mapping[str, str] | None = None,
    **facts: Any,
) -> None:
    """Load and finish a version. Items without columns: those that the lists hold."""
    items = {i: {} for row in lists.values() for i, _ in row} if items is None else items
    item_ids = pa.array(list(items)) if items else pa.array([], pa.int64())
    keys = sorted(lists, key=encode_key)
    rows = [lists[key] for key in keys]
    values = encode_lists(
        pa.array([[item for item, _ in row] for row in rows], pa.list_(item_ids.type)),
        pa.array([[score for _, score in row] for row in rows], pa.list_(pa.float32())),
        [(reasons or {}).get(key) for key in keys],
        id_kind(item_ids),
    )
    writer = store.write(generator, version)
    writer.put(Space.LISTS, [(encode_key(key), value) for key, value in zip(keys, values, strict=True)])
    described = sorted((encode_key(item), json.dumps(dict(row)).encode()) for item, row in items.items())
    writer.put(Space.ITEMS, described)
    writer.finish(
        {
            "format": 1,
            "generator": generator,
            "version": version,
            "snapshot": f"{version:06d}",
            "created": created,
            "published": created,
            "query_ids": id_type(pa.array(keys).type) if keys else "int64",
            "item_ids": id_type(item_ids.type),
            "keys": len(keys),
            "items": len(items),
            "k": max(map(len, rows), default=0),
            "columns": dict(columns or {}),
            **facts,
        }
    )


def point(store: Store, generator: str, version: int) -> Pointer:
    """Move the pointer, forward or back. Returns where it is then."""
    with store.lock(generator) as held:
        before = store.pointer(generator)
        event = PointerEvent("published", version, CREATED)
        after = before.move(event, ()) if before else Pointer(version, 1, (), (event,))
        store.point(generator, after, held)
    return after


def let_expire(store: Store, generator: str, *items: Any, field: str | None = None, value: Any = True) -> None:
    """Write entries of the overlay whose end has passed: no test has to be quicker than an end, nor to wait for it."""
    ended = time.time() - 60
    store.overlay(generator).write([OverlayEntry(item, field, value, ended - 60, ended) for item in items])


def publish(store: Store, generator: str, version: int, lists: Lists, *args: Any, **more: Any) -> Pointer:
    """Load a version and point at it."""
    load(store, generator, version, lists, *args, **more)
    return point(store, generator, version)


def whole(version: int, keys: int = 100, length: int = 5) -> dict[int, list[tuple[int, float]]]:
    """Lists of which every item tells the version: version * 1,000,000 + key * 1,000 + rank."""
    return {
        key: [(version * 1_000_000 + key * 1000 + rank, float(length - rank)) for rank in range(length)]
        for key in range(keys)
    }
