"""The name of an index, and the open index of a join: opened once per process, rather than once per task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nearcast.engines import ENGINES
from nearcast.engines.base import Index, IndexSpec
from nearcast.files import fingerprint, is_done, verify
from nearcast.join.context import RunContext
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.types import Metric
from nearcast.version import __version__

__all__ = ["index_inputs", "index_name", "open_index", "open_run_index"]


@lru_cache(maxsize=1)
def open_index(
    items: Path, index: Path, engine: str, engine_settings: tuple[tuple[str, Any], ...], metric: Metric
) -> tuple[Index, IngestedTable]:
    """Open an index and its items. Keeps the last one open; call `open_index.cache_clear()` to close it."""
    table = open_ingested_table(items)
    if is_done(index):
        verify(index, contents=False)
    chosen = ENGINES[engine]
    settings = chosen.settings.model_validate(dict(engine_settings))
    return chosen.open(index, table.vectors, IndexSpec(metric, settings)), table


def open_run_index(run: RunContext, items: IngestedTable, index: str, metric: Metric) -> tuple[Index, IngestedTable]:
    """Open the index of a run by its artifact name. An engine that persists no index has no artifact."""
    folder = run.artifacts.open(index) if run.engine.persists_index else items.folder.parent / index
    return open_index(items.folder, folder, run.engine.name, _as_pairs(run.settings.model_dump()), metric)


def index_inputs(run: RunContext, inputs: Inputs) -> list[Any]:
    """Return the inputs of an index that does not depend on its workload."""
    return [inputs.items.fingerprint, run.engine.name, run.settings.model_dump(), inputs.metric, run.spec.seed]


def index_name(made_of: list[Any]) -> str:
    """Return the folder name of an index: equal for equal inputs."""
    return f"index-{fingerprint([*made_of, __version__])[:16]}"


def _as_pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return a mapping as a value that can be hashed and compared."""
    return tuple(sorted(values.items()))
