"""The publishers' lock of a generator in DynamoDB: an item with an end, which its holder moves on.

Only the server's clock decides when it ends. Knows nothing of publishing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nearcast.errors import BusyError, StoreError
from nearcast.stores.dynamodb_table import ConditionFailedError, DynamoTable

__all__ = ["DynamoLock", "hold_dynamodb_lock"]

LASTS_TIMEOUTS = 4  # so that one or two late answers do not lose the lock
LEAST_SECONDS = 2.0  # the server's clock is read in whole seconds
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
        whose = "expired or was released" if item is None else f"is held by {_read_holder(item)} now"
        return BusyError(f"the lock of {self.what} {whose}; start again")

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


@contextlib.contextmanager
def hold_dynamodb_lock(table: DynamoTable, partition: str, what: str) -> Iterator[DynamoLock]:
    """Hold the lock. Raises BusyError at once if another process holds it."""
    held, lasts = DynamoLock(table, partition, secrets.token_hex(16), what), _lasts(table)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    now = table.now()
    item = {**held.key, "token": {"S": held.token}, "end": {"N": repr(now + lasts)}, "v": {"B": holder.encode()}}
    try:
        table.call(
            "put_item",
            Item=item,
            ConditionExpression="attribute_not_exists(p) OR #e < :now",
            ExpressionAttributeNames={"#e": "end"},
            ExpressionAttributeValues={":now": {"N": repr(now)}},
        )
    except ConditionFailedError:
        found = table.get((partition, NAME))
        if found is None or found["token"]["S"] != held.token:  # it is ours if the first answer was lost on the way
            whose = "another process" if found is None else _read_holder(found)
            raise BusyError(f"{what} is held by {whose}; wait for it to end, or stop it") from None
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(held, lasts, stop), name="nearcast-lock", daemon=True)
    renewal.start()
    try:
        yield held
    finally:
        stop.set()
        renewal.join()
        with contextlib.suppress(StoreError, ConditionFailedError):  # it ends by itself
            condition = held.make_condition()["ConditionCheck"]
            table.call("delete_item", **condition)


def _lasts(table: DynamoTable) -> float:
    return max(LEAST_SECONDS, LASTS_TIMEOUTS * table.settings.timeout) + 1


def _renew(held: DynamoLock, lasts: float, stop: threading.Event) -> None:
    condition = held.make_condition()["ConditionCheck"]
    names = {**condition["ExpressionAttributeNames"], "#e": "end"}
    while not stop.wait(min(held.table.settings.timeout, lasts / LASTS_TIMEOUTS)):
        with contextlib.suppress(StoreError):  # the next attempt may succeed; otherwise `check` raises
            end = {":end": {"N": repr(held.table.now() + lasts)}}
            values = {**condition["ExpressionAttributeValues"], **end}
            more = {"ExpressionAttributeNames": names, "ExpressionAttributeValues": values}
            try:
                held.table.call("update_item", **{**condition, **more}, UpdateExpression="SET #e = :end")
            except ConditionFailedError:
                return


def _read_holder(item: dict[str, Any]) -> str:
    return str(item["v"]["B"].decode(errors="replace")) if "v" in item else "another process"
