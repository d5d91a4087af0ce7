"""Files of ours that are cut short: the error names the file, and no process dies of a signal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.end_to_end import shop as at

import nearcast
from nearcast.artifact_files import map_array
from nearcast.engines import ENGINES
from nearcast.errors import DamagedError
from nearcast.join.compile_constraints import open_constraints
from nearcast.join.joined_lists import read_result
from nearcast.join.open_index import open_index
from nearcast.sources.ids import read_ids, write_ids
from nearcast.sources.ingest import open_ingested_table
from nearcast.types import FileVectors, Metric

N = 2000
SPEC: dict[str, Any] = {
    "name": "shop",
    "metric": "l2",
    "k": 5,
    "memory": "2GB",
    "threads": 1,
    "recall": 0.9,
    "engine": "dense",
    "engine_settings": {"cells": 20, "reach": 100},
    "rules": [{"name": "cheap", "keep": "item.price < query.limit"}],
    "caps": [{"by": "price", "max_per_list": 3}],
    "items": {"path": "items.parquet", "attributes": ["price"]},
    "queries": {"path": "queries.parquet", "attributes": ["limit"]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    vectors = at.clustered(N, 8, seed=4)
    at.write_rows(folder / "items.parquet", list(range(N)), list(vectors), price=[n % 7 for n in range(N)])
    at.write_rows(folder / "queries.parquet", list(range(99)), list(vectors[:99]), limit=[5] * 99)
    nearcast.run(SPEC, base=folder)
    return folder


def sizes(path: Path) -> list[int]:
    """Nothing, less than a header, every 4,096 bytes, and one byte less than all."""
    size = path.stat().st_size
    every = range(4096, size, max(4096, size // 8 // 4096 * 4096))
    return sorted({0, 1, 100, *every, size - 1} & set(range(size)))


def cut_files(folder: Path) -> list[tuple[Path, int]]:
    return [(path, size) for path in sorted(folder.rglob("*")) if path.is_file() for size in sizes(path)]


def test_every_file_of_every_artifact_cut_anywhere_is_an_error_that_names_it(made: Path, tmp_path: Path) -> None:
    artifacts = next(path for path in made.rglob("artifacts") if path.is_dir())
    (items,) = artifacts.glob("items-*")
    openers = {
        "items": open_ingested_table,
        "queries": open_ingested_table,
        "constraints": open_constraints.__wrapped__,
        "index": lambda folder: open_index.__wrapped__(
            items, folder, "dense", tuple(SPEC["engine_settings"].items()), Metric.L2
        ),
    }
    kinds = set()
    for folder in sorted(artifacts.iterdir()):
        kind = folder.name.split("-")[0]
        kinds.add(kind)
        openers[kind](folder)
        for path, size in cut_files(folder):
            if path.name == "manifest.json" and size == path.stat().st_size - 1:
                continue  # the line's end
            copy = tmp_path / folder.name
            shutil.copytree(folder, copy)
            with (copy / path.relative_to(folder)).open("r+b") as file:
                file.truncate(size)
            with pytest.raises(DamagedError, match=str(copy)):
                openers[kind](copy)
            shutil.rmtree(copy)
    assert kinds == set(openers)


@pytest.mark.parametrize("engine", ["dense", "faiss-ivf", "faiss-hnsw"])
def test_an_index_that_is_cut_without_a_manifest_to_say_so_is_an_error(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, at.clustered(N, 8, seed=4))
    items = FileVectors.open(path)
    chosen = ENGINES[engine]
    settings = chosen.settings.model_validate({})
    folder = tmp_path / "index"
    folder.mkdir()
    resources = nearcast.engines.base.Resources(1, 1 << 28)
    spec = nearcast.engines.base.IndexSpec(Metric.L2, settings)
    chosen.build(items, spec, resources).save(folder, resources)
    for path, size in cut_files(folder):
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="index"):
            chosen.open(folder, items, spec)
        path.write_bytes(whole)


def test_arrays_and_ids_that_are_cut_are_never_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "positions.npy", np.zeros((900, 4), np.int64))
    np.save(tmp_path / "scores.npy", np.zeros((900, 4), np.float32))
    write_ids(tmp_path / "ids.arrow", pa.array([f"id-{n}" for n in range(3000)], pa.large_string()))
    readers = {
        "positions.npy": read_result,
        "scores.npy": read_result,
        "ids.arrow": lambda f: read_ids(f / "ids.arrow"),
    }
    for name, read in readers.items():
        path = tmp_path / name
        whole = path.read_bytes()
        for size in sizes(path):
            path.write_bytes(whole[:size])
            with pytest.raises(DamagedError, match=name):
                read(tmp_path)
        path.write_bytes(whole)
        read(tmp_path)


def test_ids_whose_offsets_lead_out_of_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.arrow"
    write_ids(path, pa.array(["a", "b", "c"], pa.large_string()))
    assert read_ids(path).to_pylist() == read_ids(path).to_pylist() == ["a", "b", "c"]  # the second time known as whole
    data = path.read_bytes()
    offsets = np.arange(4, dtype=np.int64).tobytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, np.array([0, 1, 2, 1 << 40], np.int64).tobytes()))
    with pytest.raises(DamagedError, match=r"ids\.arrow"):
        read_ids(path)


def test_vectors_that_shrink_between_two_reads_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.ones((4000, 8), np.float32))
    vectors = FileVectors.open(path)
    assert vectors.read(3999, 4000).sum() == 8
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(DamagedError, match=r"vectors\.npy"):
        vectors.read(3999, 4000)
    np.save(path, np.ones((10, 8), np.float32))
    with pytest.raises(DamagedError, match="replaced"):
        vectors.take(np.array([3999]))


def test_an_archive_or_an_object_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", a=np.ones(3))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "folder.npy").mkdir()
    for name in ("archive.npz", "objects.npy", "folder.npy", "missing.npy"):
        with pytest.raises(DamagedError, match=name):
            map_array(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
        np.array(7, np.uint16),
        np.array([(1, 2.5)], [("a", "i4"), ("b", "f4")]),
        np.empty((0, 4), np.float32),
        np.array([b"", b""], "S0"),
        np.zeros((1,) * 60 + (2,), np.int8),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.ndim}",
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_mapped_array_is_the_one_that_numpy_reads(tmp_path: Path, array: Any, version: tuple[int, int]) -> None:
    path = tmp_path / "array.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version)
    mapped, read = map_array(path), np.load(path)
    assert (mapped.dtype, mapped.shape, mapped.flags.f_contiguous) == (read.dtype, read.shape, read.flags.f_contiguous)
    assert mapped.tobytes() == read.tobytes()
    assert mapped.size == 0 or not mapped.flags.writeable


@pytest.mark.parametrize(
    "shape", ["(-3,)", "(3, -1)", "(1000000,)", "(9223372036854775807, 9)", "(True,)", "3", "(3.0,)"]
)
def test_a_header_with_another_shape_than_the_file_has_is_refused(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(3))
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    path.write_bytes(path.read_bytes()[:10] + header + path.read_bytes()[128:])
    with pytest.raises(DamagedError, match=r"array\.npy"):
        map_array(path)
