"""Artifacts: folders of files that are committed once, whichever of several attempts finishes first.

An artifact has a name (a relative path) and facts (a small JSON object). An attempt writes its files into a scratch
folder of its host and then commits. Only one attempt of a name can win; a loser removes its files, and continues with
the winner's. Readers get a local folder with the artifact's files and its `manifest.json`: the artifact itself on a
local file system, else a copy in the host's cache, downloaded once per host under a lock and verified.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from nearcast.files import MANIFEST, finish, is_done, read_manifest

__all__ = ["Artifacts", "LocalArtifacts", "Write"]

ATTEMPT = ".attempt-"

Write = Callable[[Path], dict[str, Any]]
"""Writes the files of an artifact into an empty folder and returns its facts."""


class Artifacts(Protocol):
    """Artifacts below one root."""

    url: str  # of the root

    def facts(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a committed artifact, None if there is none. Downloads no other file."""
        ...

    def open(self, name: str) -> Path:
        """Return a local folder with the files of a committed artifact.

        Raises NotFoundError if there is none, DamagedError if its files do not match its manifest.
        """
        ...

    def ensure(self, name: str, write: Write) -> Path:
        """Return the local folder of an artifact; write and commit it if there is none."""
        ...

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the names of the committed artifacts in the folder `prefix` and below, in order."""
        ...

    def remove(self, name: str) -> None:
        """Remove an artifact, or all artifacts in a folder, its manifests first; also unfinished attempts there."""
        ...

    def sweep(self, prefix: str = "", *, older_than: float = 86_400.0) -> int:
        """Remove attempts that were never committed and are older than so many seconds. Return their number."""
        ...


class LocalArtifacts:
    """Artifacts in folders of a local file system. The commit is a rename, which fails if the name is taken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root.absolute())

    def facts(self, name: str) -> dict[str, Any] | None:
        """Read the manifest, without the list of files."""
        folder = self.root / name
        if not is_done(folder):
            return None
        return {key: value for key, value in read_manifest(folder).items() if key != "files"}

    def open(self, name: str) -> Path:
        """Return the folder."""
        read_manifest(self.root / name)
        return self.root / name

    def ensure(self, name: str, write: Write) -> Path:
        """Return the folder; write it if it is missing."""
        target = self.root / name
        if is_done(target):
            return target
        with self._attempt(target) as folder:
            finish(folder, write(folder))
            with contextlib.suppress(OSError):  # another attempt was first, or an unfinished folder of earlier releases
                os.rename(folder, target)
            if not is_done(target):
                shutil.rmtree(target)
                os.rename(folder, target)
        return target

    @contextlib.contextmanager
    def _attempt(self, target: Path) -> Iterator[Path]:
        folder = target.with_name(f"{ATTEMPT}{target.name}-{secrets.token_hex(4)}")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            if folder.exists():
                shutil.rmtree(folder)

    def list_names(self, prefix: str = "") -> list[str]:
        """List the folders with a manifest."""
        home = self.root / prefix
        found = (path.parent.relative_to(self.root).as_posix() for path in home.rglob(MANIFEST))
        return sorted(name for name in found if ATTEMPT not in name)

    def remove(self, name: str) -> None:
        """Remove a folder, manifests first."""
        folder = self.root / name
        for path in sorted(folder.rglob(MANIFEST)):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, prefix: str = "", *, older_than: float = 86_400.0) -> int:
        """Remove folders of attempts by their modification time."""
        old = [
            path
            for path in (self.root / prefix).rglob(f"{ATTEMPT}*")
            if path.is_dir() and time.time() - path.stat().st_mtime > older_than
        ]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)
