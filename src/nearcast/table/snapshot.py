"""Snapshots of a generator: find, open and commit them, in a local folder or in a bucket.

`out` is a location everywhere: a local folder, or a URL such as s3://bucket/prefix.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nearcast.errors import NotFoundError, StorageError
from nearcast.storage.artifacts import ArtifactFile
from nearcast.storage.host_cache import HostCache
from nearcast.storage.locations import Location, client_settings, parse_location
from nearcast.storage.open_storage import is_url, open_storage, parse_url
from nearcast.suggest import describe_generators
from nearcast.table.bucket_home import BucketHome
from nearcast.table.snapshot_home import NOTHING, LocalHome, SnapshotHome, hold_folder_of, open_snapshot
from nearcast.table.snapshot_reader import Candidates, Snapshot

__all__ = [
    "Candidates",
    "Snapshot",
    "commit_snapshot",
    "find_snapshot",
    "hold_for_reading",
    "hold_snapshot",
    "list_generators",
    "list_snapshots",
    "next_version",
    "open_home",
    "open_snapshot",
    "open_snapshot_url",
]

_buckets: dict[tuple[object, ...], SnapshotHome] = {}


def open_home(out: Location) -> SnapshotHome:
    """Open the home of the snapshots in `out`. Makes no request yet."""
    location = parse_location(out)
    return LocalHome(location) if isinstance(location, Path) else _open_bucket(location)


def _open_bucket(url: str) -> SnapshotHome:
    """Open a bucket once per process and settings: its connections and manifests are used again."""
    key = url, client_settings()
    if key not in _buckets:
        _buckets[key] = BucketHome(open_storage(url), url, HostCache())
    return _buckets[key]


def list_generators(out: Location) -> list[str]:
    """List the generators that have a snapshot in `out`."""
    return open_home(out).list_generators()


def list_snapshots(out: Location, generator: str) -> list[Snapshot]:
    """List all finished snapshots of a generator, oldest first."""
    return open_home(out).list_snapshots(generator)


def find_snapshot(out: Location, generator: str, version: int | None = None) -> Snapshot:
    """Find a snapshot, the newest by default. Raises NotFoundError that names the existing ones."""
    snapshots = list_snapshots(out, generator)
    if not snapshots:
        known = list_generators(out)
        hint = describe_generators(generator, known, "run a generator first")
        raise NotFoundError(f"no snapshot of {generator!r} in {out}; {hint}")
    if version is None:
        return snapshots[-1]
    for snapshot in snapshots:
        if snapshot.version == version:
            return snapshot
    existing = f"{snapshots[0].name} to {snapshots[-1].name}"
    raise NotFoundError(f"{generator} has no snapshot {version}; it has {len(snapshots)}, {existing}")


def open_snapshot_url(url: str) -> Snapshot:
    """Open the snapshot at a URL. Raises NotFoundError for another URL, DamagedError without a manifest."""
    found = re.fullmatch(r"(.*)/([^/]+)/snapshots/([0-9]+)", str(parse_url(url)))
    if found is None or not is_url(found[1]):
        raise NotFoundError(f"{url} is not a snapshot; write a URL that `nearcast snapshots --json` prints")
    return open_home(str(parse_url(found[1]))).open(found[2], int(found[3]))


def hold_snapshot(snapshot: Snapshot) -> contextlib.AbstractContextManager[None]:
    """Keep a snapshot from being removed, by any process, inside `with`. Raises NotFoundError if it is gone.

    Who reads a snapshot for long holds it: retention and `nearcast clean` of other processes pass it over. In a bucket
    it is held for a day at most.
    """
    if snapshot.parts is None:
        return hold_folder_of(snapshot.folder)
    return open_home(snapshot.out).hold(snapshot.generator, snapshot.version)


@contextlib.contextmanager
def hold_for_reading(snapshot: Snapshot) -> Iterator[None]:
    """Hold a snapshot, as `hold_snapshot` does; who may only read its bucket goes on without a hold."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(StorageError):
            stack.enter_context(hold_snapshot(snapshot))
        yield


def next_version(out: Location, generator: str) -> int:
    """Return the number after the highest snapshot, finished or not."""
    return open_home(out).next_version(generator)


def commit_snapshot(
    out: Location,
    generator: str,
    folder: Path,
    facts: Mapping[str, Any],
    *,
    seen: int | None = None,
    elsewhere: Mapping[str, ArtifactFile] = NOTHING,
) -> Snapshot:
    """Commit the files of a folder as the next version of a generator; see `SnapshotHome.commit`.

    facts: of the manifest, with the fingerprint. Their "version" is replaced by the version that the commit gets.
    seen: the newest version when the run began; default: when the commit began. elsewhere: more files, in a bucket.
    """
    return open_home(out).commit(generator, folder, facts, seen, elsewhere)
