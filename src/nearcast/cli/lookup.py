"""`nearcast lookup`: print the candidates of one key, with display columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from nearcast.api.snapshots import lookup as look_up
from nearcast.cli.common import (
    NegativeIds,
    console,
    format_seconds,
    json_option,
    out_option,
    pass_options,
    print_json,
    store_option,
)
from nearcast.cli.complete_names import GeneratorName, complete_versions
from nearcast.cli.render import build_candidate_list
from nearcast.errors import NearcastError, NotFoundError
from nearcast.publishing.targets import find_target
from nearcast.serve.lookup import open_lookup
from nearcast.storage.locations import Location
from nearcast.stores.base import Space
from nearcast.stores.version_facts import VersionFacts, nearest_in_version
from nearcast.suggest import quote_key
from nearcast.table.snapshot import Candidates, find_snapshot

if TYPE_CHECKING:
    from nearcast.serve.lookup_data import Answer

__all__ = ["LookupCommandOptions", "lookup"]

LEAST_LINES = 5  # candidates shown on a very low screen
LINES_AROUND = 5  # headline, head of the table, source, the command itself and the next prompt


@dataclass(frozen=True, slots=True)
class LookupCommandOptions:
    """Options of `nearcast lookup`."""

    out: Location
    version: int | None
    published: bool
    store: str | None
    columns: str | None
    first: int | None
    full: bool

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """Names of the requested columns; None for the default."""
        return tuple(name.strip() for name in self.columns.split(",")) if self.columns else None


@click.command(cls=NegativeIds)
@click.argument("generator", type=GeneratorName())
@click.argument("key")
@out_option
@click.option("--snapshot", "version", type=int, shell_complete=complete_versions, help="Version. Default: the newest.")
@click.option("--published", is_flag=True, help="Look up in the store, as a service does, with the overlay.")
@store_option
@click.option("--columns", help="Item columns to show, separated by commas. Default: `display` of the spec.")
@click.option(
    "-k",
    "--first",
    type=click.IntRange(min=1),
    help="Show only the first K candidates. Default: as many as fit the screen.",
)
@click.option("--full", is_flag=True, help="Show all candidates, and do not truncate long texts and lists.")
@json_option
@pass_options(LookupCommandOptions)
def lookup(generator: str, key: str, options: LookupCommandOptions, as_json_: bool) -> None:
    """Show the candidates of KEY: ids, scores, and display columns of the items.

    Reads the newest snapshot on disk; with --published or --store, the current version in the store.
    """
    if options.published or options.store is not None:
        if options.version is not None:
            raise click.UsageError("--snapshot does not go with a store, which has one current version; leave it out")
        answer, store = _look_up_published(generator, key, options)
        candidates = Candidates(
            answer.key, tuple(answer.ids), tuple(answer.scores), answer.reason, _copy_columns(answer)
        )
        plain = answer.as_dict()
    else:
        answer, store = None, ""
        candidates = look_up(generator, key, out=options.out, version=options.version, columns=options.column_names)
        candidates = candidates.first(options.first) if options.first else candidates
        plain = candidates.as_dict()
    if as_json_:
        print_json(plain)
        return
    screen = console()
    is_bounded = screen.is_terminal and not options.full and options.first is None
    most_lines = max(LEAST_LINES, screen.height - LINES_AROUND) if is_bounded else None
    screen.print(build_candidate_list(candidates, tuple(candidates.columns), full=options.full, most_lines=most_lines))
    if answer is not None:
        removed_words = "1 candidate" if answer.removed == 1 else f"{answer.removed} candidates"
        removed = f"; the overlay removes {removed_words}" if answer.removed else ""
        age = format_seconds(answer.age_seconds)
        screen.print(f"snapshot {answer.snapshot}, {age} old, in {store}{removed}")


def _look_up_published(generator: str, key: str, options: LookupCommandOptions) -> tuple[Answer, str]:
    """Look up in the store; return the answer and the store's URL. Raises NotFoundError with the nearest keys."""
    with open_lookup(find_target(generator, options.out).url(options.store), generator, verify=False) as opened:
        names = options.column_names
        fields = _find_display(generator, options.out, opened.view().version.facts) if names is None else names
        answer = opened.get(key, k=options.first, fields=fields)
        if not answer.found:
            version = opened.view().version
            near = nearest_in_version(version.reader, version.facts, Space.LISTS, key)
            raise NotFoundError(
                f"{generator} {answer.snapshot} in {opened.state.store} has no query {quote_key(key)}"
                + (f"; {near}" if near else "")
            )
        return answer, opened.state.store


def _find_display(generator: str, out: Location, facts: VersionFacts) -> tuple[str, ...]:
    """Return the display columns of the version's snapshot on disk; all columns without them."""
    try:
        display = find_snapshot(out, generator, facts.version).manifest.spec["items"]["display"]
    except NearcastError:  # made on another machine, or of a table that no generator made
        display = ()
    return tuple(name for name in display if name in facts.columns) or tuple(facts.columns)


def _copy_columns(answer: Answer) -> dict[str, tuple[object, ...]]:
    return {name: tuple(values) for name, values in answer.columns.items()}
