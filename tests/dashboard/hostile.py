"""Data that tries to become markup or script wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCRIPT = "\"'><img src=x onerror=window.taken=1></script><script>window.taken=1</script><svg onload=window.taken=1>"
# what the page itself has written, and looks at to choose a form; never what came from data
OWN = ("level", "kind", "of", "evidence", "format", "nearcast", "at", "state", "runs", "passes")


def hostile(value: Any, name: str = "") -> Any:
    """The same data with every text, and every name that data may choose, made hostile."""
    if isinstance(value, str):
        return value if name in OWN else f"{value}{SCRIPT}"
    if isinstance(value, Mapping):
        open_names = name in ("settings", "norms", "manifest", "columns", "spec", "hit_rate", "measures", "inputs")
        return {(f"{key}{SCRIPT}" if open_names else key): hostile(part, key) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(part, name) for part in value]
    return value
