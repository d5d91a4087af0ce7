"""Whole runs on item shards: at recall 1 the files of one shard, below 1 a target that the merged lists meet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import clustered, generator, write_parquet
from nearcast.errors import SpecError
from nearcast.join import measure_snapshot, shard_plan
from nearcast.join.context import RunContext
from nearcast.join.listener import Listener
from nearcast.join.shard_plan import count_shards
from nearcast.knn import query_splits
from nearcast.sources.stage_rows import StageSettings
from nearcast.table import candidate_schema
from nearcast.table.candidate_schema import rows_per_group
from run_specs import CAPS, ITEM_ATTRIBUTES, QUERY_ATTRIBUTES, RANK, RUN_SPECS, SHOWN

N_ITEMS, N_QUERIES, DIM = 700, 500, 12
SPECS: dict[str, dict[str, Any]] = RUN_SPECS | {
    "rules and caps": RUN_SPECS["rules and caps"] | {"k": 30},
    "more candidates than a shard has items": {"k": 200, "rules": [SHOWN]},
    "score terms under l2": {"score": {"add": "bonus"}, "caps": CAPS[:1]},
}

MANY = ("free", "rules and caps", "more candidates than a shard has items")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Items and queries with attributes, some rows without a vector, and a model."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(5)
    items, queries = list(clustered(N_ITEMS, DIM, seed=1)), list(clustered(N_QUERIES, DIM, seed=2))
    for row in (0, 350, 699):
        items[row] = None
    for row in (3, 499):
        queries[row] = None
    model = rng.integers(0, 90, N_ITEMS)
    write_parquet(
        folder / "items.parquet",
        [f"i{n:04d}" for n in range(N_ITEMS)],
        items,
        price=[None if n % 40 == 3 else float(rng.integers(1, 50)) for n in range(N_ITEMS)],
        countries=[[c for c in "abcd" if rng.random() < 0.4] for _ in range(N_ITEMS)],
        model=[None if one % 11 == 0 else f"model {one}" for one in model],
        maker=[None if one % 11 == 0 else f"maker {one // 6}" for one in model],
        bonus=rng.integers(0, 8, N_ITEMS) / 4,
        alive=rng.integers(20, 99, N_ITEMS) / 100,
    )
    write_parquet(
        folder / "queries.parquet",
        [f"q{n:04d}" if n % 5 else f"i{n:04d}" for n in range(N_QUERIES)],
        queries,
        budget=rng.integers(1, 40, N_QUERIES).astype(float),
        country=[str(rng.choice(list("abcd"))) for _ in range(N_QUERIES)],
    )
    (folder / "ranker.py").write_text(RANK)
    return folder


def spec_of(out: Path, shards: int, **changed: Any) -> dict[str, Any]:
    tables = {
        "name": "shop",
        "metric": "l2",
        "k": 10,
        "out": str(out),
        "threads": 2,
        "memory": "2GB",
        "items": {"path": "items.parquet", "attributes": ITEM_ATTRIBUTES},
        "queries": {"path": "queries.parquet", "attributes": QUERY_ATTRIBUTES},
        "checks": {"null_vector": "keep"},
        "measure": {"sample": 100},
        "run": {"shards": shards},
    }
    return {key: value for key, value in (tables | changed).items() if value is not None}


def run(shop: Path, out: Path, shards: int, **changed: Any) -> nearcast.Snapshot:
    return nearcast.run(spec_of(out, shards, **changed), base=shop, listener=Listener()).snapshot


def hash_files(snapshot) -> dict[str, str]:
    files = sorted(path for path in snapshot.folder.rglob("*.parquet"))
    return {
        path.relative_to(snapshot.folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files
    }


def same_measures(snapshot) -> dict[str, float]:
    return {name: value for name, value in snapshot.manifest.measures.items() if not name.endswith("seconds")}


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Several splits of the queries, so that the merge has several tasks."""
    monkeypatch.setattr(query_splits, "SMALLEST_TASK", 160)
    monkeypatch.setattr(query_splits, "TASK_BYTES", 1)


@pytest.mark.parametrize(
    ("shards", "kind"),
    [*((3, kind) for kind in SPECS), *(pytest.param(8, kind, marks=pytest.mark.slow) for kind in MANY)],
)
def test_at_recall_1_the_files_and_measures_do_not_depend_on_the_shards(shop, tmp_path, shards, kind):
    one = run(shop, tmp_path / "1", 1, **SPECS[kind])
    many = run(shop, tmp_path / str(shards), shards, **SPECS[kind])
    assert hash_files(many) == hash_files(one)
    assert same_measures(many) == same_measures(one)
    assert many.manifest.fingerprint == one.manifest.fingerprint


def test_items_that_do_not_fit_the_memory_are_joined_in_passes_with_the_same_files(shop, tmp_path, monkeypatch, caplog):
    one = run(shop, tmp_path / "1", 1, **SPECS["rules and caps"])
    monkeypatch.setattr(shard_plan, "count_passes", lambda *_: 3)
    caplog.set_level("INFO", logger="nearcast")
    monkeypatch.setattr(measure_snapshot, "BLOCK_SHARE", 1 << 50)  # one sampled list is compared at a time
    many = run(shop, tmp_path / "3", 1, **SPECS["rules and caps"], run=None)
    assert hash_files(many) == hash_files(one)
    assert same_measures(many) == same_measures(one)
    assert many.manifest.worst_queries == one.manifest.worst_queries
    assert many.manifest.slices == one.manifest.slices
    assert many.manifest.facts["run"]["estimate"]["shards"] == 3
    assert "they are joined in 3 passes" in caplog.text


def test_long_ids_make_smaller_row_groups_that_are_measured_looked_up_and_published(shop, tmp_path, monkeypatch):
    one = run(shop, tmp_path / "1", 1, **SPECS["free"])
    monkeypatch.setattr(candidate_schema, "GROUP_BYTES", 1_000)  # ids of 5 bytes
    many = run(shop, tmp_path / "2", 1, **SPECS["free"])
    rows = many.manifest.group_rows
    assert 8 < rows < 20
    assert rows_per_group(10) == one.manifest.group_rows
    read = [pq.read_table(snapshot.folder / "candidates") for snapshot in (one, many)]
    assert read[0].equals(read[1])
    with many.open_file("candidates", 0) as file:
        assert {file.metadata.row_group(number).num_rows for number in range(file.num_row_groups - 1)} == {rows}
    assert same_measures(many) == same_measures(one)
    assert many.rows(np.array([3, 40])).equals(one.rows(np.array([3, 40])))
    assert many.lookup("q0003") == one.lookup("q0003")
    nearcast.publish("shop", store=f"lmdb:{tmp_path / 'store'}", out=tmp_path / "2")


@pytest.mark.parametrize("kind", ["free", "rules and caps", "a ranking model"])
def test_items_in_id_ranges_that_do_not_begin_where_shards_do_give_the_same_lists(shop, tmp_path, monkeypatch, kind):
    one = run(shop, tmp_path / "1", 1, **SPECS[kind])

    def stage_settings(context):
        folder = context.workspace.artifacts
        return StageSettings(context.read_bytes, context.resources.threads, folder, range_rows=90)

    monkeypatch.setattr(RunContext, "stage_settings", property(stage_settings))
    many = run(shop, tmp_path / "5", 5, **SPECS[kind])
    found = (pq.read_table(snapshot.folder / "candidates") for snapshot in (one, many))
    assert next(found).equals(next(found))
    assert same_measures(many) == same_measures(one)


def test_the_shards_of_a_run_are_joined_by_several_processes(shop, tmp_path, monkeypatch):
    monkeypatch.undo()  # other processes cut the queries as ever
    one = run(shop, tmp_path / "1", 1, **SPECS["rules and caps"])
    many = run(shop, tmp_path / "3", 3, **{**SPECS["rules and caps"], "run": {"shards": 3, "runner": "processes"}})
    assert hash_files(many) == hash_files(one)


@pytest.mark.parametrize("kind", ["free", "rules and caps", "a ranking model"])
def test_below_recall_1_the_merged_lists_meet_the_target(shop, tmp_path, kind):
    settings = {"engine": "dense", "engine_settings": {"cells": 16}, "recall": 0.9, **SPECS[kind]}
    snapshot = run(shop, tmp_path, 3, **settings)
    assert snapshot.manifest.measures["recall"] >= 0.9
    assert json.loads((snapshot.folder / "manifest.json").read_text())["promise"]["kept"] is not False


def test_the_artifacts_of_a_run_on_shards_stay_with_its_snapshot(shop, tmp_path):
    snapshot = run(shop, tmp_path, 3)
    home = tmp_path / "shop" / "artifacts"
    assert sum(name.startswith("index-") for name in snapshot.manifest.artifacts) == 3
    assert all((home / name).is_dir() for name in snapshot.manifest.artifacts)
    assert not (tmp_path / "shop" / "work").exists()


def test_a_later_run_uses_the_indexes_of_the_shards_again(shop, tmp_path):
    run(shop, tmp_path, 3)
    home = tmp_path / "shop" / "artifacts"
    made = {path.name: path.stat().st_mtime_ns for path in home.glob("index-*")}
    nearcast.run(spec_of(tmp_path, 3, measure={"sample": 101}), base=shop, listener=Listener(), again=True)
    assert {path.name: path.stat().st_mtime_ns for path in home.glob("index-*")} == made


def test_near_duplicate_caps_are_refused_on_shards_with_the_way_out(shop, tmp_path):
    with pytest.raises(SpecError, match=r"no task of a run with several item shards holds all items; write the groups"):
        run(shop, tmp_path, 2, caps=[{"near_duplicate_cosine": 0.9}])


@pytest.mark.parametrize(
    ("settings", "items", "shards"),
    [({}, 5, 1), ({"shards": 9}, 5, 5), ({"shards": 3}, 100, 3), ({"shard_bytes": "32MB"}, 1_000_000, 16)],
)
def test_shards_and_shard_bytes_cut_as_many_shards_as_needed(settings, items, shards):
    assert count_shards(generator(run=settings), items, 512) == shards


def test_a_run_on_shards_is_explained_as_one_on_all_items(shop, tmp_path):
    told = []
    for shards in (1, 3):
        settings = {**SPECS["rules and caps"], "k": 5}
        snapshot = run(shop, tmp_path / str(shards), shards, **settings)
        rows = pq.read_table(snapshot.folder / "candidates").slice(100, 1).to_pylist()[0]
        items = [*rows["candidate_ids"][:2], "i0400", "i0017", "i0555"]
        told.append(
            [nearcast.explain("shop", rows["query_id"], item, out=tmp_path / str(shards)).words for item in items]
        )
    assert told[0] == told[1]


def test_more_shards_than_items_run_too(tmp_path):
    write_parquet(tmp_path / "items.parquet", ["a", "b", "c"], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    spec = spec_of(tmp_path / "out", 9, queries=None, items={"path": "items.parquet"}, k=2)
    snapshot = nearcast.run(spec, base=tmp_path, listener=Listener()).snapshot
    table = pa.concat_tables([pq.read_table(path) for path in sorted((snapshot.folder / "candidates").iterdir())])
    assert table.column("candidate_ids").to_pylist() == [["a", "c"], ["b", "c"], ["c", "a"]]
