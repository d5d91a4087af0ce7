"""The verbs that say why: of one item in one list, and of what changed between two snapshots."""

from __future__ import annotations

from pathlib import Path

from nearcast.api.arguments import OUT
from nearcast.errors import NotFoundError
from nearcast.join.diff import Diff, diff_snapshots
from nearcast.join.explain import Explanation
from nearcast.join.explain import explain as explain_pair
from nearcast.table.snapshot import find_snapshot, list_snapshots

__all__ = ["diff", "explain"]


def explain(
    generator: str, query: str | int, item: str | int, *, out: str | Path = OUT, version: int | None = None
) -> Explanation:
    """Why an item is in the list of a query, or not, in the newest snapshot; see `nearcast.join.explain`.

    version: a snapshot, whose inputs must still be there: those of the newest are.
    """
    snapshot = find_snapshot(Path(out), generator, version)
    return explain_pair(snapshot, Path(out) / generator / "artifacts", query, item)


def diff(
    generator: str, before: int | None = None, after: int | None = None, *, out: str | Path = OUT, sample: int = 2000
) -> Diff:
    """What changed between two snapshots, the newest two by default, and why; see `nearcast.join.diff`."""
    newer = find_snapshot(Path(out), generator, after)
    if before is None:
        older = [found for found in list_snapshots(Path(out), generator) if found.version < newer.version]
        if not older:
            raise NotFoundError(f"{generator} has no snapshot before {newer.name} to compare it with")
        return diff_snapshots(older[-1], newer, sample)
    return diff_snapshots(find_snapshot(Path(out), generator, before), newer, sample)
