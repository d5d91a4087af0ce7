"""Completion of names in a shell: generators and versions of their snapshots, as far as a local folder has them.

A folder is listed and nothing else is read: a completion must not wait for a bucket or a store.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from nearcast.errors import NearcastError
from nearcast.storage.locations import Location, parse_location

__all__ = ["GeneratorName", "complete_versions"]


class GeneratorName(click.ParamType[str]):
    """Name of a generator. specs: or the file of a spec. versions: or GENERATOR/VERSION, or a folder."""

    name = "text"

    def __init__(self, *, specs: bool = False, versions: bool = False) -> None:
        self._specs = specs
        self._versions = versions

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Return the generators; the shell completes files where none matches."""
        generator, slash, _ = incomplete.partition("/")
        names = _list_names(ctx, "*/snapshots")
        if self._versions and slash:
            names = [f"{generator}/{version}" for version in _list_versions(ctx, generator)]
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        files = [CompletionItem(incomplete, type="file")] if self._specs or self._versions else []
        return [*files, *found]


def complete_versions(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the versions of the snapshots of the generator that was named before."""
    generator = str(ctx.params.get("generator") or "")
    return [CompletionItem(version) for version in _list_versions(ctx, generator) if version.startswith(incomplete)]


def _list_names(ctx: click.Context, pattern: str) -> list[str]:
    folder = _find_folder(ctx)
    return [] if folder is None else sorted(path.parent.name for path in folder.glob(pattern))


def _list_versions(ctx: click.Context, generator: str) -> list[str]:
    folder = _find_folder(ctx)
    found = [] if folder is None or not generator else sorted((folder / generator / "snapshots").glob("[0-9]*"))
    return [str(int(path.name)) for path in found if path.name.isdigit()]


def _find_folder(ctx: click.Context) -> Path | None:
    """Return the local folder of the snapshots; None for a bucket."""
    try:
        out: Location = parse_location(ctx.params.get("out") or os.environ.get("NEARCAST_OUT") or "nearcast")
    except NearcastError:
        return None
    return out if isinstance(out, Path) else None
