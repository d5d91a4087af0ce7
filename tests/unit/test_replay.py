"""Replaying a log: how it is read, what each way comes to, and the rates with their intervals."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.published import publish

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.errors import InputError
from nearcast.replaying.candidate_sources import LookupSource
from nearcast.replaying.outcome import compute_figures, estimate_lead, find_hits
from nearcast.replaying.request_funnel import Funnel, run_funnel
from nearcast.replaying.request_log import read_log
from nearcast.stores import open_store
from nearcast.table.expansion_settings import AdSettings, Target

LISTS = {"a": [("x", 0.9), ("y", 0.8)], "b": [("y", 0.95), ("w", 0.4)], "c": []}
LOG = pa.table(
    {
        "key": [["a", "b"], ["c"], ["nobody"], ["b"]],
        "time": [datetime.datetime(2026, 1, 1)] * 4,
        "town": ["rome", "rome", "rome", None],
        "engaged": [["y"], ["x"], None, ["x"]],
        "engaged_ad": [[2], [], None, [2]],
    }
)


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"lmdb:{tmp_path}")
    publish(opened, "shop", 1, LISTS, metric="cosine")
    ads = pa.table({"ad": [1, 2], "town": [["rome"], None], "starts": [None, datetime.datetime(2025, 12, 31)]})
    settings = AdSettings(k=2, targeting=[Target(column="town", test="has", request="town")])
    publish_expansion(opened, "ads", ads, pa.table({"item": ["x", "y"], "ad": [1, 2]}), settings)
    yield opened
    opened.close()


def test_a_log_is_keys_with_a_time_fields_and_what_was_engaged_with_afterwards():
    first, _, third, last = read_log(LOG)
    assert (first.keys, first.request, first.engaged, first.engaged_ads) == (["a", "b"], {"town": "rome"}, {"y"}, {2})
    assert first.seconds == datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert (third.engaged, last.request) == (frozenset(), {"town": None})
    (single,) = read_log(pa.table({"key": [7, None], "weight": [0.5, 0.5], "engaged": [9, None]}))
    assert (single.keys, single.weights, single.seconds, single.engaged) == ([7], [0.5], None, {9})


def test_a_sample_of_a_log_is_the_same_every_time_and_in_order():
    table = pa.table({"key": list(range(100))})
    drawn = [logged.keys[0] for logged in read_log(table, sample=10, seed=3)]
    assert len(drawn) == 10
    assert drawn == sorted(drawn) == [logged.keys[0] for logged in read_log(table, sample=10, seed=3)]


def test_a_table_that_is_no_log_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no column 'key'; it has query"):
        read_log(pa.table({"query": ["a"]}))
    with pytest.raises(InputError, match="no request with a key"):
        read_log(pa.table({"key": pa.array([None], pa.string())}))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_log(tmp_path / "none.parquet")


def test_requests_go_through_candidates_alone(store):
    requests = read_log(LOG)
    with nearcast.open(store, "shop") as shop:
        passed = run_funnel(LookupSource("offline", shop.view()), requests, Funnel(None, k=2))
    assert [list(row) for row in passed.items] == [["y", "x"], [], [], ["y", "w"]]
    assert passed.candidates.tolist() == [[3, 2], [0, 0], [0, 0], [2, 2]]
    figures = compute_figures("offline", passed, requests, 2)
    assert (figures.empty, figures.short, figures.returned) == (0.5, 0.5, 1.0)
    assert figures.missed == pytest.approx(1 / 5)
    assert (figures.hit_rate.value, figures.hit_rate.of) == (pytest.approx(1 / 3), 3)


def test_requests_go_through_the_whole_funnel(store):
    requests = read_log(LOG)
    with nearcast.open(store, "shop") as shop, nearcast.open_expansion(store, "ads") as ads:
        passed = run_funnel(LookupSource("offline", shop.view()), requests, Funnel(ads))
    assert [list(row) for row in passed.returned_ads] == [[2, 1], [], [], [2]]
    figures = compute_figures("offline", passed, requests, 2)
    stages = {name: (candidates, found) for name, candidates, found in figures.stages}
    assert stages["candidates"] == (5 / 4, 0)
    assert stages["with_ads"] == stages["returned"] == (3 / 4, 3 / 4)
    assert figures.ad_hit_rate.value == 1.0
    assert figures.ad_hit_rate.low < 1.0


def test_hits_count_only_requests_that_engaged_with_something():
    requests = read_log(LOG)
    assert find_hits([["y"], ["q"], ["z"], ["x", "y"]], requests, lambda logged: logged.engaged).tolist() == [
        True,
        False,
        True,
    ]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_lead_lies_within_its_interval_and_is_nothing_over_itself(pairs):
    one, other = (np.array(column) for column in zip(*pairs, strict=True))
    found = estimate_lead(one, other)
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    same = estimate_lead(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)
