"""Listing of the objects of a URL: a folder with everything below it, or a glob. The rules are those of local folders.

A bucket has names and no folders: a part of a name before `/` is taken as one. Objects that only mark a folder are no
files: `items/`, or `items_$folder$` of Hadoop.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from nearcast.sources.listing_rules import GLOB, is_hidden
from nearcast.storage.base import Storage, StoredObject

__all__ = ["BucketWalk", "walk_bucket"]

FOLDER_MARK = "_$folder$"


@dataclass(frozen=True, slots=True)
class BucketWalk:
    """What a URL names."""

    files: tuple[StoredObject, ...]  # in the order of their paths
    hidden: tuple[str, ...]  # folders that were skipped
    folder: PurePosixPath  # of the path: itself, or a glob's part before its first wildcard


@dataclass(slots=True)
class _Folder:
    """A folder of the names in a bucket."""

    path: str
    files: dict[str, StoredObject] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)

    def find_folder(self, name: str) -> _Folder:
        """Return a folder in this one; add it if it is missing."""
        path = f"{self.path}/{name}" if self.path else name
        return self.folders.setdefault(name, _Folder(path))


def walk_bucket(storage: Storage, pattern: str, leave_out: str | None = None) -> BucketWalk:
    """List all visible objects of a name or glob, each once. leave_out: a folder that is skipped."""
    parts = [part for part in pattern.split("/") if part]
    fixed = 0
    while fixed < len(parts) and not GLOB.search(parts[fixed]):
        fixed += 1
    root = _read_tree(storage, "/".join(parts[:fixed]))
    walk = _Walk(leave_out)
    for found in _expand(root, parts, leave_out):
        walk.visit(found)
    files = sorted(walk.files.values(), key=lambda each: each.name.split("/"))
    hidden = sorted(walk.hidden, key=lambda path: path.split("/"))
    return BucketWalk(tuple(files), tuple(hidden), PurePosixPath(_find_folder(root, parts).path))


def _read_tree(storage: Storage, prefix: str) -> _Folder:
    """Return the folder of the bucket's root, with the objects below a prefix."""
    root = _Folder("")
    empty = []
    for found in storage.list_objects(prefix):
        if found.size == 0:
            empty.append(found)
        elif found.name != prefix:
            _add(root, found)
    for found in empty:
        if found.name != prefix and not _marks_folder(storage, root, found):
            _add(root, found)
    return root


def _add(root: _Folder, found: StoredObject) -> None:
    *folders, name = found.name.split("/")
    for part in folders:
        root = root.find_folder(part)
    root.files[name] = found


def _marks_folder(storage: Storage, root: _Folder, found: StoredObject) -> bool:
    """Return whether an empty object marks a folder. A listing cuts the slash of `items/`: no name finds it."""
    name = found.name.rpartition("/")[2]
    if name.endswith(FOLDER_MARK):
        return True
    folder: _Folder | None = root
    for part in found.name.split("/"):
        folder = None if folder is None else folder.folders.get(part)
    return folder is not None or (not is_hidden(name, is_folder=False) and storage.stat(found.name) is None)


def _find_folder(folder: _Folder, parts: list[str]) -> _Folder:
    """Return the folder that these parts name, or the one before the first part that is no folder."""
    for part in parts:
        if part not in folder.folders:
            break
        folder = folder.folders[part]
    return folder


def _expand(folder: _Folder, parts: list[str], leave_out: str | None) -> Iterator[_Folder | StoredObject]:
    """Yield the folders and objects of a glob. Hidden ones match only if the pattern starts with `_` or `.`."""
    if not parts:
        yield folder
        return
    head, rest = parts[0], parts[1:]
    if head == "**":
        for inner in [folder] if not rest else _list_folders(folder, leave_out):
            yield from _expand(inner, rest, leave_out)
        return
    literal = not GLOB.search(head) or ("[" in head and (head in folder.files or head in folder.folders))
    for name, inner in sorted(folder.folders.items()):
        if name == head if literal else _is_match(name, head, is_folder=True):
            yield from _expand(inner, rest, leave_out)
    for name, found in sorted(folder.files.items()) if not rest else ():
        if name == head if literal else _is_match(name, head, is_folder=False):
            yield found


def _is_match(name: str, pattern: str, *, is_folder: bool) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (pattern[0] in "_." or not is_hidden(name, is_folder=is_folder))


def _list_folders(folder: _Folder, leave_out: str | None) -> Iterator[_Folder]:
    """Yield a folder and all visible folders below it, without the one left out."""
    if folder.path == leave_out:
        return
    yield folder
    for name, inner in folder.folders.items():
        if not is_hidden(name, is_folder=True):
            yield from _list_folders(inner, leave_out)


class _Walk:
    """Objects and hidden folders that were reached."""

    def __init__(self, leave_out: str | None) -> None:
        self.files: dict[str, StoredObject] = {}
        self.hidden: set[str] = set()
        self._seen = {leave_out}

    def visit(self, found: _Folder | StoredObject) -> None:
        """Add an object, or everything visible below a folder."""
        if isinstance(found, StoredObject):
            self.files[found.name] = found
            return
        if found.path in self._seen:
            return
        self._seen.add(found.path)
        for name, file in found.files.items():
            if not is_hidden(name, is_folder=False):
                self.files[file.name] = file
        for name, inner in found.folders.items():
            if is_hidden(name, is_folder=True):
                self.hidden.add(inner.path)
            else:
                self.visit(inner)
