"""Listing of the files of a path on this machine: a file, a folder with everything below it, or a glob.

As in Spark, Hive and pyarrow, names that start with `_` or `.` are skipped, except folders like `_day=1`. Symbolic
links are followed; a folder or file that is reached twice is read once. Knows nothing of Parquet but its endings.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from nearcast.errors import InputError
from nearcast.sources.listing_rules import GLOB, claims_parquet, describe_skipped, is_hidden, note_hidden
from nearcast.sources.user_files import changed_error, file_error, shown_path

__all__ = ["LocalWalk", "find_folder", "is_file", "walk_files"]


@dataclass(slots=True)
class LocalWalk:
    """Files and folders that a walk has reached."""

    files: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)  # folders
    special: list[Path] = field(default_factory=list)  # pipes, sockets and devices
    twice: list[Path] = field(default_factory=list)  # other names of files already reached
    broken: list[Path] = field(default_factory=list)  # links to nothing
    seen: set[tuple[int, int]] = field(default_factory=set)  # device and inode of folders and files
    links: deque[Path] = field(default_factory=deque)  # followed after everything else

    def notes(self, base: Path) -> list[str]:
        """Describe skipped files and folders."""

        def show(paths: list[Path]) -> list[str]:
            return [shown_path(path, base) for path in sorted(paths)]

        return [
            *note_hidden(show(self.hidden)),
            *describe_skipped(show(self.special), "neither a file nor a folder"),
            *describe_skipped(show(self.twice), "a second name of another"),
            *describe_skipped(show(self.broken), "a link to nothing"),
        ]


def find_folder(root: Path, base: Path, pattern: str) -> Path:
    """Return the folder of a path: itself, a glob's part before its first wildcard, or the folder of a file."""
    if os.path.isdir(root):
        return root
    folder = base
    for part in Path(pattern).parts[:-1]:
        if GLOB.search(part) and not os.path.isdir(folder / part):
            break
        folder = folder / part
    return folder


def is_file(path: Path) -> bool:
    """Return whether the path is a regular file. Raises InputError if it cannot be examined."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise file_error(path, error) from error


def walk_files(base: Path, pattern: str, leave_out: Path | None) -> LocalWalk:
    """Walk all visible files of a path, each once. A file's own name goes before links to it."""
    walk = LocalWalk()
    if leave_out is not None and os.path.isdir(leave_out):
        walk.seen.add(_file_key(leave_out.stat()))
    parts = Path(pattern).parts
    if pattern.startswith("/"):
        base, parts = Path("/"), parts[1:]
    for path in _expand(base, list(parts), frozenset(walk.seen)):
        _visit(path, walk, follow=not GLOB.search(pattern))
    while walk.links:
        _visit(walk.links.popleft(), walk, follow=True)
    return walk


def _expand(folder: Path, parts: list[str], seen: frozenset[tuple[int, int]]) -> list[Path]:
    """Expand a pattern to paths. Hidden ones match only if the pattern starts with `_` or `.`."""
    if not parts:
        return [folder]
    head, rest = parts[0], parts[1:]
    if not GLOB.search(head) or ("[" in head and os.path.lexists(folder / head)):
        return _expand(folder / head, rest, seen) if os.path.lexists(folder / head) else []
    if head == "**":
        if not rest:
            return [folder]
        return [path for inner in _list_folders(folder, seen) for path in _expand(inner, rest, seen)]
    named = [
        entry
        for entry in _list_entries(folder)
        if fnmatch.fnmatchcase(entry.name, head)
        and (head[0] in "_." or not is_hidden(entry.name, is_folder=_is_folder(entry)))
    ]
    return [path for entry in named for path in _expand(Path(entry.path), rest, seen) if not rest or _is_folder(entry)]


def _list_folders(folder: Path, left_out: frozenset[tuple[int, int]]) -> list[Path]:
    """List a folder and all visible folders below it, each once, without those left out."""
    found, waiting, links, seen = [], deque([folder]), deque[Path](), set(left_out)
    while waiting or links:
        here = waiting.popleft() if waiting else links.popleft()
        try:
            now = here.stat()
        except OSError:
            continue
        if not stat.S_ISDIR(now.st_mode) or _file_key(now) in seen:
            continue
        seen.add(_file_key(now))
        found.append(here)
        for entry in _list_entries(here):
            if _is_folder(entry) and not is_hidden(entry.name, is_folder=True):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
    return sorted(found)


def _visit(path: Path, walk: LocalWalk, *, follow: bool) -> None:
    """Add a file, or everything below a folder. Links are followed later, unless `follow`."""
    waiting = deque([(path, follow)])
    while waiting:
        here, follow = waiting.popleft()
        if not follow and here.is_symlink():
            walk.links.append(here)
            continue
        try:
            now = here.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise file_error(here, error) from error
            if not here.is_symlink():
                raise changed_error(shown_path(here), "it is gone") from error
            if claims_parquet(here.name):
                raise InputError(
                    f"{shown_path(here)} is a link to a file that is not there; mend the link or remove it"
                ) from error
            walk.broken.append(here)
            continue
        key = _file_key(now)
        if stat.S_ISDIR(now.st_mode):
            if key not in walk.seen:
                walk.seen.add(key)
                for entry in _list_entries(here):
                    if not is_hidden(entry.name, is_folder=_is_folder(entry)):
                        waiting.append((Path(entry.path), False))
                    elif _is_folder(entry):
                        walk.hidden.append(Path(entry.path))
        elif not stat.S_ISREG(now.st_mode):
            walk.special.append(here)
        elif key in walk.seen:
            if here not in walk.files:
                walk.twice.append(here)
        else:
            walk.seen.add(key)
            walk.files.append(here)


def _file_key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _list_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            return []
        raise file_error(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise file_error(Path(entry.path), error) from error
