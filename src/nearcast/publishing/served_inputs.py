"""Compare the inputs of the current version in a store with those of a snapshot to publish.

Profiles come from the facts of the version. Single values are compared for a sample of items and queries: the store
holds those of the current version. Single vectors are compared by the sketch in the folder of the current snapshot, if
it exists. Reads Parquet and a store; writes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nearcast.errors import DamagedError, NotFoundError
from nearcast.measure.drift import compare_sketches
from nearcast.publishing.audit_values import CurrentInputs, ValueChange, VectorChange
from nearcast.publishing.snapshot_rows import SnapshotShape, iterate_items, iterate_queries
from nearcast.sources.ids import find_positions, sample_rows_by_hash
from nearcast.stores.base import Space
from nearcast.stores.value_format import encode_items, encode_keys, encode_query_key
from nearcast.table.sketches import SKETCH, read_sketch
from nearcast.table.snapshot import Snapshot, open_home
from nearcast.times import parse_utc

if TYPE_CHECKING:
    from nearcast.publishing.audit import CurrentVersion

__all__ = ["gather_inputs"]

SAMPLED_ROWS = 2_000
OF_QUERIES = encode_query_key(b"")
MOSTLY_DISTINCT = 0.5  # a text column with a larger share of distinct values is not compared: it names rows
SCALE = 3.0  # a change of currency or unit exceeds this factor; daily changes do not
SMALL_COUNT = 20  # smaller counts often triple by chance


def gather_inputs(snapshot: Snapshot, shape: SnapshotShape, current: CurrentVersion) -> CurrentInputs:
    """Compare with the current version, by look-ups of a sample of the snapshot's items and queries."""
    facts, profile = current.facts, snapshot.manifest.profile or {}
    changes: dict[tuple[str, str], ValueChange] = {}
    kept = 0.0
    if facts.item_ids == shape.item_ids:
        names = [name for name in profile.get("items", {}).get("attributes", {}) if name in shape.columns]
        rows = _sample_rows(lambda columns: iterate_items(snapshot, ["id", *columns]), names)
        pairs = _pair_rows(current, rows)
        kept = len(pairs) / max(1, len(rows)) * shape.items / max(1, facts.items)
        changes |= _compare_columns("items", pairs, profile)
    own_queries = shape.rules is not None and shape.rules["own_query_columns"] and facts.query_rows
    if shape.rules is not None and own_queries and facts.query_ids == shape.query_ids:
        rows = _sample_rows(lambda columns: iterate_queries(snapshot, columns), list(shape.rules["queries"]))
        changes |= _compare_columns("queries", _pair_rows(current, rows, OF_QUERIES), profile)
    return CurrentInputs(
        items=facts.items,
        items_kept=kept,
        elapsed_seconds=parse_utc(snapshot.manifest.run.created) - parse_utc(facts.created),
        profile=facts.profile,
        changes=changes,
        vectors=_compare_vectors(snapshot, current, profile),
    )


def _sample_rows(
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]], names: Sequence[str]
) -> dict[bytes, dict[str, Any]]:
    """Return columns of sampled rows by key, encoded as in a store. read: yields the rows of a table, given columns."""
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


def _pair_rows(
    current: CurrentVersion, rows: Mapping[bytes, dict[str, Any]], prefix: bytes = b""
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (current, new) columns of the rows that the current version has too."""
    values = current.reader.get_many(Space.ITEMS, [prefix + key for key in rows])
    return [(json.loads(then), now) for then, now in zip(values, rows.values(), strict=True) if then is not None]


# ---- single values ----


def _compare_columns(
    table: str, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], profile: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], ValueChange]]:
    """Yield by table and column how much the values of the paired rows differ."""
    attributes = profile.get(table, {}).get("attributes", {})
    for name, facts in attributes.items():
        pairs = [(before.get(name), now.get(name)) for before, now in rows]
        change = _compare_values(
            [(b, n) for b, n in pairs if b not in (None, "", []) and n not in (None, "", [])], facts
        )
        if change is not None:
            yield (table, name), change


def _compare_values(pairs: list[tuple[Any, Any]], facts: Mapping[str, Any]) -> ValueChange | None:
    """Compare pairs of values. Return None for columns of times, and for texts that name their row."""
    if not pairs or "time" in facts["kind"] or facts["kind"] in ("null", "other"):
        return None
    if facts["kind"] == "number":
        return _compare_numbers([(b, n) for b, n in pairs if _is_number(b) and _is_number(n)])
    if facts["kind"] == "text" and len({str(b) for b, _ in pairs}) > MOSTLY_DISTINCT * len(pairs):
        return None
    differ = [pair for pair in pairs if _has_changed(*pair)]
    if not differ:
        return ValueChange(len(pairs), 0.0, False, "")
    example = Counter((_shorten(b), _shorten(n)) for b, n in differ).most_common(1)[0][0]
    return ValueChange(len(pairs), len(differ) / len(pairs), False, " -> ".join(example))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_changed(before: Any, now: Any) -> bool:
    """Return whether the value changed; a list changed if it shares no value with the list before."""
    if isinstance(before, list) and isinstance(now, list):
        return {str(value) for value in before}.isdisjoint(str(value) for value in now)
    return bool(before != now)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _compare_numbers(pairs: list[tuple[Any, Any]]) -> ValueChange | None:
    """Return the share of values that grew by SCALE or more minus the share that fell by SCALE, as an absolute value.

    Noise changes values in both directions. Counts below SMALL_COUNT are left out.
    """
    kept = [(b, n) for b, n in pairs if not (isinstance(n, int) and max(abs(b), abs(n)) < SMALL_COUNT) and b * n > 0]
    if not kept:
        return None
    ratios = np.array([n / b for b, n in kept])
    up, down = ratios >= SCALE, ratios <= 1 / SCALE
    excess = (int(np.count_nonzero(up)) - int(np.count_nonzero(down))) / len(kept)
    changed = up if excess > 0 else down
    example = kept[int(np.argmax(changed))]
    return ValueChange(len(kept), abs(excess), True, f"{example[0]:.6g} -> {example[1]:.6g}")


# ---- single vectors ----


def _compare_vectors(
    snapshot: Snapshot, current: CurrentVersion, profile: Mapping[str, Any]
) -> dict[str, VectorChange]:
    """Return by table how the vectors of ids in both sketches changed; empty if the current folder is missing.

    The last component that a score term appends is not compared: bids may change every day.
    """
    served = _find_current_snapshot(snapshot, current)
    if served is None:
        return {}
    found = {}
    for table in ("items", "queries"):
        then, now = read_sketch(served.fetch(SKETCH), table), read_sketch(snapshot.fetch(SKETCH), table)
        if then is None or now is None:
            continue
        same_type = then.ids.type == now.ids.type
        positions = find_positions(then.ids, now.ids) if same_type else np.full(len(then.ids), -1)
        dims = (then.vectors.shape[1], now.vectors.shape[1])
        own = profile.get(table, profile.get("items", {})).get("dim", min(dims))
        drift = compare_sketches(then.vectors[:, :own], now.vectors[:, :own], positions)
        both = int(np.count_nonzero(positions >= 0)) if drift is not None else 0
        found[table] = VectorChange(both, len(drift.changed) / both if drift is not None and both else 0.0, dims)
    return found


def _find_current_snapshot(snapshot: Snapshot, current: CurrentVersion) -> Snapshot | None:
    """Return the current snapshot if it is beside this snapshot; else None."""
    try:
        served = open_home(snapshot.out).open(snapshot.generator, current.version)
    except (DamagedError, NotFoundError, OSError):
        return None
    return served if served.manifest.fingerprint == current.facts.fingerprint else None
