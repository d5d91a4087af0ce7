"""A mapping whose next state shares with it what has not changed, held to a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.sharing import BUCKETS, SharingMap

KEYS = st.integers(0, 5) | st.integers(0, 3).map(lambda n: n * BUCKETS) | st.sampled_from("abc") | st.tuples(st.just(1))
STEPS = st.lists(st.tuples(st.sampled_from(["set", "pop", "finish"]), KEYS, st.integers(0, 9)), max_size=30)


@given(STEPS)
def test_every_state_is_what_a_dictionary_was_then_and_stays_so(steps):
    states, plain = [(SharingMap(), {})], {}
    edit = states[0][0].edit()
    for step, key, value in steps:
        if step == "set":
            edit[key] = plain[key] = value
        elif step == "pop":
            assert edit.pop(key, None) == plain.pop(key, None)
        else:
            states.append((edit.finish(), dict(plain)))
        assert (len(edit), edit.get(key)) == (len(plain), plain.get(key))
    states.append((edit.finish(), plain))
    for state, expected in states:
        assert state == expected
        assert (len(state), sorted(state, key=repr)) == (len(expected), sorted(expected, key=repr))
        assert all(key in state and state[key] == value for key, value in expected.items())
        assert state.edit().finish() == expected


def test_what_is_not_there_is_a_key_error_and_copies_nothing():
    edit = SharingMap().edit()
    with pytest.raises(KeyError, match="b"):
        del edit["b"]
    with pytest.raises(KeyError, match="b"):
        edit.finish()["b"]
    assert "b" not in edit.finish()


def test_ids_that_are_multiples_of_something_are_spread():
    edit = SharingMap().edit()
    for number in range(BUCKETS):
        edit[number * 4096] = None
    fullest = max(map(len, edit.finish()._buckets))
    assert fullest <= 16
