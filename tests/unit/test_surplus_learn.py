"""Survival learned from look-ups: who speaks for himself, who is held to be like his group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.errors import InputError
from nearcast.overfetch.survival import learn_survival, shrink
from nearcast.overfetch.survival_log import read_counts


def counts(*pairs):
    survived, seen = zip(*pairs, strict=True)
    return np.array(survived), np.array(seen)


def test_an_item_seen_often_keeps_its_own_rate_and_one_seen_once_takes_its_groups():
    survived, seen = counts((90, 100), (85, 100), (10, 100), (12, 100), (8, 100), (900, 1000), (0, 1), (0, 0))
    groups = np.array([0, 0, 1, 1, 1, 0, 0, 1])
    learned = learn_survival(survived, seen, groups)
    assert learned.survival[5] == pytest.approx(0.9, abs=0.01)
    assert learned.survival[6] > 0.6  # one failure of a member of a group that survives
    assert learned.survival[7] == pytest.approx(0.1, abs=0.08)


def test_items_that_differ_by_chance_alone_are_held_to_be_the_same():
    rng = np.random.default_rng(0)
    seen = rng.integers(1, 40, 2000)
    learned = learn_survival(rng.binomial(seen, 0.3), seen)
    assert learned.item_strength > 200
    assert np.ptp(learned.survival) < 0.15


def test_the_strength_is_that_of_the_distribution_rates_are_drawn_from():
    rng = np.random.default_rng(1)
    seen = rng.integers(5, 200, 4000)
    rates = rng.beta(0.3 * 8, 0.7 * 8, len(seen))
    survived = rng.binomial(seen, rates)
    found, strength = shrink(survived, seen, np.full(len(seen), 0.3))
    assert strength == pytest.approx(8, rel=0.15)
    raw = survived / seen
    assert np.mean((found - rates) ** 2) < np.mean((raw - rates) ** 2)


def test_without_a_single_look_up_nobody_knows():
    assert learn_survival(np.zeros(3, int), np.zeros(3, int)).survival.tolist() == [0.5] * 3


def test_items_without_a_group_are_drawn_to_the_overall_rate():
    survived, seen = counts((50, 100), (50, 100), (0, 0))
    learned = learn_survival(survived, seen, np.array([0, 0, -1]))
    assert learned.survival[2] == pytest.approx(0.5, abs=0.01)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(-1, 3)), min_size=1, max_size=30))
def test_a_learned_rate_is_a_probability_and_never_a_certainty(rows):
    survived = np.array([min(a, b) for a, b, _ in rows])
    seen = np.array([max(a, b) for a, b, _ in rows])
    learned = learn_survival(survived, seen, np.array([g for *_, g in rows]))
    assert ((learned.survival > 0) & (learned.survival < 1)).all()


def test_more_survivors_than_look_ups_are_refused():
    with pytest.raises(InputError, match="item 1 survived 3 of 2 look-ups"):
        learn_survival(np.array([0, 3]), np.array([1, 2]))


def write_log(path, items, survived):
    pq.write_table(
        pa.table({"item": items, "survived": pa.array(survived, pa.bool_()), "store": [7] * len(items)}), path
    )
    return path


def test_a_log_is_counted_item_by_item(tmp_path):
    log = write_log(tmp_path / "lookups.parquet", ["b", "a", "b", "gone"], [True, False, False, True])
    found = read_counts(log, pa.array(["a", "b", "c"]))
    assert (found.survived.tolist(), found.seen.tolist(), found.unknown) == ([0, 1, 0], [1, 2, 0], 1)


def test_a_log_may_be_a_folder_and_its_ids_of_another_width(tmp_path):
    write_log(tmp_path / "1.parquet", pa.array([5, 5], pa.int32()), [True, True])
    write_log(tmp_path / "2.parquet", pa.array([5], pa.int32()), [False])
    found = read_counts(tmp_path, pa.array([5, 9], pa.int64()))
    assert (found.survived.tolist(), found.seen.tolist()) == ([2, 0], [3, 0])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"item": ["a"]}, "has no column 'survived'; it has item"),
        ({"item": ["a"], "survived": [1]}, "column 'survived' of .* holds int64; write true or false"),
        ({"item": [1], "survived": [True]}, "column 'item' of .* holds int64, and the items' ids are string"),
        ({"item": ["a"], "survived": pa.array([None], pa.bool_())}, "look-ups with survived null"),
    ],
)
def test_a_log_that_cannot_be_counted_says_why(tmp_path, table, words):
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=words):
        read_counts(tmp_path / "log.parquet", pa.array(["a"]))


def test_a_log_that_is_missing_or_no_parquet_says_so(tmp_path):
    with pytest.raises(InputError, match=r"which is not there"):
        read_counts(tmp_path / "none.parquet", pa.array(["a"]))
    (tmp_path / "text.parquet").write_text("item,survived\n")
    with pytest.raises(InputError, match="is no Parquet"):
        read_counts(tmp_path / "text.parquet", pa.array(["a"]))
