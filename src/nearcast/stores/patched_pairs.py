"""Look-ups in a version and its patches, all in one state of the patches. The same for every store.

The index names the newest segment that may hold a key, so most look-ups read one segment or the version itself. An
empty value in a segment removes the key. Knows nothing of files and servers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Protocol

import numpy as np

from nearcast.stores.base import Pair, Space
from nearcast.stores.patch_index import Hashes, PatchIndex
from nearcast.stores.patch_record import PatchRecord

__all__ = ["OpenSegment", "PatchedPairs", "SegmentReader"]

BATCH = 1_000  # pairs read at a time
FEW_KEYS = 1_000  # keys for which grouping them by segment costs more than it saves


class SegmentReader(Protocol):
    """The pairs of a segment, or of the version itself."""

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of these keys; None for a missing key."""
        ...

    def get_from(
        self, readers: Mapping[int, Any], numbers: Sequence[int], space: Space, keys: Sequence[bytes]
    ) -> list[bytes | None]:
        """Return the value that readers[numbers[i]] has for keys[i]; for a few keys. readers: of the same store."""
        ...

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs."""
        ...

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, sampled over the pairs."""
        ...


ReadSegments = Callable[[Sequence["OpenSegment"], Space, Sequence[bytes], Sequence[int]], list[bytes | None]]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class OpenSegment:
    """A segment, open, with the hashes of its keys."""

    reader: SegmentReader
    hashes: Mapping[Space, Hashes]


@dataclass(frozen=True, slots=True, eq=False)
class PatchedPairs:
    """A version with its patches in one state."""

    version: SegmentReader
    counts: Mapping[Space, int]  # pairs of the version
    read: ReadSegments | None  # reads keys of several segments at once, for a network store; see `_read`
    record: PatchRecord
    segments: tuple[OpenSegment, ...]  # oldest first; ordinal n is segments[n - 1]
    indexes: Mapping[Space, PatchIndex]

    @staticmethod
    def of_version(
        version: SegmentReader, counts: Mapping[Space, int], read: ReadSegments | None = None
    ) -> PatchedPairs:
        """Return a version without patches."""
        return PatchedPairs(version, counts, read, PatchRecord(), (), {space: PatchIndex.build([]) for space in Space})

    @staticmethod
    def build(old: PatchedPairs, record: PatchRecord, segments: tuple[OpenSegment, ...]) -> PatchedPairs:
        """Build the next state of the patches from the old one: only indexes of segments that differ are sorted."""
        head = _count_same(old.segments, segments)
        tail = _count_same(old.segments[head:][::-1], segments[head:][::-1])
        indexes = {}
        for space in Space:
            parts = [segment.hashes[space] for segment in segments]
            fresh = parts[head : len(parts) - tail]
            index = old.indexes[space].replace_parts(fresh, head + 1, len(old.segments) - tail + 1)
            indexes[space] = PatchIndex.build(parts) if index is None else index
        return PatchedPairs(old.version, old.counts, old.read, record, segments, indexes)

    def get_many(self, space: Space, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the newest values of these keys; None for a missing or removed key."""
        if len(keys) == 1:
            ordinal = self.indexes[space].find(keys[0])
            if ordinal == 0:
                return self.version.get_many(space, keys)
            if self.read is None:
                value = self.segments[ordinal - 1].reader.get_many(space, keys)[0]
                if value is not None:
                    return [value or None]
            return self._find(space, keys, [ordinal])[1]
        ordinals = self.indexes[space].find_many(keys)
        if not ordinals.any():
            return self.version.get_many(space, keys)
        return self._find(space, keys, ordinals.tolist())[1]

    def pairs(self, space: Space) -> Iterator[Pair]:
        """Yield all pairs: those of the version with their newest values, then those that only patches have."""
        for batch in _split(self.version.pairs(space)):
            keys = [key for key, _ in batch]
            for key, value in zip(keys, self.get_many(space, keys), strict=True):
                if value is not None:
                    yield key, value
        for ordinal in range(len(self.segments), 0, -1):
            for batch in _split(self.segments[ordinal - 1].reader.pairs(space)):
                keys = [key for key, value in batch if value]
                found = self._find(space, keys, self.indexes[space].find_many(keys).tolist())
                stored = self.version.get_many(space, keys)
                for key, source, value, base in zip(keys, *found, stored, strict=True):
                    if base is None and source == ordinal and value is not None:
                        yield key, value

    def some_keys(self, space: Space, count: int, seed: int) -> list[bytes]:
        """Return up to `count` keys, ascending; keys that only patches have are in it by their share."""
        drawn = self.version.some_keys(space, count, seed)
        patched = {key for segment in self.segments for key in segment.reader.some_keys(space, count, seed)}
        keys = sorted(patched.union(drawn))
        found = [key for key, value in zip(keys, self.get_many(space, keys), strict=True) if value is not None]
        if len(found) <= count:
            return found
        stored = self.version.get_many(space, found)
        old = [key for key, base in zip(found, stored, strict=True) if base is not None]
        new = [key for key, base in zip(found, stored, strict=True) if base is None]
        n_all_new = len(self.indexes[space]) * len(new) / max(1, len(patched))
        share = n_all_new / max(1.0, n_all_new + self.counts[space])
        n_new = max(min(len(new), round(count * share)), count - len(old))
        chance = random.Random(seed)
        return sorted(chance.sample(old, count - n_new) + chance.sample(new, n_new))

    def _find(
        self, space: Space, keys: Sequence[bytes], ordinals: Sequence[int]
    ) -> tuple[Sequence[int], list[bytes | None]]:
        """Return the ordinal and the value of each key: the first that has it, from the given ordinal downwards."""
        values = self._read(space, keys, ordinals)
        while None in values:
            missed = [at for at, value in enumerate(values) if value is None and ordinals[at]]
            if not missed:
                break
            lower = {at: ordinals[at] - 1 for at in missed}  # another key has this hash
            ordinals = [lower.get(at, ordinal) for at, ordinal in enumerate(ordinals)]
            again = self._read(space, [keys[at] for at in missed], list(lower.values()))
            for at, value in zip(missed, again, strict=True):
                values[at] = value
        if b"" in values:
            values = [value if value or not ordinal else None for ordinal, value in zip(ordinals, values, strict=True)]
        return ordinals, values

    def _read(self, space: Space, keys: Sequence[bytes], ordinals: Sequence[int]) -> list[bytes | None]:
        """Return the value that the segment of this ordinal has for each key; 0 is the version."""
        if self.read is not None:
            return self.read(self.segments, space, keys, ordinals)
        if len(keys) <= FEW_KEYS:
            readers = {number: self.segments[number - 1].reader if number else self.version for number in set(ordinals)}
            return self.version.get_from(readers, ordinals, space, keys)
        values: list[bytes | None] = [None] * len(keys)
        for ordinal, some in _group(ordinals):
            reader = self.segments[ordinal - 1].reader if ordinal else self.version
            for position, value in zip(some, reader.get_many(space, [keys[at] for at in some]), strict=True):
                values[position] = value
        return values


def _count_same(some: Sequence[OpenSegment], others: Sequence[OpenSegment]) -> int:
    """Return how many segments two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(some, others, strict=False)))


def _group(ordinals: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield each ordinal with the positions that have it."""
    order = np.argsort(np.asarray(ordinals, np.uint8), kind="stable")
    ordered = np.asarray(ordinals, np.uint8)[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1])).tolist()
    listed, heads = order.tolist(), ordered[starts].tolist()
    for ordinal, start, stop in zip(heads, starts, [*starts, len(listed)][1:], strict=True):
        yield ordinal, listed[start:stop]


def _split(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    while batch := list(islice(pairs, BATCH)):
        yield batch
