"""An immutable mapping whose next version shares all unchanged entries with it.

Entries lie in many small dictionaries; an edit copies the few that it changes. A persistent hash trie would share more,
but it has two small objects for three entries. The garbage collector visits each of them, and a service that answers in
a millisecond waits meanwhile. The collector does not track dictionaries of plain values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any, TypeVar

__all__ = ["Edit", "SharingMap"]

BUCKETS = 2048
NONE: dict[Any, Any] = {}  # never changed, as no bucket of a SharingMap is changed

K = TypeVar("K")
V = TypeVar("V")


def _hash_key(key: object) -> int:
    number = hash(key)  # an integer hashes to itself, and ids may be multiples of a number: mix the bits
    return (number ^ number >> 10 ^ number >> 20) % BUCKETS


class SharingMap(Mapping[K, V]):
    """An immutable mapping. `edit` begins its next version."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, buckets: list[dict[K, V]] | None = None, size: int = 0) -> None:
        self._buckets = [NONE] * BUCKETS if buckets is None else buckets
        self._size = size

    def __getitem__(self, key: K) -> V:
        return self._buckets[_hash_key(key)][key]

    def __contains__(self, key: object) -> bool:
        return key in self._buckets[_hash_key(key)]

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._buckets)

    def __len__(self) -> int:
        return self._size

    def edit(self) -> Edit[K, V]:
        """Begin an edit with the entries of this mapping."""
        return Edit(self._buckets, self._size)


class Edit(MutableMapping[K, V]):
    """A mutable mapping that starts from a SharingMap and copies only the buckets that it changes."""

    __slots__ = ("_buckets", "_own", "_size")

    def __init__(self, buckets: list[dict[K, V]], size: int) -> None:
        self._buckets = list(buckets)
        self._own: set[int] = set()
        self._size = size

    def __getitem__(self, key: K) -> V:
        return self._buckets[_hash_key(key)][key]

    def __setitem__(self, key: K, value: V) -> None:
        bucket = self._copy_bucket(key)
        before = len(bucket)
        bucket[key] = value
        self._size += len(bucket) - before

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        del self._copy_bucket(key)[key]
        self._size -= 1

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._buckets)

    def __len__(self) -> int:
        return self._size

    def finish(self) -> SharingMap[K, V]:
        """Return the next version. It does not see later changes."""
        self._own = set()
        return SharingMap(list(self._buckets), self._size)

    def _copy_bucket(self, key: K) -> dict[K, V]:
        number = _hash_key(key)
        if number not in self._own:
            self._own.add(number)
            self._buckets[number] = dict(self._buckets[number])
        return self._buckets[number]
