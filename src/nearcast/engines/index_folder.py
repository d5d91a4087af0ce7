"""Build an index into a folder once, with a manifest that marks it as finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearcast.engines.base import Index, Resources
from nearcast.files import finish, fresh_folder, is_done

__all__ = ["ensure_index"]


def ensure_index(folder: Path, manifest: dict[str, Any], resources: Resources, build: Callable[[], Index]) -> bool:
    """Build and save the index unless `folder` holds a finished one. Return whether it did.

    The built index is dropped: every join opens it from the folder, here or on another machine.
    """
    if is_done(folder):
        return True
    fresh_folder(folder)
    build().save(folder, resources)
    finish(folder, manifest)
    return False
