"""Engines are used through their contract: no room above asks which engine it has, or imports a part of one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nearcast
from nearcast.engines import ENGINES

PACKAGE = Path(nearcast.__file__).resolve().parent
ABOVE = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "engines"]

FORBIDDEN = {
    "the parts of an engine": r"nearcast\.engines\.(dense|exact|faiss_hnsw|faiss_ivf)\b",
    "the class of an index": r"isinstance\([^)]*(DenseIndex|ExactIndex|HnswIndex|IvfIndex|CellIndex)",
    "the class of an engine": r"(DenseEngine|ExactEngine|FaissHnswEngine|FaissIvfEngine)",
    "the name of an engine": r"engine(\.name)?\s*(==|!=|in|not in)\s*[\"'(\[{]|engine\.name\s*[!=]=",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_module_outside_the_engines_uses(what):
    uses = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in ABOVE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert uses == []


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_declares_its_capabilities(engine):
    assert isinstance(engine.persists_index, bool)
    assert isinstance(engine.fits_workload, bool)
    assert 0 < engine.max_scan_share <= 1
    assert isinstance(engine.libraries, tuple)
    assert engine.search_param is None or engine.search_param in engine.settings.model_fields
