"""Gather the inputs of the version that is current in a store, beside those of a snapshot that is to be published.

Profiles come from the version's facts. Single values are compared for a sample of the snapshot's items (and queries)
with those that the store holds; single vectors with the sketch of the current snapshot, where its folder is
still there. Reads Parquet and a store, writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError, NotFoundError
from nearcast.measure.drift import sketch_drift
from nearcast.publishing.audit_values import CurrentInputs, ValueChange, VectorChange
from nearcast.publishing.snapshot_rows import SnapshotShape, item_batches, query_batches
from nearcast.sources.ids import positions_of, sample_rows_by_hash
from nearcast.stores.base import Space
from nearcast.stores.value_format import encode_items, encode_keys, encode_query_key
from nearcast.table.sketches import read_sketch
from nearcast.table.snapshot import Snapshot, open_snapshot
from nearcast.times import parse_utc

if TYPE_CHECKING:
    from nearcast.publishing.audit import CurrentVersion

__all__ = ["gather_inputs"]

SAMPLED_ROWS = 2_000
OF_QUERIES = encode_query_key(b"")
MOSTLY_DISTINCT = 0.5  # a column of texts with more different values than this names each row, and changes with it
SCALE = 3.0  # a weekday does not do that to a number, a currency or a unit does
SMALL_COUNT = 20  # a count below that trebles by itself


def gather_inputs(snapshot: Snapshot, shape: SnapshotShape, current: CurrentVersion) -> CurrentInputs:
    """Compare with the current version, of which a sample of the snapshot's items and queries is looked up."""
    facts, profile = current.facts, snapshot.manifest.profile or {}
    changes: dict[tuple[str, str], ValueChange] = {}
    kept = 0.0
    if facts.item_ids == shape.item_ids:
        names = [name for name in profile.get("items", {}).get("attributes", {}) if name in shape.columns]
        rows = _sampled_rows(lambda columns: item_batches(snapshot, ["id", *columns]), names)
        pairs = _beside(current, rows)
        kept = len(pairs) / max(1, len(rows)) * shape.items / max(1, facts.items)
        changes |= _changes("items", pairs, profile)
    own_queries = shape.rules is not None and shape.rules["own_query_columns"] and facts.query_rows
    if shape.rules is not None and own_queries and facts.query_ids == shape.query_ids:
        rows = _sampled_rows(lambda columns: query_batches(snapshot, columns), list(shape.rules["queries"]))
        changes |= _changes("queries", _beside(current, rows, OF_QUERIES), profile)
    return CurrentInputs(
        items=facts.items,
        items_kept=kept,
        elapsed_seconds=parse_utc(snapshot.manifest.run.created) - parse_utc(facts.created),
        profile=facts.profile,
        changes=changes,
        vectors=_vector_changes(snapshot, current, profile),
    )


def _sampled_rows(
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]], names: Sequence[str]
) -> dict[bytes, dict[str, Any]]:
    """By key, these columns of a sample of rows, as a store has them. read: the rows of a table with these columns."""
    rows = np.sort(sample_rows_by_hash((batch.column("id") for batch in read(())), SAMPLED_ROWS))
    found: dict[bytes, dict[str, Any]] = {}
    first = 0
    for batch in read(names):
        start, stop = np.searchsorted(rows, (first, first + len(batch)))
        taken = pa.Table.from_batches([batch]).take(pa.array(rows[start:stop] - first))
        columns = taken.drop_columns(["id"])
        values = encode_items(columns) if columns.num_columns else [b"{}"] * len(taken)
        keys = encode_keys(taken.column("id").combine_chunks())
        found.update(zip(keys, map(json.loads, values), strict=True))
        first += len(batch)
    return found


def _beside(
    current: CurrentVersion, rows: Mapping[bytes, dict[str, Any]], prefix: bytes = b""
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The columns of the rows that the current version has too: then, now."""
    values = current.reader.get_many(Space.ITEMS, [prefix + key for key in rows])
    return [(json.loads(then), now) for then, now in zip(values, rows.values(), strict=True) if then is not None]


# ---- single values ----


def _changes(
    table: str, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], profile: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], ValueChange]]:
    """By how much each column differs between the rows of the current version and those of the snapshot."""
    attributes = profile.get(table, {}).get("attributes", {})
    for name, facts in attributes.items():
        pairs = [(before.get(name), now.get(name)) for before, now in rows]
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


def _vector_changes(snapshot: Snapshot, current: CurrentVersion, profile: Mapping[str, Any]) -> dict[str, VectorChange]:
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


def _folder_of(snapshot: Snapshot, current: CurrentVersion) -> Path | None:
    """The folder of the snapshot that is current, if it is the one beside this snapshot."""
    folder = snapshot.folder.parent / current.name
    try:
        same = open_snapshot(folder).manifest.fingerprint == current.facts.fingerprint
    except (DamagedError, NotFoundError, OSError):
        return None
    return folder if same else None
