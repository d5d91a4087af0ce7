"""Build an index into a folder once, with a manifest that marks it as finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearcast.engines.base import Index, Resources
from nearcast.storage.artifacts import Artifacts

__all__ = ["ensure_index"]


def ensure_index(
    artifacts: Artifacts, name: str, manifest: dict[str, Any], resources: Resources, build: Callable[[], Index]
) -> Path:
    """Return the folder of a saved index; build and save it if there is none.

    The built index is dropped: every join opens it from the folder, here or on another machine.
    """

    def write(folder: Path) -> dict[str, Any]:
        build().save(folder, resources)
        return manifest

    return artifacts.ensure(name, write)
