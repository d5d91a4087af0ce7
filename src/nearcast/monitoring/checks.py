"""Checks of the newest run against its promise, and against the runs before it.

Takes the facts of runs and gives alerts; reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nearcast.monitoring.alert import Alert
from nearcast.monitoring.alert_text import count_title
from nearcast.monitoring.expected_range import FEWEST, Usual, usual

__all__ = ["USUAL_RUNS", "check_runs", "count_alert"]

USUAL_RUNS = 20  # before the newest; what is usual is made of them
MODEL_DRIFT = 0.1  # 1 - cosine between the vectors of the same id
MOST_MOVED = 0.2  # ids whose old vector another id has
LONG_SECONDS = 60.0
LARGE_BYTES = 256e6
SHARE_ZERO = 0.002
SLICE_SCORE = 0.3
COUNT_FLOOR, COUNT_SHARE = 10, 0.2  # of the number of items or queries: more is a jump
SLICE_WIDTHS = 2.0  # of the upper half of the 95% interval: 3.9 deviations
UNSTABLE = ("cells", "items")  # slices whose queries are others every night, so that their scores are too

Facts = Mapping[str, Any]
Worse = Literal["higher", "lower", "either"]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A number of a run that is compared with its usual value."""

    check: str
    what: str
    number: Callable[[Facts], float | None]
    worse: Worse
    floor: float
    relative: float
    cause: str
    since_last: bool = False  # the number says what has changed since an earlier run
    of_lists: bool = False  # compared only with runs by the same settings: k, metric, rules


def _measure(name: str) -> Callable[[Facts], float | None]:
    def number(facts: Facts) -> float | None:
        value: float | None = facts.get("measures", {}).get(name)
        return value

    return number


def _of_side(side: str, *path: str) -> Callable[[Facts], float | None]:
    def number(facts: Facts) -> float | None:
        value: Any = facts.get("sides", {}).get(side)
        for name in path:
            value = None if value is None else value.get(name)
        return None if value is None else float(value)

    return number


def _zeros(side: str) -> Callable[[Facts], float | None]:
    def share(facts: Facts) -> float | None:
        read = facts.get("sides", {}).get(side) or {}
        return read["problems"].get("zero_vector", 0) / max(1, read["rows"]) if "rows" in read else None

    return share


def _rules_of_side(side: str) -> Iterator[_Rule]:
    norms = "were the vectors normalized, scaled or exported otherwise than before?"
    one = side.removesuffix("s") if side == "items" else "query"
    files = f"are the files of the {side} whole, and of one day?"
    yield _Rule(
        f"{side}_count", f"the number of {side}", _of_side(side, "vectors"), "either", COUNT_FLOOR, COUNT_SHARE, files
    )
    length = f"median length of {one} vectors"
    yield _Rule(f"{side}_norms", length, _of_side(side, "norms", "p50"), "either", 0, 0.1, norms)
    unit = f"share of {one} vectors of length 1"
    yield _Rule(f"{side}_norms", unit, _of_side(side, "norms", "unit_share"), "either", 0.1, 0, norms)
    zeros = f"has an export or a model left vectors of {side} empty?"
    yield _Rule(f"{side}_zeros", f"share of {one} vectors of zeros", _zeros(side), "higher", SHARE_ZERO, 0, zeros)
    drift = f"drift of {one} vectors"
    model = f"the vectors of the {side} are those of another model, or of other weights"
    yield _Rule(f"{side}_model", drift, _measure(f"{side}_drift"), "higher", MODEL_DRIFT, 0, model, since_last=True)
    moved = f"share of {side} whose old vector belongs to another id now"
    ids = f"ids and vectors of the {side} are shifted against each other"
    yield _Rule(f"{side}_ids", moved, _measure(f"{side}_moved"), "higher", MOST_MOVED, 0, ids, since_last=True)
    shift = f"shift of the mean {one} vector"
    part = f"another mix of {side}, or a part of them is missing"
    yield _Rule(f"{side}_shift", shift, _measure(f"{side}_shift"), "higher", 0.25, 0, part, since_last=True)


RULES = (
    *_rules_of_side("items"),
    *_rules_of_side("queries"),
    _Rule(
        "copies",
        "share of copies in the lists",
        _measure("repeats"),
        "higher",
        0.003,
        0,
        "has an item come in many times?",
        of_lists=True,
    ),
    _Rule(
        "overlap",
        "overlap",
        _measure("overlap"),
        "lower",
        0.2,
        0,
        "the lists are not those",
        since_last=True,
        of_lists=True,
    ),
    *(
        _Rule("scores", what, _measure(name), "either", 1e-6, 0.15, "do both sides come from one model?", of_lists=True)
        for what, name in (("median score", "score_p50"), ("median best score", "best_score_p50"))
    ),
    _Rule(
        "fill",
        "fill rate",
        _measure("fill_rate"),
        "lower",
        0.02,
        0,
        "too few items are there, or pass the rules, caps and least score",
        of_lists=True,
    ),
    _Rule(
        "coverage",
        "query coverage",
        _measure("query_coverage"),
        "lower",
        0.02,
        0,
        "queries have no vectors or candidates",
        of_lists=True,
    ),
    _Rule(
        "coverage",
        "item coverage",
        _measure("item_coverage"),
        "lower",
        0.15,
        0,
        "fewer items appear in a list",
        of_lists=True,
    ),
    _Rule(
        "seconds",
        "seconds of the run",
        lambda f: f.get("seconds_total"),
        "higher",
        LONG_SECONDS,
        1.0,
        "was there more data, or other work on the machine?",
        of_lists=True,
    ),
    _Rule(
        "memory",
        "bytes of memory",
        lambda f: f.get("peak_memory_bytes"),
        "higher",
        LARGE_BYTES,
        0.5,
        "was there more data, or a larger budget?",
        of_lists=True,
    ),
)


def check_runs(runs: Sequence[Facts], *, last_refused: bool = False, served: Facts | None = None) -> list[Alert]:
    """Judge the newest of these runs (their facts, oldest first); the ones before it say what is usual.

    last_refused: what the newest run was compared with was refused by the audit, or rolled back from. What has changed
    since then is not judged: a day that is mended differs from it in all that was wrong.
    served: the facts of the run that is served, where it is known.
    """
    if not runs:
        return []
    now, before = runs[-1], runs[-1 - USUAL_RUNS : -1]
    alerts = [*_recall(now, before), *_unusual(now, before, last_refused, served)]
    return [*_on_both_sides(now, alerts), *_stale(now, before), *_slices(now, before)]


def count_alert(side: str, found: float, before: float, cause: str) -> Alert | None:
    """Return an alert where a number of items or queries is far from that of the served version."""
    allowed = max(COUNT_FLOOR, COUNT_SHARE * before)
    if abs(found - before) <= allowed:
        return None
    text = f"the number of {side} is {_shown(found)}, and {_shown(before)} are served: {cause}"
    bound = before + (allowed if found > before else -allowed)
    return Alert(f"{side}_count", text, found, bound, before, title=count_title(side, found, before, served=True))


def _unusual(now: Facts, before: Sequence[Facts], last_refused: bool, served: Facts | None) -> Iterator[Alert]:
    alike = [facts for facts in before if _same_settings(facts, now)]
    for rule in RULES:
        if rule.since_last and (last_refused or (rule.of_lists and not _compared_alike(now, before))):
            continue
        value = rule.number(now)
        known = [number for number in map(rule.number, alike if rule.of_lists else before) if number is not None]
        common = usual(known, floor=rule.floor, relative=rule.relative)
        bound = None if value is None or common is None else common.bound(value, rule.worse)
        reference = None if served is None or served is now else rule.number(served)
        counts = rule.check.endswith("_count")
        if value is not None and common is not None and bound is not None:
            text = f"{rule.what} is {_shown(value)}, usual is {_shown(common.value)}: {rule.cause}{_than(rule, now)}"
            title = _title(rule, value, common.value, reference) if counts or rule.check in FIGURES else None
            yield Alert(rule.check, text, value, bound, common.value, title=title)
        elif counts and common is None and value is not None and reference is not None:  # too few nights for a median
            found = count_alert(rule.check.removesuffix("_count"), value, reference, rule.cause)
            if found is not None:
                yield found


FIGURES: Mapping[str, str] = {  # titles with the figure in them
    "items_zeros": "{:.1%} of the item vectors are zeros",
    "queries_zeros": "{:.1%} of the query vectors are zeros",
    "copies": "{:.1%} of the candidates are copies of the one before",
    "overlap": "Only {:.0%} of the candidates are those of before",
}


def _title(rule: _Rule, value: float, common: float, reference: float | None) -> str | None:
    if rule.check in FIGURES:
        return FIGURES[rule.check].format(value)
    if reference and abs(value - reference) > COUNT_SHARE * reference:
        return count_title(rule.check.removesuffix("_count"), value, reference, served=True)
    return count_title(rule.check.removesuffix("_count"), value, common, served=False) if common else None


def _than(rule: _Rule, now: Facts) -> str:
    """What a measure of change was compared with."""
    with_ = now.get("compared_with")
    if not rule.since_last:
        return ""
    if not with_:
        return " of the run before" if rule.of_lists else ""
    served = ", which was served then" if with_["served"] else ""
    return f" of {with_['version']:06d}{served}" if rule.of_lists else f" than in {with_['version']:06d}{served}"


def _same_settings(one: Facts, other: Facts) -> bool:
    """Whether the lists of two runs were made by the same settings; by k and metric where older runs keep no more."""
    names = ("k", "metric", *(("settings",) if one.get("settings") and other.get("settings") else ()))
    return all(one.get(name) == other.get(name) for name in names)


def _compared_alike(now: Facts, before: Sequence[Facts]) -> bool:
    """Whether the run that the newest was compared with was made by the same settings."""
    version = (now.get("compared_with") or {}).get("version")
    other = next((facts for facts in reversed(before) if version is not None and facts.get("version") == version), None)
    other = before[-1] if other is None and before else other
    return other is None or _same_settings(other, now)


def _on_both_sides(now: Facts, alerts: Sequence[Alert]) -> Iterator[Alert]:
    """A model that has changed on both sides leaves lists that belong together."""
    changed = {alert.check for alert in alerts} & {"items_model", "queries_model"}
    joined_with_itself = "queries" not in now.get("sides", {})
    for alert in alerts:
        if alert.check in changed and (len(changed) == 2 or joined_with_itself):
            effect = "Lists are those of the new vectors: other candidates and scores than before."
            yield replace(alert, effect=effect)
        else:
            yield alert


def _recall(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Recall below its target or below its usual value, by the name of its cause where that shows."""
    measures, target, kept = now["measures"], now["promise"]["recall"], now["promise"]["kept"]
    value, high = measures["recall"], measures.get("recall_high", measures["recall"])
    alike = [facts for facts in before if _same_settings(facts, now)]
    common = usual([facts["measures"]["recall"] for facts in alike], floor=0.02)
    bound = common.bound(value, "lower") if common else None
    if kept and bound is None:
        return
    text = f"recall is {value:.4f}, {target:g} was promised"
    if not kept and high >= target and "recall_low" in measures:
        low = measures["recall_low"]
        text = f"recall is {value:.4f} ({low:.4f} to {high:.4f}), and its lower end must reach {target:g}"
    if bound is not None and common is not None:
        text += f", and usual is {common.value:.4f}"
    limit = target if bound is None else bound
    usual_value = common.value if common else None
    changes = _changes(before[-1].get("engine") or {}, now.get("engine") or {}) if before else []
    title = "Recall fell, and is still above its target" if kept else "Recall is below the target"
    if not kept and high >= target:
        title = "The sample does not prove the recall target"
    if now.get("likely_metric"):
        cause = f"the lists look like those of metric {now['likely_metric']}, and {now['metric']} was asked for"
        yield Alert("metric", f"{text}: {cause}", value, limit, usual_value)
    elif changes:
        because = f"{title}, and the search settings have changed"
        yield Alert("effort", f"{text}: {'; '.join(changes)} before", value, limit, usual_value, title=because)
    else:
        way = "raise the effort, or look at what has changed in the data"
        yield Alert("recall", f"{text}: {way}", value, limit, usual_value, title=title)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the engine is not as it was."""
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


def _stale(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Files of an earlier run among new ones, where that is not usual."""
    for side, read in now.get("sides", {}).items():
        files = read.get("files", {})
        olds = _seen_again(files, side, before)
        usually = [
            bool(_seen_again(facts["sides"][side].get("files", {}), side, before[:number]))
            for number, facts in enumerate(before)
            if number and side in facts.get("sides", {})
        ]
        if olds and len(olds) < len(files) and len(usually) >= FEWEST - 1 and sum(usually) < len(usually) / 2:
            names = ", ".join(olds[:3]) + (" and more" if len(olds) > 3 else "")
            text = f"{len(olds)} of {len(files)} files of the {side} are those of an earlier run: {names}"
            title = f"{len(olds)} of {len(files)} files of the {side} are those of an earlier run"
            yield Alert(f"{side}_stale", text, len(olds), 0, 0, title=title)


def _seen_again(files: Mapping[str, str], side: str, before: Sequence[Facts]) -> list[str]:
    sides = [facts.get("sides", {}).get(side, {}) for facts in before]
    seen = {digest for read in sides for digest in read.get("files", {}).values()}
    return [name for name, digest in files.items() if digest in seen]


def _slices(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Slices that fell below the promise, or whose best scores are not what they were."""
    alike = [facts for facts in before if _same_settings(facts, now)]
    earlier = [{(s["by"], s["value"]): s for s in facts.get("slices", ())} for facts in alike]
    promise = now["promise"]["recall"]
    for part in now.get("slices", ()):
        name = (part["by"], part["value"])
        known = [slices[name] for slices in earlier if name in slices]
        scores = [s["best_score"] for s in known if s.get("best_score") is not None]
        if _far_below(part, promise) and 2 * sum(_far_below(s, promise) for s in known) <= len(known):
            text = (
                f"recall of {part['by']} {part['value']} is {part['recall']:.4f} ({part['low']:.4f} to "
                f"{part['high']:.4f}, {part['queries']:,} queries): below the promise of {promise:g}"
            )
            title = f"Recall of {part['by']} {part['value']} is below the target"
            effect = "Some of the nearest items are not in the lists of that group."
            yield Alert("slice", text, part["recall"], promise, None, title=title, effect=effect)
        elif part["by"] not in UNSTABLE:
            yield from _slice_score(part, usual(scores, floor=1e-6, relative=SLICE_SCORE))


def _far_below(part: Mapping[str, Any], promise: float) -> bool:
    """Below the promise by more than chance shows among dozens of slices in a year of nights."""
    return bool(part["recall"] + SLICE_WIDTHS * (part["high"] - part["recall"]) < promise)


def _slice_score(part: Mapping[str, Any], common: Usual | None) -> Iterator[Alert]:
    score = part.get("best_score")
    bound = common.bound(score, "either") if common is not None and score is not None else None
    if common is None or bound is None or score is None:
        return
    text = f"the median best score of {part['by']} {part['value']} is {_shown(score)}, usual is {_shown(common.value)}"
    title = f"The best scores of {part['by']} {part['value']} have {'risen' if score > common.value else 'fallen'}"
    text += ": are its vectors there, and of the same model?"
    yield Alert("slice", text, score, bound, common.value, title=title)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
