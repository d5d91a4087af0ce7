"""Python and SQL that pages show as excerpts run on small data of the test; whole pages run in test_tutorial.py.

Blocks of docs/runners.md need a cluster: tests/cluster makes the same calls. Those of docs/store-format.md are run by
test_store_format.py.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import shlex
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.documentation.pages import DOCS, ROOT, Block, blocks
from tests.end_to_end.shop import clustered, succeed, write_rows, write_shop
from tests.published import publish

import nearcast
from nearcast.ads.publish_expansion import publish_expansion
from nearcast.stores import open_store
from nearcast.table.expansion_settings import AdSettings, Target
from needs import require_module

TESTED_ELSEWHERE = {
    "runners.md",
    "store-format.md",
    "tutorial.md",
    "serving.md",
    "contexts.md",
    "start.md",
    "nightly.md",
}


def find_blocks(page: str, language: str) -> list[Block]:
    found = [block for block in blocks(ROOT / page) if block.language == language]
    assert found, f"{page} has no block in {language}"
    return found


def run(block: Block, folder: Path, **names: Any) -> dict[str, Any]:
    """Execute a block in a folder; its last line may be an expression. Returns its names."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.body, str(block), "exec"), names)
    return names


@pytest.fixture
def two_snapshots(tmp_path: Path) -> Path:
    """A folder with two snapshots of `similar-products`, the first of them published."""
    spec = write_shop(tmp_path, name="similar-products")
    nearcast.run(spec)
    nearcast.publish(spec)
    others = list(clustered(300, seed=2)[::-1])  # the audit finds that all vectors have changed
    write_rows(tmp_path / "queries.parquet", [f"q{i:03d}" for i in range(300)], others)
    nearcast.run(spec)
    return tmp_path


def test_a_snapshot_is_published_and_rolled_back_from_python(two_snapshots: Path) -> None:
    (block,) = find_blocks("docs/publishing.md", "python")
    names = run(block, two_snapshots)
    assert (names["result"].version, names["result"].before) == (2, 1)
    assert names["nearcast"].published("similar-products", out=two_snapshots / "nearcast")[0].pointer.version == 1


def test_other_libraries_read_a_snapshot(two_snapshots: Path) -> None:
    require_module("polars")
    (block,) = find_blocks("docs/snapshot-format.md", "python")
    assert len(run(block, two_snapshots)["table"]) == 300
    duckdb = require_module("duckdb")
    (query,) = find_blocks("docs/snapshot-format.md", "sql")
    with contextlib.chdir(two_snapshots):
        assert len(duckdb.sql(query.body).fetchall()) == 3_000


def test_lists_are_evaluated_by_labels_from_python(two_snapshots: Path) -> None:
    (block,) = find_blocks("docs/evaluate.md", "python")
    block = block._replace(body=block.body.replace("version=7", "version=2").replace('"served", 6', '"served", 1'))
    clicks = pa.table(
        {"query": ["q001", "q002"], "item": ["i0001", "i0002"], "value": [1.0, 2.0], "market": ["de", "fr"]}
    )
    found = run(block, two_snapshots, clicks=clicks)["found"]
    assert 0 <= found.metrics["hit_rate_at_10"].value <= 1


def test_the_history_is_a_table_of_sqlite(tmp_path: Path) -> None:
    nearcast.run(write_shop(tmp_path))
    (query,) = find_blocks("docs/monitoring.md", "sql")
    with contextlib.closing(sqlite3.connect(tmp_path / "nearcast" / "history.sqlite")) as history:
        ((_, version, recall),) = history.execute(query.body).fetchall()
    assert (version, recall) == (1, 1.0)


def test_the_application_is_made_in_a_program_of_ones_own(tmp_path: Path) -> None:
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'nearcast' / 'store'}")) as store:
        publish(store, "products", 1, {"oat-milk": [("soy-milk", 0.75)]}, metric="cosine")
    block = next(b for b in find_blocks("docs/http.md", "python") if "make_app" in b.body)
    names = run(block, tmp_path)
    assert callable(names["app"])
    names["lookup"].close()


def test_ads_of_two_keys_are_found_in_one_call(tmp_path: Path) -> None:
    ads = pa.table({"ad": ["ad-1", "ad-3"], "bid": [0.5, 0.9], "countries": [["de"], ["de", "fr"]]})
    links = pa.table({"item": ["i99", "i99"], "ad": ["ad-1", "ad-3"]})
    target = Target(column="countries", test="has", request="country")
    settings = AdSettings(order="similarity_times_bid", targeting=[target])
    with contextlib.closing(open_store(f"lmdb:{tmp_path / 'nearcast' / 'store'}")) as store:
        publish(store, "similar-items", 1, {"i17": [("i99", 0.9)], "i4": [("i99", 0.5)]}, metric="cosine")
        publish_expansion(store, "offers", ads, links, settings)
    (block,) = find_blocks("docs/expansion.md", "python")
    names = run(block, tmp_path)
    assert list(names["found"].ads) == ["ad-3", "ad-1"]
    names["offers"].close()
    names["shop"].close()


def test_rules_of_the_page_are_applied_at_look_up(tmp_path: Path) -> None:
    (settings,) = find_blocks("docs/rules.md", "toml")
    day, n = datetime.date(2026, 11, 1), 30
    write_rows(
        tmp_path / "ads.parquet", [f"i{i}" for i in range(n)], list(clustered(n, seed=1)),
        countries=[["FR", "DE"]] * n, advertiser=["a"] * n, price=[float(i) for i in range(n)], starts=[day] * n,
    )  # fmt: skip
    write_rows(
        tmp_path / "products.parquet", ["oat-milk"], list(clustered(1, seed=2)),
        country=["DE"], advertiser=["b"], budget=[100.0], day=[day], bought=[["i1"]],
    )  # fmt: skip
    (tmp_path / "shop.toml").write_text(f'name = "shop"\nmetric = "cosine"\nk = 20\n{settings.body}', encoding="utf-8")
    nearcast.refresh(tmp_path / "shop.toml")
    (block,) = find_blocks("docs/rules.md", "python")
    with nearcast.open(tmp_path / "nearcast" / "store", "shop") as shop:
        run(block, tmp_path, shop=shop)
        answer = shop.get("oat-milk", k=10, request={"country": "FR", "limit": 4.5, "bought": ["i7"]})
    assert set(answer.ids) <= {"i0", "i2", "i3", "i4"}


def test_the_ranking_model_of_the_page_orders_the_lists(tmp_path: Path) -> None:
    (settings,), (model,) = find_blocks("docs/ranking.md", "toml"), find_blocks("docs/ranking.md", "python")
    (tmp_path / "ranking.py").write_text(model.body, encoding="utf-8")
    write_rows(
        tmp_path / "items.parquet", range(300), list(clustered(300, seed=1)), margin=[float(i % 7) for i in range(300)]
    )
    tables = 'items = { path = "items.parquet", attributes = ["margin"] }\nname = "ranked"\nmetric = "cosine"\n'
    (tmp_path / "shop.toml").write_text(tables + settings.body, encoding="utf-8")
    nearcast.run(tmp_path / "shop.toml")
    lists = pq.read_table(tmp_path / "nearcast" / "ranked" / "snapshots" / "000001" / "candidates")
    scores, ranked = (np.array(lists[name].to_pylist()) for name in ("scores", "rank_scores"))
    assert (np.diff(ranked, axis=1) <= 0).all()
    assert (np.diff(scores, axis=1) > 0).any()


def test_the_readme_s_own_data_example_runs_on_the_files_of_the_first_page(tmp_path: Path) -> None:
    first = find_blocks("docs/start.md", "python")[0]
    names = run(first, tmp_path)
    lines = [block.body for block in blocks(ROOT / "README.md") if block.body.startswith("nearcast ")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] != "serve":
            succeed(*words, cwd=tmp_path)
    (block,) = find_blocks("README.md", "python")
    vectors = np.array(names["products"]["vector"])
    shown = run(block, tmp_path, items=vectors, queries=vectors[:3])
    assert shown["joined"].positions.shape == (3, 50)
    shown["shop"].close()


def test_every_page_with_python_is_run_by_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for page in sorted(DOCS.glob("*.md")):
        if any(block.language == "python" for block in blocks(page)) and page.name not in TESTED_ELSEWHERE:
            assert f'"docs/{page.name}", "python"' in here, f"no test runs the Python of {page.name}"
