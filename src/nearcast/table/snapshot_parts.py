"""The files of an open snapshot, by part: candidates, items, queries, sketch.

A part is a folder. The parts of a local snapshot are its folders; those of a snapshot in a bucket are in
`bucket_parts.py`. Knows nothing of the files' contents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.files import verify
from nearcast.storage.locations import Location
from nearcast.table.write_table import file_name

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["ATTEMPT", "FolderParts", "SnapshotParts"]

ATTEMPT = "attempt.json"  # beside the manifest of a snapshot in a bucket: the attempt that wrote it


class SnapshotParts(Protocol):
    """Where the files of one snapshot are."""

    url: str  # of the snapshot, for people
    local: bool  # reading downloads nothing

    @property
    def out(self) -> Location:
        """The location that holds the snapshots of all generators."""
        ...

    def has(self, part: str) -> bool:
        """Return whether the snapshot has a part."""
        ...

    def fetch(self, part: str) -> Path:
        """Return a local folder with all files of a part, verified if they were downloaded; it may not exist."""
        ...

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Dataset:
        """Open the Parquet files of a part. Downloads only what a query reads.

        near: leave out files that cannot hold this value in their first column, by which the files are sorted.
        """
        ...

    def open_file(self, part: str, number: int) -> contextlib.AbstractContextManager[pq.ParquetFile]:
        """Open the Parquet file of this number."""
        ...

    def verify(self) -> None:
        """Compare every byte with the manifest. Raises DamagedError that names the file."""
        ...


class FolderParts:
    """The parts of a snapshot in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.local = True
        self.url = str(folder)

    @property
    def out(self) -> Location:
        """The folder three levels up."""
        return self._folder.parents[2]

    def has(self, part: str) -> bool:
        """Return whether the folder exists."""
        return (self._folder / part).is_dir()

    def fetch(self, part: str) -> Path:
        """Return the folder."""
        return self._folder / part

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Dataset:  # noqa: ARG002
        """Open all files: Arrow reads the footers, which say what each row group can hold."""
        return open_dataset(self._folder / part)

    @contextlib.contextmanager
    def open_file(self, part: str, number: int) -> Iterator[pq.ParquetFile]:
        """Open the file."""
        with pq.ParquetFile(self._folder / part / file_name(number)) as file:
            yield file

    def verify(self) -> None:
        """Read every file."""
        verify(self._folder, contents=True, beside=(ATTEMPT,))
