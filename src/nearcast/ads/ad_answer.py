"""What an expansion answers: ads, what each is shown for, and how many were left after each stage. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearcast.ads.ad_funnel import Stage
from nearcast.serve.lookup_data import Answer, Answers

__all__ = ["Promoted"]


@dataclass(frozen=True, slots=True)
class Promoted:
    """The ads of an answer, best first."""

    ads: Sequence[str | int]
    items: Sequence[str | int]  # the candidate that each ad is shown for
    scores: Sequence[float]
    columns: Sequence[Mapping[str, Any]]  # of each ad, those that were asked for
    stages: tuple[Stage, ...]
    table: str  # the version of the expansion table, such as 000041
    age_seconds: float  # since the table was read from its source
    snapshot: str | None = None  # that the candidates come from; None where they were given
    found: int = 0  # keys that the snapshot has
    # The candidates of each key, for whoever counts; none where they were given.
    looked_up: Sequence[Answer] | Answers = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ads)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: a dictionary per ad."""
        rows = zip(self.ads, self.items, self.scores, self.columns, strict=True)
        return {
            "snapshot": self.snapshot,
            "found": self.found,
            "table": self.table,
            "age_seconds": round(self.age_seconds, 3),
            "stages": [{"name": s.name, "candidates": s.candidates, "ads": s.ads} for s in self.stages],
            "ads": [{"ad": ad, "item": item, "score": score, "columns": columns} for ad, item, score, columns in rows],
        }
