"""Runs on several processes, and runs that several hosts share through a storage, give the bytes of a local run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from nearcast.api.distributed import gather_run, plan_run
from nearcast.errors import InputError, NotFoundError, SpecError
from nearcast.runners import make_runner
from nearcast.runners.base import Runner

MODEL = "import helper\n\ndef score(batch):\n    return helper.flip(batch.column('score').to_numpy())\n"


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, object]:
    """A spec with rules and caps over tables in a folder apart from the spec's own."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    for name, n in (("items", 3_000), ("queries", 2_500)):
        vectors = rng.standard_normal((n, 16)).astype(np.float32)
        ids = [f"{name[0]}{i}" for i in range(n)]
        table = pa.table({"id": ids, "vector": list(vectors), "shelf": rng.integers(0, 5, n)})
        pq.write_table(table, data / f"{name}.parquet")
    return {
        "name": "g",
        "metric": "cosine",
        "k": 10,
        "recall": 0.9,
        "engine": "dense",
        "items": {"path": str(data / "items.parquet"), "attributes": ["shelf"]},
        "queries": {"path": str(data / "queries.parquet"), "attributes": ["shelf"]},
        "rules": [{"name": "elsewhere", "keep": "item.shelf != query.shelf"}],
        "caps": [{"by": "shelf", "max_per_list": 4}],
        "measure": {"sample": 200, "calibration": 100},
    }


@pytest.fixture
def two_processes() -> Iterator[Runner]:
    with closing(make_runner("processes", 2)) as runner:
        yield runner


def hash_files(folder: Path) -> dict[str, str]:
    """A hash per file; of the manifest without times, machine and the location of the output."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            del manifest["run"], manifest["spec"]["out"]
            content = json.dumps(manifest, sort_keys=True).encode()
        hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


def run_into(spec: dict[str, object], folder: Path, **options: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return hash_files(nearcast.run(spec | {"out": str(folder / "out")}, base=folder, **options).snapshot.folder)


@pytest.mark.parametrize("recall", [0.9, 1.0])
def test_two_processes_give_the_bytes_of_one(shop, tmp_path, recall):
    spec = shop | {"recall": recall}
    assert run_into(spec, tmp_path / "b", runner="processes", workers=2) == run_into(spec, tmp_path / "a")


def test_a_plan_that_is_gathered_gives_the_bytes_of_a_run(shop, tmp_path, two_processes):
    (tmp_path / "b").mkdir()
    plan_run(shop | {"out": str(tmp_path / "b" / "out")}, tmp_path / "work", base=tmp_path / "b")
    gathered = gather_run(tmp_path / "work", runner=two_processes)
    assert not gathered.reused
    assert hash_files(gathered.snapshot.folder) == run_into(shop, tmp_path / "a")
    assert gather_run(tmp_path / "work").reused
    assert not (tmp_path / "work" / "results").exists()


def test_a_ranking_model_beside_the_spec_travels_to_other_hosts(shop, tmp_path, two_processes):
    spec = {key: value for key, value in shop.items() if key != "caps"} | {
        "rank": {"function": "model:score", "fetch": 20}
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(MODEL)
        (tmp_path / name / "helper.py").write_text("def flip(scores):\n    return -scores\n")
    expected = run_into(spec, tmp_path / "a")
    plan_run(spec | {"out": str(tmp_path / "out")}, tmp_path / "work", base=tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert hash_files(gather_run(tmp_path / "work", runner=two_processes).snapshot.folder) == expected


def test_a_location_that_holds_the_plan_of_another_run_is_refused(shop, tmp_path):
    plan_run(shop, tmp_path / "work", base=tmp_path)
    plan_run(shop, tmp_path / "work", base=tmp_path)
    with pytest.raises(
        SpecError, match=r"holds the plan of another run \(k was 10 and is 12\); choose an empty location"
    ):
        plan_run(shop | {"k": 12}, tmp_path / "work", base=tmp_path)


def test_a_location_in_a_folder_of_inputs_is_refused_before_a_file_is_written(shop, tmp_path):
    folder = Path(shop["items"]["path"]).parent
    before = sorted(folder.iterdir())
    for place in (folder, folder / "runs"):
        with pytest.raises(SpecError, match="would be read as rows; choose a location outside"):
            plan_run(shop | {"items": {"path": str(folder)}}, place, base=tmp_path)
    assert sorted(folder.iterdir()) == before


def test_inputs_that_changed_after_the_plan_are_refused_by_the_worker(shop, tmp_path, two_processes):
    plan_run(shop, tmp_path / "work", base=tmp_path)
    path = Path(shop["items"]["path"])
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)
    with pytest.raises(InputError, match="differ from those that the run was planned for"):
        gather_run(tmp_path / "work", runner=two_processes)


def test_a_location_without_a_plan_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFoundError, match="`nearcast plan SPEC --work"):
        gather_run(tmp_path / "work")
