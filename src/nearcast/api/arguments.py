"""Resolve arguments of the API functions: specs, generators by name, and stores as URLs or open stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.files import bucket_url
from nearcast.publishing.targets import PublishTarget, find_target, read_snapshot_target, read_spec_target
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.spec import load_spec as read_spec
from nearcast.storage.locations import Location, parse_location, resolve_location
from nearcast.stores import StoreLike, open_store
from nearcast.stores.base import Store

if TYPE_CHECKING:
    from nearcast.join.listener import Listener

__all__ = [
    "OUT",
    "SpecLike",
    "StoreLike",
    "input_path",
    "is_name",
    "load_spec",
    "open_generator_store",
    "open_target_store",
    "report_failure",
    "resolve_out",
    "resolve_spec",
    "resolve_store_target",
    "resolve_target",
]

SpecLike = str | Path | Mapping[str, Any] | GeneratorSpec

OUT = "nearcast"

TABLE_IN_MEMORY = {"path": "(a table in memory)"}


def load_spec(path: str | Path) -> GeneratorSpec:
    """Read and validate a TOML spec. Raises SpecError that lists every fault."""
    return read_spec(Path(path))


def input_path(path: str | Path) -> str | Path:
    """Return the URL of data in a bucket, else a path."""
    return bucket_url(path) or Path(path)


def report_failure(listener: Listener, failure: str | None) -> None:
    """Send the failure of a side task (for example writing the history) to the listener. None means no failure."""
    if failure:
        listener.note(failure)


@contextlib.contextmanager
def open_target_store(store: StoreLike | None, place: PublishTarget) -> Iterator[Store]:
    """Open the store of a target and close it at the end. A store that is passed open stays open."""
    if store is None or isinstance(store, str | Path):
        with contextlib.closing(open_store(place.url(None if store is None else str(store)))) as opened:
            yield opened
    else:
        yield store


def resolve_target(
    generator: SpecLike, out: str | Path | None, version: int | None, base: str | Path | None = None
) -> PublishTarget:
    """Find the snapshots and settings of a generator. Raises NotFoundError if a name has no snapshots.

    base: folder that paths of a spec are relative to; default: its own, else the current one.
    """
    if is_name(generator):
        return read_snapshot_target(str(generator), parse_location(out or OUT), version)
    spec, folder = resolve_spec(generator, base, None, None)
    return read_spec_target(spec, resolve_out(out, spec, folder), folder)


def resolve_store_target(generator: SpecLike, out: str | Path | None) -> PublishTarget:
    """Find the store of a generator, whose snapshots may be on another machine."""
    if is_name(generator):
        return find_target(str(generator), parse_location(out or OUT))
    return resolve_target(generator, out, None)


@contextlib.contextmanager
def open_generator_store(
    generator: SpecLike, store: StoreLike | None, out: str | Path | None
) -> Iterator[tuple[PublishTarget, Store]]:
    """Find the store of a generator and open it. Yield both; a store that is opened here is closed at the end."""
    target = resolve_store_target(generator, out)
    with open_target_store(store, target) as opened:
        yield target, opened


def resolve_out(out: str | Path | None, spec: GeneratorSpec, folder: Path) -> Location:
    """Return the location of the snapshots: the argument, else `out` of the spec, which is relative to its folder."""
    return resolve_location(folder, spec.out) if out is None else parse_location(out)


def is_name(generator: SpecLike) -> bool:
    """Return whether the argument is the name of a generator instead of a spec."""
    return isinstance(generator, str) and not generator.endswith(".toml")


def resolve_spec(
    spec: SpecLike, base: str | Path | None, items: object | None, queries: object | None
) -> tuple[GeneratorSpec, Path]:
    """Parse a spec. Return it with the folder that its paths are relative to.

    items, queries: tables in memory that replace the files of the spec.
    """
    if isinstance(spec, GeneratorSpec):
        return spec, Path(base or ".")
    if isinstance(spec, str | Path):
        return read_spec(Path(spec)), Path(base) if base else Path(spec).absolute().parent
    tables = dict(spec)
    for table, data in (("items", items), ("queries", queries)):
        if data is not None:
            named = dict(tables.get(table) or {})
            tables[table] = named if {"table", "sql"} & named.keys() else TABLE_IN_MEMORY | named
    return parse_model(GeneratorSpec, tables, "the spec"), Path(base or ".")
