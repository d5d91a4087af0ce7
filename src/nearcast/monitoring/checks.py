"""Checks of the newest run: recall against its target, and figures, files and slices against earlier runs.

Takes the facts of runs and returns alerts; reads no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nearcast.monitoring.alert import Alert, format_count_title
from nearcast.monitoring.expected_range import (
    COUNT_MARGIN,
    COUNT_SHARE,
    FEWEST,
    RUN_FIGURES,
    ExpectedRange,
    Facts,
    RunFigure,
    estimate_range,
)

__all__ = ["USUAL_RUNS", "check_count", "check_runs"]

USUAL_RUNS = 20  # runs before the newest that give the usual values
SLICE_SCORE = 0.3
SLICE_WIDTHS = 2.0  # of the upper half of the 95% interval: 3.9 deviations
UNSTABLE = ("cells", "items")  # slices with other queries in each run, so their scores differ, too

FIGURE_TITLES: Mapping[str, str] = {  # headlines that hold the figure
    "items_zeros": "{:.1%} of the item vectors are zeros",
    "queries_zeros": "{:.1%} of the query vectors are zeros",
    "copies": "{:.1%} of the candidates are copies of the one before",
    "overlap": "Only {:.0%} of the candidates were in the lists before",
}


def check_runs(runs: Sequence[Facts], *, last_refused: bool = False, served: Facts | None = None) -> list[Alert]:
    """Check the newest of these runs (facts, oldest first); the runs before it give the usual values.

    last_refused: the newest run was compared with a run that the audit refused or that was rolled back. Measures of
    change are not checked then, since a repaired run differs from it in everything that was wrong.
    served: the facts of the served run, if known.
    """
    if not runs:
        return []
    now, before = runs[-1], runs[-1 - USUAL_RUNS : -1]
    alerts = [*_check_recall(now, before), *_check_promises(now), *_check_figures(now, before, last_refused, served)]
    return [*_mark_common_model(now, alerts), *_check_files(now, before), *_check_slices(now, before)]


def _check_promises(now: Facts) -> Iterator[Alert]:
    """Yield one alert if metrics of the run's labels are below their promise."""
    labels = now.get("labels") or {}
    broken = [check for check in labels.get("promises", ()) if not check["kept"]]
    if broken:
        words = [f"{c['metric']} is {c['value']:.4f}, and {c['bound']:g} is promised" for c in broken]
        text = f"by the labels of {labels['labels']['path']}, {'; '.join(words)}"
        yield Alert("labels", text, broken[0]["value"], broken[0]["bound"], None)


def check_count(table: str, found: float, before: float, cause: str) -> Alert | None:
    """Return an alert if the number of items or queries is far from the number in the served version."""
    allowed = max(COUNT_MARGIN, COUNT_SHARE * before)
    if abs(found - before) <= allowed:
        return None
    text = f"the number of {table} is {_format_number(found)}, and {_format_number(before)} are served: {cause}"
    bound = before + (allowed if found > before else -allowed)
    title = format_count_title(table, found, before, served=True)
    return Alert(f"{table}_count", text, found, bound, before, title=title)


def _check_figures(now: Facts, before: Sequence[Facts], last_refused: bool, served: Facts | None) -> Iterator[Alert]:
    """Yield an alert for each figure that is outside its expected range."""
    same_settings = [facts for facts in before if _has_same_settings(facts, now)]
    comparable = _was_compared_with_same_settings(now, before)
    for figure in RUN_FIGURES:
        if figure.since_last and (last_refused or (figure.of_lists and not comparable)):
            continue
        value = figure.number(now)
        runs = same_settings if figure.of_lists else before
        known = [number for number in map(figure.number, runs) if number is not None]
        expected = estimate_range(known, floor=figure.floor, relative=figure.relative)
        bound = None if value is None or expected is None else expected.find_bound(value, figure.worse)
        reference = None if served is None or served is now else figure.number(served)
        counts = figure.check.endswith("_count")
        if value is not None and expected is not None and bound is not None:
            title = _make_title(figure, value, expected.value, reference)
            usual = f"usual is {_format_number(expected.value)}"
            text = f"{figure.what} is {_format_number(value)}, {usual}: {figure.cause}{_name_compared(figure, now)}"
            yield Alert(figure.check, text, value, bound, expected.value, title=title)
        elif counts and expected is None and value is not None and reference is not None:  # too few runs for a median
            alert = check_count(figure.check.removesuffix("_count"), value, reference, figure.cause)
            if alert is not None:
                yield alert


def _make_title(figure: RunFigure, value: float, usual: float, reference: float | None) -> str | None:
    """Return a headline with the figure; None: the headline of the check. reference: the served run's figure."""
    if figure.check in FIGURE_TITLES:
        return FIGURE_TITLES[figure.check].format(value)
    if not figure.check.endswith("_count"):
        return None
    table = figure.check.removesuffix("_count")
    if reference and abs(value - reference) > COUNT_SHARE * reference:
        return format_count_title(table, value, reference, served=True)
    return format_count_title(table, value, usual, served=False) if usual else None


def _name_compared(figure: RunFigure, now: Facts) -> str:
    """Return the end of the sentence on a measure of change: the run that it was compared with."""
    compared = now.get("compared_with")
    if not figure.since_last:
        return ""
    if not compared:
        return " of the run before" if figure.of_lists else ""
    served = ", which was served then" if compared["served"] else ""
    preposition = "of" if figure.of_lists else "than in"
    return f" {preposition} {compared['version']:06d}{served}"


def _has_same_settings(one: Facts, other: Facts) -> bool:
    """Return whether two runs have the same list settings; only k and metric if an older run recorded no more."""
    names = ("k", "metric", *(("settings",) if one.get("settings") and other.get("settings") else ()))
    return all(one.get(name) == other.get(name) for name in names)


def _was_compared_with_same_settings(now: Facts, before: Sequence[Facts]) -> bool:
    """Return whether the newest run was compared with a run of the same settings."""
    version = (now.get("compared_with") or {}).get("version")
    other = next((facts for facts in reversed(before) if version is not None and facts.get("version") == version), None)
    other = before[-1] if other is None and before else other
    return other is None or _has_same_settings(other, now)


def _mark_common_model(now: Facts, alerts: Sequence[Alert]) -> Iterator[Alert]:
    """Give a new model another effect if both tables have it: the lists are consistent then."""
    changed = {alert.check for alert in alerts} & {"items_model", "queries_model"}
    self_join = "queries" not in now.get("sides", {})
    for alert in alerts:
        if alert.check in changed and (len(changed) == 2 or self_join):
            effect = "Lists are those of the new vectors: other candidates and scores than before."
            yield replace(alert, effect=effect)
        else:
            yield alert


def _check_recall(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Yield an alert if recall is below its target or its usual value, under the name of its cause if that is known."""
    measures, target, reached = now["measures"], now["promise"]["recall"], now["promise"]["kept"]
    value, high = measures["recall"], measures.get("recall_high", measures["recall"])
    earlier = [facts["measures"]["recall"] for facts in before if _has_same_settings(facts, now)]
    expected = estimate_range(earlier, floor=0.02)
    bound = expected.find_bound(value, "lower") if expected else None
    if reached and bound is None:
        return
    unproven = not reached and high >= target
    text = f"recall is {value:.4f}, the target is {target:g}"
    if unproven and "recall_low" in measures:
        low = measures["recall_low"]
        text = f"recall is {value:.4f} ({low:.4f} to {high:.4f}), and its lower end must reach {target:g}"
    if bound is not None and expected is not None:
        text += f", and usual is {expected.value:.4f}"
    limit = target if bound is None else bound
    usual = expected.value if expected else None
    changes = _list_engine_changes(before[-1].get("engine") or {}, now.get("engine") or {}) if before else []
    title = "Recall fell, and is still above its target" if reached else "Recall is below the target"
    title = "The sample does not prove the recall target" if unproven else title
    if now.get("likely_metric"):
        cause = f"the lists look like those of metric {now['likely_metric']}, and the spec says {now['metric']}"
        yield Alert("metric", f"{text}: {cause}", value, limit, usual)
    elif changes:
        title = f"{title}, and the search settings have changed"
        yield Alert("effort", f"{text}: {'; '.join(changes)} before", value, limit, usual, title=title)
    else:
        advice = "use higher search parameters, or look for changes in the data"
        yield Alert("recall", f"{text}: {advice}", value, limit, usual, title=title)


def _list_engine_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return sentences on the settings and search parameters of the engine that differ from the run before."""
    if not before or not now:
        return []
    if before["name"] != now["name"]:
        return [f"the engine is {now['name']} and was {before['name']}"]
    return [
        f"{name} is {now[part].get(name)} and was {before[part].get(name)}"
        for part in ("settings", "effort")
        for name in sorted({*before[part], *now[part]})
        if before[part].get(name) != now[part].get(name) and not (part == "effort" and name in now["settings"])
    ]


def _check_files(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Yield an alert for files of an earlier run among new ones, if that is unusual."""
    for table, report in now.get("sides", {}).items():
        files = report.get("files", {})
        stale = _list_known_files(files, table, before)
        usually = [
            bool(_list_known_files(facts["sides"][table].get("files", {}), table, before[:number]))
            for number, facts in enumerate(before)
            if number and table in facts.get("sides", {})
        ]
        if stale and len(stale) < len(files) and len(usually) >= FEWEST - 1 and sum(usually) < len(usually) / 2:
            names = ", ".join(stale[:3]) + (" and more" if len(stale) > 3 else "")
            title = f"{len(stale)} of {len(files)} files of the {table} are those of an earlier run"
            yield Alert(f"{table}_stale", f"{title}: {names}", len(stale), 0, 0, title=title)


def _list_known_files(files: Mapping[str, str], table: str, before: Sequence[Facts]) -> list[str]:
    """Return the names of the files whose hash an earlier run has read."""
    reports = [facts.get("sides", {}).get(table, {}) for facts in before]
    seen = {digest for report in reports for digest in report.get("files", {}).values()}
    return [name for name, digest in files.items() if digest in seen]


def _check_slices(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Yield an alert for each slice below the recall target, or with unusual best scores."""
    runs = [facts for facts in before if _has_same_settings(facts, now)]
    earlier = [{(row["by"], row["value"]): row for row in facts.get("slices", ())} for facts in runs]
    target = now["promise"]["recall"]
    for row in now.get("slices", ()):
        name = (row["by"], row["value"])
        known = [slices[name] for slices in earlier if name in slices]
        scores = [other["best_score"] for other in known if other.get("best_score") is not None]
        below = _is_far_below(row, target)
        if below and 2 * sum(_is_far_below(other, target) for other in known) <= len(known):
            text = (
                f"recall of {row['by']} {row['value']} is {row['recall']:.4f} ({row['low']:.4f} to "
                f"{row['high']:.4f}, {row['queries']:,} queries): below the target of {target:g}"
            )
            title = f"Recall of {row['by']} {row['value']} is below the target"
            effect = "Some of the nearest items are not in the lists of that slice."
            name_of_slice = f"{row['by']}={row['value']}"
            yield Alert("slice", text, row["recall"], target, None, title=title, effect=effect, detail=name_of_slice)
        elif row["by"] not in UNSTABLE:
            yield from _check_slice_score(row, estimate_range(scores, floor=1e-6, relative=SLICE_SCORE))


def _is_far_below(row: Mapping[str, Any], target: float) -> bool:
    """Return whether a slice is below the target by more than chance explains for dozens of slices in a year."""
    return bool(row["recall"] + SLICE_WIDTHS * (row["high"] - row["recall"]) < target)


def _check_slice_score(row: Mapping[str, Any], expected: ExpectedRange | None) -> Iterator[Alert]:
    score = row.get("best_score")
    bound = expected.find_bound(score, "either") if expected is not None and score is not None else None
    if expected is None or bound is None or score is None:
        return
    usual = f"usual is {_format_number(expected.value)}"
    text = (
        f"the median best score of {row['by']} {row['value']} is {_format_number(score)}, {usual}: "
        "are its vectors present, and of the same model?"
    )
    title = f"The best scores of {row['by']} {row['value']} have {'risen' if score > expected.value else 'fallen'}"
    yield Alert("slice", text, score, bound, expected.value, title=title, detail=f"{row['by']}={row['value']}")


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
