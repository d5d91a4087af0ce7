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
import pyarrow as pa

from nearcast.engines.base import JoinRequest
from nearcast.join.compile_constraints import build_constraints, open_constraints
from nearcast.join.context import RunContext
from nearcast.join.current_tables import open_current_inputs, wait_for_lock
from nearcast.join.inputs import open_sources
from nearcast.join.score_terms import apply_score_terms
from nearcast.knn.scores import rescore
from nearcast.measure.recall import Recall, estimate_recall, recall_per_query, sample_rows
from nearcast.measure.sampled_recall import find_truth
from nearcast.measure.truth import TruthCache
from nearcast.monitoring.alert import Alert
from nearcast.monitoring.checks import count_alert
from nearcast.monitoring.expected_range import usual
from nearcast.monitoring.surviving_neighbors import truth_without
from nearcast.serve.key_sampling import LookedUp, read_looked_up
from nearcast.serve.lookup import open_lookup
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.view import StoredLists, View
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.stores.base import Space, Store
from nearcast.stores.value_format import encode_key
from nearcast.types import EMPTY_POSITION, IntArray, Neighbors

__all__ = ["FEWEST_LOOKUPS", "Served", "check_served", "look_at_served"]

FEWEST_LOOKUPS = 20  # in the window; with fewer, today's queries stand in for them
LEAST_AGE_SECONDS = 6 * 3600.0  # of a table whose decay is told: minutes stretched to days are noise
SHARE_FLOOR = 0.05
PROMISE_SHARE = 0.9
LONGEST_SECONDS = 365 * 86_400.0
UNSEEN = 1 << 62
MOST_REMOVED = 0.5  # of the candidates, by the overlay: most of a list is not shown
MOST_SOUGHT = 5_000  # missed neighbors that are looked up in the served version


@dataclass(frozen=True, slots=True)
class Served:
    """What a pass over served lists has found. Shares are of the sample."""

    snapshot: str
    version: int
    age_seconds: float
    sampled: str  # look-ups, or queries: today's, where nobody has looked anything up
    sample: int
    lookups: int  # that the sample stands for
    recall: float | None  # of the lists among today's items that are not removed; None where it cannot be measured
    recall_low: float | None
    recall_high: float | None
    dead: float  # candidates that are no items today; those that the overlay has removed do not count
    misses: float  # keys that the table does not have
    fallbacks: float | None  # look-ups that were answered by something else; None where none were recorded
    recall_when_made: float
    refresh_seconds: float | None  # how often the table should be made anew; None where it does not get worse
    removed: float = 0.0  # candidates of the stored lists that the overlay has removed
    removed_items: int = 0  # items that the overlay removes now
    missed_new: float | None = None  # of the neighbors that are missed, those that the served version has never had
    metric: str | None = None  # that the lists were made by
    not_compared: str | None = None  # why recall cannot be measured
    items_today: int | None = None
    items_served: int | None = None  # that the served version holds

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Compared:
    """Recall of served lists among today's items."""

    recall: Recall | None = None
    missed_new: float | None = None
    reason: str | None = None  # why there is no recall


def look_at_served(run: RunContext, store: Store, samples: Path) -> Served:
    """Compare a sample of the served lists with today's items.

    Items that the overlay has removed are no candidates: they are missing from the lists and from the truth alike.
    Rules of the request are not applied, since no request is there.
    samples: the folder where services leave the keys that they were asked for. NotFoundError where nothing is
    published.
    """
    spec = run.spec
    home = run.workspace.home / "monitor"
    with (
        open_lookup(store, spec.name) as lookup,
        wait_for_lock(home / ".lock", f"the monitor of {spec.name!r}", run.listener),
    ):
        sources = open_sources(spec, run.workspace.base, run.listener)
        ingested = open_current_inputs(run, sources, home)
        inputs = apply_score_terms(spec, ingested, home)
        constraints = build_constraints(run, inputs, home, ingested.items.vectors)
        _tidy(home, ingested, inputs, constraints)
        keys, looked_up, seen = _keys(spec, inputs, samples)
        return lookup.ask(lambda view: _judged(run, inputs, constraints, view, keys, looked_up, seen))


def _judged(
    run: RunContext,
    inputs: Inputs,
    constraints: Path | None,
    view: View,
    keys: list[str | int],
    looked_up: list[LookedUp],
    seen: int,
) -> Served:
    facts, now = view.version.facts, time.time()
    stored = view.stored(keys, now)
    positions, dead = _positions(stored, inputs)
    compared = _compare(run, inputs, constraints, view, stored, positions, now)
    made, recall = float(facts.measures["recall"]), compared.recall
    age = view.age_seconds
    decay = None if recall is None else refresh_interval(age, made, recall.value, lowest_recall(run.spec))
    return Served(
        snapshot=view.snapshot,
        version=facts.version,
        age_seconds=age,
        sampled="look-ups" if looked_up else "queries",
        sample=len(keys),
        lookups=seen,
        recall=None if recall is None else recall.value,
        recall_low=None if recall is None else recall.low,
        recall_high=None if recall is None else recall.high,
        dead=dead,
        misses=float(np.mean(~stored.found)) if len(keys) else 0.0,
        fallbacks=sum(one.stood_in for one in looked_up) / len(looked_up) if looked_up else None,
        recall_when_made=made,
        refresh_seconds=decay,
        removed=len(stored.removed) / max(1, len(stored.ids)),
        removed_items=len(view.overlay.removed_now(now)),
        missed_new=compared.missed_new,
        metric=str(facts.metric),
        not_compared=compared.reason,
        items_today=inputs.items.vectors.n,
        items_served=facts.items or None,
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
    if now.items_today is not None and now.items_served and now.items_today < now.items_served:
        cause = f"are today's files of the items whole? {now.snapshot} is served"
        missing = count_alert("items", now.items_today, now.items_served, cause)
        if missing is not None:
            yield missing
    if now.not_compared is not None:
        text = f"the lists of {now.snapshot} cannot be compared with today's items: {now.not_compared}"
        yield Alert("served_spec", text, None, None, None)
    if now.recall is not None and now.recall_high is not None and now.recall_high < lowest:
        title, effect, cause = _why_missed(now, lowest)
        text = (
            f"the served lists of {now.snapshot} reach recall {now.recall:.4f} among today's items, {lowest:.4f} is "
            f"the least that is allowed, and it was {now.recall_when_made:.4f} when they were made{cause}{refresh}"
        )
        yield Alert("served_recall", text, now.recall, lowest, now.recall_when_made, title=title, effect=effect)
    other_ids = now.not_compared is not None and now.dead == 1.0  # no candidate is gone where none can be found
    if now.dead > most_dead and not other_ids:
        text = (
            f"{now.dead:.1%} of the served candidates are not among the items of today, {most_dead:.1%} may be{refresh}"
        )
        yield Alert("dead", text, now.dead, most_dead, None)
    if now.removed > MOST_REMOVED:
        text = (
            f"the overlay removes {now.removed_items:,} items, and with them {now.removed:.1%} of the candidates of "
            f"the served lists of {now.snapshot}: they are shorter by that"
        )
        yield Alert("removed", text, now.removed, MOST_REMOVED, None)
    if now.age_seconds > oldest:
        text = f"snapshot {now.snapshot} is {_days(now.age_seconds)} old, {_days(oldest)} are allowed"
        yield Alert("age", text, now.age_seconds, oldest, None)


def _why_missed(now: Served, lowest: float) -> tuple[str, str, str]:
    """Title, effect and cause of a recall that is too low, by what is missed."""
    if now.recall_when_made < lowest:
        title = "Served lists were below the recall target when they were made"
        return title, "Some of the nearest items are not in the lists.", "; the target was changed, or not reached then"
    share = now.missed_new
    if share is not None and share >= 0.5:
        cause = f"; {share:.0%} of the neighbors that they miss are items that came since"
        return "Served lists miss what is new", "Items that came since are in no list.", cause
    assert now.recall is not None
    if now.dead >= 0.5 * (1 - now.recall):
        return "Served lists hold items that are gone", "Places in the lists are taken by items that are gone.", ""
    cause = "" if share is None else f"; {1 - share:.0%} of the neighbors that they miss were items then too"
    title = "Served lists are not the nearest any more"
    return title, "The vectors have changed since: other items are nearest now.", f"{cause}: the vectors have changed"


def _by_usual(now: Served, before: Sequence[Mapping[str, Any]]) -> Iterator[Alert]:
    lookups = now.sampled == "look-ups"
    missed = (
        "of the look-ups ask for keys that the table does not have" if lookups else "of today's queries have no list"
    )
    whats = {"misses": missed, "fallbacks": "of the look-ups were answered by something else than the key's own list"}
    for check, what in whats.items():
        value: float | None = getattr(now, check)
        alike = [p[check] for p in before if p.get("sampled") == now.sampled and p.get(check) is not None]
        common = usual(alike, floor=SHARE_FLOOR)
        bound = common.bound(value, "higher") if common is not None and value is not None else None
        title = None if lookups or check != "misses" else "Queries of today are not in the served table"
        if value is not None and common is not None and bound is not None:
            text = f"{value:.1%} {what}, usual is {common.value:.1%}"
            yield Alert(check, text, value, bound, common.value, title=title)
        elif check == "misses" and value == 1.0 and now.sample and (common is None or common.value < 1.0):
            text = (
                f"none of the {now.sample:,} {'keys that were looked up' if lookups else 'queries of today'} is in the "
            )
            text += f"served table {now.snapshot}: are their ids those of another system?"
            yield Alert(check, text, value, None, None if common is None else common.value, title=title)


def _tidy(home: Path, ingested: Inputs, inputs: Inputs, constraints: Path | None) -> None:
    """Remove what was ingested of other days' files."""
    tables = (ingested.items, ingested.queries, inputs.items, inputs.queries)
    kept = (*(table.folder for table in tables), constraints)
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


def _positions(stored: StoredLists, inputs: Inputs) -> tuple[IntArray, float]:
    """(keys, longest) positions of the candidates among today's items, -1 for none; and the share that is gone.

    Candidates that the overlay has removed are left out of both.
    """
    left = np.ones(len(stored.ids), np.bool_)
    left[stored.removed] = False
    lengths = np.diff(stored.offsets)
    positions = np.full((len(lengths), max(1, int(lengths.max(initial=1)))), EMPTY_POSITION, np.int64)
    if pa.types.is_integer(stored.ids.type) != pa.types.is_integer(inputs.items.ids.type):
        return positions, 1.0 if left.any() else 0.0
    flat = np.where(left, positions_of(stored.ids, inputs.items.ids), EMPTY_POSITION)
    slots = np.arange(positions.shape[1])[None, :] < lengths[:, None]
    positions[slots] = flat
    return positions, int(np.count_nonzero(left & (flat == EMPTY_POSITION))) / max(1, int(left.sum()))


def _compare(
    run: RunContext,
    inputs: Inputs,
    constraints: Path | None,
    view: View,
    stored: StoredLists,
    lists: IntArray,
    now: float,
) -> _Compared:
    """Recall of the lists whose keys are queries today; a key that was looked up twice counts twice, a miss not.

    A list from which the overlay has removed r candidates is asked for r fewer true neighbors.
    """
    facts = view.version.facts
    for what, then, today in (
        ("ids of the queries are", facts.query_ids, _kind(inputs.queries.ids)),
        (
            "ids of the items are",
            facts.item_ids,
            "int64" if pa.types.is_integer(inputs.items.ids.type) else "string",
        ),
        ("metric is", str(facts.metric), str(run.spec.metric)),
    ):
        if then != today:
            return _Compared(reason=f"the {what} {today} today and {then} in the served version; run and publish")
    if not len(stored.found) or run.spec.rank is not None:  # a ranking model owes nobody the nearest
        return _Compared()
    keys = [convert_key(key, view.version.query_ids) for key in stored.keys]
    known = np.flatnonzero(np.array([key is not None for key in keys], np.bool_))
    ids = pa.array([keys[place] for place in known], inputs.queries.ids.type)
    rows = np.full(len(keys), EMPTY_POSITION, np.int64)
    rows[known] = positions_of(ids, inputs.queries.ids)
    depths = _depths(stored, facts.k)
    there = np.flatnonzero((rows >= 0) & stored.found & (depths > 0))
    if not len(there):
        return _Compared()
    unique, first, back = np.unique(rows[there], return_index=True, return_inverse=True)
    truth = _truth(run, inputs, constraints, unique, depths[there][first], view.overlay.removed_now(now))
    lists = lists[there][first]
    queries = inputs.queries.vectors.take(unique)
    scores = rescore(queries, inputs.items.vectors, lists, inputs.metric).scores
    shares = recall_per_query(scores, truth)
    missed = _missed_new(view, inputs, lists[shares < 1], truth.positions[shares < 1])
    return _Compared(estimate_recall(shares[back], UNSEEN), missed)


def _kind(ids: pa.Array) -> str:
    return "int64" if pa.types.is_integer(ids.type) else "string"


def _depths(stored: StoredLists, k: int) -> IntArray:
    """(n,) how many candidates each list can still show: k, less what the overlay takes of the stored ones."""
    lengths = np.diff(stored.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    removed = np.bincount(owner[stored.removed], minlength=len(lengths))
    depths: IntArray = np.minimum(k, np.maximum(lengths, k) - removed)
    return depths


def _truth(
    run: RunContext,
    inputs: Inputs,
    constraints: Path | None,
    rows: IntArray,
    depths: IntArray,
    removed_ids: Sequence[str | int],
) -> Neighbors:
    """The exact neighbors of these queries among today's items that the overlay has not removed."""
    items = inputs.items
    removed = np.zeros(items.vectors.n, np.bool_)
    if len(removed_ids):
        places = positions_of(pa.array(removed_ids, items.ids.type), items.ids)
        removed[places[places >= 0]] = True
    cache = TruthCache(run.workspace.home / "monitor" / "truth", run.listener.note)
    rules = open_constraints(constraints)

    def report(_stage: str, done: int, total: int) -> None:
        run.listener.progress("truth of today", done, total)

    def ask(some: IntArray, width: int) -> Neighbors:
        request = JoinRequest(inputs.metric, width, exclude_self=run.spec.exclude_self, constraints=rules)
        if len(some) < len(rows):  # the second round, of few queries
            return find_truth(inputs, some, request, run.resources, report)
        return cache.find(inputs, some, request, run.resources, report)

    return truth_without(removed, rows, depths, ask)


def _missed_new(view: View, inputs: Inputs, lists: IntArray, truth: IntArray) -> float | None:
    """Of the true neighbors that the lists miss, the share that the served version does not hold; None for no miss."""
    row = np.arange(len(truth))[:, None] * (inputs.items.vectors.n + 1)
    missed = truth[(truth >= 0) & ~np.isin(row + truth, (row + lists)[lists >= 0])]
    if not len(missed) or not view.version.facts.items:
        return None
    unique, counts = np.unique(missed, return_counts=True)
    if len(unique) > MOST_SOUGHT:
        chosen = np.sort(np.argsort(-counts, kind="stable")[:MOST_SOUGHT])
        unique, counts = unique[chosen], counts[chosen]
    ids = inputs.items.ids.take(pa.array(unique)).to_pylist()
    values = view.version.reader.get_many(Space.ITEMS, [encode_key(item) for item in ids])
    new = np.array([value is None for value in values], np.bool_)
    return float(counts[new].sum() / counts.sum())
