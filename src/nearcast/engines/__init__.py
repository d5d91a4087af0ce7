"""Engines answer a kNN join: the contract is in `base.py`, each engine in one file, the table of engines here.

A new engine is a file and a row in ENGINES. Knows nothing of ids, specs or snapshots.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nearcast import kernels
from nearcast.engines.dense import DenseEngine
from nearcast.engines.exact import ExactEngine
from nearcast.engines.faiss_hnsw import FaissHnswEngine
from nearcast.engines.faiss_ivf import FaissIvfEngine
from nearcast.errors import SpecError

if TYPE_CHECKING:
    from nearcast.engines.base import Engine

__all__ = ["ENGINES", "choose_engine"]

ENGINES: Mapping[str, Engine] = {e.name: e for e in (DenseEngine(), ExactEngine(), FaissHnswEngine(), FaissIvfEngine())}


def choose_engine(name: str) -> Engine:
    """Return the engine of this name; `auto` is `dense`, or `exact` without native kernels. SpecError if unknown."""
    if name == "auto":
        return ENGINES["dense" if kernels.isa_info().taken != "numpy" else "exact"]
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"engines are auto, {', '.join(ENGINES)}"
        raise SpecError(f"engine is {name!r}: there is none of that name; {hint}")
    return ENGINES[name]
