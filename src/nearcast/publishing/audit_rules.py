"""The rules of the audit: each is a measure with a bound, and a sentence that says by how much it failed.

Takes figures and gives findings: where the figures come from is `audit.py`'s to know. The rules that compare inputs
are in `input_rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nearcast.publishing.audit_values import NOTHING_CURRENT, AuditFigures, AuditRule, CurrentFigures, Finding
from nearcast.publishing.input_rules import INPUT_RULES
from nearcast.spec import AuditSpec

__all__ = ["RULES", "AuditFigures", "AuditRule", "CurrentFigures", "Finding", "apply_rules"]

HOUR = 3600.0


def apply_rules(judged: AuditFigures, settings: AuditSpec) -> list[Finding]:
    """What every rule finds, in the order of the table."""
    return [rule.find(judged, settings) for rule in RULES.values()]


def _recall(judged: AuditFigures, settings: AuditSpec) -> Finding:
    low, value = judged.measures["recall_low"], judged.measures["recall"]
    bound = judged.promised if settings.min_recall is None else settings.min_recall
    # No sample proves a recall of 1: there the verdict counts, as an exact engine proves it by its bound.
    by_promise = judged.kept and judged.promised >= bound
    passed = by_promise if settings.min_recall is None else by_promise or low >= bound
    what = f"recall@{judged.k} is {value:.4f}"
    if passed and low < bound:
        return Finding("recall", "recall", bound, value, True, f"{what} by an engine that is exact, as promised")
    if passed:
        return Finding("recall", "recall_low", bound, low, True, f"{what}, and at least {low:.4f} with 95% confidence")
    text = f"{what}, and an exact engine was to miss nothing"
    if low < bound:
        short = _number(bound - low)
        text = f"{what} with a 95% interval from {low:.4f}, {short} below the {bound:g} that is asked for"
    return Finding("recall", "recall_low", bound, low, False, text)


def _share(rule: str, found: float, bound: float, what: str) -> Finding:
    if found >= bound:
        return Finding(rule, rule, bound, found, True, f"{what} is {found:.2%}, and {bound:.2%} is asked for")
    text = f"{what} is {found:.2%}, {_number(100 * (bound - found))} points below the {bound:.2%} that is asked for"
    return Finding(rule, rule, bound, found, False, text)


def _fill_rate(judged: AuditFigures, settings: AuditSpec) -> Finding:
    return _share("fill_rate", judged.measures["fill_rate"], settings.min_fill_rate, "the fill rate")


def _fill_at(judged: AuditFigures, settings: AuditSpec) -> Finding:
    found = judged.measures.get("fill_at_m")
    if found is None:
        return Finding("fill_at_m", "fill_at_m", settings.min_fill_at, None, True, "no measure.fill_at was set")
    return _share("fill_at_m", found, settings.min_fill_at, "the share of lists with enough candidates")


def _query_coverage(judged: AuditFigures, settings: AuditSpec) -> Finding:
    found = judged.measures["query_coverage"]
    return _share("query_coverage", found, settings.min_query_coverage, "the query coverage")


def _queries_kept(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, bound = judged.current, settings.min_queries_kept
    if beside is None:
        return _alone("queries_kept", bound)
    share = beside.kept / beside.sampled if beside.sampled else 1.0
    what = f"of {beside.sampled:,} keys of {beside.name}, the share that this snapshot has too"
    return _share("queries_kept", share, bound, what)


def _keys(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, n = judged.current, judged.keys
    now = beside.keys if beside else 0
    # the difference of a product and its rounding must not cost a key
    least = max(settings.min_keys, math.ceil(now * (1 - settings.max_keys_lost) - 1e-6))
    if n < settings.min_keys:
        text = f"it has {n:,} keys, {settings.min_keys - n:,} fewer than the {settings.min_keys:,} that are asked for"
    elif beside is None:
        text = f"it has {n:,} keys; {NOTHING_CURRENT}"
    elif n < least:
        text = (
            f"it has {n:,} keys where {beside.name} has {now:,}: {1 - n / now:.2%} are lost, "
            f"and at most {settings.max_keys_lost:.2%} may be"
        )
    else:
        text = f"it has {n:,} keys, and {beside.name} has {now:,}"
    return Finding("keys", "keys", least, n, n >= least, text)


def _overlap(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, bound = judged.current, settings.min_overlap
    if beside is None:
        return _alone("overlap", bound)
    if beside.compared == 0 and beside.kept == beside.sampled:  # all current lists are empty
        return Finding("overlap", "overlap", bound, None, True, f"the lists of {beside.name} hold nothing to keep")
    found = _share("overlap", beside.overlap, bound, f"on {beside.compared:,} keys, the overlap with {beside.name}")
    if found.passed:
        return found
    hint = "queries and items of two embedding models look like this"
    return Finding("overlap", "overlap", bound, found.found, False, f"{found.text}; {hint}")


def _age(judged: AuditFigures, settings: AuditSpec) -> Finding:
    bound, hours = settings.max_age_hours, max(0.0, judged.age_seconds) / HOUR
    if judged.age_seconds < 0:
        text = f"it was made {_hours(-judged.age_seconds / HOUR)} ahead of this machine's clock; its age counts as 0"
    elif hours <= bound:
        text = f"it is {_hours(hours)} old, and {_hours(bound)} is allowed"
    else:
        text = f"it is {_hours(hours)} old, {_hours(hours - bound)} more than the {_hours(bound)} that is allowed"
    return Finding("age", "age_hours", bound, hours, hours <= bound, text)


def _size(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, bound, size = judged.current, settings.max_size_change, judged.payload_bytes
    if beside is None:
        return _alone("size", bound, measure="size_change")
    least, most = sorted((size, beside.payload_bytes))
    change = 1.0 if most == 0 else most / least if least else math.inf
    was = f"the {beside.payload_bytes:,} of {beside.name}"
    text = f"its {size:,} bytes of lists and {was} differ by a factor of {change:.6g}"
    if change > bound:
        text += f", and at most {bound:g} is allowed"
    found = change if math.isfinite(change) else None
    return Finding("size", "size_change", bound, found, change <= bound, text)


def _withdrawn(judged: AuditFigures, _: AuditSpec) -> Finding:
    if judged.withdrawn:
        text = f"{judged.name} was rolled back from; name it to publish it all the same, or make a new snapshot"
    else:
        text = "it was not rolled back from"
    return Finding("withdrawn", "withdrawn", 0, int(judged.withdrawn), not judged.withdrawn, text)


def _alone(rule: str, bound: float, *, measure: str | None = None) -> Finding:
    return Finding(rule, measure or rule, bound, None, True, NOTHING_CURRENT)


def _number(value: float) -> str:
    """A difference with the digits that matter: never 0."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.1 else f"{hours * HOUR:.0f} s"


RULES: Mapping[str, AuditRule] = {
    rule.name: rule
    for rule in (
        AuditRule(
            "recall", ("min_recall",), "the lower end of recall's interval, against the promise or a bound", _recall
        ),
        AuditRule("fill_rate", ("min_fill_rate",), "slots that hold a candidate", _fill_rate),
        AuditRule(
            "fill_at_m", ("min_fill_at",), "lists that have `measure.fill_at` candidates, where that is set", _fill_at
        ),
        AuditRule("query_coverage", ("min_query_coverage",), "queries that have a candidate", _query_coverage),
        AuditRule("queries_kept", ("min_queries_kept",), "current keys that the snapshot has too", _queries_kept),
        AuditRule("keys", ("min_keys", "max_keys_lost"), "how many keys there are, and how many fewer than now", _keys),
        AuditRule("overlap", ("min_overlap",), "overlap@k with the lists that are current", _overlap),
        AuditRule("age", ("max_age_hours",), "hours since the snapshot was made", _age),
        AuditRule("size", ("max_size_change",), "factor between its bytes and the current ones", _size),
        *INPUT_RULES,
        AuditRule("withdrawn", (), "a version that was rolled back from does not come back by itself", _withdrawn),
    )
}
