"""A query of DuckDB as a source: its result is hashed."""

from __future__ import annotations

import re
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import generator, write_parquet
from nearcast.errors import InputError, MissingExtraError, SpecError
from nearcast.join.run import run_generator
from nearcast.sources.open_source import open_source
from nearcast.spec import SourceSpec
from needs import require_module

VECTORS = [[float(number), 1.0] for number in range(6)]


@pytest.fixture
def folder(tmp_path):
    require_module("duckdb")
    write_parquet(tmp_path / "items.parquet", list(range(6)), VECTORS, price=list(range(6)))
    return tmp_path


def open_query(folder, sql, **settings):
    return open_source(SourceSpec(sql=sql, **settings), folder)


def ids_of(source):
    return [i for b in source.batches(vectors=True, attributes=True, memory_bytes=1 << 20) for i in b.ids.to_pylist()]


def test_paths_of_a_query_are_relative_to_the_spec(folder, monkeypatch):
    monkeypatch.chdir("/")
    source = open_query(folder, "select * from 'items.parquet' where price > 2;", attributes=("price",))
    assert ids_of(source) == [3, 4, 5]


def test_a_file_of_the_current_folder_is_never_taken_for_one_of_the_spec(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_parquet(elsewhere / "items.parquet", [7], VECTORS[:1])
    monkeypatch.chdir(elsewhere)
    for query in (
        "select * from 'items.parquet'",
        "from items.parquet",
        """select * from read_parquet(["items.parquet"])""",
    ):
        with pytest.raises(InputError, match=r"names items.parquet, and there is one in the current folder"):
            open_query(folder, query)
    assert ids_of(open_query(folder, f"select * from '{folder}/items.parquet'")) == list(range(6))

    shutil.rmtree(elsewhere)
    assert ids_of(open_query(folder, "from 'items.parquet'")) == list(range(6))


def test_a_folder_with_a_comma_is_one_folder(folder):
    (folder / "a,b").mkdir()
    write_parquet(folder / "a,b" / "few.parquet", [7], VECTORS[:1])
    assert ids_of(open_query(folder / "a,b", "from 'few.parquet'")) == [7]


def test_equal_results_have_an_equal_hash_in_any_order(folder):
    asked = ("select * from 'items.parquet' order by price desc", "select *, 7 as other from 'items.parquet'")
    digests = [open_query(folder, sql).digests() for sql in asked]
    assert digests[0] == digests[1]
    fewer = open_query(folder, "select * from 'items.parquet' limit 5").digests()
    assert fewer[0]["blake2b"] != digests[0][0]["blake2b"]


def test_a_run_of_an_unchanged_query_returns_the_snapshot(folder):
    spec = generator(k=2, items={"sql": "select * from 'items.parquet'"})
    assert [run_generator(spec, folder).reused for _ in range(2)] == [False, True]
    write_parquet(folder / "items.parquet", list(range(5)), VECTORS[:5])
    assert not run_generator(spec, folder).reused


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select * from 'none.parquet'", "No files found"),
        ("selec 1", "correct the query"),
        ("select 1; select 2", "got SELECT, SELECT; write one SELECT"),
        ("select * from library", "Table with name library does not exist"),
        ("select 1); drop table x; (select 2", "correct the query"),
        ("create table x as select 1", "write one SELECT"),
        ("select 1 as item, [1.0] as vector", r"has no column 'id'"),
        ("select 1 as id, [1.0] as vector, [2.0] as vector", "result of sql has 2 columns called 'vector'; give each"),
        ("select * from 'items.parquet' a join 'items.parquet' b on a.id = b.id", "2 columns called 'id'"),
        ("select *, 1 as more from 'items.parquet' where id > 99", "no rows"),
    ],
)
def test_a_query_that_fails_says_why(folder, sql, message):
    with pytest.raises((InputError, SpecError), match=message):
        run_generator(generator(items={"sql": sql}), folder)


def test_a_relation_is_a_table_in_memory(folder):
    relation = require_module("duckdb").sql(f"select * from '{folder}/items.parquet'")
    from nearcast.join.inputs import InMemoryTables

    outcome = run_generator(generator(k=2), folder, tables=InMemoryTables(items=relation))
    assert outcome.snapshot.n_rows == 6


def test_a_missing_duckdb_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=re.escape("nearcast[duckdb]")):
        open_query(tmp_path, "select 1")


def test_columns_with_quotes_are_found(folder):
    table = pa.table({'the "id"': [1, 2], "vector": VECTORS[:2]})
    pq.write_table(table, folder / "odd.parquet")
    assert ids_of(open_query(folder, "select * from 'odd.parquet'", id='the "id"')) == [1, 2]
