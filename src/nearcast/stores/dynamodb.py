"""The store in Amazon DynamoDB: one table for all generators, paid by the request.

    p = <generator>     s = current: the pointer      s = lock: the publishers' lock, with token and end
                        s = version:<number>: a finished version      s = load:<load>: one that is being written
                        s = leaving:<load>: a retired one, removed after its time of grace
    p = #generators     s = <generator>: it has a pointer

Pairs are described in `dynamodb_version`, the overlay in `dynamodb_overlay`. A value above 350 kB is split. The pointer
moves in a transaction that fails without the lock. The store takes no patches: it has no method `patches`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from nearcast.errors import NotFoundError
from nearcast.stores.base import OverlayLog, Pointer, PublishLock
from nearcast.stores.dynamodb_lock import DynamoLock, hold_dynamodb_lock
from nearcast.stores.dynamodb_overlay import DynamoOverlay
from nearcast.stores.dynamodb_table import ConditionFailedError, DynamoTable, ItemKey, split_value
from nearcast.stores.dynamodb_url import parse_dynamodb_url
from nearcast.stores.dynamodb_version import DynamoLoad, DynamoReader, DynamoWriter, open_dynamodb_version
from nearcast.stores.names import validate_generator

__all__ = ["DynamoStore", "open_dynamodb"]

GENERATORS = "#generators"
CURRENT, VERSION, LOAD, LEAVING = b"current", b"version:", b"load:", b"leaving:"


def open_dynamodb(url: str) -> DynamoStore:
    """Open the store at a URL. Raises StoreError if its table cannot be reached."""
    table = DynamoTable(parse_dynamodb_url(url))
    table.check_table()
    return DynamoStore(table)


class DynamoStore:
    """Versions of all generators in one table."""

    in_process = False

    def __init__(self, table: DynamoTable) -> None:
        self.url = table.settings.url
        self._table = table

    def generators(self) -> list[str]:
        """Return the generators that have a pointer, sorted."""
        return sorted(item["s"]["B"].decode() for item in self._table.query(GENERATORS, names_only=True))

    def lock(self, generator: str) -> AbstractContextManager[PublishLock]:
        """Hold the publishers' lock of a generator. Raises BusyError at once if another process holds it."""
        return hold_dynamodb_lock(self._table, validate_generator(generator), f"{generator} in {self.url}")

    def write(self, generator: str, version: int) -> DynamoWriter:
        """Start to write a version; remove unfinished versions."""
        self.retire(generator, version)
        for load in self._list_loads(generator, LOAD):
            self._remove(load, load.loading_key)
        load = DynamoLoad(generator, version, secrets.token_hex(4), self._table.settings.buckets)
        self._table.put_values([(load.loading_key, load.to_record())])
        return DynamoWriter(self._table, load)

    def versions(self, generator: str) -> list[int]:
        """Return the finished versions, ascending."""
        found = self._query(validate_generator(generator), VERSION, names_only=True)
        return [int(item["s"]["B"][len(VERSION) :]) for item in found]

    def open(self, generator: str, version: int, *, verify: bool) -> DynamoReader:  # noqa: ARG002  # see `check`
        """Open a finished version. Raises NotFoundError, or DamagedError if its records cannot be read."""
        key = DynamoLoad(validate_generator(generator), version, "", 0).version_key
        record = self._table.get_value(key)
        if record is None:
            have = ", ".join(map(str, self.versions(generator))) or "none"
            raise NotFoundError(f"{self.url} has no version {version} of {generator}; it has {have}")
        return open_dynamodb_version(self._table, generator, record)

    def retire(self, generator: str, version: int) -> None:
        """Remove a version, finished or not. Open readers can read it during the time of grace."""
        for load in self._list_loads(validate_generator(generator), VERSION):
            if load.version == version:
                self._hide(load)
        for load in self._list_loads(generator, LOAD):
            if load.version == version:
                self._remove(load, load.loading_key)
        self._sweep(generator)

    def pointer(self, generator: str) -> Pointer | None:
        """Return the pointer; None before the first publish."""
        item = self._table.get((validate_generator(generator), CURRENT))
        if item is None:
            return None
        return Pointer.from_bytes(item["v"]["B"] if "v" in item else b"", f"current of {generator} in {self.url}")

    def point(self, generator: str, pointer: Pointer, lock: PublishLock) -> None:
        """Move the pointer in one step. Raises BusyError, without a move, if the lock was lost."""
        assert isinstance(lock, DynamoLock), "a lock of this store"
        values = [((generator, CURRENT), pointer.to_bytes()), ((GENERATORS, generator.encode()), b"")]
        puts = [{"Put": {"Item": split_value(key, value)[0]}} for key, value in values]
        try:
            self._table.transact(lock.make_condition(), *puts)
        except ConditionFailedError:
            raise lock.make_error() from None

    def overlay(self, generator: str) -> OverlayLog:
        """Return the overlay log of a generator; an empty one if nothing was written."""
        return DynamoOverlay(self._table, validate_generator(generator))

    def now(self) -> float:
        """Return seconds since 1970 by the server's clock."""
        return self._table.now()

    def close(self) -> None:
        """Close the connections."""
        self._table.close()

    def _query(self, generator: str, prefix: bytes, *, names_only: bool = False) -> Iterator[dict[str, Any]]:
        return self._table.query(generator, first=prefix, last=prefix + b"\xff", names_only=names_only)

    def _list_loads(self, generator: str, prefix: bytes) -> list[DynamoLoad]:
        where = f"a record of {generator} in {self.url}"
        records = (item["v"]["B"] if "v" in item else b"" for item in self._query(generator, prefix))
        return [DynamoLoad.from_record(generator, record, where)[0] for record in records]

    def _hide(self, load: DynamoLoad) -> None:
        """Remove a version from the list of versions, and note when its data may be removed."""
        end = self._table.now() + self._table.settings.grace
        item = split_value(_leaving_key(load), load.to_record())[0]
        version = split_value(load.version_key, b"")[0]
        with contextlib.suppress(ConditionFailedError):  # another process has removed it
            self._table.transact(
                {"Delete": {"Key": version, "ConditionExpression": "attribute_exists(p)"}},
                {"Put": {"Item": {**item, "end": {"N": repr(end)}}}},
            )

    def _sweep(self, generator: str) -> None:
        """Remove retired versions whose time of grace is over."""
        items = list(self._query(generator, LEAVING))
        now = self._table.now() if items else 0.0
        for item in items:
            if float(item["end"]["N"]) <= now:
                where = f"a record of {generator} in {self.url}"
                load = DynamoLoad.from_record(generator, item["v"]["B"], where)[0]
                self._remove(load, _leaving_key(load))

    def _remove(self, load: DynamoLoad, key: ItemKey) -> None:
        """Remove the data of a load, then its record. Repeated from the start after an interruption."""
        self._table.delete_partitions(load.list_partitions())
        self._table.call("delete_item", Key=split_value(key, b"")[0])


def _leaving_key(load: DynamoLoad) -> ItemKey:
    return load.generator, LEAVING + load.name.encode()
