"""Equal rows of two tables: found in one native pass, they are those that a search finds."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.kernels import isa
from nearcast.kernels.match_rows import can_match, find_equal_rows, gather_texts, match_texts
from nearcast.sources.ids import find_sorted, take_ids

native = pytest.mark.skipif(not can_match(), reason="without native kernels ids are searched for")
TEXTS = st.lists(st.text(st.sampled_from("abé\0\U0001f600"), max_size=3), unique=True, max_size=12)


def split(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets or bytes(8), np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return offsets, np.frombuffer(data or b"", np.uint8)


@native
@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, st.integers(0, 3))
def test_a_merge_of_sorted_texts_finds_what_a_search_finds(mine, theirs, skipped):
    texts, others = (
        pa.array(sorted(each, key=lambda text: text.encode()), pa.large_string())[skipped:] for each in (mine, theirs)
    )
    np.testing.assert_array_equal(match_texts(split(texts), split(others)), find_sorted(texts, others))


@native
def test_offsets_beyond_the_texts_are_refused():
    good = np.array([0, 1, 2]), np.zeros(2, np.uint8)
    for bad in ([0, 1, 3], [-1, 1, 2], [1, 0, 2], []):
        for texts in (((np.array(bad, np.int64), good[1]), good), (good, (np.array(bad, np.int64), good[1]))):
            with pytest.raises(ValueError, match="offsets"):
                match_texts(*texts)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 11), max_size=20), st.integers(0, 3))
def test_ids_are_taken_as_arrow_takes_them(texts, drawn, skipped):
    ids = pa.array(texts, pa.large_string())[skipped:]
    positions = np.array([at for at in drawn if at < len(ids)], np.int64)
    found = take_ids(positions, ids)
    found.validate(full=True)
    assert found.to_pylist() == ids.take(pa.array(positions)).to_pylist()
    numbers = pa.array(range(12))
    assert take_ids(positions, numbers).to_pylist() == positions.tolist()


@native
def test_positions_beyond_the_texts_are_refused():
    texts = np.array([0, 1, 2]), np.zeros(2, np.uint8)
    for bad in ([2], [-1]):
        with pytest.raises(ValueError, match="no such texts"):
            gather_texts(texts, np.array(bad))
    with pytest.raises(ValueError, match="offsets"):
        gather_texts((np.array([0, 1, 3]), texts[1]), np.array([0]))


@native
def test_texts_of_2_gib_are_left_to_arrow():
    texts = np.array([0, 1 << 20]), np.zeros(1 << 20, np.uint8)
    assert gather_texts(texts, np.zeros(2_048, np.int64)) is None


@pytest.mark.parametrize("variant", ["", isa.NUMPY])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_rows_are_equal_bit_for_bit(monkeypatch, variant, dtype):
    monkeypatch.setenv(isa.ISA_VARIABLE, variant)
    others = np.arange(12).reshape(4, 3).astype(dtype)
    rows = others[[2, 0, 1, 3]].copy()
    rows[1, 2] += 1
    matches = np.array([2, 0, -1, 3])
    assert find_equal_rows(rows, others, matches).tolist() == [True, False, False, True]
    assert find_equal_rows(rows[:0], others, matches[:0]).tolist() == []


def test_zeros_of_another_sign_are_another_vector_and_a_nan_is_itself():
    rows = np.array([[0.0, np.nan], [1.0, 2.0]], np.float32)
    others = np.array([[-0.0, np.nan], [0.0, np.nan]], np.float32)
    assert find_equal_rows(rows[[0, 0]], others, np.array([0, 1])).tolist() == [False, True]


@native
def test_matches_beyond_the_rows_are_refused():
    rows = np.zeros((2, 4), np.uint8)
    for matches in ([0, 2], [-2, 0]):
        with pytest.raises(ValueError, match="no such rows"):
            find_equal_rows(rows, rows, np.array(matches))
    with pytest.raises(ValueError, match="sizes"):
        find_equal_rows(rows, rows[:, :3], np.array([0, 1]))
