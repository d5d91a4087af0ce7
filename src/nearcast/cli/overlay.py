"""`nearcast overlay`: what is newer than the snapshots: items that are gone, and newer values of their columns."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from nearcast.api.arguments import place_in_store_of
from nearcast.cli.common import NegativeIds, as_json, console, json_option, out_of, out_option, store_option
from nearcast.cli.render_overlay import overlay_table
from nearcast.serve.overlay import Overlay, fits, open_overlay
from nearcast.suggest import nearest_keys, quoted

__all__ = ["overlay", "span_of"]

CLOCKS_DIFFER_SECONDS = 5.0
MOST_NAMED = 3  # items that a warning names
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@click.group()
@click.argument("generator")
@click.pass_context
def overlay(context: click.Context, generator: str) -> None:
    """Take items of GENERATOR out of every answer at once, and give their columns newer values.

    An entry is in force within a second in every look-up and service, whatever snapshot is current, until it
    expires or is taken back.
    """
    context.obj = generator


def span_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """A length of time such as 90s, in seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", value)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no length of time; write it like 90s, 30m, 6h or 2d")
    return float(match[1]) * SECONDS[match[2]]


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time; write it like 2026-12-31T18:00:00Z") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def until_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --for, --until and --note."""
    command = click.option("--note", default="", help="Reason, shown by `overlay list`.")(command)
    text = "Until this time, such as 2026-12-31T18:00:00Z; UTC where it names no zone."
    command = click.option("--until", metavar="TIME", callback=_moment, help=text)(command)
    return click.option("--for", "span", metavar="SPAN", callback=span_of, help="For so long: 90s, 30m, 6h, 2d.")(
        command
    )


def _check_end(span: float | None, until: float | None) -> None:
    if span is not None and until is not None:
        raise click.UsageError("give --for or --until, not both")


def _end(span: float | None, until: float | None, opened: Overlay) -> float | None:
    """When it ends, by the store's clock: this machine's may be behind."""
    return until if span is None else opened.now() + span


def _say_clock(opened: Overlay) -> None:
    """Warn where this machine's clock is not the store's. The store's counts; --until and file times may be wrong."""
    ahead = time.time() - opened.now()
    if abs(ahead) > CLOCKS_DIFFER_SECONDS:
        which = "ahead of" if ahead > 0 else "behind"
        click.echo(f"warning: this machine's clock is {abs(ahead):.0f} s {which} the store's, which counts", err=True)


def _opened(generator: str, store: str | None, out: Path) -> contextlib.AbstractContextManager[Overlay]:
    place = place_in_store_of(generator, out_of(generator, out))
    return open_overlay(place.url(store), place.generator)


@overlay.command(cls=NegativeIds)
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@until_options
@store_option
@out_option
@click.pass_obj
def remove(
    generator: str,
    items: tuple[str, ...],
    span: float | None,
    until: float | None,
    note: str,
    store: str | None,
    out: Path,
) -> None:
    """Take items out of every answer, for good or for a while."""
    _check_end(span, until)
    with _opened(generator, store, out) as opened:
        opened.remove(items, until=_end(span, until, opened), note=note)
        _say_clock(opened)
        _say("removed", items, opened)


@overlay.command(cls=NegativeIds)
@click.argument("items", nargs=-1, required=True, metavar="ITEM...")
@click.option("--field", metavar="FIELD", help="Take back the newer value of this column instead.")
@store_option
@out_option
@click.pass_obj
def restore(generator: str, items: tuple[str, ...], field: str | None, store: str | None, out: Path) -> None:
    """Let items be returned again."""
    with _opened(generator, store, out) as opened:
        restored = set(map(str, opened.restore(items, field=field)))
        held = sorted({str(entry.item) for entry in opened.entries() if entry.field == field} | restored)
    what = "removed" if field is None else f"given another {field}"
    click.echo(f"restored {len(restored)} of {len(set(items))}", err=True)
    for item in [item for item in dict.fromkeys(items) if item not in restored][:MOST_NAMED]:
        near = nearest_keys(item, pa.array(held, pa.string()))
        hint = f"; did you mean {quoted(near[0])}?" if near else ""
        click.echo(f"{quoted(item)} was not {what}{hint}", err=True)


@overlay.command("set", cls=NegativeIds)
@click.argument("item")
@click.argument("values", nargs=-1, required=True, metavar="FIELD=VALUE...")
@until_options
@store_option
@out_option
@click.pass_obj
def set_(
    generator: str,
    item: str,
    values: tuple[str, ...],
    span: float | None,
    until: float | None,
    note: str,
    store: str | None,
    out: Path,
) -> None:
    """Give columns of ITEM newer values. VALUE is JSON, or text as it stands."""
    _check_end(span, until)
    with _opened(generator, store, out) as opened:
        columns = opened.version_facts().columns
        updates = [(item, *_assignment(text, columns)) for text in values]
        opened.update_many(updates, until=_end(span, until, opened), note=note)
        _say_clock(opened)
        _say("updated", (item,), opened)
        _say_unknown([field for _, field, _ in updates], opened)


@overlay.command(cls=NegativeIds)
@click.argument("item")
@click.argument("field")
@click.argument("amount", type=float)
@click.option("--token", default="", help="Id of this step: within a day it is done once, however often it is sent.")
@click.option("--note", default="", help="Reason, shown by `overlay list`.")
@store_option
@out_option
@click.pass_obj
def add(
    generator: str, item: str, field: str, amount: float, token: str, note: str, store: str | None, out: Path
) -> None:
    """Add AMOUNT to a number of ITEM, for example to `spent`; a negative AMOUNT subtracts. Print the new number.

    One step: what several processes add at the same time adds up. It counts from the overlay's value, or else from
    the current table's.
    """
    with _opened(generator, store, out) as opened:
        whole = int(amount) if amount.is_integer() else amount
        click.echo(json.dumps(opened.add(item, field, whole, note=note, token=token)))
        _say_clock(opened)


@overlay.command("list")
@store_option
@out_option
@json_option
@click.pass_obj
def list_(generator: str, store: str | None, out: Path, as_json_: bool) -> None:
    """Show what is in the overlay, oldest first."""
    with _opened(generator, store, out) as opened:
        entries = opened.entries()
        there = opened.in_snapshot([entry.item for entry in entries])
    now = time.time()
    if as_json_:
        as_json(
            [
                {k: v for k, v in asdict(entry).items() if k != "lifted"}
                | {"in_force": entry.until is None or entry.until > now, "in_snapshot": known}
                for entry, known in zip(entries, there, strict=True)
            ]
        )
    elif entries:
        console().print(overlay_table(entries, there, now))
    else:
        console().print(f"the overlay of {generator} is empty")


@overlay.command("repair")
@store_option
@out_option
@click.pass_obj
def repair_(generator: str, store: str | None, out: Path) -> None:
    """Rebuild a damaged or lost overlay from its remaining copies; print the entries that may be lost."""
    with _opened(generator, store, out) as opened:
        said = opened.repair()
    click.echo(f"the overlay of {generator} is whole" if said is None else f"repaired: {said}", err=True)


def _assignment(text: str, columns: Mapping[str, str]) -> tuple[str, Any]:
    """A column and its value: JSON if it reads so and the column may hold it, else the text."""
    field, equals, written = text.partition("=")
    if not equals or not field:
        raise click.UsageError(f"{text!r} gives no value to a column; write FIELD=VALUE")
    try:
        value = json.loads(written)
    except ValueError:
        return field, written
    column = columns.get(field, "")
    return field, written if not fits(value, column) and fits(written, column) else value


def _say_unknown(fields: list[str], opened: Overlay) -> None:
    """Warn of columns that the current version lacks: nothing may ever ask for them."""
    columns = [*opened.version_facts().columns]
    for field in fields:
        if field not in columns and field not in opened.roles():
            near = difflib.get_close_matches(field, columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(columns) or 'none'}"
            click.echo(f"warning: {opened.generator} has no column {field!r}; {hint}", err=True)


def _say(done: str, items: tuple[str, ...], opened: Overlay) -> None:
    known = opened.in_snapshot(items)
    click.echo(f"{done} {len(items)} of {opened.generator}", err=True)
    unknown = [item for item, there in zip(items, known, strict=True) if not there]
    for item in unknown[:MOST_NAMED]:
        near = opened.nearest_items(item)
        click.echo(f"not in the current snapshot: {quoted(item)}" + (f"; {near}" if near else ""), err=True)
    if len(unknown) > MOST_NAMED:
        click.echo(f"nor are {len(unknown) - MOST_NAMED:,} others", err=True)
