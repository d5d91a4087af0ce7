"""Build an index into a folder that is named by the fingerprint of items and settings, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearcast.engines.base import Engine, EngineSettings, Resources, Workload
from nearcast.files import finish, fresh_folder, is_done
from nearcast.types import Metric, Progress, Vectors

__all__ = ["ensure_index"]


def ensure_index(
    engine: Engine,
    items: Vectors,
    metric: Metric,
    settings: EngineSettings,
    folder: Path,
    manifest: dict[str, Any],
    *,
    workload: Workload,
    seed: int,
    resources: Resources,
    progress: Progress,
) -> bool:
    """Have the index in `folder`; returns whether it was there already. An unfinished one is built afresh.

    The built index is let go of: whoever joins opens it from the folder, here or on another machine.
    """
    if is_done(folder):
        return True
    fresh_folder(folder)
    engine.build(items, metric, settings, workload=workload, seed=seed, resources=resources, progress=progress).save(
        folder
    )
    finish(folder, manifest)
    return False
