"""The advice: reckoned by hand from rates that are round numbers; then measured on a small generator that is real."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.end_to_end import shop as at
from tests.end_to_end.shop import fail, succeed

import nearcast
from nearcast.advising.cost_advice import PER_KEY, advise
from nearcast.advising.costs import UseCase, compute_staleness
from nearcast.advising.rates import JOIN, CpuMeasurement, OnlineRates, Rates, read_rates, write_rates
from nearcast.advising.skew import zipf_shares
from nearcast.errors import DamagedError, SpecError

KEYS, ITEMS = 1_000, 10_000


def flat(seconds: float) -> CpuMeasurement:
    """The same at every size."""
    return CpuMeasurement((1.0, 2.0), (seconds, seconds))


# A list takes 1 ms a refresh, a look-up 10 µs, a search 1 ms; making the index takes nothing.
RATES = Rates(
    machine={},
    engine="exact",
    dim=8,
    k=10,
    recall=1.0,
    report_queries=10,
    calibration_queries=10,
    stages={"table": CpuMeasurement((500, 1000), (0.5, 1.0))},
    publish=CpuMeasurement((1, 2), (0.0, 0.0)),
    lookup_seconds=1e-5,
    key_bytes=100.0,
    online={"faiss-hnsw": OnlineRates(flat(0.0), CpuMeasurement((ITEMS / 2, ITEMS), (1e-3, 1e-3)), 0.95)},
    seconds=0.0,
)


def case(**changed) -> UseCase:
    base = {"keys": KEYS, "items": ITEMS, "requests_per_day": 10.0 * KEYS, "shares": zipf_shares(KEYS, 1.0)}
    return UseCase(**(base | changed))


def test_a_day_offline_is_its_lists_and_its_look_ups():
    cost = advise(case(), RATES).cost("offline")
    assert cost.cpu_seconds == pytest.approx({"join": 1.0, "publish": 0.0, "look-up": 0.1})
    assert (cost.keys, cost.coverage) == (KEYS, pytest.approx(1.0))
    assert cost.gigabytes == pytest.approx(3 * KEYS * 100 / 1e9)


def test_a_day_online_is_its_searches_and_its_index():
    made = replace(RATES, online={"faiss-hnsw": OnlineRates(flat(7.0), flat(1e-3), None)})
    rates = replace(
        made, online={"faiss-hnsw": OnlineRates(CpuMeasurement((ITEMS / 2, ITEMS), (3.5, 7.0)), flat(1e-3), None)}
    )
    cost = advise(case(online_refresh_hours=12), rates).cost("online")
    assert cost.cpu_seconds["index"] == pytest.approx(14.0)
    assert cost.coverage == 1


def test_the_balance_turns_where_a_list_costs_what_its_searches_do():
    #  1 ms for a list against 0.99 ms saved by each look-up
    found = advise(case(), RATES)
    assert found.offline_pays_from == pytest.approx(1 / 0.99)
    assert found.list_pays_from == pytest.approx(1.0)
    even = advise(case(requests_per_day=KEYS / 0.99), RATES)
    assert even.cost("offline").total_cpu_seconds == pytest.approx(even.cost("online").total_cpu_seconds)


@settings(max_examples=30)
@given(skew=st.floats(0, 2), per_key=st.floats(0.01, 100))
def test_the_mix_makes_lists_for_the_keys_whose_own_traffic_pays_for_them(skew, per_key):
    requests = per_key * KEYS
    found = advise(case(requests_per_day=requests, shares=zipf_shares(KEYS, skew)), RATES)
    pays = int(np.count_nonzero(requests * zipf_shares(KEYS, skew) > found.list_pays_from))
    heads = found.cost("mix").keys
    assert heads == pytest.approx(max(1, pays), rel=0.05, abs=1)


def test_more_skew_makes_the_mix_pay_at_less_traffic():
    turns = [turn.mix_pays_from for turn in advise(case(), RATES).turns]
    assert turns == sorted(turns, reverse=True)
    assert turns[0] > 10 * turns[-1]


def test_little_traffic_is_for_an_index_and_much_for_lists_and_the_reason_says_from_where():
    index = OnlineRates(CpuMeasurement((ITEMS / 2, ITEMS), (0.25, 0.5)), RATES.online["faiss-hnsw"].search, None)
    rates = replace(RATES, online={"faiss-hnsw": index})
    much, little = advise(case(requests_per_day=1e6), rates), advise(case(requests_per_day=1.0), rates)
    assert (much.recommended, little.recommended) == ("offline", "online")
    assert "lists for all keys cost less from 0.51 requests per key and day" in little.reason
    assert much.turns[0].cheapest[PER_KEY.index(100.0)] == "offline"


def test_keys_that_are_new_are_not_answered_offline_so_the_mix_is_advised():
    found = advise(case(requests_per_day=1e6, new_share=0.2), RATES)
    assert found.cost("offline").coverage == pytest.approx(0.8)
    assert found.recommended == "mix"
    assert "lists answer 80.0% of the requests, and 95.0% are required" in found.warnings[0]


def test_money_counts_what_is_held_too():
    found = advise(case(price_core_hour=3600.0, price_gb_month=30.0), RATES)
    offline = found.cost("offline")
    assert offline.money == pytest.approx(offline.total_cpu_seconds + offline.gigabytes)
    assert advise(case(), RATES).cost("offline").money is None


def test_staleness_is_the_churn_averaged_over_the_age():
    ages = np.linspace(0, 1, 100_001)
    assert compute_staleness(0.1, 24) == pytest.approx(float(np.mean(1 - 0.9**ages)), abs=1e-6)
    assert compute_staleness(0.0, 24) == 0
    found = advise(case(churn_per_day=0.5), RATES)
    assert "a refresh every" in found.warnings[0]
    hours = float(found.warnings[0].split("a refresh every ")[1].split(" ")[0])
    assert compute_staleness(0.5, hours) == pytest.approx(0.05, rel=0.02)


def test_a_case_that_cannot_be_is_refused():
    for changed, words in (
        ({"keys": 0}, "got 0"),
        ({"churn_per_day": 1.0}, "got 1"),
        ({"refresh_hours": 0.0}, "refresh hours must be above 0"),
        ({"new_share": 2.0}, "share of new keys must be in"),
    ):
        with pytest.raises(SpecError, match=words):
            advise(case(**changed), RATES)
    with pytest.raises(SpecError, match="rates were measured for faiss-hnsw"):
        advise(case(), RATES, "faiss-ivf")


def test_two_sizes_make_a_line_or_a_power():
    assert CpuMeasurement((10, 20), (3.0, 5.0)).fit_line(40) == pytest.approx(9.0)
    assert CpuMeasurement((10, 20), (3.0, 9.0)).fit_line(40) == pytest.approx(18.0)  # a fixed part below 0 is none
    assert CpuMeasurement((10, 20), (3.0, 2.0)).fit_line(40) == pytest.approx(4.0)  # noise: in proportion to the larger
    assert CpuMeasurement((10, 20), (1.0, 2.0)).fit_power(40, 0, 2) == pytest.approx(4.0)
    assert CpuMeasurement((10, 20), (1.0, 16.0)).fit_power(40, 0, 2) == pytest.approx(64.0)  # no more than the square
    assert CpuMeasurement((10, 20), (1.0, 2.0)).fit_power(80, 0, 2, usual=0.0) == pytest.approx(4.0)  # half a say each


def test_rates_are_kept_and_read_again_for_the_same_only(tmp_path):
    write_rates(RATES, tmp_path / "new" / "rates.json", ["a"])
    path = tmp_path / "new" / "rates.json"
    assert read_rates(path, ["a"]) == read_rates(path) == RATES
    assert read_rates(path, ["b"]) is None
    path.write_text("{}")
    with pytest.raises(DamagedError, match="does not hold rates"):
        read_rates(path)


def test_advice_for_a_generator_is_measured_once_and_names_a_way(tmp_path):
    at.write_shop(tmp_path, recall=0.9)
    rng = np.random.default_rng(0)
    keys = [f"q{i:03d}" for i in rng.choice(at.N_QUERIES, 3_000, p=zipf_shares(at.N_QUERIES, 1.1))]
    pq.write_table(pa.table({"key": keys, "day": rng.integers(0, 3, 3_000)}), tmp_path / "log.parquet")
    words = ("advise", "shop.toml", "--log", "log.parquet", "--time", "day", "--price-core-hour", "0.04", "--json")
    first = json.loads(succeed(*words, "--picture", "advice.svg", cwd=tmp_path).stdout)
    assert first["case"]["requests_per_day"] == 1_000
    assert first["case"]["keys"] == len(set(keys))
    assert first["case"]["skew"] == pytest.approx(1.1, abs=0.15)
    assert [cost["way"] for cost in first["advice"]["costs"]] == ["offline", "online", "mix"]
    assert first["advice"]["recommended"] in ("offline", "online", "mix")
    assert first["rates"]["lookup_seconds"] > 0
    assert set(first["rates"]["stages"]) > {JOIN, "read"}
    assert (tmp_path / "advice.svg").is_file()
    again = json.loads(succeed(*words, cwd=tmp_path).stdout)
    assert again == first  # the rates are those that were kept
    shown = succeed(*words[:-1], cwd=tmp_path).stdout
    assert "recommended: " in shown
    assert "requests per key and day" in shown


def test_numbers_alone_are_enough_and_missing_ones_are_named(tmp_path):
    words = ("advise", "--keys", 500, "--dim", 8, "--k", 5, "--quiet")
    assert "items must be given" in fail(*words, code=2, cwd=tmp_path)
    assert "skew" in fail(*words, "--items", 2000, "--skew", 9, code=2, cwd=tmp_path)
    succeed(*words, "--items", 2000, "--rates", "rates.json", cwd=tmp_path)
    found = nearcast.advise(numbers={"keys": 500, "items": 2000, "dim": 8}, rates=tmp_path / "rates.json")
    assert found.advice.costs[0].keys == 500
