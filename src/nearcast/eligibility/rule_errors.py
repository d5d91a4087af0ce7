"""What is wrong with a rule, told with the line of its text and a mark under the word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from nearcast.eligibility.nodes import Span
from nearcast.errors import SpecError

__all__ = ["fault", "near"]


def fault(name: str, text: str, span: Span, message: str) -> SpecError:
    """The error for a word of a rule: the message, the line that holds the word, and a mark under it."""
    start, end = min(span[0], len(text)), max(span)
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    marked = max(1, min(end, line_start + len(line)) - start)
    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    return SpecError(f"rule {name!r}: {message}\n  {shown}\n  {' ' * (start - line_start)}{'^' * marked}")


def near(word: str, known: Iterable[str], what: str) -> str:
    """The way out for a word that is not known: the nearest one that is, or all of them."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"{what} {', '.join(known)}" if known else "there are none"
