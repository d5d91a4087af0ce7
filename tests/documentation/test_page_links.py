"""Every link of the documentation leads somewhere, and every page is in the nav of the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.documentation.pages import DOCS, PAGES, ROOT, anchors, links, name_of, read_nav

from needs import require_module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for target in links(page):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert path.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading; there are {sorted(anchors(path))}"


def test_every_page_is_once_in_the_nav() -> None:
    require_module("yaml")
    named = list(read_nav())
    there = {page.name for page in DOCS.glob("*.md")} | {"changes.md"}
    assert sorted(named) == sorted(there), "add the page to `nav` of mkdocs.yml"


def test_every_picture_is_shown_by_a_page() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    pictures = {path for path in (DOCS / "images").rglob("*") if path.is_file()}
    assert pictures <= shown
