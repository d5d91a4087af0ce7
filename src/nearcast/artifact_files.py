"""Files of artifacts, opened for reading: memory-mapped `.npy` arrays, and Parquet files as Arrow datasets.

Compares the size of an array's file with its header before mapping: reading beyond the end of a mapped file kills the
process, so all files are mapped here. Knows nothing of the contents' meaning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["map_array", "open_dataset"]


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array read-only; read an empty one. Raises DamagedError if the file is missing, short or not an array."""
    try:
        # a text: numpy resolves the links of a Path, which takes longer than to map it
        array = np.load(os.fspath(path), mmap_mode="r", allow_pickle=False)  # ValueError for a file that is cut off
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error
    if not isinstance(array, np.ndarray):
        raise DamagedError(f"{path} is an archive and no array; remove {path.parent} and run again")
    return array if array.size else np.array(array)


def open_dataset(source: Path | Sequence[str]) -> Dataset:
    """Open a file, a folder or several files as one dataset. Raises pyarrow's errors for files that are not Parquet."""
    from pyarrow import dataset  # imports pandas if it is installed, which takes half a second

    return dataset.dataset(source, format="parquet")
