"""Find equal rows of two tables in one native pass: sorted texts, and vectors by their bytes; gather texts.

Texts have no NumPy fallback: `sources.ids` then searches and takes them with Arrow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearcast.kernels import isa as _isa
from nearcast.types import EMPTY_POSITION, AnyArray, IntArray

__all__ = ["Texts", "can_match", "find_equal_rows", "gather_texts", "match_texts"]

Texts = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]
"""Where each text begins, and where the last one ends, (n + 1,); and the bytes of all."""


def can_match() -> bool:
    """Return whether `match_texts` and `gather_texts` work on this machine."""
    return _isa.isa_info().taken != _isa.NUMPY


def match_texts(texts: Texts, others: Texts) -> IntArray:
    """Return (n,) the position of each text among the others, -1 for none. Both ascend by bytes and hold each once."""
    matches: IntArray = _isa.native().match_sorted_texts(*texts, *others)
    return matches


def gather_texts(texts: Texts, positions: IntArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]] | None:
    """Return the texts at these positions: where each begins, and the last one ends, and the bytes of all.

    None if they take 2 GiB or more.
    """
    found: tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]] | None = _isa.native().gather_texts(
        *texts, np.ascontiguousarray(positions, np.int64)
    )
    return found


def find_equal_rows(rows: AnyArray, others: AnyArray, matches: IntArray) -> npt.NDArray[np.bool_]:
    """Return (n,) whether each row has the bytes of the other row at its match; False for a match of -1."""
    mine, theirs = (np.ascontiguousarray(each).view(np.uint8) for each in (rows, others))
    if _isa.isa_info().taken != _isa.NUMPY:
        same: npt.NDArray[np.bool_] = _isa.native().equal_rows(mine, theirs, matches).view(np.bool_)
        return same
    same = matches != EMPTY_POSITION
    same[same] = (mine[same] == theirs[matches[same]]).all(axis=1)
    return same
