"""The cost table of docs/cluster.md is what `nearcast plan` computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_cost_table_of_the_page_is_computed_by_nearcast_plan() -> None:
    spec = importlib.util.spec_from_file_location("fill_cluster", ROOT / "docs" / "fill_cluster.py")
    assert spec is not None
    assert spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert fill.block() in page, "run python docs/fill_cluster.py"
    assert fill.checked_block() in page, "run python docs/fill_cluster.py"
