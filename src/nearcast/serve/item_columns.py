"""What rules need to know of items and queries at look-up: columns as the store has them, items remembered.

The rows of one version never change, so an item is read and understood once; what the overlay says of it is put over
that at every look-up. Knows nothing of how rules are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nearcast.eligibility.closures import Item
from nearcast.eligibility.ruleset import RuleSet
from nearcast.errors import DamagedError
from nearcast.serve.overlay_state import OverlayState
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import encode_key, encode_query_key

__all__ = ["Attributes", "columns_in_value"]

REMEMBERED = 1 << 18  # items; some hundred bytes each. The most frequent ones come back soon after it is emptied
NOTHING: Mapping[str, Any] = {}


class Attributes:
    """The columns of one version's items and queries, as its rules see them. Safe to use from many threads."""

    def __init__(self, reader: Reader, rules: RuleSet, *, own_query_columns: bool) -> None:
        self.rules = rules
        self._reader = reader
        self._own_query_columns = own_query_columns
        self._items: dict[Any, Item] = {}

    def items(self, ids: Sequence[Any], overlay: OverlayState, now: float) -> list[Item]:
        """These items, with the overlay's newer values."""
        known = self._items
        found = [known.get(identity) for identity in ids]
        if None in found:
            found = self._completed(ids, found)
        if overlay.values and any(identity in overlay.values for identity in ids):
            update = self.rules.updated
            found = [
                update(item, newer) if item is not None and (newer := overlay.values_of(identity, now)) else item
                for identity, item in zip(ids, found, strict=True)
            ]
        return found  # type: ignore[return-value]  # there is no gap left

    def query(self, key: Any) -> Mapping[str, Any]:
        """The columns of a query, as the store has them; none for a key that the version does not have."""
        if not self.rules.query_types or key is None:
            return NOTHING
        encoded = encode_key(key)
        value = self._reader.get_many(Space.ITEMS, [encode_query_key(encoded) if self._own_query_columns else encoded])[
            0
        ]
        return NOTHING if value is None else columns_in_value(value)

    def _completed(self, ids: Sequence[Any], found: list[Item | None]) -> list[Item | None]:
        """With the items that were not remembered; those that the store does not know have nothing but an id."""
        gaps = [place for place, item in enumerate(found) if item is None]
        values = self._reader.get_many(Space.ITEMS, [encode_key(ids[place]) for place in gaps])
        if len(self._items) + len(gaps) > REMEMBERED:
            self._items = {}
        for place, value in zip(gaps, values, strict=True):
            row = NOTHING if value is None else columns_in_value(value)
            found[place] = self._items[ids[place]] = self.rules.item(ids[place], row)
        return found


def columns_in_value(value: bytes) -> dict[str, Any]:
    """The columns that a value of the store holds; DamagedError where it holds none."""
    try:
        row = json.loads(value)
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise DamagedError(f"a value in the store holds no columns of an item ({error})") from error
    return row
