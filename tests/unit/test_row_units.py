"""Units of a source: every row is in one of them, in order, however the source is stored."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import source_spec, table, write_parquet
from nearcast.errors import InputError
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.row_units import cut_units

N = 97


def rows(n=N, first=0):
    return table(
        [f"id-{i}" for i in range(first, first + n)], [[i, 1] for i in range(first, first + n)], price=list(range(n))
    )


def in_memory(folder):
    return table_source(source_spec(attributes=("price",)), rows(), "items")


def one_file(folder):
    pq.write_table(rows(), folder / "items.parquet", row_group_size=10)
    return open_source(source_spec(attributes=("price",)), folder)


def several_files(folder):
    for number, size in enumerate((3, 50, 4, 40)):
        path = folder / "parts" / f"country={number}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(rows(size, (0, 3, 53, 57)[number]), path, row_group_size=7)
    return open_source(source_spec("parts", attributes=("country",)), folder)


def npy_with_ids(folder):
    np.save(folder / "vectors.npy", np.array(rows()["vector"].to_pylist(), np.float32))
    pq.write_table(rows().drop(["vector"]), folder / "ids.parquet")
    return open_source(source_spec("vectors.npy", ids="ids.parquet", attributes=("price",)), folder)


SOURCES = [in_memory, one_file, several_files, npy_with_ids]


def read(source, spans, memory_bytes=1 << 20):
    batches = list(source.batches(vectors=True, attributes=True, memory_bytes=memory_bytes, spans=spans))
    return [
        row
        for batch in batches
        for row in zip(batch.ids.to_pylist(), batch.vectors.to_pylist(), batch.attributes.to_pylist(), strict=True)
    ]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("unit_rows", [1, 10, 25, N, 1 << 20])
def test_the_units_of_a_source_hold_its_rows_in_order(make, unit_rows, tmp_path):
    source = make(tmp_path)
    units = cut_units(source, unit_rows)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert sum(unit.n_rows for unit in units) == source.n_rows
    together = [row for unit in units for row in read(source, unit.spans)]
    assert together == read(source, None)
    largest = max((rows for part in source.parts for rows in part.groups), default=1)
    assert all(unit.n_rows <= max(unit_rows, largest) for unit in units)


def test_small_files_share_a_unit_and_a_large_file_has_several(tmp_path):
    source = several_files(tmp_path)
    assert [len(unit.spans) for unit in cut_units(source, 60)] == [3, 1]
    assert [[(span.part, span.start, span.stop) for span in unit.spans] for unit in cut_units(source, 20)] == [
        [(0, 0, 3), (1, 0, 14)],
        [(1, 14, 28)],
        [(1, 28, 42)],
        [(1, 42, 50), (2, 0, 4), (3, 0, 7)],
        [(3, 7, 21)],
        [(3, 21, 40)],
    ]


def test_wide_rows_make_units_of_fewer_rows(tmp_path):
    source = one_file(tmp_path)
    assert len(cut_units(source, unit_bytes=20 * source.row_bytes)) == 5


def test_a_source_without_rows_has_one_unit_without_rows():
    source = table_source(source_spec(), rows(0).cast(rows().schema), "items")
    assert [unit.n_rows for unit in cut_units(source)] == [0]


def test_a_unit_of_a_file_that_was_replaced_is_not_read(tmp_path):
    source = several_files(tmp_path)
    units = cut_units(source, 20)
    path = tmp_path / "parts" / "country=1" / "part.parquet"
    pq.write_table(rows(50, 3), path)
    with pytest.raises(InputError, match=r"part\.parquet changed while it was read"):
        read(source, units[2].spans)
    assert len(read(source, units[-1].spans)) == 19  # of another file


def test_ids_alone_are_read_in_large_batches(tmp_path):
    write_parquet(tmp_path / "items.parquet", list(range(5000)), list(np.ones((5000, 300), np.float32)))
    source = open_source(source_spec(), tmp_path)
    counts = [
        len(list(source.batches(vectors=vectors, attributes=False, memory_bytes=1 << 20))) for vectors in (False, True)
    ]
    assert counts[0] < counts[1]
    assert pa.concat_arrays(
        [batch.ids for batch in source.batches(vectors=False, attributes=False, memory_bytes=1 << 20)]
    ).to_pylist() == list(range(5000))
