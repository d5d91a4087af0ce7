"""What the service needs of an online index. Which engine is behind it, and how it was built, is not its concern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nearcast.types import FloatArray

__all__ = ["OnlineSearch"]


class OnlineSearch(Protocol):
    """An index over a generator's items that answers vectors. Safe to use from many threads."""

    @property
    def name(self) -> str:
        """The engine."""
        ...

    @property
    def dim(self) -> int:
        """Dimensions of the vectors that it takes."""
        ...

    @property
    def recall(self) -> float:
        """The recall that it is set to."""
        ...

    def search(self, vectors: FloatArray, k: int) -> tuple[Sequence[Sequence[str | int]], Sequence[Sequence[float]]]:
        """The k best items of each of these (n, dim) float32 vectors: ids and scores, a sequence each per vector.

        Best first; shorter than k where there are not more items.
        """
        ...
