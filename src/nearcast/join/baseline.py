"""Which earlier snapshot a run compares its lists and vectors with: the one that is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearcast.table.snapshot import Snapshot

__all__ = ["Baseline", "Earlier"]


@dataclass(frozen=True, slots=True)
class Earlier:
    """The snapshot that the measures of change compare with."""

    snapshot: Snapshot | None  # None: there is no earlier one
    served: bool  # whether look-ups answer from it

    @property
    def facts(self) -> dict[str, int | bool] | None:
        """What the manifest says of it."""
        return None if self.snapshot is None else {"version": self.snapshot.version, "served": self.served}


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is known of earlier snapshots: which is served, and which were refused or withdrawn."""

    served: int | None = None  # None: nothing is published, or nobody knows
    rejected: frozenset[int] = frozenset()

    def choose(self, snapshots: Sequence[Snapshot]) -> Earlier:
        """Return the served one of these (ascending), else the newest that was not rejected, else the newest."""
        served = [snapshot for snapshot in snapshots if snapshot.version == self.served]
        sound = [snapshot for snapshot in snapshots if snapshot.version not in self.rejected]
        chosen = next(iter([*served, *reversed(sound), *reversed(snapshots)]), None)
        return Earlier(chosen, served=bool(served))
