"""An extension of Griffe: paragraphs of a docstring that describe arguments become lists in the API reference.

Docstrings of nearcast name arguments at the start of a line or sentence: `again: make a new snapshot in any case.`
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"(?:^|(?<=[.;] ))(?P<names>\w+(?:, \w+)*): ", re.MULTILINE)


class ArgumentLists(griffe.Extension):
    """Rewrites the docstrings of functions."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Turn each line or sentence that starts with names of arguments into an item of a list."""
        if func.docstring is None:
            return
        names = {parameter.name for parameter in func.parameters}

        def mark(found: re.Match[str]) -> str:
            listed = found["names"].split(", ")
            return f"\n- **{', '.join(listed)}**: " if set(listed) <= names else found[0]

        func.docstring.value = ARGUMENT.sub(mark, func.docstring.value)
