"""A generator with planned surplus, or with an exposure cap, from Parquet to a published table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.builders import clustered, write_parquet

import nearcast
from nearcast.errors import InputError, SpecError
from nearcast.files import file_hash
from nearcast.join import select_candidates, spill_exposure
from nearcast.join.explain import explain
from nearcast.overfetch.candidates_needed import plan_lengths
from nearcast.overfetch.survivor_probability import gather_survival
from nearcast.spec import GeneratorSpec, parse_model

N, K = 400, 40


@pytest.fixture
def shop(tmp_path):
    """400 items that are the queries too; the first hundred hardly ever survive, the others mostly."""
    rng = np.random.default_rng(3)
    survival = np.where(np.arange(N) < 100, 0.02, rng.uniform(0.5, 1.0, N))
    columns = {"survival": survival, "advertiser": pa.array([f"a{n % 7}" for n in range(N)])}
    write_parquet(tmp_path / "items.parquet", list(range(N)), clustered(N, 16, seed=1).tolist(), **columns)
    return tmp_path, survival


def run(folder, **settings):
    tables = {
        "name": "ads",
        "metric": "cosine",
        "k": K,
        "exclude_self": True,
        "items": {"path": "items.parquet", "attributes": ["survival", "advertiser"]},
    } | settings
    return nearcast.run(parse_model(GeneratorSpec, tables, "the test"), base=folder).snapshot


def table_of(snapshot):
    return pq.read_table(snapshot.folder / "candidates")


def find_positions(table):
    lists = table.column("candidate_ids").to_pylist()
    wide = np.full((len(lists), max(len(row) for row in lists)), -1)
    for number, row in enumerate(lists):
        wide[number, : len(row)] = row
    return wide


def test_each_query_stores_the_first_candidates_that_leave_enough_survivors(shop):
    folder, survival = shop
    whole = find_positions(table_of(run(folder, name="whole")))
    snapshot = run(folder, overfetch={"at_least": 5, "survival": "survival"})
    table = table_of(snapshot)
    plan = plan_lengths(gather_survival(whole, survival), 5, 0.95)
    assert table.column("length").to_pylist() == plan.lengths.tolist()
    for row, full, length in zip(table.column("candidate_ids").to_pylist(), whole.tolist(), plan.lengths, strict=True):
        assert row == full[:length]
    assert len(set(plan.lengths.tolist())) > 5  # stored k varies by query
    measures = snapshot.manifest.measures
    assert measures["surplus_slots"] == plan.lengths.sum()
    assert measures["surplus_below"] == pytest.approx(1 - plan.probabilities.mean())
    assert (measures["recall"], measures["fill_rate"]) == (1.0, 1.0)
    assert set(table.column("reason").to_pylist()) == {None}
    facts = snapshot.manifest.overfetch
    assert facts["survival"] == {"attribute": "survival"}
    assert facts["lengths"]["longest"] == plan.lengths.max()


def test_queries_that_cannot_be_helped_are_listed_with_the_reason_and_what_to_expect(shop):
    folder, survival = shop
    snapshot = run(folder, k=8, overfetch={"at_least": 6, "survival": "survival"})
    listed = pq.read_table(snapshot.folder / "surplus" / "short.parquet").to_pylist()
    assert snapshot.manifest.measures["surplus_short"] == len(listed) > 0
    assert snapshot.manifest.overfetch["short"]["too_few_survive"] == len(listed)
    by_query = {row["query_id"]: row for row in table_of(snapshot).to_pylist()}
    for row in listed:
        candidates = by_query[row["query_id"]]["candidate_ids"]
        assert (row["reason"], row["stored"], len(candidates)) == ("too_few_survive", 8, 8)
        assert row["expected_survivors"] == pytest.approx(survival[candidates].sum())
        assert row["probability"] < 0.95


def test_a_list_of_all_there_is_keeps_its_reason_and_lowers_the_fill_rate(tmp_path):
    vectors = clustered(6, 4, seed=0).tolist()
    write_parquet(tmp_path / "items.parquet", list(range(6)), vectors, survival=[1.0] * 6)
    source = {"path": "items.parquet", "attributes": ["survival"]}
    asked = {"at_least": 6, "survival": "survival"}
    snapshot = run(tmp_path, k=8, items=source, checks={"k_above_items": "keep"}, overfetch=asked)
    assert set(table_of(snapshot).column("reason").to_pylist()) == {"too_few_eligible"}
    assert snapshot.manifest.measures["fill_rate"] == pytest.approx(5 / 8)
    assert snapshot.manifest.overfetch["short"]["too_few_candidates"] == 6


def test_advertisers_that_are_lost_together_take_more_slots(shop):
    folder, _ = shop
    apart = run(folder, overfetch={"at_least": 5, "survival": "survival"})
    together = run(
        folder, name="t", overfetch={"at_least": 5, "survival": "survival", "correlated_group": "advertiser"}
    )
    slots = [s.manifest.measures["surplus_slots"] for s in (apart, together)]
    assert slots[1] > slots[0]


def write_lookups(folder, survival, *, seed):
    rng = np.random.default_rng(seed)
    items = rng.integers(0, N - 20, 40_000)  # the last twenty are never seen
    table = pa.table({"item": items, "survived": rng.random(len(items)) < survival[items]})
    pq.write_table(table, folder / "lookups.parquet")


def test_survival_is_learned_from_a_log_of_look_ups(shop):
    folder, survival = shop
    write_lookups(folder, survival, seed=0)
    given = run(folder, overfetch={"at_least": 5, "survival": "survival"})
    learned = run(
        folder, name="l", overfetch={"at_least": 5, "log": "lookups.parquet", "smoothing_group": "advertiser"}
    )
    difference = np.subtract(*(table_of(s).column("length").to_numpy() for s in (given, learned)))
    assert np.abs(difference).mean() < 1.5
    facts = learned.manifest.overfetch["survival"]
    assert (facts["look_ups"], facts["unknown"], facts["unseen_items"]) == (40_000, 0, 20)


def test_a_smaller_probability_takes_fewer_slots(shop):
    folder, _ = shop
    likely, even = (
        run(folder, overfetch={"at_least": 5, "survival": "survival", "probability": p}) for p in (0.95, 0.5)
    )
    assert even.manifest.measures["surplus_slots"] < likely.manifest.measures["surplus_slots"]


def test_an_item_that_no_look_up_has_seen_is_held_to_be_like_its_group(tmp_path):
    vectors = clustered(40, 4, seed=0).tolist()
    brand = pa.array(["good" if n < 20 else "bad" for n in range(40)])
    write_parquet(tmp_path / "items.parquet", list(range(40)), vectors, brand=brand)
    write_parquet(tmp_path / "queries.parquet", [0], vectors[:1])
    seen = np.tile(np.r_[0:10, 20:30], 50)  # half of each kind
    pq.write_table(pa.table({"item": seen, "survived": seen < 20}), tmp_path / "lookups.parquet")
    sides = {"items": {"path": "items.parquet", "attributes": ["brand"]}, "queries": {"path": "queries.parquet"}}
    asked = {"at_least": 12, "log": "lookups.parquet"}
    plain, alike = (
        run(tmp_path, name=name, exclude_self=False, overfetch=asked | more, **sides)
        for name, more in (("plain", {}), ("alike", {"smoothing_group": "brand"}))
    )
    assert alike.manifest.measures["surplus_below"] < plain.manifest.measures["surplus_below"]


def test_a_changed_log_makes_a_new_snapshot_and_the_same_log_does_not(shop):
    folder, survival = shop
    asked = {"at_least": 5, "log": "lookups.parquet"}
    write_lookups(folder, survival, seed=0)
    first = run(folder, overfetch=asked)
    assert run(folder, overfetch=asked).name == first.name
    (folder / "lookups.parquet").rename(folder / "elsewhere.parquet")
    assert run(folder, overfetch=asked | {"log": "elsewhere.parquet"}).name != ""
    write_lookups(folder, survival, seed=1)
    second = run(folder, overfetch=asked)
    assert second.manifest.version > first.manifest.version


def test_a_table_of_a_given_size_goes_to_the_queries_with_traffic(shop):
    folder, survival = shop
    vectors = clustered(N, 16, seed=1).tolist()
    traffic = np.where(np.arange(N) % 4 == 0, 50.0, 1.0)
    write_parquet(folder / "queries.parquet", list(range(N)), vectors, traffic=traffic)
    queries = {"path": "queries.parquet", "weight": "traffic"}
    snapshot = run(folder, queries=queries, overfetch={"at_least": 5, "survival": "survival", "slots": 8})
    lengths = table_of(snapshot).column("length").to_numpy()
    assert lengths.sum() <= 8 * N
    assert lengths.min() >= 5
    assert lengths[traffic > 1].mean() > lengths[traffic == 1].mean() + 3
    plain = run(folder, name="plain", k=8, queries=queries)
    whole = gather_survival(find_positions(table_of(plain)), survival)
    fixed = np.average(1 - plan_lengths(whole, 5, 1.0).probabilities, weights=traffic)
    assert snapshot.manifest.measures["surplus_below"] < fixed / 2
    assert snapshot.manifest.overfetch["short"]["too_few_slots"] > 0
    assert snapshot.manifest.measures["recall"] == 1.0  # of what was planned


def test_a_surplus_table_is_published_and_looked_up_like_any_other(shop):
    folder, _ = shop
    snapshot = run(folder, overfetch={"at_least": 5, "survival": "survival"})
    nearcast.publish("ads", out=folder / "nearcast")
    served = nearcast.open(folder / "nearcast" / "store", "ads").get(7, k=K)
    assert list(served.ids) == table_of(snapshot).to_pylist()[7]["candidate_ids"]


def test_no_item_is_in_more_lists_than_it_may_be_and_recall_knows_of_it(shop):
    folder, _ = shop
    plain, capped = (
        run(folder, k=10),
        run(folder, name="c", k=10, exposure={"max_lists_per_item": 12, "candidates_per_query": 60}),
    )
    counts = [np.bincount(find_positions(table_of(s)).ravel() + 1, minlength=N + 1)[1:] for s in (plain, capped)]
    assert counts[0].max() > 12
    assert counts[1].max() == 12
    measures = capped.manifest.measures
    assert measures["recall"] == 1.0
    assert measures["exposure_full"] == np.count_nonzero(counts[1] == 12)
    assert measures["exposure_score_lost"] > 0
    assert measures["exposure_fill_lost"] == pytest.approx(1 - counts[1].sum() / (10 * N))


def test_a_list_that_the_exposure_cap_leaves_short_says_so(shop):
    folder, _ = shop
    snapshot = run(folder, k=10, exposure={"max_lists_per_item": 8, "candidates_per_query": 12})
    rows = table_of(snapshot).to_pylist()
    assert {row["reason"] for row in rows} == {None, "capped"}
    assert all((row["reason"] is None) == (row["length"] == 10) for row in rows)


def test_a_cap_and_a_surplus_work_together(shop):
    folder, _ = shop
    asked = {"at_least": 3, "survival": "survival"}
    snapshot = run(folder, k=15, exposure={"max_lists_per_item": 20, "candidates_per_query": 60}, overfetch=asked)
    lists = find_positions(table_of(snapshot))
    assert np.bincount(lists.ravel() + 1)[1:].max() <= 20
    assert snapshot.manifest.measures["recall"] == 1.0
    assert snapshot.manifest.measures["surplus_slots"] == np.count_nonzero(lists >= 0)


def causes(folder, snapshot, query):
    """The cause of every item, for one query."""
    home = folder / "nearcast" / snapshot.generator / "artifacts"
    return {item: explain(snapshot, home, query, item).cause for item in range(0, N, 3)}


def test_explain_tells_a_planned_end_from_what_the_join_has_missed(shop):
    folder, _ = shop
    snapshot = run(folder, overfetch={"at_least": 5, "survival": "survival"})
    whole = find_positions(table_of(run(folder, name="whole")))[150]
    stored = table_of(snapshot).to_pylist()[150]["candidate_ids"]
    assert len(stored) < K
    for item, cause in causes(folder, snapshot, 150).items():
        expected = "listed" if item in stored else "enough" if item in whole else "nearer"
        assert cause == ("itself" if item == 150 else expected)


def test_explain_names_the_exposure_cap_and_the_last_query_that_got_the_item(shop):
    folder, _ = shop
    snapshot = run(folder, k=10, exposure={"max_lists_per_item": 12, "candidates_per_query": N})
    lists = find_positions(table_of(snapshot))
    full = pq.read_table(snapshot.folder / "exposure" / "full.parquet").to_pylist()
    assert len(full) == snapshot.manifest.measures["exposure_full"]
    query = 150
    found = causes(folder, snapshot, query)
    assert set(found.values()) >= {"listed", "nearer", "exposed"}
    assert {item for item, cause in found.items() if cause == "listed"} == set(lists[query]) & set(found)
    home = folder / "nearcast" / "ads" / "artifacts"
    for item in [item for item, cause in found.items() if cause == "exposed"][:3]:
        row = next(row for row in full if row["item_id"] == item)
        assert item in lists[row["last_query"]]
        assert repr(row["last_query"]) in explain(snapshot, home, query, item).words


def test_explain_says_that_an_item_was_too_far_to_be_chosen_from(shop):
    folder, _ = shop
    snapshot = run(folder, k=10, exposure={"max_lists_per_item": 8, "candidates_per_query": 12})
    short = next(row["query_id"] for row in table_of(snapshot).to_pylist() if row["reason"] == "capped")
    assert set(causes(folder, snapshot, short).values()) <= {"itself", "listed", "exposed", "nearer"}


def test_an_exposure_cap_whose_candidates_do_not_fit_the_memory_gives_the_same_files(shop, monkeypatch):
    folder, _ = shop
    settings = {"k": 10, "exposure": {"max_lists_per_item": 12, "candidates_per_query": 40}}
    fits = run(folder, name="fits", **settings)
    monkeypatch.setattr(select_candidates, "CAP_BYTES", 1 << 40)
    monkeypatch.setattr(spill_exposure, "LARGEST_BLOCK", 700)
    spills = run(folder, name="spills", **settings)
    assert table_of(spills).equals(table_of(fits))
    full = [pq.read_table(snapshot.folder / "exposure" / "full.parquet") for snapshot in (fits, spills)]
    assert full[0].equals(full[1])
    assert all(fits.manifest.measures[one] == spills.manifest.measures[one] for one in fits.manifest.measures)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overfetch": {"at_least": 5}}, "write one of survival and log"),
        ({"overfetch": {"at_least": 5, "survival": "p", "log": "l"}}, "write one of survival and log"),
        ({"overfetch": {"at_least": 5, "survival": "p"}}, "overfetch names 'p'; add it to the attributes"),
        ({"overfetch": {"at_least": 50, "log": "l"}}, "overfetch.at_least is 50, and a list holds k = 40"),
        (
            {"overfetch": {"at_least": 5, "survival": "survival", "smoothing_group": "advertiser"}},
            "smoothing_group goes with a log",
        ),
        ({"overfetch": {"at_least": 5, "log": "l", "slots": 3}}, "3 slots per query cannot leave 5 survivors"),
        (
            {"exposure": {"max_lists_per_item": 3, "candidates_per_query": 20}},
            "exposure.candidates_per_query is 20: find at least k = 40",
        ),
        ({"overfetch": {"at_leats": 5}}, "did you mean 'at_least'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, words):
    with pytest.raises(SpecError, match=words):
        run(tmp_path, **settings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array(["often"] * 3), "holds string"),
        (pa.array([0.5, 1.5, 2.0]), "holds 1.5 for item 1, and 1 more are no probability"),
        (pa.array([0.5, None, 1.0]), "holds null for item 1"),
    ],
)
def test_survival_that_is_no_probability_names_the_item(tmp_path, values, words):
    write_parquet(tmp_path / "items.parquet", [0, 1, 2], clustered(3, 4, seed=0).tolist(), p=values)
    source = {"path": "items.parquet", "attributes": ["p"]}
    with pytest.raises(InputError, match=words):
        run(tmp_path, k=2, items=source, overfetch={"at_least": 1, "survival": "p"})


def test_a_log_that_is_not_there_stops_the_run_at_once(shop):
    folder, _ = shop
    with pytest.raises(InputError, match="which is not there"):
        run(folder, overfetch={"at_least": 5, "log": "none.parquet"})
    assert not list(folder.glob("nearcast/ads/artifacts/*"))


def test_the_same_inputs_give_the_same_bytes(shop):
    folder, survival = shop
    write_lookups(folder, survival, seed=0)
    asked = {"at_least": 4, "log": "lookups.parquet", "correlated_group": "advertiser", "slots": 12}
    made = [
        run(
            folder,
            name=name,
            threads=threads,
            exposure={"max_lists_per_item": 50, "candidates_per_query": 60},
            overfetch=asked,
        )
        for name, threads in (("a", 1), ("b", 2))
    ]
    hashes = [{str(p.relative_to(s.folder)): file_hash(p) for p in s.folder.rglob("*.parquet")} for s in made]
    assert hashes[0] == hashes[1]
    assert "surplus/short.parquet" in hashes[0]
