"""Staleness of the served version: a sample of its lists, compared with the items of today.

Reads the store, the looked-up keys and today's files, and gives figures; `served_checks` judges them.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.join.compile_constraints import build_constraints
from nearcast.join.context import RunContext
from nearcast.join.current_tables import open_current_inputs, wait_for_lock
from nearcast.join.inputs import open_sources
from nearcast.join.score_terms import apply_score_terms
from nearcast.measure.recall import sample_rows
from nearcast.monitoring.recall_today import TodaysTables, measure_recall_today
from nearcast.serve.key_sampling import SampledLookup, read_sampled_lookups
from nearcast.serve.lookup import open_lookup
from nearcast.serve.view import StoredLists, View
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.storage.locations import Location
from nearcast.stores.base import Store, newest_patch
from nearcast.types import EMPTY_POSITION, IntArray

__all__ = ["FEWEST_LOOKUPS", "Staleness", "estimate_refresh_interval", "lowest_recall", "measure_staleness"]

FEWEST_LOOKUPS = 20  # in the window; with fewer, today's queries are the sample
LEAST_AGE_SECONDS = 6 * 3600.0  # of a table whose decay is extrapolated; minutes say nothing about days
TARGET_SHARE = 0.9
LONGEST_SECONDS = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Staleness:
    """The figures of a pass over served lists. Shares are of the sample. The field names are a format (history)."""

    snapshot: str
    version: int
    age_seconds: float
    sampled: str  # "look-ups", or "queries" if too few keys were looked up
    sample: int
    lookups: int  # look-ups that the sample represents
    recall: float | None  # of the lists, among today's items that are not removed; None if it cannot be measured
    recall_low: float | None
    recall_high: float | None
    dead: float  # candidates that are not among today's items, without those that the overlay removes
    misses: float  # keys without a list
    fallbacks: float | None  # look-ups that a fallback answered; None if no look-ups were recorded
    recall_when_made: float
    refresh_seconds: float | None  # age at which recall reaches its lowest allowed value; None if it does not decay
    removed: float = 0.0  # candidates of the stored lists that the overlay removes
    removed_items: int = 0  # items that the overlay removes now
    missed_new: float | None = None  # share of the missed neighbors that the served version does not hold
    metric: str | None = None  # of the served lists
    not_compared: str | None = None  # why recall cannot be measured
    items_today: int | None = None
    items_served: int | None = None  # items of the served version
    patch: int = 0  # newest patch in force; 0 if there is none
    patch_age_seconds: float | None = None  # since it was made

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _KeySample:
    """The keys to look up, and the look-ups that they come from, if any."""

    keys: list[str | int]
    looked_up: list[SampledLookup]
    lookups: int  # look-ups that the sample represents


def measure_staleness(run: RunContext, store: Store, samples: Location) -> Staleness:
    """Compare a sample of the served lists with today's items.

    Items that the overlay removes are missing from the lists and from the truth. Rules that use the request are not
    applied, since there is no request. samples: location of the looked-up keys that services record.
    Raises NotFoundError if nothing is published.
    """
    spec = run.spec
    home = run.workspace.home / "monitor"
    with (
        open_lookup(store, spec.name) as lookup,
        wait_for_lock(home / ".lock", f"the monitor of {spec.name!r}", run.listener),
    ):
        sources = open_sources(spec, run.workspace.base, run.listener)
        ingested = open_current_inputs(run, sources, home)
        inputs = apply_score_terms(spec, ingested, LocalArtifacts(home))
        constraints = build_constraints(run, inputs, LocalArtifacts(home), ingested.items.vectors)
        today = TodaysTables(run, inputs, constraints)
        _delete_other_days(home, ingested, today)
        sample = _draw_keys(spec, inputs, samples)
        return lookup.ask(lambda view: _measure(today, view, sample))


def _measure(today: TodaysTables, view: View, sample: _KeySample) -> Staleness:
    facts, now, patch = view.version.facts, time.time(), newest_patch(view.version.reader)
    stored = view.get_stored(sample.keys, now)
    removed = view.overlay.removed_now(now)
    positions, dead = _find_positions(stored, today.inputs)
    compared = measure_recall_today(today, view, stored, positions, removed)
    made, recall, age = float(facts.measures["recall"]), compared.recall, view.age_seconds
    lowest = lowest_recall(today.run.spec)
    looked_up = sample.looked_up
    return Staleness(
        snapshot=view.snapshot,
        version=facts.version,
        age_seconds=age,
        sampled="look-ups" if looked_up else "queries",
        sample=len(sample.keys),
        lookups=sample.lookups,
        recall=None if recall is None else recall.value,
        recall_low=None if recall is None else recall.low,
        recall_high=None if recall is None else recall.high,
        dead=dead,
        misses=float(np.mean(~stored.found)) if len(sample.keys) else 0.0,
        fallbacks=sum(one.used_fallback for one in looked_up) / len(looked_up) if looked_up else None,
        recall_when_made=made,
        refresh_seconds=None if recall is None else estimate_refresh_interval(age, made, recall.value, lowest),
        removed=len(stored.removed) / max(1, len(stored.ids)),
        removed_items=len(removed),
        missed_new=compared.missed_new,
        metric=str(facts.metric),
        not_compared=compared.reason,
        items_today=today.inputs.items.vectors.n,
        items_served=facts.items or None,
        patch=0 if patch is None else patch.number,
        patch_age_seconds=None if patch is None else max(0.0, now - patch.made),
    )


def lowest_recall(spec: GeneratorSpec) -> float:
    """Return the lowest allowed recall among today's items."""
    lowest = spec.monitor.min_recall_today
    return TARGET_SHARE * spec.recall if lowest is None else lowest


def estimate_refresh_interval(age_seconds: float, made: float, now: float, lowest: float) -> float | None:
    """Estimate the age at which the recall of a table reaches `lowest`, in seconds.

    Catalogues replace a share of their items each day, so recall decays exponentially, from `made` at age 0 to `now`
    at this age. Returns None if recall has not decayed, or the table is too young to tell.
    """
    if age_seconds < LEAST_AGE_SECONDS or not 0 < now < made or lowest >= made:
        return None
    if lowest <= 0:
        return None
    return min(LONGEST_SECONDS, age_seconds * math.log(made / lowest) / math.log(made / now))


def _delete_other_days(home: Path, ingested: Inputs, today: TodaysTables) -> None:
    """Delete the tables and constraints that were made from other days' files."""
    tables = (ingested.items, ingested.queries, today.inputs.items, today.inputs.queries)
    current = {*(home / name for table in tables for name in table.artifact_names), today.constraints}
    for path in [p for kind in ("items-*", "queries-*", "scored*-*", "constraints-*") for p in home.glob(kind)]:
        if path not in current:
            shutil.rmtree(path)


def _draw_keys(spec: GeneratorSpec, inputs: Inputs, samples: Location) -> _KeySample:
    """Draw keys from the recorded look-ups; from today's queries if there are too few."""
    size = spec.monitor.sample
    looked_up, lookups = read_sampled_lookups(
        samples, spec.name, since=time.time() - 3600 * spec.monitor.window_hours, size=size, seed=spec.seed
    )
    if len(looked_up) >= FEWEST_LOOKUPS:
        return _KeySample([one.key for one in looked_up], looked_up, lookups)
    (rows,) = sample_rows(inputs.queries.vectors.n, (size,), spec.seed)
    return _KeySample(inputs.queries.ids.take(pa.array(rows)).to_pylist(), [], 0)


def _find_positions(stored: StoredLists, inputs: Inputs) -> tuple[IntArray, float]:
    """Return (keys, longest) the candidates' positions among today's items, -1 for none, and the share without one.

    Candidates that the overlay removes are left out of both.
    """
    left = np.ones(len(stored.ids), np.bool_)
    left[stored.removed] = False
    lengths = np.diff(stored.offsets)
    positions = np.full((len(lengths), max(1, int(lengths.max(initial=1)))), EMPTY_POSITION, np.int64)
    if pa.types.is_integer(stored.ids.type) != pa.types.is_integer(inputs.items.ids.type):
        return positions, 1.0 if left.any() else 0.0
    flat = np.where(left, find_positions(stored.ids, inputs.items.ids), EMPTY_POSITION)
    slots = np.arange(positions.shape[1])[None, :] < lengths[:, None]
    positions[slots] = flat
    return positions, int(np.count_nonzero(left & (flat == EMPTY_POSITION))) / max(1, int(left.sum()))
