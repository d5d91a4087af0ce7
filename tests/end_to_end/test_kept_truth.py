"""Runs on a new day update the truth of the day before, and nobody can tell from their snapshots."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end import shop as at

import nearcast
from nearcast.measure import truth
from needs import require_module

DIM, N_ITEMS = 16, 1_500
TRUTH = Path("nearcast/shop/artifacts/truth")


def write_items(folder: Path, day: int) -> None:
    """On the second day 60 items are gone, 20 have other vectors, and 50 are new."""
    vectors = at.clustered(N_ITEMS, DIM, seed=1)
    ids = np.array([f"i{n:04d}" for n in range(N_ITEMS)])
    if day == 2:
        vectors[7::75] += np.float32(0.1)
        stays = np.arange(N_ITEMS) % 25 != 0
        ids = np.concatenate([ids[stays], [f"h{n:04d}" for n in range(50)]])
        vectors = np.concatenate([vectors[stays], at.clustered(50, DIM, seed=3)])
    at.write_rows(folder / "items.parquet", ids.tolist(), list(vectors))


def run(folder: Path) -> None:
    shared = {"name": "shop", "metric": "cosine", "k": 10, "memory": "2GB", "threads": 2, "recall": 0.5}
    measure = {"sample": 300, "calibration": 200}
    sides = {"items": {"path": "items.parquet"}, "queries": {"path": "queries.parquet"}}
    nearcast.run(shared | sides | {"measure": measure, "engine": "faiss-ivf"}, base=folder)


def snapshot(folder: Path, number: int) -> dict[str, str]:
    """A hash of every file of a snapshot; of the manifest without the part that tells of times."""
    home = folder / f"nearcast/shop/snapshots/{number:06d}"
    hashes = {}
    for path in sorted(p for p in home.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            manifest = json.loads(content)
            del manifest["run"]
            content = json.dumps(manifest, sort_keys=True).encode()
        hashes[path.relative_to(home).as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


@pytest.fixture
def first_day(tmp_path: Path) -> Path:
    require_module("faiss")
    folder = tmp_path / "kept"
    folder.mkdir()
    at.write_rows(
        folder / "queries.parquet", [f"q{n:04d}" for n in range(1_200)], list(at.clustered(1_200, DIM, seed=2))
    )
    write_items(folder, 1)
    run(folder)
    return folder


def test_a_snapshot_does_not_tell_whether_its_truth_was_kept(first_day: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = first_day.with_name("forgotten")
    shutil.copytree(first_day, forgotten)
    shutil.rmtree(forgotten / TRUTH)
    joined = []

    def spy(queries, items, *rest, **more):
        joined.append(items.n)
        return exact(queries, items, *rest, **more)

    exact = truth.exact_join
    monkeypatch.setattr(truth, "exact_join", spy)
    for folder in (first_day, forgotten):
        write_items(folder, 2)
        run(folder)
    # The sample of the report and that of the calibration: by the 70 items of the day, and by all of them.
    assert joined[:2] == [70] * 2
    assert joined[2:] == [N_ITEMS - 60 + 50] * 2
    assert snapshot(first_day, 2) == snapshot(forgotten, 2)


def test_kept_truth_outlives_the_snapshot_and_is_no_part_of_it(first_day: Path) -> None:
    manifest = json.loads((first_day / "nearcast/shop/snapshots/000001/manifest.json").read_text())
    assert len(list((first_day / TRUTH).glob("lists-*/manifest.json"))) == 2
    assert len(list((first_day / TRUTH).glob("state-*/manifest.json"))) == 1
    assert not any("truth" in name for name in manifest["artifacts"])


def test_damaged_truth_changes_nothing(first_day: Path) -> None:
    whole = first_day.with_name("whole")
    shutil.copytree(first_day, whole)
    for path in (first_day / TRUTH).glob("*/*.npy"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    for folder in (first_day, whole):
        write_items(folder, 2)
        run(folder)
    assert snapshot(first_day, 2) == snapshot(whole, 2)
