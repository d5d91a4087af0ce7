"""Functions that explain: one item in one list, and the changes between two snapshots."""

from __future__ import annotations

from pathlib import Path

from nearcast.api.arguments import OUT
from nearcast.errors import NotFoundError
from nearcast.join.diff import Diff, diff_snapshots
from nearcast.join.explain import Explanation
from nearcast.join.explain import explain as explain_pair
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.locations import host_folder, parse_location
from nearcast.storage.open_storage import join_location
from nearcast.table.snapshot import find_snapshot, list_snapshots

__all__ = ["diff", "explain"]


def explain(
    generator: str, query: str | int, item: str | int, *, out: str | Path = OUT, version: int | None = None
) -> Explanation:
    """Explain why an item is or is not in the list of a query; see `nearcast.join.explain`.

    version: the snapshot. Its inputs must still exist; those of the newest do. Default: the newest.
    """
    location = parse_location(out)
    snapshot = find_snapshot(location, generator, version)
    here = host_folder(location) / generator / "artifacts"
    planned = snapshot.manifest.run.artifacts
    remote = open_artifacts(planned or join_location(location, generator, "artifacts"))
    return explain_pair(snapshot, here, query, item, remote=remote)


def diff(
    generator: str, before: int | None = None, after: int | None = None, *, out: str | Path = OUT, sample: int = 2000
) -> Diff:
    """Compare two snapshots (default: the newest two) and explain the changes; see `nearcast.join.diff`."""
    newer = find_snapshot(parse_location(out), generator, after)
    if before is None:
        older = [found for found in list_snapshots(parse_location(out), generator) if found.version < newer.version]
        if not older:
            raise NotFoundError(f"{generator} has no snapshot before {newer.name} to compare it with")
        return diff_snapshots(older[-1], newer, sample)
    return diff_snapshots(find_snapshot(parse_location(out), generator, before), newer, sample)
