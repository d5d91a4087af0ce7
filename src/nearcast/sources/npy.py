"""Rows of a two-dimensional `.npy` file of the user. Reads the file and never maps it: the user may truncate it, and
reading a truncated map kills the process. Knows nothing of ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearcast.errors import InputError
from nearcast.sources.user_files import UserFile, changed_error, ensure_unchanged
from nearcast.types import AnyArray

__all__ = ["NpyFile", "open_npy"]


@dataclass(frozen=True, slots=True)
class NpyFile:
    """An open `.npy` file: its header."""

    file: UserFile
    n: int
    dim: int
    dtype: np.dtype[Any]
    offset: int  # of the data
    fortran_order: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return self.n * self.dim * self.dtype.itemsize

    def read(self, start: int, stop: int) -> AnyArray:
        """Read rows start..stop-1, (stop - start, dim). Raises InputError if the file was changed."""
        if not self.fortran_order:
            return self._read_values([(start * self.dim, stop * self.dim)])[0].reshape(stop - start, self.dim)
        columns = [(column * self.n + start, column * self.n + stop) for column in range(self.dim)]
        return np.stack(self._read_values(columns), axis=1)

    def _read_values(self, ranges: list[tuple[int, int]]) -> list[AnyArray]:
        size = self.dtype.itemsize
        with ensure_unchanged([self.file]):
            parts = self.file.read_ranges([(self.offset + a * size, self.offset + b * size) for a, b in ranges])
        if any(len(part) != (b - a) * size for part, (a, b) in zip(parts, ranges, strict=True)):
            raise changed_error(self.file.name)
        return [np.frombuffer(part, self.dtype) for part in parts]


def open_npy(file: UserFile) -> NpyFile:
    """Read the header. Raises InputError if the file holds no matrix of numbers, or is shorter than its header says."""
    try:
        with ensure_unchanged([file]), file.open() as opened:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(opened)
            offset = opened.tell()
    except PermissionError as error:
        raise InputError(f"{file.shown} may not be read: permission denied") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file.shown} is not a readable .npy file: {error}") from error
    if len(shape) != 2:
        raise InputError(f"{file.shown} has shape {shape}; vectors come as rows: (count, dimension)")
    if dtype.hasobject:
        raise InputError(f"{file.shown} is not a readable .npy file: it holds Python objects, not numbers")
    npy = NpyFile(file, shape[0], shape[1], dtype, offset, fortran_order)
    if file.size < offset + npy.nbytes:
        raise InputError(
            f"{file.shown} is not a readable .npy file: it was cut short, at {file.size:,} of "
            f"{offset + npy.nbytes:,} bytes; write it again"
        )
    return npy
