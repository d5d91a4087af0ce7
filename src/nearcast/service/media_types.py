"""Media types of answers, and the choice between them by the Accept header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["ANSWER_TYPES", "ARROW_TYPE", "JSON_TYPE", "choose_media_type"]

JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"
ANSWER_TYPES = (JSON_TYPE, ARROW_TYPE)  # that answers of look-ups can have, the default first

ELEMENT = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
RANGE = re.compile(r"\s*([\w!#$%&'*+.^`|~-]+)/([\w!#$%&'*+.^`|~-]+)\s*(?:;(.*))?", re.ASCII | re.DOTALL)
WEIGHT = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|$)", re.ASCII | re.IGNORECASE)


@lru_cache(1024)
def choose_media_type(accept: str, offered: Sequence[str] = ANSWER_TYPES) -> str | None:
    """Return the offered type with the highest quality; None if none is acceptable.

    accept: the value of the header; without a media range that can be read, everything is acceptable. Of equal
    qualities, a type that is named goes before one that matches a wildcard, then the order of `offered` counts.
    Parameters other than q are ignored.
    """
    ranges = [range_ for element in ELEMENT.findall(accept) if (range_ := _parse_range(element)) is not None]
    if not ranges:
        return offered[0]
    rated = [(*_rate(kind, ranges), -position, kind) for position, kind in enumerate(offered)]
    quality, _, _, best = max(rated)
    return best if quality > 0 else None


def _parse_range(element: str) -> tuple[str, str, float] | None:
    """Return type, subtype and quality of an element of the header; None if it is no media range."""
    match = RANGE.fullmatch(element)
    if match is None:
        return None
    weight = WEIGHT.search(match[3] or "")
    return match[1].lower(), match[2].lower(), min(1.0, float(weight[1])) if weight else 1.0


def _rate(kind: str, ranges: Sequence[tuple[str, str, float]]) -> tuple[float, int]:
    """Return the quality of a type by its most specific range, and how specific that is."""
    main, _, sub = kind.partition("/")
    matches = [
        ((left == main) + (right == sub), quality)
        for left, right, quality in ranges
        if (left == main or (left == "*" and right == "*")) and right in (sub, "*")
    ]
    specific, quality = max(matches, default=(0, 0.0))
    return quality, specific
