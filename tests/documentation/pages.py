"""Pages of the documentation as tests read them: their blocks of code, links, headings, and the nav of the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<head>[^\n`]*)\n(?P<body>.*?)^(?P=ticks)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A block of code: where it begins, its language, what follows the language, and its text."""

    page: Path
    line: int
    language: str
    note: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def name_of(page: Path) -> str:
    """The path of a page below the repository, to name tests by."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page, in order: between fences, or indented by four spaces."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, _, note = found["head"].strip().partition(" ")
        yield Block(page, text.count("\n", 0, found.start()) + 1, language, note, found["body"])
    lines = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text).splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("    ") and not lines[number - 2].strip().startswith((":::", "options:", "- ")):
            yield Block(page, number, "", "indented", line[4:] + "\n")


def prose(page: Path) -> str:
    """A page without its blocks of code and code spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """The targets of all links and pictures of a page."""
    found = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return [target or picture for target, picture in found]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them; where they differ, neither counts."""
    headings = [re.sub(r"[`*]", "", text) for text in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
    return {_anchor_on_github(text) for text in headings} & {_anchor_on_the_site(text) for text in headings}


def _anchor_on_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _anchor_on_the_site(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def read_nav() -> Iterator[str]:
    """The pages of mkdocs.yml, in order."""
    import yaml

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            for child in node:
                yield from walk(child)
        else:
            for child in node.values():
                yield from walk(child)

    yield from walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
