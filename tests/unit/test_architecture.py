"""docs/architecture.md names files, rooms and tables that exist, and every room."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import nearcast

PACKAGE = Path(nearcast.__file__).resolve().parent
PROJECT = PACKAGE.parent.parent
TEXT = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`([\w/]+\.py)`", TEXT)))
TABLES = sorted(set(re.findall(r"row of `([A-Z]+)` in `([\w/]+)\.py`", TEXT)))
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_architecture_names_exists(name):
    assert any((root / name).is_file() for root in (PACKAGE, PROJECT))


@pytest.mark.parametrize(("table", "module"), TABLES)
def test_a_table_that_a_newcomer_adds_a_row_to_is_where_the_architecture_says(table, module):
    found = importlib.import_module("nearcast." + module.replace("/", ".").removesuffix(".__init__"))
    assert len(getattr(found, table)) > 1


@pytest.mark.parametrize("room", ROOMS)
def test_the_architecture_describes_every_room(room):
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    assert any(f"`{room}`" in row for row in rows)


def test_the_five_walks_and_the_seams_are_there():
    assert TEXT.count("\n**") >= 5
    assert len(TABLES) >= 4
    assert len(FILES) > 60
