"""Options, consoles and number formats that several commands use."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from nearcast.files import bucket_url, path_fault
from nearcast.settings.base_table import parse_bytes
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.storage.locations import Location, location_fault, parse_location

__all__ = [
    "InputPath",
    "LocalPath",
    "NegativeIds",
    "OutLocation",
    "console",
    "explicit_out",
    "format_bytes",
    "format_cell",
    "format_seconds",
    "json_option",
    "out_option",
    "parse_memory",
    "pass_options",
    "picture_option",
    "plain_table",
    "print_json",
    "quiet_option",
    "store_option",
]

SHOWN_PARTS = 3  # elements of a list in a table cell
SHOWN_CHARACTERS = 80  # of a text in a table cell
PLAIN_WIDTH = 110  # columns of output that is not a terminal


def console(*, to_stderr: bool = False) -> Console:
    """Return a console of the terminal's width; of PLAIN_WIDTH columns where the output is not a terminal.

    It interprets no markup, since ids, titles, rules and TOML contain square brackets and colons. Style with rich's
    Text.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def plain_table(*columns: str, right: Sequence[str] = (), **options: Any) -> Table:
    """Return a table without lines: columns to the left, then those of `right`. options: of rich's Table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), **options)
    for name in columns:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --json."""
    return click.option("--json", "as_json_", is_flag=True, help="Print JSON for programs.")(command)


def out_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --out."""
    return click.option(
        "--out",
        type=OutLocation(),
        default="nearcast",
        envvar="NEARCAST_OUT",
        show_default=True,
        help="Location of the snapshots: `out` of the spec, a folder or s3://, gs://, az://BUCKET/FOLDER. "
        "[env: NEARCAST_OUT]",
    )(command)


def explicit_out(generator: str, out: Location) -> Location | None:
    """Return --out, or None if the option is absent and GENERATOR is a spec, which has `out` itself."""
    explicit = click.get_current_context().get_parameter_source("out") is ParameterSource.COMMANDLINE
    return out if explicit or not generator.endswith(".toml") else None


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --store."""
    text = "Store: lmdb:PATH, redis://HOST:PORT/DB and others, see docs/stores.md. Default: the spec's."
    return click.option("--store", metavar="URL", help=text)(command)


def quiet_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --quiet."""
    return click.option("--quiet", is_flag=True, help="Print no progress on standard error.")(command)


def picture_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --picture."""
    kind = LocalPath(dir_okay=False)
    return click.option("--picture", type=kind, metavar="FILE", help="Draw a .svg, .png or .pdf file.")(command)


def pass_options(kind: type[Any], argument: str = "options") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Pass the options that are fields of the frozen dataclass `kind` as one argument."""
    names = [field.name for field in fields(kind)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*context: Any, **values: Any) -> Any:
            options = {argument: kind(**{name: values.pop(name) for name in names})}
            return command(*context, **options, **values)

        return call

    return decorate


def parse_memory(_context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Parse an amount of memory, as in a spec: the callback of an option. Raises BadParameter."""
    if value is None:
        return None
    try:
        return parse_bytes(int(value) if value.isdigit() else value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}", param=parameter) from None


class LocalPath(click.Path):
    """Path that a command may create. Refuses URLs, and `~` and `$NAME` that no shell has expanded.

    buckets: URLs of buckets are returned as text.
    """

    def __init__(self, *, buckets: bool = False, **options: Any) -> None:
        super().__init__(path_type=Path, **options)
        self._buckets = buckets

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a path that can never exist, then convert as click does."""
        if self._buckets and (url := bucket_url(value)):
            return url
        fault = None if os.path.lexists(value) else path_fault(os.fspath(value), buckets=self._buckets)
        if fault:
            self.fail(fault, param, ctx)
        return super().convert(value, param, ctx)


class OutLocation(click.ParamType[Location]):
    """Location of snapshots: a local folder, which a command may create, or the URL of a folder in a bucket."""

    name = "location"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Return a Path for a folder, a text for a URL. Refuses a location that can never exist."""
        fault = None if os.path.lexists(value) else location_fault(os.fspath(value))
        if fault:
            self.fail(fault, param, ctx)
        return parse_location(value)


class InputPath(click.Path):
    """Path of the user's data: a Path, or the text of an s3://, gs:// or az:// URL, or of a table (delta:...).

    Reading refuses other URLs.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Leave a URL as it is: a Path would join its slashes."""
        is_table = isinstance(value, str) and TABLE_LOCATION.fullmatch(value)
        return value if is_table else bucket_url(value) or super().convert(value, param, ctx)


class NegativeIds(click.Command):
    """Command that accepts a negative number, for example -1, as an argument: ids may be negative."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Ignore unknown options if an argument is a negative number. No option of ours is a digit."""
        ctx.ignore_unknown_options = any(re.fullmatch(r"-[0-9]*\.?[0-9]+(e-?[0-9]+)?", word) for word in args)
        return super().parse_args(ctx, args)


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    click.echo(json.dumps(_replace_nonfinite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _replace_nonfinite(value: Any) -> Any:
    """Replace NaN and infinity by null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    return [_replace_nonfinite(inner) for inner in value] if isinstance(value, list | tuple) else value


def format_cell(value: Any, *, full: bool = False) -> str:
    """Format a value of the user's data for a table: escape control characters, truncate unless `full`."""
    if isinstance(value, list | tuple | np.ndarray):
        shown = value if full or len(value) <= SHOWN_PARTS else value[:SHOWN_PARTS]
        more = f", ... ({len(value):,} in all)" if len(shown) < len(value) else ""
        return ", ".join(format_cell(part, full=full) for part in shown) + more
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if full or len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def format_bytes(count: float) -> str:
    """Format a number of bytes, for example 1.04 MB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}" if count < 999.5 * step else f"{count / step:,.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Format a duration, for example 12.3 s or 4.0 min."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
