"""What a trouble is called on the page, how bad it is, what it does to a list, and which line of the history shows it.

One row per check of the monitor, and some for what the history tells without a monitor. Knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["LEVELS", "TROUBLES", "Level", "Words"]

Level = Literal["bad", "warn", "ok", "idle"]

LEVELS: Mapping[Level, str] = {"bad": "Trouble", "warn": "Look", "ok": "Healthy", "idle": "No runs"}


@dataclass(frozen=True, slots=True)
class Words:
    """A trouble, for people."""

    title: str
    effect: str  # on what is in the lists, as a user would see them
    level: Level
    evidence: str | None = None  # a series of runs, or of passes where `of` says so
    of: Literal["runs", "passes"] = "runs"


def _of_side(side: str, lists: str) -> dict[str, Words]:
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
            f"{lists} may be ordered wrongly, or by length.",
            "bad",
            f"{side}_norm_p50",
        ),
        f"{side}_model": Words(
            f"Vectors of {side} are of another model",
            f"{lists} hold what has nothing to do with the key.",
            "bad",
            f"{side}_drift",
        ),
        f"{side}_ids": Words(
            f"Ids and vectors of {side} are shifted",
            f"Every {one} has the vector of another: {lists.lower()} are those of a stranger.",
            "bad",
            f"{side}_moved",
        ),
        f"{side}_shift": Words(
            f"The mean of the {side} has moved",
            "A market, category or language came or went.",
            "warn",
            f"{side}_shift",
        ),
        f"{side}_zeros": Words(
            f"Vectors of {side} are zeros",
            "Such items are in no list." if side == "items" else "Such keys get lists without any meaning.",
            "bad",
            f"{side}_zeros",
        ),
        f"{side}_stale": Words(
            f"Files of {side} are old",
            f"A part of the {side} is that of an earlier day: new ones are missing, gone ones are there.",
            "bad",
        ),
    }


TROUBLES: Mapping[str, Words] = {
    "recall": Words("Recall is below the promise", "Some of the nearest items are not in the lists.", "bad", "recall"),
    "effort": Words(
        "Recall fell: the search was cut short", "Some of the nearest items are not in the lists.", "bad", "recall"
    ),
    "metric": Words(
        "The index is of another metric", "Lists are ordered by another nearness than was asked for.", "bad", "recall"
    ),
    "slice": Words("One group of queries is worse off", "Lists of that group are not what they were.", "warn"),
    **_of_side("items", "Lists"),
    **_of_side("queries", "Lists"),
    "copies": Words("Copies of one item fill the lists", "The same item is seen again and again.", "bad", "repeats"),
    "overlap": Words("The lists are not those of before", "Users see other candidates than usual.", "warn", "overlap"),
    "scores": Words("The scores have shifted", "A threshold on scores lets through more or less.", "warn", "score_p50"),
    "fill": Words("Fewer slots are filled", "Lists are shorter than usual.", "warn", "fill_rate"),
    "coverage": Words("Coverage fell", "Some keys have no list, or some items are in none.", "warn", "query_coverage"),
    "seconds": Words("The run took far longer", "Nothing yet: the lists are late at most.", "warn", "seconds"),
    "memory": Words("The run took far more memory", "Nothing yet: the next run may not fit.", "warn", "memory"),
    "served_recall": Words(
        "Served lists miss what is new", "Items that came since are in no list.", "bad", "recall", "passes"
    ),
    "dead": Words(
        "Served candidates are gone", "Users are offered items that do not exist any more.", "bad", "dead", "passes"
    ),
    "age": Words("The served snapshot is old", "Users see the lists of that day.", "warn", "age", "passes"),
    "misses": Words("Keys are not found", "Those look-ups get a fallback, or nothing.", "warn", "misses", "passes"),
    "fallbacks": Words(
        "Fallbacks stand in", "Users get something else than the key's own list.", "warn", "fallbacks", "passes"
    ),
    "audit": Words("The audit stops every publish", "Users keep the lists of before.", "bad", "overlap"),
    "rollback": Words("Rolled back", "Users have the lists of an earlier snapshot.", "warn"),
    "not_following": Words("The service does not follow the store", "Users keep the lists of before.", "warn"),
    "unknown": Words("Something is wrong", "See the sentence beside it.", "warn"),
}
