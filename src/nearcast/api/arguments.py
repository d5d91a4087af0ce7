"""What the verbs are given: specs, generators by name, and stores, as paths or open. Shared by their modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearcast.publishing.targets import PublishTarget, find_target, target_of_snapshot, target_of_spec
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.spec import load_spec as read_spec
from nearcast.stores import StoreLike, open_store
from nearcast.stores.base import Store

if TYPE_CHECKING:
    from nearcast.join.listener import Listener

__all__ = [
    "OUT",
    "SpecLike",
    "StoreLike",
    "is_name",
    "load_spec",
    "note",
    "opened_store",
    "place_in_store_of",
    "place_of",
    "resolve",
]

SpecLike = str | Path | Mapping[str, Any] | GeneratorSpec

OUT = "nearcast"

TABLE_IN_MEMORY = {"path": "(a table in memory)"}


def load_spec(path: str | Path) -> GeneratorSpec:
    """Read and check a TOML spec; SpecError lists every fault."""
    return read_spec(Path(path))


def note(listener: Listener, trouble: str | None) -> None:
    """Tell what went wrong beside the work itself, if anything did."""
    if trouble:
        listener.note(trouble)


@contextlib.contextmanager
def opened_store(store: StoreLike | None, place: PublishTarget) -> Iterator[Store]:
    """The store, for as long as it is needed; one that is open already stays open."""
    if store is None or isinstance(store, str | Path):
        with contextlib.closing(open_store(place.url(None if store is None else str(store)))) as opened:
            yield opened
    else:
        yield store


def place_of(generator: SpecLike, out: str | Path | None, version: int | None) -> PublishTarget:
    """Where the generator's snapshots are; NotFoundError where a name has none."""
    if is_name(generator):
        return target_of_snapshot(str(generator), Path(out or OUT), version)
    spec, folder = resolve(generator, None, None, None)
    return target_of_spec(spec, Path(out) if out is not None else folder / spec.out)


def place_in_store_of(generator: SpecLike, out: str | Path | None) -> PublishTarget:
    """The same where the snapshots may be on another machine."""
    if is_name(generator):
        return find_target(str(generator), Path(out or OUT))
    return place_of(generator, out, None)


def is_name(generator: SpecLike) -> bool:
    """Whether it is the name of a generator, and no spec."""
    return isinstance(generator, str) and not generator.endswith(".toml")


def resolve(
    spec: SpecLike, base: str | Path | None, items: object | None, queries: object | None
) -> tuple[GeneratorSpec, Path]:
    """A spec, parsed, and the folder that its paths are relative to. items, queries: tables in place of its files."""
    if isinstance(spec, GeneratorSpec):
        return spec, Path(base or ".")
    if isinstance(spec, str | Path):
        return read_spec(Path(spec)), Path(base) if base else Path(spec).absolute().parent
    tables = dict(spec)
    for side, data in (("items", items), ("queries", queries)):
        if data is not None:
            tables[side] = TABLE_IN_MEMORY | dict(tables.get(side) or {})
    return parse_model(GeneratorSpec, tables, "the spec"), Path(base or ".")
