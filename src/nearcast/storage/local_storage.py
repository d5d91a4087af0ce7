"""Objects in a local folder: an object is a file, written beside its place and renamed or linked there.

`create` links a finished file, which fails if the name is taken. `replace` compares and renames under a lock of the
folder, which `write` and `delete` take too. Files that start with `.partial-` are not objects.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nearcast.errors import NotFoundError, StorageError
from nearcast.files import PARTIAL
from nearcast.storage.base import Storage, StoredObject, check_name
from nearcast.storage.folder_lock import LOCK_FILE, hold_folder
from nearcast.storage.path_errors import path_error

__all__ = ["LocalStorage"]

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
TRIES = 100  # of a step that a removed folder undoes
COPY_BYTES = 1 << 20


def _etag(facts: os.stat_result) -> str:
    return f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"


class LocalStorage:
    """Objects as files below a root folder, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root.absolute()
        self._root = root.absolute()
        self.url = str(self._root)

    def read(self, name: str, *, etag: str | None = None) -> bytes:
        """Read a file whole."""
        with self._open(name, etag) as file:
            return _read_fully(file, os.fstat(file).st_size, 0)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        """Read ranges of one opened file. A range that ends behind the end is cut there."""
        with self._open(name, etag) as file:
            return [_read_fully(file, stop - start, start) for start, stop in ranges]

    def stat(self, name: str) -> StoredObject | None:
        """Return size, etag and modification time of a file."""
        path = self._path(name)
        try:
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise path_error("reading", path, error) from error
        return StoredObject(name, facts.st_size, _etag(facts), facts.st_mtime) if path.is_file() else None

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Walk a folder."""
        for name in sorted(self._walk(check_name(prefix, folder=True))):
            if facts := self.stat(name):  # None: removed a moment ago
                yield facts

    def list_folders(self, prefix: str = "") -> list[str]:
        """List the folders that hold a file."""
        folder = self._root / check_name(prefix, folder=True)
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise path_error("listing", folder, error) from error
        return [name for name in names if any(True for _ in self._walk(f"{prefix}/{name}" if prefix else name))]

    def write(self, name: str, data: bytes) -> None:
        """Replace a file by a rename."""
        self._put(name, lambda partial: _write_synced(partial, data))

    def upload(self, name: str, path: Path) -> None:
        """Copy a file and rename the copy."""
        self._put(name, lambda partial: _copy_synced(path, partial))

    def download(self, name: str, path: Path, *, etag: str | None = None) -> None:
        """Copy a file."""
        with self._open(name, etag) as file:
            try:
                with open(file, "rb", closefd=False) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, COPY_BYTES)
            except OSError as error:
                raise path_error("writing", path, error) from error

    def copy_from(self, other: Storage, source: str, name: str) -> bool:
        """Copy a file of this machine."""
        if other.local is None:
            return False
        path = other.local / check_name(source)
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist")
        self.upload(name, path)
        return True

    def create(self, name: str, data: bytes) -> bool:
        """Link a finished file to the name, which fails if the name is taken."""
        with self._partial(name, lambda partial: _write_synced(partial, data)) as (partial, path):
            try:
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with hold_folder(path.parent):  # all who create here come to this line
                    if os.path.lexists(path):
                        return False
                    os.rename(partial, path)
            _sync_folder(path.parent)
            return True

    def replace(self, name: str, data: bytes, etag: str) -> bool:
        """Compare and rename under the lock of the folder."""
        if self.stat(name) is None:
            return False
        with self._partial(name, lambda partial: _write_synced(partial, data)) as (partial, path):
            with hold_folder(path.parent):
                found = self.stat(name)
                if found is None or found.etag != etag:
                    return False
                os.rename(partial, path)
            _sync_folder(path.parent)
            return True

    def probe(self) -> None:
        """Do nothing: a local file system has links and renames."""

    def delete(self, name: str) -> None:
        """Remove a file."""
        path = self._path(name)
        try:
            with hold_folder(path.parent):
                path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise path_error("removing", path, error) from error

    def _path(self, name: str) -> Path:
        return self._root / check_name(name)

    @contextlib.contextmanager
    def _open(self, name: str, etag: str | None) -> Iterator[int]:
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{path} does not exist") from error
        except OSError as error:
            raise path_error("reading", path, error) from error
        try:
            if etag is not None and _etag(os.fstat(file)) != etag:
                raise StorageError(f"{path} was replaced by another process while it was read; run again")
            yield file
        except OSError as error:
            raise path_error("reading", path, error) from error
        finally:
            os.close(file)

    def _put(self, name: str, fill: Callable[[Path], None]) -> None:
        with self._partial(name, fill) as (partial, path), hold_folder(path.parent):
            os.rename(partial, path)

    @contextlib.contextmanager
    def _partial(self, name: str, fill: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
        """Fill a file beside the place of an object, and remove it at the end if it is still there."""
        path = self._path(name)
        partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fill(partial)
            yield partial, path
        except OSError as error:
            raise path_error("writing", path, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _walk(self, prefix: str) -> Iterator[str]:
        home = self._root / prefix if prefix else self._root
        for folder, _, files in os.walk(home):  # a folder that goes away meanwhile is left out
            relative = Path(folder).relative_to(self._root).as_posix()
            for file in files:
                if not file.startswith(PARTIAL) and file != LOCK_FILE:
                    yield file if relative == "." else f"{relative}/{file}"


def _read_fully(file: int, size: int, offset: int) -> bytes:
    parts = []
    while size > 0 and (data := os.pread(file, min(size, 1 << 30), offset)):
        parts.append(data)
        size, offset = size - len(data), offset + len(data)
    return b"".join(parts)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_synced(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, COPY_BYTES)
        written.flush()
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(opened)
    finally:
        os.close(opened)
