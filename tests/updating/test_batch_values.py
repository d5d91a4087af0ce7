"""What a batch of an update may hold: types of attributes, forms of removed ids, tables without rows."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from nearcast.errors import InputError
from nearcast.settings.spec_tables import SourceSpec
from nearcast.updating.fit_types import fit_types
from nearcast.updating.removed_ids import read_removed_ids

TEXT, NUMBER, SMALL, TIME = pa.string(), pa.float64(), pa.float32(), pa.timestamp("us")
DAY = datetime.date(2026, 11, 28)


def fit(values, kind, expected):
    table = pa.table({"column": pa.array(values, kind)})
    return fit_types(table, pa.schema([("column", expected)]), "items").column(0)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([5], pa.int64(), TEXT),
        ([5.0], NUMBER, TEXT),
        ([True], pa.bool_(), TEXT),
        ([DAY], pa.date32(), TEXT),
        ([b"a"], pa.binary(), TEXT),
        (["5"], TEXT, NUMBER),
        ([True], pa.bool_(), NUMBER),
        (["2026-11-28"], TEXT, TIME),
        ([[1]], pa.list_(pa.int64()), pa.list_(TEXT)),
        ([1.5], NUMBER, pa.int64()),
        ([1 << 40], pa.int64(), pa.int32()),
        ([0.1], NUMBER, SMALL),
    ],
)
def test_an_attribute_of_another_kind_or_that_does_not_fit_is_refused_by_name(values, kind, expected):
    with pytest.raises(InputError, match=r"'column' of the items is .* in the served version; write it as"):
        fit(values, kind, expected)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", None], pa.large_string(), TEXT),
        ([5, None], pa.int32(), pa.int64()),
        ([5.0, None], NUMBER, pa.int64()),
        ([0.5, float("nan"), None], NUMBER, SMALL),
        ([5], pa.int64(), NUMBER),
        ([None], pa.null(), TEXT),
        ([None], NUMBER, TEXT),
        ([DAY], pa.date32(), TIME),
        ([["a"]], pa.list_(pa.large_string()), pa.list_(TEXT)),
    ],
)
def test_an_attribute_of_another_width_is_taken(values, kind, expected):
    fitted = fit(values, kind, expected)
    assert fitted.type == expected
    plain = [value.date() if isinstance(value, datetime.datetime) else value for value in fitted.to_pylist()]
    assert str(plain) == str(values) or plain == values  # NaN is not itself, and 5 is 5.0


def read(data):
    return read_removed_ids(SourceSpec(path="-"), pa.large_string(), data).to_pylist()


@pytest.mark.parametrize(
    "data",
    [
        pa.table({"id": ["b", "a", "b"]}),
        pa.array(["b", "a"]).dictionary_encode(),
        pd.DataFrame({"id": ["b", "a"]}),
        pd.Series(["b", "a"]),
        pl.DataFrame({"id": ["b", "a"]}),
        pl.Series(["b", "a"]),
        np.array(["b", "a"]),
        {"b", "a"},
        iter(["b", "a"]),
    ],
)
def test_removed_ids_come_as_any_table_column_or_collection(data):
    assert read(data) == ["a", "b"]


@pytest.mark.parametrize("data", [[], (), pd.Series([]), pd.DataFrame(), pa.table({}), pa.table({"id": pa.nulls(0)})])
def test_no_removed_ids_may_have_any_type(data):
    assert read(data) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["a", 3], "not of one type"),
        ([3], "write one type"),
        (["a", None], "1 ids are null"),
        (pd.DataFrame({"sku": ["a"]}), "no column 'id'; the columns are sku"),
        ({"a": 1}, "must be ids or a file"),
        ([1.5], "ids are strings or integers"),
    ],
)
def test_what_is_no_collection_of_ids_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        read(data)
