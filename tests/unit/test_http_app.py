"""The application of the service, asked without a server: answers, fallbacks, refusals, and their description."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from tests.published import publish

from nearcast.errors import InputError, SpecError, StoreError
from nearcast.serve.lookup import open_lookup
from nearcast.serve.lookup_data import Answer
from nearcast.serve.overlay import open_overlay
from nearcast.service import response_schemas as schemas
from nearcast.service.app import Limits, make_app, parse_tokens
from nearcast.service.generator_service import new_service
from nearcast.service.metrics import METRICS, new_metrics
from nearcast.service.responses import encode
from nearcast.service.served_tables import ServedGenerator
from nearcast.stores import open_store

LISTS = {
    "apple": [("pear", 0.9), ("plum", 0.8), ("fig", 0.7)],
    "bread": [("rye", 0.5)],
    "fruit": [("banana", 0.6), ("fig", 0.4)],
    "empty": [],
    "a/b c%\n\u0000é": [("odd", 1.0)],
    "": [("nothing", 1.0)],
}
ITEMS = {
    i: {"name": i.title(), "price": n} for n, i in enumerate(sorted({i for row in LISTS.values() for i, _ in row}))
}
COLUMNS = {"name": "string", "price": "int64"}
SERVE = {"default_keys": ["absent", "bread"], "default_items": ["plum", "fig"]}


class Compass:
    """An online index of four items around a point. Remembers how many were asked for."""

    name, dim, recall = "compass", 2, 0.9
    ids = ("north", "east", "south", "west")
    vectors = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)

    def __init__(self):
        self.asked = []

    def search(self, vectors, k):
        self.asked.append(k)
        scores = np.asarray(vectors) @ self.vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids = [[self.ids[place] for place in row] for row in order]
        return ids, [[float(scores[n, place]) for place in row] for n, row in enumerate(order)]


class Client:
    """Asks an application."""

    def __init__(self, app):
        self.app = app

    def ask(self, method, path, **more):
        async def asked():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **more)

        return asyncio.run(asked())

    def get(self, path, status=200, **more):
        answer = self.ask("GET", path, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path, body, status=200, **more):
        answer = self.ask("POST", path, json=body, **more)
        assert answer.status_code == status, answer.text
        return answer.json()

    def metric(self, name, **labels):
        wanted = ",".join(f'{label}="{value}"' for label, value in labels.items())
        lines = self.ask("GET", "/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(f"{name}{{{wanted}}}" if wanted else f"{name} ")]
        return float(found[0].rpartition(" ")[2])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = open_store(f"lmdb:{tmp_path_factory.mktemp('http')}")
    publish(opened, "shop", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine")
    publish(opened, "kind", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine", serve=SERVE)
    publish(opened, "numbers", 4, {7: [(70, 0.5), (71, 0.25)], -2: [(-(1 << 62), 1.0)]}, metric="l2")
    yield opened
    opened.close()


@contextmanager
def serving(store, *names, online=None, in_process=True, **settings):
    """The service of these generators, with its client."""
    lookups = {name: open_lookup(store, name, refresh_seconds=0.01) for name in names}
    threads = {key: settings.pop(key) for key in ("threads", "most_waiting") if key in settings}
    service = new_service({n: ServedGenerator(lookup, in_process, online) for n, lookup in lookups.items()}, **threads)
    try:
        yield service, Client(make_app(service, **settings))
    finally:
        service.close()
        for lookup in lookups.values():
            lookup.close()


@pytest.fixture(scope="module")
def shop(store):
    with serving(store, "shop", "kind", "numbers") as (_, client):
        yield client


@contextmanager
def overlaid(store, service, name, write):
    """With something in the overlay, which is taken back at the end."""
    with open_overlay(store, name) as overlay:
        write(overlay)
        service.served[name].lookup.refresh()
        yield
        for entry in overlay.entries():
            overlay.restore([entry.item], field=entry.field)
        service.served[name].lookup.refresh()


def ids(answer):
    return [candidate["id"] for candidate in answer["candidates"]]


# one key


def test_a_key_is_answered_with_its_list_and_where_it_is_from(shop):
    answer = shop.get("/v1/generators/shop/candidates/apple")
    assert ids(answer) == ["pear", "plum", "fig"]
    assert answer["candidates"][0] == {"id": "pear", "score": pytest.approx(0.9)}
    assert answer["age_seconds"] > 0
    told = ("key", "found", "source", "source_key", "snapshot", "reason", "removed")
    assert [answer[what] for what in told] == ["apple", True, "table", "apple", "000001", None, 0]


def test_k_and_the_least_score_shorten_the_list(shop):
    assert ids(shop.get("/v1/generators/shop/candidates/apple?k=1")) == ["pear"]
    assert ids(shop.get("/v1/generators/shop/candidates/apple?min_score=0.8")) == ["pear", "plum"]


def test_fields_of_the_items_come_along_in_the_order_asked_for(shop):
    first = shop.get("/v1/generators/shop/candidates/apple?k=1&fields=price,name")["candidates"][0]
    assert list(first) == ["id", "score", "price", "name"]
    assert first["name"] == "Pear"


@pytest.mark.parametrize("key", [k for k in LISTS if k != "empty"], ids=repr)
def test_a_key_may_hold_slashes_blanks_nulls_line_breaks_and_nothing_at_all(shop, key):
    from urllib.parse import quote

    for written in (quote(key, safe=""), quote(key, safe="/")):
        answer = shop.get(f"/v1/generators/shop/candidates/{written}")
        assert (answer["key"], answer["found"]) == (key, True)


def test_an_escaped_slash_in_the_name_is_no_slash_of_the_path(shop):
    refused = shop.get("/v1/generators/shop%2Fcandidates%2Fapple/candidates/bread", 404)
    assert refused["error"]["code"] == "unknown_generator"


def test_an_escaped_slash_is_none_of_the_paths_own(shop):
    for path in ("/v1%2Fgenerators/shop/candidates/apple", "/v1/generators/shop%2Fcandidates%2Fapple"):
        assert shop.get(path, 404)["error"]["code"] in ("not_found", "unknown_generator")


def test_text_is_read_as_a_number_where_keys_are_numbers(shop):
    assert shop.get("/v1/generators/numbers/candidates/7")["key"] == 7
    assert ids(shop.get("/v1/generators/numbers/candidates/-2")) == [-(1 << 62)]
    for other in ("seven", "7.0", "+7", "9" * 30):
        answer = shop.get(f"/v1/generators/numbers/candidates/{other}")
        assert (answer["key"], answer["found"], answer["source"]) == (other, False, "none")


# many keys


def test_many_keys_are_answered_in_their_order_and_as_each_alone(shop):
    keys = ["bread", "nobody", "apple", "bread", "empty", 5]
    body = {"keys": keys, "k": 2, "fields": ["name"], "fallback_keys": [None, ["apple"], None, None, None, []]}
    answers = shop.post("/v1/generators/shop/candidates", body)["answers"]
    alone = [shop.get(f"/v1/generators/shop/candidates/{key}?k=2&fields=name") for key in map(str, keys)]
    alone[1] = shop.get("/v1/generators/shop/candidates/nobody?k=2&fields=name&fallback_key=apple")
    for answer in answers + alone:
        del answer["age_seconds"]
    assert answers == alone


def test_many_keys_more_than_are_answered_on_the_loop(shop):
    answers = shop.post("/v1/generators/shop/candidates", {"keys": ["apple", "bread"] * 200})["answers"]
    assert [len(answer["candidates"]) for answer in answers] == [3, 1] * 200


def test_no_keys_are_no_answers(shop):
    assert shop.post("/v1/generators/shop/candidates", {"keys": []}) == {"answers": []}


def test_what_is_given_per_key_goes_with_the_keys(shop):
    for what, value in (("fallback_keys", [["a"]]), ("vectors", [[1.0]])):
        refused = shop.post("/v1/generators/shop/candidates", {"keys": ["a", "b"], what: value}, 422)
        assert refused["error"]["message"] == f"{what} holds 1 where there are 2 keys"


# fallbacks


def test_a_miss_without_a_fallback_is_an_answer_and_no_error(shop):
    answer = shop.get("/v1/generators/shop/candidates/nobody")
    told = ("found", "source", "source_key", "candidates")
    assert [answer[what] for what in told] == [False, "none", None, []]


def test_fallback_keys_are_tried_in_turn(shop):
    answer = shop.get("/v1/generators/shop/candidates/nobody?fallback_key=nor+he&fallback_key=empty&fallback_key=fruit")
    told = ("key", "found", "source", "source_key")
    assert [answer[what] for what in told] == ["nobody", False, "fallback_key", "fruit"]
    assert ids(answer) == ["banana", "fig"]


def test_a_key_that_is_there_needs_no_fallback(shop):
    assert shop.get("/v1/generators/shop/candidates/apple?fallback_key=fruit")["source"] == "table"


def test_a_list_that_is_empty_falls_back_too_and_says_that_the_key_is_there(shop):
    answer = shop.get("/v1/generators/shop/candidates/empty?fallback_key=fruit")
    assert (answer["found"], answer["source"]) == (True, "fallback_key")
    assert shop.get("/v1/generators/shop/candidates/empty")["source"] == "none"


def test_default_keys_stand_in_after_the_fallback_keys(shop):
    answer = shop.get("/v1/generators/kind/candidates/nobody?fallback_key=nor+he")
    assert (answer["source"], answer["source_key"], ids(answer)) == ("default_key", "bread", ["rye"])


def test_default_items_stand_in_last_and_have_no_scores(store):
    with serving(store, "kind") as (service, client):
        with overlaid(store, service, "kind", lambda o: o.remove(["rye"])):
            answer = client.get("/v1/generators/kind/candidates/nobody?min_score=0.99&fields=name")
            assert (answer["source"], answer["source_key"]) == ("default_items", None)
            assert answer["candidates"][0] == {"id": "plum", "score": None, "name": "Plum"}
        assert client.get("/v1/generators/kind/candidates/nobody")["source"] == "default_key"


def test_everything_that_stands_in_is_under_the_overlay(store):
    compass = Compass()
    with (
        serving(store, "kind", online=compass) as (service, client),
        overlaid(store, service, "kind", lambda o: o.remove(["banana", "rye", "plum", "north"])),
    ):
        answer = client.get("/v1/generators/kind/candidates/nobody?fallback_key=fruit")
        assert (ids(answer), answer["removed"]) == (["fig"], 1)
        answer = client.get("/v1/generators/kind/candidates/nobody")
        assert (answer["source"], ids(answer), answer["removed"]) == ("default_items", ["fig"], 2)
        body = {"keys": ["nobody"], "vectors": [[0.1, 1]], "k": 2}
        answer = client.post("/v1/generators/kind/candidates", body)["answers"][0]
        assert (answer["source"], ids(answer), answer["removed"]) == ("online", ["east", "west"], 1)


def test_a_list_that_the_overlay_has_emptied_falls_back(store):
    with (
        serving(store, "shop") as (service, client),
        overlaid(store, service, "shop", lambda o: o.remove(["rye", "banana"])),
    ):
        answer = client.get("/v1/generators/shop/candidates/bread?fallback_key=fruit")
        assert (answer["found"], answer["source"], ids(answer)) == (True, "fallback_key", ["fig"])
        assert answer["removed"] == 2, "of both lists"
        assert client.get("/v1/generators/shop/candidates/bread")["source"] == "none"


def test_a_miss_with_a_vector_is_searched_for_and_a_key_that_is_there_is_not(store):
    compass = Compass()
    with serving(store, "shop", online=compass) as (_, client):
        body = {"keys": ["apple", "nobody", "nor he"], "vectors": [[0, 1], [0, -1], None], "k": 1}
        answers = client.post("/v1/generators/shop/candidates", body)["answers"]
        assert [answer["source"] for answer in answers] == ["table", "online", "none"]
        assert (ids(answers[1]), answers[1]["source_key"]) == (["south"], None)
        assert compass.asked == [1]


def test_a_vector_is_no_use_and_no_error_where_no_online_index_is_served(shop):
    body = {"keys": ["nobody"], "vectors": [[1, 2, 3]]}
    assert shop.post("/v1/generators/shop/candidates", body)["answers"][0]["source"] == "none"


# search


def test_a_search_finds_what_is_near_with_the_fields_of_the_snapshot(store):
    with serving(store, "shop", online=Compass()) as (_, client):
        body = {"vectors": [[1, 0.1], [-1, 0]], "k": 2, "fields": ["name"], "recall": 0.9}
        found = client.post("/v1/generators/shop/search", body)
        assert (found["engine"], found["recall"], found["snapshot"]) == ("compass", 0.9, "000001")
        assert [ids(answer) for answer in found["answers"]] == [["east", "north"], ["west", "north"]]
        assert found["answers"][0]["candidates"][0] == {"id": "east", "score": 1.0, "name": None}


def test_a_search_asks_for_more_until_items_that_are_gone_are_made_up_for(store):
    compass = Compass()
    with (
        serving(store, "shop", online=compass) as (service, client),
        overlaid(store, service, "shop", lambda o: o.remove(["north", "east", "elsewhere"])),
    ):
        answer = client.post("/v1/generators/shop/search", {"vectors": [[0.1, 1]], "k": 1})["answers"][0]
        assert (ids(answer), answer["removed"]) == (["west"], 2)
        assert compass.asked == [1, 2, 4], "no more than k and what is gone"


def test_a_search_leaves_out_what_scores_too_low(store):
    with serving(store, "shop", online=Compass()) as (_, client):
        answer = client.post("/v1/generators/shop/search", {"vectors": [[0, 2]], "min_score": 2})["answers"][0]
        assert ids(answer) == ["north"]


def test_a_search_is_refused_where_it_cannot_be_done_as_asked(store, shop):
    refused = shop.post("/v1/generators/shop/search", {"vectors": [[1, 0]]}, 404)
    assert refused["error"]["code"] == "no_online_index"
    assert "--online" in refused["error"]["message"]
    with serving(store, "shop", online=Compass()) as (_, client):
        for body, code in (
            ({"vectors": [[1, 0, 0]]}, "wrong_dimension"),
            ({"vectors": [[1, 0]], "recall": 0.95}, "recall_too_high"),
            ({"vectors": [[1e39, 0]]}, "invalid"),
            ({"vectors": [[]]}, "invalid"),
            ({"vectors": [[1, 0]], "fields": ["colour"]}, "unknown_field"),
        ):
            assert client.post("/v1/generators/shop/search", body, 422)["error"]["code"] == code
        body = {"keys": ["a"], "vectors": [[1, 0, 0]]}
        assert client.post("/v1/generators/shop/candidates", body, 422)["error"]["code"] == "wrong_dimension"
        content = b'{"vectors": [[NaN, 0]]}'
        answer = client.ask(
            "POST", "/v1/generators/shop/search", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422


# refusals


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("k=0", "k: input should be greater than or equal to 1"),
        ("k=10001", "k: input should be less than or equal to 10000"),
        ("k=", "k: input should be a valid integer, unable to parse string as an integer"),
        ("k=1&k=2", "k is given more than once"),
        ("min_score=nan", "min_score: input should be a finite number"),
        ("min_score=-inf", "min_score: input should be a finite number"),
        ("min_score=1e999", "min_score: input should be a finite number"),
        ("first=3", "first: no such setting"),
        ("fields=colour", "fields names a column that the items do not have; they have name, price"),
        ("fields=score", "fields names a column that the items do not have; they have name, price"),
        ("&".join(["fallback_key=a"] * 11), "fallback_key: list should have at most 10 items after validation, not 11"),
        ("&".join(f"p{n}=1" for n in range(101)), "the query has more than 100 parameters"),
    ],
)
def test_a_request_that_cannot_be_answered_says_what_is_wrong_with_it(shop, query, said):
    assert shop.get(f"/v1/generators/shop/candidates/apple?{query}", 422)["error"]["message"] == said


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is no JSON"),
        (b'{"keys": ["a"', 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "recursion limit"),
        (b'{"keys": ["\xff"]}', 400, "invalid unicode"),
        (b'{"keys": ["\\ud800"]}', 400, "no JSON"),
        (b'{"keys": [' + b"9" * 5000 + b"]}", 400, "out of range"),
        (b'{"keys": [' + b"9" * 30 + b"]}", 422, "keys.0: input should be"),
        (b'{"keys": [1.5, true, null]}', 422, "keys.0: input should be a valid string, or input should be a valid int"),
        (b'{"keys": ["' + b"a" * 5000 + b'"]}', 422, "keys.0: string should have at most 4096 characters"),
        (b'{"keys": ["a"], "k": "5"}', 422, "k: input should be a valid integer"),
        (b'{"keys": ["a"], "min_score": NaN}', 422, "min_score: input should be a finite number"),
        (b'{"key": "a"}', 422, "keys: field required; key: no such setting"),
        (b"null", 422, "input should be"),
    ],
    ids=range(13),
)
def test_a_body_that_cannot_be_read_says_why_and_is_not_shown_again(shop, body, status, said):
    headers = {"content-type": "application/json"}
    answer = shop.ask("POST", "/v1/generators/shop/candidates", content=body, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert len(answer.content) < 500


def test_a_body_must_say_that_it_is_json(shop):
    answer = shop.ask("POST", "/v1/generators/shop/candidates", content=b'{"keys": []}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json")
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert shop.ask("POST", "/v1/generators/shop/candidates", content=b'{"keys": []}', headers=headers).is_success


@pytest.mark.parametrize("path", ["%zz", "%", "%f", "%ff", "%c3", "%ed%a0%80", "a?fields=%ff", "a?fields=%zz"])
def test_a_path_or_query_that_is_not_escaped_utf8_is_refused(shop, path):
    raw = httpx.URL("http://service", raw_path=f"/v1/generators/shop/candidates/{path}".encode())
    answer = shop.ask("GET", raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_encoding")


def test_an_unknown_generator_is_told_which_there_are_and_a_path_where_to_look(shop):
    refused = shop.get("/v1/generators/shoes", 404)
    assert refused["error"] == {
        "code": "unknown_generator",
        "message": "no such generator is served; there are shop, kind, numbers",
    }
    for path in ("/", "/v1", "/v1/generators/", "/v1/generators/shop/", "/v2/x", "/docs/"):
        assert shop.get(path, 404)["error"]["code"] == "not_found"


def test_a_method_that_there_is_not_is_refused_with_those_that_there_are(shop):
    answer = shop.ask("DELETE", "/v1/generators/shop/candidates/apple")
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_more_keys_or_vectors_than_allowed_are_refused(store):
    with serving(store, "shop", online=Compass(), limits=Limits(keys=2)) as (_, client):
        refused = client.post("/v1/generators/shop/candidates", {"keys": ["a"] * 3}, 422)
        assert refused["error"] == {
            "code": "too_many",
            "message": "keys holds 3; one request may hold 2: send several",
        }
        assert client.post("/v1/generators/shop/search", {"vectors": [[1, 0]] * 3}, 422)["error"]["code"] == "too_many"
        assert (
            client.get("/openapi.json")["components"]["schemas"]["LookupRequest"]["properties"]["keys"]["maxItems"] == 2
        )


def test_more_candidates_than_one_answer_should_hold_are_refused(store):
    with serving(store, "shop", online=Compass()) as (_, client):
        refused = client.post("/v1/generators/shop/search", {"vectors": [[1, 0]] * 26, "k": 10_000}, 422)
        assert refused["error"] == {
            "code": "too_many",
            "message": "26 vectors with k = 10,000 are more than 250,000 candidates: send several requests",
        }
        body = {"keys": ["apple"] * 1000, "k": 10_000}  # the lists are not that long
        assert len(client.post("/v1/generators/shop/candidates", body)["answers"]) == 1000


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(store):
    with serving(store, "shop", limits=Limits(body_bytes=100)) as (_, client):
        headers = {"content-type": "application/json"}

        async def pieces():
            for _ in range(20):
                yield b" " * 10

        for content in (b" " * 101, pieces()):
            answer = client.ask("POST", "/v1/generators/shop/candidates", content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == "the body is larger than 100 bytes; send fewer keys"
            assert answer.headers["connection"] == "close"
        body = b'{"keys": []}'
        assert client.ask("POST", "/v1/generators/shop/candidates", content=body, headers=headers).is_success


def test_a_url_that_is_too_long_is_refused(shop):
    assert shop.get("/v1/generators/shop/candidates/" + "a" * 20_000, 414)["error"]["code"] == "url_too_long"


def test_answers_are_not_to_be_kept_or_guessed_at(shop):
    for path in ("/healthz", "/v1/generators/shop/candidates/apple", "/nowhere", "/docs"):
        headers = shop.ask("GET", path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


# tokens


def test_without_a_token_only_probes_and_the_description_are_answered(store):
    with serving(store, "shop", tokens=(b"open", b"sesame")) as (_, client):
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.ask("GET", path).status_code == 200
        for path in ("/v1/generators", "/v1/generators/shop/candidates/apple", "/metrics", "/nowhere", "/healthz/"):
            answer = client.ask("GET", path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("given", ["Bearer open", "bearer sesame", "Bearer  open "])
def test_any_of_the_tokens_opens(store, given):
    with serving(store, "shop", tokens=(b"open", b"sesame")) as (_, client):
        assert client.get("/v1/generators", headers={"authorization": given})


@pytest.mark.parametrize(
    "given", ["Bearer", "Bearer ", "Basic open", "open", "Bearer opens", "Bearer op\u00e9n", "Bearer ope"]
)
def test_no_other_token_opens(store, given):
    with serving(store, "shop", tokens=(b"open", b"sesame")) as (_, client):
        assert client.ask("GET", "/v1/generators", headers={"authorization": given.encode()}).status_code == 401


def test_a_token_file_holds_tokens_that_a_header_can_carry():
    assert parse_tokens("one\n\n two \n", "FILE") == (b"one", b"two")
    for text in ("", " \n", "a b", "h\u00e9", "a\x00"):
        with pytest.raises(SpecError, match="FILE holds"):
            parse_tokens(text, "FILE")


# what is served, and how it stands


def test_a_generator_is_described_with_what_its_version_says_of_itself(store):
    with serving(store, "shop", "numbers", online=Compass()) as (service, client):
        both = client.get("/v1/generators")["generators"]
        assert [generator["name"] for generator in both] == ["shop", "numbers"]
        with overlaid(store, service, "shop", lambda o: o.update("fig", "mood", "ripe")):
            one = client.get("/v1/generators/shop")
        told = ("snapshot", "version", "created", "keys", "items", "k", "metric", "columns", "overlay", "error")
        assert [one[what] for what in told] == [
            *("000001", 1, "2026-01-01T00:00:00Z", 6, 7, 3, "cosine", ["mood", "name", "price"], 1, None)
        ]
        assert one["online"] == {"engine": "compass", "dim": 2, "recall": 0.9}


def test_an_overlay_value_of_any_json_is_sent_along(store):
    odd = {"mood": [1, {"a": None}], "big": 1 << 80}

    def write(overlay):
        for field, value in odd.items():
            overlay.update("fig", field, value)

    with serving(store, "shop") as (service, client), overlaid(store, service, "shop", write):
        last = client.get("/v1/generators/shop/candidates/apple?fields=mood,big")["candidates"][2]
        assert last == {"id": "fig", "score": pytest.approx(0.7), "mood": odd["mood"], "big": 1 << 80}


def test_a_stopping_service_is_not_ready_and_asks_clients_to_leave(store):
    with serving(store, "shop") as (service, client):
        assert client.get("/readyz") == {"ready": True, "reasons": []}
        service.draining = True
        assert client.get("/readyz", 503) == {"ready": False, "reasons": ["the service is stopping"]}
        answer = client.ask("GET", "/v1/generators/shop/candidates/apple")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert client.get("/healthz") == {"alive": True}


def test_a_generator_without_an_open_version_is_not_ready(store):
    with serving(store, "shop", "kind") as (service, client):
        service.served["kind"].lookup.close()
        assert client.get("/readyz", 503)["reasons"] == ["kind: no version is open"]
        assert client.get("/v1/generators/kind", 503)["error"]["code"] == "not_ready"
        assert [generator["name"] for generator in client.get("/v1/generators")["generators"]] == ["shop"]
        assert client.get("/v1/generators/kind/candidates/apple", 503)["error"]["code"] == "store_unavailable"


# stores that fail, and stores that wait


class Broken:
    """A look-up whose store does what a test says."""

    def __init__(self, lookup, ask):
        self._lookup, self.ask = lookup, ask

    def __getattr__(self, name):
        return getattr(self._lookup, name)


@pytest.mark.parametrize("in_process", [True, False])
def test_a_store_that_fails_is_a_503_without_its_reason_and_is_counted(store, in_process, caplog):
    def fail(_question):
        raise StoreError("redis://secret-host:6379 does not answer")

    with serving(store, "shop", in_process=in_process) as (service, client):
        whole = service.served["shop"]
        service.served["shop"] = ServedGenerator(Broken(whole.lookup, fail), in_process)
        for _ in range(3):
            answer = client.ask("GET", "/v1/generators/shop/candidates/apple")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"] == {
                "code": "store_unavailable",
                "message": "the store did not answer; try again",
            }
        assert client.metric("nearcast_store_errors_total", generator="shop") == 3
        service.served["shop"] = whole
        client.get("/v1/generators/shop/candidates/apple")
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            "shop cannot be looked up: redis://secret-host:6379 does not answer",
            "shop can be looked up again",
        ]


def test_a_mistake_of_ours_is_a_500_that_says_nothing_of_it(store, caplog):
    def fail(_question):
        raise RuntimeError("/srv/private/path")

    with serving(store, "shop") as (service, client):
        service.served["shop"] = ServedGenerator(Broken(service.served["shop"].lookup, fail), True)
        answer = client.get("/v1/generators/shop/candidates/apple", 500)
        assert answer["error"] == {"code": "internal", "message": "the service has made a mistake; its log says more"}
        assert "/srv/private/path" in caplog.text


def test_what_an_online_index_refuses_is_the_requests_fault(store):
    class Strict(Compass):
        def search(self, vectors, k):
            raise InputError("vector 0 is too long")

    with serving(store, "shop", online=Strict()) as (_, client):
        refused = client.post("/v1/generators/shop/search", {"vectors": [[1, 0]]}, 422)
        assert refused["error"]["message"] == "vector 0 is too long"


def test_a_slow_store_stops_neither_the_loop_nor_takes_more_than_it_may(store):
    begun, go_on = [], threading.Event()

    def wait(question):
        begun.append(question)
        assert go_on.wait(60)
        return question(view)

    async def asked(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            path = "/v1/generators/shop/candidates/apple"
            slow = [asyncio.create_task(client.get(path)) for _ in range(3)]
            while len(begun) < 2:
                await asyncio.sleep(0.01)
            assert (await client.get("/healthz")).status_code == 200
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            go_on.set()
            assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200] * 3
            assert (await client.get(path)).status_code == 200

    with serving(store, "shop", in_process=False, threads=2, most_waiting=3) as (service, client):
        lookup = service.served["shop"].lookup
        view = lookup.view()
        service.served["shop"] = ServedGenerator(Broken(lookup, wait), False)
        asyncio.run(asked(client.app))
        assert client.metric("nearcast_overloads_total", generator="shop") == 1


# metrics


def test_metrics_count_what_was_answered(store):
    with (
        serving(store, "kind", online=Compass()) as (service, client),
        overlaid(store, service, "kind", lambda o: o.remove(["fig"])),
    ):
        client.get("/v1/generators/kind/candidates/apple")
        client.get("/v1/generators/kind/candidates/nobody")
        client.get("/v1/generators/kind/candidates/nobody?fallback_key=fruit")
        client.post("/v1/generators/kind/candidates", {"keys": ["apple", "nobody"], "vectors": [None, [1, 0]]})
        client.post("/v1/generators/kind/search", {"vectors": [[1, 0], [0, 1]]})
        client.get("/v1/generators/kind/candidates/apple?k=0", 422)
        client.get("/nowhere", 404)
        for name, labels, value in (
            ("keys_total", {}, 5),
            ("misses_total", {}, 3),
            ("fallbacks_total", {"source": "default_key"}, 1),
            ("fallbacks_total", {"source": "fallback_key"}, 1),
            ("fallbacks_total", {"source": "online"}, 1),
            ("fallbacks_total", {"source": "default_items"}, 0),
            ("empty_answers_total", {}, 0),
            ("removed_candidates_total", {}, 3),
            ("searches_total", {}, 2),
            ("snapshot_version", {}, 1),
            ("overlay_entries", {}, 1),
            ("not_following", {}, 0),
        ):
            assert client.metric(f"nearcast_{name}", generator="kind", **labels) == value, name
        one = "/v1/generators/{name}/candidates/{key}"
        assert client.metric("nearcast_requests_total", route=one, status="200") == 3
        assert client.metric("nearcast_requests_total", route=one, status="422") == 1
        assert client.metric("nearcast_requests_total", route="other", status="404") == 1
        assert client.metric("nearcast_request_seconds_count", route=one) == 4
        assert client.metric("nearcast_ready") == 1


def test_every_metric_of_the_table_is_told_and_no_other(shop):
    shop.get("/healthz")
    text = shop.ask("GET", "/metrics").text
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE nearcast_"))
    told = {name.removesuffix("_created"): kind for name, kind in kinds.items() if not name.endswith("_created")}
    assert told == {metric.name: metric.kind for metric in METRICS.values()}


@pytest.mark.parametrize("old", [metric for metric in METRICS.values() if metric.replaced_by], ids=lambda m: m.name)
def test_a_deprecated_metric_repeats_the_metric_that_replaces_it(old):
    metrics = new_metrics(["shop"], dict, lambda: True, lambda: ["broken"])
    metrics.count_update_failure("shop")
    answer = Answer("a", True, ["x"], [1.0], None, 0, {}, "table", "a", "000001", 0.0, 4, {"adult": 3})
    metrics.count_answers("shop", [answer])
    lines = metrics.format_text().decode().splitlines()
    values = {name: [line.removeprefix(name) for line in lines if line.startswith(f"{name}{{")] for name in METRICS}
    assert values[old.name] == values[old.replaced_by] != []
    assert f"# HELP {old.name} {old.meaning}" in lines


def test_the_former_name_of_a_served_generator_works_and_warns():
    with pytest.warns(DeprecationWarning, match="ServedGenerator"):
        from nearcast.service.generator_service import Served
    assert Served is ServedGenerator


def test_the_documentation_has_the_table_of_metrics(repository):
    text = (repository / "docs" / "http.md").read_text(encoding="utf-8")
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |\n" in text
    assert text.count("| `nearcast_") == len(METRICS)


# the description


def described(shop):
    return shop.get("/openapi.json")


def exact(model, answer):
    read = model.model_validate(answer, strict=True)
    assert read.model_dump(mode="json") == answer
    assert set(answer) == set(model.model_fields)


def test_every_answer_has_exactly_the_shape_that_is_described(store):
    with serving(store, "kind", "shop", online=Compass()) as (_, client):
        for query in ("", "?k=1&fields=name,price"):
            for key in ("apple", "nobody", "empty"):
                exact(schemas.LookupResponse, client.get(f"/v1/generators/kind/candidates/{key}{query}"))
        body = {"keys": ["apple", "nobody", 5], "vectors": [None, [1, 0], None], "fields": ["price"]}
        exact(schemas.LookupBatchResponse, client.post("/v1/generators/shop/candidates", body))
        exact(
            schemas.SearchResponse,
            client.post("/v1/generators/shop/search", {"vectors": [[1, 0]], "fields": ["price"]}),
        )
        exact(schemas.GeneratorInfo, client.get("/v1/generators/shop"))
        exact(schemas.GeneratorList, client.get("/v1/generators"))
        exact(schemas.CanaryInfo, client.get("/v1/generators/shop/canary"))
        exact(schemas.HealthResponse, client.get("/healthz"))
        exact(schemas.ReadinessResponse, client.get("/readyz"))
        exact(schemas.ErrorResponse, client.get("/v1/generators/none", 404))


def test_the_description_names_every_endpoint_and_what_it_refuses(shop):
    told = {
        (method.upper(), path): set(operation["responses"])
        for path, operations in described(shop)["paths"].items()
        for method, operation in operations.items()
    }
    of_body = {"200", "400", "404", "413", "414", "415", "422", "503"}
    assert told == {
        ("GET", "/v1/generators/{name}/candidates/{key}"): {"200", "400", "404", "406", "414", "422", "503"},
        ("POST", "/v1/generators/{name}/candidates"): of_body | {"406"},
        ("POST", "/v1/generators/{name}/merged"): of_body,
        ("POST", "/v1/generators/{name}/search"): of_body,
        ("POST", "/v1/generators/{name}/ads"): of_body,
        ("GET", "/v1/generators"): {"200", "414"},
        ("GET", "/v1/generators/{name}"): {"200", "400", "404", "414", "503"},
        ("GET", "/v1/generators/{name}/canary"): {"200", "400", "404", "414", "503"},
        ("GET", "/healthz"): {"200"},
        ("GET", "/readyz"): {"200", "503"},
        ("GET", "/metrics"): {"200", "414"},
    }


def test_the_description_asks_for_a_token_where_one_is_needed(store, shop):
    assert "securitySchemes" not in described(shop)["components"]
    with serving(store, "shop", tokens=(b"open",)) as (_, client):
        description = described(client)
        assert description["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
        assert description["paths"]["/readyz"]["get"]["security"] == []
        assert description["paths"]["/metrics"]["get"]["security"] == [{"token": []}]
        assert "401" in description["paths"]["/metrics"]["get"]["responses"]


def test_the_page_for_people_shows_every_endpoint_and_shape_and_loads_nothing(shop):
    answer = shop.ask("GET", "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in described(shop)["paths"]:
        assert path in answer.text
    for name in described(shop)["components"]["schemas"]:
        assert f'id="{name}"' in answer.text
    assert "http" not in answer.text.replace("http://", "")
    assert "<script" not in answer.text


def test_json_is_written_whatever_it_holds():
    assert json.loads(encode({"a": [float("nan"), float("inf"), 1.5, None, "\u0000é"]})) == {
        "a": [None, None, 1.5, None, "\u0000é"]
    }
    assert json.loads(encode({"a": (1 << 70, float("nan")), "b": {"c": "é"}})) == {
        "a": [1 << 70, None],
        "b": {"c": "é"},
    }
