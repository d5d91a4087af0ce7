"""Checks of the served version: its staleness against the bounds of the spec, and against earlier monitor passes.

Takes figures and returns alerts; reads no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nearcast.monitoring.alert import Alert
from nearcast.monitoring.checks import check_count
from nearcast.monitoring.expected_range import estimate_range
from nearcast.monitoring.staleness import Staleness, lowest_recall
from nearcast.spec import GeneratorSpec

__all__ = ["check_served"]

SHARE_FLOOR = 0.05
MOST_REMOVED = 0.5  # share of the candidates that the overlay removes


def check_served(now: Staleness, spec: GeneratorSpec, before: Sequence[Mapping[str, Any]]) -> list[Alert]:
    """Check a pass against the bounds of the spec and against earlier passes (plain data, oldest first)."""
    return [*_check_bounds(now, spec), *_check_shares(now, before)]


def _check_bounds(now: Staleness, spec: GeneratorSpec) -> Iterator[Alert]:
    most_dead, oldest = spec.monitor.max_dead, spec.audit.max_age_hours * 3600
    interval = now.refresh_seconds
    refresh = "" if interval is None else f"; refresh the table every {_format_duration(interval)}"
    if now.items_today is not None and now.items_served and now.items_today < now.items_served:
        cause = f"are today's files of the items complete? {now.snapshot} is served"
        missing = check_count("items", now.items_today, now.items_served, cause)
        if missing is not None:
            yield missing
    if now.not_compared is not None:
        text = f"the lists of {now.snapshot} cannot be compared with today's items: {now.not_compared}"
        yield Alert("served_spec", text, None, None, None)
    yield from _check_recall(now, lowest_recall(spec), refresh)
    other_ids = now.not_compared is not None and now.dead == 1.0  # ids of another type: no candidate can be found
    if now.dead > most_dead and not other_ids:
        allowed = f"at most {most_dead:.1%} are allowed{refresh}"
        text = f"{now.dead:.1%} of the served candidates are not among today's items, {allowed}"
        yield Alert("dead", text, now.dead, most_dead, None)
    if now.removed > MOST_REMOVED:
        text = (
            f"the overlay removes {now.removed_items:,} items; with them, the served lists of {now.snapshot} lose "
            f"{now.removed:.1%} of their candidates"
        )
        yield Alert("removed", text, now.removed, MOST_REMOVED, None)
    age = now.age_seconds if now.patch_age_seconds is None else min(now.age_seconds, now.patch_age_seconds)
    if age > oldest:
        patched = "" if now.patch_age_seconds is None else f", patch {now.patch} {_format_duration(age)}"
        words = f"snapshot {now.snapshot} is {_format_duration(now.age_seconds)} old{patched}"
        yield Alert("age", f"{words}; {_format_duration(oldest)} are allowed", age, oldest, None)


def _check_recall(now: Staleness, lowest: float, refresh: str) -> Iterator[Alert]:
    """Yield an alert if the recall interval of the served lists lies below the lowest allowed recall."""
    if now.recall is None or now.recall_high is None or now.recall_high >= lowest:
        return
    title, effect, cause = _explain_recall(now, lowest)
    text = (
        f"the served lists of {now.snapshot} have recall {now.recall:.4f} among today's items, at least {lowest:.4f} "
        f"is required, and it was {now.recall_when_made:.4f} when they were made{cause}{refresh}"
    )
    yield Alert("served_recall", text, now.recall, lowest, now.recall_when_made, title=title, effect=effect)


def _explain_recall(now: Staleness, lowest: float) -> tuple[str, str, str]:
    """Return title, effect and cause of a recall that is too low, from the neighbors that are missed."""
    if now.recall_when_made < lowest:
        title = "Served lists were below the recall target when they were made"
        cause = "; the target was changed since, or was not reached then"
        return title, "Some of the nearest items are not in the lists.", cause
    share = now.missed_new
    if share is not None and share >= 0.5:
        cause = f"; {share:.0%} of the missed neighbors are new items"
        return "Served lists miss new items", "Items that are new since then are in no list.", cause
    assert now.recall is not None
    if now.dead >= 0.5 * (1 - now.recall):
        title = "Served lists hold items that no longer exist"
        return title, "Slots of the lists hold items that no longer exist.", ""
    cause = "" if share is None else f"; {1 - share:.0%} of the missed neighbors were items then, too"
    title = "Served lists are no longer the nearest items"
    return title, "The vectors have changed since: other items are nearest now.", f"{cause}: the vectors have changed"


def _check_shares(now: Staleness, before: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    """Yield alerts for shares of misses and fallbacks that are higher than usual, or if every key is a miss."""
    lookups = now.sampled == "look-ups"
    missed = "of the look-ups ask for keys without a list" if lookups else "of today's queries have no list"
    sentences = {"misses": missed, "fallbacks": "of the look-ups were answered by a fallback"}
    for check, sentence in sentences.items():
        value: float | None = getattr(now, check)
        earlier = [p[check] for p in before if p.get("sampled") == now.sampled and p.get(check) is not None]
        expected = estimate_range(earlier, floor=SHARE_FLOOR)
        bound = expected.find_bound(value, "higher") if expected is not None and value is not None else None
        title = None if lookups or check != "misses" else "Queries of today are not in the served table"
        if value is not None and expected is not None and bound is not None:
            text = f"{value:.1%} {sentence}, usual is {expected.value:.1%}"
            yield Alert(check, text, value, bound, expected.value, title=title)
        elif check == "misses" and value == 1.0 and now.sample and (expected is None or expected.value < 1.0):
            keys = "keys that were looked up" if lookups else "queries of today"
            text = (
                f"none of the {now.sample:,} {keys} is in the served table {now.snapshot}: "
                "are their ids those of another system?"
            )
            yield Alert(check, text, value, None, None if expected is None else expected.value, title=title)


def _format_duration(seconds: float) -> str:
    return f"{seconds / 86_400:.1f} days" if seconds >= 2 * 86_400 else f"{seconds / 3600:.1f} hours"
