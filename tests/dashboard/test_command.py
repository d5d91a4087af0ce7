"""`nearcast dashboard` on the command line: where it writes, what it says, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.end_to_end.shop import fail, succeed, write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    succeed("run", "shop.toml", cwd=folder)
    return folder


def test_it_writes_one_file_beside_the_generators_and_says_where(shop: Path) -> None:
    done = succeed("dashboard", cwd=shop)
    path = shop / "nearcast" / "dashboard.html"
    assert done.stdout.startswith("wrote nearcast/dashboard.html (")
    assert path.read_text().startswith("<!doctype html>")


def test_without_lists_the_file_holds_figures_alone_and_is_smaller(shop: Path) -> None:
    whole = json.loads(succeed("dashboard", "--json", "--file", "whole.html", cwd=shop).stdout)
    figures = json.loads(succeed("dashboard", "--json", "--no-lists", "--file", "figures.html", cwd=shop).stdout)
    assert whole["bytes"] == (shop / "whole.html").stat().st_size
    assert figures["bytes"] < whole["bytes"]


def test_what_cannot_be_drawn_is_an_error_that_names_it(shop: Path) -> None:
    assert "no history of nobody" in fail("dashboard", "nobody", code=7, cwd=shop)
    assert "nothing has run in elsewhere" in fail("dashboard", "--out", "elsewhere", code=7, cwd=shop)
    assert "missing is no folder" in fail("dashboard", "--file", "missing/page.html", code=2, cwd=shop)
    assert "is no origin of pictures" in fail("dashboard", "--pictures", "img.example.com", code=2, cwd=shop)
