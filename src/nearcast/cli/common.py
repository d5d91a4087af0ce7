"""What several commands share: their common options, consoles, and how figures are written."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from rich.console import Console

from nearcast.files import path_fault

__all__ = [
    "LocalPath",
    "NegativeIds",
    "as_json",
    "cell",
    "console",
    "json_option",
    "out_of",
    "out_option",
    "size",
    "store_option",
    "stretch",
]

SHOWN_PARTS = 3  # of a list in a cell
SHOWN_CHARACTERS = 80  # of a text in a cell
PLAIN_WIDTH = 110  # of output that no terminal limits


def console(*, to_stderr: bool = False) -> Console:
    """Return where to draw: the terminal as wide as it is, anything else wide enough for a table.

    No text is markup: ids, titles, rules and TOML have square brackets and colons of their own. Style with rich's Text.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --json."""
    return click.option("--json", "as_json_", is_flag=True, help="Print JSON for programs.")(command)


def out_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --out."""
    return click.option(
        "--out",
        type=LocalPath(),
        default=Path("nearcast"),
        envvar="NEARCAST_OUT",
        show_default=True,
        help="Folder of the snapshots, the spec's `out`. [env: NEARCAST_OUT]",
    )(command)


def out_of(generator: str, out: Path) -> Path | None:
    """Return --out; None where it is not given and GENERATOR is a spec, which says itself where its snapshots are."""
    given = click.get_current_context().get_parameter_source("out") is ParameterSource.COMMANDLINE
    return out if given or not generator.endswith(".toml") else None


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --store."""
    text = "lmdb:PATH, redis://HOST:PORT/DB or another store; the spec's by default."
    return click.option("--store", metavar="URL", help=text)(command)


class LocalPath(click.Path):
    """A path that may have to be made: a URL, or `~` and `$NAME` that no shell has replaced, would make odd folders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As ever, after a look at the text."""
        fault = None if os.path.lexists(value) else path_fault(os.fspath(value))
        if fault:
            self.fail(fault, param, ctx)
        return super().convert(value, param, ctx)


class NegativeIds(click.Command):
    """A command to which an id such as -1 is an id, and no unknown option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ever, unless a number begins with a minus: no option of ours is a digit."""
        ctx.ignore_unknown_options = any(re.fullmatch(r"-[0-9]*\.?[0-9]+(e-?[0-9]+)?", word) for word in args)
        return super().parse_args(ctx, args)


def as_json(value: Any) -> None:
    """Print plain data."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def cell(value: Any, *, full: bool = False) -> str:
    """Return a value of the user's data as a cell: control characters escaped, and long ones cut unless `full`."""
    if isinstance(value, list | tuple | np.ndarray):
        shown = value if full or len(value) <= SHOWN_PARTS else value[:SHOWN_PARTS]
        more = f", ... ({len(value):,} in all)" if len(shown) < len(value) else ""
        return ", ".join(cell(part, full=full) for part in shown) + more
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if full or len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count < 999.5 * step else f"{count / step:,.0f} {unit}"
    return f"{count:.0f} B"


def stretch(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
