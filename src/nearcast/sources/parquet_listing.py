"""Listing of the Parquet files of a path: a file, a folder with everything below it, or a glob.

As in Spark, Hive and pyarrow, names that start with `_` or `.` are skipped, except folders like `_day=1`. A file is
Parquet by its magic bytes, whatever its ending. Symbolic links are followed; a folder or file that is reached twice is
read once. Knows nothing of columns.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from nearcast.errors import InputError
from nearcast.files import path_fault
from nearcast.sources.user_files import UserFile, changed_error, shown_path

__all__ = ["Listing", "has_magic", "list_parquet", "local_file"]

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
SMALLEST = 12  # bytes of a Parquet file: magic, length of the footer, magic
ENDINGS = (".parquet", ".parq", ".pq")
GLOB = re.compile(r"[*?\[]")
TABLE_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a path at the time of listing."""

    name: str  # of the path, for messages
    root: Path
    pattern: str
    base: Path
    files: tuple[UserFile, ...]  # in the order of their paths
    known: frozenset[Path]  # these files, and the skipped ones
    notes: tuple[str, ...]  # skipped files, and why
    leave_out: Path | None = None  # a folder that is skipped: nearcast writes there

    @property
    def folder(self) -> Path:
        """Folder of the path: itself, a glob's part before its first wildcard, or the folder of a file."""
        if os.path.isdir(self.root):
            return self.root
        folder = self.base
        for part in Path(self.pattern).parts[:-1]:
            if GLOB.search(part) and not os.path.isdir(folder / part):
                break
            folder = folder / part
        return folder

    def check(self) -> None:
        """Raise InputError if a Parquet file was added to the folder or glob, or a file was changed or removed."""
        for file in self.files:
            file.check()
        if len(self.files) == 1 and self.files[0].path == self.root:
            return
        try:
            new = sorted(set(_walk(self.base, self.pattern, self.leave_out).files) - self.known)
        except InputError as error:
            raise changed_error(self.name, str(error)) from error
        for path in new:
            if _claims_parquet(path) or has_magic(path):
                raise changed_error(self.name, f"{shown_path(path, self.base)} is new")


def list_parquet(pattern: str, base: Path, what: str, way_out: str, *, leave_out: Path | None = None) -> Listing:
    """List the Parquet files of `pattern`, relative to `base`.

    what: name of the files for messages. way_out: hint for the error if there is no file.
    leave_out: a folder that is skipped without a note.
    Raises InputError if there is no file, or a file is not readable, truncated or encrypted.
    """
    root = base / pattern
    name = shown_path(root, base)
    name = what if name == "." else name
    _refuse_impossible_path(pattern, root, what)
    if _is_file(root):
        file = UserFile(root, name)
        if not _is_parquet(root):
            raise _no_parquet(root)
        return Listing(name, root, pattern, base, (file,), frozenset({root}), ())
    found = _walk(base, pattern, leave_out)
    notes = list(found.notes(base))
    files, others = [], []
    for path in sorted(found.files):
        if _is_parquet(path):
            files.append(UserFile(path, shown_path(path, base)))
        else:
            others.append(path)
    if others:
        notes.append(f"{_count(others)} no Parquet and {_was(others)} skipped: {_some(others, base)}")
    if not files:
        skipped = f"; {'; '.join(notes)}" if notes else ""
        raise InputError(f"no Parquet file at {shown_path(root)}; {way_out}{skipped}")
    named = tuple(f"{name}: {note}" for note in notes)
    return Listing(name, root, pattern, base, tuple(files), frozenset(found.files), named, leave_out)


def local_file(text: str, base: Path, what: str, way_out: str) -> UserFile:
    """Open one file of the user. Raises InputError if it does not exist or is not readable."""
    path = base / text
    _refuse_impossible_path(text, path, what)
    if not _is_file(path):
        what_is = "a folder, not a file," if os.path.isdir(path) else "no file"
        raise InputError(f"{what_is} at {shown_path(path)}; {way_out}")
    return UserFile(path, shown_path(path, base))


def has_magic(path: Path) -> bool:
    """Return whether a file begins with the magic bytes of Parquet."""
    return _read_magic(path)[0] in (MAGIC, ENCRYPTED)


def _refuse_impossible_path(text: str, path: Path, what: str) -> None:
    fault = None if os.path.lexists(path) else path_fault(text)
    if fault:
        raise InputError(f"{what}: {fault}")


def _is_file(path: Path) -> bool:
    """Return whether the path is a regular file. Raises InputError if it cannot be examined."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise _make_error(path, error) from error


def _make_error(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):  # it was listed a moment ago
        return changed_error(shown_path(path), "it is gone")
    if isinstance(error, PermissionError):
        return InputError(f"{shown_path(path)} may not be read: permission denied; give this user the right to")
    return InputError(f"{shown_path(path)} cannot be read: {error.strerror or error}")


def _is_hidden(name: str, *, is_folder: bool) -> bool:
    if name.endswith("._COPYING_"):  # Hadoop is still writing it
        return True
    return name.startswith(("_", ".")) and not (is_folder and "=" in name)


def _claims_parquet(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS)


def _no_parquet(path: Path) -> InputError:
    where = shown_path(path)
    return InputError(
        f"{where} is not a readable Parquet file, or was cut short or is still written to; write it again"
    )


def _is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet. Raises InputError for a Parquet file that is truncated or encrypted."""
    head, tail = _read_magic(path)
    if ENCRYPTED in (head, tail) and head in (MAGIC, ENCRYPTED):
        raise InputError(f"{shown_path(path)} is encrypted Parquet, which is not read; write it without encryption")
    if head == tail == MAGIC:
        return True
    if head == MAGIC or _claims_parquet(path):
        raise _no_parquet(path)
    return False


def _read_magic(path: Path) -> tuple[bytes, bytes]:
    """Return the first and the last four bytes of a file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
            size = file.seek(0, os.SEEK_END)
            if size < SMALLEST:
                return head, b""
            file.seek(size - len(MAGIC))
            return head, file.read(len(MAGIC))
    except OSError as error:
        raise _make_error(path, error) from error


@dataclass(slots=True)
class _Walk:
    """Files and folders that a walk has reached."""

    files: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)  # folders
    special: list[Path] = field(default_factory=list)  # pipes, sockets and devices
    twice: list[Path] = field(default_factory=list)  # other names of files already reached
    broken: list[Path] = field(default_factory=list)  # links to nothing
    seen: set[tuple[int, int]] = field(default_factory=set)  # device and inode of folders and files
    links: deque[Path] = field(default_factory=deque)  # followed after everything else

    def notes(self, base: Path) -> list[str]:
        """Describe skipped files."""
        texts = []
        for name, kind in TABLE_LOGS.items():
            if logs := [path for path in self.hidden if path.name == name]:
                texts.append(
                    f"{_some(logs, base)} belongs to a {kind} table, and it alone says which files count; all Parquet "
                    "files are read, so export the table if it has been changed or deleted from"
                )
        if self.hidden:
            texts.append(f"hidden folders were skipped: {_some(self.hidden, base)}")
        if self.special:
            texts.append(f"{_count(self.special)} neither a file nor a folder and {_was(self.special)} skipped: "
                        f"{_some(self.special, base)}")  # fmt: skip
        if self.twice:
            texts.append(f"{_count(self.twice)} a second name of another and {_was(self.twice)} skipped: "
                        f"{_some(self.twice, base)}")  # fmt: skip
        if self.broken:
            texts.append(f"{_count(self.broken)} a link to nothing and {_was(self.broken)} skipped: "
                        f"{_some(self.broken, base)}")  # fmt: skip
        return texts


def _walk(base: Path, pattern: str, leave_out: Path | None) -> _Walk:
    """Walk all visible files of a path, each once. A file's own name goes before links to it."""
    walk = _Walk()
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
        and (head[0] in "_." or not _is_hidden(entry.name, is_folder=_is_folder(entry)))
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
            if _is_folder(entry) and not _is_hidden(entry.name, is_folder=True):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
    return sorted(found)


def _visit(path: Path, walk: _Walk, *, follow: bool) -> None:
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
                raise _make_error(here, error) from error
            if not here.is_symlink():
                raise changed_error(shown_path(here), "it is gone") from error
            if _claims_parquet(here):
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
                    if not _is_hidden(entry.name, is_folder=_is_folder(entry)):
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
        raise _make_error(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise _make_error(Path(entry.path), error) from error


def _count(paths: list[Path]) -> str:
    return "1 file is" if len(paths) == 1 else f"{len(paths):,} files are"


def _was(paths: list[Path]) -> str:
    return "was" if len(paths) == 1 else "were"


def _some(paths: list[Path], base: Path) -> str:
    shown = [shown_path(path, base) for path in sorted(paths)[:SHOWN]]
    more = len(paths) - SHOWN
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
