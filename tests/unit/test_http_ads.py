"""What is promoted, over HTTP: the two steps in one request, its refusals, and the shape that is described."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from tests.published import publish
from tests.unit.test_http_app import Client

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.serve.lookup import open_lookup
from nearcast.service.app import Limits, make_app
from nearcast.service.generator_service import new_service
from nearcast.service.response_schemas import AdsResponse
from nearcast.service.served_tables import ServedGenerator
from nearcast.stores import open_store
from nearcast.table.expansion_settings import AdSettings, Target

LISTS = {"apple": [("pear", 0.9), ("plum", 0.8)], "bread": [("rye", 0.5)]}
ADS = pa.table({"ad": ["p1", "p2", "r1"], "advertiser": ["n", "n", "m"], "town": [["rome"], None, None]})
LINKS = pa.table({"item": ["pear", "plum", "rye"], "ad": ["p1", "p2", "r1"]})
SETTINGS = AdSettings(targeting=[Target(column="town", test="has", request="town")])
PATH = "/v1/generators/shop/ads"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with contextlib.closing(open_store(f"lmdb:{tmp_path_factory.mktemp('ads')}")) as opened:
        publish(opened, "shop", 1, LISTS, metric="cosine")
        publish_expansion(opened, "ads", ADS, LINKS, SETTINGS)
        publish_expansion(opened, "more", ADS, LINKS)
        yield opened


@contextlib.contextmanager
def serving(store, *tables, in_process=True, **settings):
    with contextlib.ExitStack() as held:
        lookup = held.enter_context(open_lookup(store, "shop"))
        opened = {name: held.enter_context(nearcast.open_expansion(store, name)) for name in tables}
        service = new_service({"shop": ServedGenerator(lookup, in_process)}, expansions=opened)
        held.callback(service.close)
        yield Client(make_app(service, **settings))


@pytest.fixture(scope="module")
def client(store):
    with serving(store, "ads") as opened:
        yield opened


def test_keys_and_what_is_known_of_the_request_become_ads(client):
    body = {"keys": ["apple", "bread"], "request": {"town": "rome"}, "fields": ["advertiser"], "k": 2}
    answer = client.post(PATH, body)
    assert [(ad["ad"], ad["item"], ad["columns"]) for ad in answer["ads"]] == [
        ("p1", "pear", {"advertiser": "n"}),
        ("p2", "plum", {"advertiser": "n"}),
    ]
    assert [stage["ads"] for stage in answer["stages"]] == [0, 3, 3, 3, 3, 3, 2]
    AdsResponse.model_validate(answer, strict=True)
    assert [ad["ad"] for ad in client.post(PATH, {"keys": ["apple", "bread"]})["ads"]] == ["p2", "r1"]


def test_an_answer_is_the_same_from_a_thread(store):
    body = {"keys": ["apple"], "request": {"town": "rome"}}
    with serving(store, "ads", in_process=False) as threaded, serving(store, "ads") as direct:
        answers = [asked.post(PATH, body) for asked in (threaded, direct)]
    assert answers[0]["ads"] == answers[1]["ads"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"keys": ["apple"], "fields": ["price"]}, 422, "no column 'price'"),
        ({"keys": ["apple"], "weights": [1, 2]}, 422, "2 weights for 1 keys"),
        ({"keys": ["apple"], "weights": [-1]}, 422, "weights"),
        ({"keys": ["apple"], "now": "soon"}, 422, "is no time"),
        ({"keys": ["apple"], "k": 0}, 422, "k"),
        ({"keys": ["apple"], "expansion": "none"}, 404, "there are ads"),
        ({"keys": ["apple"], "request": {"town": ["rome"]}}, 422, "request.town is to be one value"),
        ({"keys": ["apple"], "request": {"towm": "rome"}}, 422, "asks for 'towm' of a request; did you mean 'town'"),
        ({"keys": ["nobody"], "request": {"towm": "rome"}}, 422, "did you mean 'town'"),
        ({"keys": ["apple"], "request": {"town": 5}}, 422, "the request's 'town' is to be a text"),
        ({"keys": ["apple"], "wishes": 3}, 422, "wishes"),
        ({}, 422, "keys"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(client, body, status, words):
    assert words in client.post(PATH, body, status)["error"]["message"]


def test_where_several_tables_are_served_one_is_to_be_named(store):
    with serving(store, "ads", "more") as client:
        assert client.post(PATH, {"keys": ["apple"]}, 422)["error"]["code"] == "which_expansion"
        assert len(client.post(PATH, {"keys": ["apple"], "expansion": "more"})["ads"]) == 2


def test_a_request_of_too_many_keys_is_refused(store):
    with serving(store, "ads", limits=Limits(keys=2)) as client:
        assert client.post(PATH, {"keys": ["a", "b", "c"]}, 422)["error"]["code"] == "too_many"


def test_without_a_table_there_is_nothing_to_promote(store):
    with serving(store) as client:
        assert client.post(PATH, {"keys": ["apple"]}, 422)["error"]["code"] == "which_expansion"


def test_keys_and_ads_are_counted_and_keys_are_sampled(store):
    told = []
    with open_lookup(store, "shop") as lookup, nearcast.open_expansion(store, "ads") as ads:
        service = new_service(
            {"shop": ServedGenerator(lookup, True)},
            expansions={"ads": ads},
            sampled=lambda name, answers: told.extend((name, answer.key, answer.found) for answer in answers),
        )
        with contextlib.closing(service):
            client = Client(make_app(service))
            for keys in (["apple"], ["bread", "nobody"], ["nobody"]):
                client.post(PATH, {"keys": keys})
            text = client.ask("GET", "/metrics").text
    assert told == [("shop", key, key != "nobody") for key in ("apple", "bread", "nobody", "nobody")]
    assert 'nearcast_keys_total{generator="shop"} 4.0' in text
    assert 'nearcast_misses_total{generator="shop"} 2.0' in text
    assert 'nearcast_returned_ads_count{expansion="ads"} 3.0' in text
    assert 'nearcast_returned_ads_bucket{expansion="ads",le="0.0"} 1.0' in text  # an answer that had run dry
