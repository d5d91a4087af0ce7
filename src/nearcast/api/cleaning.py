"""Find and remove what a generator no longer needs: unfinished work, artifacts of other runs, old snapshots.

A removal removes what a dry run lists, except what somebody has begun to use since.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nearcast.api.arguments import OUT, SpecLike, resolve_store_target
from nearcast.api.retaining import HELD, find_old_snapshots
from nearcast.errors import DamagedError, NearcastError
from nearcast.files import hold_lock
from nearcast.join.abandoned_work import WAIT_SECONDS, remove_abandoned
from nearcast.join.context import Workspace
from nearcast.join.listener import Listener
from nearcast.publishing.targets import PublishTarget
from nearcast.spec import PublishSpec
from nearcast.storage.locations import Location, absolute_location, parse_location
from nearcast.storage.open_storage import is_url, join_location, open_storage
from nearcast.table.snapshot import list_snapshots, open_home

__all__ = ["Unneeded", "clean", "clean_plan", "find_clean_target"]


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Something that a generator no longer needs."""

    location: str
    kind: str
    bytes: int  # that are freed by its removal, if all before it are removed, too


def clean(
    target: PublishTarget,
    *,
    dry_run: bool = False,
    wait_seconds: float = WAIT_SECONDS,
    listener: Listener | None = None,
) -> list[Unneeded]:
    """Remove what a generator no longer needs, and return it. dry_run: remove nothing.

    Unfinished work and artifacts of this host are removed unless a run holds the generator: raises BusyError then.
    Work in a bucket is removed if nothing in it changes for `wait_seconds`. Old snapshots are those beyond
    `publish.keep_snapshots` that are not served, pinned or read; they are kept, and the listener is told, if the store
    or the history cannot be read. What a killed removal left of a snapshot is removed, too.
    """
    listener = listener or Listener()
    removal = _Removal(dry_run)
    _remove_local_work(target, removal)
    if isinstance(target.out, str):
        root = join_location(target.out, target.generator, "work")
        works = [join_location(root, name) for name in open_storage(root).list_folders()]
        removal.take_abandoned(works, wait_seconds)
    _remove_snapshots(target, removal, listener)
    return removal.found


def _remove_snapshots(target: PublishTarget, removal: _Removal, listener: Listener) -> None:
    """Remove old snapshots, and what killed removals left of others."""
    home, generator = open_home(target.out), target.generator
    left, hidden = home.list_left(generator), list[int]()

    def hide(version: int) -> bool:
        is_hidden = home.hide(generator, version)
        if is_hidden:
            hidden.append(version)
        return is_hidden

    try:
        with find_old_snapshots(target) as old:
            for version in old:
                if home.is_held(generator, version):
                    listener.note(HELD.format(version))
                else:
                    place = join_location(target.out, generator, "snapshots", f"{version:06d}")
                    removal.take(place, "old snapshot", partial(hide, version))
        for version in hidden:  # their files are many: publishers need not wait for these
            home.remove_hidden(generator, version)
    except NearcastError as error:
        listener.note(f"old snapshots are kept: {error}")
    removal.take_rests(
        [join_location(target.out, generator, "snapshots", f"{version:06d}") for version in left],
        partial(home.sweep, generator),
    )


def find_clean_target(generator: SpecLike, out: Location | None) -> PublishTarget:
    """Find the snapshots and the store of a generator. All snapshots stay if the manifest of the newest is damaged."""
    try:
        return resolve_store_target(generator, out)
    except DamagedError:
        return PublishTarget(str(generator), parse_location(out or OUT), PublishSpec(keep_snapshots="all"))


def clean_plan(work: Location, *, wait_seconds: float = WAIT_SECONDS, dry_run: bool = False) -> list[Unneeded]:
    """Remove a plan and its unfinished work unless somebody works on it; return where it was."""
    removal = _Removal(dry_run)
    removal.take_abandoned([absolute_location(parse_location(work))], wait_seconds)
    return removal.found


def _remove_local_work(target: PublishTarget, removal: _Removal) -> None:
    """Remove the unfinished work on this host, and the artifacts that the newest snapshot was not made of."""
    place = Workspace(Path(), target.out, target.generator)
    with contextlib.ExitStack() as stack:
        if place.work.is_dir() or any(_list_left_artifacts(place)):
            stack.enter_context(hold_lock(place.home / ".lock", f"generator {target.generator!r}"))
        if place.work.is_dir():
            removal.take(str(place.work), "unfinished work", partial(shutil.rmtree, place.work))
        for path in _list_left_artifacts(place):
            removal.take(str(path), "tables and indexes of other runs", partial(shutil.rmtree, path))


def _list_left_artifacts(place: Workspace) -> list[Path]:
    """Return the artifacts on this host that the newest snapshot was not made of."""
    try:
        snapshots = list_snapshots(place.out, place.generator)
    except DamagedError:
        return []  # it may be the newest
    if not place.artifacts.is_dir() or not (snapshots or place.work.is_dir()):
        return []
    used = {name.split("/")[0] for name in (snapshots[-1].manifest.artifacts if snapshots else ())}
    used.add(place.truths.name)
    found = (path for path in sorted(place.artifacts.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in found if path.name not in used]


class _Removal:
    """Removes what is taken, unless it is a dry run, and counts the bytes that this frees.

    A file with several names is freed with the last of them.
    """

    def __init__(self, dry_run: bool) -> None:
        self.found: list[Unneeded] = []
        self._dry_run = dry_run
        self._names: dict[tuple[int, int], int] = {}  # names left of a file, by device and inode

    def take(self, location: str, kind: str, remove: Callable[[], object]) -> None:
        """Remove something, and note it unless `remove` returns False."""
        files = list(_list_files(location))
        if not self._dry_run and remove() is False:
            return
        self.found.append(Unneeded(location, kind, sum(map(self._count_freed, files))))

    def take_rests(self, locations: list[str], sweep: Callable[[], object]) -> None:
        """Remove what killed removals left of the snapshots at these locations, all by one call of `sweep`."""
        files = {location: list(_list_files(location)) for location in locations}
        if files and not self._dry_run:
            sweep()
        for location, some in files.items():
            self.found.append(Unneeded(location, "rest of a snapshot", sum(map(self._count_freed, some))))

    def take_abandoned(self, works: list[str], wait_seconds: float) -> None:
        """Remove the work at these locations that nobody works on."""
        files = {work: list(_list_files(work)) for work in works}
        for work in remove_abandoned(works, wait_seconds, dry_run=self._dry_run):
            self.found.append(Unneeded(work, "unfinished work", sum(map(self._count_freed, files.get(work, ())))))

    def _count_freed(self, file: os.stat_result | int) -> int:
        if isinstance(file, int):
            return file
        inode = file.st_dev, file.st_ino
        self._names[inode] = self._names.get(inode, file.st_nlink) - 1
        return 0 if self._names[inode] else file.st_size


def _list_files(location: str) -> Iterator[os.stat_result | int]:
    """Yield the status of each file below a local folder, the size of each object below a URL."""
    if is_url(location):
        yield from (each.size for each in open_storage(location).list_objects())
        return
    for place, _, names in os.walk(location):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.lstat(os.path.join(place, name))
