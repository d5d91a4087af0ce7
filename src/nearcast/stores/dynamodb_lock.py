"""The publishers' lock of a generator in DynamoDB: an item with an end, which its holder moves on. Knows no publishing.

The server's clock is read in whole seconds.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nearcast.errors import BusyError
from nearcast.stores.dynamodb_table import ConditionFailedError, DynamoTable
from nearcast.stores.renewed_lock import (
    LASTS_TIMEOUTS,
    describe_holder,
    make_held_error,
    make_lost_error,
    renew_lock,
)

__all__ = ["DynamoLock", "hold_dynamodb_lock"]

LEAST_SECONDS = 2.0
NAME = b"lock"


@dataclass(frozen=True)
class DynamoLock:
    """A lock that this process took. The server knows whether it still holds it."""

    table: DynamoTable
    partition: str
    token: str
    what: str

    def check(self) -> None:
        """Raise BusyError if the lock was lost."""
        item = self.table.get((self.partition, NAME))
        if item is None or item["token"]["S"] != self.token:
            raise self.make_error(item)

    def make_error(self, item: dict[str, Any] | None = None) -> BusyError:
        """Return the error for a lost lock. item: the lock as it is now."""
        return make_lost_error(self.what, item is None, _read_holder(item))

    def make_condition(self) -> dict[str, Any]:
        """Return the step of a transaction that fails unless the lock is held."""
        return {
            "ConditionCheck": {
                "Key": self.key,
                "ConditionExpression": "#t = :token",
                "ExpressionAttributeNames": {"#t": "token"},
                "ExpressionAttributeValues": {":token": {"S": self.token}},
            }
        }

    @property
    def key(self) -> dict[str, Any]:
        """The key of the item."""
        return {"p": {"B": self.partition.encode()}, "s": {"B": NAME}}

    def renew(self, lasts: float) -> bool:
        """Move the end on. Return whether the lock is still held."""
        condition = self.make_condition()["ConditionCheck"]
        names = {**condition["ExpressionAttributeNames"], "#e": "end"}
        values = {**condition["ExpressionAttributeValues"], ":end": {"N": repr(self.table.now() + lasts)}}
        more = {"ExpressionAttributeNames": names, "ExpressionAttributeValues": values}
        try:
            self.table.call("update_item", **{**condition, **more}, UpdateExpression="SET #e = :end")
        except ConditionFailedError:
            return False
        return True

    def release(self) -> None:
        """Delete the item, unless the lock was lost."""
        with contextlib.suppress(ConditionFailedError):
            self.table.call("delete_item", **self.make_condition()["ConditionCheck"])


@contextlib.contextmanager
def hold_dynamodb_lock(table: DynamoTable, partition: str, what: str) -> Iterator[DynamoLock]:
    """Hold the lock. Raises BusyError at once if another process holds it."""
    held = DynamoLock(table, partition, secrets.token_hex(16), what)
    lasts = max(LEAST_SECONDS, LASTS_TIMEOUTS * table.settings.timeout) + 1
    now = table.now()
    ends = {"token": {"S": held.token}, "end": {"N": repr(now + lasts)}}
    try:
        table.call(
            "put_item",
            Item={**held.key, **ends, "v": {"B": describe_holder().encode()}},
            ConditionExpression="attribute_not_exists(p) OR #e < :now",
            ExpressionAttributeNames={"#e": "end"},
            ExpressionAttributeValues={":now": {"N": repr(now)}},
        )
    except ConditionFailedError:
        found = table.get((partition, NAME))
        if found is None or found["token"]["S"] != held.token:  # it is ours if the first answer was lost on the way
            raise make_held_error(what, _read_holder(found)) from None
    with renew_lock(lambda: held.renew(lasts), held.release, min(table.settings.timeout, lasts / LASTS_TIMEOUTS)):
        yield held


def _read_holder(item: dict[str, Any] | None) -> str | None:
    return None if item is None or "v" not in item else str(item["v"]["B"].decode(errors="replace"))
