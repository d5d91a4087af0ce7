"""The home of snapshots in a bucket. Nothing is renamed and nothing is locked: two objects are created once.

A commit takes a version by creating `attempt.json` in its folder, uploads the files, and creates `manifest.json`, which
makes the snapshot visible. Whoever sweeps overwrites `attempt.json` first, and an attempt that finds it overwritten
starts again with another version: it looks before and after it creates the manifest. So no swept snapshot stays
committed, without any lock, however slow a process is and whatever its clock says. The overwritten `attempt.json` keeps
the highest version taken: two processes never write to one folder.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nearcast.errors import BusyError, DamagedError, NearcastError, NotFoundError
from nearcast.files import MANIFEST, finish, read_manifest
from nearcast.storage.artifacts import ArtifactFile
from nearcast.storage.base import Storage
from nearcast.storage.host_cache import HostCache
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import open_storage
from nearcast.table.bucket_parts import BucketParts
from nearcast.table.manifest import Manifest
from nearcast.table.snapshot_home import NOTHING, download_file, find_made, manifest_text, parse_manifest
from nearcast.table.snapshot_parts import ATTEMPT
from nearcast.table.snapshot_reader import Snapshot

__all__ = ["BucketHome"]

MOST_ATTEMPTS = 1_000  # versions that other processes may take meanwhile
ABANDONED_SECONDS = 86_400.0  # an attempt that has written nothing for so long was killed
READS = 16  # small objects at a time
HELD_SECONDS = 86_400.0  # a reader that holds a snapshot for longer was killed
HOLDERS = "held"  # folder of a generator with an object per reader that holds a snapshot
SWEPT = b'{"swept": true}'


class BucketHome:
    """Snapshots in a bucket. Safe to use from several threads."""

    def __init__(self, storage: Storage, out: Location, cache: HostCache) -> None:
        self.out = out
        self._storage = storage
        self._cache = cache
        self._opened: dict[str, tuple[str, Snapshot]] = {}  # by name: etag of the manifest, snapshot

    def list_generators(self) -> list[str]:
        """List the folders that hold a folder of snapshots."""
        names = self._storage.list_folders()
        return [name for name, found in zip(names, self._map(self._list_taken, names), strict=True) if found]

    def list_versions(self, generator: str) -> list[int]:
        """Look for the manifest of each folder, in parallel."""
        taken = self._list_taken(generator)
        found = self._map(lambda version: self._storage.stat(f"{_name(generator, version)}/{MANIFEST}"), taken)
        return [version for version, manifest in zip(taken, found, strict=True) if manifest is not None]

    def list_snapshots(self, generator: str) -> list[Snapshot]:
        """Read the manifests in parallel. A snapshot that is removed meanwhile is left out."""
        found = self._map(lambda version: self._open_if_there(generator, version), self._list_taken(generator))
        return [snapshot for snapshot in found if snapshot is not None]

    def next_version(self, generator: str) -> int:
        """Look at the names of the folders."""
        return max(self._list_taken(generator), default=0) + 1

    def open(self, generator: str, version: int) -> Snapshot:
        """Read the manifest."""
        snapshot = self._open_if_there(generator, version)
        if snapshot is None:
            where = f"{self._storage.url}/{_name(generator, version)}"
            raise DamagedError(f"{where} has no {MANIFEST}: it was never finished; run again")
        return snapshot

    def commit(
        self,
        generator: str,
        folder: Path,
        facts: Mapping[str, Any],
        seen: int | None = None,
        elsewhere: Mapping[str, ArtifactFile] = NOTHING,
    ) -> Snapshot:
        """Take a version, upload the files, copy those of this bucket on the server, create the manifest."""
        seen = max(self.list_versions(generator), default=0) if seen is None else seen
        if (made := find_made(self, generator, facts, seen)) is not None:
            return made
        finish(folder, facts)
        files = read_manifest(folder)["files"]
        whole = {**files, **{name: {"bytes": f.size, "blake2b": f.blake2b} for name, f in elsewhere.items()}}
        for _ in range(MOST_ATTEMPTS):
            version, token = self._take_version(generator, facts)
            name = _name(generator, version)
            self._map(lambda file, name=name: self._storage.upload(f"{name}/{file}", folder / file), sorted(files))
            self._map(lambda file, name=name: self._transfer(elsewhere[file], f"{name}/{file}"), sorted(elsewhere))
            text = manifest_text({**facts, "version": version, "files": whole})
            if self._create_manifest(name, token, text):
                snapshot = self.open(generator, version)
                assert isinstance(snapshot.parts, BucketParts)
                with contextlib.suppress(NearcastError):  # it is committed, whatever fails now
                    snapshot.parts.adopt(folder, files)
                    self._sweep(generator, facts["fingerprint"])
                return snapshot
            self._delete_folder(name)
            if (made := find_made(self, generator, facts, seen)) is not None:
                return made
        raise BusyError(f"{self._storage.url}/{generator}: {MOST_ATTEMPTS} versions were taken meanwhile; run again")

    @contextlib.contextmanager
    def hold(self, generator: str, version: int) -> Iterator[None]:
        """Keep an object that says so, for a day at most. It is written before the manifest is looked for."""
        holder = f"{generator}/{HOLDERS}/{version:06d}-{secrets.token_hex(8)}"
        self._storage.write(holder, b"")
        try:
            if self._storage.stat(f"{_name(generator, version)}/{MANIFEST}") is None:
                where = f"{self._storage.url}/{_name(generator, version)}"
                raise NotFoundError(f"{where} was removed a moment ago, as one of the old snapshots; name another one")
            yield
        finally:
            with contextlib.suppress(NearcastError):  # it is ignored after a day
                self._storage.delete(holder)

    def hide(self, generator: str, version: int) -> bool:
        """Delete the manifest. A reader that came in between gets it back."""
        name = _name(generator, version)
        if self.is_held(generator, version):
            return False
        with contextlib.suppress(NotFoundError):  # a removal was killed
            manifest = self._storage.read(f"{name}/{MANIFEST}")
            self._storage.delete(f"{name}/{MANIFEST}")
            if self.is_held(generator, version):
                self._storage.write(f"{name}/{MANIFEST}", manifest)
                return False
        return True

    def remove_hidden(self, generator: str, version: int) -> None:
        """Delete the other objects."""
        name = _name(generator, version)
        self._delete_folder(name)
        self._forget(name)

    def is_held(self, generator: str, version: int) -> bool:
        """Return whether a reader holds a snapshot. Ages are by the clock of the bucket."""
        found = [
            each
            for each in self._storage.list_objects(f"{generator}/{HOLDERS}")
            if each.name.rpartition("/")[2].startswith(f"{version:06d}-")
        ]
        if not found:
            return False
        probe = f"{generator}/{HOLDERS}/now-{secrets.token_hex(8)}"
        self._storage.write(probe, b"")
        written = self._storage.stat(probe)
        self._storage.delete(probe)
        now = time.time() if written is None else written.modified
        for each in found:
            if now - each.modified > HELD_SECONDS:
                self._storage.delete(each.name)
        return any(now - each.modified <= HELD_SECONDS for each in found)

    def list_left(self, generator: str) -> list[int]:
        """List attempts without a manifest that have written nothing for a day; of the highest, a mark always stays."""
        finished = self.list_versions(generator)
        names = {
            version: _name(generator, version)
            for version in self._list_taken(generator)
            if version not in finished and self._is_abandoned(_name(generator, version))
        }
        newest = max(finished, default=0)
        return [v for v, name in names.items() if v < newest or len(list(self._storage.list_objects(name))) > 1]

    def sweep(self, generator: str) -> int:
        """Remove attempts without a manifest that have written nothing for a day."""
        return self._sweep(generator, None)

    def exists(self) -> bool:
        """Return True."""
        return True

    def check_writable(self) -> None:
        """Create and delete an object: a commit hours later needs credentials, and a server with conditional puts."""
        name = f"probe-{secrets.token_hex(8)}"
        self._storage.create(name, name.encode())
        self._storage.delete(name)

    def read_file(self, name: str) -> bytes | None:
        """Read the object."""
        try:
            return self._storage.read(name)
        except NotFoundError:
            return None

    def write_file(self, name: str, data: bytes) -> Location:
        """Replace the object."""
        self._storage.write(name, data)
        return f"{self._storage.url}/{name}"

    def describe_file(self, name: str) -> tuple[float, int]:
        """Read the facts of the object."""
        found = self._storage.stat(name)
        return (0.0, 0) if found is None else (found.modified, found.size)

    def _list_taken(self, generator: str) -> list[int]:
        """Return the numbers of all folders of snapshots, finished or not."""
        return sorted(int(name) for name in self._storage.list_folders(f"{generator}/snapshots") if name.isdigit())

    def _open_if_there(self, generator: str, version: int) -> Snapshot | None:
        name = _name(generator, version)
        found = self._storage.stat(f"{name}/{MANIFEST}")
        etag, snapshot = self._opened.get(name, ("", None))
        if found is None:
            self._forget(name)
            return None
        if snapshot is None or etag != found.etag:
            try:
                manifest = self._read_manifest(name)
            except NotFoundError:  # removed at this moment
                return None
            parts = BucketParts(self._storage, name, self.out, manifest.facts["files"], self._cache)
            snapshot = Snapshot(self._cache.root / "snapshots" / Path(name).name, manifest, parts)
            self._opened[name] = (found.etag, snapshot)
        return snapshot

    def _forget(self, name: str) -> None:
        """Let the cache evict the files of a removed snapshot."""
        _, snapshot = self._opened.pop(name, ("", None))
        if snapshot is not None and isinstance(snapshot.parts, BucketParts):
            for part in snapshot.parts.list_parts():
                with contextlib.suppress(KeyError):  # not in use
                    self._cache.release({snapshot.parts.entry_key(part)})

    def _read_manifest(self, name: str) -> Manifest:
        where = f"{self._storage.url}/{name}/{MANIFEST}"
        data = self._storage.read(f"{name}/{MANIFEST}")
        try:
            facts = json.loads(data)
        except ValueError as error:
            raise DamagedError(f"{where} cannot be read ({error}); remove it and run again") from error
        if not isinstance(facts, dict):
            raise DamagedError(f"{where} does not hold a manifest; remove it and run again")
        return parse_manifest(facts, where)

    def _transfer(self, file: ArtifactFile, name: str) -> None:
        """Copy a file on the server, where it can; else through this machine."""
        if self._storage.copy_from(open_storage(file.root), file.name, name):
            return
        with self._cache.scratch() as made:
            download_file(file, made / "file")
            self._storage.upload(name, made / "file")

    def _take_version(self, generator: str, facts: Mapping[str, Any]) -> tuple[int, bytes]:
        """Create `attempt.json` in a folder of its own. Return the version and the contents."""
        token = json.dumps({"attempt": secrets.token_hex(16), "fingerprint": facts["fingerprint"]}).encode()
        version = self.next_version(generator)
        while not self._storage.create(f"{_name(generator, version)}/{ATTEMPT}", token):
            version = max(version + 1, self.next_version(generator))
        return version, token

    def _create_manifest(self, name: str, token: bytes, text: str) -> bool:
        """Commit. Return False if the attempt was swept; its manifest is not there then."""
        if not self._holds(name, token):
            return False
        self._storage.create(f"{name}/{MANIFEST}", text.encode())  # nobody else creates it: the folder is ours
        if not self._holds(name, token):
            self._storage.delete(f"{name}/{MANIFEST}")
            return False
        return True

    def _holds(self, name: str, token: bytes) -> bool:
        try:
            return self._storage.read(f"{name}/{ATTEMPT}") == token
        except NotFoundError:
            return False

    def _sweep(self, generator: str, committed: str | None) -> int:
        """Remove abandoned attempts. committed: fingerprint whose other attempts are removed at once."""
        removed, finished = 0, self.list_versions(generator)
        for version in set(self._list_taken(generator)) - set(finished):
            name = _name(generator, version)
            if not (self._is_abandoned(name) or (committed and self._fingerprint_of(name) == committed)):
                continue
            self._storage.write(f"{name}/{ATTEMPT}", SWEPT)
            if self._storage.stat(f"{name}/{MANIFEST}") is None:  # looked at after that: it can't be committed any more
                self._delete_folder(name, keep_attempt=version > max(finished, default=0))
                removed += 1
        return removed

    def _is_abandoned(self, name: str) -> bool:
        newest = max((found.modified for found in self._storage.list_objects(name)), default=0.0)
        return time.time() - newest > ABANDONED_SECONDS

    def _fingerprint_of(self, name: str) -> str | None:
        with contextlib.suppress(NotFoundError, ValueError, KeyError, TypeError):
            return str(json.loads(self._storage.read(f"{name}/{ATTEMPT}"))["fingerprint"])
        return None

    def _delete_folder(self, name: str, *, keep_attempt: bool = False) -> None:
        kept = {f"{name}/{ATTEMPT}"} if keep_attempt else set()
        found = [found.name for found in self._storage.list_objects(name) if found.name not in kept]
        self._map(self._storage.delete, found)

    def _map(self, call: Any, values: Sequence[Any]) -> list[Any]:
        """Call for each value, some at a time."""
        if len(values) <= 1:
            return [call(value) for value in values]
        with ThreadPoolExecutor(min(READS, len(values)), "nearcast-bucket") as pool:
            return list(pool.map(call, values))


def _name(generator: str, version: int) -> str:
    return f"{generator}/snapshots/{version:06d}"
