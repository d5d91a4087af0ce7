"""Alerts of the monitor: their checks, titles, levels, and effects on the lists.

One table, `ALERT_TEXTS`, has a row for each check of the monitor, and rows for three problems that the history shows
without a monitor pass. A check whose title depends on its figures makes the title itself. Reads no history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = [
    "ALERT_TEXTS",
    "CHECKS",
    "LEVELS",
    "OF_RECALL",
    "Alert",
    "AlertText",
    "Level",
    "format_count_title",
]

Level = Literal["bad", "warn", "ok", "idle", "unknown"]

LEVELS: Mapping[Level, str] = {
    "bad": "Problem",
    "warn": "Warning",
    "unknown": "Not monitored",
    "ok": "Healthy",
    "idle": "No runs",
}
OF_RECALL = ("recall", "effort", "metric")  # names of a recall below its target, by the cause
HALF_TOLERANCE = 0.03  # a share this close to one half is called half


@dataclass(frozen=True, slots=True)
class Alert:
    """One finding of a check, with a sentence that names the likely cause."""

    check: str
    text: str
    found: float | None
    bound: float | None
    usual: float | None  # None if the bound comes from the spec and not from earlier runs
    follows: tuple[str, ...] = ()  # other checks with findings that this one most likely causes
    title: str | None = None  # headline for this finding; None: the headline of the check
    effect: str | None = None  # effect on the lists; None: the effect of the check
    detail: str = ""  # tells several alerts of one check apart: the slice, or the rule of the audit
    owner: str | None = None
    severity: str | None = None  # critical, error, warning or info
    runbook: str | None = None  # URL

    @property
    def key(self) -> str:
        """Name of the alert, the same in every pass until it ends."""
        check = OF_RECALL[0] if self.check in OF_RECALL else self.check
        return f"{check}:{self.detail}" if self.detail else check

    @property
    def headline(self) -> str:
        """The alert in a few words."""
        return self.title or ALERT_TEXTS[self.check].title

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        effect = self.effect or ALERT_TEXTS[self.check].effect
        more = {"title": self.headline, "effect": effect, "follows": list(self.follows), "key": self.key}
        return asdict(self) | more


@dataclass(frozen=True, slots=True)
class AlertText:
    """The title, effect and level of a check, and the series of the history that shows the problem."""

    title: str
    effect: str  # on the lists that users get
    level: Level
    evidence: str | None = None  # name of a series
    of: Literal["runs", "passes"] = "runs"  # table of that series


CHECKS: Mapping[str, str] = {
    "recall": "recall is below its target, or fell from its usual value",
    "effort": "recall fell, and the engine's settings or search parameters changed since the last run",
    "labels": "a metric by the labels of the spec is below its promise",
    "metric": "recall is below its target, and the lists look like those of another metric",
    "slice": "recall of a slice is below the target, or the best scores of a slice are unusual",
    "items_count": "the number of items is unusual",
    "queries_count": "the number of queries is unusual",
    "items_norms": "the norms of item vectors changed: normalized, scaled or exported in another way",
    "queries_norms": "the norms of query vectors changed",
    "items_model": "vectors of the same items point in other directions: another model, or other weights",
    "queries_model": "vectors of the same queries point in other directions",
    "items_ids": "item ids and item vectors are shifted against each other",
    "queries_ids": "query ids and query vectors are shifted against each other",
    "items_shift": "the mean of the item vectors moved",
    "queries_shift": "the mean of the query vectors moved",
    "items_zeros": "more item vectors than usual are zeros",
    "queries_zeros": "more query vectors than usual are zeros",
    "items_stale": "some item files are those of an earlier run, while others are new",
    "queries_stale": "some query files are those of an earlier run, while others are new",
    "copies": "more candidates than usual are copies of another item",
    "overlap": "fewer candidates than usual were in the lists of the served snapshot",
    "scores": "the scores of the candidates are unusual",
    "fill": "fewer slots than usual hold a candidate",
    "coverage": "fewer queries than usual have candidates, or fewer items are in a list",
    "seconds": "the run took far longer than usual",
    "memory": "the run used far more memory than usual",
    "audit": "the audit refused to publish the newest run",
    "served_recall": "served lists miss too many of today's nearest items",
    "served_spec": "the served version has another metric or other id types: it cannot be compared with today's items",
    "dead": "served candidates are not among today's items",
    "removed": "the overlay removes most of the served candidates",
    "age": "the served snapshot is too old",
    "misses": "more look-ups than usual ask for a key that has no list",
    "fallbacks": "more look-ups than usual are answered by a fallback",
    "unreachable": "the store could not be read",
}


def format_count_title(table: str, found: float, before: float, *, served: bool) -> str:
    """Return a headline about a changed number of items or queries, with both numbers.

    table: "items" or "queries". served: `before` is the number of the served version, else the usual number.
    """
    whose = "that are served" if served else "as usual"
    if found < before:
        missing = 1 - found / before
        share = "Half" if abs(missing - 0.5) <= HALF_TOLERANCE else "All" if found == 0 else _format_percent(missing)
        return f"{share} of the {table} are missing: {found:,.0f} of {before:,.0f} {whose}"
    if found < 1.95 * before:
        more = _format_percent(found / before - 1)
        return f"There are {more} more {table}: {found:,.0f} instead of {before:,.0f} {whose}"
    times = "twice" if abs(found / before - 2) <= HALF_TOLERANCE else f"{found / before:.1f} times"
    return f"There are {times} as many {table}: {found:,.0f} instead of {before:,.0f} {whose}"


def _format_percent(share: float) -> str:
    return f"{min(share, 0.999):.1%}" if share > 0.99 else f"{share:.0%}"


def _make_table_texts(table: str) -> dict[str, AlertText]:
    """Return the rows of the checks that exist for the item table and for the query table."""
    items = table == "items"
    return {
        f"{table}_count": AlertText(
            f"The number of {table} jumped",
            "Items that are missing are in no list." if items else "Queries that are missing get no list.",
            "bad",
            f"{table}_vectors",
        ),
        f"{table}_norms": AlertText(
            f"Vectors of {table} have other norms",
            "With inner_product and l2, lists may be in the wrong order; with cosine, norms have no effect.",
            "bad",
            f"{table}_norm_p50",
        ),
        f"{table}_model": AlertText(
            f"Vectors of {table} are of another model",
            "If only one table has changed, the candidates are unrelated to the key.",
            "bad",
            f"{table}_drift",
        ),
        f"{table}_ids": AlertText(
            f"Ids and vectors of {table} are shifted",
            "An affected item has the vector of another item, and is in the wrong lists."
            if items
            else "An affected query has the vector of another query, and gets the wrong list.",
            "bad",
            f"{table}_moved",
        ),
        f"{table}_shift": AlertText(
            f"The mean of the {table} moved",
            "The lists may hold another mix of items.",
            "warn",
            f"{table}_shift",
        ),
        f"{table}_zeros": AlertText(
            f"Vectors of {table} are zeros",
            "Such items are in no list, or in lists by chance."
            if items
            else "Such queries get no list, or a list without meaning.",
            "bad",
            f"{table}_zeros",
        ),
        f"{table}_stale": AlertText(
            f"Some files of the {table} are those of an earlier run",
            "If they should be new, new rows are missing and removed rows are still there.",
            "bad",
        ),
    }


_MISSED = "Some of the nearest items are not in the lists."

ALERT_TEXTS: Mapping[str, AlertText] = {
    "recall": AlertText("Recall is below the target", _MISSED, "bad", "recall"),
    "effort": AlertText("Recall fell, and the search settings have changed", _MISSED, "bad", "recall"),
    "labels": AlertText("A promise by labels is broken", "Lists hold fewer items that people choose.", "bad"),
    "metric": AlertText(
        "The lists look like those of another metric",
        "Lists are in the order of another metric than the spec names.",
        "bad",
        "recall",
    ),
    "slice": AlertText("A slice of the queries changed", "Lists of that slice differ from earlier runs.", "warn"),
    **_make_table_texts("items"),
    **_make_table_texts("queries"),
    "copies": AlertText(
        "More candidates are copies of another item",
        "Users see the same item many times in a list.",
        "bad",
        "repeats",
    ),
    "overlap": AlertText(
        "The lists changed more than usual", "Users see more new candidates than usual.", "warn", "overlap"
    ),
    "scores": AlertText(
        "The scores are unusual", "A threshold on scores lets more or fewer candidates through.", "warn", "score_p50"
    ),
    "fill": AlertText("Fewer slots are filled", "Lists are shorter than usual.", "warn", "fill_rate"),
    "coverage": AlertText(
        "Coverage fell", "Some queries have no list, or some items are in no list.", "warn", "query_coverage"
    ),
    "seconds": AlertText("The run took far longer", "None, but the lists may be late.", "warn", "seconds"),
    "memory": AlertText("The run used far more memory", "None, but the next run may not fit.", "warn", "memory"),
    "served_recall": AlertText(
        "Served lists are no longer the nearest items",
        "Some of today's nearest items are not in the lists.",
        "bad",
        "recall",
        "passes",
    ),
    "served_spec": AlertText(
        "The served version was made by another spec", "Users get lists of the earlier settings or ids.", "warn"
    ),
    "dead": AlertText(
        "Served candidates no longer exist",
        "Users get candidates that are not among today's items.",
        "bad",
        "dead",
        "passes",
    ),
    "removed": AlertText(
        "The overlay removes most of the served candidates", "Lists are short or empty.", "warn", "removed", "passes"
    ),
    "age": AlertText("The served snapshot is too old", "Users get old lists.", "warn", "age", "passes"),
    "misses": AlertText(
        "Keys are not found", "Those look-ups get a fallback, or no candidates.", "warn", "misses", "passes"
    ),
    "fallbacks": AlertText(
        "More look-ups are answered by a fallback",
        "Those users do not get the list of their own key.",
        "warn",
        "fallbacks",
        "passes",
    ),
    "unreachable": AlertText("The store could not be read", "Unknown: the monitor could not read the store.", "warn"),
    "audit": AlertText("The audit refused the newest run", "Users keep the lists of before.", "bad", "overlap"),
    "rollback": AlertText("Rolled back", "Users have the lists of an earlier snapshot.", "warn"),
    "not_following": AlertText("The service does not follow the store", "Users keep the lists of before.", "warn"),
    "unknown": AlertText("Something is wrong", "See the sentence beside it.", "warn"),
}
