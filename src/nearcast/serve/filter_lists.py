"""Cutting many lists at once: without what is gone, below a score, or after the first k. Arrays in, arrays out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.stores.value_format import Lists
from nearcast.types import FloatArray, IntArray, as_score

__all__ = ["cut"]

Flat = tuple[IntArray, pa.Array, FloatArray]  # offsets, ids and scores, as in `Lists`


def cut(
    lists: Lists, gone: IntArray | None, k: int | None, min_score: float | None
) -> tuple[IntArray, pa.Array, FloatArray, IntArray]:
    """Offsets, ids and scores of what is left, and how many of each list were gone.

    gone: places in the flat ids, ascending. k counts what is left after the other two.
    """
    flat: Flat = (lists.offsets, lists.ids, lists.scores)
    removed = np.zeros(len(lists.found), np.int64)
    if gone is not None and len(gone):
        removed = np.bincount(np.searchsorted(flat[0], gone, "right") - 1, minlength=len(removed))
        keep = np.ones(len(lists.scores), np.bool_)
        keep[gone] = False
        flat = _kept(keep, np.diff(flat[0]) - removed, flat)
    if min_score is not None:
        enough = flat[2] >= as_score(min_score)
        if not enough.all():
            flat = _kept(enough, np.diff(np.append(0, np.cumsum(enough))[flat[0]]), flat)
    if k is not None:
        lengths = np.diff(flat[0])
        if len(lengths) and int(lengths.max()) > k:
            first = np.minimum(lengths, k)
            turns = np.stack([first, lengths - first], axis=1).reshape(-1)
            flat = _kept(np.repeat(np.tile([True, False], len(first)), turns), first, flat)
    return *flat, removed


def _kept(keep: npt.NDArray[np.bool_], lengths: IntArray, flat: Flat) -> Flat:
    """What is kept, as lists of these lengths."""
    _, ids, scores = flat
    left = pa.array(ids.to_numpy()[keep]) if pa.types.is_integer(ids.type) else ids.filter(pa.array(keep))
    return np.append(0, np.cumsum(lengths)), left, scores[keep]
