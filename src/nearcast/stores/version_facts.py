"""What a version says of itself, checked as every reader checks it before it uses the version."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

__all__ = ["FACTS_FORMAT", "check_facts"]

FACTS_FORMAT = 1


def check_facts(facts: Mapping[str, Any], generator: str, version: int) -> float:
    """Return when the version was made, in seconds since 1970. ValueError, KeyError or TypeError for unusable facts."""
    if facts["format"] != FACTS_FORMAT:
        raise ValueError(f"their format is {facts['format']}, and this version of nearcast reads {FACTS_FORMAT}")
    if (facts["generator"], facts["version"]) != (generator, version):
        raise ValueError(f"they are those of {facts['generator']} {facts['version']}")
    for kind in (facts["query_ids"], facts["item_ids"]):
        if kind not in ("int64", "string"):
            raise ValueError(f"ids are of type {kind!r}")
    if not isinstance(facts["snapshot"], str):
        raise TypeError(f"the snapshot is {facts['snapshot']!r}")
    return datetime.fromisoformat(facts["created"]).timestamp()
