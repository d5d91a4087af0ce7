"""Immutable views: look-ups in one version of a table under one state of the overlay.

A call reads nothing but its `View`, so an answer cannot mix two versions. Knows nothing of how the current version is
found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.eligibility.closures import Context
from nearcast.errors import InputError, NotFoundError
from nearcast.serve.lookup_data import (
    ALL_CANDIDATES,
    NOWHERE,
    TABLE,
    Answer,
    Answers,
    EncodedKeys,
    Keys,
    LookupOptions,
    convert_key,
    encode_lookup_keys,
)
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.table_version import TableVersion
from nearcast.stores.base import Pointer, Space
from nearcast.stores.value_format import CandidateLists, decode_columns, decode_list, decode_lists, encode_key
from nearcast.types import FloatArray, IntArray, as_score

__all__ = ["StoredLists", "View"]

Request = Mapping[str, Any] | None  # request fields by name
FlatLists = tuple[IntArray, pa.Array, FloatArray]  # offsets, ids and scores, as in `CandidateLists`
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class StoredLists:
    """Lists as a version stores them, before any rule: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    keys: Sequence[str | int | None] | IntArray  # (n,)
    found: npt.NDArray[np.bool_]  # (n,)
    offsets: IntArray  # (n + 1,)
    ids: pa.Array
    removed: IntArray  # ascending positions in `ids` of the candidates that the overlay removes


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One version of a table under one state of the overlay. The version stays open as long as the view is held."""

    version: TableVersion
    overlay: OverlayState
    pointer: Pointer  # that names the version

    @property
    def snapshot(self) -> str:
        """The snapshot that every answer comes from, for example 000007."""
        return self.version.snapshot

    @property
    def request_fields(self) -> frozenset[str]:
        """Names that a request may give values for: fields and query columns that rules read."""
        columns = self.version.rule_columns
        return frozenset() if columns is None else frozenset(columns.rules.request_types)

    @property
    def columns(self) -> frozenset[str]:
        """Names of the item columns of the version and the overlay."""
        return frozenset((*self.version.facts.columns, *self.overlay.fields))

    def with_overlay(self, overlay: OverlayState) -> View:
        """Return the same version under another state of the overlay."""
        return replace(self, overlay=overlay)

    def find_arm(self, _snapshot: str) -> View:
        """Return the view of the snapshot that an answer names: this one, or an arm of a `CanaryView`."""
        return self

    def read_arm(self, arm: View, read: Callable[[View], T]) -> T:
        """Return what `read` returns for an arm; for the current version if lists of a canary are damaged."""
        return read(arm)

    def read_arms(
        self, keys: Sequence[Any], _options: LookupOptions, read: Callable[[View, Sequence[int]], T]
    ) -> list[tuple[T, Sequence[int]]]:
        """Return what `read` returns for each view that answers keys, with the ascending positions of its keys."""
        positions = range(len(keys))
        return [(read(self, positions), positions)]

    @property
    def age_seconds(self) -> float:
        """Seconds since the snapshot was made; 0 if the clock is behind that time."""
        return max(0.0, time.time() - self.version.created)

    def get(self, key: str | int, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answer:
        """Return the candidates of one key; see `Lookup.get`. changes: fields of `options`, as keywords."""
        if changes:
            options = LookupOptions(**options._asdict() | changes)
        version, now = self.version, time.time()
        k, min_score, fields, request = options
        converted = convert_key(key, version.query_ids)
        value = None if converted is None else version.reader.get_many(Space.LISTS, [encode_key(converted)])[0]
        if converted is None or value is None:
            return self._miss(key, converted, options)
        ids, scores, reason = decode_list(value)
        removed, stored = 0, len(ids)
        barred: Mapping[str, int] = {}
        if self.overlay.removes_any(ids):
            kept = [position for position, gone in enumerate(self.overlay.find_removed(ids, now)) if not gone]
            removed = len(ids) - len(kept)
            ids, scores = [ids[position] for position in kept], [scores[position] for position in kept]
        if version.rule_columns is not None or request:
            eligible, barred = self.filter_by_rules(converted, ids, request, now)
            if barred:
                ids, scores = [ids[position] for position in eligible], [scores[position] for position in eligible]
        if min_score is not None:
            threshold = float(as_score(min_score))  # scores are float32: compare 0.7 as float32, too
            n = sum(score >= threshold for score in scores)
            ids, scores = ids[:n], scores[:n]
        if k is not None:
            ids, scores = ids[: _validate_k(k)], scores[:k]
        return Answer(
            key=converted,
            found=True,
            ids=ids,
            scores=scores,
            reason=reason,
            removed=removed,
            columns=self._read_columns(ids, fields) if fields else {},
            source=TABLE,
            source_key=converted,
            snapshot=version.snapshot,
            age_seconds=max(0.0, now - version.created),
            stored=stored,
            barred=barred,
        )

    def _miss(self, key: str | int, converted: str | int | None, options: LookupOptions) -> Answer:
        """Return the answer for a missing key. Validate the request fields and columns like for any other key."""
        if options.request:
            self.rule_context(converted, options.request)
        columns: dict[str, list[Any]] = {name: [] for name in self._validate_fields(options.fields)}
        return Answer(
            key=key if converted is None else converted,
            found=False,
            ids=[],
            scores=[],
            reason=None,
            removed=0,
            columns=columns,
            source=NOWHERE,
            source_key=None,
            snapshot=self.version.snapshot,
            age_seconds=self.age_seconds,
        )

    def rule_context(self, key: str | int | None, request: Request) -> Context:
        """Return a query and a request in the form that the rules use.

        Raises InputError for a request field that no rule reads or that has another type.
        """
        columns = self.version.rule_columns
        if columns is None:
            if not request:
                return {}
            raise InputError(f"{self.version.facts.generator} {self.snapshot} has no rules that ask for a request")
        return columns.rules.context(key, columns.query(key), request)

    def filter_by_rules(
        self, key: str | int | None, ids: Sequence[Any], request: Request, now: float
    ) -> tuple[Sequence[int], dict[str, int]]:
        """Return the positions of the eligible items, and how many items each rule has filtered out."""
        context, columns = self.rule_context(key, request), self.version.rule_columns
        if columns is None:
            return range(len(ids)), {}
        return columns.rules.filter_items(context, columns.items(ids, self.overlay, now))

    def get_many(self, keys: Keys, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answers:
        """Return the candidates of many keys as arrays; see `Lookup.get_many`. changes: fields of `options`.

        `options.fields` is not used.
        """
        if changes:
            options = LookupOptions(**options._asdict() | changes)
        version, now, k = self.version, time.time(), options.k
        query, lists = self._read_lists(keys)
        removed = self.overlay.positions_removed(lists.ids, now)
        excluded, barred = removed, dict[str, IntArray]()
        if version.rule_columns is not None or options.request:
            excluded, barred = self._find_ineligible(query.keys, lists, removed, options.request, now)
        offsets, ids, scores, dropped = cut_lists(
            lists, excluded, None if k is None else _validate_k(k), options.min_score
        )
        return Answers(
            keys=query.keys,
            found=lists.found,
            offsets=offsets,
            ids=ids,
            scores=scores,
            reasons=lists.reasons,
            removed=dropped - sum(barred.values(), np.zeros_like(dropped)),
            snapshot=version.snapshot,
            age_seconds=max(0.0, now - version.created),
            stored=np.diff(lists.offsets),
            barred=barred,
        )

    def get_stored(self, keys: Keys, now: float) -> StoredLists:
        """Return the lists of many keys as they are stored, and the candidates that the overlay removes at `now`."""
        query, lists = self._read_lists(keys)
        removed = self.overlay.positions_removed(lists.ids, now)
        none = np.empty(0, np.int64)
        return StoredLists(query.keys, lists.found, lists.offsets, lists.ids, none if removed is None else removed)

    def _read_lists(self, keys: Keys) -> tuple[EncodedKeys, CandidateLists]:
        query = encode_lookup_keys(keys, self.version.query_ids)
        values = self.version.reader.get_many(Space.LISTS, query.encoded)
        if query.positions is not None:
            values = _spread_values(values, query.positions, len(query.keys))
        return query, decode_lists(values, self.version.item_ids)

    def _find_ineligible(
        self,
        keys: Sequence[Any] | IntArray,
        lists: CandidateLists,
        removed: IntArray | None,
        request: Request,
        now: float,
    ) -> tuple[IntArray | None, dict[str, IntArray]]:
        """Return the positions of all removed and ineligible candidates, and per rule the count of each list."""
        self.rule_context(None, request)
        keep = np.ones(len(lists.scores), np.bool_)
        if removed is not None:
            keep[removed] = False
        ids, counts = lists.ids.to_pylist(), dict[str, IntArray]()
        for row in np.flatnonzero(np.diff(lists.offsets)).tolist():
            start, end = int(lists.offsets[row]), int(lists.offsets[row + 1])
            positions = start + np.flatnonzero(keep[start:end])
            key = keys[row].item() if isinstance(keys, np.ndarray) else keys[row]
            eligible, barred = self.filter_by_rules(key, [ids[position] for position in positions], request, now)
            if barred:
                keep[start:end] = False
                keep[positions[eligible]] = True
            for rule, count in barred.items():
                counts.setdefault(rule, np.zeros(len(lists.found), np.int64))[row] = count
        return (np.flatnonzero(~keep) if not keep.all() else None), counts

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return these columns of these items, a dictionary per id; None if neither snapshot nor overlay has a value.

        Raises NotFoundError for a column that neither has.
        """
        now, names = time.time(), self._validate_fields(fields)
        converted = [convert_key(item, self.version.item_ids) for item in ids]
        distinct = list(dict.fromkeys(item for item in converted if item is not None))
        values = self.version.reader.get_many(Space.ITEMS, [encode_key(item) for item in distinct])
        stored = {
            item: decode_columns(value) for item, value in zip(distinct, values, strict=True) if value is not None
        }
        rows = []
        for item in converted:
            row = {} if item is None else stored.get(item, {})
            if item is not None and self.overlay.values:
                row = row | self.overlay.find_values(item, now)
            rows.append({name: row.get(name) for name in names})
        return rows

    def removed(self, ids: Sequence[str | int]) -> list[bool]:
        """Return per id whether the overlay has removed the item."""
        return self.overlay.find_removed([convert_key(item, self.version.item_ids) for item in ids], time.time())

    def _validate_fields(self, fields: Sequence[str]) -> Sequence[str]:
        columns = self.version.facts.columns
        for name in fields:
            if name not in columns and name not in self.overlay.fields:
                held = ", ".join(sorted({*columns, *self.overlay.fields})) or "none"
                what = f"{self.version.facts.generator} {self.snapshot}"
                raise NotFoundError(f"{what} holds no item column {name!r}; it holds {held}")
        return fields

    def _read_columns(self, ids: Sequence[Any], fields: Sequence[str]) -> dict[str, list[Any]]:
        rows = self.items(ids, fields)
        return {name: [row[name] for row in rows] for name in fields}


def _validate_k(k: int) -> int:
    if k < 1:
        raise InputError(f"k is {k}; ask for one candidate at least")
    return k


def _spread_values(values: list[bytes | None], positions: IntArray, n: int) -> list[bytes | None]:
    spread: list[bytes | None] = [None] * n
    for position, value in zip(positions.tolist(), values, strict=True):
        spread[position] = value
    return spread


def cut_lists(
    lists: CandidateLists, excluded: IntArray | None, k: int | None, min_score: float | None
) -> tuple[IntArray, pa.Array, FloatArray, IntArray]:
    """Drop excluded candidates, then those with a low score, then all after the first k of each list.

    excluded: ascending positions in the flat ids. Returns offsets, ids, scores, and the excluded count of each list.
    """
    flat: FlatLists = (lists.offsets, lists.ids, lists.scores)
    dropped = np.zeros(len(lists.found), np.int64)
    if excluded is not None and len(excluded):
        dropped = np.bincount(np.searchsorted(flat[0], excluded, "right") - 1, minlength=len(dropped))
        keep = np.ones(len(lists.scores), np.bool_)
        keep[excluded] = False
        flat = _select(keep, np.diff(flat[0]) - dropped, flat)
    if min_score is not None:
        enough = flat[2] >= as_score(min_score)
        if not enough.all():
            flat = _select(enough, np.diff(np.append(0, np.cumsum(enough))[flat[0]]), flat)
    if k is not None:
        lengths = np.diff(flat[0])
        if len(lengths) and int(lengths.max()) > k:
            first = np.minimum(lengths, k)
            runs = np.stack([first, lengths - first], axis=1).reshape(-1)
            flat = _select(np.repeat(np.tile([True, False], len(first)), runs), first, flat)
    return *flat, dropped


def _select(keep: npt.NDArray[np.bool_], lengths: IntArray, flat: FlatLists) -> FlatLists:
    """Return the candidates where `keep` is true, as lists of these lengths."""
    _, ids, scores = flat
    left = pa.array(ids.to_numpy()[keep]) if pa.types.is_integer(ids.type) else ids.filter(pa.array(keep))
    return np.append(0, np.cumsum(lengths)), left, scores[keep]
