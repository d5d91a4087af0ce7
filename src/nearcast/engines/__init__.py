"""Engines answer a kNN join: the contract in `base.py`, one file per engine, and the table of them here.

Adding one is a file, a row in ENGINES, and nothing else. Knows nothing of ids, specs or snapshots.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nearcast.engines.exact import ExactEngine
from nearcast.engines.faiss_hnsw import FaissHnswEngine
from nearcast.engines.faiss_ivf import FaissIvfEngine
from nearcast.errors import SpecError

if TYPE_CHECKING:
    from nearcast.engines.base import Engine

__all__ = ["ENGINES", "choose_engine"]

ENGINES: Mapping[str, Engine] = {e.name: e for e in (ExactEngine(), FaissHnswEngine(), FaissIvfEngine())}

AUTO = "exact"
"""What `auto` takes. Where every query is known beforehand, an exact scan costs no more than building and
searching either index at the recalls people promise: `docs/decisions.md` has the figures."""


def choose_engine(name: str) -> Engine:
    """The engine of this name; `auto` is the one that is cheapest. SpecError for an unknown one."""
    if name == "auto":
        return ENGINES[AUTO]
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"engines are auto, {', '.join(ENGINES)}"
        raise SpecError(f"engine is {name!r}: there is none of that name; {hint}")
    return ENGINES[name]
