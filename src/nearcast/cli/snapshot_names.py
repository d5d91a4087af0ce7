"""How a snapshot is named on the command line."""

from __future__ import annotations

from pathlib import Path

from nearcast.errors import NotFoundError
from nearcast.table.snapshot import Snapshot, find_snapshot, list_generators, open_snapshot

__all__ = ["find_named"]


def find_named(out: Path, name: str | None) -> Snapshot:
    """The snapshot of a name: GENERATOR (its newest), GENERATOR/VERSION, or a snapshot's folder.

    Without a name: the newest of the only generator there is.
    """
    if name is None:
        known = list_generators(out)
        if len(known) != 1:
            have = f"there are {', '.join(known)}" if known else f"{out} holds none; run one, or say --out"
            raise NotFoundError(f"name a generator: {have}")
        return find_snapshot(out, known[0])
    if (Path(name) / "manifest.json").is_file():
        return open_snapshot(Path(name))
    generator, _, version = name.partition("/")
    if version and not version.isdigit():
        raise NotFoundError(f"{name!r} is no snapshot: write GENERATOR, GENERATOR/VERSION such as {generator}/3")
    return find_snapshot(out, generator, int(version) if version else None)
