"""The verbs of the command line, from Python. Each takes a spec: a path to a TOML file, a mapping, or a parsed one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast.join.estimate import RunEstimate
from nearcast.join.listen import Listener
from nearcast.join.run import Outcome, check_generator, run_generator
from nearcast.sources.check import Report
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.spec import load_spec as _load_spec
from nearcast.table.snapshot import Candidates, Snapshot, find_snapshot, list_snapshots

__all__ = ["check", "load_spec", "lookup", "run", "snapshots"]

SpecLike = str | Path | Mapping[str, Any] | GeneratorSpec

TABLE_IN_MEMORY = {"path": "(a table in memory)"}


def load_spec(path: str | Path) -> GeneratorSpec:
    """Read and check a TOML spec; SpecError lists every fault."""
    return _load_spec(Path(path))


def run(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
    again: bool = False,
) -> Outcome:
    """Make a snapshot of a generator: check, join, write, measure. See `nearcast.join.run.run_generator`.

    items, queries: tables (Arrow, pandas, polars) or pairs (ids, vectors), in place of the spec's files.
    base: the folder that the spec's paths are relative to; the spec file's own, else the current one.
    """
    parsed, folder = _resolve(spec, base, items, queries)
    return run_generator(parsed, folder, items=items, queries=queries, listener=listener, again=again)


def check(
    spec: SpecLike,
    *,
    items: object | None = None,
    queries: object | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> tuple[Report, RunEstimate]:
    """Do all of a run that comes before the join: read and judge the inputs, and estimate."""
    parsed, folder = _resolve(spec, base, items, queries)
    return check_generator(parsed, folder, items=items, queries=queries, listener=listener)


def snapshots(generator: str, *, out: str | Path = "nearcast") -> list[Snapshot]:
    """All snapshots of a generator below the folder `out`, oldest first."""
    return list_snapshots(Path(out), generator)


def lookup(
    generator: str,
    key: str | int,
    *,
    out: str | Path = "nearcast",
    version: int | None = None,
    columns: tuple[str, ...] | None = None,
) -> Candidates:
    """The candidates of one query, with the generator's display columns or the ones asked for."""
    snapshot = find_snapshot(Path(out), generator, version)
    shown = columns if columns is not None else tuple(snapshot.manifest["spec"]["items"]["display"])
    return snapshot.lookup(key, shown)


def _resolve(
    spec: SpecLike, base: str | Path | None, items: object | None, queries: object | None
) -> tuple[GeneratorSpec, Path]:
    if isinstance(spec, GeneratorSpec):
        return spec, Path(base or ".")
    if isinstance(spec, str | Path):
        return _load_spec(Path(spec)), Path(base) if base else Path(spec).absolute().parent
    tables = dict(spec)
    for side, data in (("items", items), ("queries", queries)):
        if data is not None:
            tables[side] = TABLE_IN_MEMORY | dict(tables.get(side) or {})
    return parse_model(GeneratorSpec, tables, "the spec"), Path(base or ".")
