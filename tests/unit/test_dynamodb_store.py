"""What only a store in DynamoDB can get wrong: limits of requests, throttling, lost items, credentials, its URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dynamodb_server import REGION, TABLE
from nearcast.errors import BusyError, DamagedError, GoneError, SpecError, StoreError
from nearcast.stores import check_store_url, open_store
from nearcast.stores.base import OverlayEntry, Pointer, Space, find_patches, repair_overlay
from needs import require_module
from servers import HERE, free_port

SHOP = "shop"


@pytest.fixture
def store(dynamodb_url) -> Iterator:
    with contextlib.closing(open_store(f"{dynamodb_url}&buckets=4&grace=0&timeout=2")) as opened:
        yield opened


def load(store, version=1, pairs=((b"a", b"1"), (b"b", b"2"))):
    writer = store.write(SHOP, version)
    writer.put(Space.LISTS, pairs)
    writer.finish({"n": version})


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("dynamodb://eu-west-1", "names no region and table; write dynamodb://REGION/TABLE"),
        ("dynamodb:///table", "names no region and table"),
        ("dynamodb://eu-west-1/t", "names no region and table"),
        ("dynamodb://key:sesame@eu-west-1/table", "credentials of AWS are read from the environment"),
        ("dynamodb://eu-west-1/table?db=1", "has the setting 'db'; known ones are timeout, grace"),
        ("dynamodb://eu-west-1/table?buckets=1.5", "buckets is '1.5'; give a whole number from 1"),
        ("dynamodb://eu-west-1/table?timeout=never", "timeout is 'never'; give a number"),
        ("dynamodb://eu-west-1/table?endpoint=host", "endpoint is no URL of a server"),
        ("dynamodb://eu-west-1/table?create=maybe", "create is 'maybe'; give true or false"),
        ("dynamo://eu-west-1/table", "did you mean 'dynamodb'"),
    ],
)
def test_a_url_with_a_wrong_part_is_refused_by_name(url, text):
    for use in (open_store, check_store_url):
        with pytest.raises(SpecError, match=text) as told:
            use(url)
        assert "sesame" not in str(told.value)


def test_values_of_any_size_come_back_and_leave_nothing(store, dynamodb_server):
    pairs = [(b"%d" % size, bytes(range(256)) * (size // 256)) for size in (0, 256, 350_208, 700_416, 1_200_128)]
    load(store, pairs=pairs)
    reader = store.open(SHOP, 1, verify=True)
    assert reader.get_many(Space.LISTS, [key for key, _ in pairs]) == [value for _, value in pairs]
    assert dict(reader.pairs(Space.LISTS)) == dict(pairs)
    store.retire(SHOP, 1)
    left = dynamodb_server.client().scan(TableName=TABLE)["Items"]
    assert [item["p"]["B"] for item in left] == []
    with pytest.raises(GoneError, match="version 1 was taken away"):
        reader.get_many(Space.LISTS, [b"256"])


def test_a_lost_item_is_an_error_and_never_a_missing_key(store, dynamodb_server):
    load(store, pairs=[(b"%03d" % number, b"x") for number in range(60)])
    reader = store.open(SHOP, 1, verify=True)
    assert reader.get_many(Space.LISTS, [b"no", b"007"]) == [None, b"x"]
    partition, name = reader._load.key_of(Space.LISTS, b"007")
    dynamodb_server.client().delete_item(TableName=TABLE, Key={"p": {"B": partition.encode()}, "s": {"B": name}})
    for keys in ([b"007"], [b"007", b"008"]):
        with pytest.raises(DamagedError, match=r"has lost pairs: .*007.*--repair"):
            reader.get_many(Space.LISTS, keys)
    with pytest.raises(DamagedError, match="has lost pairs"):
        list(reader.pairs(Space.LISTS))
    assert reader.get_many(Space.LISTS, [b"no", b"008"]) == [None, b"x"]


def test_what_the_server_did_not_process_is_sent_again(store, monkeypatch):
    refused = {"write": 0, "read": 0}
    client = store._table._client
    write, read = client.batch_write_item, client.batch_get_item

    def write_some(**given):
        requested = given["RequestItems"]
        (requests,) = requested.values()
        if len(requests) < 2:
            return write(**given)
        refused["write"] += 1
        write(RequestItems={TABLE: requests[:1]})
        return {"UnprocessedItems": {TABLE: requests[1:]}}

    def read_some(**given):
        requested = given["RequestItems"]
        (request,) = requested.values()
        if len(request["Keys"]) < 2:
            return read(**given)
        refused["read"] += 1
        found = read(RequestItems={TABLE: {**request, "Keys": request["Keys"][:1]}})
        return {**found, "UnprocessedKeys": {TABLE: {**request, "Keys": request["Keys"][1:]}}}

    monkeypatch.setattr("nearcast.stores.dynamodb_table.FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client, "batch_write_item", write_some)
    monkeypatch.setattr(client, "batch_get_item", read_some)
    pairs = [(b"%d" % number, b"x%d" % number) for number in range(8)]
    load(store, pairs=pairs)
    assert store.open(SHOP, 1, verify=True).get_many(Space.LISTS, [key for key, _ in pairs]) == [v for _, v in pairs]
    assert min(refused.values()) > 3


def test_a_table_that_throttles_for_ever_is_an_error_in_the_end(store, monkeypatch):
    monkeypatch.setattr("nearcast.stores.dynamodb_table.PATIENCE_TIMEOUTS", 0.1)
    writer = store.write(SHOP, 1)
    client = store._table._client
    monkeypatch.setattr(client, "batch_write_item", lambda **given: {"UnprocessedItems": given["RequestItems"]})
    with pytest.raises(StoreError, match=r"throttles: a write was not done .*lower max_bytes_per_second"):
        writer.put(Space.LISTS, [(b"a", b"1")])


def refuse_first(monkeypatch, client, operation, codes):
    """Answer the first calls of an operation with these errors."""
    from botocore.exceptions import ClientError

    call, left = getattr(client, operation), list(codes)

    def answer(**given):
        if left:
            raise ClientError({"Error": {"Code": left.pop(0), "Message": "slow down"}}, operation)
        return call(**given)

    monkeypatch.setattr(client, operation, answer)
    return left


@pytest.mark.parametrize("operation", ["batch_write_item", "batch_get_item", "get_item", "query", "put_item"])
def test_a_request_that_is_throttled_is_sent_again(store, monkeypatch, operation):
    monkeypatch.setattr("nearcast.stores.dynamodb_table.FIRST_PAUSE", 0.001)
    codes = ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"]
    left = refuse_first(monkeypatch, store._table._client, operation, codes)
    with store.lock(SHOP):
        load(store)
    reader = store.open(SHOP, 1, verify=True)
    assert reader.get_many(Space.LISTS, [b"a", b"b"]) == [b"1", b"2"]
    assert len(list(reader.pairs(Space.LISTS))) == 2
    assert left == []


def test_a_transaction_whose_answer_comes_late_is_done_once(store, monkeypatch):
    """The server is still busy with the first attempt, or has finished it: it knows both by their token."""
    from botocore.exceptions import ClientError

    monkeypatch.setattr("nearcast.stores.dynamodb_table.FIRST_PAUSE", 0.001)
    client, done = store._table._client, set()
    transact = client.transact_write_items

    def answer_late(**given):
        if given["ClientRequestToken"] in done:
            return {}
        transact(**given)
        done.add(given["ClientRequestToken"])
        raise ClientError({"Error": {"Code": "TransactionInProgressException", "Message": "wait"}}, "transact")

    monkeypatch.setattr(client, "transact_write_items", answer_late)
    with store.lock(SHOP) as held:
        load(store)
        store.point(SHOP, Pointer(1, 1), held)
    store.overlay(SHOP).write([OverlayEntry("a", None, True, 1.0)])
    assert (store.versions(SHOP), store.pointer(SHOP), len(done)) == ([1], Pointer(1, 1), 3)
    assert [entry.item for entry in store.overlay(SHOP).changes().entries] == ["a"]


def test_a_lock_that_a_transaction_is_reading_is_renewed_and_released_a_little_later(store, monkeypatch):
    monkeypatch.setattr("nearcast.stores.dynamodb_table.FIRST_PAUSE", 0.001)
    with store.lock(SHOP) as held:
        left = refuse_first(monkeypatch, store._table._client, "update_item", ["TransactionConflictException"])
        assert held.renew(1.0)
        assert left == []
        refuse_first(monkeypatch, store._table._client, "delete_item", ["TransactionConflictException"])
    with store.lock(SHOP):
        pass


def test_a_look_up_in_a_table_that_throttles_for_ever_is_an_error_within_three_timeouts(store, monkeypatch):
    load(store)
    reader = store.open(SHOP, 1, verify=True)
    monkeypatch.setattr("nearcast.stores.dynamodb_table.READ_TIMEOUTS", 0.1)
    refuse_first(monkeypatch, store._table._client, "batch_get_item", ["ThrottlingException"] * 1000)
    with pytest.raises(StoreError, match=r"throttles: a read was not done in 0\.2 s; raise the table's capacity"):
        reader.get_many(Space.LISTS, [b"a"])


def test_who_has_lost_the_lock_moves_no_pointer(store, dynamodb_server):
    with store.lock(SHOP) as held:
        store.point(SHOP, Pointer(1, 1), held)
        item = {**held.key, "token": {"S": "other"}, "end": {"N": "9e9"}, "v": {"B": b"process 7 on host"}}
        dynamodb_server.client().put_item(TableName=TABLE, Item=item)
        for use in (held.check, lambda: store.point(SHOP, Pointer(2, 2), held)):
            with pytest.raises(BusyError, match="the lock of shop"):
                use()
    assert store.pointer(SHOP) == Pointer(1, 1)
    with pytest.raises(BusyError, match="held by process 7 on host"), store.lock(SHOP):
        pass


def test_a_lost_overlay_is_an_error_until_it_is_repaired(store, dynamodb_server):
    log = store.overlay(SHOP)
    log.write([OverlayEntry("a", None, True, 1.0), OverlayEntry("b", "price", 7, 1.0)])
    log.write([OverlayEntry("c", None, True, 1.0)])
    key = {"p": {"B": SHOP.encode()}, "s": {"B": b"overlay"}}
    dynamodb_server.client().delete_item(TableName=TABLE, Key=key)
    for use in (log.changes, lambda: log.write([OverlayEntry("d", None, True, 1.0)])):
        with pytest.raises(DamagedError, match=r"has lost its state.*--repair"):
            use()
    assert "with the 3 entries that are left" in repair_overlay(log)
    assert repair_overlay(log) is None
    assert [entry.item for entry in log.changes().entries] == ["a", "b", "c"]


def test_the_first_entry_is_no_loss_for_whoever_reads_or_writes_at_the_same_time(store, monkeypatch):
    get, beside = store._table.get, store.overlay(SHOP)
    for use in (lambda log: log.changes(), lambda log: log.write([OverlayEntry("b", None, True, 1.0)])):
        store._table.delete_partitions([SHOP])
        looks = []

        def get_and_write(key, looks=looks):
            found = get(key)
            looks.append(key)
            if len(looks) == 1:
                beside.write([OverlayEntry("a", None, True, 1.0)])
            return found

        with monkeypatch.context() as patched:
            patched.setattr(store._table, "get", get_and_write)
            use(store.overlay(SHOP))
        assert "a" in [entry.item for entry in store.overlay(SHOP).changes().entries]


def test_a_long_log_of_the_overlay_is_written_anew_and_readers_miss_nothing(store, monkeypatch):
    monkeypatch.setattr("nearcast.stores.dynamodb_overlay.MOST_BATCHES", 4)
    log, seen, epoch, serial = store.overlay(SHOP), [], -1, 0
    for number in range(14):
        log.write([OverlayEntry("item", "price", number, 1.0), OverlayEntry(f"i{number}", None, True, 1.0)])
        if number % 3 == 0:
            found = log.changes(epoch=epoch, serial=serial)
            assert epoch in (-1, found.epoch)
            epoch, serial = found.epoch, found.serial
            seen += [entry.item for entry in found.entries if entry.field is None]
    seen += [entry.item for entry in log.changes(epoch=epoch, serial=serial).entries if entry.field is None]
    assert seen == [f"i{number}" for number in range(14)]
    assert len(log.changes().entries) == 15


def test_a_table_that_is_missing_or_of_another_use_is_told(dynamodb_url, dynamodb_server):
    plain = dynamodb_url.replace("&create=true", "")
    with pytest.raises(StoreError, match=rf"dynamodb://{REGION}/{TABLE}: the region has no table .*create=true"):
        open_store(plain)
    client = dynamodb_server.client()
    for number, kinds in enumerate(({"id": "S"}, {"p": "B", "s": "S"}, {"p": "S", "s": "B"})):
        other = f"another-table-{number}"
        if other not in client.list_tables()["TableNames"]:
            client.create_table(
                TableName=other,
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": kinds[name]} for name in kinds],
                KeySchema=[{"AttributeName": name, "KeyType": "RANGE" if name == "s" else "HASH"} for name in kinds],
                BillingMode="PAY_PER_REQUEST",
            )
        with pytest.raises(SpecError, match="is a table with other keys; give a table of its own"):
            open_store(plain.replace(TABLE, other))


def test_a_server_that_is_gone_and_missing_credentials_are_told(monkeypatch):
    require_module("boto3")
    url = f"dynamodb://{REGION}/{TABLE}?endpoint=http://{HERE}:{free_port()}&timeout=0.2"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StoreError, match=r"cannot be reached .*see the network, the region"):
        open_store(url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StoreError, match="needs credentials of AWS; set AWS_ACCESS_KEY_ID"):
        open_store(url)


def test_the_store_takes_no_patches_and_says_what_to_do_instead(store):
    with pytest.raises(StoreError, match=r"takes no live updates.*publish a snapshot instead"):
        find_patches(store, SHOP)


def test_requests_keep_the_limits_of_the_service(store, monkeypatch):
    sizes = {"write": [], "read": []}
    client = store._table._client
    write, read = client.batch_write_item, client.batch_get_item

    def count_writes(**given):
        requested = given["RequestItems"]
        sizes["write"].append(len(requested[TABLE]))
        return write(**given)

    def count_reads(**given):
        requested = given["RequestItems"]
        sizes["read"].append(len(requested[TABLE]["Keys"]))
        return read(**given)

    monkeypatch.setattr(client, "batch_write_item", count_writes)
    monkeypatch.setattr(client, "batch_get_item", count_reads)
    pairs = [(b"%d" % number, b"x") for number in range(230)]
    load(store, pairs=pairs)
    keys = [key for key, _ in pairs]
    assert store.open(SHOP, 1, verify=True).get_many(Space.LISTS, [*keys, *keys]) == [b"x"] * 460
    assert (max(sizes["write"]), max(sizes["read"])) == (25, 100)
