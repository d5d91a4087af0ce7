"""Paths, atomic writes, manifests and locks.

A folder is done when it has a `manifest.json`; data files without it are ignored. The manifest is written last, in one
step. It lists size and hash of every file beside it, so that readers find damage. Knows nothing of the files' contents.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nearcast.errors import BusyError, DamagedError

__all__ = [
    "MANIFEST",
    "PARTIAL",
    "SAME_SCHEMES",
    "bucket_url",
    "file_hash",
    "fingerprint",
    "finish",
    "finite_json",
    "fresh_folder",
    "hold_lock",
    "is_done",
    "link_file",
    "path_fault",
    "read_manifest",
    "refuse_link",
    "verify",
    "write_text",
]

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
SAME_SCHEMES = {
    "s3a": "s3",
    "s3n": "s3",
    "gcs": "gs",
    "abfs": "az",
    "abfss": "az",
    "azure": "az",
    "wasb": "az",
    "wasbs": "az",
}


def fingerprint(value: Any) -> str:
    """Hash plain data (of JSON types). Equal data give equal hashes on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def finite_json(value: Any) -> Any:
    """Replace NaN and infinity by None in plain data: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_json(part) for key, part in value.items()}
    return [finite_json(part) for part in value] if isinstance(value, list | tuple) else value


def file_hash(path: Path) -> str:
    """Hash the bytes of a file. Reads about 1 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def bucket_url(path: str | Path, base: Path | None = None) -> str | None:
    """Return the URL if a path names a bucket or objects in it, s3://bucket/name, else None.

    Restores the second slash that pathlib removes; a local folder `s3:` in `base` then has priority.
    """
    text = os.fspath(path)
    url = re.match(r"(s3|gs|az):(//?)", text, re.IGNORECASE)
    if url is None or (url[2] == "/" and os.path.lexists((base or Path()) / text[: url.end(1) + 1])):
        return None
    return f"{url[1].lower()}://{text[url.end() :]}"


def path_fault(text: str, *, buckets: bool = False) -> str | None:
    """Explain why a path can never exist: it is a URL, or a shell would expand it. Returns None for other paths.

    buckets: s3://, gs:// and az:// are supported.
    """
    if buckets and bucket_url(text):
        return None
    if url := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text):
        scheme = url[1].lower()
        if scheme == "file":
            return f"{text} is a URL; write the path without {text[: url.end() - 1]}//"
        if buckets:
            same = SAME_SCHEMES.get(scheme)
            hint = f"write {same}://" if same else "put it into s3://, gs:// or az://, mount it, or copy it here first"
            return f"{text} is not on this machine, and {url[1]}:// is not supported; {hint}"
        return (
            f"{text} is not on this machine, and {url[1]}:// is not supported here: write a path of this machine, "
            "which may be in a mounted folder"
        )
    if text.startswith("~"):
        whole = os.path.expanduser(text)
        return f"~ is not expanded in {text}; write the whole path{'' if whole == text else f', such as {whole}'}"
    if re.search(r"\$(\w+|\{\w+\})", text):
        return f"variables are not expanded in {text}; write the path that is meant"
    return None


def fresh_folder(folder: Path) -> Path:
    """Create an empty folder. Removes the files of an unfinished attempt."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def link_file(source: Path, target: Path) -> None:
    """Hard-link a file, so that it takes no disk; copy it if the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replace a file atomically: readers see the old text or the new text. The umask limits `mode`.

    Writes to a new file: a symbolic link at `path` is replaced, never followed.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.unlink(missing_ok=True)
    created = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(created, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def finish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Mark a folder as done: flush and list every file, then write the manifest."""
    listed = {}
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and not p.name.startswith(PARTIAL)
    ):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        listed[name] = {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
    text = json.dumps({**manifest, "files": listed}, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(folder / MANIFEST, text + "\n")


def is_done(folder: Path) -> bool:
    """Return whether a folder is complete: it contains a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder. Raises DamagedError if it is missing or unreadable."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(f"{folder} has no {MANIFEST}: it was never finished; run again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} cannot be read ({error}); remove {folder} and run again") from error
    if not isinstance(manifest, dict):
        raise DamagedError(f"{path} does not hold a manifest; remove {folder} and run again")
    return manifest


def verify(folder: Path, *, contents: bool, beside: Collection[str] = ()) -> dict[str, Any]:
    """Compare every file with the manifest: the size, and with `contents` the hash. Return the manifest.

    beside: names that may be there although the manifest does not list them. Raises DamagedError that names the file.
    """
    manifest = read_manifest(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = path.relative_to(folder).as_posix()
        if contents and name not in manifest.get("files", {}) and name not in beside:
            raise DamagedError(f"{path} is not listed in the manifest; remove it")
    for name, facts in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing; restore it, or remove {folder} and run again")
        if path.stat().st_size != facts["bytes"]:
            raise DamagedError(f"{path} has {path.stat().st_size} bytes where {facts['bytes']} were written")
        if contents and file_hash(path) != facts["blake2b"]:
            raise DamagedError(f"{path} was changed after it was written; restore it, or run again")
    return manifest


def refuse_link(path: Path) -> None:
    """Raise DamagedError if `path` exists and is not a regular file.

    Other users can guess the paths that are written, and could place a link to another file there.
    """
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(facts.st_mode):
        raise DamagedError(f"{path} is a symbolic link, which is not followed; remove the link, or put the file there")
    if not stat.S_ISREG(facts.st_mode):
        raise DamagedError(f"{path} is no regular file; move it away")


def _open_lock_file(path: Path) -> int:
    refuse_link(path)
    with contextlib.suppress(FileNotFoundError):
        facts = path.lstat()
        if facts.st_nlink > 1:
            raise DamagedError(f"{path} has {facts.st_nlink} names (hard links) and is not written; remove it")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # the link was put there a moment ago
            refuse_link(path)
        raise


@contextlib.contextmanager
def hold_lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file. Raises BusyError at once if another process holds it. A killed process releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_open_lock_file(path), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(f"{what} is held by {holder}; wait for it to end, or stop it") from error
        with contextlib.suppress(OSError):  # the text is for people: a full disk does not keep us from locking
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} since {_now()}".encode())
        yield


def __getattr__(name: str) -> Any:
    """Return `hold_lock` by its earlier name, for stores of other packages; delete in the second release after 0.1."""
    if name != "locked":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.locked is now hold_lock; import that", DeprecationWarning, stacklevel=2)
    return hold_lock


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
