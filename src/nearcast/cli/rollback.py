"""`nearcast rollback`: make an older version current again."""

from __future__ import annotations

import click

from nearcast.api.publications import roll_back
from nearcast.api.updates import roll_back_updates
from nearcast.cli.common import console, explicit_out, json_option, out_option, print_json, quiet_option, store_option
from nearcast.cli.complete_names import GeneratorName
from nearcast.cli.progress import show_progress
from nearcast.cli.render_publish import describe_publication
from nearcast.storage.locations import Location

__all__ = ["rollback"]


@click.command()
@click.argument("generator", type=GeneratorName())
@click.option(
    "--to",
    type=click.IntRange(min=1),
    help="Version in the store, older or newer. Default: the one before the current.",
)
@click.option(
    "--patch",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    help="Stay at the current version, and undo its patches after this one. 0 undoes all.",
)
@store_option
@out_option
@quiet_option
@json_option
def rollback(
    generator: str,
    to: int | None,
    patch: int | None,
    store: str | None,
    out: Location,
    quiet: bool,
    as_json_: bool,
) -> None:
    """Make the version before the current one current again. Each call goes one version further back.

    The version that was current counts as rolled back: it is published again only if `nearcast publish` names it.
    Every byte of the older version is verified first. With --patch, only updates of the current version are undone.
    """
    if patch is not None:
        if to is not None:
            raise click.UsageError("--patch stays at the current version, and --to names another; give one of them")
        undone = roll_back_updates(generator, patch, store=store, out=explicit_out(generator, out))
        words = ", ".join(map(str, undone)) or "none"
        print_json({"undone": undone}) if as_json_ else console().print(f"patches undone: {words}")
        return
    with show_progress(quiet=quiet or as_json_) as listener:
        done = roll_back(generator, to=to, store=store, out=explicit_out(generator, out), listener=listener)
    if as_json_:
        print_json(done.as_dict())
    else:
        console().print(describe_publication(done))
