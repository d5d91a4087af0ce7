"""How many examples the properties are tried on: at most `QUICK` in the quick suite, all with NEARCAST_EXAMPLES=all."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from hypothesis import settings

QUICK = 15
ALL = os.environ.get("NEARCAST_EXAMPLES") == "all"  # make test-slow
SETTINGS = "_hypothesis_internal_use_settings"  # what @given and @settings leave on a test


def limit_examples(items: Iterable[pytest.Item], most: int) -> None:
    """Limit the examples of every property."""
    for item in items:
        function = getattr(item, "obj", None)
        function = getattr(function, "__func__", function)
        chosen = getattr(function, SETTINGS, None)
        if chosen is not None and chosen.max_examples > most:
            setattr(function, SETTINGS, settings(chosen, max_examples=most))
