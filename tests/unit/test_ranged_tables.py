"""A table in several id ranges answers as the same table in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import DamagedError
from nearcast.sources import ids as ids_module
from nearcast.sources.ids import find_positions, find_sorted, read_id_chunks, read_ids, write_ids
from nearcast.sources.ranged_table import IdRanges, RangedIds, RangedVectors

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(max_size=5)


@st.composite
def cut_tables(draw):
    """Sorted ids, the places where ranges begin, and keys to look for."""
    kind, ids = draw(
        st.sampled_from([(pa.int64(), INTEGERS), (pa.large_string(), TEXTS), (pa.int64(), st.integers(0, 40))])
    )
    values = sorted(draw(st.sets(ids, max_size=40)))
    bounds = sorted(draw(st.sets(ids, max_size=5)))
    keys = draw(st.lists(ids | st.sampled_from(values) if values else ids, max_size=20))
    return pa.array(values, kind), pa.array(bounds, kind), pa.array(keys, kind)


def write_ranges(folder: Path, ids: pa.Array, bounds: pa.Array) -> tuple[IdRanges, np.ndarray]:
    """Store ids in ranges, each with vectors that tell their positions."""
    vectors = np.arange(len(ids) * 3, dtype=np.float32).reshape(-1, 3)
    ranges = IdRanges((), bounds, np.empty(0, np.int64), np.empty(0, np.int64), lambda name: folder / name)
    edges = ranges.split(ids)
    names = [f"{number:05d}" for number in range(len(edges) - 1)]
    for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True):
        (folder / name).mkdir(parents=True)
        write_ids(folder / name / "ids.arrow", ids[int(start) : int(stop)])
        np.save(folder / name / "vectors.npy", vectors[start:stop])
    counts = np.diff(edges)
    return IdRanges(tuple(names), bounds, counts, counts, lambda name: folder / name), vectors


@given(case=cut_tables(), data=st.data())
def test_ids_and_vectors_of_ranges_are_those_of_one_array(case, data, tmp_path_factory):
    ids, bounds, keys = case
    folder = tmp_path_factory.mktemp("ranges")
    ranges, vectors = write_ranges(folder, ids, bounds)
    ranged, over = RangedIds(ranges, ranges.vectors, "ids.arrow"), RangedVectors(ranges, 3, vectors.dtype, folder)
    assert (len(ranged), ranged.type, ranged.to_pylist()) == (len(ids), ids.type, ids.to_pylist())
    assert find_positions(keys, ranged).tolist() == find_positions(keys, ids).tolist()
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids)))))
    assert ranged[start:stop].equals(ids[start:stop])
    assert ranged.slice(start, stop - start).equals(ids.slice(start, stop - start))
    assert ranged.slice().equals(ids)
    assert np.array_equal(over.read(start, stop), vectors[start:stop])
    assert np.array_equal(over.whole(), vectors)
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=9)) if len(ids) else []
    positions = np.array(rows, np.int64)
    assert ranged.take(pa.array(positions)).equals(ids.take(pa.array(positions)))
    assert np.array_equal(over.take(positions), vectors[positions])
    for row in rows[:2]:
        assert ranged[row].as_py() == ids[row].as_py()
        assert ranged[row - len(ids)].as_py() == ids[row].as_py()


@given(case=cut_tables())
def test_sorted_ids_are_searched_alike_by_halving_by_hashing_and_in_their_order(case):
    ids, _, keys = case
    few = find_sorted(keys[:1], ids)
    assert few.tolist() == find_positions(keys[:1], ids).tolist()
    assert find_sorted(keys, ids).tolist() == find_positions(keys, ids).tolist()
    with pytest.MonkeyPatch.context() as large:
        large.setattr(ids_module, "LONG_ID_BYTES", 0)
        assert find_sorted(keys, ids).tolist() == find_positions(keys, ids).tolist()


def test_few_keys_are_found_among_many_strings():
    ids = pa.array(sorted(f"id-{number}é" for number in range(0, 4000, 2)), pa.large_string())
    keys = pa.array(["id-2é", "id-3é", "", "zzz", "id-1998é"], pa.large_string())
    assert find_sorted(keys, ids).tolist() == find_positions(keys, ids).tolist()


def test_only_the_ranges_that_are_needed_are_opened(tmp_path):
    ids, bounds = pa.array(range(100), pa.int64()), pa.array([20, 40, 60, 80], pa.int64())
    ranges, _ = write_ranges(tmp_path, ids, bounds)
    opened = []

    def open_range(name):
        opened.append(name)
        return tmp_path / name

    lazy = IdRanges(ranges.names, bounds, ranges.vectors, ranges.listed, open_range)
    ranged, vectors = RangedIds(lazy, lazy.vectors, "ids.arrow"), RangedVectors(lazy, 3, np.dtype("f4"), tmp_path)
    assert (len(ranged), vectors.n, ranged.type, opened) == (100, 100, pa.int64(), [])
    assert ranged.find(pa.array([45, 59, -3])).tolist() == [45, 59, -1]
    assert opened == ["00000", "00002"]
    assert vectors.read(81, 99).shape == (18, 3)
    assert opened == ["00000", "00002", "00004"]


def test_ids_in_ranges_are_written_as_those_of_one_array_are_read(tmp_path, monkeypatch):
    ids, bounds = pa.array([f"id-{n:03}" for n in range(100)], pa.large_string()), ["id-020", "id-077"]
    ranges, _ = write_ranges(tmp_path / "ranges", ids, pa.array(bounds, pa.large_string()))
    monkeypatch.setattr("nearcast.sources.ids.IDS_AT_ONCE", 30)
    write_ids(tmp_path / "ids.arrow", RangedIds(ranges, ranges.vectors, "ids.arrow"))
    assert read_ids(tmp_path / "ids.arrow").equals(ids)
    assert read_id_chunks(tmp_path / "ids.arrow").num_chunks == 4


def test_a_position_outside_the_table_is_an_error(tmp_path):
    ranges, _ = write_ranges(tmp_path, pa.array([1, 2, 3], pa.int64()), pa.array([2], pa.int64()))
    ranged = RangedIds(ranges, ranges.vectors, "ids.arrow")
    for position in (3, -4):
        with pytest.raises(IndexError):
            ranged[position]
    with pytest.raises(IndexError):
        ranged.take(pa.array([0, 3]))


def test_a_range_that_was_cut_is_damaged(tmp_path):
    ranges, _ = write_ranges(tmp_path, pa.array([1, 2, 3], pa.int64()), pa.array([2], pa.int64()))
    for name in ("ids.arrow", "vectors.npy"):
        path = tmp_path / "00001" / name
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"ids\.arrow"):
        RangedIds(ranges, ranges.vectors, "ids.arrow").find(pa.array([2, 3]))
    with pytest.raises(DamagedError, match=r"vectors\.npy"):
        RangedVectors(ranges, 3, np.dtype("f4"), tmp_path).read(0, 3)
