"""`nearcast init`: from two Parquet files to a spec that runs."""

from __future__ import annotations

import datetime as dt
import gzip
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end.shop import fail, succeed
from tests.needs import require_module

from nearcast.api.drafts import draft_spec
from nearcast.errors import InputError

ROWS = 60


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def vectors(seed: int = 1, dim: int = 8, kind: Any = np.float32) -> pa.Array:
    flat = np.random.default_rng(seed).normal(size=ROWS * dim).astype(kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)


def unit_vectors(dim: int = 8) -> list[list[float]]:
    rows = np.random.default_rng(1).normal(size=(ROWS, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32).tolist()


def drafted(*paths: Path, **options: Any) -> dict[str, Any]:
    return tomllib.loads(draft_spec(*paths, **options).text)


def test_a_draft_of_two_files_is_a_spec_that_runs(tmp_path: Path) -> None:
    titles = [f"thing {n}" for n in range(ROWS)]
    write(tmp_path / "shop" / "items.parquet", id=range(ROWS), vector=vectors(), title=titles, price=[1.5] * ROWS)
    write(tmp_path / "shop" / "users.parquet", user_id=titles, embedding=vectors(2), visits=range(ROWS))
    said = succeed("init", "shop/items.parquet", "shop/users.parquet", cwd=tmp_path).stdout
    assert "nearcast refresh shop.toml" in said
    spec = tomllib.loads((tmp_path / "shop.toml").read_text(encoding="utf-8"))
    assert spec["items"] | {"path": ""} == {
        "path": "",
        "id": "id",
        "vector": "vector",
        "attributes": ["price"],
        "display": ["title"],
    }
    assert (spec["queries"]["id"], spec["queries"]["weight"]) == ("user_id", "visits")
    succeed("refresh", "shop.toml", "--quiet", cwd=tmp_path)


def test_a_file_of_items_alone_is_joined_with_itself(tmp_path: Path) -> None:
    items = write(tmp_path / "products.parquet", sku=range(ROWS), vector=vectors())
    for spec in (drafted(items), drafted(items, items)):
        assert spec["name"] == "products"
        assert spec["exclude_self"] is True
        assert "queries" not in spec
        assert spec["k"] == 50


@pytest.mark.parametrize(
    ("column", "metric"),
    [
        (unit_vectors(), "cosine"),
        (vectors(), "inner_product"),
        ([[0, 1, 200, 3]] * (ROWS - 1) + [[1, 1, 1, 1]], "l2"),
        ([[0, -1, 127, 3]] * (ROWS - 1) + [[1, 1, 1, 1]], "cosine"),
    ],
)
def test_the_metric_follows_from_the_lengths_of_the_vectors(tmp_path: Path, column: Any, metric: str) -> None:
    assert drafted(write(tmp_path / "a.parquet", id=range(ROWS), vector=column))["metric"] == metric


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"price": range(ROWS), "item_id": range(ROWS)}, "item_id"),
        ({"id": [1] * ROWS, "article_id": range(ROWS)}, "article_id"),
        ({"row": [*range(ROWS - 1), None], "code": [f"c{n}" for n in range(ROWS)]}, "code"),
        ({"title": [f"t{n}" for n in range(ROWS)], "id": [*range(ROWS - 1), 0]}, "id"),
        ({"__index_level_0__": range(ROWS), "asin": [f"a{n}" for n in range(ROWS)]}, "asin"),
    ],
)
def test_an_id_is_the_column_whose_values_are_there_once_or_that_is_named_so_and_nearly_is(
    tmp_path: Path, columns: dict[str, Any], key: str
) -> None:
    assert drafted(write(tmp_path / "a.parquet", **columns, vector=vectors()))["items"]["id"] == key


def test_of_several_lists_the_one_that_is_named_as_a_vector_is_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=range(ROWS), sizes=[[1, 2]] * ROWS, title_embedding=vectors())
    spec = draft_spec(path)
    assert tomllib.loads(spec.text)["items"]["vector"] == "title_embedding"
    assert "sizes could be meant, too" in spec.text


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": range(ROWS), "name": ["a"] * ROWS}, "has no column of vectors"),
        ({"name": ["a"] * ROWS, "vector": vectors()}, "has no column of ids"),
        ({"id": [1.0 * n for n in range(ROWS)], "vector": vectors()}, "'id' is double: write it as whole numbers"),
        ({"item": pa.array([bytes([n] * 16) for n in range(ROWS)], pa.binary(16)), "vector": vectors()}, "as UUIDs"),
        ({"id": [n // 2 for n in range(ROWS)], "vector": vectors()}, "'id' has 30 values in the first 60 rows"),
        ({"id": range(ROWS), "emb": [b"0" * 64] * ROWS}, "'emb' holds 64 bytes per row; write the numbers as a list"),
        ({"id": range(ROWS), "emb": [{"values": [1.0, 2.0]}] * ROWS}, r"in Spark: vector_to_array\(emb\)"),
        ({"id": range(ROWS), "emb": [[[1.0], [2.0]]] * ROWS}, "'emb' holds lists of lists"),
        ({"id": [1], "vector": [[1.0, 2.0]]}, "has one row"),
        ({f"price {n} €": range(ROWS) for n in range(0, 90, 2)}, "and 33 more; write the vectors"),
        ({"id": pa.array([], pa.int64()), "vector": pa.array([], pa.list_(pa.float32()))}, "has no rows"),
        ({"id": range(ROWS), "vector": pa.array([[]] * ROWS, pa.list_(pa.float32()))}, "all empty or null"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        draft_spec(write(tmp_path / "a.parquet", **columns))


@pytest.mark.parametrize(
    "columns",
    [
        {f"v{n}": np.random.default_rng(n).normal(size=ROWS) for n in sorted(range(12), key=str)},
        {'it\'s "odd"': [str(row) for row in unit_vectors()]},
        {"vector": pa.array([[n, 1, 2] for n in range(ROWS)], pa.list_(pa.int64()))},
    ],
    ids=["a column per component", "text", "lists of whole numbers"],
)
def test_vectors_in_another_form_are_read_by_a_query(tmp_path: Path, columns: dict[str, Any]) -> None:
    require_module("duckdb")
    write(tmp_path / "it's" / "part-0.parquet", id=range(ROWS), **columns)
    succeed("init", "it's", "--name", "shop", cwd=tmp_path)
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)


def test_components_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = sorted((f"v{n}" for n in range(12)), key=str)
    text = draft_spec(write(tmp_path / "a.parquet", id=range(ROWS), **{name: [1.0] * ROWS for name in names})).text
    assert "v0, v1, v2, v3" in text


def test_rows_that_stop_a_run_are_settings_that_leave_them_out(tmp_path: Path) -> None:
    rows = [*unit_vectors(), None, [1.0], [float("nan")] * 8, [0.0] * 8]
    write(tmp_path / "shop.parquet", id=[*range(ROWS + 3), 0], vector=rows)
    succeed("init", "shop.parquet", cwd=tmp_path)
    spec = (tmp_path / "shop.toml").read_text(encoding="utf-8")
    fail("run", "shop.toml", "--quiet", code=3, cwd=tmp_path)
    faults = ("null_vector", "wrong_dimension", "not_finite", "zero_vector", "duplicate_id")
    assert all(f'# {kind} = "drop"  # 1 of the first 64 items:' in spec for kind in faults)
    (tmp_path / "shop.toml").write_text(re.sub("^# (?=[a-z_]+ =)", "", spec, flags=re.MULTILINE), encoding="utf-8")
    succeed("run", "shop.toml", "--quiet", cwd=tmp_path)


def test_columns_of_one_dimension_are_paired(tmp_path: Path) -> None:
    items = write(tmp_path / "a.parquet", id=range(ROWS), image_vector=vectors(dim=4), text=vectors())
    queries = write(tmp_path / "b.parquet", id=range(ROWS), phrase_embedding=vectors())
    spec = drafted(items, queries)
    assert (spec["items"]["vector"], spec["queries"]["vector"]) == ("text", "phrase_embedding")


def test_a_folder_with_the_log_of_a_delta_table_is_a_table(tmp_path: Path) -> None:
    delta = require_module("deltalake")
    delta.write_deltalake(tmp_path / "lake", pa.table({"id": range(ROWS), "vector": unit_vectors()}))
    for items in ("lake", "delta:lake"):
        succeed("init", items, "--force", cwd=tmp_path)
        spec = tomllib.loads((tmp_path / "lake.toml").read_text(encoding="utf-8"))
        assert spec["items"]["table"] == "delta:lake"
    succeed("run", "lake.toml", "--quiet", cwd=tmp_path)


@pytest.mark.parametrize("name", ["items.csv", "items.csv.gz", "items.jsonl"])
def test_a_file_that_is_no_parquet_is_refused_with_a_command_that_converts_it(tmp_path: Path, name: str) -> None:
    rows = "id,text\na,b\n" if "csv" in name else '{"id": "a"}\n'
    (tmp_path / name).write_bytes(gzip.compress(rows.encode()) if name.endswith(".gz") else rows.encode())
    said = fail("init", name, code=3, cwd=tmp_path)
    command = shlex.split(said.split("Convert it:", 1)[1])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert pq.read_table(next(tmp_path.glob("*.parquet")))["id"].to_pylist() == ["a"]


def test_what_people_see_and_what_rules_read_is_chosen_by_type_and_values(tmp_path: Path) -> None:
    columns = {
        "headline": [f"thing {n}" for n in range(ROWS)],
        "category": ["a", "b"] * (ROWS // 2),
        "page": [f"https://shop.example/{n}" for n in range(ROWS)],
        "story": ["long " * 80] * ROWS,
        "maker": [f"maker {n // 2}" for n in range(ROWS)],
        "posted": [dt.date(2026, 11, 1)] * ROWS,
        "tags": [["a"]] * ROWS,
    }
    path = write(tmp_path / "a.parquet", id=range(ROWS), vector=vectors(), **columns)
    items = drafted(path)["items"]
    assert items["display"] == ["headline", "category", "maker"]
    assert items["attributes"] == ["category", "maker", "posted", "tags"]
    assert "# not used: page (string), story (string)\n" in draft_spec(path).text


def test_no_line_of_a_draft_is_wider_than_a_screen(tmp_path: Path) -> None:
    wide = {f"v{n}": np.arange(1.0, ROWS + 1) for n in range(128)}
    for path in (
        write(tmp_path / "a.parquet", id=range(ROWS), vector=vectors(), title=["a"] * ROWS),
        write(tmp_path / "b.parquet", id=range(ROWS), **wide),
        write(tmp_path / "c.parquet", id=[*range(ROWS - 1), 0], vector=unit_vectors()),
        write(tmp_path / "d.parquet", id=range(ROWS), vector=vectors(), **{"x" * n: [b"y"] * ROWS for n in (20, 90)}),
    ):
        lines = draft_spec(path).text.splitlines()
        assert [line for line in lines if len(line) > 100 and not line.startswith(("path", "from"))] == []


def test_tables_of_two_dimensions_are_refused(tmp_path: Path) -> None:
    items = write(tmp_path / "a.parquet", id=range(ROWS), vector=vectors())
    queries = write(tmp_path / "b.parquet", id=range(ROWS), vector=vectors(dim=4))
    with pytest.raises(InputError, match="items have 8 dimensions"):
        draft_spec(items, queries)


def test_a_spec_that_exists_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", id=range(ROWS), vector=vectors())
    (tmp_path / "a.toml").write_text("mine")
    said = fail("init", "a.parquet", code=2, cwd=tmp_path)
    assert "a.toml exists" in said
    assert (tmp_path / "a.toml").read_text() == "mine"
    assert "metric" in succeed("init", "a.parquet", "--print", cwd=tmp_path).stdout
    succeed("init", "a.parquet", "--force", cwd=tmp_path)
    assert "metric" in (tmp_path / "a.toml").read_text()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("shop/items/*.parquet", "shop"),
        ("Red Shoes.parquet", "red-shoes"),
        ("Übersicht (neu).v2.parquet", "ubersicht-neu-v2"),
        ("items", "candidates"),
    ],
)
def test_the_name_comes_from_the_files(tmp_path: Path, monkeypatch: Any, path: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(path.replace("*", "part-0")) if path.endswith("parquet") else Path(path) / "part-0.parquet"
    write(file, id=range(ROWS), vector=vectors())
    assert draft_spec(path).path == Path(f"{name}.toml")
