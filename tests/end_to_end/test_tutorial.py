"""Whole pages do what they say: run in order, their blocks print what is shown.

```toml blocks are written to the file that their first line names; ```python and ```bash blocks are run, and a
fence such as `bash exits=3` says which exit code is expected. A ```text block is what the block before it prints,
trimmed: its lines must all be there, in order. Times and sizes may differ, and in `text varies` every figure may.
Pages that continue an earlier one run after it, in one folder.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.end_to_end.shop import NEARCAST, environment
from tests.forked_cli import install_command

FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    (("tutorial.md",), {"python", "bash", "toml", "text"}),
    (("serving.md",), {"python", "bash", "text"}),
    (("contexts.md",), {"python", "bash", "text"}),
    (("start.md", "nightly.md", "scale.md"), {"python", "bash", "text"}),
]
RUN = ("python", "bash", "toml")
VARYING = re.compile(r"\d+(\.\d+)? (s|min|B|kB|MB|GB)\b|\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d(T#?Z?| \d\d:\d\d)")


class Block(NamedTuple):
    line: int
    kind: str
    note: str
    body: str


def blocks(text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        yield Block(text.count("\n", 0, found.start()) + 1, found[1], found[2].strip(), found[3])


def run(block: Block, folder: Path, names: dict[str, Any]) -> str:
    """Do what a block says; returns what it has printed."""
    if block.kind == "toml":
        name = re.match(r"# (\S+\.toml)\n", block.body)
        assert name, f"line {block.line}: a toml block names its file in its first line"
        (folder / name[1]).write_text(block.body, encoding="utf-8")
        return ""
    if block.kind == "python":
        printed = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            exec(compile(block.body, f"block at line {block.line}", "exec"), names)
        return printed.getvalue()
    expected = int(re.fullmatch(r"(?:exits=(\d+))?", block.note)[1] or 0)
    path = f"{install_command(folder.parent / 'bin')}:{NEARCAST.parent}:{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.body],
        cwd=folder, env=environment(PATH=path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == expected, f"line {block.line}: exit code {done.returncode}\n{done.stdout}"
    assert "Traceback" not in done.stdout
    return done.stdout


def shape(line: str, varies: bool) -> str:
    """A line without what differs from one run to the next."""
    plain = VARYING.sub("#", " ".join(line.split()))
    return re.sub(r"[\d.,]+", "#", plain) if varies else plain


@pytest.mark.parametrize(("pages", "languages"), PAGES, ids=[" ".join(pages) for pages, _ in PAGES])
def test_every_block_runs_and_prints_what_is_shown(
    pages: tuple[str, ...], languages: set[str], repository: Path, tmp_path: Path
) -> None:
    text = "".join((repository / "docs" / page).read_text(encoding="utf-8") for page in pages)
    names: dict[str, Any] = {"__name__": "page"}
    folder = tmp_path / "here"
    folder.mkdir()
    printed = ""
    kinds = []
    for block in blocks(text):
        kinds.append(block.kind)
        if block.kind in RUN:
            printed = run(block, folder, names)
        elif block.kind == "text":
            varies = block.note == "varies"
            there = iter([shape(line, varies) for line in printed.splitlines()])
            for line in block.body.splitlines():
                if line.strip() not in ("", "..."):
                    found = shape(line, varies) in there
                    assert found, f"line {block.line} shows {line!r}, which is not printed (here):\n{printed}"
    assert languages <= set(kinds)
    assert text.count("```") == 2 * len(kinds), "a fence without a language, or one that is left open"
