"""The files of an open snapshot, by part: candidates, items, queries, sketch.

A part is a folder. The parts of a local snapshot are its folders; those of a snapshot in a bucket are in
`bucket_parts.py`. Knows nothing of the files' contents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.artifact_files import open_dataset
from nearcast.files import verify
from nearcast.storage.locations import Location
from nearcast.table.write_table import file_name

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["ATTEMPT", "FolderParts", "SnapshotParts", "find_files"]

ATTEMPT = "attempt.json"  # beside the manifest of a snapshot in a bucket: the attempt that wrote it


class SnapshotParts(Protocol):
    """Where the files of one snapshot are."""

    url: str  # of the snapshot, for people

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


def find_files(names: Sequence[str], near: pa.Scalar, read_metadata: Callable[[str], Any]) -> list[str]:
    """Return the files whose range of the first column can hold a value. Reads the footers of log2(n) files."""
    value, low, high = near.as_py(), 0, len(names)
    while low < high:  # find the first file that does not end below the value
        middle = (low + high) // 2
        bounds = _read_bounds(read_metadata(names[middle]))
        if bounds is None:
            return list(names)
        low, high = (middle + 1, high) if bounds[1] < value else (low, middle)
    return list(names[low : low + 1])


def _read_bounds(metadata: Any) -> tuple[Any, Any] | None:
    """Return the smallest and the largest value of the first column; None if the file does not say."""
    groups = [metadata.row_group(number).column(0) for number in range(metadata.num_row_groups)]
    if not groups or not all(group.is_stats_set and group.statistics.has_min_max for group in groups):
        return None
    return groups[0].statistics.min, groups[-1].statistics.max


class FolderParts:
    """The parts of a snapshot in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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

    def dataset(self, part: str, near: pa.Scalar | None = None) -> Dataset:
        """Open the files: Arrow reads their footers, which say what each row group can hold."""
        if near is None:
            return open_dataset(self._folder / part)
        names = [str(path) for path in sorted((self._folder / part).glob("*.parquet"))]
        return open_dataset(find_files(names, near, pq.read_metadata) or names[:1] or self._folder / part)

    @contextlib.contextmanager
    def open_file(self, part: str, number: int) -> Iterator[pq.ParquetFile]:
        """Open the file."""
        with pq.ParquetFile(self._folder / part / file_name(number)) as file:
            yield file

    def verify(self) -> None:
        """Read every file."""
        verify(self._folder, contents=True, beside=(ATTEMPT,))
