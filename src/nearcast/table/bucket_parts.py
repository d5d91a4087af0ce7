"""The files of a snapshot in a bucket, fetched into the host's cache when they are first needed.

A small part is fetched whole, and its files are verified against the manifest. Of a large part, a query reads ranges:
footers, and the row groups that can hold the answer. A key is found by a binary search over the footers of the files,
which are sorted by their first column.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.errors import BudgetError, DamagedError, NotFoundError
from nearcast.files import MANIFEST, file_hash, fingerprint
from nearcast.storage.base import Storage
from nearcast.storage.host_cache import HostCache
from nearcast.storage.locations import Location
from nearcast.storage.object_files import open_object
from nearcast.table.snapshot_parts import ATTEMPT, find_files
from nearcast.table.write_table import file_name

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["SMALL_PART", "BucketParts"]

SMALL_PART = 32 << 20  # bytes; a larger part is not fetched for one query
TRANSFERS = 8  # files at a time


class BucketParts:
    """The parts of a snapshot in a bucket. A part is an entry of the host's cache. Safe to use from several threads."""

    def __init__(
        self, storage: Storage, name: str, out: Location, files: Mapping[str, Mapping[str, Any]], cache: HostCache
    ) -> None:
        self.url = f"{storage.url}/{name}"
        self.out = out
        self._storage = storage
        self._name = name
        self._files = files  # of the manifest: bytes and blake2b by name
        self._cache = cache
        self._metadata: dict[str, Any] = {}
        self._lock = threading.Lock()

    def has(self, part: str) -> bool:
        """Return whether the manifest lists a file of the part."""
        return bool(self._list(part))

    def fetch(self, part: str) -> Path:
        """Download the part unless the cache has it: its files in parallel, each verified."""
        if not self.has(part):
            return self._cache.root / "missing" / part
        key = self.entry_key(part)
        size = sum(int(self._files[name]["bytes"]) for name in self._list(part))
        whole = partial(self._is_whole, part)
        return self._cache.open_entry(key, whole, lambda made: self._download(part, made), size) / part

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Dataset:
        """Open a small or cached part locally, else open its files for ranged reads."""
        names = self._list(part)
        size = sum(int(self._files[name]["bytes"]) for name in names)
        if size <= SMALL_PART or self._is_cached(part):
            with contextlib.suppress(BudgetError):  # a full disk: read ranges
                return open_dataset(self.fetch(part))
        from pyarrow import dataset

        chosen = names if near is None else find_files(names, near, self._read_metadata)
        kind = dataset.ParquetFileFormat()
        fragments = [kind.make_fragment(self._open(name)) for name in chosen or names[:1]]
        return dataset.FileSystemDataset(fragments, fragments[0].physical_schema, kind)

    @contextlib.contextmanager
    def open_file(self, part: str, number: int) -> Iterator[pq.ParquetFile]:
        """Open a file of a cached part locally, else for ranged reads."""
        if self._is_cached(part):
            with pq.ParquetFile(self.fetch(part) / file_name(number)) as file:
                yield file
        else:
            with pq.ParquetFile(self._open(f"{part}/{file_name(number)}"), pre_buffer=True) as file:
                yield file

    def verify(self) -> None:
        """Download every file again, and compare it with the manifest; find files that the manifest does not list."""
        listed = {f"{self._name}/{name}" for name in (*self._files, MANIFEST, ATTEMPT)}
        for found in self._storage.list_objects(self._name):
            if found.name not in listed:
                raise DamagedError(f"{self._storage.url}/{found.name} is not listed in the manifest; remove it")
        for part in self.list_parts():
            with self._cache.scratch() as made:
                self._download(part, made)
                self._cache.adopt(self.entry_key(part), made, partial(self._is_whole, part))

    def adopt(self, folder: Path, files: Collection[str]) -> None:
        """Link these files of a local folder into the cache, if it is on the same disk: they are often read next.

        Takes the parts that are whole there.
        """
        with contextlib.suppress(OSError):
            for part in self.list_parts():
                if not set(self._list(part)) <= set(files):
                    continue
                with self._cache.scratch() as made:
                    for name in self._list(part):
                        (made / name).parent.mkdir(parents=True, exist_ok=True)
                        os.link(folder / name, made / name)
                    self._cache.adopt(self.entry_key(part), made, partial(self._is_whole, part))

    def list_parts(self) -> list[str]:
        """List the folders of files, and the files beside them."""
        return sorted({name.partition("/")[0] for name in self._files})

    def entry_key(self, part: str) -> str:
        """Name the entry of a part in the cache by everything that decides its files."""
        facts = {name: self._files[name] for name in self._list(part)}
        return f"{part}-{fingerprint([self.url, part, facts])}"

    def _list(self, part: str) -> list[str]:
        return sorted(name for name in self._files if name.partition("/")[0] == part)

    def _is_whole(self, part: str, folder: Path) -> bool:
        """Return whether a folder has all files of the part. They were verified before they came there."""
        try:
            return all((folder / name).stat().st_size == self._files[name]["bytes"] for name in self._list(part))
        except OSError:
            return False

    def _is_cached(self, part: str) -> bool:
        return self._is_whole(part, self._cache.root / "entries" / self.entry_key(part))

    def _open(self, name: str) -> Any:
        if name not in self._files:
            raise DamagedError(f"{self.url}/{name} is not listed in the manifest; restore it, or run again")
        return open_object(self._storage, f"{self._name}/{name}", int(self._files[name]["bytes"]))

    def _download(self, part: str, folder: Path) -> None:
        names = self._list(part)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(TRANSFERS, "nearcast-fetch") as pool:
            for _ in pool.map(lambda name: self._download_file(name, folder / name), names):
                pass

    def _download_file(self, name: str, path: Path) -> None:
        """Download and verify a file; once more if it does not match, since the transfer may have damaged it."""
        facts, where = self._files[name], f"{self.url}/{name}"
        for _ in range(2):
            try:
                self._storage.download(f"{self._name}/{name}", path)
            except NotFoundError:
                raise DamagedError(f"{where} is missing; restore it, or remove {self.url} and run again") from None
            size = path.stat().st_size
            if size == facts["bytes"] and file_hash(path) == facts["blake2b"]:
                return
        if size != facts["bytes"]:
            raise DamagedError(f"{where} has {size} bytes where {facts['bytes']} were written; restore it")
        raise DamagedError(f"{where} was changed after it was written; restore it, or run again")

    def _read_metadata(self, name: str) -> Any:
        with self._lock:
            known = self._metadata.get(name)
        if known is None:
            known = pq.read_metadata(self._open(name))
            with self._lock:
                self._metadata[name] = known
        return known
