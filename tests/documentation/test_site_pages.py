"""The site in a real headless Chromium, on a desktop and on a phone: no error, no outside request, nothing cut off."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.dashboard.browser import PHONE, WIDE, Tab
from tests.documentation.pages import read_nav

from needs import require_module

require_module("yaml", allow_module_level=True)

ENTRIES = ("", "start/", "nightly/", "scale/", "reference/")
SIZES = {"desktop": WIDE, "phone": PHONE}
TOO_WIDE = "document.scrollingElement.scrollWidth > document.documentElement.clientWidth"
PICTURES_ARE_COMPLETE = "[...document.images].every(i => i.complete)"  # loaded, or given up
BROKEN_PICTURES = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).map(i => i.src)"
CUT_OFF = """[...document.querySelectorAll('article table, article pre, article img')].filter(e => {
  const box = e.getBoundingClientRect();
  if (box.right <= innerWidth + 1) return false;
  for (let p = e; p && p.tagName !== 'ARTICLE'; p = p.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return false;
  return true;
}).map(e => e.outerHTML.slice(0, 120))"""

FIELD_HAS_FOCUS = """() => {
  let focused = document.activeElement;
  while (focused?.shadowRoot?.activeElement) focused = focused.shadowRoot.activeElement;
  return focused?.tagName === 'INPUT';
}"""

OpenPage = Callable[..., Tab]


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[OpenPage]:
    """Opens a page of the site in a tab of its own."""
    tabs: list[Tab] = []

    def open_(path: str, size: str = "desktop", scheme: str = "light") -> Tab:
        tab = Tab(browser, SIZES[size], scheme)
        tabs.append(tab)
        tab.page.goto(f"{address}/{path}")
        tab.page.wait_for_selector("article h1")
        return tab

    yield open_
    for tab in tabs:
        tab.close()


def judge(tab: Tab, address: str) -> list[str]:
    """What is wrong with an open page."""
    tab.scroll_through()
    tab.page.wait_for_function(PICTURES_ARE_COMPLETE)
    faults = [f"the console says {text}" for text in tab.complaints]
    faults += [f"asks for {url}" for url in tab.asked if not url.startswith((address, "data:", "blob:"))]
    faults += [f"axe: {found}" for found in tab.axe()]
    faults += [f"no picture, or without a text: {source}" for source in tab.page.evaluate(BROKEN_PICTURES)]
    faults += [f"cut off: {html}" for html in tab.page.evaluate(CUT_OFF)]
    if tab.page.evaluate(TOO_WIDE):
        faults.append("wider than the window")
    if tab.page.locator("article h1").count() != 1:
        faults.append("more than one title")
    return faults


@pytest.mark.parametrize(("path", "size"), [("", "desktop"), ("start/", "phone"), ("reference/", "desktop")])
def test_an_entry_page_is_in_order(path: str, size: str, open_page: OpenPage, address: str) -> None:
    assert judge(open_page(path, size), address) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(read_nav()))
def test_every_page_is_in_order(name: str, size: str, open_page: OpenPage, address: str) -> None:
    path = "" if name == "index.md" else f"{name.removesuffix('.md')}/"
    assert judge(open_page(path, size), address) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", ENTRIES, ids=["home", *(path.strip("/") for path in ENTRIES[1:])])
def test_an_entry_page_is_in_order_in_the_dark(path: str, open_page: OpenPage, address: str) -> None:
    assert judge(open_page(path, scheme="dark"), address) == []


def test_the_search_finds_a_page_by_a_word_of_it(open_page: OpenPage) -> None:
    page = open_page("").page
    for _ in range(600):  # the page listens to keys some time after it is shown
        page.keyboard.press("/")
        if page.evaluate(FIELD_HAS_FOCUS):
            break
        page.wait_for_timeout(100)
    page.keyboard.type("rollback")
    page.locator("a", has_text=re.compile("back", re.IGNORECASE)).first.wait_for()


def test_the_reference_of_python_has_signatures_and_lists_of_arguments(site: Path) -> None:
    text = (site / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("run", "publish", "knn_join", "open", "refresh"):
        assert f'id="nearcast.{name}"' in text
    plain = re.sub(r"<[^>]+>", "", text)
    assert "again: make a new snapshot even if nothing has changed" in plain
    assert "<strong>again</strong>" in text


def test_no_page_shows_markdown_that_was_not_rendered(site: Path) -> None:
    for path in site.rglob("index.html"):
        article = re.search(r"<article.*?</article>", path.read_text(encoding="utf-8"), re.DOTALL)
        if article is None or "/files/" in path.as_posix():
            continue
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", article[0], flags=re.DOTALL)
        for mark in ("|---", ":::", "```", "]("):
            assert mark not in text, f"{path.parent.name} shows {mark}"


def test_files_that_pages_link_to_are_pages_of_the_site(site: Path) -> None:
    text = (site / "files" / "examples" / "scheduling" / "crontab" / "index.html").read_text(encoding="utf-8")
    assert "nearcast refresh shop.toml" in re.sub(r"<[^>]+>", "", text)
