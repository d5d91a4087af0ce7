"""A mapping that never changes, whose next state shares with it all but what differs.

Kept in many small dictionaries, of which a change copies the few that it is about. A persistent hash trie would share
more; but it is made of two small objects for every three entries, each of which the collector of cycles looks at, and
a service that answers in a millisecond waits meanwhile. Dictionaries of plain values are none of its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any, TypeVar

__all__ = ["Edit", "SharingMap"]

BUCKETS = 2048
NONE: dict[Any, Any] = {}  # never changed, as no bucket of a map is

K = TypeVar("K")
V = TypeVar("V")


def _bucket_of(key: object) -> int:
    number = hash(key)  # of an integer it is the integer, and ids may all be multiples of something
    return (number ^ number >> 10 ^ number >> 20) % BUCKETS


class SharingMap(Mapping[K, V]):
    """A mapping that never changes. `edit` makes the next one."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, buckets: list[dict[K, V]] | None = None, size: int = 0) -> None:
        self._buckets = [NONE] * BUCKETS if buckets is None else buckets
        self._size = size

    def __getitem__(self, key: K) -> V:
        return self._buckets[_bucket_of(key)][key]

    def __contains__(self, key: object) -> bool:
        return key in self._buckets[_bucket_of(key)]

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._buckets)

    def __len__(self) -> int:
        return self._size

    def edit(self) -> Edit[K, V]:
        """Something to be changed, which begins as this mapping."""
        return Edit(self._buckets, self._size)


class Edit(MutableMapping[K, V]):
    """A mapping that is being changed. It copies what it changes, and nothing else."""

    __slots__ = ("_buckets", "_own", "_size")

    def __init__(self, buckets: list[dict[K, V]], size: int) -> None:
        self._buckets = list(buckets)
        self._own: set[int] = set()
        self._size = size

    def __getitem__(self, key: K) -> V:
        return self._buckets[_bucket_of(key)][key]

    def __setitem__(self, key: K, value: V) -> None:
        bucket = self._owned(key)
        before = len(bucket)
        bucket[key] = value
        self._size += len(bucket) - before

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        del self._owned(key)[key]
        self._size -= 1

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._buckets)

    def __len__(self) -> int:
        return self._size

    def finish(self) -> SharingMap[K, V]:
        """The next mapping. Changes that are made after this are not in it."""
        self._own = set()
        return SharingMap(list(self._buckets), self._size)

    def _owned(self, key: K) -> dict[K, V]:
        number = _bucket_of(key)
        if number not in self._own:
            self._own.add(number)
            self._buckets[number] = dict(self._buckets[number])
        return self._buckets[number]
