"""A view of two versions: the current one, and a canary that answers a share of the keys or is measured on them.

Each key belongs to one arm, by a hash of its text, so its lists never mix versions. The list of a key, its columns and
its fallbacks come from its arm. Item columns, request fields and id types may differ between the arms: an arm ignores
fields that only the other one knows. Knows nothing of how the versions are found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import DamagedError
from nearcast.serve.canary_tally import MOST_WAITING, CanaryTally, MeasuredList
from nearcast.serve.lookup_data import ALL_CANDIDATES, Answer, Answers, Keys, LookupOptions, convert_key
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.view import StoredLists, View
from nearcast.stores.canary_share import Canary, hash_key, hash_keys
from nearcast.types import IntArray

__all__ = ["ArmView", "CanaryView", "make_canary_view", "merge_answers"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class ArmView(View):
    """One of two versions. Ignores item columns and request fields that only the other version knows."""

    other_columns: frozenset[str] = frozenset()
    other_fields: frozenset[str] = frozenset()

    def get(self, key: str | int, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answer:
        """Return the candidates of one key; None for a column that only the other version has."""
        options = LookupOptions(**options._asdict() | changes) if changes else options
        answer = View.get(self, key, self._drop_foreign(options))
        if foreign := self.other_columns.intersection(options.fields):
            missing = [None] * len(answer.ids)
            columns = {name: missing if name in foreign else answer.columns[name] for name in options.fields}
            return replace(answer, columns=columns)
        return answer

    def get_many(self, keys: Keys, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answers:
        """Return the candidates of many keys as arrays."""
        options = LookupOptions(**options._asdict() | changes) if changes else options
        return View.get_many(self, keys, self._drop_foreign(options))

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return these columns of these items; None for a column that only the other version has."""
        if not self.other_columns.intersection(fields):
            return View.items(self, ids, fields)
        rows = View.items(self, ids, [name for name in fields if name not in self.other_columns])
        return [{name: row.get(name) for name in fields} for row in rows]

    def filter_by_rules(
        self, key: str | int | None, ids: Sequence[Any], request: Mapping[str, Any] | None, now: float
    ) -> tuple[Sequence[int], dict[str, int]]:
        """Return the positions of the eligible items, and how many items each rule has filtered out."""
        return View.filter_by_rules(self, key, ids, self._drop_fields(request), now)

    def _drop_foreign(self, options: LookupOptions) -> LookupOptions:
        request = self._drop_fields(options.request)
        fields = options.fields
        if self.other_columns.intersection(fields):
            fields = [name for name in fields if name not in self.other_columns]
        return options._replace(fields=fields, request=request)

    def _drop_fields(self, request: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if not request or self.other_fields.isdisjoint(request):
            return request
        return {name: value for name, value in request.items() if name not in self.other_fields} or None


@dataclass(frozen=True, slots=True, eq=False)
class CanaryView(View):
    """The current version with a canary beside it, both under one state of the overlay. Made by `make_canary_view`.

    `version`, `snapshot` and `age_seconds` are those of the current version.
    """

    current_arm: ArmView
    canary_arm: ArmView
    canary: Canary
    tally: CanaryTally

    @property
    def request_fields(self) -> frozenset[str]:
        """Names that a request may give values for, in either version."""
        return self.current_arm.request_fields | self.canary_arm.request_fields

    @property
    def columns(self) -> frozenset[str]:
        """Names of the item columns of either version."""
        return self.current_arm.columns | self.canary_arm.columns

    def with_overlay(self, overlay: OverlayState) -> CanaryView:
        """Return both versions under another state of the overlay."""
        return make_canary_view(View(self.version, overlay, self.pointer), self.canary_arm, self.canary, self.tally)

    def find_arm(self, snapshot: str) -> View:
        """Return the version of the snapshot that an answer names."""
        return self.canary_arm if snapshot == self.canary_arm.snapshot else self.current_arm

    def read_arm(self, arm: View, read: Callable[[View], T]) -> T:
        """Return what `read` returns for an arm; for the current version if lists of the canary are damaged."""
        try:
            return read(arm)
        except DamagedError:  # lists that cannot be read must not cost a visitor his candidates
            if arm is self.current_arm:
                raise
            self.tally.count_error()
            return read(self.current_arm)

    def read_arms(
        self, keys: Sequence[Any], options: LookupOptions, read: Callable[[View, Sequence[int]], T]
    ) -> list[tuple[T, Sequence[int]]]:
        """Return what `read` returns for each version that answers keys, with the ascending positions of its keys.

        If lists of the canary are damaged, its keys are read one by one, and those keys from the current version.
        """

        def read_one(at: int) -> tuple[T, Sequence[int]]:
            return self.read_arm(self.canary_arm, lambda arm: read(arm, [at])), [at]

        parts: list[tuple[T, Sequence[int]]] = []
        for arm, positions in self._split_keys(keys, options):
            try:
                parts.append((read(arm, positions), positions))
            except DamagedError:
                if arm is self.current_arm:
                    raise
                parts += map(read_one, positions)
        return parts

    def _hash(self, key: Any) -> int:
        return hash_key(self.version.facts.generator, self.canary.version, self._write_key(key))

    def _hash_all(self, keys: Sequence[Any]) -> list[int]:
        plain = int if self.version.query_ids == "int64" else str
        texts = map(str, keys) if set(map(type, keys)) <= {plain} else map(self._write_key, keys)
        return hash_keys(self.version.facts.generator, self.canary.version, texts)

    def _write_key(self, key: Any) -> str:
        converted = convert_key(key, self.version.query_ids)  # "7" and 7 are one key of a table of numbers
        return str(key if converted is None else converted)

    def get(self, key: str | int, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answer:
        """Return the candidates of one key, from its arm."""
        options = LookupOptions(**options._asdict() | changes) if changes else options
        hashed = self._hash(key)
        if hashed >= self.canary.threshold:
            return self.current_arm.get(key, options)
        self.tally.count_routed(1)
        self._offer(key, options, hashed)
        if self.canary.mode == "shadow":
            return self.current_arm.get(key, options)
        return self.read_arm(self.canary_arm, lambda arm: arm.get(key, options))

    def _offer(self, key: Any, options: LookupOptions, hashed: int) -> None:
        """Queue the key to be measured on both arms."""
        plain = options._replace(fields=())
        k = options.k or self.version.facts.k
        measure = partial(_measure_list, key=key, options=plain, k=k)
        self.tally.offer(partial(measure, self.current_arm), partial(measure, self.canary_arm), hashed)

    def _split_keys(self, keys: Sequence[Any], options: LookupOptions) -> list[tuple[View, Sequence[int]]]:
        """Return both arms with the positions of their keys. Of the keys in the share some are queued for measuring."""
        hashes, threshold = self._hash_all(keys), self.canary.threshold
        inside = [at for at, hashed in enumerate(hashes) if hashed < threshold]
        if inside:
            self.tally.count_routed(len(inside))
            for at in inside[:: -(-len(inside) // MOST_WAITING)]:
                self._offer(keys[at], options, hashes[at])
        if self.canary.mode == "shadow" or not inside:
            return [(self.current_arm, range(len(keys)))]
        taken = set(inside)
        outside = [at for at in range(len(keys)) if at not in taken]
        return [(arm, at) for arm, at in ((self.current_arm, outside), (self.canary_arm, inside)) if at]

    def get_many(self, keys: Keys, options: LookupOptions = ALL_CANDIDATES, **changes: Any) -> Answers:
        """Return the candidates of many keys as arrays, each list from the arm of its key."""
        options = LookupOptions(**options._asdict() | changes) if changes else options
        listed = _list_keys(keys)

        def read(arm: View, positions: Sequence[int]) -> Answers:
            asked = keys if len(positions) == len(listed) else [listed[at] for at in positions]
            return arm.get_many(asked, options)

        parts = self.read_arms(listed, options, read)
        if len(parts) == 1:
            return parts[0][0]
        return merge_answers([part for part, _ in parts], [positions for _, positions in parts])

    def get_stored(self, keys: Keys, now: float) -> StoredLists:
        """Return the lists of the current version as they are stored."""
        return View.get_stored(self.current_arm, keys, now)

    def items(self, ids: Sequence[str | int], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return columns of items of the current version."""
        return self.current_arm.items(ids, fields)


def make_canary_view(current: View, canary_arm: View, canary: Canary, tally: CanaryTally) -> CanaryView:
    """Return a view of both versions under the overlay of `current`."""
    overlay = current.overlay.convert(canary_arm.version.item_ids)
    second = View(canary_arm.version, overlay, current.pointer)
    arms = (_make_arm(current, second), _make_arm(second, current))
    return CanaryView(current.version, current.overlay, current.pointer, *arms, canary, tally)


def _make_arm(view: View, other: View) -> ArmView:
    return ArmView(
        view.version,
        view.overlay,
        view.pointer,
        other.columns - view.columns,
        other.request_fields - view.request_fields,
    )


def _measure_list(arm: View, *, key: Any, options: LookupOptions, k: int) -> MeasuredList:
    return MeasuredList(arm.get(key, options).ids, k)


def _list_keys(keys: Keys) -> Sequence[Any]:
    if isinstance(keys, pa.Array | pa.ChunkedArray):
        return list(keys.to_pylist())
    return list(keys.tolist()) if isinstance(keys, np.ndarray) else list(keys)


def merge_answers(parts: Sequence[Answers], positions: Sequence[Sequence[int]]) -> Answers:
    """Put the answers of both arms back in the order of the keys. Ids of different types become text."""
    order = np.argsort(np.concatenate([np.asarray(at, np.int64) for at in positions]), kind="stable")
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    starts = np.concatenate(
        [part.offsets[:-1] + shift for part, shift in zip(parts, _shift_starts(parts), strict=True)]
    )
    offsets = np.append(0, np.cumsum(lengths[order]))
    flat = np.arange(offsets[-1]) + np.repeat(starts[order] - offsets[:-1], lengths[order])
    kinds = {part.ids.type for part in parts}
    ids = pa.concat_arrays([part.ids if len(kinds) == 1 else part.ids.cast(pa.string()) for part in parts])
    rules = dict.fromkeys(rule for part in parts for rule in part.barred)
    none = [np.zeros(len(part), np.int64) for part in parts]
    snapshots = [part.snapshot for part in parts for _ in range(len(part))]
    ages = [part.age_seconds for part in parts for _ in range(len(part))]
    first = order[0]
    return Answers(
        keys=_merge_keys(parts, order),
        found=np.concatenate([part.found for part in parts])[order],
        offsets=offsets,
        ids=ids.take(pa.array(flat)),
        scores=np.concatenate([part.scores for part in parts])[flat],
        reasons=np.concatenate([part.reasons for part in parts])[order],
        removed=np.concatenate([part.removed for part in parts])[order],
        snapshot=snapshots[first],
        age_seconds=ages[first],
        stored=np.concatenate([part.stored for part in parts])[order],
        barred={
            rule: np.concatenate([part.barred.get(rule, zero) for part, zero in zip(parts, none, strict=True)])[order]
            for rule in rules
        },
        snapshots=[snapshots[at] for at in order],
        ages_seconds=[ages[at] for at in order],
    )


def _shift_starts(parts: Sequence[Answers]) -> IntArray:
    return np.append(0, np.cumsum([len(part.ids) for part in parts])[:-1])


def _merge_keys(parts: Sequence[Answers], order: npt.NDArray[np.int64]) -> Sequence[str | int | None] | IntArray:
    if all(isinstance(part.keys, np.ndarray) for part in parts):
        merged: IntArray = np.concatenate([part.keys for part in parts])[order]
        return merged
    keys = [key for part in parts for key in (part.keys.tolist() if isinstance(part.keys, np.ndarray) else part.keys)]
    if len({type(key) for key in keys if key is not None}) > 1:
        keys = [None if key is None else str(key) for key in keys]
    return [keys[at] for at in order]
