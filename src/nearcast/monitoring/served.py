"""How stale the served table is: lists that were looked up, held against the items of today."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.errors import NotFoundError
from nearcast.join.constraints import have_constraints, open_constraints
from nearcast.join.context import RunContext
from nearcast.join.inputs import Inputs, open_sources
from nearcast.join.scored import scored_inputs
from nearcast.join.today import Place, todays_inputs, waiting_for
from nearcast.join.truth import kept_truth
from nearcast.knn.scores import rescore
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query, sample_rows
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.usual import usual
from nearcast.serve.answers import Answers
from nearcast.serve.lookup import open_lookup
from nearcast.serve.sampling import LookedUp, read_looked_up
from nearcast.sources.ids import positions_of
from nearcast.spec import GeneratorSpec
from nearcast.stores.base import Store
from nearcast.types import EMPTY_POSITION, IntArray, Metric

__all__ = ["FEWEST_LOOKUPS", "Served", "check_served", "look_at_served"]

FEWEST_LOOKUPS = 20  # in the window; with fewer, today's queries stand in for them
LEAST_AGE_SECONDS = 6 * 3600.0  # of a table whose decay is told: minutes stretched to days are noise
SHARE_FLOOR = 0.05
PROMISE_SHARE = 0.9
LONGEST_SECONDS = 365 * 86_400.0
UNSEEN = 1 << 62


@dataclass(frozen=True, slots=True)
class Served:
    """What a pass over served lists has found. Shares are of the sample."""

    snapshot: str
    version: int
    age_seconds: float
    sampled: str  # look-ups, or queries: today's, where nobody has looked anything up
    sample: int
    lookups: int  # that the sample stands for
    recall: float | None  # of the lists among today's items; None where no sampled key is a query today
    recall_low: float | None
    recall_high: float | None
    dead: float  # candidates that are no items today
    misses: float  # keys that the table does not have
    fallbacks: float | None  # look-ups that something stood in for; None where none were recorded
    recall_when_made: float
    refresh_seconds: float | None  # how often the table should be made anew; None where it does not get worse

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def look_at_served(run: RunContext, store: Store, samples: Path) -> Served:
    """Hold a sample of the served lists against today's items.

    samples: the folder where services leave the keys that they were asked for. NotFoundError where nothing is
    published.
    """
    spec = run.spec
    home = run.home / "monitor"
    with (
        open_lookup(store, spec.name) as lookup,
        waiting_for(home / ".lock", f"the monitor of {spec.name!r}", run.listener),
    ):
        sources = open_sources(spec, run.base, None, None, run.listener)
        place, inputs = todays_inputs(run, sources, home)
        originals = inputs.items.vectors
        run, inputs = scored_inputs(run, inputs, home)
        constraints = have_constraints(run, inputs, home, originals)
        _tidy(home, place, inputs, constraints)
        keys, looked_up, seen = _keys(spec, inputs, samples)
        answers = lookup.get_many(keys)
        facts = lookup.state.facts
        lists, dead = _positions(answers, inputs)
        recall = _recall(run, inputs, constraints, keys, answers.found, lists, int(facts["k"]))
        made = float(facts["measures"]["recall"])
        age, lowest = answers.age_seconds, lowest_recall(spec)
        return Served(
            snapshot=answers.snapshot,
            version=int(facts["version"]),
            age_seconds=age,
            sampled="look-ups" if looked_up else "queries",
            sample=len(keys),
            lookups=seen,
            recall=None if recall is None else recall.value,
            recall_low=None if recall is None else recall.low,
            recall_high=None if recall is None else recall.high,
            dead=dead,
            misses=float(np.mean(~answers.found)) if len(keys) else 0.0,
            fallbacks=sum(one.stood_in for one in looked_up) / len(looked_up) if looked_up else None,
            recall_when_made=made,
            refresh_seconds=None
            if recall is None
            else refresh_interval(answers.age_seconds, made, recall.value, lowest),
        )


def lowest_recall(spec: GeneratorSpec) -> float:
    """What recall among today's items may fall to."""
    lowest = spec.monitor.min_recall_today
    return PROMISE_SHARE * spec.recall if lowest is None else lowest


def refresh_interval(age_seconds: float, made: float, now: float, lowest: float) -> float | None:
    """How old a table may get until its recall has decayed to the lowest allowed.

    Catalogues turn over by a share a day, so recall decays exponentially: from what it was when the table was made to
    what it is at this age. None where it has not decayed, or is not old enough to tell.
    """
    if age_seconds < LEAST_AGE_SECONDS or not 0 < now < made or lowest >= made:
        return None
    if lowest <= 0:
        return None
    return min(LONGEST_SECONDS, age_seconds * math.log(made / lowest) / math.log(made / now))


def check_served(now: Served, spec: GeneratorSpec, before: Sequence[Mapping[str, Any]]) -> list[Alert]:
    """Judge a pass by the bounds of the spec, and by the passes before it (plain data, oldest first)."""
    return [*_stale(now, spec), *_by_usual(now, before)]


def _stale(now: Served, spec: GeneratorSpec) -> Iterator[Alert]:
    lowest, most_dead, oldest = lowest_recall(spec), spec.monitor.max_dead, spec.audit.max_age_hours * 3600
    refresh = "" if now.refresh_seconds is None else f"; make the table anew every {_days(now.refresh_seconds)}"
    if now.recall is not None and now.recall_high is not None and now.recall_high < lowest:
        text = (
            f"the served lists of {now.snapshot} reach recall {now.recall:.4f} among today's items, {lowest:.4f} is "
            f"the least that is allowed, and it was {now.recall_when_made:.4f} when they were made{refresh}"
        )
        yield Alert("served_recall", text, now.recall, lowest, now.recall_when_made)
    if now.dead > most_dead:
        text = f"{now.dead:.1%} of the served candidates are no items any more, {most_dead:.1%} may be{refresh}"
        yield Alert("dead", text, now.dead, most_dead, None)
    if now.age_seconds > oldest:
        text = (
            f"snapshot {now.snapshot} is {_days(now.age_seconds)} old, {_days(oldest)} are allowed: has the run or the "
            "publish failed, or was it rolled back?"
        )
        yield Alert("age", text, now.age_seconds, oldest, None)


def _by_usual(now: Served, before: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    whats = {"misses": "of the look-ups ask for keys that are not there", "fallbacks": "are answered by something else"}
    for check, what in whats.items():
        value: float | None = getattr(now, check)
        alike = [p[check] for p in before if p.get("sampled") == now.sampled and p.get(check) is not None]
        common = usual(alike, floor=SHARE_FLOOR)
        bound = common.bound(value, "higher") if common is not None and value is not None else None
        if value is not None and common is not None and bound is not None:
            yield Alert(check, f"{value:.1%} {what}, usual is {common.value:.1%}", value, bound, common.value)


def _tidy(home: Path, place: Place, inputs: Inputs, constraints: Path | None) -> None:
    """Remove what was ingested of other days' files."""
    kept = (place.items, place.queries, inputs.items.folder, inputs.queries.folder, constraints)
    for path in [p for kind in ("items-*", "queries-*", "scored*-*", "constraints-*") for p in home.glob(kind)]:
        if path not in kept:
            shutil.rmtree(path)


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:.1f} days" if seconds >= 2 * 86_400 else f"{seconds / 3600:.1f} hours"


def _keys(spec: GeneratorSpec, inputs: Inputs, samples: Path) -> tuple[list[str | int], list[LookedUp], int]:
    """The keys to look at: ones that were looked up, else today's queries; and the look-ups that they stand for."""
    size = spec.monitor.sample
    looked_up, seen = read_looked_up(
        samples, spec.name, since=time.time() - 3600 * spec.monitor.window_hours, size=size, seed=spec.seed
    )
    if len(looked_up) >= FEWEST_LOOKUPS:
        return [one.key for one in looked_up], looked_up, seen
    (rows,) = sample_rows(inputs.queries.vectors.n, (size,), spec.seed)
    return inputs.queries.ids.take(pa.array(rows)).to_pylist(), [], 0


def _positions(answers: Answers, inputs: Inputs) -> tuple[IntArray, float]:
    """(keys, longest) positions of the candidates among today's items, -1 for none; and the share that is gone."""
    lengths = np.diff(answers.offsets)
    positions = np.full((len(answers), max(1, int(lengths.max(initial=1)))), EMPTY_POSITION, np.int64)
    if pa.types.is_integer(answers.ids.type) != pa.types.is_integer(inputs.items.ids.type):
        return positions, 1.0 if len(answers.ids) else 0.0
    slots = np.arange(positions.shape[1])[None, :] < lengths[:, None]
    positions[slots] = positions_of(answers.ids, inputs.items.ids)
    gone = int(np.count_nonzero(positions[slots] == EMPTY_POSITION))
    return positions, gone / max(1, int(lengths.sum()))


def _recall(
    run: RunContext,
    inputs: Inputs,
    constraints: Path | None,
    keys: list[str | int],
    found: npt.NDArray[np.bool_],
    lists: IntArray,
    k: int,
) -> Recall | None:
    """Recall of the lists whose keys are queries today; a key that was looked up twice counts twice, a miss not."""
    if not keys or run.spec.rank is not None:  # a ranking model owes nobody the nearest
        return None
    ids = pa.array(keys)
    if pa.types.is_integer(ids.type) != pa.types.is_integer(inputs.queries.ids.type):
        raise NotFoundError(f"the keys of {run.spec.name} are of another type than today's queries; publish it anew")
    rows = positions_of(ids, inputs.queries.ids)
    there = np.flatnonzero((rows >= 0) & found)
    if not len(there):
        return None
    unique, back = np.unique(rows[there], return_inverse=True)
    truth = kept_truth(
        run.home / "monitor" / "truth",
        inputs.items,
        inputs.queries,
        unique,
        k,
        Metric(run.spec.metric),
        exclude_self=run.spec.exclude_self,
        resources=run.resources,
        progress=lambda _, done, total: run.listener.progress("truth of today", done, total),
        note=run.listener.note,
        constraints=open_constraints(constraints),
    )
    first = np.unique(rows[there], return_index=True)[1]
    queries = inputs.queries.vectors.take(unique)
    scores = rescore(queries, inputs.items.vectors, lists[there][first], Metric(run.spec.metric)).scores
    return estimate_recall(recall_per_query(scores, truth)[back], UNSEEN)
