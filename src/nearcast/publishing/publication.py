"""The request, the listener and the outcome of a publish or a rollback. Plain values; publishes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from nearcast.evaluation.judge_snapshot import LabelSettings
from nearcast.publishing.audit_values import Finding
from nearcast.publishing.copy_snapshot import CopyFigures
from nearcast.spec import AuditSpec, PublishSpec, ServeSpec
from nearcast.stores.base import PublishLock, Store
from nearcast.stores.canary_share import CanaryMode
from nearcast.table.snapshot import Snapshot

__all__ = ["Outcome", "Publication", "PublishListener", "PublishRequest", "SilentListener"]

Outcome = Literal["published", "already_current", "would_publish", "rolled_back", "canary_started"]


class PublishListener(Protocol):
    """Receives progress and notes of a publish; `nearcast.join.listener.Listener` is one."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of a stage are complete."""
        ...

    def note(self, text: str) -> None:
        """Report an event in one sentence."""
        ...


class SilentListener:
    """A listener that ignores everything."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Ignore the progress."""

    def note(self, text: str) -> None:
        """Ignore the note."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """Which snapshot to publish to which store, and how."""

    generator: str
    store: Store
    choose: Callable[[], Snapshot]  # called under the lock, so that no other process publishes a newer one meanwhile
    settings: PublishSpec
    audit: AuditSpec
    serving: ServeSpec
    accept: Mapping[str, str] = field(default_factory=dict)  # audit rules that may fail, with reasons
    named: bool = False  # the user named the version: it may be one that was rolled back
    repair: bool = False  # continue without parts of the store that cannot be read
    dry_run: bool = False
    canary: tuple[CanaryMode, float] | None = None  # mode and share: the version becomes a canary, not current
    replace_canary: bool = False  # end a live canary
    listener: PublishListener = field(default_factory=SilentListener)
    labels: LabelSettings = field(default_factory=LabelSettings)  # that the lists are judged by, and the promises
    before_move: Callable[[int, int, PublishLock], None] | None = None  # (current, new version): live updates follow

    def describe(self, version: int) -> str:
        """Return the version and its store in words."""
        return f"version {version:06d} of {self.generator} in {self.store.url}"


@dataclass(frozen=True, slots=True)
class Publication:
    """The outcome of a publish or a rollback."""

    generator: str
    store: str  # URL
    version: int  # current after it; of a dry run: the version that would be current; of a canary: its version
    before: int | None  # current before it
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    accepted: Mapping[str, str] | None = None
    copied: CopyFigures | None = None  # None: nothing had to be copied
    copy_seconds: float | None = None  # of a dry run: the least time at the throttle, None without a throttle
    retired: tuple[int, ...] = ()  # versions removed from the store
    removed_snapshots: tuple[int, ...] = ()  # versions whose snapshot folders were removed
    overlay_entries_cut: int = 0

    @property
    def name(self) -> str:
        """The version as displayed, for example 000007."""
        return f"{self.version:06d}"

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return asdict(self)
