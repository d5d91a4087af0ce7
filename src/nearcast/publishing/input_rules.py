"""The rules of the audit that compare inputs: items, columns, pairs that rules keep, vectors.

A missing part of an export, another currency or a renamed value does not stop a join. These rules find them by column
before the pointer moves. They take figures and return findings, as those of `audit_rules.py`; the texts are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nearcast.measure.profile import compare_columns, estimate_noise, share_psi
from nearcast.publishing.audit_values import NOTHING_CURRENT, AuditFigures, AuditRule, CurrentInputs, Finding
from nearcast.spec import AuditSpec

__all__ = ["INPUT_RULES"]

TABLES = ("items", "queries")
FEWEST = 30  # rows of both versions: with fewer, single values are not compared
FEWEST_NUMBERS = 100  # the same for numbers, which vary more
DEVIATIONS = 4.0  # standard deviations of sampling noise that a difference of shares must exceed
MOST_NAMED = 8
MOST_FACTOR = 2.0  # largest change of the share of pairs that a rule keeps


def _make_finding(rule: str, bound: float | None, worst: float | None, faults: list[str], passed: str) -> Finding:
    """Return one finding for all columns; it passes if there are no faults."""
    text = passed
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        text = "; ".join(faults[:MOST_NAMED]) + more
    return Finding(rule, rule, bound, worst, not faults, text)


def _find_skip_reason(figures: AuditFigures) -> str | None:
    """Return why the inputs cannot be compared; None if they can."""
    if figures.current is None:
        return NOTHING_CURRENT
    inputs = figures.current.inputs
    if figures.profile is None:
        return f"{figures.name} was made without a profile of its inputs; run again to have them compared"
    if inputs is None or inputs.profile is None:
        return f"{figures.current.name} was made without a profile of its inputs: the next one can be compared"
    return None


def _iterate_tables(figures: AuditFigures) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each table that both versions have a profile of: name, current profile, new profile."""
    inputs = figures.current.inputs if figures.current else None
    if inputs is None or inputs.profile is None or figures.profile is None:
        return
    for name in TABLES:
        if name in inputs.profile and name in figures.profile:
            yield name, inputs.profile[name], figures.profile[name]


def _iterate_columns(
    figures: AuditFigures, settings: AuditSpec
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield each column of both versions that is not skipped: description, current profile, new profile."""
    for table, then, now in _iterate_tables(figures):
        for name, before in then["attributes"].items():
            if name in now["attributes"] and name not in settings.skip_columns:
                yield f"{name} of the {table}", before, now["attributes"][name]


def _compute_noise(one: float, other: float, n_one: int, n_other: int) -> float:
    """Return the difference of two shares that sampling may cause, for samples of these sizes."""
    mean = (one + other) / 2
    return DEVIATIONS * math.sqrt(mean * (1 - mean) * (1 / max(1, n_one) + 1 / max(1, n_other)))


def _check_items(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, n = figures.current, figures.items
    if current is None or current.inputs is None:
        return Finding("items", "items", None, n, True, f"it has {n:,} items; {NOTHING_CURRENT}")
    now = current.inputs.items
    least, most = math.floor(now * (1 - settings.max_items_lost)), math.ceil(now * (1 + settings.max_items_gained))
    text, bound = f"it has {n:,} items, and {current.name} has {now:,}", least
    if n < least:
        text = (
            f"it has {n:,} items where {current.name} has {now:,}: {1 - n / now:.2%} are lost, and at most "
            f"{settings.max_items_lost:.2%} may be; look for a part of the items that is missing"
        )
    elif n > most:
        bound = most
        text = (
            f"it has {n:,} items where {current.name} has {now:,}: {n / max(1, now) - 1:.2%} more, and at most "
            f"{settings.max_items_gained:.2%} may come; look for rows that are there twice"
        )
    return Finding("items", "items", bound, n, least <= n <= most, text)


def _check_items_kept(figures: AuditFigures, settings: AuditSpec) -> Finding:
    bound, current = settings.min_items_kept, figures.current
    if current is None or current.inputs is None or not current.inputs.items:
        return Finding("items_kept", "items_kept", bound, None, True, NOTHING_CURRENT)
    n, share = current.inputs.items, current.inputs.items_kept
    text = f"of the {n:,} items of {current.name}, {share:.2%} are in this snapshot too"
    passed = share * n >= math.floor(bound * n) - 1e-6
    if not passed:
        text += f", and {bound:.2%} are required; check for missing parts of the items and for changed ids"
    return Finding("items_kept", "items_kept", bound, share, passed, text)


def _check_bad_rows(figures: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _find_skip_reason(figures), settings.max_bad_rows
    faults: list[str] = []
    worst: float | None = None
    for table, then, now in _iterate_tables(figures):
        for kind in sorted({*then["faults"], *now["faults"]}):
            before, after = then["faults"].get(kind, 0.0), now["faults"].get(kind, 0.0)
            worst = max(worst or 0.0, after - before)
            if after - before > bound:
                faults.append(
                    f"{kind} in the {table}: {before:.2%} -> {after:.2%} of the rows, and at most {bound:.2%} more may "
                    f"be; look at the export of the {table}"
                )
    return _make_finding("bad_rows", bound, worst, faults, skipped or "no more rows than before fail a check")


def _check_types(figures: AuditFigures, settings: AuditSpec) -> Finding:
    skipped = _find_skip_reason(figures)
    faults = [
        f"ids of the {table}: {then['id_type']} -> {now['id_type']}; write them with the type they had"
        for table, then, now in _iterate_tables(figures)
        if then["id_type"] != now["id_type"]
    ]
    faults += [
        f"{what}: {then['type']} -> {now['type']}; write it with the type it had"
        for what, then, now in _iterate_columns(figures, settings)
        if then["kind"] != now["kind"] and "null" not in then["kind"] + now["kind"]
    ]
    return _make_finding("types", None, len(faults), faults, skipped or "columns and ids have the types that they had")


def _check_empty_values(figures: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _find_skip_reason(figures), settings.max_empty
    faults, worst = list(_list_empty_columns(figures, settings)), None
    for table, then, now in _iterate_tables(figures):
        sizes = then["rows"], now["rows"]
        for name, before in then["attributes"].items():
            after = now["attributes"].get(name)
            if after is None or name in settings.skip_columns:
                continue
            more = after["empty"] - before["empty"]
            worst = max(worst or 0.0, more)
            if more > bound + _compute_noise(before["empty"], after["empty"], *sizes):
                faults.append(
                    f"{name} of the {table}: null or empty in {before['empty']:.2%} -> {after['empty']:.2%} of the "
                    f"rows, and at most {bound:.2%} more may be; look at the export of the {table}"
                )
    return _make_finding("empty_values", bound, worst, faults, skipped or "no column is empty more often than before")


def _list_empty_columns(figures: AuditFigures, settings: AuditSpec) -> Iterator[str]:
    """Yield the columns that a rule compares and that have no value in any row."""
    if _find_skip_reason(figures) is None or figures.profile is None:
        return
    for table, names in figures.rule_columns.items():
        for name in names:
            facts = figures.profile.get(table, figures.profile["items"])["attributes"].get(name)
            if facts is not None and facts["empty"] == 1.0 and name not in settings.skip_columns:
                yield f"{name} of the {table}: null or empty in all rows, and a rule asks for it; fill it"


def _check_distribution(figures: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _find_skip_reason(figures), settings.max_drift
    elapsed = figures.current.inputs.elapsed_seconds if figures.current and figures.current.inputs else 0.0
    faults: list[str] = []
    worst: float | None = None
    for what, then, now in _iterate_columns(figures, settings):
        drift = compare_columns(then, now, elapsed_seconds=elapsed)
        if drift is None:
            continue
        worst = max(worst or 0.0, drift.psi)
        if drift.psi > bound + drift.noise:
            faults.append(
                f"{what}: {drift.what} (PSI {drift.psi:.2f}, and at most {bound + drift.noise:.2f} is allowed for so "
                "many rows); look at units, currency and values of the export"
            )
    return _make_finding(
        "distribution", bound, worst, faults, skipped or "the values of all columns are spread as before"
    )


def _check_changed_values(figures: AuditFigures, settings: AuditSpec) -> Finding:
    inputs = figures.current.inputs if figures.current else None
    faults: list[str] = []
    worst: float | None = None
    for (table, name), change in (inputs.changes if inputs else {}).items():
        bound = settings.max_values_scaled if change.scaled else settings.max_values_changed
        if name in settings.skip_columns or change.compared < (FEWEST_NUMBERS if change.scaled else FEWEST):
            continue
        worst = max(worst or 0.0, change.share)
        if change.share > bound + _compute_noise(change.share, bound, change.compared, change.compared) / DEVIATIONS:
            change_in_words = "another value"
            if change.scaled:
                change_in_words = "three times as much or as little, or more, the same way,"
            faults.append(
                f"{name} of the {table}: {change_in_words} for {change.share:.2%} of the {change.compared:,} {table} "
                f"of both versions (for example {change.example}), and at most {bound:.2%} may; "
                f"look at the export of the {table}"
            )
    passed = NOTHING_CURRENT if inputs is None else "items and queries of both versions have the values they had"
    return _make_finding("changed_values", settings.max_values_changed, worst, faults, passed)


def _check_pairs_kept(figures: AuditFigures, settings: AuditSpec) -> Finding:
    skipped, bound = _find_skip_reason(figures), settings.max_pairs_drift
    faults: list[str] = []
    worst: float | None = None
    rules = (figures.profile or {}).get("rules", {})
    then_rules = _read_current_rules(figures)
    for name, now in rules.items():
        if now["pairs_kept"] == 0 and now["queries"] * now["items"] and figures.measures.get("fill_rate") == 0:
            faults.append(f"rule {name} keeps no pair at all; look at the columns that it names, or at the rule")
        then = then_rules.get(name)
        if then is None or then.get("keep") != now["keep"]:  # the rule itself was changed
            continue
        value, sizes = share_psi(then["pairs_kept"], now["pairs_kept"]), _sample_sizes(then, now)
        worst = max(worst or 0.0, value)
        if _differs(then, now, value, bound + estimate_noise(2, *sizes)):
            faults.append(
                f"rule {name} keeps {then['pairs_kept']:.2%} -> {now['pairs_kept']:.2%} of the pairs (PSI {value:.2f}, "
                f"and at most {bound:g} is allowed); look at the columns that it names"
            )
        before, after = (facts["without_items_by_null"] for facts in (then, now))
        if after - before > settings.max_empty + _compute_noise(before, after, *sizes):
            faults.append(
                f"rule {name} leaves {before:.2%} -> {after:.2%} of the queries without items since a value "
                f"is null, and at most {settings.max_empty:.2%} more may be; fill it in the queries"
            )
    passed = skipped or ("rules keep as many pairs as before" if rules else "there are no rules to compare")
    return _make_finding("pairs_kept", bound, worst, faults, passed)


def _read_current_rules(figures: AuditFigures) -> Mapping[str, Any]:
    inputs = figures.current.inputs if figures.current else None
    rules: Mapping[str, Any] = (inputs.profile or {}).get("rules", {}) if inputs else {}
    return rules


def _sample_sizes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[int, int]:
    """Return the sample sizes of the two shares of pairs: the rows of the smaller table."""
    return min(then["queries"], then["items"]), min(now["queries"], now["items"])


def _differs(then: Mapping[str, Any], now: Mapping[str, Any], value: float, bound: float) -> bool:
    """Return whether a rule keeps another share of the pairs: by PSI, or by a factor beyond sampling noise."""
    before, after = then["pairs_kept"], now["pairs_kept"]
    far = max(before, after) > MOST_FACTOR * min(before, after)
    return value > bound or (far and abs(after - before) > _compute_noise(before, after, *_sample_sizes(then, now)))


def _check_vectors(figures: AuditFigures, settings: AuditSpec) -> Finding:
    current, bound = figures.current, settings.max_vectors_changed
    inputs = current.inputs if current else None
    skipped = _find_skip_reason(figures)
    if inputs is not None and current is not None and not inputs.vectors:
        skipped = f"the snapshot folder of {current.name} is not here, and single vectors are in no other place"
    faults: list[str] = []
    worst: float | None = None
    for table, then, now in _iterate_tables(figures):
        if then.get("embedding") != now.get("embedding"):
            skipped = f"the embedding of the {table} is {now.get('embedding')!r} now and was {then.get('embedding')!r}"
            continue
        change = inputs.vectors.get(table) if inputs else None
        if change is not None and change.compared >= FEWEST:
            worst = max(worst or 0.0, change.share)
        faults += _list_vector_faults(table, then, now, figures, settings, inputs)
    return _make_finding("vectors", bound, worst, faults, skipped or "ids have the vectors that they had")


def _list_vector_faults(
    table: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    figures: AuditFigures,
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
    if figures.metric == "cosine" or before == 0:
        return
    factor = max(before, after) / min(before, after) if after > 0 else math.inf
    if factor > settings.max_length_change:
        yield (
            f"vectors of the {table}: median length {before:.6g} -> {after:.6g}, a factor of {factor:.4g}, and at most "
            f"{settings.max_length_change:g} is allowed; scaled or normalized otherwise than before"
        )


INPUT_RULES = (
    AuditRule(
        "items", ("max_items_lost", "max_items_gained"), "number of items, against the current one", _check_items
    ),
    AuditRule("items_kept", ("min_items_kept",), "current items that the snapshot has too", _check_items_kept),
    AuditRule("bad_rows", ("max_bad_rows",), "rows that fail a check, by kind", _check_bad_rows),
    AuditRule("types", (), "types of the ids and of each column", _check_types),
    AuditRule("empty_values", ("max_empty",), "null or empty values of each column", _check_empty_values),
    AuditRule("distribution", ("max_drift", "skip_columns"), "PSI of each column's values", _check_distribution),
    AuditRule(
        "changed_values",
        ("max_values_changed", "max_values_scaled"),
        "values of the items that both versions have",
        _check_changed_values,
    ),
    AuditRule("pairs_kept", ("max_pairs_drift",), "share of all pairs that each rule keeps", _check_pairs_kept),
    AuditRule(
        "vectors", ("max_vectors_changed", "max_length_change"), "vectors of the same ids; lengths", _check_vectors
    ),
)
