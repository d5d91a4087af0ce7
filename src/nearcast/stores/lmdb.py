"""The embedded store: one LMDB environment per version in a folder; processes share the page cache.

    <root>/<generator>/.lock                        publishers' lock
                       current                      the pointer, replaced in one step
                       versions/000007/data.mdb     the pairs: a named database per space
                                       manifest.json    facts, size and hash; a version without it is unfinished
                       patches/                     newer values of some keys; see `lmdb_patches`
                       overlay/                     overlay log

The file of a version does not change once its manifest exists. So readers take no locks, and an open reader keeps its
version when the folder is removed. After a fork a child may go on reading; see `lmdb_environment`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearcast.errors import BusyError, DamagedError, NotFoundError, StoreError
from nearcast.files import PARTIAL, fresh_folder, hold_lock, is_done, write_text
from nearcast.stores.base import OverlayLog, PatchLog, Pointer, PublishLock
from nearcast.stores.lmdb_environment import translate_read_errors, translate_write_errors
from nearcast.stores.lmdb_overlay import LmdbOverlay
from nearcast.stores.lmdb_patches import LmdbPatches, PatchedReader
from nearcast.stores.lmdb_version import LmdbWriter, flush_folder, open_version_folder
from nearcast.stores.names import format_version, is_generator, validate_generator

__all__ = ["LmdbStore", "open_lmdb"]

RETIRED = ".retired-"
LEFT_SECONDS = 3600.0  # older leftovers belong to no running writer
SAME_CLOCK_SECONDS = 1.0  # two readings of one clock differ by less: clocks of file systems are coarse
AGREED_SECONDS = 1.0  # for so long after they agreed, this machine's clock replaces that of the file system
STEP_SECONDS = 0.01  # a larger difference to the monotonic clock means that the clock was set


def open_lmdb(url: str) -> LmdbStore:
    """Open the store in a folder, lmdb:PATH. The first write creates it."""
    root = Path(url.removeprefix("lmdb:"))
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file; an LMDB store is a folder")
    return LmdbStore(root.absolute())


class LmdbStore:
    """Versions of all generators in one folder."""

    in_process = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"lmdb:{root}"
        self._overlays: dict[str, LmdbOverlay] = {}
        self._guard = threading.Lock()
        self._agreed = (-math.inf, 0.0)  # when the clocks agreed, by the monotonic clock, and how far that one is off

    def generators(self) -> list[str]:
        """Return the generators that have a pointer, sorted."""
        with translate_read_errors(self.root):
            found = [path.parent.name for path in self.root.glob("*/current")]
        return sorted(filter(is_generator, found))

    @contextlib.contextmanager
    def lock(self, generator: str) -> Iterator[PublishLock]:
        """Hold the publishers' lock of a generator. Raises BusyError at once if another process holds it."""
        path = self._folder(generator) / ".lock"
        with contextlib.ExitStack() as stack:
            with translate_write_errors(path):
                stack.enter_context(hold_lock(path, f"{generator} in {self.url}"))
            _remove_leftovers(path.parent)
            held = FileLock(generator)
            stack.callback(held.release)
            yield held

    def write(self, generator: str, version: int) -> LmdbWriter:
        """Start to write a version; remove unfinished versions."""
        folder = self._version_folder(generator, version)
        self.retire(generator, version)
        with translate_write_errors(folder):
            for left in folder.parent.glob("*"):
                if left.is_dir() and not is_done(left):  # of a killed publisher, since we hold the lock
                    shutil.rmtree(left)
            fresh_folder(folder)
        return LmdbWriter(folder)

    def versions(self, generator: str) -> list[int]:
        """Return the finished versions, ascending."""
        folder = self._folder(generator) / "versions"
        with translate_read_errors(folder):
            return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and is_done(path))

    def open(self, generator: str, version: int, *, verify: bool) -> PatchedReader:
        """Open a finished version. Raises NotFoundError, or DamagedError, which names the changed file."""
        folder = self._version_folder(generator, version)
        try:
            if is_done(folder):
                return self._patches(generator).open(
                    version, open_version_folder(folder, contents=verify), verify=verify
                )
        except (DamagedError, StoreError):
            if is_done(folder):
                raise  # otherwise it was retired meanwhile
        have = ", ".join(map(str, self.versions(generator))) or "none"
        raise NotFoundError(f"{self.url} has no version {version} of {generator}; it has {have}")

    def retire(self, generator: str, version: int) -> None:
        """Remove a version, finished or not, and its patches. Open readers keep it."""
        folder = self._version_folder(generator, version)
        aside = folder.with_name(RETIRED + folder.name)
        with translate_write_errors(folder):
            if aside.exists():  # a process was killed here
                shutil.rmtree(aside)
            if folder.exists():
                folder.rename(aside)  # in one step, so that no reader opens half of it
                shutil.rmtree(aside)
        self._patches(generator).retire(version)

    def pointer(self, generator: str) -> Pointer | None:
        """Return the pointer; None before the first publish."""
        path = self._folder(generator) / "current"
        with translate_read_errors(path):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Pointer.from_bytes(data, str(path))

    def point(self, generator: str, pointer: Pointer, lock: PublishLock) -> None:
        """Move the pointer in one step. Raises BusyError, without a move, if the lock was lost."""
        lock.check()
        path = self._folder(generator) / "current"
        with translate_write_errors(path):
            write_text(path, pointer.to_bytes().decode())
            flush_folder(path.parent)

    def overlay(self, generator: str) -> OverlayLog:
        """Return the overlay log of a generator; an empty one if nothing was written."""
        with self._guard:
            return self._overlays.setdefault(generator, LmdbOverlay(self._folder(generator) / "overlay"))

    def patches(self, generator: str) -> PatchLog:
        """Return the patches of a generator; none if nothing was written."""
        return self._patches(generator)

    def now(self) -> float:
        """Return the seconds since 1970 by the clock of the file system, which all processes share.

        Creates a file once a second, and after a step of this machine's clock. That costs as much as a write.
        """
        (when, ahead), own, monotonic = self._agreed, time.time(), time.monotonic()
        if monotonic - when < AGREED_SECONDS and abs(own - monotonic - ahead) < STEP_SECONDS:
            return own
        try:
            with tempfile.TemporaryFile(dir=self.root) as made:
                stamp = os.fstat(made.fileno()).st_mtime
        except OSError:  # a full or read-only disk
            return time.time()
        own, monotonic = time.time(), time.monotonic()
        if not 0 <= own - stamp < SAME_CLOCK_SECONDS:
            return stamp
        self._agreed = monotonic, own - monotonic
        return own

    def close(self) -> None:
        """Close the overlays. Readers are closed one by one."""
        with self._guard:
            for overlay in self._overlays.values():
                overlay.close()
            self._overlays.clear()

    def _patches(self, generator: str) -> LmdbPatches:
        folder = self._folder(generator)
        return LmdbPatches(folder / "patches", folder / "versions")

    def _folder(self, generator: str) -> Path:
        return self.root / validate_generator(generator)

    def _version_folder(self, generator: str, version: int) -> Path:
        return self._folder(generator) / "versions" / format_version(version)


@dataclass
class FileLock:
    """A held lock on a file. The operating system keeps it while the file is open."""

    generator: str
    lost: bool = False

    def check(self) -> None:
        """Raise BusyError after `release`."""
        if self.lost:
            raise BusyError(f"the lock of {self.generator} is not held any more; take it again")

    def release(self) -> None:
        """Mark the lock as released."""
        self.lost = True


def _remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed publishers from a generator's folder. Call it under the lock.

    Writers of the overlay do not take this lock: only old leftovers of theirs are removed.
    """
    versions = folder / "versions"
    left = [folder / f"{PARTIAL}current", *versions.glob(f"{RETIRED}*"), *versions.glob(f"{PARTIAL}*")]
    left += [path for path in versions.glob("[0-9]*") if path.is_dir() and not is_done(path)]
    left += [path for path in (*folder.glob("overlay.new-*"), *folder.glob(f"{PARTIAL}*")) if _is_old(path)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # the next publish tries again
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > LEFT_SECONDS
    return False
