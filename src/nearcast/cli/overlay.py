"""`nearcast overlay`: remove items, and change values of their columns, without a new snapshot."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click
import pyarrow as pa

from nearcast.api.arguments import resolve_store_target
from nearcast.cli.common import (
    NegativeIds,
    console,
    explicit_out,
    json_option,
    out_option,
    pass_options,
    print_json,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.render_overlay import build_overlay_table
from nearcast.serve.overlay import Overlay, open_overlay
from nearcast.serve.overlay_values import fits_type
from nearcast.storage.locations import Location
from nearcast.suggest import nearest_keys, quote_key

__all__ = ["overlay", "parse_duration", "parse_time"]

CLOCKS_DIFFER_SECONDS = 5.0
MOST_NAMED = 3  # items that a warning names
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.group()
@click.argument("generator", type=GeneratorName())
@click.pass_context
def overlay(context: click.Context, generator: str) -> None:
    """Remove items of GENERATOR from every answer, or set newer values of their columns.

    An entry takes effect within a second in every look-up and service, for every snapshot, until it expires or is
    restored.
    """
    context.obj = generator


def parse_duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Parse a duration, for example 90s, into seconds: the callback of an option."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{value!r} is not a duration; write 90s, 30m, 6h or 2d")
    return float(match[1]) * SECONDS[match[2]]


def parse_time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Parse a time in ISO 8601 into seconds since 1970, UTC if it has no zone: the callback of an option."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time; write 2026-12-31T18:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _add_end_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --for, --until and --note."""
    command = click.option("--note", default="", help="Reason, shown by `overlay list`.")(command)
    text = "End of the entry, for example 2026-12-31T18:00:00Z; UTC if it has no zone. Default: none."
    command = click.option("--until", metavar="TIME", callback=parse_time, help=text)(command)
    return click.option(
        "--for",
        "span",
        metavar="DURATION",
        callback=parse_duration,
        help="Duration of the entry: 90s, 30m, 6h, 2d. Default: no end.",
    )(command)


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """Options of a new entry: its duration in seconds or its end, and its note."""

    span: float | None
    until: float | None
    note: str

    def __post_init__(self) -> None:
        if self.span is not None and self.until is not None:
            raise click.UsageError("give --for or --until, not both")

    def compute_end(self, opened: Overlay) -> float | None:
        """Return the end of the entry by the store's clock, which may differ from this machine's."""
        return self.until if self.span is None else opened.now() + self.span


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options that select the store of the overlay."""

    store: str | None
    out: Location


def _warn_clock(opened: Overlay) -> None:
    """Print a warning if this machine's clock differs from the store's: --until and file times may be wrong."""
    ahead = time.time() - opened.now()
    if abs(ahead) > CLOCKS_DIFFER_SECONDS:
        which = "ahead of" if ahead > 0 else "behind"
        click.echo(f"warning: this machine's clock is {abs(ahead):.0f} s {which} the store's, which decides", err=True)


def _open(generator: str, where: StoreOptions) -> contextlib.AbstractContextManager[Overlay]:
    target = resolve_store_target(generator, explicit_out(generator, where.out))
    return open_overlay(target.url(where.store), target.generator)


@overlay.command(cls=NegativeIds)
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@_add_end_options
@store_option
@out_option
@pass_options(EntryOptions, "entry")
@pass_options(StoreOptions, "where")
@click.pass_obj
def remove(generator: str, items: tuple[str, ...], entry: EntryOptions, where: StoreOptions) -> None:
    """Remove items from every answer, permanently or for a time."""
    with _open(generator, where) as opened:
        opened.remove(items, until=entry.compute_end(opened), note=entry.note)
        _warn_clock(opened)
        _report_items("removed", items, opened)


@overlay.command(cls=NegativeIds)
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@click.option("--field", metavar="FIELD", help="Delete the newer value of this column instead.")
@store_option
@out_option
@pass_options(StoreOptions, "where")
@click.pass_obj
def restore(generator: str, items: tuple[str, ...], field: str | None, where: StoreOptions) -> None:
    """Restore removed items, or the original value of a column."""
    with _open(generator, where) as opened:
        restored = set(map(str, opened.restore(items, field=field)))
        held = sorted({str(entry.item) for entry in opened.entries() if entry.field == field} | restored)
    what = "removed" if field is None else f"given a newer {field}"
    click.echo(f"restored {len(restored)} of {len(set(items))}", err=True)
    for item in [item for item in dict.fromkeys(items) if item not in restored][:MOST_NAMED]:
        near = nearest_keys(item, pa.array(held, pa.string()))
        hint = f"; did you mean {quote_key(near[0])}?" if near else ""
        click.echo(f"{quote_key(item)} was not {what}{hint}", err=True)


@overlay.command("set", cls=NegativeIds)
@click.argument("item")
@click.argument("values", nargs=-1, required=True, metavar="FIELD=VALUE...")
@_add_end_options
@store_option
@out_option
@pass_options(EntryOptions, "entry")
@pass_options(StoreOptions, "where")
@click.pass_obj
def set_(generator: str, item: str, values: tuple[str, ...], entry: EntryOptions, where: StoreOptions) -> None:
    """Set newer values of columns of ITEM. VALUE is JSON, or plain text."""
    with _open(generator, where) as opened:
        columns = opened.version_facts().columns
        updates = [(item, *_parse_assignment(text, columns)) for text in values]
        opened.update_many(updates, until=entry.compute_end(opened), note=entry.note)
        _warn_clock(opened)
        _report_items("updated", (item,), opened)
        _warn_unknown_columns([field for _, field, _ in updates], opened)


@overlay.command(cls=NegativeIds)
@click.argument("item")
@click.argument("field")
@click.argument("amount", type=float)
@click.option("--token", default="", help="Idempotency key: a step with the same token is done once within a day.")
@click.option("--note", default="", help="Reason, shown by `overlay list`.")
@store_option
@out_option
@pass_options(StoreOptions, "where")
@click.pass_obj
def add(generator: str, item: str, field: str, amount: float, token: str, note: str, where: StoreOptions) -> None:
    """Add AMOUNT to a numeric column of ITEM, for example `spent`, and print the new value. It may be negative.

    The addition is atomic across processes. It starts from the overlay's value, else from the value in the current
    version.
    """
    with _open(generator, where) as opened:
        whole = int(amount) if amount.is_integer() else amount
        click.echo(json.dumps(opened.add(item, field, whole, note=note, token=token)))
        _warn_clock(opened)


@overlay.command("list")
@store_option
@out_option
@json_option
@pass_options(StoreOptions, "where")
@click.pass_obj
def list_(generator: str, where: StoreOptions, as_json_: bool) -> None:
    """List the entries of the overlay, oldest first."""
    with _open(generator, where) as opened:
        entries = opened.entries()
        there = opened.in_snapshot([entry.item for entry in entries])
    now = time.time()
    if as_json_:
        print_json(
            [
                {k: v for k, v in asdict(entry).items() if k != "lifted"}
                | {"in_force": entry.until is None or entry.until > now, "in_snapshot": known}
                for entry, known in zip(entries, there, strict=True)
            ]
        )
    elif entries:
        console().print(build_overlay_table(entries, there, now))
    else:
        console().print(f"the overlay of {generator} is empty")


@overlay.command("repair")
@store_option
@out_option
@pass_options(StoreOptions, "where")
@click.pass_obj
def repair_(generator: str, where: StoreOptions) -> None:
    """Rebuild a damaged or lost overlay from its remaining copies, and print the entries that may be lost."""
    with _open(generator, where) as opened:
        losses = opened.repair()
    click.echo(f"the overlay of {generator} is not damaged" if losses is None else f"repaired: {losses}", err=True)


def _parse_assignment(text: str, columns: Mapping[str, str]) -> tuple[str, Any]:
    """Parse FIELD=VALUE. VALUE is JSON if it parses and fits the column, else text."""
    field, equals, written = text.partition("=")
    if not equals or not field:
        raise click.UsageError(f"{text!r} is not an assignment; write FIELD=VALUE")
    try:
        value = json.loads(written)
    except ValueError:
        return field, written
    column = columns.get(field, "")
    return field, written if not fits_type(value, column) and fits_type(written, column) else value


def _warn_unknown_columns(fields: list[str], opened: Overlay) -> None:
    """Print a warning for columns that the current version does not have."""
    columns = [*opened.version_facts().columns]
    for field in fields:
        if field not in columns and field not in opened.roles():
            near = difflib.get_close_matches(field, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(columns) or 'none'}"
            click.echo(f"warning: {opened.generator} has no column {field!r}; {hint}", err=True)


def _report_items(action: str, items: tuple[str, ...], opened: Overlay) -> None:
    known = opened.in_snapshot(items)
    click.echo(f"{action} {len(items)} {'item' if len(items) == 1 else 'items'} of {opened.generator}", err=True)
    unknown = [item for item, there in zip(items, known, strict=True) if not there]
    for item in unknown[:MOST_NAMED]:
        near = opened.nearest_items(item)
        click.echo(f"not in the current snapshot: {quote_key(item)}" + (f"; {near}" if near else ""), err=True)
    if len(unknown) > MOST_NAMED:
        click.echo(f"and {len(unknown) - MOST_NAMED:,} others", err=True)
