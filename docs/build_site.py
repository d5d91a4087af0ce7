"""Stage the pages of docs/ and build the site with Zensical, in strict mode: `make docs-site`.

    python docs/build_site.py [FOLDER]    # default: build/documentation; the site is FOLDER/site

Pages link to files of the repository. Such a file becomes a page below `files/`, so that the link works on the site; a
link to a folder becomes text. The script needs only Python; Zensical is in the environment .docs-site.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PROGRAM = ROOT / ".docs-site" / "bin" / "zensical"
USUAL_FOLDER = ROOT / "build" / "documentation"
CHANGES = "changes.md"  # CHANGELOG.md, as a page
ASSETS = ("images", "site.css", "site.js")
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")
PICTURE = re.compile(r'<img src="([^"]+)" width="(\d+)" alt="([^"]*)">')
FENCE = re.compile(r"^(`{3,})(.*?)^\1$", re.MULTILINE | re.DOTALL)
LANGUAGES = {
    ".go": "go",
    ".java": "java",
    ".json": "json",
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".yaml": "yaml",
}
FILE_PAGE = "---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n`````{language}\n{content}\n`````\n"


def main() -> None:
    """Stage and build."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else USUAL_FOLDER
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} does not exist; `make docs-site` installs it")
    stage(folder)
    command = [str(PROGRAM), "build", "--strict", "--clean", "--config-file", str(folder / "mkdocs.yml")]
    done = subprocess.run(command, cwd=folder, check=False)
    sys.exit(done.returncode)


def stage(folder: Path) -> None:
    """Write mkdocs.yml and the pages, with links that work on the site, into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "docs"
    pages.mkdir(parents=True)
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copy(DOCS / "argument_lists.py", pages)
    (folder / "src").symlink_to(ROOT / "src")
    for name in ASSETS:
        copy = shutil.copytree if (DOCS / name).is_dir() else shutil.copy
        copy(DOCS / name, pages / name)
    linked: set[Path] = set()
    for source in [*sorted(DOCS.glob("*.md")), ROOT / "CHANGELOG.md"]:
        text = convert(source.read_text(encoding="utf-8"), source, linked)
        (pages / name_page(source)).write_text(text, encoding="utf-8")
    for path in sorted(linked):
        page = pages / name_page(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        name, content = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").rstrip("\n")
        page.write_text(
            FILE_PAGE.format(name=name, language=LANGUAGES.get(path.suffix, "text"), content=content), encoding="utf-8"
        )


def name_page(source: Path) -> str:
    """Return the path of a source on the site, below docs/ of the staged folder."""
    if source == ROOT / "CHANGELOG.md":
        return CHANGES
    if source.parent == DOCS:
        return source.name
    return f"files/{source.relative_to(ROOT).as_posix()}.md"


def convert(text: str, source: Path, linked: set[Path]) -> str:
    """Return a page with links of the site. Adds the linked files outside docs/ to `linked`."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [_convert_links(text[end : fence.start()], source, linked), _convert_fence(fence[0])]
        end = fence.end()
    return "".join([*parts, _convert_links(text[end:], source, linked)])


def _convert_fence(fence: str) -> str:
    """Leave out what follows the language: it is for the test that runs the examples."""
    head, _, body = fence.partition("\n")
    return f"{head.split()[0]}\n{body}"


def _convert_links(text: str, source: Path, linked: set[Path]) -> str:
    def convert_link(found: re.Match[str]) -> str:
        target, hash_, anchor = found["target"].partition("#")
        if not target or ":" in target:
            return found[0]
        path = (source.parent / target).resolve()
        if path.is_dir():
            return found["text"][1:-1]
        if path.parent.is_relative_to(DOCS) and path.suffix != ".md":
            return found[0]  # a picture
        if path.parent != DOCS and path.is_file() and path != ROOT / "CHANGELOG.md":
            linked.add(path)
        relative = PurePosixPath(name_page(path) if path.is_file() else target)
        return f"{found['text']}({relative}{hash_}{anchor})"

    text = PICTURE.sub(r'![\3](\1){ width="\2" }', text)
    return LINK.sub(convert_link, text)


if __name__ == "__main__":
    main()
