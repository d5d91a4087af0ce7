"""Attributes are read by position, whatever files, row groups and rows without a vector there are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from builders import generator, ingested, source_spec, write_parquet
from nearcast.sources import write_range
from nearcast.sources.attribute_rows import read_attribute_range, take_attributes
from nearcast.sources.ingest import read_attributes
from nearcast.sources.open_source import open_source


@pytest.fixture(params=["every row has a vector", "some rows have none"])
def table(request, tmp_path, monkeypatch):
    monkeypatch.setattr(write_range, "ATTRIBUTE_FILE_ROWS", 64)
    monkeypatch.setattr(write_range, "ATTRIBUTE_GROUP_ROWS", 16)
    n = 150
    order = np.random.default_rng(0).permutation(n)
    ids = [f"i{int(number):04d}" for number in order]
    vectors = [[float(number), 1.0] for number in order]
    if request.param == "some rows have none":
        vectors = [None if number % 7 == 3 else vector for number, vector in zip(order, vectors, strict=True)]
    brand = pa.array([f"b{number % 5}" if number % 11 else None for number in order]).dictionary_encode()
    tags = pa.array([[int(number), int(number) % 3] for number in order])
    path = write_parquet(tmp_path / "items.parquet", ids, vectors, brand=brand, tags=tags)
    spec = generator(checks={"null_vector": "keep"})
    source = open_source(source_spec(path, attributes=("brand", "tags")), tmp_path)
    return ingested(source, tmp_path / "table", spec=spec)


@pytest.mark.parametrize("rows", [(0, 1), (0, 0), (3, 40), (15, 17), (60, 128)])
def test_a_range_of_positions_is_what_the_whole_table_holds_there(table, rows):
    whole = read_attributes(table, ["tags", "brand"])
    part = read_attribute_range(table, ["tags", "brand"], *rows)
    assert part.column_names == ["id", "tags", "brand"]
    assert part.to_pylist() == whole.slice(rows[0], rows[1] - rows[0]).to_pylist()


def test_positions_in_any_order_and_more_than_once(table):
    whole = read_attributes(table, ["brand"])
    positions = np.array([127, 3, 3, 64, 0, 17, 127])
    assert take_attributes(table, ["brand"], positions).to_pylist() == whole.take(pa.array(positions)).to_pylist()


def test_no_positions_give_no_rows_with_the_columns_asked_for(table):
    nothing = take_attributes(table, ["brand"], np.empty(0, np.int64))
    assert (nothing.column_names, len(nothing)) == (["id", "brand"], 0)
