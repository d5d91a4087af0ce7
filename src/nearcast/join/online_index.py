"""Open the real-time half of a generator: an index over its items, to be searched at request time by `join.search`.

Takes the items and the index that a run has left where they are there, and makes them below <generator>/online where
they are not: runs tidy their own artifacts, and must not take these away. Which effort reaches a recall is found as in
a run, on sampled queries against exact truth, and remembered. Knows nothing of snapshots, stores or services.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from nearcast.engines.base import Effort, Index
from nearcast.engines.faiss_common import faiss
from nearcast.engines.index_folder import ensure_index
from nearcast.errors import DamagedError, SpecError
from nearcast.files import fingerprint, is_done, read_manifest, verify, write_text
from nearcast.join.calibrate import find_effort, workload_of
from nearcast.join.context import RunContext, prepare
from nearcast.join.current_tables import Place, todays_inputs, waiting_for
from nearcast.join.inputs import open_sources
from nearcast.join.listener import Listener
from nearcast.join.single_search import OnlineIndex, Searched
from nearcast.join.stages import calibration_sample, index_name, made_from
from nearcast.kernels import list_scorer
from nearcast.measure.recall import Recall, sample_rows
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["ONLINE_ENGINES", "OnlineIndex", "open_online"]

ONLINE_ENGINES = {"faiss-hnsw": "ef_search", "faiss-ivf": "nprobe"}  # and what their effort is called
WAIT_SECONDS = 0.2
UNSEEN = 1 << 62  # queries to come: the sample is never all of them


def open_online(
    spec: GeneratorSpec,
    base: Path,
    out: Path,
    *,
    engine: str = "faiss-hnsw",
    recall: float = 0.95,
    listener: Listener | None = None,
) -> OnlineIndex:
    """Open the online index of a generator, making first whatever is not there yet.

    Paths of the spec are relative to `base`; `out` is the folder of the snapshots of all generators. The items are
    the spec's files as they are now. Waits while another process makes the same index. Raises MissingExtraError
    without faiss, SpecError for an engine that cannot search, InputError for bad data.
    """
    if engine not in ONLINE_ENGINES:
        raise SpecError(f"engine is {engine!r}: an online index is one of {', '.join(ONLINE_ENGINES)}")
    if not 0 < recall <= 1:
        raise SpecError(f"recall is {recall}; it is above 0 and at most 1")
    if spec.score.columns:
        raise SpecError("an online index goes by vectors alone, and this generator has a [score]; leave one out")
    faiss()  # before any work
    own = spec.engine == engine
    asked = spec.model_copy(
        update={
            "engine": engine,
            "engine_settings": spec.engine_settings if own else {},
            "recall": recall,
            "exclude_self": spec.exclude_self or spec.queries is None,  # to find itself is no merit of a sample
            "out": str(Path(out).absolute()),
        }
    )
    run = prepare(asked, base, listener or Listener())
    home = run.workspace.home / "online"
    with waiting_for(home / ".lock", f"the online index of {spec.name!r}", run.listener):
        sources = open_sources(asked, base, run.listener)
        place, inputs = todays_inputs(run, sources, home)
        opened = _opened(run, place, inputs, home, own=own)
        effort, reached = _effort(run, opened.index, opened.folder.name, place, inputs, home)
        _tidy(run, home, place)
    return OnlineIndex(
        engine=engine,
        index=opened.index,
        scorer=list_scorer(inputs.items.vectors.whole(), Metric(asked.metric)),
        ids=inputs.items.ids,
        k=asked.k,
        recall=recall,
        effort=effort,
        reached=reached,
        items_fingerprint=place.items.name.removeprefix("items-"),
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """An index, and the folder that it is from."""

    index: Searched
    folder: Path


def _opened(run: RunContext, place: Place, inputs: Inputs, home: Path, *, own: bool) -> _Opened:
    """The index of a run with this engine, or of an earlier call; built where there is none."""
    vectors = inputs.items.vectors
    effort = ONLINE_ENGINES[run.engine.name]
    free = run.settings.model_copy(update={effort: None})  # found for the recall, whatever the run was told
    made_of = made_from(run, place.items)
    folder = run.workspace.artifacts / index_name(made_of)
    if own and is_done(folder):
        try:
            verify(folder, contents=False)
            return _Opened(cast(Searched, run.engine.open(folder, vectors, run.spec.metric, free)), folder)
        except (OSError, DamagedError):  # tidied away in this moment, or worse: an index of our own is as good
            pass
    building = free
    if not own:
        made_of.append("online")
        if "build_threads" in type(free).model_fields:  # nobody compares the bytes of an online index
            building = free.model_copy(update={"build_threads": run.resources.threads})
    folder = home / index_name(made_of)
    with run.meter.stage("build"):
        ensure_index(
            run.engine,
            vectors,
            run.spec.metric,
            building,
            folder,
            {"made_of": made_of},
            workload=workload_of(inputs.queries.vectors, run.spec.k, run.spec.recall, run.spec.seed),
            seed=run.spec.seed,
            resources=run.resources,
            progress=run.listener.progress,
        )
    return _Opened(cast(Searched, run.engine.open(folder, vectors, run.spec.metric, free)), folder)


def _effort(
    run: RunContext, index: Index, made: str, place: Place, inputs: Inputs, home: Path
) -> tuple[Effort, Recall | None]:
    """The least effort that reaches the recall, remembered from an earlier call or found; full where none does."""
    spec, efforts, n = run.spec, index.efforts(run.spec.k), inputs.queries.vectors.n
    if spec.recall == 1 or n < 2:
        return efforts[-1], None
    made_of = [made, place.queries.name, spec.k, spec.recall, spec.exclude_self, spec.measure.calibration, spec.seed]
    path = home / f"effort-{made.removeprefix('index-')}-{fingerprint([*made_of, __version__])[:16]}.json"
    if path.is_file():
        return _remembered(path)
    size = min(spec.measure.calibration, n // 2)
    choosing, checking = sample_rows(n, (size, size), spec.seed)
    with run.meter.stage("calibrate"):
        found = find_effort(
            efforts,
            spec.recall,
            calibration_sample(run, index, inputs, choosing, home / "truth"),
            calibration_sample(run, index, inputs, checking, home / "truth"),
            n_queries=UNSEEN,
            n_report=2 * size,
        )
    reached = found.held_out
    words = ", ".join(f"{name} {value:,}" for name, value in found.effort.items())
    run.listener.note(
        f"{run.engine.name} with {words} reaches recall {reached.value:.4f} ({reached.low:.4f} to "
        f"{reached.high:.4f}) on {reached.sample:,} queries that it was not chosen on"
    )
    facts = {"made_of": made_of, "effort": dict(found.effort), "held_out": asdict(reached)}
    write_text(path, json.dumps(facts, indent=1) + "\n")
    return found.effort, reached


def _remembered(path: Path) -> tuple[Effort, Recall]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(value) for name, value in facts["effort"].items()}, Recall(**facts["held_out"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); remove it, and the effort is found again") from error


def _tidy(run: RunContext, home: Path, place: Place) -> None:
    """Remove what was made of other items, and copies of what runs have. Whoever has it open keeps it."""
    for path in [*home.glob("items-*"), *home.glob("queries-*")]:
        if path not in (place.items, place.queries):
            shutil.rmtree(path)
    for path in home.glob("index-*"):
        if not is_done(path) or read_manifest(path)["made_of"][0] != place.items.name:
            shutil.rmtree(path)
    for path in home.glob("effort-*"):
        made = f"index-{path.name.split('-')[1]}"
        if not is_done(home / made) and not is_done(run.workspace.artifacts / made):
            path.unlink()
