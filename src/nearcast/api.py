"""The verbs of the command line, from Python.

Those that make a snapshot take a spec: a path to a TOML file, a mapping, or a parsed one. Those that publish it take
the name of a generator as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.errors import AuditError, PromiseError
from nearcast.expansion.settings import ExpansionSpec, load_expansion_spec
from nearcast.history.record import record_failed_audit, record_publication, record_run
from nearcast.join.context import prepare
from nearcast.join.estimate import RunEstimate
from nearcast.join.listen import Listener
from nearcast.join.run import Outcome, check_generator, run_generator
from nearcast.monitoring.watch import Watched, watch
from nearcast.publishing import listing, rollback
from nearcast.publishing import publish as publishing
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
    "check",
    "expand",
    "load_spec",
    "lookup",
    "monitor",
    "publish",
    "published",
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
