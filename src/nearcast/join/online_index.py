"""Open the online index of a generator: an index over its items, searched at request time by `join.single_search`.

Uses the items and the index of a run if they exist. Otherwise builds them below <generator>/online: runs remove their
own old artifacts, and must not remove these. Search parameters are calibrated as in a run, and cached. Knows nothing of
snapshots, stores or services.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from nearcast.engines import ENGINES
from nearcast.engines.base import Index, IndexSpec, JoinRequest, SearchParams
from nearcast.engines.faiss_common import FaissIndex, faiss
from nearcast.engines.index_folder import ensure_index
from nearcast.errors import DamagedError, SpecError
from nearcast.files import fingerprint, is_done, read_manifest, verify, write_text
from nearcast.join.calibrate import calibrate, make_workload
from nearcast.join.context import RunContext, prepare
from nearcast.join.current_tables import open_current_inputs, wait_for_lock
from nearcast.join.inputs import open_sources
from nearcast.join.listener import Listener
from nearcast.join.open_index import index_inputs, index_name
from nearcast.join.plan_join import make_request, make_sample
from nearcast.join.single_search import OnlineIndex, SearchSettings
from nearcast.kernels import list_scorer
from nearcast.measure.recall import Recall, sample_rows
from nearcast.sources.ingest import Inputs
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.storage.locations import Location, absolute_location, parse_location
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["ONLINE_ENGINES", "OnlineIndex", "open_online"]

ONLINE_ENGINES = {name: engine.search_param for name, engine in ENGINES.items() if engine.search_param is not None}
WAIT_SECONDS = 0.2
UNSEEN = 1 << 62  # future queries: the sample is never all of them


def open_online(
    spec: GeneratorSpec,
    base: Path,
    out: Location,
    *,
    engine: str = "faiss-hnsw",
    recall: float = 0.95,
    listener: Listener | None = None,
) -> OnlineIndex:
    """Open the online index of a generator; read its items and build the index if needed.

    Paths of the spec are relative to `base`; `out` is the folder of the snapshots of all generators. The items are
    the spec's current files. Waits while another process builds the same index. Raises MissingExtraError without faiss,
    SpecError for an engine that cannot search single queries, InputError for bad data.
    """
    if engine not in ONLINE_ENGINES:
        raise SpecError(f"engine is {engine!r}: an online index is one of {', '.join(ONLINE_ENGINES)}")
    if not 0 < recall <= 1:
        raise SpecError(f"recall is {recall}; it is above 0 and at most 1")
    if spec.score.columns:
        raise SpecError(
            "an online index searches by vectors alone, and this generator has a [score]; remove one of them"
        )
    faiss()  # before any work
    own = spec.engine == engine
    online_spec = spec.model_copy(
        update={
            "engine": engine,
            "engine_settings": spec.engine_settings if own else {},
            "recall": recall,
            "exclude_self": spec.exclude_self or spec.queries is None,  # a sampled query must not find itself
            "out": absolute_location(parse_location(out)),
        }
    )
    run = prepare(online_spec, base, listener or Listener())
    home = run.workspace.home / "online"
    with wait_for_lock(home / ".lock", f"the online index of {spec.name!r}", run.listener):
        sources = open_sources(online_spec, base, run.listener)
        inputs = open_current_inputs(run, sources, home)
        request = make_request(run.spec, inputs, None)
        opened = _open_index(run, request, inputs, home, own=own)
        params, reached = _choose_params(run, request, opened, inputs, home)
        _tidy(run, home, inputs)
    return OnlineIndex(
        SearchSettings(engine, online_spec.k, recall, params, reached),
        opened.index,
        list_scorer(inputs.items.vectors.whole(), Metric(request.metric)),
        inputs.items.ids.slice(),
        items_fingerprint=inputs.items.fingerprint.removeprefix("items-"),
    )


@dataclass(frozen=True, slots=True)
class _OpenedIndex:
    """An index, and its folder."""

    index: FaissIndex
    folder: Path


def _open_index(run: RunContext, request: JoinRequest, inputs: Inputs, home: Path, *, own: bool) -> _OpenedIndex:
    """Open the index of a run with this engine or of an earlier call; build it if there is none."""
    items = inputs.items.vectors
    search_param = run.engine.search_param
    assert search_param is not None
    free = run.settings.model_copy(update={search_param: None})  # found for the recall, whatever the spec fixes
    spec = IndexSpec(inputs.metric, free, run.spec.seed)
    made_of = index_inputs(run, inputs)
    folder = run.workspace.artifacts / index_name(made_of)
    if own and is_done(folder):
        try:
            verify(folder, contents=False)
            return _OpenedIndex(cast(FaissIndex, run.engine.open(folder, items, spec)), folder)
        except (OSError, DamagedError):  # a run removed it at this moment, or it is damaged: build another
            pass
    build_spec = spec
    if not own:
        made_of.append("online")
        if "build_threads" in type(free).model_fields:  # the bytes of an online index need not be reproducible
            threads = {"build_threads": run.resources.threads}
            build_spec = replace(spec, settings=free.model_copy(update=threads))
    name = index_name(made_of)

    def build() -> Index:
        workload = make_workload(inputs.queries.vectors, request, run.spec.seed)
        return run.engine.build(items, build_spec, run.resources, workload=workload, progress=run.listener.progress)

    with run.meter.stage("build"):
        folder = ensure_index(LocalArtifacts(home), name, {"made_of": made_of}, run.resources, build)
    return _OpenedIndex(cast(FaissIndex, run.engine.open(folder, items, spec)), folder)


def _choose_params(
    run: RunContext, request: JoinRequest, opened: _OpenedIndex, inputs: Inputs, home: Path
) -> tuple[SearchParams, Recall | None]:
    """Return the cheapest search parameters that reach the recall, cached or found; exact ones if none do."""
    spec, index, made = run.spec, opened.index, opened.folder.name
    n = inputs.queries.vectors.n
    points = index.operating_points(spec.k)
    if spec.recall == 1 or n < 2:
        return points[-1], None
    made_of = [
        made,
        inputs.queries.fingerprint,
        spec.k,
        spec.recall,
        spec.exclude_self,
        spec.measure.calibration,
        spec.seed,
    ]
    path = home / f"effort-{made.removeprefix('index-')}-{fingerprint([*made_of, __version__])[:16]}.json"
    if path.is_file():
        return _read_params(path)
    size = min(spec.measure.calibration, n // 2)
    choosing, checking = sample_rows(n, (size, size), spec.seed)
    with run.meter.stage("calibrate"):
        sample = make_sample(run, request, index, inputs, np.concatenate([choosing, checking]), home / "truth")
        calibration = calibrate(
            index, points, sample, run.resources, n_choosing=size, n_queries=UNSEEN, n_report=2 * size
        )
    reached, params = calibration.held_out, dict(calibration.params)
    words = ", ".join(f"{name} {value:,}" for name, value in params.items())
    run.listener.note(
        f"{run.engine.name} with {words} reaches recall {reached.value:.4f} ({reached.low:.4f} to "
        f"{reached.high:.4f}) on {reached.sample:,} held-out queries"
    )
    facts = {"made_of": made_of, "effort": params, "held_out": asdict(reached)}
    write_text(path, json.dumps(facts, indent=1) + "\n")
    return params, reached


def _read_params(path: Path) -> tuple[SearchParams, Recall]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(value) for name, value in facts["effort"].items()}, Recall(**facts["held_out"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}); remove it, and the search parameters are found again"
        ) from error


def _tidy(run: RunContext, home: Path, inputs: Inputs) -> None:
    """Remove artifacts of other items, and copies of the artifacts of runs. Open files stay readable."""
    for path in [*home.glob("items-*"), *home.glob("queries-*")]:
        if path not in (inputs.items.folder, inputs.queries.folder):
            shutil.rmtree(path)
    for path in home.glob("index-*"):
        if not is_done(path) or read_manifest(path)["made_of"][0] != inputs.items.fingerprint:
            shutil.rmtree(path)
    for path in home.glob("effort-*"):
        made = f"index-{path.name.split('-')[1]}"
        if not is_done(home / made) and not is_done(run.workspace.artifacts / made):
            path.unlink()
