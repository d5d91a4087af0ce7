"""The snapshot as others read it: DuckDB and polars on the files alone, hashes, equal bytes, honest measures."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from tests.end_to_end import shop as at
from tests.end_to_end.shop import fail, snapshot, write_rows, write_spec
from tests.reference import join as reference_join

import nearcast
from nearcast.errors import TargetError

ENGINES = ("exact", "faiss-hnsw", "faiss-ivf")
HASTY = {"engine": "faiss-ivf", "engine_settings": {"nprobe": 1}, "recall": 1.0}  # misses much, and says so


def made(spec: Path) -> Path:
    """Run a generator; the folder of its snapshot, as promised or not."""
    try:
        return Path(nearcast.run(spec).snapshot.folder)
    except TargetError as error:
        return Path(error.snapshot.folder)


def table(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "candidates" / "*.parquet")


def measures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["measures"]


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a snapshot but its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest() for p in files}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the snapshot of an exact join. Look, do not write."""
    folder = tmp_path_factory.mktemp("shop")
    made(at.write_shop(folder))
    return folder


# read without us


def test_duckdb_reads_the_candidates_with_plain_types(shop: Path) -> None:
    files = f"{snapshot(shop)}/candidates/*.parquet"
    columns = [row[:2] for row in duckdb.sql(f"describe select * from '{files}'").fetchall()]
    assert columns == [
        ("query_id", "VARCHAR"),
        ("candidate_ids", "VARCHAR[]"),
        ("scores", "FLOAT[]"),
        ("length", "INTEGER"),
        ("reason", "VARCHAR"),
    ]
    rows = duckdb.sql(f"""
        select count(*), count(distinct query_id), min(length), max(length), count(reason),
               bool_and(len(candidate_ids) = length and len(scores) = length),
               bool_and(scores = list_reverse_sort(scores))
        from '{files}'
    """).fetchall()
    assert rows == [(300, 300, 10, 10, 0, True, True)]


def test_duckdb_puts_names_to_candidates_with_a_join(shop: Path) -> None:
    folder = snapshot(shop)
    rows = duckdb.sql(f"""
        with slots as (
            select query_id, unnest(candidate_ids) as item, unnest(scores) as score
            from '{folder}/candidates/*.parquet' where query_id = 'q007'
        )
        select item, score, name, category from slots join '{folder}/items/*.parquet' on id = item
        order by score desc
    """).fetchall()
    looked_up = nearcast.lookup("shop", "q007", out=shop / "nearcast", columns=("name", "category"))
    assert [row[0] for row in rows] == list(looked_up.ids)
    assert [row[1] for row in rows] == list(looked_up.scores)
    assert [row[2] for row in rows] == list(looked_up.columns["name"])
    assert all(name.split()[1] == category for _, _, name, category in rows)


def test_polars_reads_the_candidates_sorted_by_query_and_best_first(shop: Path) -> None:
    read = table(snapshot(shop))
    assert read.schema == {
        "query_id": pl.String,
        "candidate_ids": pl.List(pl.String),
        "scores": pl.List(pl.Float32),
        "length": pl.Int32,
        "reason": pl.String,
    }
    assert read["query_id"].to_list() == sorted(f"q{i:03d}" for i in range(300))
    assert read["scores"].to_list() == [sorted(scores, reverse=True) for scores in read["scores"].to_list()]
    assert read["candidate_ids"].list.n_unique().to_list() == [10] * 300
    assert read["reason"].null_count() == 300


def test_int64_ids_are_int64_and_sorted_by_value(tmp_path: Path) -> None:
    ids = np.array([10, 9, -3, 2**62], np.int64)
    write_rows(tmp_path / "items.parquet", ids, list(at.clustered(4, seed=1)))
    folder = made(write_spec(tmp_path, k=2, items={"path": "items.parquet"}, queries=None))
    read = table(folder)
    assert read.schema["query_id"] == pl.Int64
    assert read.schema["candidate_ids"] == pl.List(pl.Int64)
    assert read["query_id"].to_list() == [-3, 9, 10, 2**62]
    assert read["candidate_ids"].list.first().to_list() == [-3, 9, 10, 2**62]
    assert pl.read_parquet(folder / "items" / "*.parquet")["id"].to_list() == [-3, 9, 10, 2**62]


def test_string_ids_are_sorted_by_their_bytes(tmp_path: Path) -> None:
    ids = ["b", "B", "é", "a10", "a9", "漢"]
    write_rows(tmp_path / "items.parquet", ids, list(at.clustered(6, seed=1)))
    folder = made(write_spec(tmp_path, k=2, items={"path": "items.parquet"}, queries=None))
    assert table(folder)["query_id"].to_list() == sorted(ids, key=lambda name: name.encode())


def test_attributes_stand_beside_their_ids(shop: Path) -> None:
    items = pl.read_parquet(snapshot(shop) / "items" / "*.parquet")
    assert items.columns == ["id", "category", "name"]
    assert items["id"].to_list() == [f"i{i:04d}" for i in range(at.N_ITEMS)]
    given = pl.read_parquet(shop / "items.parquet").sort("id")
    assert items.equals(given.select("id", "category", "name"))
    assert pl.read_parquet(snapshot(shop) / "queries" / "*.parquet").columns == ["id"]


def test_scores_are_those_of_the_documented_sum(shop: Path) -> None:
    items, queries = at.clustered(at.N_ITEMS, seed=1), at.clustered(at.N_QUERIES, seed=2)
    positions, scores = reference_join(queries[:40], items, 10, "cosine")
    read = table(snapshot(shop)).head(40)
    assert read["candidate_ids"].to_list() == [[f"i{p:04d}" for p in row] for row in positions]
    np.testing.assert_array_equal(np.array(read["scores"].to_list(), np.float32), scores)


# short lists


def test_a_list_shorter_than_k_says_that_there_are_too_few_items(tmp_path: Path) -> None:
    write_rows(tmp_path / "items.parquet", ["a", "b", "c"], [[1, 0], [0, 1], [1, 1]])
    keep = {"k_above_items": "keep"}
    folder = made(write_spec(tmp_path, k=5, items={"path": "items.parquet"}, queries=None, checks=keep))
    assert table(folder)["length"].to_list() == [3, 3, 3]
    assert table(folder)["reason"].to_list() == ["too_few_eligible"] * 3
    own = tmp_path / "others"
    own.mkdir()
    write_rows(own / "items.parquet", ["a", "b", "c"], [[1, 0], [0, 1], [1, 1]])
    settings = {"k": 3, "exclude_self": True, "queries": None, "checks": keep}
    folder = made(write_spec(own, items={"path": "items.parquet"}, **settings))
    assert table(folder)["candidate_ids"].to_list() == [["c", "b"], ["c", "a"], ["a", "b"]]
    assert table(folder)["reason"].to_list() == ["too_few_eligible"] * 3


def test_a_list_that_the_effort_has_cut_off_says_so(tmp_path: Path) -> None:
    folder = made(at.write_shop(tmp_path, **HASTY))
    read = table(folder)
    short = read.filter(pl.col("length") < 10)
    assert 0 < len(short) < len(read)
    assert set(short["reason"]) == {"not_probed"}
    assert read.filter(pl.col("length") == 10)["reason"].null_count() == len(read) - len(short)
    assert measures(folder)["short_lists"] == len(short)


def test_a_query_kept_without_a_vector_has_an_empty_list_that_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path / "items.parquet", ["a", "b"], [[1, 0], [0, 1]])
    write_rows(tmp_path / "queries.parquet", ["q3", "q1", "q2"], [[1, 0], [0, 1], None])
    folder = made(write_spec(tmp_path, k=1, items={"path": "items.parquet"}, checks={"null_vector": "keep"}))
    read = table(folder)
    assert read["query_id"].to_list() == ["q1", "q2", "q3"]
    assert read["candidate_ids"].to_list() == [["b"], [], ["a"]]
    assert read["reason"].to_list() == [None, "no_vector", None]
    assert measures(folder)["query_coverage"] == pytest.approx(2 / 3)
    assert nearcast.lookup("shop", "q2", out=tmp_path / "nearcast").reason == "no_vector"


# what a list never holds, and its order


@pytest.mark.parametrize("engine", ENGINES)
def test_no_query_of_a_self_join_gets_itself_when_that_is_asked(tmp_path: Path, engine: str) -> None:
    at.write_items(tmp_path, at.clustered(300, seed=1))
    settings = {"engine": engine, "exclude_self": True, "queries": None, "recall": 1.0 if engine == "exact" else 0.8}
    slots = table(made(write_spec(tmp_path, **settings))).explode("candidate_ids", "scores")
    assert len(slots.filter(pl.col("query_id") == pl.col("candidate_ids"))) == 0
    assert slots["scores"].max() < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_scores_go_to_the_smaller_id(tmp_path: Path, engine: str) -> None:
    vectors = np.repeat(at.clustered(40, seed=1), 5, axis=0)  # every vector five times, ids in no order
    ids = np.random.default_rng(4).permutation(200)
    write_rows(tmp_path / "items.parquet", ids.astype(np.int64), list(vectors))
    settings = {"k": 8, "engine": engine, "queries": None, "items": {"path": "items.parquet"}}
    folder = made(write_spec(tmp_path, **settings))
    for row in table(folder).iter_rows(named=True):
        pairs = list(zip(row["scores"], row["candidate_ids"], strict=True))
        assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
        copies = sorted(ids[(vectors == vectors[ids == row["query_id"]]).all(axis=1)].tolist())
        assert row["candidate_ids"][:5] == copies  # the query's own vector, five times over


# bytes


def test_the_manifest_lists_every_file_with_its_size_and_hash(shop: Path) -> None:
    folder = snapshot(shop)
    listed = at.manifest(shop)["files"]
    assert {name: facts["blake2b"] for name, facts in listed.items()} == hashes(folder)
    assert {name: facts["bytes"] for name, facts in listed.items()} == {n: (folder / n).stat().st_size for n in listed}
    assert {name.split("/")[0] for name in listed} == {"candidates", "items", "queries", "sketch"}


def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(tmp_path: Path) -> None:
    made(at.write_shop(tmp_path))
    folder = snapshot(tmp_path)
    for name, facts in at.manifest(tmp_path)["files"].items():
        at.flip_a_byte(folder / name, facts["bytes"] // 2)
        message = fail("show", "--verify", code=8, cwd=tmp_path)
        assert f"{folder.relative_to(tmp_path) / name} was changed after it was written" in message
        at.flip_a_byte(folder / name, facts["bytes"] // 2)


def test_a_file_that_is_cut_short_missing_or_not_ours_is_found(tmp_path: Path) -> None:
    made(at.write_shop(tmp_path))
    (found,) = nearcast.snapshots("shop", out=tmp_path / "nearcast")
    found.verify()
    path = found.folder / "candidates" / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(nearcast.errors.DamagedError, match=r"part-00000\.parquet has"):
        found.verify()
    path.unlink()
    with pytest.raises(nearcast.errors.DamagedError, match=r"part-00000\.parquet is missing"):
        found.verify()
    path.write_bytes(whole)
    (path.parent / "part-00001.parquet").write_bytes(whole)  # whoever reads candidates/*.parquet reads it too
    with pytest.raises(nearcast.errors.DamagedError, match=r"part-00001\.parquet"):
        found.verify()


def run_all(folder: Path, specs: list[str]) -> None:
    """Run these generators in one fresh process."""
    code = "import sys, nearcast; [nearcast.run(spec) for spec in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *specs], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bytes_do_not_depend_on_the_folder_threads_or_memory(tmp_path: Path) -> None:
    little, much = tmp_path / "little", tmp_path / "much"
    for folder, resources in ((little, {"threads": 1, "memory": "520MB"}), (much, {"threads": 2, "memory": "2GB"})):
        folder.mkdir()
        for engine in ENGINES:
            recall = 1.0 if engine == "exact" else 0.8
            at.write_shop(folder)
            write_spec(folder, f"{engine}.toml", name=engine, engine=engine, recall=recall, **resources)
        run_all(folder, [f"{engine}.toml" for engine in ENGINES])
    for engine in ENGINES:
        ours, theirs = (hashes(snapshot(folder, name=engine)) for folder in (little, much))
        assert ours == theirs, engine
        facts = [at.manifest(folder, name=engine) for folder in (little, much)]
        for fact in facts:
            del fact["run"], fact["spec"]["memory"], fact["spec"]["threads"]
        assert facts[0] == facts[1], engine


@pytest.mark.slow
def test_the_bytes_of_long_attributes_do_not_depend_on_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1500).hex() for _ in range(6_000)]
    vectors = list(at.clustered(6_000, seed=1))
    for name, memory in (("little", "520MB"), ("much", "2GB")):
        folder = tmp_path / name
        write_rows(folder / "items.parquet", range(6_000), vectors, text=texts)
        write_rows(folder / "queries.parquet", range(10), vectors[:10])
        write_spec(folder, memory=memory, items={"path": "items.parquet", "attributes": ["text"]})
        run_all(folder, ["shop.toml"])
    assert hashes(snapshot(tmp_path / "little")) == hashes(snapshot(tmp_path / "much"))


# measures


def test_the_measures_of_the_manifest_are_what_polars_and_brute_force_say(tmp_path: Path) -> None:
    n = 150  # few enough for the sample to be all of them
    items, queries = at.clustered(at.N_ITEMS, seed=1), at.clustered(n, seed=2)
    at.write_items(tmp_path, items)
    write_rows(tmp_path / "queries.parquet", [f"q{i:03d}" for i in range(n)], list(queries))
    folder = made(write_spec(tmp_path, **HASTY))
    told, read = measures(folder), table(folder)
    slots = read.explode("candidate_ids", "scores").drop_nulls("candidate_ids")
    counts = np.zeros(at.N_ITEMS, np.int64)
    appearing = slots["candidate_ids"].value_counts(sort=True)["count"].to_numpy()
    counts[: len(appearing)] = appearing
    assert told["fill_rate"] == pytest.approx(read["length"].sum() / (n * 10))
    assert told["query_coverage"] == pytest.approx((read["length"] > 0).sum() / n)
    assert told["short_lists"] == (read["length"] < 10).sum()
    assert told["item_coverage"] == pytest.approx(slots["candidate_ids"].n_unique() / at.N_ITEMS)
    assert told["exposure_top1"] == pytest.approx(counts[: at.N_ITEMS // 100].sum() / len(slots))
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert told["exposure_gini"] == pytest.approx(differences / (2 * counts.mean()))
    assert told["score_p50"] == pytest.approx(slots["scores"].median(), rel=1e-6)
    assert told["best_score_p50"] == pytest.approx(read["scores"].list.first().median(), rel=1e-6)
    truth, _ = reference_join(queries, items, 10, "cosine")
    found = [{int(name[1:]) for name in row} for row in read["candidate_ids"].to_list()]
    shares = [len(ours & set(best.tolist())) / 10 for ours, best in zip(found, truth, strict=True)]
    assert told["recall_sample"] == n
    assert told["recall"] == pytest.approx(np.mean(shares))
    assert told["recall_low"] == told["recall_high"] == told["recall"]  # nothing was left to chance
    assert told["recall"] < 0.9


def test_the_recall_of_a_sample_holds_the_truth_in_its_interval(tmp_path: Path) -> None:
    folder = made(at.write_shop(tmp_path, **HASTY, measure={"sample": 60}))
    told = measures(folder)
    truth, _ = reference_join(at.clustered(at.N_QUERIES, seed=2), at.clustered(at.N_ITEMS, seed=1), 10, "cosine")
    found = [{int(name[1:]) for name in row} for row in table(folder)["candidate_ids"].to_list()]
    recall = np.mean([len(ours & set(best.tolist())) / 10 for ours, best in zip(found, truth, strict=True)])
    assert told["recall_sample"] == 60
    assert told["recall_low"] <= recall <= told["recall_high"]
    assert told["recall_low"] < told["recall"] < told["recall_high"]


def test_overlap_is_the_share_of_each_old_list_that_is_kept(tmp_path: Path) -> None:
    at.write_shop(tmp_path)
    old = table(made(tmp_path / "shop.toml"))
    vectors = at.clustered(at.N_ITEMS, seed=1)
    vectors[:120] = at.clustered(120, seed=8)
    at.write_items(tmp_path, vectors)
    queries = at.clustered(at.N_QUERIES, seed=2)
    ids = [f"q{i:03d}" for i in range(30, at.N_QUERIES)]  # the first thirty have left
    write_rows(tmp_path / "queries.parquet", ids, list(queries[30:]))
    folder = made(tmp_path / "shop.toml")
    both = old.join(table(folder), on="query_id")
    kept = both["candidate_ids"].list.set_intersection(both["candidate_ids_right"]).list.len() / 10
    assert measures(folder)["overlap"] == pytest.approx(kept.mean())
    assert measures(folder)["queries_kept"] == pytest.approx(0.9)
    assert 0 < kept.mean() < 1
