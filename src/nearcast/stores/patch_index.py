"""Which patch holds the newest value of a key: the hashes of all patched keys, in memory.

A patch never changes, so a store keeps the CRC-32 hashes of its keys beside it, sorted. A reader merges the hashes of
all patches in force, 5 bytes per patched key, and finds a key in about a microsecond, for any number of patches. Two
keys may have one hash: a patch that the index names may lack the key, and then older patches are searched. Knows
nothing of stores.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_SEGMENTS", "PatchIndex", "decode_hashes", "encode_hashes", "hash_keys"]

MOST_SEGMENTS = 255  # an ordinal is one byte, and 0 is the version itself
ROW_BITS = 2  # about 4 hashes are searched per look-up

Hashes = npt.NDArray[np.uint32]
Ordinals = npt.NDArray[np.uint8]


def hash_keys(keys: Sequence[bytes]) -> Hashes:
    """Return the hash of each key."""
    return np.fromiter(map(zlib.crc32, keys), np.uint32, len(keys))


def encode_hashes(hashes: Hashes) -> bytes:
    """Return the distinct hashes as stores keep them: uint32, little-endian, ascending."""
    ordered = np.sort(hashes)  # np.unique is ten times slower
    distinct: Hashes = ordered[np.diff(ordered, prepend=~ordered[:1]) != 0]
    return distinct.astype("<u4").tobytes()


def decode_hashes(data: bytes) -> Hashes:
    """Decode what `encode_hashes` returned. Raises ValueError if it is cut."""
    return np.frombuffer(data, "<u4").astype(np.uint32, copy=False)


class PatchIndex:
    """The ordinal of the newest patch with a key of this hash: 1 for the oldest patch; 0 if no patch has it."""

    def __init__(self, hashes: Hashes, ordinals: Ordinals) -> None:
        self._hashes, self._ordinals = hashes, ordinals
        bits = max(0, len(hashes).bit_length() - ROW_BITS)
        self._shift = 32 - bits
        starts = np.zeros((1 << bits) + 1, np.uint32)
        np.cumsum(np.bincount(hashes >> np.uint32(self._shift), minlength=1 << bits), out=starts[1:])
        # memoryviews return Python's own numbers, several times faster than arrays
        self._views: tuple[Any, Any, Any] = (hashes.data, ordinals.data, starts.data)

    @staticmethod
    def build(parts: Sequence[Hashes]) -> PatchIndex:
        """Build the index of the hashes of some patches, oldest first."""
        return PatchIndex(*_sort_parts(parts, 1))

    def replace_parts(self, parts: Sequence[Hashes], start: int, stop: int) -> PatchIndex | None:
        """Return the index with other patches in place of those with the ordinals start..stop-1.

        Later patches stay, with other ordinals. parts: hashes of the other patches, oldest first. Sorts these alone.
        None if a hash of the replaced patches is in none of the others: then older patches may have it, and the index
        must be built anew.
        """
        hashes, numbers = _sort_parts(parts, start)
        moved = np.arange(MOST_SEGMENTS + 1)
        moved[start:stop] = 0
        moved[stop:] += len(parts) - (stop - start)
        ordinals = moved.astype(np.uint8)[self._ordinals]
        at = self._hashes.searchsorted(hashes)
        known = np.zeros(len(hashes), np.bool_)
        inside = at < len(self)
        known[inside] = self._hashes[at[inside]] == hashes[inside]
        both, fresh = at[known], ~known
        ordinals[both] = np.maximum(ordinals[both], numbers[known])
        if stop > start and not ordinals.all():
            return None
        if known.all():
            return PatchIndex(self._hashes, ordinals)
        return PatchIndex(
            np.insert(self._hashes, at[fresh], hashes[fresh]), np.insert(ordinals, at[fresh], numbers[fresh])
        )

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, key: bytes) -> int:
        """Return the ordinal of the newest patch that may hold this key; 0 if none does."""
        code = zlib.crc32(key)
        hashes, ordinals, starts = self._views
        row = code >> self._shift
        end = starts[row + 1]
        at = bisect_left(hashes, code, starts[row], end)
        return ordinals[at] if at < end and hashes[at] == code else 0

    def find_many(self, keys: Sequence[bytes]) -> Ordinals:
        """Return the ordinals for many keys, (n,)."""
        if not len(self):
            return np.zeros(len(keys), np.uint8)
        codes = hash_keys(keys)
        at = self._hashes.searchsorted(codes)
        # a hash above all others finds the last one, and differs from it
        found: Ordinals = self._ordinals.take(at, mode="clip") * (self._hashes.take(at, mode="clip") == codes)
        return found


def _sort_parts(parts: Sequence[Hashes], first: int) -> tuple[Hashes, Ordinals]:
    """Return the distinct hashes of some patches, ascending, and the ordinal of the newest patch with each."""
    if len(parts) == 1:
        return parts[0], np.full(len(parts[0]), first, np.uint8)
    hashes = np.concatenate([np.empty(0, np.uint32), *parts])
    numbers = np.arange(first, first + len(parts), dtype=np.uint8)
    ordinals = np.repeat(numbers, [len(part) for part in parts])
    order = np.argsort(hashes, kind="stable")  # merges sorted runs; of equal hashes the newest is the last
    hashes, ordinals = hashes[order], ordinals[order]
    newest = np.append(hashes[1:] != hashes[:-1], True)[: len(hashes)]
    return hashes[newest], ordinals[newest]
