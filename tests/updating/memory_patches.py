"""A store whose patches are kept in memory: what updates write, without the stores' own formats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nearcast.errors import StoreError
from nearcast.stores.base import PatchState, Space
from nearcast.stores.lmdb import open_lmdb


@dataclass
class MemoryPatches:
    states: dict[int, PatchState] = field(default_factory=dict)
    values: dict[int, list] = field(default_factory=dict)  # by version: (number, pairs)
    last_number: int = 0

    def state(self, version):
        return replace(self.states.get(version, PatchState()), last_number=self.last_number)

    def write(self, patch, pairs, lock):
        lock.check()
        if patch.number != self.last_number + 1:
            raise StoreError(f"patch {patch.number} does not follow {self.last_number}")
        state, self.last_number = self.state(patch.version), patch.number
        self.values.setdefault(patch.version, []).append((patch.number, {s: dict(p) for s, p in pairs.items()}))
        self.states[patch.version] = replace(state, serial=state.serial + 1, patches=(*state.patches, patch))

    def roll_back(self, version, to, lock):
        lock.check()
        state = self.state(version)
        kept = tuple(patch for patch in state.patches if patch.number <= to)
        self.values[version] = [one for one in self.values.get(version, ()) if one[0] <= to]
        self.states[version] = replace(state, serial=state.serial + 1, patches=kept)

    def compact(self, version, keep, lock):
        pass

    def find(self, version, space, key):
        for _, pairs in reversed(self.values.get(version, ())):
            if key in pairs.get(space, {}):
                return pairs[space][key]
        return None


class PatchedReader:
    def __init__(self, reader, patches, version):
        self._reader, self._patches, self._version = reader, patches, version

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def get_many(self, space, keys):
        newer = [self._patches.find(self._version, space, key) for key in keys]
        return [
            old if new is None else (new or None)
            for new, old in zip(newer, self._reader.get_many(space, keys), strict=True)
        ]

    def pairs(self, space):
        changed = {key for _, pairs in self._patches.values.get(self._version, ()) for key in pairs.get(space, {})}
        for key, value in self._reader.pairs(space):
            if key not in changed:
                yield key, value
        for key in sorted(changed):
            value = self._patches.find(self._version, space, key)
            if value:
                yield key, value


class PatchedStore:
    """An LMDB store with patches in memory."""

    def __init__(self, root):
        self._store = open_lmdb(f"lmdb:{root}")
        self.logs: dict[str, MemoryPatches] = {}

    def __getattr__(self, name):
        return getattr(self._store, name)

    def patches(self, generator):
        return self.logs.setdefault(generator, MemoryPatches())

    def open(self, generator, version, *, verify):
        return PatchedReader(self._store.open(generator, version, verify=verify), self.patches(generator), version)


def read_all(store, generator, version):
    """Return all pairs of a version by space."""
    reader = store.open(generator, version, verify=False)
    try:
        return {space: dict(reader.pairs(space)) for space in Space}
    finally:
        reader.close()
