"""Suggestions for mistyped names: the nearest of a few words, or of millions of keys. Knows nothing of stores."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["describe_generators", "describe_nearest", "nearest_keys", "quote_key", "suggest_name"]

MOST_COMPARED = 2_000  # keys whose first and last letters are compared
MOST_EXACTLY = 100  # of these, keys that are compared in full
SHOWN_CHARACTERS = 120  # of a key in an error
MOST_LISTED = 10  # generators that an error lists
CUTOFF = 0.6  # least share of common letters of a suggestion


def nearest_keys(key: str | int, keys: pa.Array | pa.ChunkedArray, n: int = 3) -> list[Any]:
    """Return the n keys most similar to `key`, the best first; fewer or none if no key is similar.

    keys: int64 or strings. Takes 0.1 s for a million keys: native passes select keys with the same beginning or end, or
    equal apart from case and blanks; only these are compared letter by letter.
    """
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    plain = str(key).strip().lower()
    if pa.types.is_integer(keys.type):
        return _nearest_numbers(int(plain), keys, n) if re.fullmatch(r"-?[0-9]{1,18}", plain) else []
    texts = keys.cast(pa.string())
    if not plain or not len(texts):
        return []
    lowered = pc.utf8_lower(texts)
    half = max(1, len(plain) // 2)
    length = pc.utf8_length(lowered)
    near = pc.and_(
        pc.or_(pc.starts_with(lowered, plain[:half]), pc.ends_with(lowered, plain[-half:])),
        pc.and_(pc.greater_equal(length, len(plain) - 1 - len(plain) // 2), pc.less_equal(length, 2 * len(plain) + 2)),
    )
    indices = pc.indices_nonzero(near)
    if len(indices) > MOST_COMPARED:  # keep the keys with the longest common part
        indices = _most_alike(lowered, plain, indices)
    key_of_text = dict(zip(texts.take(indices).to_pylist(), keys.take(indices).to_pylist(), strict=True))
    by_text: dict[str, list[str]] = {}
    for text in key_of_text:
        by_text.setdefault(text.strip().lower(), []).append(text)
    ends = sorted(by_text, key=lambda text: (-_shared_ends(plain, text), text))[:MOST_EXACTLY]
    scored = [(max(_shared_ends(plain, text), _compare(plain, text)), text) for text in ends]
    best = sorted((pair for pair in scored if pair[0] >= CUTOFF), key=lambda pair: (-pair[0], pair[1]))
    return [key_of_text[text] for _, match in best for text in by_text[match]][:n]


def quote_key(key: object) -> str:
    """Quote a key for an error: escape control characters, cut off the end of a long key."""
    if not isinstance(key, str) or len(key) <= SHOWN_CHARACTERS:
        return repr(key)
    return f"{key[:SHOWN_CHARACTERS]!r}... ({len(key):,} characters)"


def describe_nearest(key: str | int, keys: pa.Array | pa.ChunkedArray, all_of: str) -> str:
    """Return "the nearest of ALL_OF are ..."; the first keys if none is similar; "" if there are no keys."""
    near = nearest_keys(key, keys)
    some = ", ".join(quote_key(name) for name in near or keys[:3].to_pylist())
    if not some:
        return ""
    return (
        f"the nearest of {all_of} {'is' if len(near) == 1 else 'are'} {some}"
        if near
        else f"{all_of} are, for example, {some}"
    )


def describe_generators(name: str, known: Sequence[str], otherwise: str) -> str:
    """List the generators, or the nearest to `name` if there are many. Returns `otherwise` if there are none."""
    if not known:
        return otherwise
    if len(known) <= MOST_LISTED:
        return f"generators there are {', '.join(known)}"
    return describe_nearest(name, pa.array(known, pa.string()), f"the {len(known):,} generators there")


def suggest_name(word: str, known: Iterable[str], prefix: str) -> str:
    """Return "did you mean ...?" with the nearest known name, or the prefix and all known names."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{prefix} {', '.join(known)}" if known else "there are none"


def _compare(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _shared_ends(one: str, other: str) -> float:
    """Return the share of the longer text that lies in the common beginning and the common end."""
    least, most = sorted((len(one), len(other)))
    first = next((index for index in range(least) if one[index] != other[index]), least)
    last = next((index for index in range(least - first) if one[-1 - index] != other[-1 - index]), least - first)
    return (first + last) / most if most else 1.0


def _nearest_numbers(key: int, keys: pa.Array, n: int) -> list[int]:
    """Return the n nearest keys, the nearest first; equal distances go to the smaller key."""
    numbers = keys.to_numpy(zero_copy_only=False)
    distance = np.abs(numbers.astype(np.float64) - key)
    nearest = np.argpartition(distance, min(n, len(numbers)) - 1)[:n] if len(numbers) else np.empty(0, np.int64)
    return [int(number) for number in sorted(numbers[nearest], key=lambda number: (abs(int(number) - key), number))]


def _most_alike(lowered: pa.Array, plain: str, indices: pa.Array) -> pa.Array:
    """Return up to MOST_COMPARED key indices: keys with the longest common beginning or end."""
    for size in range(len(plain), 0, -1):
        some = lowered.take(indices)
        is_similar = pc.or_(pc.starts_with(some, plain[:size]), pc.ends_with(some, plain[-size:]))
        if (pc.sum(is_similar).as_py() or 0) >= 20:
            return indices.filter(is_similar)[:MOST_COMPARED]
    return indices[:MOST_COMPARED]
