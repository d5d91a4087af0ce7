"""What a check has found, and the one table of what the checks are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nearcast.monitoring.alert_text import TROUBLES

__all__ = ["CHECKS", "Alert"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong, in a sentence that names the likely cause."""

    check: str
    text: str
    found: float | None
    bound: float | None
    usual: float | None  # None: nothing is compared with, the bound is the target's or the spec's
    follows: tuple[str, ...] = ()  # other checks that found something, and most likely because of this
    title: str | None = None  # the headline, where it depends on what was found; else that of the check
    effect: str | None = None  # on the lists; likewise

    @property
    def headline(self) -> str:
        """The alert in a few words."""
        return self.title or TROUBLES[self.check].title

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        effect = self.effect or TROUBLES[self.check].effect
        return asdict(self) | {"title": self.headline, "effect": effect, "follows": list(self.follows)}


CHECKS: Mapping[str, str] = {
    "recall": "recall is below its target, or fell from its usual value",
    "effort": "recall fell, and the engine's search parameters or settings are not what they were",
    "metric": "recall is below its target, and the lists are those of another metric",
    "slice": "a slice fell below the target, or its best scores are not what they were",
    "items_count": "the number of items has jumped",
    "queries_count": "the number of queries has jumped",
    "items_norms": "the lengths of item vectors have changed: normalized, scaled or exported otherwise",
    "queries_norms": "the same of the queries",
    "items_model": "the vectors of the same items have another direction: another model, or other weights",
    "queries_model": "the same of the queries",
    "items_ids": "items have each other's vectors: ids and vectors are shifted against each other",
    "queries_ids": "the same of the queries",
    "items_shift": "the mean of the item vectors has moved",
    "queries_shift": "the same of the queries",
    "items_zeros": "more item vectors than usual are zeros",
    "queries_zeros": "the same of the queries",
    "items_stale": "files of the items are those of an earlier run, while others are new",
    "queries_stale": "the same of the queries",
    "copies": "more candidates than usual are copies of an item",
    "overlap": "far fewer candidates than usual are those of the snapshot that is served",
    "scores": "the scores of the candidates have shifted",
    "fill": "fewer slots than usual hold a candidate",
    "coverage": "fewer queries than usual have candidates, or fewer items appear in a list",
    "seconds": "the run took far longer than usual",
    "memory": "the run took far more memory than usual",
    "audit": "the audit has refused to publish the newest run",
    "served_recall": "the served lists miss what is nearest today",
    "served_spec": "what is served was made by other settings or ids, and cannot be compared with today's items",
    "dead": "served candidates are no items any more",
    "removed": "the overlay removes most of the served candidates",
    "age": "the served snapshot is old",
    "misses": "more look-ups than usual ask for a key that is not there",
    "fallbacks": "more look-ups than usual are answered by something else than the key's own list",
    "unreachable": "what is served could not be looked at",
}
