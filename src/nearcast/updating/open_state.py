"""Open the state of a version: its snapshot's tables, the rows of the journal, and the thresholds of its lists.

The tables are kept by hard links below <out>/<generator>/updates, since the next run removes those of earlier ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nearcast.errors import DamagedError, NearcastError, NotFoundError
from nearcast.files import is_done, link_file
from nearcast.join.scored_items import SnapshotInputs, open_snapshot_inputs
from nearcast.storage.artifacts import open_artifacts
from nearcast.storage.locations import Location, host_folder
from nearcast.storage.open_storage import join_location
from nearcast.stores.base import PatchState, Reader
from nearcast.stores.value_format import INT64, STRING
from nearcast.stores.version_facts import VersionFacts
from nearcast.table.snapshot import Snapshot, open_home
from nearcast.updating.journal import UpdateJournal
from nearcast.updating.live_table import LiveTable
from nearcast.updating.merge_batches import merge_batches
from nearcast.updating.served_state import ServedLists, ServedState, check_updatable, read_lists, read_table_lists
from nearcast.updating.snapshot_reserves import open_reserves
from nearcast.updating.state_cache import read_cached

__all__ = ["ServedVersion", "open_state", "prune_tables"]

KEPT = "tables-"


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The version whose lists are updated."""

    number: int
    facts: VersionFacts
    reader: Reader


def open_state(
    out: Location, generator: str, version: ServedVersion, patches: PatchState, journal: UpdateJournal
) -> ServedState:
    """Open the state of a version with the patches in force.

    Raises NotFoundError if its snapshot, its tables or an entry of the journal is missing, SpecError for a generator
    that cannot be updated between runs.
    """
    snapshot = _find_snapshot(out, generator, version)
    opened = _open_tables(out, snapshot)
    spec = opened.spec
    check_updatable(spec)
    inputs = opened.inputs
    items = LiveTable.open(inputs.items, spec.items.columns)
    own_queries = inputs.queries is not inputs.items
    queries = LiveTable.open(inputs.queries, spec.query_source.columns) if own_queries else items
    newest, batches = journal.read_in_force(patches)
    if batches:
        batch = merge_batches(batches)
        items = items.update(batch.items.rows, batch.gone)
        queries = queries.update(batch.queries.rows, batch.gone.slice(0, 0)) if own_queries else items
    if newest is None:
        lists = _read_published(snapshot, queries, spec.k)
    else:
        lists = read_cached(journal.artifacts, newest, queries.n)
    if lists is None:
        short = {} if newest is None else journal.read_short(newest)
        lists = read_lists(version.reader, queries.ids, spec.k, short, items.ids.type)
    kind = version.facts.id_kind
    return ServedState(
        spec,
        version.number,
        inputs.metric,
        items,
        queries,
        lists.thresholds,
        lists.lengths,
        lists.short,
        kind if kind is not None else STRING if version.facts.item_ids == "string" else INT64,
        open_reserves(snapshot, _name_kept(out, snapshot)),
        0 if newest is None else newest.number,
        patches.serial,
    )


def _read_published(snapshot: Snapshot, queries: LiveTable, k: int) -> ServedLists | None:
    """Read what an update needs to know of all lists from the table of the snapshot; None if it cannot."""
    try:
        return read_table_lists(snapshot, queries.ids, k)
    except (NearcastError, OSError):
        return None


def prune_tables(out: Location, generator: str, versions: Collection[int]) -> None:
    """Remove the kept tables of versions that the store does not have any more."""
    for folder in (host_folder(out) / generator / "updates").glob(f"{KEPT}*"):
        if folder.name.removeprefix(KEPT) not in {f"{version:06d}" for version in versions}:
            shutil.rmtree(folder, ignore_errors=True)


def _find_snapshot(out: Location, generator: str, version: ServedVersion) -> Snapshot:
    """Return the snapshot that a version was published from. Raises NotFoundError if it is not in `out`."""
    try:
        snapshot = open_home(out).open(generator, version.number)
    except (DamagedError, NotFoundError, OSError) as error:
        raise NotFoundError(
            f"version {version.number:06d} of {generator} is served, and its snapshot is not in {out} ({error}); name "
            "its `out`, or run and publish again"
        ) from error
    if snapshot.manifest.fingerprint != version.facts.fingerprint:
        raise NotFoundError(
            f"version {version.number:06d} of {generator} is served, and {snapshot.url} is another one of the same "
            "number; name the `out` that it was published from"
        )
    return snapshot


def _open_tables(out: Location, snapshot: Snapshot) -> SnapshotInputs:
    """Open the tables that a snapshot was made of, and keep them."""
    kept, made = _name_kept(out, snapshot), host_folder(out) / snapshot.generator / "artifacts"
    names = [name for name in snapshot.manifest.artifacts if not name.startswith("index-")]
    for name in names:
        if (made / name).is_dir() and not is_done(kept / name):
            _link_folder(made / name, kept / name)
    planned = snapshot.manifest.run.artifacts
    remote = open_artifacts(planned or join_location(out, snapshot.generator, "artifacts"))
    try:
        return open_snapshot_inputs(snapshot, kept, None, remote)
    except (NotFoundError, DamagedError) as error:
        cause = f" ({error})" if isinstance(error, DamagedError) else ""
        raise NotFoundError(
            f"the tables that {snapshot.generator} {snapshot.name} was made of are not on this machine{cause}: if "
            "another machine ran it, update there; if a newer run has removed them, publish that one, and update it"
        ) from error


def _name_kept(out: Location, snapshot: Snapshot) -> Path:
    """Return the folder that keeps the tables of a snapshot."""
    return host_folder(out) / snapshot.generator / "updates" / f"{KEPT}{snapshot.name}"


def _link_folder(source: Path, target: Path) -> None:
    """Hard-link all files of a folder, its manifests last."""
    paths = sorted(
        (path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == "manifest.json"
    )
    for path in paths:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            link_file(path, copy)
