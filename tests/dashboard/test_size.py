"""A year of history of a hundred generators: one file that can be mailed, and that is there at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.dashboard.browser import Tab
from tests.dashboard.years import year_of

from nearcast.dashboard.document import write_page

DRAWN = "performance.getEntriesByName('drawn')[0].startTime"


@pytest.mark.slow
def test_a_year_of_a_hundred_generators_is_below_five_megabytes_and_opens(
    tab: Callable[..., Tab], tmp_path: Path
) -> None:
    year_of(tmp_path / "out", generators=100)
    path = write_page(tmp_path / "out")
    assert path.stat().st_size < 5_000_000
    page = tab().open(path)
    assert page.locator("h1").inner_text() == "1 of 100 generators has a problem"
    assert page.locator(".cards h2").inner_text() == "generator-042"
    assert page.locator("table.generators tbody tr").count() == 100
    print(f"{path.stat().st_size:,} bytes, drawn after {page.evaluate(DRAWN):.0f} ms")  # pytest -s
