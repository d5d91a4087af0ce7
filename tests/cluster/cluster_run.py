"""A generator small enough for a minute, and with a join of several tasks; its bytes, and the reference's lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from builders import clustered, write_parquet
from nearcast.files import file_hash
from nearcast.table.snapshot import Snapshot

ITEMS, QUERIES, DIM = 6_000, 4_000, 16
COUNTRIES = ("de", "fr", "us")


def write_inputs(folder: Path, changed: int = 0) -> None:
    """Write both tables, with a country and a brand. changed: rows of each with another vector, and as many gone."""
    rng = np.random.default_rng(5)
    for name, n, seed in (("items", ITEMS, 1), ("queries", QUERIES, 2)):
        vectors = clustered(n, DIM, seed=seed)
        vectors[:changed] = clustered(n, DIM, seed=seed + 2)[:changed]
        country = [COUNTRIES[index] for index in rng.integers(len(COUNTRIES), size=n)]
        brand = [f"b{index}" for index in rng.integers(40, size=n)]
        left = n - changed
        write_parquet(
            folder / f"{name}.parquet",
            [f"{name[0]}{number:05d}" for number in range(left)],
            vectors[:left].tolist(),
            country=country[:left],
            brand=brand[:left],
        )


def make_spec(folder: Path, out: str, **settings: Any) -> dict[str, Any]:
    """The spec, with these settings changed."""
    tables = {
        name: {"path": str(folder / f"{name}.parquet"), "attributes": ["country", "brand"]}
        for name in ("items", "queries")
    }
    return {"name": "small", "metric": "l2", "k": 10, "out": str(folder / out), **tables, **settings}


RULES: dict[str, Any] = {
    "rules": [{"name": "shown-here", "keep": "item.country == query.country"}],
    "caps": [{"by": "brand", "max_per_list": 3}],
}


def bytes_of(snapshot: Snapshot) -> dict[str, str]:
    """The hash of every file but the manifest, which has the times of the run."""
    return {path.name + str(path.parent.name): file_hash(path) for path in sorted(snapshot.folder.rglob("*.parquet"))}
