"""The instruction set of the native kernels, and the reason for it.

Reads the environment variable NEARCAST_ISA on every call. Knows nothing of vectors.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

from nearcast.errors import SpecError

_native: Any = None
_why_missing = ""
try:
    _native = importlib.import_module("nearcast.kernels._native")
except ImportError as missing:  # built without a compiler: every kernel has a NumPy fallback
    _why_missing = str(missing)

ISA_VARIABLE = "NEARCAST_ISA"
NUMPY = "numpy"


@dataclass(frozen=True, slots=True)
class IsaInfo:
    """The instruction set in use, the available ones, and the reason why the others are not available."""

    taken: str
    because: str
    available: tuple[str, ...]
    unavailable: dict[str, str]


def native() -> Any:
    """Return the extension module. Only called if the instruction set is not "numpy"."""
    return _native


def isa_info() -> IsaInfo:
    """Return the instruction set in use, the available ones, and why the others are not. SpecError for a bad name."""
    if _native is None:
        return IsaInfo(NUMPY, "the native extension is missing", (NUMPY,), {"native": _why_missing})
    statuses = _native.isa_statuses()
    available = (*(name for name, runs, *_ in statuses if runs), NUMPY)
    unavailable = {name: reason for name, runs, _, reason, _ in statuses if not runs}
    forced = os.environ.get(ISA_VARIABLE, "")
    if not forced:
        best = next(name for name, runs, tests_only, *_ in statuses if runs and not tests_only)
        return IsaInfo(best, "the best that this machine runs", available, unavailable)
    if forced not in available:
        reason = unavailable.get(forced, "no instruction set has this name")
        raise SpecError(f"{ISA_VARIABLE} is {forced!r}: {reason}; this machine runs {', '.join(available)}")
    return IsaInfo(forced, f"{ISA_VARIABLE} asks for it", available, unavailable)


def query_levels(isa: str) -> int:
    """Return the largest 8-bit code of a query on this instruction set."""
    if isa == NUMPY:
        return 127
    return next(levels for name, *_, levels in _native.isa_statuses() if name == isa)
