"""The keys that a caller asks for, in the type of the table and as a store knows them. Knows nothing of stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.stores.value_format import IdType, encode_key, encode_keys, key_of_text
from nearcast.types import IntArray

__all__ = ["Keys", "WantedKeys", "typed_key", "wanted_keys"]

Keys = Any  # a sequence of ints or strings, a NumPy array of them, or an Arrow array

LARGEST = (1 << 63) - 1

# keys as asked for, their bytes, and the places of those that can be keys of the table at all (None: of all)
WantedKeys = tuple[Sequence[str | int | None] | IntArray, list[bytes], IntArray | None]


def typed_key(key: Any, ids: IdType) -> str | int | None:
    """A key in the type of the table, or None where it cannot be one of its keys."""
    if isinstance(key, np.generic):
        key = key.item()
    if not isinstance(key, str | int) or isinstance(key, bool):
        return None
    return key_of_text(key, ids)


def wanted_keys(keys: Keys, ids: IdType) -> WantedKeys:
    """Many keys: typed, and encoded without a step per key where their type is the table's already."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    if ids == "int64":
        numbers = _as_integers(keys)
        if numbers is not None:
            return numbers, encode_keys(pa.array(numbers)), None
    elif isinstance(keys, list | tuple) and set(map(type, keys)) <= {str}:
        return keys, [encode_key(key) for key in keys], None
    plain = keys.to_pylist() if isinstance(keys, pa.Array) else keys.tolist() if isinstance(keys, np.ndarray) else keys
    typed = [typed_key(key, ids) for key in plain]
    places = [place for place, key in enumerate(typed) if key is not None]
    encoded = [encode_key(key) for key in typed if key is not None]
    return typed, encoded, None if len(places) == len(typed) else np.array(places, np.int64)


def _as_integers(keys: Keys) -> IntArray | None:
    """Integers as int64, or None where there is anything else among them."""
    if isinstance(keys, pa.Array):
        if not pa.types.is_integer(keys.type) or keys.null_count:
            return None
        keys = keys.to_numpy(zero_copy_only=False)
    if isinstance(keys, list | tuple):
        if not set(map(type, keys)) <= {int}:
            return None
        try:
            return np.array(keys, np.int64)
        except OverflowError:
            return None
    if not isinstance(keys, np.ndarray) or keys.dtype.kind not in "iu":
        return None
    if keys.dtype == np.uint64 and len(keys) and keys.max() > LARGEST:
        return None
    return keys.astype(np.int64, copy=False)
