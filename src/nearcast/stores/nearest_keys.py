"""The keys of a version that somebody may have meant who asks for one that is not there. Knows nothing of values."""

from __future__ import annotations

from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import IdType, decode_keys
from nearcast.suggest import nearest_in_words

__all__ = ["nearest_in_version"]

MOST_KEYS = 200_000  # that are compared: a second of an error's time
COUNTED = {Space.LISTS: "keys", Space.ITEMS: "items"}  # of the facts


def nearest_in_version(reader: Reader, space: Space, key: str | int, ids: IdType) -> str:
    """Return "the nearest of its 1,000 keys are ...", or "" for an empty version. ids: the type of the keys.

    Compares at most MOST_KEYS keys, drawn at random from a larger version, and says so.
    """
    keys = decode_keys(reader.some_keys(space, MOST_KEYS, seed=0), ids)
    some = "some of " if len(keys) == MOST_KEYS else ""
    count = reader.facts.get(COUNTED[space], len(keys))
    return nearest_in_words(key, keys, f"{some}its {count:,} {COUNTED[space]}")
