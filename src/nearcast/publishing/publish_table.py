"""Publish a weight table: the same steps as for a snapshot, with one check in place of the audit.

    lock -> validate -> write -> read back -> move the pointer -> retire

Readers keep the old version until the pointer moves. `rollback.py` rolls it back as any generator. Knows nothing of
logs.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import AuditError, DamagedError, GoneError, StoreError
from nearcast.publishing.copy_snapshot import CopyFigures
from nearcast.publishing.publication import Publication
from nearcast.publishing.repair import find_last_facts, read_pointer
from nearcast.publishing.retention import list_rolled_back, retire_versions
from nearcast.publishing.write_version import add_checksum, open_writer, verify_version
from nearcast.spec import ServeSpec
from nearcast.stores.base import Pair, Pointer, PointerEvent, PublishLock, Space, Store
from nearcast.stores.names import PEOPLE, PHRASES, table_name
from nearcast.stores.value_format import encode_keys, encode_lists, id_kind, id_type
from nearcast.stores.version_facts import FACTS_FORMAT, WEIGHT_TABLE, VersionFacts, read_facts
from nearcast.times import format_utc
from nearcast.types import no_progress

__all__ = ["list_warnings", "publish_table"]

LIST_HEAD_BYTES = 4
KEPT_VERSIONS = 3
MOST_LOOKED_UP = 20_000
LEAST_SHARE = 0.5  # of the current keys: with fewer, the log is more likely incomplete

Pairs = Mapping[Space, list[Pair]]


def publish_table(
    store: Store, generator: str, table: str, rows: pa.Table, *, fewer: bool = False, repair: bool = False
) -> Publication:
    """Publish a weight table under the name GENERATOR.TABLE. Does nothing if the same rows are current already.

    rows: columns key, items and weights, as `engagement.compute_weights` returns them.
    fewer: allow less than half as many keys as the current table.
    repair: continue without a pointer or current table that cannot be read, and publish equal rows too.
    Raises AuditError for fewer keys, StoreError if a snapshot is published under the name, BusyError while another
    process publishes it. Readers then see no change.
    """
    name, pairs = table_name(generator, table), _pairs(rows)
    fingerprint = _fingerprint(pairs)
    with store.lock(name) as lock:
        notes: list[str] = []
        pointer = read_pointer(store, name, notes, repair=repair)
        current = find_last_facts(store, name, pointer, notes, repair=repair)
        _validate_kind(store, name, current)
        before = pointer.version or None if pointer else None
        same = pointer and current and (current.fingerprint, current.version) == (fingerprint, pointer.version)
        if pointer and same and not repair:
            return Publication(name, store.url, pointer.version, before, "already_current")
        _validate_count(name, rows, current, fewer=fewer)
        version = 1 + max([*store.versions(name), before or 0])
        result = Publication(name, store.url, version, before, "published")
        started = time.perf_counter()
        copied = _measure_pairs(pairs)
        facts = replace(_make_facts(name, version, rows, copied), fingerprint=fingerprint, of=generator)
        _write(store, pairs, facts, lock)
        result = replace(result, copied=copied, copy_seconds=time.perf_counter() - started)
        last = pointer or Pointer(version=0, serial=0)
        moved = last.move(PointerEvent("published", version, format_utc(time.time())), list_rolled_back(last, version))
        store.point(name, moved, lock)
        return replace(result, retired=tuple(retire_versions(store, name, moved, KEPT_VERSIONS)))


def list_warnings(store: Store, generator: str, table: str, rows: pa.Table) -> list[str]:
    """Return likely mistakes, one sentence each: an unusual name, an unknown generator, items that are not its keys.

    They are no errors: the generator may be published later. Looks up at most MOST_LOOKED_UP of the items.
    """
    warnings = []
    near = difflib.get_close_matches(table, (PHRASES, PEOPLE), n=1, cutoff=0.6)
    if near and table not in (PHRASES, PEOPLE):
        warnings.append(f"requests are not resolved by a table named {table!r}; did you mean {near[0]!r}?")
    pointer = store.pointer(generator)
    if pointer is None:
        names = [name for name in store.generators() if "." not in name]
        close = difflib.get_close_matches(generator, names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"published there: {', '.join(names) or 'nothing'}"
        return [*warnings, f"no generator {generator!r} is published in {store.url}; {hint}"]
    items = rows["items"].combine_chunks().flatten()
    distinct = items.unique()
    distinct = distinct.take(pa.array(range(0, len(distinct), 1 + len(distinct) // MOST_LOOKED_UP)))
    try:
        with contextlib.closing(store.open(generator, pointer.version, verify=False)) as reader:
            values = reader.get_many(Space.LISTS, encode_keys(distinct))
            kind = read_facts(reader, generator, pointer.version).query_ids
    except (DamagedError, GoneError, StoreError) as error:
        return [*warnings, f"whether the items are keys of {generator} is not known: {error}"]
    unknown = distinct.filter(pa.array([value is None for value in values], pa.bool_()))
    if len(unknown):
        among = items.filter(pc.is_in(items, value_set=distinct))
        share = pc.mean(pc.is_in(among, value_set=unknown).cast(pa.float64())).as_py()
        examples = ", ".join(repr(item) for item in unknown[:3].to_pylist())
        types = f"; its keys are {kind}, and the items {distinct.type}" if id_type(distinct.type) != kind else ""
        warnings.append(
            f"{len(unknown):,} of {len(distinct):,} different items ({share:.1%} of the entries) are no keys of "
            f"{generator} {pointer.version:06d}, such as {examples}: they lead to no candidates{types}"
        )
    return warnings


def _validate_kind(store: Store, name: str, current: VersionFacts | None) -> None:
    """Raise StoreError if snapshots are published under this name."""
    if current is not None and not current.is_weight_table:
        raise StoreError(f"{name} in {store.url} has snapshots, and is no table; give the table another name")


def _validate_count(name: str, rows: pa.Table, current: VersionFacts | None, *, fewer: bool) -> None:
    keys = current.keys if current else 0
    least = LEAST_SHARE * keys
    if len(rows) < least and not fewer:
        raise AuditError(
            f"{name} would have {len(rows):,} keys where {keys:,} are current; if so few are meant, "
            "publish with --fewer"
        )


def _write(store: Store, pairs: Pairs, facts: VersionFacts, lock: PublishLock) -> None:
    """Write the version and read it back. A version that differs is removed."""
    name, version = facts.generator, facts.version
    with open_writer(store, name, version) as writer:
        for space, space_pairs in pairs.items():
            writer.put(space, space_pairs)
        lock.check()
        writer.finish(facts.to_json())
    try:
        verify_version(store, name, version, f"version {version:06d} of {name} in {store.url}", no_progress)
    except DamagedError:
        lock.check()
        store.retire(name, version)
        raise


def _pairs(rows: pa.Table) -> Pairs:
    """Return lists by key, and their items, each ascending by key."""
    items = rows["items"].combine_chunks()
    distinct = items.flatten().unique()
    values = encode_lists(items, rows["weights"].combine_chunks(), [None] * len(rows), id_kind(distinct))
    lists = sorted(zip(encode_keys(rows["key"].combine_chunks()), values, strict=True))
    return {Space.LISTS: lists, Space.ITEMS: sorted((key, b"{}") for key in encode_keys(distinct))}


def _measure_pairs(pairs: Pairs) -> CopyFigures:
    sums = {str(space): add_checksum(0, *_unzip(space_pairs)) for space, space_pairs in pairs.items()}
    total = sum(len(key) + len(value) for space_pairs in pairs.values() for key, value in space_pairs)
    lists = pairs[Space.LISTS]
    payload = sum(len(key) + len(value) - LIST_HEAD_BYTES for key, value in lists)
    return CopyFigures(len(lists), len(pairs[Space.ITEMS]), 0, total, payload, sums)


def _unzip(pairs: list[Pair]) -> tuple[list[bytes], list[bytes]]:
    return [key for key, _ in pairs], [value for _, value in pairs]


def _make_facts(name: str, version: int, rows: pa.Table, copied: CopyFigures) -> VersionFacts:
    now = format_utc(time.time())
    items = rows["items"].combine_chunks().flatten()
    return VersionFacts(
        format=FACTS_FORMAT,
        kind=WEIGHT_TABLE,
        generator=name,
        version=version,
        snapshot=f"{version:06d}",
        started=now,
        created=now,
        published=now,
        metric="weight",
        k=int(pc.max(pc.list_value_length(rows["items"])).as_py()),
        query_ids=id_type(rows["key"].type),
        item_ids=id_type(items.type),
        id_kind=id_kind(items),
        serve=ServeSpec().model_dump(mode="json"),
        audit={"findings": [], "accepted": {}},
        keys=copied.keys,
        items=copied.items,
        payload_bytes=copied.payload_bytes,
        checksum=dict(copied.checksum),
    )


def _fingerprint(pairs: Pairs) -> str:
    """Return a hash of all lists. Equal rows have equal hashes."""
    hashed = hashlib.blake2b(digest_size=16)
    for key, value in pairs[Space.LISTS]:
        hashed.update(b"%d %d " % (len(key), len(value)) + key + value)
    return hashed.hexdigest()
