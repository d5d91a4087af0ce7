"""Listing of the Parquet files of a path: a file, a folder with everything below it, or a glob; also in a bucket.

A file is Parquet by its magic bytes, whatever its ending. Knows nothing of columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from nearcast.errors import InputError
from nearcast.files import bucket_url, path_fault
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.bucket_files import BucketFile, BucketPath, find_object, open_bucket, parse_bucket_path
from nearcast.sources.bucket_listing import walk_bucket
from nearcast.sources.listing_rules import claims_parquet, describe_skipped, note_hidden
from nearcast.sources.local_listing import find_folder, is_file, walk_files
from nearcast.sources.user_files import LocalFile, UserFile, changed_error, shown_path
from nearcast.storage.base import Storage

__all__ = ["Listing", "has_magic", "list_one", "list_parquet", "map_files", "open_user_file", "show_location"]

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
SMALLEST = 12  # bytes of a Parquet file: magic, length of the footer, magic
REQUESTS = 16  # side by side, to a bucket

File = TypeVar("File", bound=UserFile)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a path at the time of listing."""

    name: str  # of the path, for messages
    shown: str  # the whole path, for messages
    base: PurePath  # folders below it may hold columns, or all folders if the path is not below it
    folder: PurePath  # of the path: itself, a glob's part before its first wildcard, or the folder of a file
    files: tuple[UserFile, ...]  # in the order of their paths
    notes: tuple[str, ...]  # skipped files, and why
    recheck: Callable[[], None]

    def check(self) -> None:
        """Raise InputError if a Parquet file was added to the folder or glob, or a file was changed or removed."""
        self.recheck()


def list_parquet(pattern: str, base: Path, what: str, way_out: str, *, leave_out: Path | str | None = None) -> Listing:
    """List the Parquet files of `pattern`, relative to `base`, or of a URL.

    what: name of the files for messages. way_out: hint for the error if there is no file.
    leave_out: a folder that is skipped without a note.
    Raises InputError if there is no file, or a file is not readable, truncated or encrypted.
    """
    if url := bucket_url(pattern, base):
        return _list_bucket(url, way_out, leave_out)
    root = base / pattern
    name = shown_path(root, base)
    name = what if name == "." else name
    _refuse_impossible_path(pattern, root, what)
    if is_file(root):
        return list_one(LocalFile(root, name), base, find_folder(root, base, pattern))
    skipped_folder = leave_out if isinstance(leave_out, Path) else None
    found = walk_files(base, pattern, skipped_folder)
    files = _split([LocalFile(path, shown_path(path, base)) for path in sorted(found.files)])
    recheck = partial(_recheck_local, files[0], frozenset(found.files), pattern, base, skipped_folder, name)
    folders = base, find_folder(root, base, pattern)
    return _make_listing(name, shown_path(root), folders, files, found.notes(base), recheck, way_out)


def list_one(file: UserFile, base: PurePath, folder: PurePath) -> Listing:
    """Return the listing of one file. Raises InputError if it is no Parquet."""
    if not _is_parquet(file):
        raise _no_parquet(file)
    return Listing(file.name, file.shown, base, folder, (file,), (), file.check)


def open_user_file(text: str, base: Path, what: str, way_out: str) -> UserFile:
    """Open one file of the user, relative to `base`, or of a URL. Raises InputError if it does not exist."""
    if url := bucket_url(text, base):
        location = parse_bucket_path(url)
        if found := find_object(location, open_bucket(location.bucket)):
            return found
        raise InputError(f"no object at {location.url}; {way_out}")
    path = base / text
    _refuse_impossible_path(text, path, what)
    if not is_file(path):
        what_is = "a folder, not a file," if os.path.isdir(path) else "no file"
        raise InputError(f"{what_is} at {shown_path(path)}; {way_out}")
    return LocalFile(path, shown_path(path, base))


def show_location(text: str | Path, base: Path) -> str:
    """Return the whole path or URL of a text of the user, for messages."""
    return bucket_url(text, base) or shown_path(base / text)


def has_magic(file: UserFile) -> bool:
    """Return whether a file begins with the magic bytes of Parquet."""
    return _read_magic(file)[0] in (MAGIC, ENCRYPTED)


def map_files(work: Callable[[UserFile], Value], files: Sequence[UserFile]) -> list[Value]:
    """Return the results of `work` for all files, side by side where files are in a bucket."""
    if all(isinstance(file, LocalFile) for file in files):
        return [work(file) for file in files]
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(work, files))


def _list_bucket(url: str, way_out: str, leave_out: Path | str | None) -> Listing:
    location = parse_bucket_path(url)
    storage = open_bucket(location.bucket)
    file = find_object(location, storage)
    out = None if leave_out is None else bucket_url(leave_out)
    prefix = f"{location.bucket}/"
    skipped_folder = out.removeprefix(prefix).rstrip("/") if out and out.startswith(prefix) else None
    walk = None
    if file is not None and file.size == 0:  # may mark a folder
        walk = walk_bucket(storage, location.name, skipped_folder)
    if file is not None and not (walk and walk.files):
        return list_one(file, PurePosixPath(), file.path.parent)
    walk = walk or walk_bucket(storage, location.name, skipped_folder)
    files = _split([BucketFile(storage, found, location.bucket) for found in walk.files])
    known = frozenset(found.name for found in walk.files)
    recheck = partial(_recheck_bucket, storage, files[0], known, location, skipped_folder)
    notes = note_hidden([f"{location.bucket}/{name}" for name in walk.hidden])
    folders = PurePosixPath(), walk.folder
    return _make_listing(location.url, location.url, folders, files, notes, recheck, way_out)


def _make_listing(
    name: str,
    shown: str,
    folders: tuple[PurePath, PurePath],  # base and folder of the listing
    files: tuple[Sequence[UserFile], Sequence[UserFile]],  # Parquet, and others
    notes: Sequence[str],
    recheck: Callable[[], None],
    way_out: str,
) -> Listing:
    parquet, others = files
    notes = [*notes, *describe_skipped([file.name for file in others], "no Parquet")]
    if not parquet:
        skipped = f"; {'; '.join(notes)}" if notes else ""
        raise InputError(f"no Parquet file at {shown}; {way_out}{skipped}")
    return Listing(name, shown, *folders, tuple(parquet), tuple(f"{name}: {note}" for note in notes), recheck)


def _recheck_local(
    files: Sequence[UserFile], known: frozenset[Path], pattern: str, base: Path, leave_out: Path | None, name: str
) -> None:
    for file in files:
        file.check()
    try:
        new = sorted(set(walk_files(base, pattern, leave_out).files) - known)
    except InputError as error:
        raise changed_error(name, str(error)) from error
    for path in new:
        if claims_parquet(path.name) or has_magic(LocalFile(path, shown_path(path, base))):
            raise changed_error(name, f"{shown_path(path, base)} is new")


def _recheck_bucket(
    storage: Storage, files: Sequence[BucketFile], known: frozenset[str], location: BucketPath, leave_out: str | None
) -> None:
    """List again: one request for a thousand objects."""
    found = {each.name: each for each in walk_bucket(storage, location.name, leave_out).files}
    for file in files:
        file.compare(found.pop(file.key, None))
    for key in sorted(found.keys() - known):
        new = BucketFile(storage, found[key], location.bucket)
        if claims_parquet(key) or has_magic(new):
            raise changed_error(location.url, f"{new.name} is new")


def _split(files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Return the Parquet files, and the others."""
    is_parquet = map_files(_is_parquet, files)
    pairs = list(zip(files, is_parquet, strict=True))
    return [file for file, yes in pairs if yes], [file for file, yes in pairs if not yes]


def _refuse_impossible_path(text: str, path: Path, what: str) -> None:
    if TABLE_LOCATION.fullmatch(text) and not os.path.lexists(path):
        raise InputError(
            f"{what}: {text} is a table, and only items and queries are read from tables; export it to Parquet first"
        )
    fault = None if os.path.lexists(path) else path_fault(text, buckets=True)
    if fault:
        raise InputError(f"{what}: {fault}")


def _no_parquet(file: UserFile) -> InputError:
    return InputError(
        f"{file.shown} is not a readable Parquet file, or was cut short or is still written to; write it again"
    )


def _is_parquet(file: UserFile) -> bool:
    """Return whether a file is Parquet. Raises InputError for a Parquet file that is truncated or encrypted."""
    head, tail = _read_magic(file)
    if ENCRYPTED in (head, tail) and head in (MAGIC, ENCRYPTED):
        raise InputError(f"{file.shown} is encrypted Parquet, which is not read; write it without encryption")
    if head == tail == MAGIC:
        return True
    if head == MAGIC or claims_parquet(file.path.name):
        raise _no_parquet(file)
    return False


def _read_magic(file: UserFile) -> tuple[bytes, bytes]:
    """Return the first and the last four bytes of a file."""
    head, tail = file.read_ends(len(MAGIC))
    return head, b"" if file.size < SMALLEST else tail
