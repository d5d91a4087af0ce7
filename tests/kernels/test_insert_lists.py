"""Candidates that enter lists in the bytes of a store: the lists that a merge of all candidates gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.kernels import isa
from nearcast.kernels.insert_lists import EncodedIds, Entrants, can_insert, insert_candidates
from nearcast.stores.value_format import INT64, STRING, UINT32, encode_lists, encode_texts

NO_NUMBERS, NO_TEXTS = np.empty(0, np.int64), np.empty(0, np.uint8)


def make_ids(numbers, kind):
    """Return ids in the order of the numbers: themselves, or texts of other lengths."""
    if kind == INT64:
        return pa.array([number - 500 for number in numbers], pa.int64())
    return pa.array(numbers, pa.int64()) if kind == UINT32 else pa.array([f"{n:04d}{'é' * (n % 3)}" for n in numbers])


def encode(ids, kind):
    if kind != STRING:
        return EncodedIds(kind, ids.to_numpy(), np.zeros(1, np.uint64), NO_TEXTS)
    offsets, texts = encode_texts(ids)
    return EncodedIds(kind, NO_NUMBERS, offsets.astype(np.uint64), np.frombuffer(texts, np.uint8))


def to_values(lists, kind):
    """Encode lists of (minus score, number)."""
    offsets = np.append(0, np.cumsum([len(part) for part in lists])).astype(np.int32)
    ids = make_ids([number for part in lists for _, number in part], kind)
    scores = pa.array([-score for part in lists for score, _ in part], pa.float32())
    arrays = [pa.ListArray.from_arrays(offsets, part) for part in (ids, scores)]
    return encode_lists(*arrays, [None] * len(lists), kind)


@st.composite
def cases(draw):
    """Stored lists of k, and entrants of each: even and odd numbers, with many equal scores."""
    k = draw(st.integers(1, 6))
    lists, entrants = [], []
    for _ in range(draw(st.integers(0, 5))):
        numbers = draw(st.lists(st.integers(0, 20), min_size=k, max_size=k, unique=True))
        lists.append(sorted((-draw(st.integers(-2, 2)), 2 * number) for number in numbers))
        fresh = draw(st.lists(st.integers(0, 9), max_size=8, unique=True))
        entrants.append([(-draw(st.integers(-2, 2)), number) for number in fresh])
    return k, lists, entrants


@pytest.mark.parametrize("kind", [UINT32, INT64, STRING])
@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_lists_are_the_best_of_stored_and_new_candidates(kind, case):
    k, lists, entering = case
    starts = np.append(0, np.cumsum([len(part) for part in entering])).astype(np.uint64)
    flat = [pair for part in entering for pair in part]
    entrants = Entrants(
        starts, np.array([n for _, n in flat], np.uint32), np.array([-score for score, _ in flat], np.float32)
    )
    ids = encode(make_ids([2 * number + 1 for number in range(10)], kind), kind)
    before = to_values(lists, kind)
    expected = [sorted(old + [(s, 2 * n + 1) for s, n in new])[:k] for old, new in zip(lists, entering, strict=True)]
    after = to_values(expected, kind)
    new = insert_candidates(before, entrants, ids, k, 2)
    changed = [row for row, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert (new.rows.tolist(), new.values) == (changed, [after[row] for row in changed])
    assert new.last.tolist() == [-part[-1][0] for part in expected]
    assert len(new.other) == 0


@pytest.mark.parametrize("kind", [UINT32, STRING])
def test_what_is_no_full_list_is_left_to_the_caller(kind):
    full = to_values([[(-2, 2), (-1, 4)]], kind)[0]
    short = to_values([[(-2, 2)]], kind)[0]
    longer = to_values([[(-2, 2), (-1, 4), (0, 6)]], kind)[0]
    values = [b"", full[:-1], short, longer, full[:1] + b"\x01" + full[2:], b"\xff" + full[1:], full]
    entrants = Entrants(np.arange(8, dtype=np.uint64), np.zeros(7, np.uint32), np.full(7, 9, np.float32))
    new = insert_candidates(values, entrants, encode(make_ids([1], kind), kind), 2, 1)
    assert new.other.tolist() == [0, 1, 2, 3, 4, 5]
    assert new.rows.tolist() == [6]


def test_ids_that_a_list_cannot_hold_and_machines_without_kernels_are_left_to_the_caller(monkeypatch):
    texts = pa.array(["a", "b" * 70_000])
    assert not can_insert(encode(texts, STRING))
    assert can_insert(encode(texts[:1], STRING))
    monkeypatch.setenv(isa.ISA_VARIABLE, "numpy")
    assert not can_insert(encode(texts[:1], STRING))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"starts": [0, 99]}, "starts"),
        ({"entrant_starts": [0, 2]}, "entrant_starts"),
        ({"items": [5]}, "items"),
        ({"kind": 3}, "kind"),
        ({"k": 0}, "k must"),
        ({"offsets": [3, 1]}, "offsets"),
        ({"scores": [np.nan]}, "score is NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, words):
    data = np.frombuffer(to_values([[(-1, 2)]], UINT32)[0], np.uint8)
    given_arrays = {"starts": [0, len(data)], "entrant_starts": [0, 1], "items": [0], "kind": UINT32, "k": 1}
    rest = given_arrays | {"offsets": [0], "scores": [0.0]} | changes
    with pytest.raises(ValueError, match=words):
        isa.native().insert_candidates(
            data,
            np.array(rest["starts"], np.uint64),
            np.array(rest["entrant_starts"], np.uint64),
            np.array(rest["items"], np.uint32),
            np.array(rest["scores"], np.float32),
            rest["kind"],
            np.array([7], np.int64),
            np.array(rest["offsets"], np.uint64),
            NO_TEXTS,
            rest["k"],
            1,
        )
