"""Memory-mapped arrays from `.npy` files that nearcast wrote. Compares the file size with the header before mapping.

Reading beyond the end of a mapped file kills the process, so all files are mapped here. Knows nothing of the arrays'
meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError

__all__ = ["map_array"]


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array read-only; read an empty one. Raises DamagedError if the file is missing, short or not an array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # ValueError where the file is shorter than it says
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error
    if not isinstance(array, np.ndarray):
        raise DamagedError(f"{path} is an archive and no array; remove {path.parent} and run again")
    return array if array.size else np.array(array)
