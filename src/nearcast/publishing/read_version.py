"""Read a version as readers do: its facts, its rules, every list and every row, or all of an expansion table.

A checksum shows that bytes came back as they were written, and nothing of whether a reader can use them. What fails
here never becomes current, and is no version that one can go back to.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from itertools import islice

from nearcast.eligibility.ruleset import RuleSet
from nearcast.errors import DamagedError, InputError, NotFoundError, SpecError
from nearcast.stores.base import Reader, Space, Store
from nearcast.stores.value_format import decode_lists
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.table.load_expansion import read_stored

__all__ = ["check_readable", "unreadable_versions"]

PAIRS_AT_ONCE = 1 << 12


def check_readable(reader: Reader, generator: str, version: int, where: str) -> None:
    """Raise DamagedError, which names `where`, for a version that a reader could not open and use."""
    try:
        facts = _check_opening(reader, generator, version)
        if facts.is_expansion:
            read_stored(reader, facts, where)
            return
        for space in Space:
            pairs = reader.pairs(space)
            while some := list(islice(pairs, PAIRS_AT_ONCE)):
                _check_values(space, [value for _, value in some], facts.item_ids)
    except (DamagedError, InputError, SpecError, KeyError, ValueError, TypeError) as error:
        raise DamagedError(f"{where} could not be opened by any reader: {error}") from error


def unreadable_versions(store: Store, generator: str, versions: Sequence[int]) -> set[int]:
    """Those of these versions that no reader could open. Of an expansion table, which is small, all is read."""
    return {version for version in versions if not _opens(store, generator, version)}


def _opens(store: Store, generator: str, version: int) -> bool:
    try:
        with contextlib.closing(store.open(generator, version, verify=False)) as reader:
            facts = _check_opening(reader, generator, version)
            if facts.is_expansion and not facts.read_back:  # an older nearcast did not read it back
                check_readable(reader, generator, version, "it")
    except (DamagedError, NotFoundError, SpecError, KeyError, ValueError, TypeError):
        return False
    return True


def _check_opening(reader: Reader, generator: str, version: int) -> VersionFacts:
    facts = read_facts(reader, generator, version)
    if facts.rules:
        RuleSet.prepare(facts.rules)
    return facts


def _check_values(space: Space, values: list[bytes], item_ids: str) -> None:
    if space is Space.LISTS:
        decode_lists(values, item_ids)
        return
    for value in values:
        if not isinstance(json.loads(value), dict):
            raise ValueError(f"a row is no JSON object: {value[:50]!r}")
