"""What came of a publish or a rollback, and who hears of it as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from nearcast.publishing.audit_rules import Finding
from nearcast.publishing.copy_snapshot import CopyFigures

__all__ = ["Outcome", "Publication", "PublishListener", "SilentListener"]

Outcome = Literal["published", "already_current", "would_publish", "rolled_back"]


class PublishListener(Protocol):
    """Hears of a publish as it goes; `nearcast.join.listener.Listener` is one."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage are complete."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class SilentListener:
    """Hears and says nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish or a rollback has led to."""

    generator: str
    store: str  # its URL
    version: int  # that is current now; of a dry run: that would be
    before: int | None  # that was current
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    accepted: Mapping[str, str] | None = None
    copied: CopyFigures | None = None  # None: nothing had to be copied
    copy_seconds: float | None = None  # that the copy took; of a dry run: takes at the least, None without a throttle
    retired: tuple[int, ...] = ()  # versions that the store no longer has
    removed_snapshots: tuple[int, ...] = ()  # versions whose folders were removed
    overlay_entries_cut: int = 0

    @property
    def name(self) -> str:
        """The version as people write it."""
        return f"{self.version:06d}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
