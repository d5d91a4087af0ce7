"""Open the generators and expansion tables that `nearcast serve` answers for, with their online indexes.

The service reports and retries tables that cannot be opened, and serves the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearcast.ads.expansion_table import Expansion, open_expansion
from nearcast.cli.progress import show_progress
from nearcast.errors import NearcastError, NotFoundError, SpecError
from nearcast.publishing.retention import find_newest_facts
from nearcast.serve.lookup import open_lookup
from nearcast.spec import load_spec
from nearcast.storage.locations import Location

if TYPE_CHECKING:
    from nearcast.service.served_tables import ServedGenerator, UnopenedTable
    from nearcast.stores.base import Store

__all__ = ["OnlineOptions", "OpenGenerators", "find_names", "open_generators"]


@dataclass(frozen=True, slots=True)
class OnlineOptions:
    """Online indexes to open: one per spec."""

    specs: tuple[Path, ...]
    engine: str
    out: Location  # folder of the snapshots; the indexes are cached below it


@dataclass(frozen=True, slots=True)
class OpenGenerators:
    """Generators and expansion tables by name: open ones, and failed ones."""

    generators: dict[str, ServedGenerator]
    expansions: dict[str, Expansion]
    unopened: dict[str, UnopenedTable]

    @property
    def keyed(self) -> list[str]:
        """Names of the generators, open or not."""
        return [*self.generators, *(name for name, failure in self.unopened.items() if not failure.is_expansion)]

    def describe(self) -> str:
        """Return the names with their snapshots, for a message."""
        parts = [f"{name} {one.lookup.state.snapshot}" for name, one in self.generators.items()]
        parts += [f"ads of {name} {one.lookup.state.snapshot}" for name, one in self.expansions.items()]
        return ", ".join(parts)


def find_names(requested: Sequence[str], store: Store) -> list[str]:
    """Return the requested names, or all names in the store. Raises NotFoundError if there are none."""
    known = store.generators()
    if not requested and not known:
        raise NotFoundError(f"nothing is published in {store.url}; publish a generator first, or give --store or --out")
    return list(dict.fromkeys(requested or known))


def open_generators(
    store: Store, names: Sequence[str], online: OnlineOptions, refresh_seconds: float, stack: ExitStack
) -> OpenGenerators:
    """Open every name; `stack` closes them. Report names that cannot be opened.

    Raises NotFoundError if nothing is published under a name, and the first error if nothing can be opened.
    """
    from nearcast.service.served_tables import ServedGenerator, UnopenedTable

    kinds = {name: _is_expansion(store, name) for name in names}
    indexes = _open_indexes(online, [name for name in names if not kinds[name]])

    def open_one(name: str) -> ServedGenerator | Expansion:
        if kinds[name]:
            return stack.enter_context(open_expansion(store, name, refresh_seconds=refresh_seconds))
        lookup = stack.enter_context(open_lookup(store, name, refresh_seconds=refresh_seconds))
        return ServedGenerator(lookup, store.in_process, indexes.get(name))

    opened: dict[str, ServedGenerator | Expansion] = {}
    errors: dict[str, NearcastError] = {}
    for name in names:
        try:
            opened[name] = open_one(name)
        except NearcastError as error:
            if isinstance(error, NotFoundError) and store.pointer(name) is None:
                raise
            errors[name] = error
    if errors and not opened:
        raise next(iter(errors.values()))
    for name, failure in errors.items():
        click.echo(f"warning: {name} cannot be served: {failure}", err=True)
    return OpenGenerators(
        {name: one for name, one in opened.items() if isinstance(one, ServedGenerator)},
        {name: one for name, one in opened.items() if isinstance(one, Expansion)},
        {
            name: UnopenedTable(str(failure), kinds[name], partial(open_one, name), partial(store.pointer, name))
            for name, failure in errors.items()
        },
    )


def _is_expansion(store: Store, name: str) -> bool:
    """Return whether the newest readable version of a name is an expansion table."""
    try:
        pointer = store.pointer(name)
        return pointer is not None and find_newest_facts(store, name, pointer).is_expansion
    except NearcastError:
        return False


def _open_indexes(online: OnlineOptions, names: Iterable[str]) -> Mapping[str, Any]:
    """Return an online index for each spec, by the generator's name; build the missing ones."""
    known = list(names)
    indexes: dict[str, Any] = {}
    for path in online.specs:
        spec = load_spec(path)
        if spec.name not in known:
            raise SpecError(f"{path} is the spec of {spec.name!r}, which is not served; served are {', '.join(known)}")
        from nearcast.join.online_index import open_online

        click.echo(f"opening the online index of {spec.name}", err=True)
        recall = spec.serve.online_recall
        with show_progress(quiet=False) as listener:
            indexes[spec.name] = open_online(
                spec, path.parent, online.out, engine=online.engine, recall=recall, listener=listener
            )
    return indexes
