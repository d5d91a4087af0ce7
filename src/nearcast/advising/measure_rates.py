"""Measure the rates of this machine with small real runs, publishes, look-ups and online indexes.

Runs are cheap: they are measured at a quarter and a half of the rows. Online indexes are not: they are measured at a
sixteenth and a quarter.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast import machine
from nearcast.advising.rates import JOIN, CpuMeasurement, OnlineRates, Rates, count_units
from nearcast.advising.sample_data import SampledTables, SampleGenerator, write_sample
from nearcast.engines import choose_engine
from nearcast.errors import TargetError
from nearcast.join.estimate import RunEstimate
from nearcast.join.listener import Listener
from nearcast.join.online_index import open_online
from nearcast.join.run import run_generator
from nearcast.publishing.publish import publish_snapshot
from nearcast.serve.lookup import open_lookup
from nearcast.sources.validate_rows import Report
from nearcast.spec import AuditSpec, GeneratorSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.table.snapshot import Snapshot

__all__ = ["measure_rates"]

RUN_PART, RUN_STEP, MOST_RUN_ITEMS, MOST_RUN_QUERIES = 2, 2, 300_000, 100_000
ONLINE_PART, ONLINE_STEP, MOST_ONLINE_ITEMS = 4, 4, 100_000
FEWEST_ITEMS, FEWEST_QUERIES = 20_000, 5_000  # with fewer rows, fixed costs hide the others
LOOKUPS, SEARCHES, ROUNDS = 3_000, 300, 3
ONLINE_QUERIES = 4_000  # to calibrate the search parameters, and to search for
ANYTHING = AuditSpec(
    min_recall=0.0, min_fill_rate=0.0, min_query_coverage=0.0, max_age_hours=1e6, min_keys=0
)  # a sample is published to be timed, so every audit passes


def measure_rates(
    spec: GeneratorSpec,
    tables: SampledTables,
    *,
    engines: Sequence[str],
    recall: float,
    listener: Listener | None = None,
) -> Rates:
    """Run, publish, look up and search samples in a temporary folder. Takes from seconds to some minutes.

    engines: online engines to measure, at `recall`. Raises MissingExtraError if faiss is needed and not installed.
    """
    listener, started = listener or Listener(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nearcast-rates-") as folder:
        runs = []
        items = _choose_sizes(tables.n_items, RUN_PART, RUN_STEP, FEWEST_ITEMS, MOST_RUN_ITEMS)
        queries = _choose_sizes(tables.n_queries, RUN_PART, RUN_STEP, FEWEST_QUERIES, MOST_RUN_QUERIES)
        for n_items, n_queries in zip(items, queries, strict=True):
            listener.note(f"measuring this machine: a run of {n_items:,} items and {n_queries:,} queries")
            home = Path(folder) / f"run-{n_items}"
            runs.append(_measure_run(write_sample(spec, tables, home, n_items, n_queries), home))
        found: dict[str, list[tuple[int, float, float, float | None]]] = {engine: [] for engine in engines}
        items = _choose_sizes(tables.n_items, ONLINE_PART, ONLINE_STEP, FEWEST_ITEMS, MOST_ONLINE_ITEMS)
        for n_items in items if engines else ():
            listener.note(f"measuring this machine: {', '.join(engines)} of {n_items:,} items")
            home = Path(folder) / f"online-{n_items}"
            sample = write_sample(spec, tables, home, n_items, min(tables.n_queries, ONLINE_QUERIES))
            for engine in engines:
                found[engine].append(_measure_online(sample, home, engine, recall))
    small, large = runs
    blank = Rates(
        machine=machine.describe(),
        engine=choose_engine(spec.engine).name,
        dim=tables.dim,
        k=spec.k,
        recall=spec.recall,
        report_queries=spec.measure.sample,
        calibration_queries=spec.measure.calibration,
        stages={},
        publish=CpuMeasurement((small.keys + small.items, large.keys + large.items), (small.publish, large.publish)),
        lookup_seconds=large.lookup,
        key_bytes=large.key_bytes,
        online={engine: _make_online_rates(*measured) for engine, measured in found.items()},
        seconds=time.perf_counter() - started,
    )
    at = [count_units(blank, trial.keys, trial.items) for trial in runs]
    stages = {
        stage: CpuMeasurement(
            (at[0][stage], at[1][stage]), (small.stages.get(stage, 0.0), large.stages.get(stage, 0.0))
        )
        for stage in at[0]
    }
    return replace(blank, stages=stages)


def _choose_sizes(n: int, part: int, step: int, fewest: int, most: int) -> tuple[int, int]:
    """Return the rows of two samples: larger = n / part within bounds, smaller = larger / step."""
    larger = min(n, most, max(n // part, fewest))
    return max(1, larger // step), larger


def _make_online_rates(
    small: tuple[int, float, float, float | None], large: tuple[int, float, float, float | None]
) -> OnlineRates:
    sizes = (small[0], large[0])
    return OnlineRates(
        CpuMeasurement(sizes, (small[1], large[1])), CpuMeasurement(sizes, (small[2], large[2])), large[3]
    )


class _SilentListener(Listener):
    """Ignores the progress of a sample run."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Do nothing."""

    def checked(self, report: Report) -> None:
        """Do nothing."""

    def estimated(self, estimate: RunEstimate) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _SampleRun:
    """The processor seconds of one sample, from files to look-ups."""

    keys: int
    items: int
    stages: Mapping[str, float]
    publish: float
    lookup: float
    key_bytes: float


def _measure_run(sample: SampleGenerator, home: Path) -> _SampleRun:
    try:
        snapshot = run_generator(sample.spec, home, listener=_SilentListener()).snapshot
    except TargetError as error:  # a sample is timed, not served
        snapshot = cast(Snapshot, error.snapshot)
    url = f"lmdb:{home / 'store'}"
    with contextlib.closing(open_store(url)) as store:
        began = time.process_time()
        done = publish_snapshot(snapshot, store, PublishSpec(), ANYTHING)
        publish = time.process_time() - began
    took = dict(snapshot.manifest.run.cpu_seconds)
    took[JOIN] = took.pop("build", 0.0) + took.pop(
        "join", 0.0
    )  # cells cost a build and save a join, so both are one stage
    keys = pq.read_table(snapshot.fetch("candidates"), columns=["query_id"])["query_id"]
    return _SampleRun(
        keys=snapshot.n_rows,
        items=snapshot.manifest.inputs["items"]["vectors"],
        stages=took,
        publish=publish,
        lookup=_measure_lookup(url, sample.spec.name, keys),
        key_bytes=done.copied.bytes / max(1, snapshot.n_rows) if done.copied else 0.0,
    )


def _measure_online(
    sample: SampleGenerator, home: Path, engine: str, recall: float
) -> tuple[int, float, float, float | None]:
    """Return items, seconds to build the index, seconds of a search, and the reached recall."""
    began = time.process_time()
    online = open_online(
        sample.spec, home, home / f"online-{engine}", engine=engine, recall=recall, listener=_SilentListener()
    )
    made = time.process_time() - began
    vectors = _read_query_vectors(sample.spec, home)
    k = sample.spec.k
    search = _measure_calls([partial(online.search, rows, k) for rows in vectors])
    return online.n_items, made, search, None if online.reached is None else online.reached.value


def _measure_lookup(url: str, generator: str, keys: pa.ChunkedArray) -> float:
    chosen = np.random.default_rng(0).choice(len(keys), min(len(keys), LOOKUPS))
    drawn = keys.take(pa.array(chosen)).to_pylist()
    with open_lookup(url, generator) as lookup:
        return _measure_calls([partial(lookup.get, key) for key in drawn])


def _measure_calls(calls: Sequence[Callable[[], object]]) -> float:
    """Return the processor seconds of one call: the median of three rounds after a warm-up round."""
    rounds = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        for call in calls:
            call()
        rounds.append((time.process_time() - began) / len(calls))
    return sorted(rounds[1:])[ROUNDS // 2]


def _read_query_vectors(spec: GeneratorSpec, home: Path) -> list[np.ndarray[Any, Any]]:
    source = spec.query_source
    column = pq.read_table(home / source.path, columns=[source.vector])[source.vector].combine_chunks()
    chosen = np.random.default_rng(1).choice(len(column), min(len(column), SEARCHES), replace=False)
    rows = np.array(column.take(pa.array(chosen)).to_pylist(), np.float32)
    return [rows[i : i + 1] for i in range(len(rows))]
