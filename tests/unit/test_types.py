from __future__ import annotations

import numpy as np
import pytest

from nearcast.types import ArrayVectors, FileVectors, Metric, Neighbors, no_progress


def saved(tmp_path, array):
    np.save(tmp_path / "vectors.npy", array)
    return FileVectors.open(tmp_path / "vectors.npy")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8"])
def test_vectors_in_a_file_read_as_those_in_memory(tmp_path, dtype):
    array = np.arange(12).reshape(4, 3).astype(dtype)
    for vectors in (saved(tmp_path, array), ArrayVectors(array)):
        assert (vectors.n, vectors.dim, vectors.dtype) == (4, 3, np.dtype(dtype))
        assert vectors.read(1, 3).tolist() == array[1:3].tolist()
        assert vectors.read(0, 4).dtype == np.dtype(dtype)


def test_taken_rows_come_in_the_order_asked_for_and_may_repeat(tmp_path):
    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    wanted = np.array([3, 0, 3, 1])
    assert saved(tmp_path, array).take(wanted).tolist() == array[wanted].tolist()
    assert ArrayVectors(array).take(wanted).tolist() == array[wanted].tolist()


def test_taking_nothing_gives_no_rows(tmp_path):
    array = np.ones((4, 2), np.float32)
    assert saved(tmp_path, array).take(np.empty(0, np.int64)).shape == (0, 2)


def test_a_file_without_vectors_can_be_opened_and_read(tmp_path):
    vectors = saved(tmp_path, np.empty((0, 5), np.float16))
    assert (vectors.n, vectors.dim) == (0, 5)
    assert vectors.read(0, 0).shape == (0, 5)
    assert vectors.take(np.empty(0, np.int64)).shape == (0, 5)


def test_what_is_read_from_a_file_is_a_copy_that_may_be_changed(tmp_path):
    vectors = saved(tmp_path, np.zeros((2, 2), np.float32))
    block = vectors.read(0, 2)
    block[:] = 7
    assert vectors.read(0, 2).tolist() == [[0, 0], [0, 0]]


def test_lengths_count_the_filled_slots():
    neighbors = Neighbors(np.array([[4, 2], [1, -1], [-1, -1]]), np.zeros((3, 2), np.float32))
    assert neighbors.lengths.tolist() == [2, 1, 0]


def test_empty_neighbors_hold_empty_slots_only():
    empty = Neighbors.empty(2, 3)
    assert empty.positions.tolist() == [[-1] * 3] * 2
    assert empty.scores.tolist() == [[-np.inf] * 3] * 2
    assert (empty.positions.dtype, empty.scores.dtype) == (np.int64, np.float32)


def test_metrics_are_written_as_in_a_spec():
    assert [str(metric) for metric in Metric] == ["inner_product", "cosine", "l2"]


def test_progress_may_be_reported_to_nobody():
    assert no_progress("join", 1, 2) is None
