"""A real headless Chromium for tests, with what it said and asked for; tests that need one are skipped without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from needs import require_module

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 180_000  # milliseconds for what takes far less
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SERIOUS = ("serious", "critical")


def program() -> str:
    """The browser that is installed; skips the test where there is none."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for a while."""
    playwright = require_module("playwright.sync_api")
    path = program()
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab, with every complaint of the browser and every address that was asked for."""

    def __init__(self, browser: Any, size: dict[str, int], scheme: str, **more: Any) -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme, **more)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str | Path, view: str = "") -> Any:
        """Go to a file or an address, and to a view of it. Returns playwright's page."""
        url = address.as_uri() if isinstance(address, Path) else address
        self.page.goto(f"{url}#{view}")
        self.page.wait_for_selector("main h1:not(:text-is('Loading…'))")
        self.page.wait_for_selector(".loading", state="detached")
        return self.page

    def scroll_through(self) -> None:
        """See all of it, so that what is drawn on sight is drawn."""
        self.page.evaluate(
            "async () => { for (let y = 0; y < document.body.scrollHeight; y += 300) "
            "{ scrollTo(0, y); await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame); } }"
        )
        self.page.wait_for_timeout(200)

    @property
    def elsewhere(self) -> list[str]:
        """What was asked of the network."""
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]

    def axe(self) -> list[str]:
        """What the accessibility checker finds that is serious."""
        checker = require_module("axe_playwright_python.sync_playwright")
        found = checker.Axe().run(self.page).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in SERIOUS]

    def close(self) -> None:
        """Close it."""
        self.context.close()
