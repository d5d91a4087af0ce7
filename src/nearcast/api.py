"""The verbs of the command line, from Python.

Those that make a snapshot take a spec: a path to a TOML file, a mapping, or a parsed one. Those that publish it take
the name of a generator as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.advising.ask import Asked, Numbers, ask
from nearcast.advising.head import HELD_OUT_DAYS, Head, find_head, write_head
from nearcast.advising.traffic import read_traffic
from nearcast.errors import AuditError, NotFoundError, PromiseError
from nearcast.expansion.settings import ExpansionSpec, load_expansion_spec
from nearcast.history.record import record_failed_audit, record_publication, record_run
from nearcast.join.context import prepare
from nearcast.join.diff import Diff, diff_snapshots
from nearcast.join.estimate import RunEstimate
from nearcast.join.explain import Explanation
from nearcast.join.explain import explain as explain_pair
from nearcast.join.listen import Listener
from nearcast.join.run import Outcome, check_generator, run_generator
from nearcast.monitoring.watch import Watched, watch
from nearcast.publishing import listing, rollback, tables
from nearcast.publishing import publish as publishing
from nearcast.publishing.engagement import TOP, LogColumns, most_engaged
from nearcast.publishing.engagement import read_log as read_engagement
from nearcast.publishing.expansion import Expanded, expand_files
from nearcast.publishing.publication import Publication
from nearcast.publishing.where import Place, place_in_store, place_of_name, place_of_spec
from nearcast.replaying.funnel import Funnel
from nearcast.replaying.log import read_log
from nearcast.replaying.replay import Replayed, looked_up, searched
from nearcast.replaying.replay import replay as replay_ways
from nearcast.replaying.ways import Way
from nearcast.serve.expansion import open_expansion
from nearcast.serve.sampling import SAMPLES
from nearcast.sources.check import Report
from nearcast.spec import GeneratorSpec, Publishing, parse_model
from nearcast.spec import load_spec as _load_spec
from nearcast.stores import open_store
from nearcast.stores.base import Store
from nearcast.table.snapshot import Candidates, Snapshot, find_snapshot, list_generators, list_snapshots
from nearcast.tuning.tune import TRIALS
from nearcast.tuning.tune import tune as tune_job
from nearcast.tuning.tuned import Tuned, save

__all__ = [
    "Refreshed",
    "advise",
    "check",
    "diff",
    "expand",
    "explain",
    "head",
    "load_spec",
    "lookup",
    "monitor",
    "publish",
    "publish_table",
    "published",
    "refresh",
    "replay",
    "roll_back",
    "run",
    "snapshots",
    "tune",
]

SpecLike = str | Path | Mapping[str, Any] | GeneratorSpec

StoreLike = str | Path | Store

OUT = "nearcast"

TABLE_IN_MEMORY = {"path": "(a table in memory)"}


def load_spec(path: str | Path) -> GeneratorSpec:
    """Read and check a TOML spec; SpecError lists every fault."""
    return _load_spec(Path(path))


def run(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
    again: bool = False,
) -> Outcome:
    """Make a snapshot of a generator: check, join, write, measure. See `nearcast.join.run.run_generator`.

    items, queries: tables (Arrow, pandas, polars) or pairs (ids, vectors), in place of the spec's files.
    base: the folder that the spec's paths are relative to; the spec file's own, else the current one.
    """
    parsed, folder = _resolve(spec, base, items, queries)
    listener = listener or Listener()
    try:
        outcome = run_generator(parsed, folder, items=items, queries=queries, listener=listener, again=again)
    except PromiseError as error:
        if isinstance(error.snapshot, Snapshot):
            _note(listener, record_run(folder / parsed.out, error.snapshot))
        raise
    _note(listener, record_run(folder / parsed.out, outcome.snapshot))
    return outcome


def check(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do all of a run that comes before the join: read and judge the inputs, and estimate."""
    parsed, folder = _resolve(spec, base, items, queries)
    return check_generator(parsed, folder, items=items, queries=queries, listener=listener)


def tune(
    spec: SpecLike,
    *,
    trials: int = TRIALS,
    seconds: float | None = None,
    memory: int | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[Tuned, Path]:
    """Find the cheapest engine and settings that keep the promised recall; see `nearcast.tuning.tune.tune`.

    Returns what was found, and the folder where it is kept (frontier.json).
    trials: points to judge, those of earlier tunings included. seconds: time to take; about half an exact join's.
    memory: bytes that the whole job may take; the spec's.
    """
    parsed, folder = _resolve(spec, base, None, None)
    free = {"engine": "auto", "engine_settings": {}} | ({} if memory is None else {"memory": memory})
    run_context = prepare(
        parse_model(GeneratorSpec, parsed.model_dump() | free, "the spec"), folder, listener or Listener()
    )
    tuned = tune_job(run_context, trials=trials, seconds=seconds)
    home = run_context.home / "tuning"
    save(tuned, home / "frontier.json")
    return tuned, home


def head(
    log: str | Path,
    *,
    coverage: float = 0.9,
    by_tomorrow: bool = False,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    held_out_days: int = HELD_OUT_DAYS,
    memory: int | None = None,
    to: str | Path | None = None,
    column: str = "id",
    listener: Listener | None = None,
) -> Head:
    """Find the keys that cover a share of a log's traffic; see `nearcast.advising.head.find_head`.

    log: Parquet; key, time, count: its columns, see `nearcast.advising.traffic.read_traffic`.
    to: Parquet file that the keys are written to, in `column`: for `[queries] only`.
    """
    bytes_given = {} if memory is None else {"memory_bytes": memory}
    progress = (listener or Listener()).progress
    traffic = read_traffic(Path(log), key=key, time=time, count=count, progress=progress, **bytes_given)
    found = find_head(traffic, coverage, by_tomorrow=by_tomorrow, held_out_days=held_out_days)
    if to is not None:
        write_head(traffic, found, Path(to), column=column)
    return found


def advise(
    spec: SpecLike | None = None,
    *,
    numbers: Mapping[str, Any] | None = None,
    log: str | Path | None = None,
    key: str = "key",
    time: str | None = None,
    count: str | None = None,
    rates: str | Path | None = None,
    online_engine: str = "faiss-hnsw",
    out: str | Path = OUT,
    listener: Listener | None = None,
) -> Asked:
    """Reckon what a use case costs offline, online and as a mix, and say which; see `nearcast.advising.ask`.

    spec: a generator, whose items and queries are counted and sampled. numbers: what is known otherwise, by the names
    of `nearcast.advising.ask.Numbers`; they win over the spec and the log. log: of requests, as for `head`.
    rates: file of what this machine takes; measured and written where it is not there. Raises SpecError for numbers
    that are missing or cannot be.
    """
    listener, traffic = listener or Listener(), None
    parsed, folder = (None, Path()) if spec is None else _resolve(spec, None, None, None)
    if log is not None:
        traffic = read_traffic(Path(log), key=key, time=time, count=count, progress=listener.progress)
    given = parse_model(Numbers, dict(numbers or {}), "the numbers")
    place = Path(out) if parsed is None else folder / parsed.out / parsed.name / "advice"
    return ask(
        parsed,
        folder,
        given,
        traffic,
        rates=Path(rates) if rates else None,
        kept=place,
        engine=online_engine,
        listener=listener,
    )


def snapshots(generator: str, *, out: str | Path = "nearcast") -> list[Snapshot]:
    """All snapshots of a generator below the folder `out`, oldest first."""
    return list_snapshots(Path(out), generator)


def lookup(
    generator: str,
    key: str | int,
    *,
    out: str | Path = "nearcast",
    version: int | None = None,
    columns: tuple[str, ...] | None = None,
) -> Candidates:
    """The candidates of one query, with the generator's display columns or the ones asked for."""
    snapshot = find_snapshot(Path(out), generator, version)
    shown = columns if columns is not None else tuple(snapshot.manifest["spec"]["items"]["display"])
    return snapshot.lookup(key, shown)


def explain(generator: str, query: str | int, item: str | int, *, out: str | Path = OUT) -> Explanation:
    """Why an item is in the list of a query of the newest snapshot, or not; see `nearcast.join.explain`."""
    snapshot = find_snapshot(Path(out), generator)
    return explain_pair(snapshot, Path(out) / generator / "artifacts", query, item)


def diff(
    generator: str, before: int | None = None, after: int | None = None, *, out: str | Path = OUT, sample: int = 2000
) -> Diff:
    """What changed between two snapshots, the newest two by default, and why; see `nearcast.join.diff`."""
    newer = find_snapshot(Path(out), generator, after)
    if before is None:
        older = [found for found in list_snapshots(Path(out), generator) if found.version < newer.version]
        if not older:
            raise NotFoundError(f"{generator} has no snapshot before {newer.name} to compare it with")
        return diff_snapshots(older[-1], newer, sample)
    return diff_snapshots(find_snapshot(Path(out), generator, before), newer, sample)


def publish(
    generator: SpecLike,
    version: int | None = None,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    accept: Mapping[str, str] | None = None,
    dry_run: bool = False,
    repair: bool = False,
    max_bytes_per_second: int | str | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Audit a snapshot, the newest by default, copy it into a store, read it back, and make it current.

    generator: a name, with the settings that its snapshot was made by; or a spec (a path ending in .toml, a mapping or
    a parsed one), whose [publish], [audit] and [serve] tables count as they are now.
    store: in place of the spec's; a path is relative to the current folder.
    out: folder of the snapshots; the spec's own, or "nearcast" for a name.
    accept: rules that may fail, and why; it is kept with the version.
    dry_run: audit and rehearse the copy; change nothing.
    repair: do without a pointer or a current version that cannot be read.
    max_bytes_per_second: throttle of the copy, in place of the spec's: 50_000_000 or "50MB".
    Raises AuditError where a rule fails, BusyError while another process publishes the generator, NotFoundError for a
    snapshot that is not there, DamagedError for a file with other bytes than were written, StoreError.
    """
    place = _place(generator, out, version)
    find_snapshot(place.out, place.generator, version)  # before the lock, which makes a place in the store
    settings, listener = place.publish, listener or Listener()
    if max_bytes_per_second is not None:
        changed = settings.model_dump() | {"max_bytes_per_second": max_bytes_per_second}
        settings = parse_model(Publishing, changed, "publish")
    with _open(store, place) as opened:
        order = publishing.Order(
            generator=place.generator,
            store=opened,
            choose=lambda: find_snapshot(place.out, place.generator, version),
            settings=settings,
            audit=place.audit,
            serving=place.serve,
            accept=accept or {},
            named=version is not None,
            repair=repair,
            dry_run=dry_run,
            listener=listener,
        )
        try:
            done = publishing.publish(order)
        except AuditError as error:
            if not dry_run:
                newest = find_snapshot(place.out, place.generator, version).version
                _note(listener, record_failed_audit(place.out, place.generator, newest, error))
            raise
    _note(listener, record_publication(place.out, done))
    return done


def publish_table(
    generator: SpecLike,
    table: str,
    log: object,
    *,
    key: str,
    item: str,
    weight: str | None = None,
    time: str | None = None,
    half_life_seconds: float | None = None,
    top: int = TOP,
    fewer: bool = False,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Publish a table of a generator: for each key of an engagement log the items engaged with most, with weights.

    table: "phrases" or "people", by which requests are resolved, or a word of one's own.
    log: a Parquet file, a folder of them, or an Arrow table; a row per engagement. It is read whole.
    key, item, weight, time: its columns; item holds keys of the generator. half_life_seconds: an engagement that much
    older than the newest counts half. top: items kept of a key.
    fewer: the table may have less than half as many keys as the current one.
    Raises InputError for a log that cannot be used, AuditError for fewer keys, StoreError, BusyError.
    """
    place = _place_in_store(generator, out)
    columns = LogColumns(key, item, weight, time, half_life_seconds, top)
    rows = most_engaged(log if isinstance(log, pa.Table) else read_engagement(Path(str(log)), columns), columns, table)
    with _open(store, place) as opened:
        done = tables.publish_table(opened, place.generator, table, rows, fewer=fewer)
    _note(listener or Listener(), record_publication(place.out, done))
    return done


def roll_back(
    generator: SpecLike,
    *,
    to: int | None = None,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Publication:
    """Make an older version current again: the newest one that was not rolled back from, or `to`, older or newer.

    Raises NotFoundError where the store has no such version, DamagedError where it is not as it was written,
    BusyError while another process publishes the generator; then nothing has changed.
    """
    place, listener = _place_in_store(generator, out), listener or Listener()
    with _open(store, place) as opened:
        done = rollback.roll_back(opened, place.generator, to, listener=listener)
    _note(listener, record_publication(place.out, done))
    return done


def expand(
    spec: str | Path | Mapping[str, Any], *, base: str | Path | None = None, store: StoreLike | None = None
) -> Expanded:
    """Read ads and links from Parquet and make them the current expansion table; see `docs/expansion.md`.

    spec: a path to a TOML file, or a mapping. store: in place of the spec's.
    base: the folder that its paths are relative to; the spec file's own, else the current one.
    Raises as `nearcast.publishing.expansion.publish_expansion` does.
    """
    if isinstance(spec, str | Path):
        parsed, folder = load_expansion_spec(Path(spec)), Path(base) if base is not None else Path(spec).parent
    else:
        parsed, folder = parse_model(ExpansionSpec, spec, "the spec"), Path(base or ".")
    place = Place(
        parsed.name, folder / parsed.out, Publishing() if parsed.store is None else Publishing(store=parsed.store)
    )
    with _open(store, place) as opened:
        return expand_files(parsed, folder, opened)


def monitor(
    generator: SpecLike,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    samples: str | Path | None = None,
    listener: Listener | None = None,
) -> Watched:
    """Check the newest run against its promise and its usual figures, and what is served against today's items.

    generator: a spec, whose items are today's; for a name only the runs are checked.
    samples: folder where services leave the keys that they were asked for; "lookups" below `out`.
    What is found is kept in the history, <out>/history.sqlite. Raises NotFoundError where there is neither a run nor
    anything published; InputError for items or queries that do not pass the checks.
    """
    listener = listener or Listener()
    if _is_name(generator):
        place = place_in_store(str(generator), Path(out or OUT))
        return watch(place.out, place.generator, listener, run=None, store=None, samples=place.out / SAMPLES)
    spec, folder = _resolve(generator, None, None, None)
    place = place_of_spec(spec, Path(out) if out is not None else folder / spec.out)
    run = prepare(spec.model_copy(update={"out": str(place.out.absolute())}), folder, listener)
    found = Path(samples) if samples is not None else place.out / SAMPLES
    with _open(store, place) as opened:
        return watch(place.out, place.generator, listener, run=run, store=opened, samples=found)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh has led to."""

    snapshot: Snapshot
    reused: bool  # the inputs were those of the last snapshot: nothing was joined
    publication: Publication
    watched: Watched | None  # None: nobody asked for the monitor

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "generator": self.snapshot.generator,
            "snapshot": str(self.snapshot.folder),
            "version": self.snapshot.version,
            "reused": self.reused,
            "publication": self.publication.as_dict(),
            "monitor": None if self.watched is None else self.watched.as_dict(),
        }


def refresh(
    spec: str | Path,
    *,
    store: StoreLike | None = None,
    watch_too: bool = False,
    listener: Listener | None = None,
) -> Refreshed:
    """Have what is served be up to date: run, audit and publish, and with `watch_too` a pass of the monitor.

    What is done already is not done again: with unchanged inputs nothing is joined, and a snapshot that is current is
    not copied. Raises what `run` and `publish` raise, and then readers keep what they had: PromiseError for a
    snapshot below its promise, AuditError for one that failed its audit, BusyError while another process is at it.
    """
    made = run(spec, listener=listener)
    done = publish(str(spec), store=store, listener=listener)
    watched = monitor(str(spec), store=store, listener=listener) if watch_too else None
    return Refreshed(made.snapshot, made.reused, done, watched)


def replay(
    spec: SpecLike,
    log: str | Path | pa.Table,
    *,
    versions: Sequence[int] = (),
    expansion: str | None = None,
    k: int | None = None,
    candidates_per_key: int | None = None,
    sample: int | None = None,
    online: str | None = "faiss-hnsw",
    store: StoreLike | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> Replayed:
    """Send a log of requests through the whole funnel, by look-up and by online search; see `docs/replay.md`.

    log: Parquet or an Arrow table with a row per request: see `nearcast.replaying.log.read_log`.
    versions: snapshots to look up in, published or not; the current one. expansion: a table of the store to go through.
    k: length of an answer; the table's. sample: requests to draw.
    online: the engine to search with; None leaves it out.
    The figures are kept in the history. Raises InputError for a log that is none, NotFoundError, MissingExtraError.
    """
    parsed, folder = _resolve(spec, base, None, None)
    place = place_of_spec(parsed, folder / parsed.out)
    asked = parsed.model_copy(update={"out": str(place.out.absolute())})
    run_context = prepare(asked, folder, listener or Listener())
    requests = read_log(Path(log) if isinstance(log, str | Path) else log, sample=sample, seed=parsed.seed)
    with contextlib.ExitStack() as held:
        opened = held.enter_context(_open(store, place))
        table = None if expansion is None else held.enter_context(open_expansion(opened, expansion))
        several = len(versions) > 1
        looked = [
            held.enter_context(looked_up(run_context, opened, v, f"offline {v:06d}" if several and v else "offline"))
            for v in versions or (None,)
        ]
        ways: list[Way] = [*looked]
        if online is not None:
            same = int(looked[0].view.version.facts["k"])  # or the longer lists would win
            ways.append(searched(run_context, engine=online, k=candidates_per_key or same))
        funnel = Funnel(table, k, candidates_per_key)
        return replay_ways(run_context, requests, ways, funnel, version=looked[0].view.version.number)[0]


def published(
    generator: SpecLike | None = None, *, store: StoreLike | None = None, out: str | Path | None = None
) -> list[listing.Published]:
    """What is published: of one generator, of all in a store, or of all that have snapshots in `out`."""
    if generator is not None:
        places = [_place_in_store(generator, out)]
    elif store is not None:
        with _open(store, Place("", Path(out or OUT))) as opened:
            return [listing.published(opened, name, now=time.time()) for name in opened.generators()]
    else:
        places = [place_of_name(name, Path(out or OUT)) for name in list_generators(Path(out or OUT))]
    found = []
    for place in places:
        with _open(store, place) as opened:
            if generator is not None or opened.pointer(place.generator) is not None:
                found.append(listing.published(opened, place.generator, now=time.time()))
    return found


def _note(listener: Listener, trouble: str | None) -> None:
    if trouble:
        listener.note(trouble)


@contextlib.contextmanager
def _open(store: StoreLike | None, place: Place) -> Iterator[Store]:
    """The store, for as long as it is needed; one that is open already stays open."""
    if store is None or isinstance(store, str | Path):
        with contextlib.closing(open_store(place.url(None if store is None else str(store)))) as opened:
            yield opened
    else:
        yield store


def _place(generator: SpecLike, out: str | Path | None, version: int | None) -> Place:
    """Where the generator's snapshots are; NotFoundError where a name has none."""
    if _is_name(generator):
        return place_of_name(str(generator), Path(out or OUT), version)
    spec, folder = _resolve(generator, None, None, None)
    return place_of_spec(spec, Path(out) if out is not None else folder / spec.out)


def _place_in_store(generator: SpecLike, out: str | Path | None) -> Place:
    """The same where the snapshots may be on another machine."""
    if _is_name(generator):
        return place_in_store(str(generator), Path(out or OUT))
    return _place(generator, out, None)


def _is_name(generator: SpecLike) -> bool:
    return isinstance(generator, str) and not generator.endswith(".toml")


def _resolve(
    spec: SpecLike, base: str | Path | None, items: object | None, queries: object | None
) -> tuple[GeneratorSpec, Path]:
    if isinstance(spec, GeneratorSpec):
        return spec, Path(base or ".")
    if isinstance(spec, str | Path):
        return _load_spec(Path(spec)), Path(base) if base else Path(spec).absolute().parent
    tables = dict(spec)
    for side, data in (("items", items), ("queries", queries)):
        if data is not None:
            tables[side] = TABLE_IN_MEMORY | dict(tables.get(side) or {})
    return parse_model(GeneratorSpec, tables, "the spec"), Path(base or ".")
