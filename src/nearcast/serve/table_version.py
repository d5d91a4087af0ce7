"""An open version of a published table: its reader, its facts, and the item and query columns that its rules use.

An item is decoded once, and again after a patch of the version; newer values of the overlay are applied at every
look-up. Knows nothing of how rules are written.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.eligibility.closures import Item
from nearcast.eligibility.ruleset import RuleSet
from nearcast.errors import DamagedError, SpecError
from nearcast.serve.overlay_state import OverlayState
from nearcast.stores.base import Reader, Space, Store, newest_patch
from nearcast.stores.value_format import IdType, decode_columns, encode_key, encode_query_key
from nearcast.stores.version_facts import VersionFacts, read_facts

__all__ = ["RuleColumns", "TableVersion", "open_version"]

CACHED_ITEMS = 1 << 18  # some hundred bytes each; when the cache is full it is emptied, and frequent items return soon
NO_COLUMNS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class TableVersion:
    """An open version of a published table. Its reader is closed when the last reference to it is gone."""

    reader: Reader
    facts: VersionFacts
    number: int
    snapshot: str  # for example 000007
    created: float  # seconds since 1970
    query_ids: IdType
    item_ids: IdType
    rule_columns: RuleColumns | None  # columns that the rules use; None without rules


def open_version(store: Store, generator: str, number: int, *, verify: bool) -> TableVersion:
    """Open a version and read its facts. Raises DamagedError if they cannot be used."""
    reader = store.open(generator, number, verify=verify)
    try:
        version = _read_version(reader, generator, number)
    except BaseException:
        reader.close()
        raise
    weakref.finalize(version, reader.close).atexit = False  # look-ups under way may finish
    return version


def _read_version(reader: Reader, generator: str, number: int) -> TableVersion:
    facts = read_facts(reader, generator, number)
    try:
        rule_columns = _prepare_rules(reader, facts)
    except (KeyError, ValueError, TypeError, SpecError) as error:
        raise DamagedError(f"the rules of {generator} {number} in the store cannot be used ({error!r})") from error
    return TableVersion(
        reader=reader,
        facts=facts,
        number=number,
        snapshot=facts.snapshot,
        created=facts.created_seconds,
        query_ids=facts.query_ids,
        item_ids=facts.item_ids,
        rule_columns=rule_columns,
    )


def _prepare_rules(reader: Reader, facts: VersionFacts) -> RuleColumns | None:
    if not facts.rules:
        return None
    own_query_columns = bool(facts.rules["own_query_columns"])
    return RuleColumns(reader, RuleSet.prepare(facts.rules), own_query_columns=own_query_columns)


class RuleColumns:
    """The item and query columns of one version, in the form that its rules use. Safe to use from many threads."""

    def __init__(self, reader: Reader, rules: RuleSet, *, own_query_columns: bool) -> None:
        self.rules = rules
        self._reader = reader
        self._own_query_columns = own_query_columns
        self._items: dict[Any, Item] = {}
        self._patch = newest_patch(reader)  # the items were read with this patch in force, or a newer one

    def items(self, ids: Sequence[Any], overlay: OverlayState, now: float) -> list[Item]:
        """Return the items with these ids, with the newer values of the overlay."""
        patch = newest_patch(self._reader)
        if patch is not self._patch:
            self._items, self._patch = {}, patch
        cached = self._items
        items = [cached.get(identity) for identity in ids]
        if None in items:
            items = self._read_missing(ids, items)
        if overlay.values and any(identity in overlay.values for identity in ids):
            update = self.rules.update_values
            items = [
                update(item, newer) if item is not None and (newer := overlay.find_values(identity, now)) else item
                for identity, item in zip(ids, items, strict=True)
            ]
        return items  # type: ignore[return-value]  # no None is left

    def query(self, key: Any) -> Mapping[str, Any]:
        """Return the stored columns of a query; empty if the version does not have the key."""
        if not self.rules.query_types or key is None:
            return NO_COLUMNS
        encoded = encode_key(key)
        if self._own_query_columns:
            encoded = encode_query_key(encoded)
        value = self._reader.get_many(Space.ITEMS, [encoded])[0]
        return NO_COLUMNS if value is None else decode_columns(value)

    def _read_missing(self, ids: Sequence[Any], items: list[Item | None]) -> list[Item | None]:
        """Read the items that are not cached. An item that the store does not have gets an id and no columns."""
        missing = [position for position, item in enumerate(items) if item is None]
        values = self._reader.get_many(Space.ITEMS, [encode_key(ids[position]) for position in missing])
        if len(self._items) + len(missing) > CACHED_ITEMS:
            self._items = {}
        for position, value in zip(missing, values, strict=True):
            row = NO_COLUMNS if value is None else decode_columns(value)
            items[position] = self._items[ids[position]] = self.rules.item(ids[position], row)
        return items
