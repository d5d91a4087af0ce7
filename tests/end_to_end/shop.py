"""What end-to-end tests are made of: a small shop on disk, and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests.forked_cli import run_command

NEARCAST = Path(sys.executable).with_name("nearcast")
KINDS = ("Oat milk", "Rye bread", "Black tea", "Dish soap")
N_ITEMS, N_QUERIES = 600, 300

Finished = subprocess.CompletedProcess[str]


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change where nearcast looks or how wide it draws."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NEARCAST_OUT", "COLUMNS", "LINES", "NO_COLOR")}
    return kept | {"TERM": "xterm"} | more


def nearcast(*words: object, cwd: Path, **env: str) -> Finished:
    """Run the command line to its end: forked, or with variables that Python reads at its start, the program itself."""
    arguments = [str(word) for word in words]
    if not any(name.startswith("PYTHON") for name in env):
        return run_command(arguments, cwd=cwd, env=environment(**env), timeout=300)
    return subprocess.run(
        [str(NEARCAST), *arguments],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def succeed(*words: object, cwd: Path) -> Finished:
    """Run it; it must exit with 0."""
    done = nearcast(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def fail(*words: object, code: int, cwd: Path, **env: str) -> str:
    """Run it; it must exit with this code and a message instead of a traceback. Returns the message."""
    done = nearcast(*words, cwd=cwd, **env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.lower()
    return done.stderr


def clustered(n: int, dim: int = 16, *, seed: int, clusters: int = 12) -> np.ndarray:
    """(n, dim) float32 around a few centers that all seeds share."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(clusters, dim))
    return (centers[rng.integers(clusters, size=n)] + 0.4 * rng.normal(size=(n, dim))).astype(np.float32)


def write_rows(path: Path, ids: Sequence[Any], vectors: Sequence[Any], **attributes: Any) -> None:
    """A Parquet file with the columns id, vector and these attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [None if v is None else np.asarray(v, np.float32) for v in vectors]
    pq.write_table(pa.table({"id": ids, "vector": pa.array(rows, pa.list_(pa.float32())), **attributes}), path)


def write_items(folder: Path, vectors: np.ndarray) -> None:
    """items.parquet: i0000 and on, in no order, with names and categories."""
    order = np.random.default_rng(5).permutation(len(vectors))
    write_rows(
        folder / "items.parquet",
        [f"i{i:04d}" for i in order],
        list(vectors[order]),
        name=[f"{KINDS[i % 4]} no. {i}" for i in order],
        category=[KINDS[i % 4].split()[1] for i in order],
    )


def write_shop(folder: Path, **settings: Any) -> Path:
    """Items, queries and the spec of the generator `shop`. Returns the spec's path."""
    write_items(folder, clustered(N_ITEMS, seed=1))
    write_rows(folder / "queries.parquet", [f"q{i:03d}" for i in range(N_QUERIES)], list(clustered(N_QUERIES, seed=2)))
    return write_spec(folder, **settings)


def write_spec(folder: Path, file: str = "shop.toml", **settings: Any) -> Path:
    """A spec with these settings beside the ones every test shares; None takes a setting out."""
    shared = {
        "name": "shop",
        "metric": "cosine",
        "k": 10,
        "memory": "2GB",
        "threads": 1,
        "items": {"path": "items.parquet", "attributes": ["category"], "display": ["name"]},
        "queries": {"path": "queries.parquet"},
    }
    tables = {k: v for k, v in (shared | settings).items() if v is not None}
    path = folder / file
    path.write_text(_toml(tables), encoding="utf-8")
    return path


def _toml(tables: Mapping[str, Any]) -> str:
    plain = [f"{k} = {json.dumps(v)}" for k, v in tables.items() if not isinstance(v, dict)]
    nested = [f"\n[{k}]\n{_toml(v)}" for k, v in tables.items() if isinstance(v, dict)]
    return "\n".join([*plain, *nested]) + "\n"


def snapshot(folder: Path, version: int = 1, name: str = "shop") -> Path:
    """The folder of a snapshot."""
    return folder / "nearcast" / name / "snapshots" / f"{version:06d}"


def manifest(folder: Path, version: int = 1, name: str = "shop") -> dict[str, Any]:
    """The manifest of a snapshot."""
    read: dict[str, Any] = json.loads((snapshot(folder, version, name) / "manifest.json").read_text(encoding="utf-8"))
    return read


def snapshots(folder: Path, name: str = "shop") -> list[str]:
    """The names of the snapshots that there are."""
    return sorted(path.name for path in (folder / "nearcast" / name / "snapshots").glob("*"))


def flip_a_byte(path: Path, place: int) -> None:
    """Turn all bits of one byte over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
