"""A run over tables in many id ranges makes the snapshot of a run over tables in one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import generator, source_spec
from nearcast.join.context import RunContext
from nearcast.measure.truth_folders import ensure_state, open_state
from nearcast.sources.changes import compare_tables
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.open_source import open_source
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.storage.artifacts import LocalArtifacts

ITEMS, QUERIES, DIM = 400, 150, 6


def write_tables(folder, seed=0):
    rng = np.random.default_rng(seed)
    for name, n in (("items", ITEMS), ("queries", QUERIES)):
        vectors = rng.normal(size=(n, DIM)).astype(np.float32)
        rows = {
            "id": [f"{'iq'[name == 'queries']}-{i}" if i % 3 else f"both-{i}" for i in rng.permutation(n)],
            "vector": [None if i % 50 == 7 else row for i, row in enumerate(vectors.tolist())],
            "shop": [f"shop {i % 9}" for i in range(n)],
            "country": [("de", "fr", "it")[i % 3] for i in range(n)],
            "bonus": rng.uniform(size=n).round(3),
            "weight": rng.integers(1, 9, size=n),
        }
        pq.write_table(pa.table(rows), folder / f"{name}.parquet", row_group_size=30)


SPECS = {
    "plain": {},
    "of items alone": {"queries": None},
    "rules, caps and weights": {
        "rules": [{"name": "country", "keep": "item.country == query.country"}],
        "caps": [{"by": "shop", "max_per_list": 2}],
        "min_score": -3.0,
        "queries": {"path": "queries.parquet", "attributes": ["country"], "weight": "weight"},
    },
    "score terms": {"score": {"add": "bonus", "weight": 0.5}},
    "exposure": {"exposure": {"max_lists_per_item": 20, "candidates_per_query": 20}},
    "dense": {"engine": "dense", "recall": 0.9},
}


def spec_of(name):
    columns = {"attributes": ["country", "shop", "bonus", "weight"]}
    spec = {
        "name": "test",
        "metric": "inner_product",
        "k": 5,
        "engine": "exact",
        "checks": {"null_vector": "keep"},
        "items": {"path": "items.parquet"} | columns,
        "queries": {"path": "queries.parquet"} | columns,
    }
    return {key: value for key, value in (spec | SPECS[name]).items() if value is not None}


def cut_into_ranges(monkeypatch, rows):
    def settings(run):
        return StageSettings(run.read_bytes, run.resources.threads, run.workspace.artifacts, range_rows=rows)

    monkeypatch.setattr(RunContext, "stage_settings", property(settings))


def read(folder):
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).combine_chunks()


def facts(snapshot):
    found = snapshot.manifest.as_dict()
    return {name: found[name] for name in ("measures", "inputs", "profile", "promise", "rows", "fingerprint")}


@pytest.mark.parametrize("name", SPECS)
def test_a_run_over_ranges_makes_the_same_snapshot(name, tmp_path, monkeypatch):
    write_tables(tmp_path)
    whole = nearcast.run(spec_of(name) | {"out": "whole"}, base=tmp_path).snapshot
    cut_into_ranges(monkeypatch, 40)
    cut = nearcast.run(spec_of(name) | {"out": "cut"}, base=tmp_path).snapshot
    artifacts = tmp_path / "cut" / "test" / "artifacts"
    assert any(path.name.endswith("-ranges") for path in artifacts.iterdir())
    assert read(cut.folder / "candidates").equals(read(whole.folder / "candidates"))
    for table in ("items", "queries"):
        if (whole.folder / table).exists():
            assert read(cut.folder / table).equals(read(whole.folder / table))
    assert facts(cut) == facts(whole)
    again = nearcast.run(spec_of(name) | {"out": "cut"}, base=tmp_path, again=True).snapshot
    assert read(again.folder / "candidates").equals(read(cut.folder / "candidates"))


@pytest.mark.parametrize("name", ["plain", "score terms", "exposure"])
def test_a_candidate_of_a_run_over_ranges_is_explained_as_one_of_a_run_over_one_range(name, tmp_path, monkeypatch):
    write_tables(tmp_path)
    whole = nearcast.run(spec_of(name) | {"out": "whole"}, base=tmp_path).snapshot
    cut_into_ranges(monkeypatch, 40)
    nearcast.run(spec_of(name) | {"out": "cut"}, base=tmp_path)
    rows = read(whole.folder / "candidates").slice(0, 3).to_pylist()
    for row in rows:
        for item in (row["candidate_ids"][0], "i-1"):
            one, other = (
                nearcast.explain("test", row["query_id"], item, out=tmp_path / out).as_dict()
                for out in ("whole", "cut")
            )
            assert one == other


def test_the_state_of_a_table_in_ranges_is_that_of_one_range(tmp_path):
    write_tables(tmp_path)
    source = open_source(source_spec(tmp_path / "items.parquet"), tmp_path)
    spec = generator(checks={"null_vector": "drop"})
    states = []
    for rows in (40, 1 << 20):
        staged = stage_table(source, spec, StageSettings(1 << 24, range_rows=rows), "items")
        side = {"dim": DIM, "dtype": "float32"}
        artifacts = LocalArtifacts(tmp_path / str(rows))
        table = ingest_staged(staged, "items", artifacts, side, memory_bytes=1 << 24, table="items")
        states.append(open_state(ensure_state(tmp_path / f"state-{rows}", table, print), print))
    cut, whole = states
    assert cut.ids.to_pylist() == whole.ids.to_pylist()
    assert np.array_equal(cut.hashes.whole(), whole.hashes.whole())
    everything = np.arange(len(whole.ids))
    changes = compare_tables(cut, whole, everything, everything, most=0)
    assert np.array_equal(changes.now, everything)
    assert np.array_equal(changes.before, everything)
