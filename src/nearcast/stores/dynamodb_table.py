"""One table of DynamoDB: items by partition and name, in batches, with limits, throttling and errors translated.

    p   partition key, bytes      s   sort key, bytes: the name of the item      v   the value, bytes; absent if empty
    n, t   a value above one item's size is in n parts; the others are named 0xFF, t and their number

Batches of 25 writes and 100 reads run on threads; what the server did not process is sent again, ever slower, until the
time is over, and so is a request that is throttled. Knows nothing of versions.
"""

from __future__ import annotations

import contextlib
import email.utils
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from nearcast.errors import MissingExtraError, SpecError, StoreError
from nearcast.stores.dynamodb_url import DynamoSettings
from nearcast.stores.process_client import ProcessClient

__all__ = ["ConditionFailedError", "DynamoTable", "ItemKey", "read_whole", "split_value"]

PART_BYTES = 350_000  # of a value in one item; the server takes 400 kB with names and keys
MOST_WRITES, MOST_READS = 25, 100  # of one request
THREADS = 16
PATIENCE_TIMEOUTS = 12  # so long a throttled write is sent again
READ_TIMEOUTS = 3  # and a throttled read: look-ups wait for it
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds
PART = b"\xff"
SCHEMA = {
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "B"} for name in "ps"],
    "KeySchema": [{"AttributeName": "p", "KeyType": "HASH"}, {"AttributeName": "s", "KeyType": "RANGE"}],
    "BillingMode": "PAY_PER_REQUEST",
}
READS = ("describe_table", "get_item", "query")
CONFLICTS = ("TransactionInProgressException", "TransactionConflictException")
CREDENTIALS = (
    "AccessDenied",
    "UnrecognizedClient",
    "InvalidSignature",
    "ExpiredToken",
    "InvalidClientToken",
    "Missing",
)

ItemKey = tuple[str, bytes]  # partition and name
Item = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


class ConditionFailedError(Exception):
    """The condition of a write does not hold: nothing was written."""


class DynamoTable:
    """A table. Safe to use from many threads and after a fork."""

    def __init__(self, settings: DynamoSettings) -> None:
        self.settings = settings
        self._clients = ProcessClient(self._new_client)

    @property
    def _client(self) -> Any:
        return self._clients.get()

    def _new_client(self) -> Any:
        try:
            import boto3
            import botocore.config
        except ImportError as error:
            raise MissingExtraError(
                "a store in DynamoDB needs an optional library; install it with: pip install 'nearcast[dynamodb]'"
            ) from error
        settings = self.settings
        config = botocore.config.Config(
            connect_timeout=settings.timeout,
            read_timeout=settings.timeout,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=2 * THREADS,
        )
        session = boto3.session.Session(region_name=settings.region)
        return session.client("dynamodb", endpoint_url=settings.endpoint, config=config)

    def check_table(self) -> None:
        """Raise StoreError if the table is missing or has other keys; create it if the URL says so."""
        try:
            found = self.call("describe_table")["Table"]
        except StoreError as error:
            if "has no table" not in str(error) or not self.settings.create:
                raise
            with contextlib.suppress(StoreError):  # another process is creating it
                self.call("create_table", **SCHEMA)
            end = time.monotonic() + PATIENCE_TIMEOUTS * self.settings.timeout
            while (found := self.call("describe_table")["Table"])["TableStatus"] == "CREATING":
                if time.monotonic() > end:
                    raise StoreError(f"{self.settings.url} is still being created; try again later") from None
                time.sleep(FIRST_PAUSE)
        keys = {row["AttributeName"]: row["AttributeType"] for row in found["AttributeDefinitions"]}
        if [row["AttributeName"] for row in found["KeySchema"]] != ["p", "s"] or (keys["p"], keys["s"]) != ("B", "B"):
            raise SpecError(
                f"{self.settings.url} is a table with other keys; give a table of its own, with the partition key p "
                "and the sort key s, both binary"
            )

    def call(self, operation: str, **arguments: Any) -> Any:
        """Call an operation on the table. Raises StoreError, ConditionFailedError."""
        what = "read" if operation in READS else "write"
        return self._persist(what, lambda: getattr(self._client, operation)(TableName=self.settings.table, **arguments))

    def now(self) -> float:
        """Return the end of the current second by the server's clock, in seconds since 1970."""
        answer = self.call("get_item", Key=_encode_key(("#clock", b"now")))
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        return email.utils.parsedate_to_datetime(date).timestamp() + 1 if date else time.time()

    def get(self, key: ItemKey) -> Item | None:
        """Return an item as it is now; None if it is missing."""
        found: Item | None = self.call("get_item", Key=_encode_key(key), ConsistentRead=True).get("Item")
        return found

    def get_value(self, key: ItemKey) -> bytes | None:
        """Return the value of an item as it is now, of all its parts; None if it is missing."""
        item = self.get(key)
        return None if item is None else read_whole(self, [item])[0]

    def get_many(self, keys: Sequence[ItemKey], *, consistent: bool = False) -> dict[ItemKey, Item]:
        """Return the items that exist. consistent: not an earlier state of the table, for twice the price."""
        found: dict[ItemKey, Item] = {}
        for items in self.map(partial(self._get_batch, consistent=consistent), _split(dict.fromkeys(keys), MOST_READS)):
            found.update((decode_key(item), item) for item in items)
        return found

    def _get_batch(self, keys: Sequence[ItemKey], *, consistent: bool) -> list[Item]:
        waiting = [_encode_key(key) for key in keys]
        items: list[Item] = []
        for pause in self._pauses("read"):
            request = {self.settings.table: {"Keys": waiting, "ConsistentRead": consistent}}
            answer = self._persist("read", partial(self._client.batch_get_item, RequestItems=request))
            items += answer["Responses"].get(self.settings.table, [])
            waiting = answer.get("UnprocessedKeys", {}).get(self.settings.table, {}).get("Keys", [])
            if not waiting:
                break
            time.sleep(pause)
        return items

    def put_values(self, values: Iterable[tuple[ItemKey, bytes]]) -> None:
        """Write values of any size; keys are unique."""
        items = (item for key, value in values for item in split_value(key, value))
        self._write({"PutRequest": {"Item": item}} for item in items)

    def put_items(self, items: Iterable[Item]) -> None:
        """Write items."""
        self._write({"PutRequest": {"Item": item}} for item in items)

    def delete_partitions(self, partitions: Iterable[str]) -> None:
        """Delete all items of some partitions."""

        def delete(partition: str) -> None:
            keys = self.query(partition, names_only=True)
            for batch in _split(keys, MOST_WRITES):
                self._write_batch([{"DeleteRequest": {"Key": {"p": item["p"], "s": item["s"]}}} for item in batch])

        self.map(delete, partitions)

    def _write(self, requests: Iterable[Item]) -> None:
        self.map(self._write_batch, _split(requests, MOST_WRITES))

    def _write_batch(self, requests: Sequence[Item]) -> None:
        waiting = list(requests)
        for pause in self._pauses("write"):
            request = {self.settings.table: waiting}
            answer = self._persist("write", partial(self._client.batch_write_item, RequestItems=request))
            waiting = answer.get("UnprocessedItems", {}).get(self.settings.table, [])
            if not waiting:
                return
            time.sleep(pause)

    def query(
        self, partition: str, *, first: bytes = b"\0", last: bytes = PART * 8, names_only: bool = False, limit: int = 0
    ) -> Iterator[Item]:
        """Yield the items of a partition, by name from `first` to `last`, as they are now."""
        arguments: dict[str, Any] = {
            "KeyConditionExpression": "p = :p AND s BETWEEN :first AND :last",
            "ExpressionAttributeValues": {
                ":p": {"B": partition.encode()},
                ":first": {"B": first},
                ":last": {"B": last},
            },
            "ConsistentRead": True,
        }
        if names_only:
            arguments["ProjectionExpression"] = "p, s"
        if limit:
            arguments["Limit"] = limit
        while True:
            answer = self.call("query", **arguments)
            yield from answer["Items"]
            if limit or "LastEvaluatedKey" not in answer:
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def transact(self, *steps: Item) -> None:
        """Do several conditional writes in one step. Raises ConditionFailedError."""
        actions = [{kind: {"TableName": self.settings.table, **step} for kind, step in item.items()} for item in steps]
        token = secrets.token_hex(16)  # of all attempts: one whose answer was lost is not done twice
        send = partial(self._client.transact_write_items, TransactItems=actions, ClientRequestToken=token)
        self._persist("transaction", send)

    def map(self, function: Callable[[T], R], things: Iterable[T]) -> list[R]:
        """Call a function for each thing, on threads if there are several; return the results in order."""
        waiting = iter(things)
        some = list(islice(waiting, 2))
        if len(some) < 2:
            return [function(thing) for thing in some]
        results: list[R] = []
        with ThreadPoolExecutor(THREADS, thread_name_prefix="nearcast-dynamodb") as pool:
            while some:
                results += pool.map(function, some)
                some = list(islice(waiting, 8 * THREADS))  # a failure ends it soon
        return results

    def close(self) -> None:
        """Close the connections."""
        client = self._clients.take()
        if client is not None:
            client.close()

    def _persist(self, what: str, send: Callable[[], R]) -> R:
        """Return the answer of a request; send it again while the table throttles or others write the same items."""
        for pause in self._pauses(what):
            try:
                with self._translate_errors():
                    return send()
            except _PassingError:
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _pauses(self, what: str) -> Iterator[float]:
        """Yield ever longer pauses. Raises StoreError when the time is over."""
        patience = (READ_TIMEOUTS if what == "read" else PATIENCE_TIMEOUTS) * self.settings.timeout
        end, pause = time.monotonic() + patience, FIRST_PAUSE
        while time.monotonic() < end:
            yield pause * (1 + secrets.randbelow(1000) / 1000)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise StoreError(
            f"{self.settings.url} throttles: a {what} was not done in {patience:g} s; raise the table's capacity, or "
            "publish with a lower max_bytes_per_second"
        )

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        client = self._client
        import botocore.exceptions as errors

        try:
            yield
        except client.exceptions.ClientError as error:
            raise self._make_error(error.response) from None
        except errors.BotoCoreError as error:
            raise StoreError(f"{self.settings.url} {_describe_client_error(errors, error, self.settings)}") from None

    def _make_error(self, response: Any) -> Exception:
        code, text = response["Error"]["Code"], response["Error"].get("Message", "")
        url = self.settings.url
        reasons = {reason.get("Code", "None") for reason in response.get("CancellationReasons", [])} - {"None"}
        if code == "ConditionalCheckFailedException" or "ConditionalCheckFailed" in reasons:
            return ConditionFailedError()
        if code in CONFLICTS or "TransactionConflict" in reasons:
            return _PassingError()
        if code == "ResourceNotFoundException":
            return StoreError(
                f"{url}: the region has no table {self.settings.table!r}; create it with ?create=true in the store's "
                "URL, or with the partition key p and the sort key s, both binary"
            )
        if any(word in code for word in CREDENTIALS):
            return StoreError(
                f"{url} refuses the credentials ({code}: {text[:200]}); give credentials of AWS that may read and "
                "write the table; docs/stores.md lists the actions"
            )
        if "Throttl" in code or "Exceeded" in code or reasons & {"ThrottlingError", "ProvisionedThroughputExceeded"}:
            return _PassingError()
        return StoreError(f"{url} answered with an error ({code}: {text[:200]}); try again, see the health of AWS")


class _PassingError(Exception):
    """The table throttles, or another transaction writes the same items now."""


def _describe_client_error(errors: Any, error: Exception, settings: DynamoSettings) -> str:
    """Describe an error that no server sent."""
    if isinstance(error, errors.NoCredentialsError | errors.PartialCredentialsError | errors.CredentialRetrievalError):
        return (
            "needs credentials of AWS; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile in AWS_PROFILE, "
            "or run on a machine with a role"
        )
    if isinstance(error, errors.ReadTimeoutError | errors.ConnectTimeoutError):
        return f"did not answer within {settings.timeout:g} s; allow more with ?timeout=SECONDS in the store's URL"
    return f"cannot be reached ({str(error)[:200]}); see the network, the region and ?endpoint="


def split_value(key: ItemKey, value: bytes) -> list[Item]:
    """Return the items of a value, the one with its name first."""
    item = _encode_key(key)
    if not value:
        return [item]
    item["v"] = {"B": value[:PART_BYTES]}
    if len(value) <= PART_BYTES:
        return [item]
    token, starts = secrets.token_bytes(8), range(PART_BYTES, len(value), PART_BYTES)
    item |= {"n": {"N": str(1 + len(starts))}, "t": {"B": token}}
    parts = [
        {**_encode_key((key[0], _name_part(token, number))), "v": {"B": value[start : start + PART_BYTES]}}
        for number, start in enumerate(starts, 1)
    ]
    return [item, *parts]


def read_whole(table: DynamoTable, items: Sequence[Item]) -> list[bytes | None]:
    """Return the values of items with all their parts; None for one whose parts are missing."""
    names = [
        [(item["p"]["B"].decode(), _name_part(item["t"]["B"], number)) for number in range(1, int(item["n"]["N"]))]
        if "n" in item
        else []
        for item in items
    ]
    wanted = [name for some in names for name in some]
    parts = table.get_many(wanted, consistent=True) if wanted else {}
    values: list[bytes | None] = []
    for item, some in zip(items, names, strict=True):
        pieces = [item, *(parts[name] for name in some if name in parts)]
        is_whole = len(pieces) == 1 + len(some)
        values.append(b"".join(piece["v"]["B"] for piece in pieces if "v" in piece) if is_whole else None)
    return values


def _name_part(token: bytes, number: int) -> bytes:
    return PART + token + number.to_bytes(2, "big")


def _encode_key(key: ItemKey) -> Item:
    return {"p": {"B": key[0].encode()}, "s": {"B": key[1]}}


def decode_key(item: Item) -> ItemKey:
    """Return the key of an item."""
    return item["p"]["B"].decode(), item["s"]["B"]


def _split(things: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(things)
    while batch := list(islice(stream, size)):
        yield batch
