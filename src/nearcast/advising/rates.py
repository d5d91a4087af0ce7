"""What things take on this machine: small real runs, publishes, look-ups and online indexes, in processor seconds.

Processor seconds of all threads, not seconds: they are what is paid for, and other work on the machine changes them
less. All is measured at two sizes and scaled to a third by a line or a power. Runs are cheap, so theirs are a quarter
and a half of the whole; online indexes are not, so theirs are a sixteenth and a quarter. Knows nothing of traffic.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast import machine
from nearcast.advising.sample_data import Sample, Sides, write_sample
from nearcast.engines import choose_engine
from nearcast.engines.base import JoinRequest, JoinShape
from nearcast.errors import DamagedError, TargetError
from nearcast.files import write_text
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
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["Measured", "Online", "Rates", "measure_rates", "read_rates", "write_rates"]

RUN_PART, RUN_STEP, MOST_RUN_ITEMS, MOST_RUN_QUERIES = 2, 2, 300_000, 100_000
ONLINE_PART, ONLINE_STEP, MOST_ONLINE_ITEMS = 4, 4, 100_000
FEWEST_ITEMS, FEWEST_QUERIES = 20_000, 5_000  # fixed costs drown the others below that
LOOKUPS, SEARCHES, ROUNDS = 3_000, 300, 3
# Of a search at one recall: IVF has as many cells as the root of the items, and HNSW is near it at sizes like ours. Two
# measurements that are a tenth off tell the power to within 0.15: at four times the items, a fifth of the seconds.
SEARCH_POWER = 0.5
JOIN = "build and join"
ONLINE_QUERIES = 4_000  # to find the effort on, and to search for
MOST_CALIBRATED = 4  # a calibration's samples are at most this part of the queries
ANYTHING = AuditSpec(
    min_recall=0.0, min_fill_rate=0.0, min_query_coverage=0.0, max_age_hours=1e6, min_keys=0
)  # a sample is published to be timed, whatever it is worth


@dataclass(frozen=True, slots=True)
class Measured:
    """Processor seconds at two sizes, told in whatever unit they grow with."""

    units: tuple[float, float]
    seconds: tuple[float, float]

    def part(self, units: float) -> float:
        """At another size, in proportion to the second one."""
        return self.seconds[1] * units / max(self.units[1], 1e-12)

    def line(self, units: float) -> float:
        """At another size, by a fixed part and a part for every unit; neither is below 0."""
        (u1, u2), (s1, s2) = self.units, self.seconds
        slope = (s2 - s1) / (u2 - u1) if u2 > u1 else 0.0
        fixed = s2 - slope * u2
        if slope <= 0 or fixed < 0:
            return self.part(units)
        return fixed + slope * units

    def power(self, units: float, least: float, most: float, usual: float | None = None) -> float:
        """At another size, by a power of the units within bounds: of the second size, which is the surer one.

        usual: a power that is known from elsewhere, and has as much say as the measured one.
        """
        (u1, u2), (s1, s2) = self.units, self.seconds
        grown = math.log(max(s2, 1e-12) / max(s1, 1e-12)) / math.log(u2 / u1) if u2 > u1 else most
        grown = grown if usual is None else (grown + usual) / 2
        return float(s2 * (units / u2) ** min(most, max(least, grown)))


@dataclass(frozen=True, slots=True)
class Online:
    """An online index: what making it and a search of it took, at two numbers of items."""

    index: Measured  # read the items, build, and find the effort
    search: Measured  # one request
    recall: float | None  # reached on queries that the effort was not chosen on; None at full effort


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine takes for one generator's kind of vectors."""

    machine: Mapping[str, Any]
    engine: str  # of the join
    dim: int
    k: int
    recall: float
    report_queries: int  # that a run measures, and calibrates with
    calibration_queries: int
    stages: Mapping[str, Measured]  # of a run
    publish: Measured  # in keys and items
    lookup_seconds: float  # one key
    key_bytes: float  # of the published table, items included
    online: Mapping[str, Online]
    seconds: float  # that measuring took

    def run_seconds(self, keys: float, items: float) -> float:
        """Of a run, from files to a measured snapshot."""
        return sum(self.stage_seconds(keys, items).values())

    def stage_seconds(self, keys: float, items: float) -> dict[str, float]:
        """The same by stage."""
        units = units_of(self, keys, items)
        return {
            stage: measured.part(units[stage]) if stage == JOIN else measured.line(units[stage])
            for stage, measured in self.stages.items()
        }

    def publish_seconds(self, keys: float, items: float) -> float:
        """Of a publish: audit, copy, reading back."""
        return self.publish.line(keys + items)

    def index_seconds(self, engine: str, items: float) -> float:
        """Of making the online index."""
        return self.online[engine].index.power(items, 0.9, 1.6)

    def search_seconds(self, engine: str, items: float) -> float:
        """Of one request to the online index."""
        return self.online[engine].search.power(items, 0.0, 1.0, SEARCH_POWER)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def units_of(rates: Rates, keys: float, items: float) -> dict[str, float]:
    """What the seconds of each stage of a run grow with."""
    request = JoinRequest(Metric.INNER_PRODUCT, rates.k, rates.recall)  # any metric: the work is the same
    shape = JoinShape(request, max(1, round(items)), max(1, round(keys)), rates.dim, 4)
    work = choose_engine(rates.engine).count_pairs(shape)
    report = min(keys / 2, rates.report_queries)
    found = 2 * min(keys / MOST_CALIBRATED, rates.calibration_queries)
    return {
        **dict.fromkeys(("hash", "check", "read"), keys + items),
        "estimate": 1.0,
        "calibrate": found * items,
        JOIN: sum(work.values()),
        "table": keys,
        "measure": report * items,
    }


def measure_rates(
    spec: GeneratorSpec, sides: Sides, *, engines: Sequence[str], recall: float, listener: Listener | None = None
) -> Rates:
    """Run, publish, look up and search samples in a temporary folder; takes from seconds to some minutes.

    engines: the online indexes to measure, at `recall`. Needs faiss where there are any: MissingExtraError.
    """
    listener, started = listener or Listener(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nearcast-rates-") as folder:
        runs = []
        items = _two_sizes(sides.n_items, RUN_PART, RUN_STEP, FEWEST_ITEMS, MOST_RUN_ITEMS)
        queries = _two_sizes(sides.n_queries, RUN_PART, RUN_STEP, FEWEST_QUERIES, MOST_RUN_QUERIES)
        for n_items, n_queries in zip(items, queries, strict=True):
            listener.note(f"measuring this machine: a run of {n_items:,} items and {n_queries:,} queries")
            home = Path(folder) / f"run-{n_items}"
            runs.append(_run(write_sample(spec, sides, home, n_items, n_queries), home))
        found: dict[str, list[tuple[int, float, float, float | None]]] = {engine: [] for engine in engines}
        items = _two_sizes(sides.n_items, ONLINE_PART, ONLINE_STEP, FEWEST_ITEMS, MOST_ONLINE_ITEMS)
        for n_items in items if engines else ():
            listener.note(f"measuring this machine: {', '.join(engines)} of {n_items:,} items")
            home = Path(folder) / f"online-{n_items}"
            sample = write_sample(spec, sides, home, n_items, min(sides.n_queries, ONLINE_QUERIES))
            for engine in engines:
                found[engine].append(_online(sample, home, engine, recall))
    small, large = runs
    blank = Rates(
        machine=machine.describe(),
        engine=choose_engine(spec.engine).name,
        dim=sides.dim,
        k=spec.k,
        recall=spec.recall,
        report_queries=spec.measure.sample,
        calibration_queries=spec.measure.calibration,
        stages={},
        publish=Measured((small.keys + small.items, large.keys + large.items), (small.publish, large.publish)),
        lookup_seconds=large.lookup,
        key_bytes=large.key_bytes,
        online={engine: _pair(*measured) for engine, measured in found.items()},
        seconds=time.perf_counter() - started,
    )
    at = [units_of(blank, trial.keys, trial.items) for trial in runs]
    stages = {
        stage: Measured((at[0][stage], at[1][stage]), (small.stages.get(stage, 0.0), large.stages.get(stage, 0.0)))
        for stage in at[0]
    }
    return replace(blank, stages=stages)


def _two_sizes(n: int, part: int, step: int, fewest: int, most: int) -> tuple[int, int]:
    """Rows of the smaller and the larger sample: a part of all within bounds, and a step below that."""
    larger = min(n, most, max(n // part, fewest))
    return max(1, larger // step), larger


def _pair(small: tuple[int, float, float, float | None], large: tuple[int, float, float, float | None]) -> Online:
    sizes = (small[0], large[0])
    return Online(Measured(sizes, (small[1], large[1])), Measured(sizes, (small[2], large[2])), large[3])


class _Silence(Listener):
    """What a sample's run says is nobody's business."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def checked(self, report: Report) -> None:
        """Say nothing."""

    def estimated(self, estimate: RunEstimate) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one sample took, from files to look-ups."""

    keys: int
    items: int
    stages: Mapping[str, float]
    publish: float
    lookup: float
    key_bytes: float


def _run(sample: Sample, home: Path) -> _Run:
    try:
        snapshot = run_generator(sample.spec, home, listener=_Silence()).snapshot
    except TargetError as error:  # of a sample: it is timed, not served
        snapshot = cast(Snapshot, error.snapshot)
    url = f"lmdb:{home / 'store'}"
    with contextlib.closing(open_store(url)) as store:
        began = time.process_time()
        done = publish_snapshot(snapshot, store, PublishSpec(), ANYTHING)
        publish = time.process_time() - began
    took = dict(snapshot.manifest.run.cpu_seconds)
    took[JOIN] = took.pop("build", 0.0) + took.pop("join", 0.0)  # cells cost a build and save a join: they go together
    keys = pq.read_table(snapshot.folder / "candidates", columns=["query_id"])["query_id"]
    return _Run(
        keys=snapshot.n_rows,
        items=snapshot.manifest.inputs["items"]["vectors"],
        stages=took,
        publish=publish,
        lookup=_lookup_seconds(url, sample.spec.name, keys),
        key_bytes=done.copied.bytes / max(1, snapshot.n_rows) if done.copied else 0.0,
    )


def _online(sample: Sample, home: Path, engine: str, recall: float) -> tuple[int, float, float, float | None]:
    """Items, seconds of making the index, seconds of a search, recall reached."""
    began = time.process_time()
    online = open_online(
        sample.spec, home, home / f"online-{engine}", engine=engine, recall=recall, listener=_Silence()
    )
    made = time.process_time() - began
    vectors = _query_vectors(sample.spec, home)
    k = sample.spec.k
    search = _seconds_each([partial(online.search, rows, k) for rows in vectors])
    return online.n_items, made, search, None if online.reached is None else online.reached.value


def _lookup_seconds(url: str, generator: str, keys: pa.ChunkedArray) -> float:
    chosen = np.random.default_rng(0).choice(len(keys), min(len(keys), LOOKUPS))
    wanted = keys.take(pa.array(chosen)).to_pylist()
    with open_lookup(url, generator) as lookup:
        return _seconds_each([partial(lookup.get, key) for key in wanted])


def _seconds_each(calls: Sequence[Callable[[], object]]) -> float:
    """Processor seconds of one call: the middle one of three rounds, after one that warms up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        for call in calls:
            call()
        rounds.append((time.process_time() - began) / len(calls))
    return sorted(rounds[1:])[ROUNDS // 2]


def _query_vectors(spec: GeneratorSpec, home: Path) -> list[np.ndarray[Any, Any]]:
    source = spec.query_source
    column = pq.read_table(home / source.path, columns=[source.vector])[source.vector].combine_chunks()
    chosen = np.random.default_rng(1).choice(len(column), min(len(column), SEARCHES), replace=False)
    rows = np.array(column.take(pa.array(chosen)).to_pylist(), np.float32)
    return [rows[i : i + 1] for i in range(len(rows))]


def write_rates(rates: Rates, path: Path, made_of: Any) -> None:
    """Keep rates, with what they were measured for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"nearcast": __version__, "made_of": made_of, "rates": rates.as_dict()}
    write_text(path, json.dumps(facts, indent=1, default=str) + "\n")


def read_rates(path: Path, made_of: Any = None) -> Rates | None:
    """Rates that were kept; None where they were measured for something else. DamagedError for no rates at all."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if made_of is not None and (facts["made_of"], facts["nearcast"]) != (made_of, __version__):
            return None
        kept = facts["rates"]
        measured = {name: _measured(value) for name, value in kept["stages"].items()}
        online = {
            name: Online(_measured(value["index"]), _measured(value["search"]), value["recall"])
            for name, value in kept["online"].items()
        }
        return Rates(**{**kept, "stages": measured, "publish": _measured(kept["publish"]), "online": online})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} does not hold rates ({error}); remove it, and they are measured again") from error


def _measured(value: Mapping[str, Any]) -> Measured:
    return Measured(tuple(value["units"]), tuple(value["seconds"]))
