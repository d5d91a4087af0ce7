"""The patches of a generator as a store keeps them: facts, segments, and the changes of both. Pure values.

A segment holds the pairs of one patch, or of several folded ones; it never changes. `PatchRecords` is one JSON object
that a store replaces in one step, so that a patch is in force or not. Knows nothing of files and servers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nearcast.errors import DamagedError, StoreError
from nearcast.files import fingerprint
from nearcast.stores.base import PatchFacts, PatchState
from nearcast.stores.patch_index import MOST_SEGMENTS

__all__ = ["FOLD_TO", "MOST_PATCHES", "PatchRecord", "PatchRecords", "Segment"]

FORMAT = 1
MOST_PATCHES = 64  # each can be rolled back, and is a segment; a write folds older ones
FOLD_TO = 32  # patches that are left then
MERGE_RATIO = 2  # folded segments grow by this factor, so that there are few, and a pair is copied a few times


@dataclass(frozen=True, slots=True)
class Segment:
    """The pairs of one patch or of several folded ones."""

    name: str  # of its folder or keys; never used again
    size: int  # bytes of keys and values
    counts: Mapping[str, int] = field(default_factory=dict)  # by space: pairs


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """The patches of one version."""

    patches: tuple[PatchFacts, ...] = ()  # oldest first, without the folded ones
    folded: PatchFacts | None = None
    segments: tuple[Segment, ...] = ()  # oldest first: those of folded patches, then one per patch

    @property
    def newest(self) -> PatchFacts | None:
        """The newest patch in force; None if there is none."""
        return self.patches[-1] if self.patches else self.folded

    @property
    def folded_segments(self) -> tuple[Segment, ...]:
        """The segments of folded patches, oldest first."""
        return self.segments[: len(self.segments) - len(self.patches)]

    def add(self, patch: PatchFacts, segment: Segment) -> PatchRecord:
        """Return the record with one more patch. Raises StoreError if older ones could not be folded for long."""
        if len(self.segments) >= MOST_SEGMENTS:
            raise StoreError(
                f"version {patch.version} has {len(self.segments)} patches that could not be folded; see that "
                "the store has room, and compact them"
            )
        return replace(self, patches=(*self.patches, patch), segments=(*self.segments, segment))

    def roll_back(self, to: int) -> PatchRecord:
        """Return the record without patches above number `to`. Raises StoreError if one of them is folded."""
        if self.folded is not None and to < self.folded.number:
            raise StoreError(
                f"patch {self.folded.number} of version {self.folded.version} and older ones were folded and cannot be "
                f"rolled back; roll back to {self.folded.number} or later, or to an older version"
            )
        kept = tuple(patch for patch in self.patches if patch.number <= to)
        return replace(self, patches=kept, segments=self.segments[: len(self.folded_segments) + len(kept)])

    def choose_merged(self, keep: int) -> tuple[Segment, ...]:
        """Return the segments to merge into one, oldest first, to fold all patches but the newest `keep`."""
        folds = len(self.patches) - max(0, keep)
        if folds <= 0:
            return ()
        end = len(self.segments) - len(self.patches)
        merged = list(self.segments[end : end + folds])
        while end > 0 and self.segments[end - 1].size < MERGE_RATIO * sum(part.size for part in merged):
            end -= 1
            merged.insert(0, self.segments[end])
        return tuple(merged)

    def fold(self, keep: int, merged: Segment) -> PatchRecord:
        """Return the record after `merged` was made of the segments of `choose_merged`."""
        old = self.choose_merged(keep)
        start = self.segments.index(old[0])
        folds = len(self.patches) - max(0, keep)
        return PatchRecord(
            self.patches[folds:],
            _add_up(self.folded, self.patches[:folds]),
            (*self.segments[:start], merged, *self.segments[start + len(old) :]),
        )


def _add_up(folded: PatchFacts | None, patches: tuple[PatchFacts, ...]) -> PatchFacts:
    """Return the facts of the last patch with the counts of all."""
    counts: dict[str, int] = {}
    for patch in patches if folded is None else (folded, *patches):
        for name, count in patch.counts.items():
            counts[name] = counts.get(name, 0) + count
    return replace(patches[-1], counts=counts)


@dataclass(frozen=True, slots=True)
class PatchRecords:
    """The patches of all versions of a generator."""

    serial: int = 0  # grows by one with every change
    last_number: int = 0
    versions: Mapping[int, PatchRecord] = field(default_factory=dict)
    offsets: Mapping[str, Any] = field(default_factory=dict)  # see `PatchState`; not repeated in patches

    def state(self, version: int) -> PatchState:
        """Return the patches of a version as the contract of a store has them."""
        record = self.versions.get(version, PatchRecord())
        return PatchState(self.serial, self.last_number, record.patches, record.folded, self.offsets)

    def record(self, version: int) -> PatchRecord:
        """Return the patches of a version; an empty record if it has none."""
        return self.versions.get(version, PatchRecord())

    def only(self, versions: Collection[int]) -> PatchRecords:
        """Return the records without versions that the store lacks: a process was killed while it retired them."""
        if self.versions.keys() <= set(versions):
            return self
        return replace(self, versions={number: old for number, old in self.versions.items() if number in versions})

    def check_number(self, patch: PatchFacts) -> None:
        """Raise StoreError unless the patch has the next number."""
        if patch.number != self.last_number + 1:
            raise StoreError(
                f"patch has number {patch.number}, and the next one is {self.last_number + 1}: another process has "
                "written patches meanwhile, or this one was written already; read the state and try again"
            )

    def put(self, version: int, record: PatchRecord | None) -> PatchRecords:
        """Return the records with another record of a version; without the version for None."""
        versions = {number: old for number, old in self.versions.items() if number != version}
        last, offsets = self.last_number, self.offsets
        if record is not None:
            newest = record.newest
            if newest is not None and newest.number > last:
                last, offsets = newest.number, {**offsets, **newest.offsets}
            patches = tuple(replace(patch, offsets={}) if patch.offsets else patch for patch in record.patches)
            versions[version] = replace(record, patches=patches)
        return PatchRecords(self.serial + 1, last, versions, offsets)

    def to_bytes(self) -> bytes:
        """Encode them as a store keeps them."""
        versions = {str(number): asdict(record) for number, record in sorted(self.versions.items())}
        fields = {"format": FORMAT, "serial": self.serial, "last_number": self.last_number, "versions": versions}
        fields |= {"offsets": dict(self.offsets)}
        return json.dumps({**fields, "check": fingerprint(fields)}, ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> PatchRecords:
        """Decode them. Raises DamagedError, which names `where`."""
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise ValueError(f"its format is {fields['format']}, and this version of nearcast reads {FORMAT}")
            check = fields.pop("check")
            if check != fingerprint(fields):
                raise ValueError("its bytes were changed")
            versions = {int(number): _read_record(record) for number, record in fields["versions"].items()}
            offsets = dict(fields.get("offsets", {}))
            return PatchRecords(int(fields["serial"]), int(fields["last_number"]), versions, offsets)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} holds no patches ({error}); publish again with --repair") from error


def _read_record(fields: Mapping[str, object]) -> PatchRecord:
    patches, folded, segments = fields["patches"], fields["folded"], fields["segments"]
    return PatchRecord(
        tuple(PatchFacts.from_json(patch) for patch in patches),  # type: ignore[attr-defined]
        None if folded is None else PatchFacts.from_json(folded),  # type: ignore[arg-type]
        tuple(Segment(**segment) for segment in segments),  # type: ignore[attr-defined]
    )
