"""The rules of the audit: each compares a measure with a bound and says in one sentence by how much it failed.

Takes figures and returns findings. The rules that compare inputs are in `input_rules.py`. Reads no files and no stores.
The texts are stored in the facts of a version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nearcast.publishing.audit_values import NOTHING_CURRENT, AuditFigures, AuditRule, CurrentFigures, Finding
from nearcast.publishing.input_rules import INPUT_RULES
from nearcast.publishing.label_rules import LABEL_RULES
from nearcast.spec import AuditSpec

__all__ = ["RULES", "AuditFigures", "AuditRule", "CurrentFigures", "Finding", "apply_rules"]

HOUR = 3600.0


def apply_rules(figures: AuditFigures, settings: AuditSpec) -> list[Finding]:
    """Return the finding of every rule, in the order of the table."""
    return [rule.find(figures, settings) for rule in RULES.values()]


def _check_recall(figures: AuditFigures, settings: AuditSpec) -> Finding:
    low, value = figures.measures["recall_low"], figures.measures["recall"]
    bound = figures.recall_target if settings.min_recall is None else settings.min_recall
    # No sample proves a recall of 1. The target check counts then: an exact engine proves it.
    by_target = figures.target_met and figures.recall_target >= bound
    passed = by_target if settings.min_recall is None else by_target or low >= bound
    what = f"recall@{figures.k} is {value:.4f}"
    if passed and low < bound:
        return Finding("recall", "recall", bound, value, True, f"{what} by an engine that is exact, as promised")
    if passed:
        return Finding("recall", "recall_low", bound, low, True, f"{what}, and at least {low:.4f} with 95% confidence")
    text = f"{what}, and an exact engine was to miss nothing"
    if low < bound:
        short = _format_number(bound - low)
        text = f"{what} with a 95% interval from {low:.4f}, {short} below the required {bound:g}"
    return Finding("recall", "recall_low", bound, low, False, text)


def _check_share(rule: str, found: float, bound: float, what: str) -> Finding:
    if found >= bound:
        return Finding(rule, rule, bound, found, True, f"{what} is {found:.2%}, and {bound:.2%} is asked for")
    text = f"{what} is {found:.2%}, {_format_number(100 * (bound - found))} points below the required {bound:.2%}"
    return Finding(rule, rule, bound, found, False, text)


def _check_fill_rate(figures: AuditFigures, settings: AuditSpec) -> Finding:
    return _check_share("fill_rate", figures.measures["fill_rate"], settings.min_fill_rate, "the fill rate")


def _check_fill_at(figures: AuditFigures, settings: AuditSpec) -> Finding:
    found = figures.measures.get("fill_at_m")
    if found is None:
        return Finding("fill_at_m", "fill_at_m", settings.min_fill_at, None, True, "no measure.fill_at was set")
    return _check_share("fill_at_m", found, settings.min_fill_at, "the share of lists with enough candidates")


def _check_query_coverage(figures: AuditFigures, settings: AuditSpec) -> Finding:
    found = figures.measures["query_coverage"]
    return _check_share("query_coverage", found, settings.min_query_coverage, "the query coverage")


def _check_queries_kept(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, bound = figures.current, settings.min_queries_kept
    if current is None:
        return _pass_without_current("queries_kept", bound)
    share = current.kept / current.sampled if current.sampled else 1.0
    what = f"of {current.sampled:,} keys of {current.name}, the share that this snapshot has too"
    return _check_share("queries_kept", share, bound, what)


def _check_keys(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, n = figures.current, figures.keys
    now = current.keys if current else 0
    # a rounding error of the product must not fail the rule
    least = max(settings.min_keys, math.ceil(now * (1 - settings.max_keys_lost) - 1e-6))
    if n < settings.min_keys:
        text = f"it has {n:,} keys, {settings.min_keys - n:,} fewer than the required {settings.min_keys:,}"
    elif current is None:
        text = f"it has {n:,} keys; {NOTHING_CURRENT}"
    elif n < least:
        text = (
            f"it has {n:,} keys where {current.name} has {now:,}: {1 - n / now:.2%} are lost, "
            f"and at most {settings.max_keys_lost:.2%} may be"
        )
    else:
        text = f"it has {n:,} keys, and {current.name} has {now:,}"
    return Finding("keys", "keys", least, n, n >= least, text)


def _check_overlap(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, bound = figures.current, settings.min_overlap
    if current is None:
        return _pass_without_current("overlap", bound)
    if current.compared == 0 and current.kept == current.sampled:  # all current lists are empty
        return Finding("overlap", "overlap", bound, None, True, f"the lists of {current.name} hold nothing to keep")
    found = _check_share(
        "overlap", current.overlap, bound, f"on {current.compared:,} keys, the overlap with {current.name}"
    )
    if found.passed:
        return found
    hint = "queries and items of two embedding models look like this"
    return Finding("overlap", "overlap", bound, found.found, False, f"{found.text}; {hint}")


def _check_age(figures: AuditFigures, settings: AuditSpec) -> Finding:
    bound, hours = settings.max_age_hours, max(0.0, figures.age_seconds) / HOUR
    if figures.age_seconds < 0:
        ahead = _format_hours(-figures.age_seconds / HOUR)
        text = f"it was made {ahead} ahead of this machine's clock; its age counts as 0"
    elif hours <= bound:
        text = f"it is {_format_hours(hours)} old, and {_format_hours(bound)} is allowed"
    else:
        more = _format_hours(hours - bound)
        text = f"it is {_format_hours(hours)} old, {more} more than the {_format_hours(bound)} that is allowed"
    return Finding("age", "age_hours", bound, hours, hours <= bound, text)


def _check_size(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, bound, size = figures.current, settings.max_size_change, figures.payload_bytes
    if current is None:
        return _pass_without_current("size", bound, measure="size_change")
    least, most = sorted((size, current.payload_bytes))
    change = 1.0 if most == 0 else most / least if least else math.inf
    was = f"the {current.payload_bytes:,} of {current.name}"
    text = f"its {size:,} bytes of lists and {was} differ by a factor of {change:.6g}"
    if change > bound:
        text += f", and at most {bound:g} is allowed"
    found = change if math.isfinite(change) else None
    return Finding("size", "size_change", bound, found, change <= bound, text)


def _check_withdrawn(figures: AuditFigures, _: AuditSpec) -> Finding:
    if figures.rolled_back:
        text = f"{figures.name} was rolled back from; name it to publish it all the same, or make a new snapshot"
    else:
        text = "it was not rolled back from"
    return Finding("withdrawn", "withdrawn", 0, int(figures.rolled_back), not figures.rolled_back, text)


def _pass_without_current(rule: str, bound: float, *, measure: str | None = None) -> Finding:
    return Finding(rule, measure or rule, bound, None, True, NOTHING_CURRENT)


def _format_number(value: float) -> str:
    """Format a difference with two significant digits; never as 0."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.1 else f"{hours * HOUR:.0f} s"


RULES: Mapping[str, AuditRule] = {
    rule.name: rule
    for rule in (
        AuditRule(
            "recall",
            ("min_recall",),
            "the lower end of recall's interval, against the recall target or a bound",
            _check_recall,
        ),
        AuditRule("fill_rate", ("min_fill_rate",), "slots that hold a candidate", _check_fill_rate),
        AuditRule(
            "fill_at_m",
            ("min_fill_at",),
            "lists that have `measure.fill_at` candidates, where that is set",
            _check_fill_at,
        ),
        AuditRule("query_coverage", ("min_query_coverage",), "queries that have a candidate", _check_query_coverage),
        AuditRule("queries_kept", ("min_queries_kept",), "current keys that the snapshot has too", _check_queries_kept),
        AuditRule(
            "keys", ("min_keys", "max_keys_lost"), "how many keys there are, and how many fewer than now", _check_keys
        ),
        AuditRule("overlap", ("min_overlap",), "overlap@k with the lists that are current", _check_overlap),
        AuditRule("age", ("max_age_hours",), "hours since the snapshot was made", _check_age),
        AuditRule("size", ("max_size_change",), "factor between its bytes and the current ones", _check_size),
        *INPUT_RULES,
        *LABEL_RULES,
        AuditRule("withdrawn", (), "a version that was rolled back is not published again by itself", _check_withdrawn),
    )
}
