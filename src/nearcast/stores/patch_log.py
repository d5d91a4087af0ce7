"""The patches of a generator, for a store that can write a segment and replace a list of segments in one step.

`SegmentLog` has the parts that all such stores share: numbers, roll back, groups, folding. Knows nothing of files and
servers.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice, repeat
from typing import ClassVar

from nearcast.errors import NearcastError
from nearcast.stores.base import Pair, PatchFacts, PatchState, PublishLock, Space
from nearcast.stores.patch_record import FOLD_TO, MOST_PATCHES, PatchRecord, PatchRecords, Segment
from nearcast.stores.patched_pairs import SegmentReader

__all__ = ["PairParts", "SegmentLog", "merge_parts", "read_parts"]

COPY_PAIRS = 10_000  # merged at a time

PairParts = Iterable[Mapping[Space, Sequence[Pair]]]


class SegmentLog:
    """A `PatchLog` of immutable segments and one list of those in force. Writers hold the publishers' lock."""

    groups_patches: ClassVar[bool] = False  # whether look-ups are faster in fewer segments

    def read(self) -> PatchRecords:
        """Read the list. Raises DamagedError if it was lost or changed."""
        raise NotImplementedError

    def prepare(self, records: PatchRecords, version: int, lock: PublishLock) -> None:
        """Prepare the store for a segment of a version. Raises StoreError if there is no such version."""
        raise NotImplementedError

    def write_segment(self, version: int, name: str, parts: PairParts) -> Segment:
        """Write a segment that is not in force yet; later pairs overwrite earlier ones. A failure leaves nothing."""
        raise NotImplementedError

    def merge_segments(self, version: int, name: str, old: Sequence[Segment]) -> Segment:
        """Write the pairs of several segments, oldest first, into one."""
        raise NotImplementedError

    def replace(self, records: PatchRecords, version: int, lock: PublishLock) -> None:
        """Replace the list in one step, then remove the segments that it does not name. Raises BusyError.

        version: the one whose patches changed.
        """
        raise NotImplementedError

    def check_segment(self, version: int, segment: Segment) -> None:
        """Raise DamagedError if a segment was lost or changed. For a store that groups patches."""
        raise NotImplementedError

    def state(self, version: int) -> PatchState:
        """Return the patches of a version."""
        return self.read().state(version)

    def write(self, patch: PatchFacts, pairs: Mapping[Space, Sequence[Pair]], lock: PublishLock) -> None:
        """Add a patch in one step; see `PatchLog`."""
        records = self.read()
        records.check_number(patch)
        self.prepare(records, patch.version, lock)
        segment = self.write_segment(patch.version, f"{patch.number:06d}", [pairs])
        record = self._group(patch.version, records.record(patch.version).add(patch, segment))
        self.replace(records.put(patch.version, record), patch.version, lock)
        if len(record.patches) > MOST_PATCHES:
            with contextlib.suppress(NearcastError):  # the patch is in force; the next write tries again
                self.compact(patch.version, record.align(FOLD_TO), lock)

    def _group(self, version: int, record: PatchRecord) -> PatchRecord:
        """Merge the newest patches for readers, if there are enough; leave them as they are if that fails."""
        old = record.choose_group() if self.groups_patches else ()
        if old:
            with contextlib.suppress(NearcastError):
                return record.group(self.merge_segments(version, _name_merged(old, record.patches[-1]), old))
        return record

    def roll_back(self, version: int, to: int, lock: PublishLock) -> None:
        """Remove the patches of a version with a number above `to`, in one step."""
        records = self.read()
        old = records.record(version)
        new = old.roll_back(to)
        if new != old:
            self._check_originals(version, old, new)
            self.replace(records.put(version, new), version, lock)

    def _check_originals(self, version: int, old: PatchRecord, new: PatchRecord) -> None:
        """Raise DamagedError if a patch of a group that is taken apart was lost or changed meanwhile."""
        for segment in new.segments:
            if segment not in old.segments and segment in old.stored_segments:
                self.check_segment(version, segment)

    def compact(self, version: int, keep: int, lock: PublishLock) -> None:
        """Fold all patches of a version but the newest `keep`."""
        records = self.read()
        record = records.record(version)
        old = record.choose_merged(keep)
        if not old:
            return
        merged = old[0]
        if len(old) > 1:
            last = record.patches[: len(record.patches) - keep][-1]
            merged = self.merge_segments(version, _name_merged(old, last), old)
        new = record.fold(keep, merged)
        self._check_originals(version, record, new)
        self.replace(records.put(version, new), version, lock)


def read_parts(reader: SegmentReader) -> Iterator[Mapping[Space, Sequence[Pair]]]:
    """Yield the pairs of a segment, some thousands at a time."""
    for space in Space:
        pairs = reader.pairs(space)
        while batch := list(islice(pairs, COPY_PAIRS)):
            yield {space: batch}


def merge_parts(readers: Sequence[SegmentReader]) -> Iterator[Mapping[Space, Sequence[Pair]]]:
    """Yield the newest values of several segments, oldest first, whose pairs ascend: some thousands at a time."""
    for space in Space:
        numbered = [zip(reader.pairs(space), repeat(-number)) for number, reader in enumerate(readers)]
        ordered = heapq.merge(*numbered, key=lambda entry: (entry[0][0], entry[1]))
        newest = (next(same)[0] for _, same in groupby(ordered, key=lambda entry: entry[0][0]))
        while batch := list(islice(newest, COPY_PAIRS)):
            yield {space: batch}


def _name_merged(old: Sequence[Segment], last: PatchFacts) -> str:
    return f"{old[0].name.split('-')[0]}-{last.number:06d}"
