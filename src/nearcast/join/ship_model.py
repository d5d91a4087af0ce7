"""Send the files of a ranking model to workers on other hosts, as an artifact of the run.

Sent are the model's file, and for a Python module the modules beside it, since it may import them. An installed module
and a model in a bucket are not sent: every worker has or reaches them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nearcast.errors import NearcastError, SpecError
from nearcast.join.rank import make_rank_settings
from nearcast.spec import GeneratorSpec
from nearcast.storage.artifacts import Artifacts

__all__ = ["find_model_folder", "ship_model"]

MODEL = "model"  # name of the artifact in the results of a run


def ship_model(spec: GeneratorSpec, base: Path, results: Artifacts) -> None:
    """Commit the files of the ranking model, if there is one. Raises SpecError for a path outside the spec's folder."""
    if spec.rank is None:
        return
    name = spec.rank.model or str(spec.rank.function)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise SpecError(
            f"rank.model is {name}, which other hosts cannot read; move it beside the spec, or into a bucket"
        )

    def write(folder: Path) -> dict[str, Any]:
        for path in _list_files(name, base):
            copy = folder / path.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        return {"name": name}

    results.ensure(MODEL, write)


def find_model_folder(spec: GeneratorSpec, base: Path, content: str, results: Artifacts) -> Path:
    """Return the folder that holds the model with this content hash: the spec's own on this host, else the one sent."""
    try:
        settings = make_rank_settings(spec, base)
        if settings is not None and settings.content == content:
            return base
    except (NearcastError, OSError):
        pass  # not on this host
    return results.open(MODEL) if results.facts(MODEL) is not None else base


def _list_files(name: str, base: Path) -> list[Path]:
    """List the files of a model that are in the spec's folder."""
    module, colon, _ = name.partition(":")
    if not colon:
        return [path for path in [base / name] if path.is_file()]
    first = module.split(".")[0]
    package = base / first
    if not package.is_dir() and not package.with_suffix(".py").is_file():
        return []  # installed
    found = [path for path in base.glob("*.py") if path.is_file()]
    return found + [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
