"""Answers as Arrow over HTTP: the same facts as JSON, and the choice between both by the Accept header."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from tests.published import load, publish
from tests.unit.test_http_app import COLUMNS, ITEMS, LISTS, SERVE, Compass, overlaid, serving

from nearcast.publishing.move_canary import start_canary
from nearcast.service.media_types import ARROW_TYPE, JSON_TYPE, choose_media_type
from nearcast.stores import open_store

ARROW = {"accept": ARROW_TYPE}
MANY = "/v1/generators/{}/candidates"
NUMBERS = {7: [(70, 0.5), (71, 0.25)], -2: [(-(1 << 62), 1.0)], 9: []}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = open_store(f"lmdb:{tmp_path_factory.mktemp('arrow')}")
    publish(opened, "shop", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine")
    publish(opened, "kind", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine", serve=SERVE)
    publish(opened, "numbers", 4, NUMBERS, metric="l2", serve={"default_items": [71]})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served(store):
    with serving(store, "shop", "kind", "numbers", online=Compass()) as made:
        yield made


def rows(answer):
    """The answers in an Arrow stream, as JSON has them."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW_TYPE
    table = pa.ipc.open_stream(answer.content).read_all()
    return table, [row | {"barred": dict(row["barred"])} for row in table.to_pylist()]


def without_age(answers):
    return [answer | {"age_seconds": None} for answer in answers]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("shop", {"keys": ["apple", "nobody", "bread", "empty", "", "nobody"]}),
        ("shop", {"keys": ["nobody", "empty"], "fallback_keys": [["absent", "fruit"], None], "k": 1}),
        ("kind", {"keys": ["apple", "nobody", "empty"], "fields": ["price", "name"], "min_score": 0.75}),
        ("kind", {"keys": ["nobody", "apple"], "vectors": [[1, 0], None], "k": 2}),
        ("numbers", {"keys": [7, 8, 9, -2]}),
        ("shop", {"keys": []}),
        ("shop", {"keys": ["apple", "nobody"] * 40}),  # on a thread
    ],
)
def test_arrow_tells_what_json_tells(served, name, body):
    _, client = served
    told = client.post(MANY.format(name), body)["answers"]
    _, found = rows(client.ask("POST", MANY.format(name), json=body, headers=ARROW))
    assert without_age(found) == without_age(told)


def test_a_key_of_another_type_is_null_and_a_miss_in_its_place(served):
    _, client = served
    body = {"keys": [7, "many", "9"]}
    table, found = rows(client.ask("POST", MANY.format("numbers"), json=body, headers=ARROW))
    assert table.schema.field("key").type == pa.int64()
    told = client.post(MANY.format("numbers"), body)["answers"]
    assert [row["key"] for row in told] == [7, "many", 9]
    assert without_age(found) == without_age([told[0], told[1] | {"key": None}, told[2]])


def test_types_depend_on_the_tables_and_not_on_the_answers(served):
    _, client = served
    bodies = [{"keys": keys, "fields": ["name", "price"]} for keys in (["apple"], ["nobody"], ["empty", "bread"])]
    schemas = {str(rows(client.ask("POST", MANY.format("shop"), json=b, headers=ARROW))[0].schema) for b in bodies}
    assert len(schemas) == 1
    schema = rows(client.ask("POST", MANY.format("numbers"), json={"keys": [7]}, headers=ARROW))[0].schema
    assert schema.field("candidates").type == pa.list_(pa.struct([("id", pa.int64()), ("score", pa.float32())]))


def test_one_key_is_a_stream_of_one_row(served):
    _, client = served
    for path in ("shop/candidates/apple?k=2&fields=name", "kind/candidates/nobody?fallback_key=fruit"):
        _, found = rows(client.ask("GET", f"/v1/generators/{path}", headers=ARROW))
        assert without_age(found) == without_age([client.get(f"/v1/generators/{path}")])


def test_what_the_overlay_removes_or_changes_to_another_type_is_told_alike(store, served):
    service, client = served

    def write(overlay):
        overlay.remove(["fig"])
        overlay.update("pear", "stock", {"amount": 3})

    body = {"keys": ["apple", "fruit", "empty"], "fields": ["stock", "name"]}
    with overlaid(store, service, "shop", write):
        told = client.post(MANY.format("shop"), body)["answers"]
        table, found = rows(client.ask("POST", MANY.format("shop"), json=body, headers=ARROW))
    assert [row["removed"] for row in found] == [row["removed"] for row in told] == [1, 1, 0]
    assert table.schema.field("candidates").type.value_type.field("stock").metadata == {b"encoding": b"json"}
    assert [candidate["stock"] for candidate in found[0]["candidates"]] == ['{"amount": 3}', None]


def test_a_canary_answers_its_keys_as_in_json_also_with_ids_of_another_type(tmp_path):
    keys = range(100)
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'store'}")) as store:
        publish(store, "shop", 1, {key: [(key + 1000, 0.5)] for key in keys})
        lists = {str(key): [(f"item {key}", 1.0)] if key % 2 else [] for key in keys}
        items = {f"item {key}": {"name": f"name {key}"} for key in keys}
        load(store, "shop", 2, lists, items, columns={"name": "string"}, serve={"default_keys": ["1"]})
        with store.lock("shop") as lock:
            start_canary(store, "shop", store.pointer("shop"), 2, ("canary", 0.5), lock)
        with serving(store, "shop") as (_, client):
            body = {"keys": [*keys, "none"], "fields": ["name"]}
            told = client.post(MANY.format("shop"), body)["answers"]
            _, found = rows(client.ask("POST", MANY.format("shop"), json=body, headers=ARROW))
            one = [client.get(f"/v1/generators/shop/candidates/{key}?fields=name") for key in body["keys"]]
            assert client.metric("nearcast_keys_total", generator="shop") == 3 * 101
    assert without_age(told) == without_age(one)
    assert {row["snapshot"] for row in told} == {"000001", "000002"}
    assert {row["source"] for row in told} >= {"table", "default_key"}
    for row, answer in zip(told, found, strict=True):
        same = ("found", "source", "snapshot", "stored", "returned")
        assert [row[name] for name in same] == [answer[name] for name in same]
        texts = [str(candidate["id"]) for candidate in row["candidates"]]
        assert (str(row["key"]), texts) == (answer["key"], [candidate["id"] for candidate in answer["candidates"]])


def test_counts_are_those_of_json(store):
    body, names = {"keys": ["apple", "nobody", "empty"] * 3}, ("keys", "misses", "empty_answers")
    counts = []
    for headers in ({}, ARROW):
        with serving(store, "shop") as (_, client):
            assert client.ask("POST", MANY.format("shop"), json=body, headers=headers).status_code == 200
            lines = client.ask("GET", "/metrics").text.splitlines()
            counts.append([line for line in lines if line.startswith("nearcast_returned_candidates")])
            assert [client.metric(f"nearcast_{n}_total", generator="shop") for n in names] == [9, 3, 6]
    assert counts[0] == counts[1] != []


def test_errors_are_json_whatever_is_accepted(served):
    _, client = served
    assert client.get("/v1/generators/nowhere/candidates/a", 404, headers=ARROW)["error"]["code"] == "unknown_generator"
    assert client.post(MANY.format("shop"), {"keys": 3}, 422, headers=ARROW)["error"]["code"] == "invalid"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON_TYPE),
        ("*/*", JSON_TYPE),
        ("application/*", JSON_TYPE),
        (ARROW_TYPE, ARROW_TYPE),
        (ARROW_TYPE.upper(), ARROW_TYPE),
        (f"{ARROW_TYPE}, */*", ARROW_TYPE),
        (f"{ARROW_TYPE};q=0.5, application/json", JSON_TYPE),
        (f"application/json;q=0.5, {ARROW_TYPE};q=0.501", ARROW_TYPE),
        (f"{ARROW_TYPE}, application/json", JSON_TYPE),
        ("application/json; charset=utf-8", JSON_TYPE),
        ("*/*, application/json;q=0", ARROW_TYPE),
        ("application/*;q=0.2, application/json;q=0.1", ARROW_TYPE),
        ('text/html;level="a,b;q=0", */*;q=0.1', JSON_TYPE),
        ("text/html, nonsense, */json", None),
        ("application/json;q=0", None),
        ("text/html, image/*;q=0.8", None),
        ("nonsense", JSON_TYPE),
        ("application/json;q=7", JSON_TYPE),
        ("*/*;q=0.000", None),
    ],
)
def test_the_type_is_chosen_by_quality_then_by_name_then_by_the_order_of_the_service(accept, chosen):
    assert choose_media_type(accept) == chosen


def test_a_client_that_accepts_neither_is_told_so(served):
    _, client = served
    refused = client.get("/v1/generators/shop/candidates/apple", 406, headers={"accept": "text/html"})["error"]
    assert (refused["code"], ARROW_TYPE in refused["message"]) == ("not_acceptable", True)
    answer = client.ask("GET", "/v1/generators/shop/candidates/apple")
    assert (answer.headers["content-type"], answer.headers["vary"]) == (JSON_TYPE, "accept")


def test_both_types_are_described(served):
    _, client = served
    paths = client.get("/openapi.json")["paths"]
    for path, method in (("candidates/{key}", "get"), ("candidates", "post")):
        responses = paths[f"/v1/generators/{{name}}/{path}"][method]["responses"]
        assert set(responses["200"]["content"]) == {JSON_TYPE, ARROW_TYPE}
        assert "406" in responses
