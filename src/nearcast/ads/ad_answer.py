"""The request to an expansion table and its answer. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearcast.ads.ad_funnel import Stage
from nearcast.serve.lookup_data import Answer, Answers

__all__ = ["AdAnswer", "AdRequest"]


@dataclass(frozen=True, slots=True)
class AdRequest:
    """The options of a request for ads, apart from its candidates."""

    request: Mapping[str, Any] | None = None  # plain data that targeting and rules read
    k: int | None = None  # largest number of ads; None: the table's own
    fields: Sequence[str] = ()  # columns of the ads to return
    now: Any = None  # time for `starts` and `ends`: seconds since 1970, a datetime or ISO 8601; None: the present


@dataclass(frozen=True, slots=True)
class AdAnswer:
    """The ads of an answer, best first."""

    ads: Sequence[str | int]
    items: Sequence[str | int]  # the candidate that each ad is shown for
    scores: Sequence[float]
    columns: Sequence[Mapping[str, Any]]  # of each ad, the fields of the request
    stages: tuple[Stage, ...]
    table: str  # the version of the expansion table, for example 000041
    age_seconds: float  # since the table was read from its source
    snapshot: str | None = None  # of the candidates; None if the caller gave them
    found: int = 0  # number of keys that the snapshot has
    # The candidates of each key, for counters; empty if the caller gave them.
    looked_up: Sequence[Answer] | Answers = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ads)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with a dictionary per ad."""
        rows = zip(self.ads, self.items, self.scores, self.columns, strict=True)
        return {
            "snapshot": self.snapshot,
            "found": self.found,
            "table": self.table,
            "age_seconds": round(self.age_seconds, 3),
            "stages": [{"name": s.name, "candidates": s.candidates, "ads": s.ads} for s in self.stages],
            "ads": [{"ad": ad, "item": item, "score": score, "columns": columns} for ad, item, score, columns in rows],
        }
