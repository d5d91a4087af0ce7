"""Checks of the newest run against its promise, and against the runs before it.

Takes the facts of runs and gives alerts; reads no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nearcast.monitoring.alert import Alert
from nearcast.monitoring.usual import FEWEST, Usual, usual

__all__ = ["USUAL_RUNS", "check_runs"]

USUAL_RUNS = 20  # before the newest; what is usual is made of them
MODEL_DRIFT = 0.1  # 1 - cosine between the vectors of the same id
MOST_MOVED = 0.2  # ids whose old vector another id has
LONG_SECONDS = 60.0
LARGE_BYTES = 256e6
SHARE_ZERO = 0.002
SLICE_SCORE = 0.3
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
    since_last: bool = False  # the number says what has changed since the run before


def _measure(name: str) -> Callable[[Facts], float | None]:
    def number(facts: Facts) -> float | None:
        value: float | None = facts["measures"].get(name)
        return value

    return number


def _of_side(side: str, *path: str) -> Callable[[Facts], float | None]:
    def number(facts: Facts) -> float | None:
        value: Any = facts["sides"].get(side)
        for name in path:
            value = None if value is None else value.get(name)
        return None if value is None else float(value)

    return number


def _zeros(side: str) -> Callable[[Facts], float | None]:
    def share(facts: Facts) -> float | None:
        told = facts["sides"].get(side)
        return None if told is None else told["problems"].get("zero_vector", 0) / max(1, told["rows"])

    return share


def _rules_of_side(side: str) -> Iterator[_Rule]:
    norms = "were the vectors normalized, scaled or exported otherwise than before?"
    one = side.removesuffix("s") if side == "items" else "query"
    files = f"are the files of the {side} whole, and of one day?"
    yield _Rule(f"{side}_count", f"{side}", _of_side(side, "vectors"), "either", 10, 0.2, files)
    length = f"median length of {one} vectors"
    yield _Rule(f"{side}_norms", length, _of_side(side, "norms", "p50"), "either", 0, 0.1, norms)
    unit = f"share of {one} vectors of length 1"
    yield _Rule(f"{side}_norms", unit, _of_side(side, "norms", "unit_share"), "either", 0.1, 0, norms)
    zeros = f"an export or a model has left vectors of {side} empty"
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
        "an item has come in many times",
    ),
    _Rule(
        "overlap",
        "overlap",
        _measure("overlap"),
        "lower",
        0.2,
        0,
        "the lists are not those of the last run",
        since_last=True,
    ),
    _Rule("scores", "median score", _measure("score_p50"), "either", 1e-6, 0.15, "do both sides come from one model?"),
    _Rule(
        "scores",
        "median best score",
        _measure("best_score_p50"),
        "either",
        1e-6,
        0.15,
        "do both sides come from one model?",
    ),
    _Rule("fill", "fill rate", _measure("fill_rate"), "lower", 0.02, 0, "there are too few items that a query may get"),
    _Rule(
        "coverage",
        "query coverage",
        _measure("query_coverage"),
        "lower",
        0.02,
        0,
        "queries have no vectors or candidates",
    ),
    _Rule("coverage", "item coverage", _measure("item_coverage"), "lower", 0.15, 0, "a few items fill the lists"),
    _Rule(
        "seconds",
        "seconds of the run",
        lambda f: f["seconds_total"],
        "higher",
        LONG_SECONDS,
        1.0,
        "more data, or a busier machine",
    ),
    _Rule(
        "memory",
        "bytes of memory",
        lambda f: f["peak_memory_bytes"],
        "higher",
        LARGE_BYTES,
        0.5,
        "more data, or a larger budget",
    ),
)


def check_runs(runs: Sequence[Facts], *, last_refused: bool = False) -> list[Alert]:
    """Judge the newest of these runs (their facts, oldest first); the ones before it say what is usual.

    last_refused: the run before was refused by the audit, or rolled back from. What has changed since then is not
    judged: a day that is mended differs from it in all that was wrong.
    """
    if not runs:
        return []
    now, before = runs[-1], runs[-1 - USUAL_RUNS : -1]
    return [*_recall(now, before), *_unusual(now, before, last_refused), *_stale(now, before), *_slices(now, before)]


def _unusual(now: Facts, before: Sequence[Facts], last_refused: bool) -> Iterator[Alert]:
    for rule in RULES:
        if rule.since_last and last_refused:
            continue
        value = rule.number(now)
        known = [number for number in map(rule.number, before) if number is not None]
        common = usual(known, floor=rule.floor, relative=rule.relative)
        bound = None if value is None or common is None else common.bound(value, rule.worse)
        if value is not None and common is not None and bound is not None:
            text = f"{rule.what} is {_shown(value)}, usual is {_shown(common.value)}: {rule.cause}"
            yield Alert(rule.check, text, value, bound, common.value)


def _recall(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Recall below the promise or below its usual value, by the name of its cause where that shows."""
    value, promised = now["measures"]["recall"], now["promise"]["recall"]
    common = usual([facts["measures"]["recall"] for facts in before], floor=0.02)
    bound = common.bound(value, "lower") if common else None
    if now["promise"]["kept"] and bound is None:
        return
    text = f"recall is {value:.4f}, {promised:g} was promised"
    if bound is not None and common is not None:
        text += f", and usual is {common.value:.4f}"
    limit = promised if bound is None else bound
    usual_value = common.value if common else None
    changes = _changes(before[-1]["engine"], now["engine"]) if before else []
    if now["likely_metric"]:
        cause = f"the lists look like those of metric {now['likely_metric']}, and {now['metric']} was asked for"
        yield Alert("metric", f"{text}: {cause}", value, limit, usual_value)
    elif changes:
        yield Alert("effort", f"{text}: {'; '.join(changes)} in the last run", value, limit, usual_value)
    else:
        yield Alert(
            "recall", f"{text}: raise the effort, or look at what has changed in the data", value, limit, usual_value
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the engine is not as it was."""
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
    for side, told in now["sides"].items():
        olds = _seen_again(told["files"], side, before)
        usually = [
            bool(_seen_again(facts["sides"][side]["files"], side, before[:number]))
            for number, facts in enumerate(before)
            if number and side in facts["sides"]
        ]
        if olds and len(olds) < len(told["files"]) and len(usually) >= FEWEST - 1 and sum(usually) < len(usually) / 2:
            names = ", ".join(olds[:3]) + (" and more" if len(olds) > 3 else "")
            text = f"{len(olds)} of {len(told['files'])} files of the {side} are those of an earlier run: {names}"
            yield Alert(f"{side}_stale", text, len(olds), 0, 0)


def _seen_again(files: Mapping[str, str], side: str, before: Sequence[Facts]) -> list[str]:
    seen = {digest for facts in before if side in facts["sides"] for digest in facts["sides"][side]["files"].values()}
    return [name for name, digest in files.items() if digest in seen]


def _slices(now: Facts, before: Sequence[Facts]) -> Iterator[Alert]:
    """Slices that fell below the promise, or whose best scores are not what they were."""
    earlier = [{(s["by"], s["value"]): s for s in facts["slices"]} for facts in before]
    promise = now["promise"]["recall"]
    for part in now["slices"]:
        name = (part["by"], part["value"])
        known = [slices[name] for slices in earlier if name in slices]
        scores = [s["best_score"] for s in known if s["best_score"] is not None]
        if _far_below(part, promise) and 2 * sum(_far_below(s, promise) for s in known) <= len(known):
            text = (
                f"recall of {part['by']} {part['value']} is {part['recall']:.4f} ({part['low']:.4f} to "
                f"{part['high']:.4f}, {part['queries']:,} queries): below the promise of {promise:g}"
            )
            yield Alert("slice", text, part["recall"], promise, None)
        elif part["by"] not in UNSTABLE:
            yield from _slice_score(part, usual(scores, floor=1e-6, relative=SLICE_SCORE))


def _far_below(part: Mapping[str, Any], promise: float) -> bool:
    """Below the promise by more than chance shows among dozens of slices in a year of nights."""
    return bool(part["recall"] + SLICE_WIDTHS * (part["high"] - part["recall"]) < promise)


def _slice_score(part: Mapping[str, Any], common: Usual | None) -> Iterator[Alert]:
    score = part["best_score"]
    bound = common.bound(score, "either") if common is not None and score is not None else None
    if common is None or bound is None:
        return
    text = f"the median best score of {part['by']} {part['value']} is {_shown(score)}, usual is {_shown(common.value)}"
    yield Alert("slice", text + ": are its vectors there, and of the same model?", score, bound, common.value)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
