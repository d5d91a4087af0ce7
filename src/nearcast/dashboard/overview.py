"""What the first screen needs of a generator: a hundred are there at once, and the rest comes when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["brief"]

POINTS = 75  # of a small line, which is a hundred pixels wide
NAMED = ("name", "state", "rank", "live", "version", "promise", "asked")
RUNS = ("recall", "recall_low", "recall_high", "promise", "overlap", "fill_rate", "query_coverage", "seconds", "memory")
PASSES = ("dead", "misses", "lookups")


def brief(page: Mapping[str, Any]) -> dict[str, Any]:
    """A generator's page with the series of the overview alone, and of those as many values as a small line shows."""
    evidence = [(trouble["of"], trouble["evidence"]) for trouble in page["state"]["troubles"]]
    series = {
        of: _thinned(page[of], [*names, *(name for table, name in evidence if table == of and name)])
        for of, names in (("runs", RUNS), ("passes", PASSES))
    }
    return {name: page[name] for name in NAMED if name in page} | series


def _thinned(table: Mapping[str, Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """These columns at every so manieth time, the last among them; and at the last two where each has a value."""
    columns = {name: table[name] for name in ("at", *names) if name in table}
    rows = len(columns["at"])
    kept = set(range(rows - 1, -1, -max(1, -(-rows // POINTS))))
    for values in columns.values():
        known = (row for row in range(rows - 1, -1, -1) if values[row] is not None)
        kept.update(row for row, _ in zip(known, range(2), strict=False))
    return {name: [values[row] for row in sorted(kept)] for name, values in columns.items()}
