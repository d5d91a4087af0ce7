"""Options of a runner: plain values by name, checked before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nearcast.errors import SpecError
from nearcast.suggest import suggest_name

__all__ = ["refuse_unknown_options"]


def refuse_unknown_options(runner: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise SpecError for an option that the runner does not have."""
    for name in options:
        if name not in known:
            hint = suggest_name(name, known, "its options are") if known else "it has no options"
            raise SpecError(f"runner {runner!r} has no option {name!r}; {hint}")
