"""Write synthetic snapshots for the serving benchmarks, without a run.

Keys and items have 64-bit ids with gaps; a list holds k different items, best first. Equal arguments give equal lists.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.files import finish, fresh_folder
from nearcast.spec import GeneratorSpec
from nearcast.table.candidate_schema import candidate_schema, candidate_table, rows_per_group
from nearcast.table.snapshot import Snapshot
from nearcast.table.snapshot_home import open_snapshot
from nearcast.table.write_table import cut_files, file_name, write_file
from nearcast.types import Neighbors

Ints = np.ndarray[Any, np.dtype[np.int64]]

STEP = 6  # largest distance between two items of a list, in positions
ID_SPACE = 1 << 40  # ids need 8 bytes, as those of a large shop or network do


def key_ids(n_keys: int) -> Ints:
    """(n_keys,) the keys of a table, ascending."""
    return _ids(n_keys, 1)


def item_ids(n_items: int) -> Ints:
    """(n_items,) the items of a table, ascending."""
    return _ids(n_items, 2)


def make_snapshot(
    out: Path,
    generator: str,
    version: int,
    *,
    n_keys: int,
    k: int,
    n_items: int,
    seed: int = 0,
    best: float = 0.99,
    moved: float = 0.0,
) -> Snapshot:
    """A finished snapshot. best: the highest score. moved: the share of lists that this seed makes anew."""
    folder = fresh_folder(out / generator / "snapshots" / f"{version:06d}")
    keys, items = key_ids(n_keys), pa.array(item_ids(n_items))
    (folder / "candidates").mkdir()

    def write_groups(start: int, stop: int) -> Iterator[pa.Table]:
        for first in range(start, stop, rows_per_group(k)):
            some = keys[first : min(stop, first + rows_per_group(k))]
            neighbors = _lists(len(some), k, n_items, first // rows_per_group(k), seed, best, moved)
            yield candidate_table(pa.array(some), neighbors, items, [None] * len(some))

    for number, rows in enumerate(cut_files(n_keys, k)):
        path = folder / "candidates" / file_name(number)
        write_file(path, candidate_schema(pa.int64(), pa.int64()), k, write_groups(*rows))
    _write_items(folder / "items", items)
    finish(folder, _manifest(generator, version, n_keys, k))
    return open_snapshot(folder)


def _ids(n: int, seed: int) -> Ints:
    steps = np.random.default_rng([seed, n]).integers(1, ID_SPACE // n, n)
    return np.cumsum(steps) + (1 << 32)


def _lists(n: int, k: int, n_items: int, number: int, seed: int, best: float, moved: float) -> Neighbors:
    """Items some steps apart, from a random one on, in a random order: all different, and anywhere on the disk."""
    rng = np.random.default_rng([number, 0])
    starts = rng.integers(n_items, size=n)
    again = np.random.default_rng([number, seed, 1])
    anew = again.random(n) < moved
    starts[anew] = again.integers(n_items, size=int(anew.sum()))
    steps = np.cumsum(rng.integers(1, STEP + 1, size=(n, k)), axis=1)
    order = rng.permutation(k)
    positions = (starts[:, None] + steps[:, order]) % n_items
    scores = best - np.cumsum(rng.random((n, k), np.float32) * np.float32(0.4 / k), axis=1, dtype=np.float32)
    return Neighbors(positions, scores.astype(np.float32))


def _write_items(folder: Path, items: pa.Array) -> None:
    folder.mkdir()
    names = [f"Item no. {number}" for number in range(len(items))]
    prices = np.random.default_rng(3).integers(99, 99_999, len(items)) / 100
    pq.write_table(pa.table({"id": items, "name": names, "price": prices}), folder / "part-00000.parquet")


def _manifest(generator: str, version: int, n_keys: int, k: int) -> dict[str, Any]:
    spec = GeneratorSpec(name=generator, metric="cosine", k=k, items={"path": "made-up.parquet", "display": ["name"]})
    return {
        "format": 1,
        "generator": generator,
        "version": version,
        "rows": n_keys,
        "fingerprint": f"made-up-{version}",
        "spec": spec.model_dump(mode="json"),
        "inputs": {},
        "engine": {"name": "none", "settings": {}, "effort": {}, "calibration": None},
        "artifacts": [],
        "measures": {
            "fill_rate": 1.0,
            "query_coverage": 1.0,
            "item_coverage": 1.0,
            "recall": 1.0,
            "recall_low": 1.0,
            "recall_high": 1.0,
            "recall_sample": n_keys,
        },
        "promise": {"recall": 1.0, "kept": True, "reason": None},
        "run": {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds_total": 0.0},
    }
