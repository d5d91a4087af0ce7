"""`nearcast update`: bring new, changed and removed items into the served version, between two runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nearcast.api.updates import update as update_generator
from nearcast.cli.common import (
    InputPath,
    console,
    explicit_out,
    format_seconds,
    json_option,
    out_option,
    pass_options,
    print_json,
    quiet_option,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.storage.locations import Location
from nearcast.updating.update import UpdateResult

__all__ = ["UpdateOptions", "describe_update", "update"]


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """Options of `nearcast update`."""

    items: Any
    gone: Path | None
    queries: Any
    note: str
    max_lists_changed: float | None
    store: str | None
    out: Location


@click.command()
@click.argument("generator", type=GeneratorName(specs=True), metavar="GENERATOR|SPEC")
@click.option("--items", type=InputPath(), metavar="FILE", help="Parquet of new and changed items: a file or a folder.")
@click.option("--gone", type=InputPath(), metavar="FILE", help="Ids of removed items: one per line, or Parquet.")
@click.option("--queries", type=InputPath(), metavar="FILE", help="Parquet of new and changed queries.")
@click.option("--note", default="", help="Text stored with the patch.")
@click.option(
    "--max-lists-changed",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of the lists that may change. Default: audit.max_lists_changed of the spec.",
)
@store_option
@out_option
@quiet_option
@json_option
@pass_options(UpdateOptions)
def update(generator: str, options: UpdateOptions, quiet: bool, as_json_: bool) -> None:
    """Bring new, changed and removed items, and new queries, into the current version, without a run.

    Lists are those of a run on the new tables: new items enter the lists that they beat under rules, caps and the
    minimum score. All changes become visible at once, as one numbered patch; `nearcast rollback --patch` undoes it. A
    batch that is served already changes nothing, so the command may be repeated.

    Exit codes: 3, error in the batch. 5, a publish holds the lock; try again. 10, too many lists would change. Nothing
    has changed then.
    """
    out = explicit_out(generator, options.out)
    given = [name for name in ("items", "gone", "queries") if getattr(options, name) is not None]
    if not given:
        raise click.UsageError("nothing to update; give --items, --gone or --queries")
    with show_progress(quiet=quiet or as_json_) as listener:
        done = update_generator(
            generator,
            items=options.items,
            gone=options.gone,
            queries=options.queries,
            note=options.note,
            max_lists_changed=options.max_lists_changed,
            store=options.store,
            out=out,
            listener=listener,
        )
    if as_json_:
        print_json(done.as_dict())
    else:
        console().print(describe_update(done, _name_target(generator, options, done)))


def _name_target(generator: str, options: UpdateOptions, done: UpdateResult) -> str:
    """Return the generator with the options that name its store and snapshots, as a shell takes them."""
    words = [generator]
    if options.store is not None:
        words += ["--store", done.store]  # without its password
    if click.get_current_context().get_parameter_source("out") is ParameterSource.COMMANDLINE:
        words += ["--out", str(options.out)]
    return shlex.join(words)


def describe_update(done: UpdateResult, target: str) -> str:
    """Return the outcome of an update in a few lines. target: words that name the generator in a command."""
    at = f"{done.generator} {done.version:06d} in {done.store}"
    absent = f"ids to remove that are not served: {done.absent:,}"
    if done.outcome == "nothing_changed":
        kept = "" if done.patch is None else f"\nfor the next publish: patch {done.patch}"
        nothing = f"{at}: nothing to do, it serves all of this already ({format_seconds(done.seconds)}){kept}"
        return f"{nothing}\n{absent}" if done.absent else nothing
    counts = done.counts
    lines = [
        f"{at}: patch {done.patch} is in force",
        f"items: {counts['items']:,} new or changed, {counts['gone']:,} removed; queries: {counts['queries']:,}",
        f"lists changed: {counts['lists']:,} of {done.lists:,} in {format_seconds(done.seconds)}; {done.joined:,} of "
        "them joined in full",
    ]
    if done.absent:
        lines.append(absent)
    if counts["items"] and not counts["lists"]:
        lines.append("no list takes these items: in each, k others score higher, or the rules filter them")
    if done.short:
        lines.append(f"lists that may lack items until the next run: {done.short:,}")
    lines.append(f"undo: nearcast rollback {target} --patch {done.undo}")
    return "\n".join(lines)
