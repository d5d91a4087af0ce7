"""A column of items that is shown is published and read back whatever its type, or refused by name before the join."""

from __future__ import annotations

import pyarrow as pa
import pytest
from tests.expansion.test_columns_of_ads import KEPT, REFUSED

import nearcast
from nearcast.errors import InputError
from nearcast.service.responses import encode

VECTORS = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
FAR = pa.array([2**31 - 1, None, None], pa.date32())  # the date "infinity" of databases
FAR_NESTED = pa.array([[{"on": 2**62}], None, None], pa.list_(pa.struct([("on", pa.timestamp("us"))])))
MORE = {"a day after 9999": (FAR, ""), "a nested time after 9999": (FAR_NESTED, "")}
UNSTORABLE = (*MORE, "interval", "union", "a time after 9999", "text that is not UTF-8")


def run_with(monkeypatch, folder, columns):
    monkeypatch.chdir(folder)
    items = pa.table({"id": ["a", "b", "c"], "vector": pa.array(VECTORS, pa.list_(pa.float32())), **columns})
    spec = {"name": "shop", "metric": "cosine", "k": 2, "items": {"path": "-", "display": list(columns)}}
    nearcast.run(spec, items=items)


def test_columns_of_every_type_are_read_back_by_a_look_up(tmp_path, monkeypatch):
    columns = {name: column for name, (column, _) in (KEPT | REFUSED).items() if name not in UNSTORABLE}
    run_with(monkeypatch, tmp_path, columns)
    nearcast.publish("shop")
    with nearcast.open("nearcast/store", "shop") as shop:
        rows = shop.items(["a", "b", "c"], list(columns))
    encode(rows)  # as the service sends them
    assert [[row[name] for row in rows] for name in ("int8", "large_list", "binary", "struct")] == [
        [1, None, -3],
        [["a"], None, []],
        ["00ff", None, ""],
        [{"a": 1}, None, None],
    ]
    assert rows[2]["uint64"] == 2**63


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_column_that_cannot_be_kept_is_refused_by_name(tmp_path, monkeypatch, name):
    with pytest.raises(InputError, match="column 'thing' "):
        run_with(monkeypatch, tmp_path, {"thing": (REFUSED | MORE)[name][0]})
