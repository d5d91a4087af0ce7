"""Functions of a nightly job: refresh a generator, and monitor it."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.api.arguments import OUT, SpecLike, StoreLike, is_name, open_target_store, resolve_out, resolve_spec
from nearcast.api.publications import publish
from nearcast.api.runs import run as run_spec
from nearcast.errors import StoreError
from nearcast.join.context import prepare
from nearcast.join.listener import Listener
from nearcast.monitoring.alert_owners import check_alert_names
from nearcast.monitoring.monitor_pass import MonitorReport, run_monitor
from nearcast.publishing.targets import find_target, read_spec_target, resolve_store_url
from nearcast.serve.key_sampling import SAMPLES
from nearcast.storage.locations import absolute_location, parse_location
from nearcast.storage.open_storage import join_location

if TYPE_CHECKING:
    from nearcast.publishing.publication import Publication
    from nearcast.table.snapshot import Snapshot

__all__ = ["RefreshResult", "monitor", "refresh"]


def monitor(
    generator: SpecLike,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    samples: str | Path | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> MonitorReport:
    """Check the newest run, and compare the current version with today's items.

    generator: a spec, whose items are today's; with a name, only the runs are checked.
    base: folder that paths of the spec are relative to; default: the folder of the spec file, else the current one.
    samples: location of the sampled keys that services write; default: "lookups" in `out`.
    Results are added to the history in `out`. A store that cannot be read is an alert, with the error in
    `failure`. Raises NotFoundError if there is neither a run nor a published version, InputError if the inputs do not
    pass the checks.
    """
    listener = listener or Listener()
    if is_name(generator):
        place = find_target(str(generator), parse_location(out or OUT))
        return run_monitor(
            place.out, place.generator, listener, run=None, store=None, samples=join_location(place.out, SAMPLES)
        )
    spec, folder = resolve_spec(generator, base, None, None)
    check_alert_names(spec.monitor, spec.name)
    place = read_spec_target(spec, resolve_out(out, spec, folder))
    run = prepare(spec.model_copy(update={"out": absolute_location(place.out)}), folder, listener)
    found = parse_location(join_location(place.out, SAMPLES) if samples is None else samples)
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_target_store(store, place))
        except StoreError as error:  # the runs can be checked without the store
            at = place.out, place.generator
            return run_monitor(*at, listener, run=None, store=None, samples=found, failure=error)
        return run_monitor(place.out, place.generator, listener, run=run, store=opened, samples=found)


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """Snapshot, publication and alerts of a refresh."""

    snapshot: Snapshot
    reused: bool  # the inputs had not changed: nothing was joined
    publication: Publication
    watched: MonitorReport | None  # None without monitoring

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "generator": self.snapshot.generator,
            "snapshot": self.snapshot.url,
            "version": self.snapshot.version,
            "reused": self.reused,
            "publication": self.publication.as_dict(),
            "monitor": None if self.watched is None else self.watched.as_dict(),
        }


def refresh(
    spec: str | Path,
    *,
    store: StoreLike | None = None,
    with_monitor: bool = False,
    watch_too: bool | None = None,
    listener: Listener | None = None,
) -> RefreshResult:
    """Run, audit and publish. Idempotent: unchanged inputs are not joined again, a current snapshot is not copied.

    with_monitor: then check the newest run and the current version, as `monitor` does. watch_too: its earlier name.
    Raises TargetError if recall is below the target, AuditError if the audit fails, BusyError if another process works
    on the generator, and the other errors of `run` and `publish`. After an error the current version does not change.
    """
    if watch_too is not None:
        warnings.warn("refresh(watch_too=...) is now refresh(with_monitor=...)", DeprecationWarning, stacklevel=2)
        with_monitor = watch_too
    parsed, folder = resolve_spec(Path(spec), None, None, None)  # parse once: the file may change meanwhile
    if store is None:  # raises SpecError before the run
        resolve_store_url(parsed.publish, resolve_out(None, parsed, folder))
    made = run_spec(parsed, base=folder, listener=listener)
    done = publish(parsed, store=store, out=resolve_out(None, parsed, folder), base=folder, listener=listener)
    watched = monitor(parsed, base=folder, store=store, listener=listener) if with_monitor else None
    return RefreshResult(made.snapshot, made.reused, done, watched)
