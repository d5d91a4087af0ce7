"""Files of artifacts, opened for reading: memory-mapped `.npy` arrays, and Parquet files as Arrow datasets.

Compares the size of an array's file with its header before mapping: reading beyond the end of a mapped file kills the
process, so all files are mapped here. Knows nothing of the contents' meaning.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["map_array", "open_dataset"]

HEAD_BYTES = 4096  # of a file, read at once: the header of an array takes 128
FIXED_BYTES = 10  # of a header of version 1.0: mark, version and length of the rest
FIRST_VERSION = b"\x93NUMPY\x01\x00"


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array read-only; read an empty one. Raises DamagedError if the file is missing, short or not an array."""
    try:
        array = _map_plain(path)
        if array is None:
            array = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error
    if not isinstance(array, np.ndarray):
        raise DamagedError(f"{path} is an archive and no array; remove {path.parent} and run again")
    return array if array.size else np.array(array)


def _map_plain(path: Path) -> npt.NDArray[Any] | None:
    """Map an array whose header has version 1.0; None for another file, which NumPy reads or refuses.

    A run maps hundreds of files. NumPy takes five times as long: it opens a file three times, and parses each header.
    Raises ValueError for a file that is cut off.
    """
    with open(path, "rb", buffering=0) as file:
        head = file.read(HEAD_BYTES) or b""
        length = FIXED_BYTES + int.from_bytes(head[8:FIXED_BYTES], "little")
        if not head.startswith(FIRST_VERSION) or len(head) < length:
            return None
        shape, is_fortran, dtype = _parse_header(head[:length])
        if dtype.hasobject or dtype.itemsize == 0 or 0 in shape:
            return None
        mapped = mmap.mmap(file.fileno(), length + math.prod(shape) * dtype.itemsize, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, mapped, length, order="F" if is_fortran else "C")


@lru_cache(maxsize=512)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype. Raises ValueError for a header that is damaged."""
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header[8:]))
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape is {shape}")
    return shape, is_fortran, dtype


def open_dataset(source: Path | Sequence[str]) -> Dataset:
    """Open a file, a folder or several files as one dataset. Raises pyarrow's errors for files that are not Parquet."""
    from pyarrow import dataset  # imports pandas if it is installed, which takes half a second

    return dataset.dataset(source, format="parquet")
