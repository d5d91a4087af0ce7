"""`nearcast lookup`: print the candidates of one key, with display columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nearcast.api.snapshots import lookup as look_up
from nearcast.cli.common import NegativeIds, console, format_seconds, json_option, out_option, print_json, store_option
from nearcast.cli.render import build_candidate_list
from nearcast.errors import NotFoundError
from nearcast.publishing.targets import find_target
from nearcast.serve.lookup import open_lookup
from nearcast.stores.base import Space
from nearcast.stores.version_facts import nearest_in_version
from nearcast.suggest import quoted
from nearcast.table.snapshot import Candidates

if TYPE_CHECKING:
    from nearcast.serve.lookup_data import Answer

__all__ = ["lookup"]


@click.command(cls=NegativeIds)
@click.argument("generator")
@click.argument("key")
@out_option
@click.option("--snapshot", "version", type=int, help="Version. Default: the newest.")
@click.option("--published", is_flag=True, help="Look up in the store, as a service does, with the overlay.")
@store_option
@click.option("--columns", help="Item columns to show, separated by commas. Default: `display` of the spec.")
@click.option("-k", "--first", type=click.IntRange(min=1), help="Show only the first K candidates.")
@click.option("--full", is_flag=True, help="Do not truncate long texts and lists.")
@json_option
def lookup(
    generator: str,
    key: str,
    out: Path,
    version: int | None,
    published: bool,
    store: str | None,
    columns: str | None,
    first: int | None,
    full: bool,
    as_json_: bool,
) -> None:
    """Show the candidates of KEY: ids, scores, and display columns of the items.

    Reads the newest snapshot on disk; with --published or --store, the current version in the store.
    """
    wanted = tuple(name.strip() for name in columns.split(",")) if columns else None
    if published or store is not None:
        if version is not None:
            raise click.UsageError("--snapshot does not go with a store, which has one current version; leave it out")
        _from_store(generator, key, find_target(generator, out).url(store), wanted, first, full=full, as_json_=as_json_)
        return
    found = look_up(generator, key, out=out, version=version, columns=wanted)
    found = found.first(first) if first else found
    if as_json_:
        print_json(found.as_dict())
    else:
        console().print(build_candidate_list(found, tuple(found.columns), full=full))


def _from_store(
    generator: str,
    key: str,
    url: str,
    wanted: tuple[str, ...] | None,
    first: int | None,
    *,
    full: bool,
    as_json_: bool,
) -> None:
    with open_lookup(url, generator, verify=False) as opened:
        fields = tuple(opened.view().version.facts.columns) if wanted is None else wanted
        answer = opened.get(key, k=first, fields=fields)
        where = opened.state.store
        if not answer.found:
            version = opened.view().version
            near = nearest_in_version(version.reader, version.facts, Space.LISTS, key)
            raise NotFoundError(
                f"{generator} {answer.snapshot} in {where} has no query {quoted(key)}" + (f"; {near}" if near else "")
            )
    if as_json_:
        print_json(answer.as_dict())
        return
    found = Candidates(answer.key, tuple(answer.ids), tuple(answer.scores), answer.reason, _columns(answer))
    console().print(build_candidate_list(found, tuple(found.columns), full=full))
    removed = f"; the overlay removes {answer.removed} candidates" if answer.removed else ""
    console().print(f"snapshot {answer.snapshot}, {format_seconds(answer.age_seconds)} old, in {where}{removed}")


def _columns(answer: Answer) -> dict[str, tuple[object, ...]]:
    return {name: tuple(values) for name, values in answer.columns.items()}
