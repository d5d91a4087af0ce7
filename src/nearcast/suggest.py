"""Names that somebody may have meant: the nearest of a few words, or of millions of keys.

Knows nothing of where keys come from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["generators_in_words", "nearest_in_words", "nearest_keys", "quoted", "suggest_name"]

MOST_COMPARED = 2_000  # keys whose beginning and end are compared letter by letter
MOST_EXACTLY = 100  # of those, with all that is between
SHOWN_CHARACTERS = 120  # of a key in an error
MOST_LISTED = 10  # generators that an error lists
CUTOFF = 0.6  # share of letters in common: below it words have little to do with each other


def nearest_keys(key: str | int, keys: pa.Array | pa.ChunkedArray, n: int = 3) -> list[Any]:
    """Return the n keys most like `key`, the best first; fewer, or none, where nothing is like it.

    keys: int64 or strings. Costs a few passes over them in native code (0.1 s for a million): only keys that share
    their beginning or end with `key`, or are equal without regard to case and blanks, are compared letter by letter.
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
    places = pc.indices_nonzero(near)
    if len(places) > MOST_COMPARED:  # the ones that share the most
        places = _most_alike(lowered, plain, places)
    found = dict(zip(texts.take(places).to_pylist(), keys.take(places).to_pylist(), strict=True))
    by_text: dict[str, list[str]] = {}
    for text in found:
        by_text.setdefault(text.strip().lower(), []).append(text)
    ends = sorted(by_text, key=lambda text: (-_shared_ends(plain, text), text))[:MOST_EXACTLY]
    scored = [(max(_shared_ends(plain, text), _ratio(plain, text)), text) for text in ends]
    best = sorted((pair for pair in scored if pair[0] >= CUTOFF), key=lambda pair: (-pair[0], pair[1]))
    return [found[text] for _, match in best for text in by_text[match]][:n]


def quoted(key: object) -> str:
    """Return the key as an error shows it: in quotes, control characters escaped, and the end of a long one cut off."""
    if not isinstance(key, str) or len(key) <= SHOWN_CHARACTERS:
        return repr(key)
    return f"{key[:SHOWN_CHARACTERS]!r}... ({len(key):,} characters)"


def nearest_in_words(key: str | int, keys: pa.Array | pa.ChunkedArray, all_of: str) -> str:
    """Return "the nearest of ALL_OF are ...", the first keys where nothing is like it, or "" where there are none."""
    near = nearest_keys(key, keys)
    some = ", ".join(quoted(name) for name in near or keys[:3].to_pylist())
    if not some:
        return ""
    return (
        f"the nearest of {all_of} {'is' if len(near) == 1 else 'are'} {some}"
        if near
        else f"{all_of} are such as {some}"
    )


def generators_in_words(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return which generators there are, or of many the nearest to `name`; `otherwise` where there are none."""
    if not known:
        return otherwise
    if len(known) <= MOST_LISTED:
        return f"generators there are {', '.join(known)}"
    return nearest_in_words(name, pa.array(known, pa.string()), f"the {len(known):,} generators there")


def suggest_name(word: str, known: Iterable[str], prefix: str) -> str:
    """Return "did you mean ...?" with the nearest known name, or the prefix and all known names."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"{prefix} {', '.join(known)}" if known else "there are none"


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def _shared_ends(one: str, other: str) -> float:
    """Return the share of the longer text that a common beginning and a common end make up."""
    least, most = sorted((len(one), len(other)))
    first = next((place for place in range(least) if one[place] != other[place]), least)
    last = next((place for place in range(least - first) if one[-1 - place] != other[-1 - place]), least - first)
    return (first + last) / most if most else 1.0


def _nearest_numbers(key: int, keys: pa.Array, n: int) -> list[int]:
    """Return the n keys at the smallest distance, the nearest first; of two as near, the smaller first."""
    numbers = keys.to_numpy(zero_copy_only=False)
    distance = np.abs(numbers.astype(np.float64) - key)
    nearest = np.argpartition(distance, min(n, len(numbers)) - 1)[:n] if len(numbers) else np.empty(0, np.int64)
    return [int(number) for number in sorted(numbers[nearest], key=lambda number: (abs(int(number) - key), number))]


def _most_alike(lowered: pa.Array, plain: str, places: pa.Array) -> pa.Array:
    """Return at most MOST_COMPARED of the places: those whose keys have the longest common beginning or end."""
    for size in range(len(plain), 0, -1):
        some = lowered.take(places)
        alike = pc.or_(pc.starts_with(some, plain[:size]), pc.ends_with(some, plain[-size:]))
        if (pc.sum(alike).as_py() or 0) >= 20:
            return places.filter(alike)[:MOST_COMPARED]
    return places[:MOST_COMPARED]
