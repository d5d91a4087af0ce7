"""Arrays mapped from `.npy` files of ours: the size of a file is compared with its header before anything is mapped.

Reading beyond the end of a mapped file ends the process, so no file is mapped by other means. Knows nothing of what the
arrays mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearcast.errors import DamagedError

__all__ = ["map_array"]


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map an array read-only; an empty one is read. Raise DamagedError where the file is missing, short or no array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # ValueError where the file is shorter than it says
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} is damaged ({error}); remove {path.parent} and run again") from error
    if not isinstance(array, np.ndarray):
        raise DamagedError(f"{path} is an archive and no array; remove {path.parent} and run again")
    return array if array.size else np.array(array)
