"""What the documentation shows as commands, settings and data is accepted by what reads it.

`test_tutorial.py` runs whole pages; other tests run examples that need a service or a cluster. Here every block of
every page is at least read: options of commands, keys of specs, JSON, YAML, INI and Python.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from tests.documentation.pages import PAGES, ROOT, Block, blocks, name_of

from nearcast.cli import cli
from nearcast.settings.parse_spec import parse_model
from nearcast.spec import GeneratorSpec
from nearcast.table.expansion_settings import ExpansionSpec
from needs import require_module

LANGUAGES = {"bash", "console", "ini", "json", "python", "sh", "sql", "text", "toml", "yaml"}
SHELLS = ("bash", "console", "sh", "")
ALL = [block for page in PAGES for block in blocks(page)]
LEAST = {
    "name": "shop",
    "metric": "cosine",
    "k": 50,
    "items": {"path": "items.parquet"},
    "queries": {"path": "queries.parquet"},
}
LEAST_ADS = {
    "name": "offers",
    "ads": {"path": "ads.parquet", "id": "ad"},
    "links": {"path": "links.parquet", "item": "item", "ad": "ad"},
}


def written_in(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """The calls of nearcast in a block, as words."""
    for line in block.body.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;|\||(?<!<)>|\bcase\b|& ", re.sub(r"^\s*\$ ", "", line)):
            if re.match(r"\s*nearcast [a-z]", part):
                yield shlex.split(part, comments=True)[1:]


CALLS = [(block, words) for block in written_in(*SHELLS) for words in commands(block)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "command-line.md"], ids=name_of)
def test_every_block_says_its_language(page: Path) -> None:
    for block in blocks(page):
        assert block.note == "indented" or block.language in LANGUAGES, f"{block}: ```{block.language}"


@pytest.mark.parametrize(("block", "words"), CALLS, ids=[f"{b}:{' '.join(w[:2])}" for b, w in CALLS])
def test_commands_and_options_that_pages_show_exist(block: Block, words: list[str]) -> None:
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        if found is None and command is not cli:  # nearcast overlay GENERATOR remove
            words = words[1:]
            continue
        assert found is not None, f"{block}: there is no command {words[0]}"
        command, words = found, words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    shown = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
    assert shown <= options | {"--help", "--version"}, f"{block}: {command.name} has no {sorted(shown - options)}"


def test_there_are_many_commands_to_look_at() -> None:
    assert len(CALLS) > 80


@pytest.mark.parametrize("block", written_in("toml"), ids=str)
def test_settings_that_pages_show_are_settings_of_a_spec(block: Block) -> None:
    tables = tomllib.loads(block.body)
    if "project" in tables:  # of a package that adds a store
        return
    if block.page.name == "expansion.md":
        parse_model(ExpansionSpec, LEAST_ADS | tables, str(block))
    else:
        parse_model(GeneratorSpec, merge(LEAST, tables), str(block))


def merge(least: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """A spec with the tables that a page shows, and what every spec needs."""
    merged = dict(least)
    for name, value in shown.items():
        own = merged.get(name)
        if isinstance(value, dict) and isinstance(own, dict):
            whole = value if {"table", "sql"} & set(value) else own | value
            merged[name] = whole
        else:
            merged[name] = value
    return merged


@pytest.mark.parametrize("block", written_in("json", "yaml", "ini"), ids=str)
def test_data_that_pages_show_can_be_read(block: Block) -> None:
    if block.language == "json":
        json.loads(block.body)
    elif block.language == "yaml":
        assert require_module("yaml").safe_load(block.body)
    else:
        configparser.ConfigParser(strict=False, interpolation=None).read_string(block.body)


@pytest.mark.parametrize("block", written_in("python"), ids=str)
def test_calls_of_nearcast_that_pages_show_fit_its_functions(block: Block) -> None:
    for node in ast.walk(ast.parse(block.body, str(block))):
        if isinstance(node, ast.Call) and (function := find_function(ast.unparse(node.func))) is not None:
            arguments = {word.arg: None for word in node.keywords if word.arg is not None}
            inspect.signature(function).bind(*node.args, **arguments)


def find_function(name: str) -> Callable[..., Any] | None:
    """The function of a dotted name such as nearcast.run; None for other names."""
    module, _, own = name.rpartition(".")
    if module != "nearcast" and not module.startswith("nearcast."):
        return None
    found: Callable[..., Any] = getattr(importlib.import_module(module), own)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_that_pages_name_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.-]+)(?:/installed)?:", makefile, re.MULTILINE))
    for name in re.findall(r"(?:`|^    )make ([a-z][\w-]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert name in targets, f"make {name}"
