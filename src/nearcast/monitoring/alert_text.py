"""What a trouble is called, how bad it is, what it does to a list, and which series of the history shows it.

One row per check of the monitor, and some for what the history tells without a monitor. Titles that depend on figures
are made by the check itself. Knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["LEVELS", "TROUBLES", "Level", "Words", "count_title"]

Level = Literal["bad", "warn", "ok", "idle", "unknown"]

LEVELS: Mapping[Level, str] = {
    "bad": "Trouble",
    "warn": "Look",
    "unknown": "Not monitored",
    "ok": "Healthy",
    "idle": "No runs",
}
HALF = 0.03  # of a share: near enough to be called half


@dataclass(frozen=True, slots=True)
class Words:
    """A trouble, for people."""

    title: str
    effect: str  # on what is in the lists, as a user would see them
    level: Level
    evidence: str | None = None  # a series of runs, or of passes where `of` says so
    of: Literal["runs", "passes"] = "runs"


def count_title(side: str, found: float, before: float, *, served: bool) -> str:
    """Return how a number of items or queries has changed, in a headline with both numbers."""
    whose = "that are served" if served else "as usual"
    if found < before:
        missing = 1 - found / before
        share = "Half" if abs(missing - 0.5) <= HALF else "All" if found == 0 else _percent(missing)
        return f"{share} of the {side} are missing: {found:,.0f} of {before:,.0f} {whose}"
    more = "twice" if abs(found / before - 2) <= HALF else f"{found / before:.1f} times"
    if found < 1.95 * before:
        return f"There are {_percent(found / before - 1)} more {side}: {found:,.0f} instead of {before:,.0f} {whose}"
    return f"There are {more} as many {side}: {found:,.0f} instead of {before:,.0f} {whose}"


def _percent(share: float) -> str:
    return f"{min(share, 0.999):.1%}" if share > 0.99 else f"{share:.0%}"


def _of_side(side: str) -> dict[str, Words]:
    one = "item" if side == "items" else "query"
    return {
        f"{side}_count": Words(
            f"The number of {side} jumped",
            "What is missing can be in no list." if side == "items" else "Keys that are missing get no list.",
            "bad",
            f"{side}_vectors",
        ),
        f"{side}_norms": Words(
            f"Vectors of {side} have other lengths",
            "By inner_product and l2, lists may be ordered wrongly; by cosine, lengths have no effect.",
            "bad",
            f"{side}_norm_p50",
        ),
        f"{side}_model": Words(
            f"Vectors of {side} are of another model",
            "Where only one side has changed, lists hold what has nothing to do with the key.",
            "bad",
            f"{side}_drift",
        ),
        f"{side}_ids": Words(
            f"Ids and vectors of {side} are shifted",
            f"An {one} that is concerned has the vector of another: its lists are those of a stranger."
            if side == "items"
            else "A query that is concerned has the vector of another: its list is that of a stranger.",
            "bad",
            f"{side}_moved",
        ),
        f"{side}_shift": Words(
            f"The mean of the {side} has moved",
            "The mix of what is in the lists may be another one.",
            "warn",
            f"{side}_shift",
        ),
        f"{side}_zeros": Words(
            f"Vectors of {side} are zeros",
            "Such items are in no list, or in lists by chance."
            if side == "items"
            else "Such keys get no list, or one without any meaning.",
            "bad",
            f"{side}_zeros",
        ),
        f"{side}_stale": Words(
            f"Files of {side} are those of an earlier run",
            "If they should have changed, what is new is missing and what is gone is still there.",
            "bad",
        ),
    }


TROUBLES: Mapping[str, Words] = {
    "recall": Words("Recall is below the target", "Some of the nearest items are not in the lists.", "bad", "recall"),
    "effort": Words(
        "Recall fell, and the search settings have changed",
        "Some of the nearest items are not in the lists.",
        "bad",
        "recall",
    ),
    "metric": Words(
        "The lists look like those of another metric",
        "Lists are ordered by another nearness than the spec asks for.",
        "bad",
        "recall",
    ),
    "slice": Words("One group of queries has changed", "Lists of that group are not what they were.", "warn"),
    **_of_side("items"),
    **_of_side("queries"),
    "copies": Words(
        "More candidates are copies of an item", "Users see the same item several times in a list.", "bad", "repeats"
    ),
    "overlap": Words("The lists are not those of before", "Users see other candidates than usual.", "warn", "overlap"),
    "scores": Words("The scores have shifted", "A threshold on scores lets through more or less.", "warn", "score_p50"),
    "fill": Words("Fewer slots are filled", "Lists are shorter than usual.", "warn", "fill_rate"),
    "coverage": Words("Coverage fell", "Some keys have no list, or some items are in none.", "warn", "query_coverage"),
    "seconds": Words("The run took far longer", "None on the lists: they are late at most.", "warn", "seconds"),
    "memory": Words("The run took far more memory", "None on the lists: the next run may not fit.", "warn", "memory"),
    "served_recall": Words(
        "Served lists are not the nearest any more",
        "Items that are nearer today are not in the lists.",
        "bad",
        "recall",
        "passes",
    ),
    "served_spec": Words(
        "What is served was made by another spec",
        "Users get lists by the settings and ids of then.",
        "warn",
    ),
    "dead": Words(
        "Served candidates are gone",
        "Users are offered items that are not in the files of today.",
        "bad",
        "dead",
        "passes",
    ),
    "removed": Words(
        "The overlay removes most of the served candidates", "Lists are short or empty.", "warn", "removed", "passes"
    ),
    "age": Words("The served snapshot is old", "Users see the lists of that day.", "warn", "age", "passes"),
    "misses": Words("Keys are not found", "Those look-ups get a fallback, or nothing.", "warn", "misses", "passes"),
    "fallbacks": Words(
        "More look-ups are answered by a fallback",
        "Users get something else than the key's own list.",
        "warn",
        "fallbacks",
        "passes",
    ),
    "unreachable": Words(
        "What is served could not be looked at", "Unknown: the monitor could not read the store.", "warn"
    ),
    "audit": Words("The audit has refused the newest run", "Users keep the lists of before.", "bad", "overlap"),
    "rollback": Words("Rolled back", "Users have the lists of an earlier snapshot.", "warn"),
    "not_following": Words("The service does not follow the store", "Users keep the lists of before.", "warn"),
    "unknown": Words("Something is wrong", "See the sentence beside it.", "warn"),
}
