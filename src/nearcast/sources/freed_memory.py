"""Give memory back to the system between the steps of a run, so that a budget is kept by the whole process."""

from __future__ import annotations

import contextlib
import ctypes

import pyarrow as pa

__all__ = ["return_freed_memory"]


def return_freed_memory() -> None:
    """Give freed memory back to the system: allocators keep some for later, and it counts as resident."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim is of glibc
        ctypes.CDLL(None).malloc_trim(0)
