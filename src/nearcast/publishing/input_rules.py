"""The rules of the audit that compare inputs: items, columns, what rules keep, vectors.

A part of an export that is missing, a currency, a renamed value: the join does not see them. They are found here, by
name of the column, before the pointer moves. Takes figures and gives findings, as `rules.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nearcast.measure.profile import attribute_drift, noise_of, psi_of_share
from nearcast.publishing.audit_values import NOTHING_CURRENT, AuditFigures, AuditRule, CurrentInputs, Finding
from nearcast.spec import AuditSpec

__all__ = ["INPUT_RULES"]

TABLES = {"items": "items", "queries": "queries"}
FEWEST = 30  # rows of both versions; with fewer, nothing is said of single values
FEWEST_NUMBERS = 100  # the same of numbers that are noisy
DEVIATIONS = 4.0  # of the sampling noise, which a difference of shares must exceed
MOST_NAMED = 8
MOST_FACTOR = 2.0  # by which the share of pairs that a rule keeps may change


def _found(rule: str, bound: float | None, worst: float | None, faults: list[str], passed: str) -> Finding:
    """A finding of all columns: passed where there are no faults."""
    text = passed
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        text = "; ".join(faults[:MOST_NAMED]) + more
    return Finding(rule, rule, bound, worst, not faults, text)


def _skipped(judged: AuditFigures) -> str | None:
    """Why nothing can be compared, or None."""
    if judged.current is None:
        return NOTHING_CURRENT
    inputs = judged.current.inputs
    if judged.profile is None:
        return f"{judged.name} was made without a profile of its inputs; run again to have them compared"
    if inputs is None or inputs.profile is None:
        return f"{judged.current.name} was made without a profile of its inputs: the next one can be compared"
    return None


def _tables(judged: AuditFigures) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The tables that both versions have a profile of: name, then, now."""
    inputs = judged.current.inputs if judged.current else None
    if inputs is None or inputs.profile is None or judged.profile is None:
        return
    for name in TABLES:
        if name in inputs.profile and name in judged.profile:
            yield name, inputs.profile[name], judged.profile[name]


def _columns(judged: AuditFigures, settings: AuditSpec) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The columns that both versions have, but for those that are not to be compared: words, then, now."""
    for table, then, now in _tables(judged):
        for name, before in then["attributes"].items():
            if name in now["attributes"] and name not in settings.skip_columns:
                yield f"{name} of the {table}", before, now["attributes"][name]


def _noise(one: float, other: float, n_one: int, n_other: int) -> float:
    """By how much two shares of samples of these sizes may differ by chance."""
    mean = (one + other) / 2
    return DEVIATIONS * math.sqrt(mean * (1 - mean) * (1 / max(1, n_one) + 1 / max(1, n_other)))


def _items(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, n = judged.current, judged.items
    if beside is None or beside.inputs is None:
        return Finding("items", "items", None, n, True, f"it has {n:,} items; {NOTHING_CURRENT}")
    now = beside.inputs.items
    least, most = math.floor(now * (1 - settings.max_items_lost)), math.ceil(now * (1 + settings.max_items_gained))
    text, bound = f"it has {n:,} items, and {beside.name} has {now:,}", least
    if n < least:
        text = (
            f"it has {n:,} items where {beside.name} has {now:,}: {1 - n / now:.2%} are lost, and at most "
            f"{settings.max_items_lost:.2%} may be; look for a part of the items that is missing"
        )
    elif n > most:
        bound = most
        text = (
            f"it has {n:,} items where {beside.name} has {now:,}: {n / max(1, now) - 1:.2%} more, and at most "
            f"{settings.max_items_gained:.2%} may come; look for rows that are there twice"
        )
    return Finding("items", "items", bound, n, least <= n <= most, text)


def _items_kept(judged: AuditFigures, settings: AuditSpec) -> Finding:
    bound, beside = settings.min_items_kept, judged.current
    if beside is None or beside.inputs is None or not beside.inputs.items:
        return Finding("items_kept", "items_kept", bound, None, True, NOTHING_CURRENT)
    n, share = beside.inputs.items, beside.inputs.items_kept
    text = f"of the {n:,} items of {beside.name}, {share:.2%} are in this snapshot too"
    passed = share * n >= math.floor(bound * n) - 1e-6
    if not passed:
        text += f", and {bound:.2%} are asked for; look for a part of the items that is missing, or ids that changed"
    return Finding("items_kept", "items_kept", bound, share, passed, text)


def _bad_rows(judged: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _skipped(judged), settings.max_bad_rows
    faults: list[str] = []
    worst: float | None = None
    for table, then, now in _tables(judged):
        for kind in sorted({*then["faults"], *now["faults"]}):
            before, after = then["faults"].get(kind, 0.0), now["faults"].get(kind, 0.0)
            worst = max(worst or 0.0, after - before)
            if after - before > bound:
                faults.append(
                    f"{kind} in the {table}: {before:.2%} -> {after:.2%} of the rows, and at most {bound:.2%} more may "
                    f"be; look at the export of the {table}"
                )
    return _found("bad_rows", bound, worst, faults, skipped or "no more rows than before fail a check")


def _types(judged: AuditFigures, settings: AuditSpec) -> Finding:
    skipped = _skipped(judged)
    faults = [
        f"ids of the {table}: {then['id_type']} -> {now['id_type']}; write them with the type they had"
        for table, then, now in _tables(judged)
        if then["id_type"] != now["id_type"]
    ]
    faults += [
        f"{what}: {then['type']} -> {now['type']}; write it with the type it had"
        for what, then, now in _columns(judged, settings)
        if then["kind"] != now["kind"] and "null" not in then["kind"] + now["kind"]
    ]
    return _found("types", None, len(faults), faults, skipped or "columns and ids have the types that they had")


def _empty_values(judged: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _skipped(judged), settings.max_empty
    faults, worst = list(_void_columns(judged, settings)), None
    for table, then, now in _tables(judged):
        sizes = then["rows"], now["rows"]
        for name, before in then["attributes"].items():
            after = now["attributes"].get(name)
            if after is None or name in settings.skip_columns:
                continue
            more = after["empty"] - before["empty"]
            worst = max(worst or 0.0, more)
            if more > bound + _noise(before["empty"], after["empty"], *sizes):
                faults.append(
                    f"{name} of the {table}: null or empty in {before['empty']:.2%} -> {after['empty']:.2%} of the "
                    f"rows, and at most {bound:.2%} more may be; look at the export of the {table}"
                )
    return _found("empty_values", bound, worst, faults, skipped or "no column is empty more often than before")


def _void_columns(judged: AuditFigures, settings: AuditSpec) -> Iterator[str]:
    """Columns that a rule compares and that hold nothing, where nothing is there to compare with."""
    if _skipped(judged) is None or judged.profile is None:
        return
    for table, names in judged.rule_columns.items():
        for name in names:
            facts = judged.profile.get(table, judged.profile["items"])["attributes"].get(name)
            if facts is not None and facts["empty"] == 1.0 and name not in settings.skip_columns:
                yield f"{name} of the {table}: null or empty in all rows, and a rule asks for it; fill it"


def _distribution(judged: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _skipped(judged), settings.max_drift
    elapsed = judged.current.inputs.elapsed_seconds if judged.current and judged.current.inputs else 0.0
    faults: list[str] = []
    worst: float | None = None
    for what, then, now in _columns(judged, settings):
        drift = attribute_drift(then, now, elapsed_seconds=elapsed)
        if drift is None:
            continue
        worst = max(worst or 0.0, drift.psi)
        if drift.psi > bound + drift.noise:
            faults.append(
                f"{what}: {drift.what} (PSI {drift.psi:.2f}, and at most {bound + drift.noise:.2f} is allowed for so "
                "many rows); look at units, currency and values of the export"
            )
    return _found("distribution", bound, worst, faults, skipped or "the values of all columns are spread as before")


def _changed_values(judged: AuditFigures, settings: AuditSpec) -> Finding:
    inputs = judged.current.inputs if judged.current else None
    faults: list[str] = []
    worst: float | None = None
    for (table, name), change in (inputs.changes if inputs else {}).items():
        bound = settings.max_values_scaled if change.scaled else settings.max_values_changed
        if name in settings.skip_columns or change.compared < (FEWEST_NUMBERS if change.scaled else FEWEST):
            continue
        worst = max(worst or 0.0, change.share)
        if change.share > bound + _noise(change.share, bound, change.compared, change.compared) / DEVIATIONS:
            way = "three times as much or as little, or more, the same way," if change.scaled else "another value"
            faults.append(
                f"{name} of the {table}: {way} for {change.share:.2%} of the {change.compared:,} {table} of both "
                f"versions, such as {change.example}, and at most {bound:.2%} may; look at the export of the {table}"
            )
    passed = NOTHING_CURRENT if inputs is None else "items and queries of both versions have the values they had"
    return _found("changed_values", settings.max_values_changed, worst, faults, passed)


def _pairs_kept(judged: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _skipped(judged), settings.max_pairs_drift
    faults: list[str] = []
    worst: float | None = None
    rules = (judged.profile or {}).get("rules", {})
    then_rules = _then_rules(judged)
    for name, now in rules.items():
        if now["pairs_kept"] == 0 and now["queries"] * now["items"] and judged.measures.get("fill_rate") == 0:
            faults.append(f"rule {name} keeps no pair at all; look at the columns that it names, or at the rule")
        then = then_rules.get(name)
        if then is None or then.get("keep") != now["keep"]:  # a rule that was rewritten keeps other pairs on purpose
            continue
        value, sizes = psi_of_share(then["pairs_kept"], now["pairs_kept"]), _sizes(then, now)
        worst = max(worst or 0.0, value)
        if _is_far(then, now, value, bound + noise_of(2, *sizes)):
            faults.append(
                f"rule {name} keeps {then['pairs_kept']:.2%} -> {now['pairs_kept']:.2%} of the pairs (PSI {value:.2f}, "
                f"and at most {bound:g} is allowed); look at the columns that it names"
            )
        before, after = (facts["without_items_by_null"] for facts in (then, now))
        if after - before > settings.max_empty + _noise(before, after, *sizes):
            faults.append(
                f"rule {name} leaves {before:.2%} -> {after:.2%} of the queries without items since a value "
                f"is null, and at most {settings.max_empty:.2%} more may be; fill it in the queries"
            )
    passed = skipped or ("rules keep as many pairs as before" if rules else "there are no rules to compare")
    return _found("pairs_kept", bound, worst, faults, passed)


def _then_rules(judged: AuditFigures) -> Mapping[str, Any]:
    inputs = judged.current.inputs if judged.current else None
    rules: Mapping[str, Any] = (inputs.profile or {}).get("rules", {}) if inputs else {}
    return rules


def _sizes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[int, int]:
    """Rows that the shares of pairs rest on: those of the smaller table."""
    return min(then["queries"], then["items"]), min(now["queries"], now["items"])


def _is_far(then: Mapping[str, Any], now: Mapping[str, Any], value: float, bound: float) -> bool:
    """By PSI, or for a rule that keeps few pairs by the factor, where that is no noise."""
    before, after = then["pairs_kept"], now["pairs_kept"]
    far = max(before, after) > MOST_FACTOR * min(before, after)
    return value > bound or (far and abs(after - before) > _noise(before, after, *_sizes(then, now)))


def _vectors(judged: AuditFigures, settings: AuditSpec) -> Finding:
    beside, bound = judged.current, settings.max_vectors_changed
    inputs = beside.inputs if beside else None
    skipped = _skipped(judged)
    if inputs is not None and beside is not None and not inputs.vectors:
        skipped = f"the snapshot folder of {beside.name} is not here, and single vectors are in no other place"
    faults: list[str] = []
    worst: float | None = None
    for table, then, now in _tables(judged):
        if then.get("embedding") != now.get("embedding"):
            skipped = f"the embedding of the {table} is {now.get('embedding')!r} now and was {then.get('embedding')!r}"
            continue
        change = inputs.vectors.get(table) if inputs else None
        if change is not None and change.compared >= FEWEST:
            worst = max(worst or 0.0, change.share)
        faults += _vector_faults(table, then, now, judged, settings, inputs)
    return _found("vectors", bound, worst, faults, skipped or "ids have the vectors that they had")


def _vector_faults(
    table: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    judged: AuditFigures,
    settings: AuditSpec,
    inputs: CurrentInputs | None,
) -> Iterator[str]:
    if then["dim"] != now["dim"]:
        yield f"dimension of the {table}: {then['dim']} -> {now['dim']}; another model made them"
        return
    change, bound = inputs.vectors.get(table) if inputs else None, settings.max_vectors_changed
    if change is not None and change.compared >= FEWEST and change.share > bound:
        yield (
            f"vectors of the {table}: {change.share:.2%} of {change.compared:,} ids have another vector (cosine below "
            f"0.9), and at most {bound:.2%} may; another model, or ids and vectors are shifted against each other"
        )
    before, after = float(then.get("median_length") or 0), float(now.get("median_length") or 0)
    if judged.metric == "cosine" or before == 0:
        return
    factor = max(before, after) / min(before, after) if after > 0 else math.inf
    if factor > settings.max_length_change:
        yield (
            f"vectors of the {table}: median length {before:.6g} -> {after:.6g}, a factor of {factor:.4g}, and at most "
            f"{settings.max_length_change:g} is allowed; scaled or normalized otherwise than before"
        )


INPUT_RULES = (
    AuditRule("items", ("max_items_lost", "max_items_gained"), "number of items, against the current one", _items),
    AuditRule("items_kept", ("min_items_kept",), "current items that the snapshot has too", _items_kept),
    AuditRule("bad_rows", ("max_bad_rows",), "rows that fail a check, by kind", _bad_rows),
    AuditRule("types", (), "types of the ids and of each column", _types),
    AuditRule("empty_values", ("max_empty",), "null or empty values of each column", _empty_values),
    AuditRule("distribution", ("max_drift", "skip_columns"), "PSI of each column's values", _distribution),
    AuditRule(
        "changed_values",
        ("max_values_changed", "max_values_scaled"),
        "values of the items that both versions have",
        _changed_values,
    ),
    AuditRule("pairs_kept", ("max_pairs_drift",), "share of all pairs that each rule keeps", _pairs_kept),
    AuditRule("vectors", ("max_vectors_changed", "max_length_change"), "vectors of the same ids; lengths", _vectors),
)
