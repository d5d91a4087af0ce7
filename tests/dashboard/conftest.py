"""What tests of the page share: a browser, tabs in it, and a folder with a trouble in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.dashboard.browser import WIDE, Tab
from tests.dashboard.troubles import history_with

from nearcast.dashboard.document import write_page
from shared_folder import make_once


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Makes tabs, and closes them after the test, which fails where the browser has complained."""
    tabs: list[Tab] = []

    def make(size: dict[str, int] = WIDE, scheme: str = "light", **more: Any) -> Tab:
        tabs.append(Tab(browser, size, scheme, **more))
        return tabs[-1]

    yield make
    complaints = [text for one in tabs for text in one.complaints]
    for one in tabs:
        one.close()
    assert complaints == []


@pytest.fixture(scope="session")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two generators, of which `shop` has query vectors of another model since the last night."""

    def make(folder: Path) -> None:
        history_with("queries-of-another-model", folder, healthy=5, others=("home-feed",))

    return make_once(tmp_path_factory, "troubled", make) / "shop" / "nearcast"


@pytest.fixture(scope="session")
def page_file(troubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that folder."""
    return Path(write_page(troubled, tmp_path_factory.mktemp("page") / "dashboard.html"))
