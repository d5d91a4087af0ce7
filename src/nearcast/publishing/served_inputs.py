"""Gather the inputs of the version that is current in a store, beside those of a snapshot that is to be published.

Profiles come from the version's facts. Single values are compared for a sample of the items (and queries) that the
store holds, with the rows of the snapshot; single vectors with the sketch of the current snapshot, where its folder is
still there. Reads Parquet and a store, writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError, NotFoundError
from nearcast.measure.drift import sketch_drift
from nearcast.publishing.findings import InputsBeside, ValueChange, VectorChange
from nearcast.publishing.rows import Shape, item_batches, query_batches
from nearcast.publishing.times import seconds_of
from nearcast.sources.ids import positions_of
from nearcast.stores.base import Space
from nearcast.stores.values import encode_items, encode_keys, encode_query_key
from nearcast.table.sketches import read_sketch
from nearcast.table.snapshot import Snapshot, open_snapshot

if TYPE_CHECKING:
    from nearcast.publishing.audit import Current

__all__ = ["gather_inputs"]

SAMPLED_ITEMS = 2_000
MOST_KEYS = 8_000  # that are drawn to find so many items among the queries' columns
OF_QUERIES = encode_query_key(b"")
MOSTLY_DISTINCT = 0.5  # a column of texts with more different values than this names each row, and changes with it
SCALE = 3.0  # a weekday does not do that to a number, a currency or a unit does
SMALL_COUNT = 20  # a count below that trebles by itself


def gather_inputs(snapshot: Snapshot, shape: Shape, current: Current) -> InputsBeside:
    """Compare with the current version. DamagedError where the store does not hold the keys that it lists."""
    facts, profile = current.facts, snapshot.manifest.get("profile") or {}
    items, queries = _sampled_keys(current, snapshot.version)
    changes: dict[tuple[str, str], ValueChange] = {}
    kept = 0
    if facts["item_ids"] == shape.item_ids:
        rows = _rows_of(item_batches(snapshot, _columns(profile, "items", shape.columns)), items)
        kept = len(rows)
        changes |= _changes("items", rows, _values(current, list(rows)), profile)
    if queries and shape.rules is not None and shape.rules["own_query_columns"]:
        names = list(shape.rules["queries"])
        keys = [key.removeprefix(OF_QUERIES) for key in queries]
        if facts["query_ids"] == shape.query_ids:
            rows = _rows_of(query_batches(snapshot, names), keys)
            changes |= _changes("queries", rows, _values(current, list(rows), OF_QUERIES), profile)
    return InputsBeside(
        items=int(facts["items"]),
        sampled=len(items),
        kept=kept,
        elapsed_seconds=seconds_of(snapshot.manifest["run"]["created"]) - seconds_of(facts["created"]),
        profile=facts.get("profile"),
        changes=changes,
        vectors=_vector_changes(snapshot, current, profile),
    )


def _columns(profile: Mapping[str, Any], table: str, known: Mapping[str, str]) -> list[str]:
    """ "id" and the columns that are compared."""
    return ["id", *(name for name in profile.get(table, {}).get("attributes", {}) if name in known)]


def _sampled_keys(current: Current, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Keys of items, and of the columns of queries, spread over the current version."""
    n_items, n_queries = int(current.facts["items"]), int(current.facts.get("query_rows") or 0)
    wanted = SAMPLED_ITEMS * (n_items + n_queries) // max(1, min(n_items, n_queries or n_items))
    keys = current.reader.some_keys(Space.ITEMS, min(MOST_KEYS, wanted), seed)
    of_queries = [key for key in keys if key.startswith(OF_QUERIES)] if n_queries else []
    return [key for key in keys if not n_queries or not key.startswith(OF_QUERIES)], of_queries


def _rows_of(batches: Iterator[pa.RecordBatch], keys: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
    """The columns of the rows with these keys, as a store has them."""
    wanted = set(keys)
    found: dict[bytes, dict[str, Any]] = {}
    for batch in batches:
        here = encode_keys(batch.column("id"))
        places = [place for place, key in enumerate(here) if key in wanted]
        if places:
            columns = pa.Table.from_batches([batch]).take(pa.array(places)).drop_columns(["id"])
            values = encode_items(columns) if columns.num_columns else [b"{}"] * len(places)
            found.update((here[place], json.loads(value)) for place, value in zip(places, values, strict=True))
    return found


def _values(current: Current, keys: Sequence[bytes], prefix: bytes = b"") -> list[dict[str, Any]]:
    values = current.reader.get_many(Space.ITEMS, [prefix + key for key in keys])
    if any(value is None for value in values):
        raise DamagedError(f"{current.name} in the store lists keys that it does not hold; publish with --repair")
    return [json.loads(value) for value in values if value is not None]


# ---- single values ----


def _changes(
    table: str, rows: Mapping[bytes, Mapping[str, Any]], then: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], ValueChange]]:
    """By how much each column differs between the rows of the current version and those of the snapshot."""
    attributes = profile.get(table, {}).get("attributes", {})
    for name, facts in attributes.items():
        pairs = [(before.get(name), now.get(name)) for before, now in zip(then, rows.values(), strict=True)]
        change = _change_of([(b, n) for b, n in pairs if b not in (None, "", []) and n not in (None, "", [])], facts)
        if change is not None:
            yield (table, name), change


def _change_of(pairs: list[tuple[Any, Any]], facts: Mapping[str, Any]) -> ValueChange | None:
    """None for a column whose single values tell nothing: times, and texts that name their row."""
    if not pairs or "time" in facts["kind"] or facts["kind"] in ("null", "other"):
        return None
    if facts["kind"] == "number":
        return _scaled([(b, n) for b, n in pairs if _is_number(b) and _is_number(n)])
    if facts["kind"] == "text" and len({str(b) for b, _ in pairs}) > MOSTLY_DISTINCT * len(pairs):
        return None
    differ = [pair for pair in pairs if _is_other(*pair)]
    if not differ:
        return ValueChange(len(pairs), 0.0, False, "")
    example = Counter((_short(b), _short(n)) for b, n in differ).most_common(1)[0][0]
    return ValueChange(len(pairs), len(differ) / len(pairs), False, " -> ".join(example))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_other(before: Any, now: Any) -> bool:
    """Another value; of lists, one that shares none with the one before."""
    if isinstance(before, list) and isinstance(now, list):
        return {str(value) for value in before}.isdisjoint(str(value) for value in now)
    return bool(before != now)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _scaled(pairs: list[tuple[Any, Any]]) -> ValueChange | None:
    """The share of values that at least trebled, less that of those that fell to a third, or the other way round.

    What is noisy does both alike. Counts below 20 treble by themselves and are passed over.
    """
    kept = [(b, n) for b, n in pairs if not (isinstance(n, int) and max(abs(b), abs(n)) < SMALL_COUNT) and b * n > 0]
    if not kept:
        return None
    ratios = np.array([n / b for b, n in kept])
    up, down = ratios >= SCALE, ratios <= 1 / SCALE
    excess = (int(np.count_nonzero(up)) - int(np.count_nonzero(down))) / len(kept)
    side = up if excess > 0 else down
    example = kept[int(np.argmax(side))]
    return ValueChange(len(kept), abs(excess), True, f"{example[0]:.6g} -> {example[1]:.6g}")


# ---- single vectors ----


def _vector_changes(snapshot: Snapshot, current: Current, profile: Mapping[str, Any]) -> dict[str, VectorChange]:
    """How vectors of ids in both sketches changed; empty where the current snapshot's folder is not there.

    What a score term adds to the vectors, as a last component, is not compared: bids may change every day.
    """
    folder = _folder_of(snapshot, current)
    if folder is None:
        return {}
    found = {}
    for table in ("items", "queries"):
        then, now = read_sketch(folder, table), read_sketch(snapshot.folder, table)
        if then is None or now is None:
            continue
        known = then.ids.type == now.ids.type
        places = positions_of(then.ids, now.ids) if known else np.full(len(then.ids), -1)
        dims = (then.vectors.shape[1], now.vectors.shape[1])
        own = profile.get(table, profile.get("items", {})).get("dim", min(dims))
        drift = sketch_drift(then.vectors[:, :own], now.vectors[:, :own], places)
        both = int(np.count_nonzero(places >= 0)) if drift is not None else 0
        found[table] = VectorChange(both, len(drift.changed) / both if drift is not None and both else 0.0, dims)
    return found


def _folder_of(snapshot: Snapshot, current: Current) -> Path | None:
    """The folder of the snapshot that is current, if it is the one beside this snapshot."""
    folder = snapshot.folder.parent / current.name
    try:
        same = open_snapshot(folder).manifest["fingerprint"] == current.facts["fingerprint"]
    except (DamagedError, NotFoundError, OSError):
        return None
    return folder if same else None
