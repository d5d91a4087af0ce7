"""`nearcast init`: from two Parquet files to a spec that runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.end_to_end.shop import fail, succeed

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
    ],
)
def test_an_id_is_there_in_every_row_and_once(tmp_path: Path, columns: dict[str, Any], key: str) -> None:
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
        ({"id": pa.array([], pa.int64()), "vector": pa.array([], pa.list_(pa.float32()))}, "has no rows"),
        ({"id": range(ROWS), "vector": pa.array([[]] * ROWS, pa.list_(pa.float32()))}, "all empty or null"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        draft_spec(write(tmp_path / "a.parquet", **columns))


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
    ("path", "name"), [("shop/items/*.parquet", "shop"), ("Red Shoes.parquet", "red-shoes"), ("items", "candidates")]
)
def test_the_name_comes_from_the_files(tmp_path: Path, monkeypatch: Any, path: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(path.replace("*", "part-0")) if path.endswith("parquet") else Path(path) / "part-0.parquet"
    write(file, id=range(ROWS), vector=vectors())
    assert draft_spec(path).path == Path(f"{name}.toml")
