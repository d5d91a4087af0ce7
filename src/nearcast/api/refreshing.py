"""The verbs of every night: monitor what is served, and refresh it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.api.arguments import OUT, SpecLike, StoreLike, is_name, opened_store, resolve
from nearcast.api.publications import publish
from nearcast.api.runs import run as run_spec
from nearcast.errors import StoreError
from nearcast.join.context import prepare
from nearcast.join.listener import Listener
from nearcast.monitoring.monitor_pass import Watched, watch
from nearcast.publishing.targets import find_target, target_of_spec
from nearcast.serve.key_sampling import SAMPLES

if TYPE_CHECKING:
    from nearcast.publishing.publication import Publication
    from nearcast.table.snapshot import Snapshot

__all__ = ["Refreshed", "monitor", "refresh"]


def monitor(
    generator: SpecLike,
    *,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    samples: str | Path | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> Watched:
    """Check the newest run against its promise and its usual figures, and what is served against today's items.

    generator: a spec, whose items are today's; for a name only the runs are checked.
    base: the folder that the spec's paths are relative to; the spec file's own, else the current one.
    samples: folder where services leave the keys that they were asked for; "lookups" below `out`.
    What is found is kept in the history, <out>/history.sqlite. A store that cannot be read is an alert, and the error
    is in `failure`. Raises NotFoundError where there is neither a run nor
    anything published; InputError for items or queries that do not pass the checks.
    """
    listener = listener or Listener()
    if is_name(generator):
        place = find_target(str(generator), Path(out or OUT))
        return watch(place.out, place.generator, listener, run=None, store=None, samples=place.out / SAMPLES)
    spec, folder = resolve(generator, base, None, None)
    place = target_of_spec(spec, Path(out) if out is not None else folder / spec.out)
    run = prepare(spec.model_copy(update={"out": str(place.out.absolute())}), folder, listener)
    found = Path(samples) if samples is not None else place.out / SAMPLES
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(opened_store(store, place))
        except StoreError as error:  # what the runs say is said all the same
            at = place.out, place.generator
            return watch(*at, listener, run=None, store=None, samples=found, failure=error)
        return watch(place.out, place.generator, listener, run=run, store=opened, samples=found)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh has led to."""

    snapshot: Snapshot
    reused: bool  # the inputs were those of the last snapshot: nothing was joined
    publication: Publication
    watched: Watched | None  # None: nobody asked for the monitor

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "generator": self.snapshot.generator,
            "snapshot": str(self.snapshot.folder),
            "version": self.snapshot.version,
            "reused": self.reused,
            "publication": self.publication.as_dict(),
            "monitor": None if self.watched is None else self.watched.as_dict(),
        }


def refresh(
    spec: str | Path,
    *,
    store: StoreLike | None = None,
    watch_too: bool = False,
    listener: Listener | None = None,
) -> Refreshed:
    """Have what is served be up to date: run, audit and publish, and with `watch_too` a pass of the monitor.

    What is done already is not done again: with unchanged inputs nothing is joined, and a snapshot that is current is
    not copied. Raises what `run` and `publish` raise, and then readers keep what they had: TargetError for a
    snapshot below its promise, AuditError for one that failed its audit, BusyError while another process is at it.
    """
    parsed, folder = resolve(Path(spec), None, None, None)  # once: the file may change meanwhile
    made = run_spec(parsed, base=folder, listener=listener)
    done = publish(parsed, store=store, out=folder / parsed.out, listener=listener)
    watched = monitor(parsed, base=folder, store=store, listener=listener) if watch_too else None
    return Refreshed(made.snapshot, made.reused, done, watched)
