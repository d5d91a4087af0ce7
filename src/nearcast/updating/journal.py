"""The journal of a generator's updates in one store, <out>/<generator>/updates/<journal>: the rows of each patch.

It is read to apply updates again. Each store has a journal of its own, which its patches name, since each has numbers
of its own.

    000012/   items.parquet, queries.parquet, gone.parquet   the rows of the batch
              short.parquet                                  lists that may lack items after it, with their bounds
              manifest.json                                  version, parent, when it was made
    merged-000007-000064/   the rows of all patches of version 7 up to 64, in one, each with its time
              entries.json                                   the entries that were merged
    state-000007-000064/    see `state_cache`

An entry is committed before its patch is written. One whose number was never given to a patch is left over by a killed
update, and removed by the next. The entries in force follow each other by `parent`: rolled back ones are skipped.
Entries of patches that cannot be rolled back one by one any more are merged, so that the journal grows with the rows
that differ from the version, and not with the number of updates.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from nearcast.errors import BusyError, DamagedError, NearcastError, NotFoundError
from nearcast.files import verify
from nearcast.storage.artifacts import Artifacts, open_artifacts
from nearcast.storage.locations import Location
from nearcast.storage.open_storage import join_location
from nearcast.stores.base import PatchState
from nearcast.updating.journal_files import read_bounds, read_rows, write_bounds, write_rows
from nearcast.updating.merge_batches import Cutoff, TimedBatch, merge_timed
from nearcast.updating.read_batch import UpdateBatch
from nearcast.updating.served_state import ListBound

__all__ = ["JournalEntry", "UpdateJournal", "cache_name", "list_journals", "name_journal", "open_journal"]

JOURNAL = "store-"
MERGED = "merged"
MERGED_AT_ONCE = 32  # entries at least: each merge writes all rows again
ENTRIES = "entries.json"
READ_TRIES = 5


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An entry of the journal, without its rows."""

    number: int  # of the patch
    version: int  # that the patch changes
    parent: int  # number of the patch in force before it; 0 for none
    made: float  # seconds since 1970, by the store's clock, when its batch was read
    digest: str  # of the batch
    note: str = ""

    @staticmethod
    def from_facts(facts: Mapping[str, Any]) -> JournalEntry:
        """Return the entry that an artifact with these facts holds."""
        return JournalEntry(**{name: facts[name] for name in JournalEntry.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class UpdateJournal:
    """The journal of one generator in one store."""

    artifacts: Artifacts
    name: str

    def write(self, entry: JournalEntry, batch: UpdateBatch, short: Mapping[str | int, ListBound]) -> None:
        """Commit an entry. Call it under the publishers' lock, after `remove_leftovers`."""
        self.artifacts.commit(_name(entry.number), partial(_write_entry, batch, short, entry))

    def remove_leftovers(self, last_number: int) -> None:
        """Remove entries of updates that were killed before their patch was written, and caches of such numbers."""
        for name in self.artifacts.list_names():
            if _last_part(name) > last_number and (name.isdigit() or _is_cache(name)):
                self.artifacts.remove(name)

    def list_entries(self, version: int) -> list[JournalEntry]:
        """Return all entries of a version, oldest first, also those of patches that were rolled back."""
        names = self.artifacts.list_names()
        found = {entry.number: entry for name in names for entry in self._read_merged_entries(name, version)}
        own = [
            JournalEntry.from_facts(facts) for name in names if name.isdigit() and (facts := self.artifacts.facts(name))
        ]
        found |= {entry.number: entry for entry in own if entry.version == version}
        return [found[number] for number in sorted(found)]

    def _read_merged_entries(self, name: str, version: int) -> list[JournalEntry]:
        """Return the entries that were merged into this artifact; none for another one, or of another version."""
        if not name.startswith(f"{MERGED}-{version:06d}-"):
            return []
        path = self.artifacts.open(name) / ENTRIES
        try:
            return [JournalEntry.from_facts(facts) for facts in json.loads(path.read_text())]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DamagedError(f"{path} is damaged ({error!r}); restore it, or run and publish again") from error

    def _read_chain(self, state: PatchState) -> tuple[list[JournalEntry], JournalEntry | None]:
        """Return the entries in force, newest first, down to the merged ones, and the last of those.

        Raises NotFoundError if one is missing.
        """
        chain: list[JournalEntry] = []
        newest = state.newest
        if newest is None:
            return chain, None
        number, names = newest.number, set(self.artifacts.list_names())
        while number:
            merged = cache_name(MERGED, newest.version, number)
            name = merged if merged in names else _name(number)
            facts = self.artifacts.facts(name)
            if facts is None:
                raise NotFoundError(
                    f"{self.artifacts.url} has no entry of patch {number}, which is in force: was it written from "
                    "another machine or `out`? Update from there, or run and publish again"
                )
            entry = JournalEntry.from_facts(facts)
            if name == merged:
                return chain, entry
            chain.append(entry)
            number = entry.parent
        return chain, None

    def read_newest(self, state: PatchState) -> JournalEntry | None:
        """Return the newest entry in force. Raises NotFoundError if one is missing."""
        chain, merged = self._read_chain(state)
        return chain[0] if chain else merged

    def read_in_force(self, state: PatchState) -> tuple[JournalEntry | None, list[UpdateBatch]]:
        """Return the newest entry in force, and batches that have the effect of all, oldest first.

        Another process may merge entries meanwhile: then it begins again.
        """
        for _ in range(READ_TRIES):
            before = self._list_merged()
            try:
                return self._read_in_force(state)
            except (NearcastError, OSError):
                if self._list_merged() == before:
                    raise
        raise BusyError(f"the entries of {self.artifacts.url} are merged faster than they can be read; try again")

    def _list_merged(self) -> list[str]:
        return [name for name in self.artifacts.list_names() if name.startswith(f"{MERGED}-")]

    def _read_in_force(self, state: PatchState) -> tuple[JournalEntry | None, list[UpdateBatch]]:
        chain, merged = self._read_chain(state)
        timed = [] if merged is None else [self._read_merged(merged)]
        batches = [part.batch for part in timed] + [self._read(entry).batch for entry in reversed(chain)]
        return (chain[0] if chain else merged), batches

    def read_later(self, state: PatchState, cutoff: Cutoff) -> tuple[list[JournalEntry], UpdateBatch | None]:
        """Return the entries in force that were made after the cutoff, oldest first, and their rows as one batch.

        After a clock that went back, an entry counts as made at the latest time before; see `merge_timed`.
        """
        chain, merged = self._read_chain(state)
        entries, parts = list[JournalEntry](), list[TimedBatch]()
        if merged is not None:
            parts.append(self._read_merged(merged))
            listed = self._read_merged_entries(cache_name(MERGED, merged.version, merged.number), merged.version)
            entries = _follow(listed, merged.number)
        n_merged = len(entries)
        entries = _raise_times([*entries, *reversed(chain)])
        parts += [self._read(entry) for entry in entries[n_merged:] if entry.made > cutoff.first]
        later = [part for part in (part.since(cutoff) for part in parts) if part.newest > cutoff.first]
        return [entry for entry in entries if entry.made > cutoff.first], merge_timed(later).batch if later else None

    def merge(self, state: PatchState) -> None:
        """Merge the entries of folded patches into one, and remove them; a failure is left to the next update.

        Call it under the publishers' lock. Rows that other rows replaced are gone then, and with them most of the room.
        """
        folded = state.folded
        if folded is None:
            return
        with contextlib.suppress(NearcastError, OSError):
            numbers = [int(name) for name in self.artifacts.list_names() if name.isdigit()]
            if sum(number <= folded.number for number in numbers) < MERGED_AT_ONCE:
                return
            chain, base = self._read_chain(state)
            merged = [entry for entry in reversed(chain) if entry.number <= folded.number]
            if len(merged) < MERGED_AT_ONCE:
                return
            last = merged[-1]
            name = cache_name(MERGED, last.version, last.number)
            every = [entry for entry in self.list_entries(last.version) if entry.number <= last.number]
            parts = ([] if base is None else [self._read_merged(base)]) + [self._read(entry) for entry in merged]
            short = self.read_short(last)
            self.artifacts.commit(name, partial(_write_merged, merge_timed(parts), short, every))
            old = [_name(entry.number) for entry in every]
            for other in self.artifacts.list_names():
                if other in old or (other.startswith(f"{MERGED}-{last.version:06d}-") and other < name):
                    self.artifacts.remove(other)

    def _read(self, entry: JournalEntry) -> TimedBatch:
        """Return the rows of an entry, with score terms as they were."""
        return read_rows(self._open(entry, _name(entry.number)), entry.digest, entry.made)

    def _read_merged(self, entry: JournalEntry) -> TimedBatch:
        """Return the rows of merged entries, up to this one."""
        return read_rows(self._open(entry, cache_name(MERGED, entry.version, entry.number)), entry.digest, entry.made)

    def read_short(self, entry: JournalEntry) -> dict[str | int, ListBound]:
        """Return the lists that may lack items after this entry, with their bounds."""
        name = _name(entry.number)
        if self.artifacts.facts(name) is None:
            name = cache_name(MERGED, entry.version, entry.number)
        return read_bounds(self._open(entry, name))

    def _open(self, entry: JournalEntry, name: str) -> Path:
        """Return the folder of an entry. Raises DamagedError if a file of it was changed or lost."""
        try:
            folder = self.artifacts.open(name)
            verify(folder, contents=True)
        except DamagedError as error:
            raise DamagedError(
                f"the journal entry of patch {entry.number} is damaged ({error}); restore it, or run and publish again"
            ) from error
        return folder

    def list_versions(self) -> set[int]:
        """Return the versions that entries belong to."""
        names = [name for name in self.artifacts.list_names() if name.isdigit() or _is_cache(name)]
        every = [self.artifacts.facts(name) for name in names]
        return {facts["version"] for facts in every if facts is not None}

    def prune(self, versions: Collection[int]) -> None:
        """Remove the entries and caches of versions that the store does not have any more."""
        for name in self.artifacts.list_names():
            facts = self.artifacts.facts(name) if name.isdigit() or _is_cache(name) else None
            if facts is not None and facts["version"] not in versions:
                self.artifacts.remove(name)


def open_journal(out: Location, generator: str, name: str) -> UpdateJournal:
    """Open a journal of a generator; it may have no entry yet. name: as patches have it; see `name_journal`."""
    parts = ("updates", name) if name else ("updates",)
    return UpdateJournal(open_artifacts(join_location(out, generator, *parts)), name)


def name_journal(state: PatchState) -> str:
    """Return the name of the journal of a store: as its patches have it, or a new one for the first patch."""
    if state.journal or state.last_number:  # patches of earlier releases name none
        return state.journal
    return f"{JOURNAL}{secrets.token_hex(4)}"


def list_journals(out: Location, generator: str) -> list[UpdateJournal]:
    """Open the journals of all stores, also of stores that are not used any more."""
    names = open_artifacts(join_location(out, generator, "updates")).list_names()
    found = {name.partition("/")[0] if name.startswith(JOURNAL) else "" for name in names}
    return [open_journal(out, generator, name) for name in sorted(found)]


def cache_name(kind: str, version: int, number: int) -> str:
    """Return the name of a cache of the state of a version after a patch."""
    return f"{kind}-{version:06d}-{number:06d}"


def _name(number: int) -> str:
    return f"{number:06d}"


def _is_cache(name: str) -> bool:
    return name.startswith((f"{MERGED}-", "state-")) and _last_part(name) >= 0


def _last_part(name: str) -> int:
    """Return the number of the patch that an entry or a cache is of; -1 for another name."""
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _follow(entries: Sequence[JournalEntry], number: int) -> list[JournalEntry]:
    """Return the entry of this number and those before it by `parent`, oldest first."""
    known, chain = {entry.number: entry for entry in entries}, list[JournalEntry]()
    while number in known:
        chain.append(known[number])
        number = known[number].parent
    return chain[::-1]


def _raise_times(entries: Sequence[JournalEntry]) -> list[JournalEntry]:
    """Return entries that follow each other, none made before an earlier one."""
    times = accumulate((entry.made for entry in entries), max)
    return [replace(entry, made=made) for entry, made in zip(entries, times, strict=True)]


def _write_entry(
    batch: UpdateBatch, short: Mapping[str | int, ListBound], entry: JournalEntry, folder: Path
) -> dict[str, Any]:
    write_rows(folder, batch)
    write_bounds(folder, short)
    return asdict(entry)


def _write_merged(
    timed: TimedBatch, short: Mapping[str | int, ListBound], entries: Sequence[JournalEntry], folder: Path
) -> dict[str, Any]:
    write_rows(folder, timed.batch, timed)
    write_bounds(folder, short)
    (folder / ENTRIES).write_text(json.dumps([asdict(entry) for entry in entries], ensure_ascii=False))
    return asdict(entries[-1])
