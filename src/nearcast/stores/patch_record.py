"""The patches of a generator as a store keeps them: facts, segments, and the changes of both. Pure values.

A segment holds the pairs of one patch, or of several; it never changes. Readers search one merged segment of a group of
patches, and those of its patches are kept for a rollback. Of folded patches only the merged one is left. `PatchRecords`
is one JSON object that a store replaces in one step, so that a patch is in force or not. Knows nothing of files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nearcast.errors import DamagedError, StoreError
from nearcast.files import fingerprint
from nearcast.stores.base import PatchFacts, PatchState
from nearcast.stores.patch_index import MOST_SEGMENTS

__all__ = ["FOLD_TO", "MOST_PATCHES", "PatchRecord", "PatchRecords", "Segment"]

FORMAT = 1
MOST_PATCHES = 64  # each can be rolled back, and is a segment; a write folds older ones
FOLD_TO = 32  # patches that are left then, and the rest of a group
GROUP_PATCHES = 8  # of which readers of some stores get one segment
GROUP_BYTES = 64 << 20  # of these patches: merging larger ones would delay an update by seconds
MERGE_RATIO = 2  # folded segments grow by this factor, so that there are few, and a pair is copied a few times


@dataclass(frozen=True, slots=True)
class Segment:
    """The pairs of one patch or of several."""

    name: str  # of its folder or keys; never used again
    size: int  # bytes of keys and values
    counts: Mapping[str, int] = field(default_factory=dict)  # by space: pairs


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """The patches of one version."""

    patches: tuple[PatchFacts, ...] = ()  # oldest first, without the folded ones
    folded: PatchFacts | None = None
    segments: tuple[Segment, ...] = ()  # oldest first: those of folded patches, then one per patch or group of patches
    originals: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)  # of a group: segments of its patches

    @property
    def newest(self) -> PatchFacts | None:
        """The newest patch in force; None if there is none."""
        return self.patches[-1] if self.patches else self.folded

    @property
    def stored_segments(self) -> tuple[Segment, ...]:
        """All segments that the store has to keep: those that readers search, and those that a rollback needs."""
        return (*self.segments, *(part for parts in self.originals.values() for part in parts))

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
        left, _ = self._split(len(self.patches) - len(kept))
        return PatchRecord(kept, self.folded, left, self._find_originals(left))

    def choose_group(self) -> tuple[Segment, ...]:
        """Return the segments of the newest patches, oldest first, if they are to become a group; else none."""
        own = self.segments[max(0, len(self.segments) - GROUP_PATCHES) :]
        is_group = len(self._split(len(self.patches))[0]) + GROUP_PATCHES <= len(self.segments)
        is_group &= not any(segment.name in self.originals for segment in own)
        return own if is_group and sum(segment.size for segment in own) <= GROUP_BYTES else ()

    def group(self, merged: Segment) -> PatchRecord:
        """Return the record after `merged` was made of the segments of `choose_group`."""
        old = self.choose_group()
        originals = {**self.originals, merged.name: old}
        return replace(self, segments=(*self.segments[: -len(old)], merged), originals=originals)

    def align(self, keep: int) -> int:
        """Return the least number of the newest patches, `keep` or more, that takes no group apart."""
        n = 0
        for segment in reversed(self.segments):
            if n >= keep:
                break
            n += len(self.originals.get(segment.name, (segment,)))
        return n

    def choose_merged(self, keep: int) -> tuple[Segment, ...]:
        """Return the segments to merge into one, oldest first, to fold all patches but the newest `keep`."""
        if len(self.patches) <= keep:
            return ()
        end, (older, _) = len(self._split(len(self.patches))[0]), self._split(keep)
        merged = list(older[end:])
        while end > 0 and older[end - 1].size < MERGE_RATIO * sum(part.size for part in merged):
            end -= 1
            merged.insert(0, older[end])
        return tuple(merged)

    def fold(self, keep: int, merged: Segment) -> PatchRecord:
        """Return the record after `merged` was made of the segments of `choose_merged`."""
        old, (older, newer) = self.choose_merged(keep), self._split(keep)
        folds = len(self.patches) - keep
        folded = _add_up(self.folded, self.patches[:folds])
        segments = (*older[: len(older) - len(old)], merged, *newer)
        return PatchRecord(self.patches[folds:], folded, segments, self._find_originals(newer))

    def _split(self, n: int) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
        """Return the segments without those of the newest n patches, and these. Takes a group apart that is in both."""
        older, newer = list(self.segments), list[Segment]()
        while n > 0:
            parts = self.originals.get(older[-1].name, (older[-1],))
            newest = older.pop()
            newer = [newest, *newer] if len(parts) <= n else [*parts[-n:], *newer]
            older += parts[:-n]
            n -= len(parts)
        return tuple(older), tuple(newer)

    def _find_originals(self, segments: tuple[Segment, ...]) -> dict[str, tuple[Segment, ...]]:
        return {part.name: self.originals[part.name] for part in segments if part.name in self.originals}


def _add_up(folded: PatchFacts | None, patches: tuple[PatchFacts, ...]) -> PatchFacts:
    """Return the facts of the last patch with the counts of all, and the latest time: clocks go backwards."""
    counts: dict[str, int] = {}
    every = patches if folded is None else (folded, *patches)
    for patch in every:
        for name, count in patch.counts.items():
            counts[name] = counts.get(name, 0) + count
    return replace(patches[-1], counts=counts, made=max(patch.made for patch in every))


@dataclass(frozen=True, slots=True)
class PatchRecords:
    """The patches of all versions of a generator."""

    serial: int = 0  # grows by one with every change
    last_number: int = 0
    versions: Mapping[int, PatchRecord] = field(default_factory=dict)
    offsets: Mapping[str, Any] = field(default_factory=dict)  # see `PatchState`; not repeated in patches
    journal: str = ""  # the same

    def state(self, version: int) -> PatchState:
        """Return the patches of a version as the contract of a store has them."""
        record = self.versions.get(version, PatchRecord())
        return PatchState(self.serial, self.last_number, record.patches, record.folded, self.offsets, self.journal)

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
        last, offsets, journal = self.last_number, self.offsets, self.journal
        if record is not None:
            newest = record.newest
            if newest is not None and newest.number > last:
                last, offsets, journal = newest.number, {**offsets, **newest.offsets}, newest.journal
            patches = tuple(replace(patch, offsets={}, journal="") for patch in record.patches)
            versions[version] = replace(record, patches=patches)
        return PatchRecords(self.serial + 1, last, versions, offsets, journal)

    def to_bytes(self) -> bytes:
        """Encode them as a store keeps them."""
        versions = {str(number): _to_fields(record) for number, record in sorted(self.versions.items())}
        fields = {"format": FORMAT, "serial": self.serial, "last_number": self.last_number, "versions": versions}
        fields |= {"offsets": dict(self.offsets), "journal": self.journal}
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
            return PatchRecords(
                int(fields["serial"]), int(fields["last_number"]), versions, offsets, str(fields.get("journal", ""))
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} holds no patches ({error}); publish again with --repair") from error


def _to_fields(record: PatchRecord) -> dict[str, Any]:
    fields = asdict(record)
    return fields if record.originals else {name: value for name, value in fields.items() if name != "originals"}


def _read_record(fields: Mapping[str, Any]) -> PatchRecord:
    patches, folded, originals = fields["patches"], fields["folded"], fields.get("originals", {})
    return PatchRecord(
        tuple(PatchFacts.from_json(patch) for patch in patches),
        None if folded is None else PatchFacts.from_json(folded),
        _read_segments(fields["segments"]),
        {name: _read_segments(parts) for name, parts in originals.items()},
    )


def _read_segments(parts: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    return tuple(Segment(**part) for part in parts)
