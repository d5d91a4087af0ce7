"""Artifacts in object storage: an attempt uploads its files, then one of them is named by `done.json`.

    <name>/attempt-<id>/<file>...    the files of an attempt, among them its manifest.json
    <name>/done.json                 attempt, facts, sizes and hashes of the files; put if absent, never replaced

Readers get a folder of the host's cache. Files that no `done.json` names are orphans and are swept.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nearcast.errors import DamagedError, NearcastError, NotFoundError, StorageError
from nearcast.files import MANIFEST, file_hash, finish, read_manifest
from nearcast.storage.artifacts import ArtifactFile, Write
from nearcast.storage.base import Storage, StoredObject, check_name
from nearcast.storage.host_cache import HostCache, entry_key, explain_full_disk

__all__ = ["BucketArtifacts"]

DONE = "done.json"
ATTEMPT = "attempt-"
DELETES_AT_ONCE = 8
LONG = 600.0  # seconds of an upload after which a sweep with a short age may have taken its first files
TRIES = 3  # of an opening whose artifact is removed and written again meanwhile


class BucketArtifacts:
    """Artifacts below the root of a storage."""

    def __init__(self, storage: Storage, cache: HostCache) -> None:
        self.url = storage.url
        self.storage = storage
        self.cache = cache

    def facts(self, name: str) -> dict[str, Any] | None:
        """Read `done.json`."""
        done = self._read_done(name)
        return None if done is None else dict(done["facts"])

    def list_files(self, name: str) -> dict[str, ArtifactFile]:
        """Read `done.json`."""
        done = self._require_done(name)
        return {
            file: ArtifactFile(self.url, f"{name}/{done['attempt']}/{file}", facts["bytes"], facts["blake2b"])
            for file, facts in done["files"].items()
            if file != MANIFEST
        }

    def open(self, name: str, parts: Sequence[str] = ()) -> Path:
        """Return the folder in the cache; download and verify the files if they are not there."""
        for last in (False,) * (TRIES - 1) + (True,):
            done = self._require_done(name)
            try:
                return self._localize(name, done, parts)
            except NotFoundError as error:
                again = self._read_done(name)
                if last or (again is not None and again["attempt"] == done["attempt"]):
                    raise DamagedError(
                        f"{error}, but {self.url}/{name}/{DONE} names it; remove {self.url}/{name} and run again"
                    ) from error
        raise AssertionError("unreachable")

    def ensure(self, name: str, write: Write) -> Path:
        """Return the folder in the cache; write and upload an attempt if there is no artifact."""
        self._write_missing(name, write)
        return self.open(name)

    def commit(self, name: str, write: Write) -> dict[str, Any]:
        """Write and upload an attempt if there is no artifact; return the facts of the winner."""
        return dict(self._write_missing(name, write)["facts"])

    def _write_missing(self, name: str, write: Write) -> dict[str, Any]:
        """Return the contents of `done.json`. The files of a winning attempt stay in the cache."""
        check_name(name)
        if (done := self._read_done(name)) is not None:
            return done
        self.storage.probe()  # before the work
        with self.cache.scratch() as entry:
            folder = entry / _last_part(name)
            folder.mkdir()
            with explain_full_disk(self.cache.root):
                facts = write(folder)
                finish(folder, facts)
            attempt = f"{ATTEMPT}{secrets.token_hex(8)}"
            done = {"attempt": attempt, "facts": facts, "files": _list_files(folder)}
            self._upload(name, folder, done)
            data = json.dumps(done, sort_keys=True, ensure_ascii=False, indent=1).encode()
            # After an error here nobody knows whether the attempt was committed: its files stay.
            if self.storage.create(f"{name}/{DONE}", data):
                with self.cache.session():
                    self.cache.adopt(entry_key(self.url, name, attempt), entry, _is_whole(name, done))
                return done
        self._discard(name, done)
        winner = self._read_done(name)
        if winner is None:
            raise NotFoundError(f"{self.url}/{name} was removed by another process; run again")
        return winner

    def list_names(self, prefix: str = "") -> list[str]:
        """List the names with a `done.json`."""
        found = (each.name for each in self.storage.list_objects(prefix))
        return sorted(name for name in map(_name_of_done, found) if name is not None)

    def remove(self, name: str) -> None:
        """Remove the objects of an artifact or of all artifacts in a folder, each `done.json` first."""
        found = [each.name for each in self.storage.list_objects(name)]
        self._delete([each for each in found if _name_of_done(each) is not None])
        self._delete([each for each in found if _name_of_done(each) is None])

    def sweep(self, prefix: str = "", *, older_than: float = 86_400.0) -> int:
        """Remove the files of attempts that lost or were never committed, by the clock of the storage."""
        attempts: dict[tuple[str, str], list[StoredObject]] = defaultdict(list)
        for each in self.storage.list_objects(prefix):
            if (found := _attempt_of(each.name)) is not None:
                attempts[found].append(each)
        if not attempts:
            return 0
        now, swept = self._storage_time(prefix), 0
        for (name, attempt), files in attempts.items():
            if now - max(each.modified for each in files) <= older_than:
                continue
            done = self._read_done(name)
            if done is not None and done["attempt"] == attempt:
                continue
            self._delete([each.name for each in files])
            swept += 1
        return swept

    def _read_done(self, name: str) -> dict[str, Any] | None:
        try:
            data = self.storage.read(f"{check_name(name)}/{DONE}")
        except NotFoundError:
            return None
        try:
            done: dict[str, Any] = json.loads(data)
            for file, facts in done["files"].items():
                check_name(file)
                facts["bytes"] + 0, facts["blake2b"] + ""
            check_name(done["attempt"])
            dict(done["facts"])
        except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
            raise DamagedError(
                f"{self.url}/{name}/{DONE} cannot be read ({error}); remove {self.url}/{name} and run again"
            ) from error
        return done

    def _require_done(self, name: str) -> dict[str, Any]:
        done = self._read_done(name)
        if done is None:
            raise NotFoundError(f"{self.url}/{name} is not finished or does not exist; run the step that writes it")
        return done

    def _localize(self, name: str, done: Mapping[str, Any], parts: Sequence[str]) -> Path:
        """Return the folder of an entry of the cache: of the whole artifact if it is there, else of these parts."""
        key = entry_key(self.url, name, done["attempt"])
        if parts and not self.cache.has_entry(key, _is_whole(name, done)):
            key = entry_key(self.url, name, done["attempt"], sorted(parts))
            done = {**done, "files": {file: facts for file, facts in done["files"].items() if _is_in(file, parts)}}
        size = sum(facts["bytes"] for facts in done["files"].values())

        def fill(entry: Path) -> None:
            self._download(name, done, entry / _last_part(name))

        return self.cache.open_entry(key, _is_whole(name, done), fill, size) / _last_part(name)

    def _download(self, name: str, done: Mapping[str, Any], folder: Path) -> None:
        for file, facts in done["files"].items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            source = f"{name}/{done['attempt']}/{file}"
            for last in (False, True):
                self.storage.download(source, path)
                if path.stat().st_size == facts["bytes"] and file_hash(path) == facts["blake2b"]:
                    break
                if last:
                    raise DamagedError(
                        f"{self.url}/{source} is not what was uploaded: its hash is not the one in {DONE}; remove "
                        f"{self.url}/{name} and run again"
                    )

    def _upload(self, name: str, folder: Path, done: Mapping[str, Any]) -> None:
        home, began = f"{name}/{done['attempt']}", time.monotonic()
        try:
            for file in done["files"]:
                self.storage.upload(f"{home}/{file}", folder / file)
            if time.monotonic() - began > LONG:
                there = {each.name for each in self.storage.list_objects(home)}
                if missing := [file for file in done["files"] if f"{home}/{file}" not in there]:
                    raise StorageError(f"{self.url}/{home}/{missing[0]} was removed during its upload; run again")
        except BaseException:
            self._discard(name, done)
            raise

    def _discard(self, name: str, done: Mapping[str, Any]) -> None:
        """Remove the files of an attempt that cannot win any more. What is left by an error is swept later."""
        with contextlib.suppress(NearcastError):
            self._delete([f"{name}/{done['attempt']}/{file}" for file in done["files"]])

    def _delete(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
            for _ in pool.map(self.storage.delete, names):
                pass

    def _storage_time(self, prefix: str) -> float:
        name = "/".join(part for part in (prefix, f"clock-{secrets.token_hex(8)}") if part)
        self.storage.write(name, b"")
        try:
            facts = self.storage.stat(name)
        finally:
            self.storage.delete(name)
        return facts.modified if facts is not None else 0.0


def _last_part(name: str) -> str:
    """Return the name of an artifact's folder in its cache entry: code that opens it reads the name of the folder."""
    return name.rpartition("/")[2]


def _is_in(file: str, parts: Sequence[str]) -> bool:
    """Return whether a file is one of the parts, or in one; the manifest is in all."""
    return file == MANIFEST or any(file == part or file.startswith(f"{part}/") for part in parts)


def _is_whole(name: str, done: Mapping[str, Any]) -> Any:
    def compare(entry: Path) -> bool:
        folder = entry / _last_part(name)
        try:
            return all((folder / file).stat().st_size == facts["bytes"] for file, facts in done["files"].items())
        except OSError:
            return False

    return compare


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = folder / MANIFEST
    listed: dict[str, dict[str, Any]] = dict(read_manifest(folder)["files"])
    listed[MANIFEST] = {"bytes": manifest.stat().st_size, "blake2b": file_hash(manifest)}
    return listed


def _name_of_done(path: str) -> str | None:
    """Return the artifact of a `done.json`, None for another object."""
    name, _, last = path.rpartition("/")
    return name if last == DONE and _attempt_of(path) is None and name else None


def _attempt_of(path: str) -> tuple[str, str] | None:
    """Return artifact and attempt of a file of an attempt."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1]):
        if part.startswith(ATTEMPT) and i > 0:
            return "/".join(parts[:i]), part
    return None
