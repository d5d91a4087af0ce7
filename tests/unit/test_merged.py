"""Several keys as one list, asked of a look-up and over HTTP: shares, the overlay, tables, and refusals."""

from __future__ import annotations

import contextlib
import threading

import pytest
from tests.published import publish
from tests.unit.test_http_app import exact, serving

import nearcast
from nearcast.errors import InputError, NotFoundError, SpecError
from nearcast.serve.resolvers import MOST_KEYS, RESOLVERS
from nearcast.service.request_schemas import MAX_EXCLUDED, RequestContext
from nearcast.service.response_schemas import MergeResponse
from nearcast.stores import open_store

NEVER = 3600.0  # seconds: nothing is looked for while a test lasts
LISTS = {
    1: [(10, 0.9), (11, 0.8), (12, 0.7), (13, 0.6)],
    2: [(20, 0.9), (11, 0.5), (21, 0.4)],
    3: [(30, 0.3)],
    4: [],
}
ITEMS = {item: {"name": f"pin {item}"} for item in (10, 11, 12, 13, 20, 21, 30)}
COLUMNS = {"name": "string"}
PHRASES = {"red shoes": [(1, 6.0), (3, 2.0)], "nothing left": [(99, 1.0)]}
PEOPLE = {"ann": [(2, 1.0), (3, 1.0)]}
MERGED = "/v1/generators/pins/merged"


@pytest.fixture(params=["lmdb", "redis"])
def store(request, tmp_path):
    url = f"lmdb:{tmp_path / 'store'}" if request.param == "lmdb" else request.getfixturevalue("redis_url")
    with contextlib.closing(open_store(url + ("" if request.param == "lmdb" else "?buckets=16"))) as opened:
        publish(opened, "pins", 1, LISTS, ITEMS, columns=COLUMNS, metric="cosine")
        publish(opened, "pins.phrases", 1, PHRASES, metric="weight")
        publish(opened, "pins.people", 1, PEOPLE, metric="weight")
        yield opened


@pytest.fixture
def pins(store):
    with nearcast.open(store, "pins", refresh_seconds=NEVER) as opened:
        yield opened


def test_the_answer_says_which_key_gave_what(pins):
    answer = pins.merged([(1, 3), ("2", 1), (77, 1)], k=4, fields=["name"])
    assert list(answer.ids) == [11, 10, 12, 20]
    assert [[answer.keys[place].key for place in places] for places in answer.given_by] == [[1, 2], [1], [1], [2]]
    assert answer.columns == {"name": ["pin 11", "pin 10", "pin 12", "pin 20"]}
    first, second, missing = answer.keys
    assert (first.found, first.candidates, first.promised, first.given) == (True, 4, 3, 3)
    assert (second.key, second.candidates, second.promised, second.given) == (2, 3, 1, 2)
    assert (missing.found, missing.candidates, missing.promised, missing.given) == (False, 0, 0, 0)
    assert (answer.snapshot, answer.removed, len(answer)) == ("000001", 0, 4)


def test_k_is_the_generators_own_where_none_is_given(pins):
    assert len(pins.merged([(1, 1), (2, 1), (3, 1)])) == 4


def test_one_key_is_answered_as_by_a_look_up(pins):
    assert list(pins.merged([(1, 1)], k=3).ids) == pins.get(1, k=3).ids


def test_a_phrase_and_a_person_lead_to_keys_by_their_tables(pins):
    found = pins.merged(context={"phrase": " RED shoes"}, k=4)
    assert [(share.key, share.weight, share.origins) for share in found.keys] == [
        (1, 0.75, ("phrase",)),
        (3, 0.25, ("phrase",)),
    ]
    assert [share.promised for share in found.keys] == [3, 1]
    assert 30 in found.ids
    assert {share.key for share in pins.merged(context={"person": "ann"}).keys} == {2, 3}


@pytest.mark.parametrize("context", [{}, {"phrase": "unheard of"}, {"phrase": "nothing left"}, {"recent": []}])
def test_what_leads_to_no_candidates_is_an_empty_answer_and_no_error(pins, context):
    answer = pins.merged(context=context)
    assert (list(answer.ids), answer.snapshot) == ([], "000001")


def test_an_item_that_is_taken_out_is_in_no_merged_answer_and_its_share_goes_on(pins, store):
    with nearcast.overlay(store, "pins") as overlay:
        overlay.remove([11, 20])
    pins.refresh()
    answer = pins.merged([(1, 1), (2, 1)], k=4)
    assert list(answer.ids) == [10, 21, 12, 13]
    assert answer.removed == 3
    assert [(share.candidates, share.promised, share.given) for share in answer.keys] == [(3, 2, 3), (1, 2, 1)]


def test_a_key_that_is_taken_out_of_a_table_is_not_led_to(store):
    with nearcast.overlay(store, "pins.phrases") as overlay:
        overlay.remove([1])
    with nearcast.open(store, "pins", refresh_seconds=NEVER) as pins:
        assert [share.key for share in pins.merged(context={"phrase": "red shoes"}).keys] == [3]


def test_items_that_are_not_wanted_are_left_out_before_shares_are_given(pins):
    answer = pins.merged([(1, 1), (2, 1)], k=4, exclude=[10, "11", "no id of this table"])
    assert list(answer.ids) == [12, 20, 13, 21]
    assert [share.candidates for share in answer.keys] == [2, 2]


def test_a_least_score_is_that_of_a_keys_own_list(pins):
    assert set(pins.merged([(1, 1), (2, 1)], min_score=0.75).ids) == {10, 11, 20}


def test_a_new_version_of_a_table_is_followed(pins, store):
    assert [share.key for share in pins.merged(context={"person": "ann"}).keys] == [2, 3]
    publish(store, "pins.people", 2, {"ann": [(1, 1.0)]}, metric="weight")
    pins.tables.lookup("people").refresh()
    assert [share.key for share in pins.merged(context={"person": "ann"}).keys] == [1]


def test_a_table_that_was_not_published_says_how_it_is_made(store):
    publish(store, "other", 1, LISTS, ITEMS)
    with (
        nearcast.open(store, "other", refresh_seconds=NEVER) as other,
        pytest.raises(NotFoundError, match="other has no table 'phrases' in its store; `nearcast table other phrases"),
    ):
        other.merged(context={"phrase": "red shoes"})


def test_many_threads_open_a_table_once(store, monkeypatch):
    from nearcast.serve import lookup as lookups

    opened = []
    real = lookups.open_lookup
    monkeypatch.setattr(lookups, "open_lookup", lambda *a, **more: opened.append(a[1]) or real(*a, **more))
    with real(store, "pins", refresh_seconds=NEVER) as pins:
        asking = [threading.Thread(target=pins.merged, kwargs={"context": {"phrase": "red shoes"}}) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert opened == ["pins.phrases"]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        ({"k": 0}, InputError, "k is 0"),
        ({"most_keys": 0}, InputError, "most_keys is 0"),
        ({"by": "luck"}, InputError, "merged by rank or score"),
        ({"context": {"weather": "rain"}}, SpecError, "weather"),
        ({"fields": ["price"]}, NotFoundError, "no item column 'price'"),
    ],
)
def test_what_cannot_be_answered_says_why(pins, wanted, error, said):
    with pytest.raises(error, match=said):
        pins.merged([(1, 1)], **wanted)


def test_text_ids_are_merged_as_numbers_are(store):
    publish(store, "words", 1, {"a": [("x", 0.9), ("y", 0.8)], "b": [("y", 0.7), ("z", 0.1)]})
    with nearcast.open(store, "words", refresh_seconds=NEVER) as words:
        assert list(words.merged([("a", 1), ("b", 1)], k=3).ids) == ["y", "x", "z"]
        assert list(words.merged([("a", 1), ("b", 1)], k=3, exclude=["y"]).ids) == ["x", "z"]


# over HTTP


@pytest.fixture
def client(store):
    with serving(store, "pins", in_process=store.in_process) as (_, asking):
        yield asking


def test_over_http_the_answer_is_the_librarys_in_the_shape_that_is_described(client, pins):
    body = {
        "keys": [{"key": 2}, {"key": "3", "weight": 2.5}],
        "context": {"viewed": 1, "recent": [3, 2], "session": [{"key": 1, "seconds_ago": 5}], "phrase": "Red shoes"},
        "k": 3,
        "by": "score",
        "min_score": 0.1,
        "exclude": [12],
        "fields": ["name"],
    }
    answer = client.post(MERGED, body)
    exact(MergeResponse, answer)
    context = body["context"] | {"session": [(1, 5)]}
    mine = pins.merged(
        [(2, 1), (3, 2.5)], context=context, k=3, by="score", min_score=0.1, exclude=[12], fields=["name"]
    ).as_dict()
    assert answer | {"age_seconds": 0} == mine | {"age_seconds": 0}


def test_over_http_a_context_names_the_resolvers_that_there_are():
    assert set(RequestContext.model_fields) == set(RESOLVERS)


def test_over_http_nothing_known_is_an_empty_answer(client):
    for body in ({}, {"context": {}}, {"context": {"phrase": None}}, {"context": {"person": "nobody"}}):
        answer = client.post(MERGED, body)
        assert (answer["keys"], answer["candidates"]) == ([], [])


def test_over_http_a_table_that_there_is_not_is_told(store):
    publish(store, "other", 1, LISTS, ITEMS, metric="cosine")
    with serving(store, "other", in_process=store.in_process) as (_, asking):
        refused = asking.post("/v1/generators/other/merged", {"context": {"person": "ann"}}, 404)
        assert refused["error"]["code"] == "no_table"
        assert asking.post("/v1/generators/other/merged", {"context": {"viewed": 1}})["candidates"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"keys": [{"key": 1, "weight": 0}]}, "weight"),
        ({"keys": [{"key": 1}] * (MOST_KEYS + 1)}, "keys"),
        ({"context": {"weather": "rain"}}, "weather"),
        ({"context": {"recent": [1] * (MAX_EXCLUDED + 1)}}, "recent"),
        ({"context": {"session": [{"key": 1}]}}, "seconds_ago"),
        ({"context": {"session": [{"key": 1, "seconds_ago": -1}]}}, "seconds_ago"),
        ({"by": "luck"}, "by"),
        ({"k": 0}, "k"),
        ({"keys": [{"key": 1}], "fields": ["price"]}, "fields"),
    ],
)
def test_over_http_what_cannot_be_answered_names_its_place(client, body, said):
    assert said in client.post(MERGED, body, 422)["error"]["message"]


def test_over_http_every_key_that_was_led_to_is_counted(client):
    client.post(MERGED, {"keys": [{"key": 1}, {"key": 77}]})
    assert client.metric("nearcast_keys_total", generator="pins") == 2
    assert client.metric("nearcast_misses_total", generator="pins") == 1
