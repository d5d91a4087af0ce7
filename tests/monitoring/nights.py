"""A catalogue that changes from night to night, its runs and publishes, and what the monitor says of them."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import nearcast
from nearcast.errors import AuditError, TargetError
from nearcast.monitoring.monitor_pass import MonitorReport

DIM = 24
SHARDS = 4
SEGMENTS = ("home", "garden", "toys", "books", "food")


class Nights:
    """2,000 items in four files and 600 queries, below a folder. Every night some are new, and all move a little."""

    def __init__(
        self,
        folder: Path,
        *,
        metric: str = "cosine",
        seed: int = 1,
        lengths: tuple[float, float] = (1, 1),
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(30, DIM)) + 0.7
        self.items = self._some(2_000, normalized=True)
        self.item_ids = [f"i{n:05d}" for n in range(2_000)]
        self.queries = self._some(600, normalized=True)
        self.query_ids = [f"q{n:05d}" for n in range(600)]
        self.born = {"i": 2_000, "q": 600}
        self.spec: dict[str, Any] = {
            "name": "shop",
            "metric": metric,
            "k": 10,
            "memory": "1GB",
            "threads": 1,
            "engine": "exact",
            "items": {"path": "items/*.parquet"},
            "queries": {"path": "queries.parquet", "attributes": ["segment"]},
            "measure": {"sample": 400, "slices": ["segment"]},
        } | settings
        self.lengths = self.rng.uniform(*lengths, size=(len(self.items), 1))
        self.write()

    def copy(self, folder: Path) -> Nights:
        """Return the same catalogue with the same nights behind it, in a folder of its own."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        twin = copy.deepcopy(self)
        twin.folder = folder
        return twin

    def _some(self, n: int, *, normalized: bool) -> np.ndarray:
        rows = self.centres[self.rng.integers(len(self.centres), size=n)] + 0.6 * self.rng.normal(size=(n, DIM))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalized else rows

    def pass_a_day(self, churn: float = 0.02) -> None:
        """New items and queries take the place of a share of the old ones, and vectors move as a retrained model's."""
        for kind, ids, vectors in (("i", self.item_ids, self.items), ("q", self.query_ids, self.queries)):
            gone = self.rng.choice(len(ids), max(1, int(churn * len(ids))), replace=False)
            vectors[gone] = self._some(len(gone), normalized=True)
            for place in gone:
                ids[place] = f"{kind}{self.born[kind]:05d}"
                self.born[kind] += 1
            vectors += 0.004 * self.rng.normal(size=vectors.shape)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def write(
        self,
        *,
        items: np.ndarray | None = None,
        item_ids: list[str] | None = None,
        queries: np.ndarray | None = None,
        shards: range = range(SHARDS),
    ) -> None:
        """Write the files, with these in place of what is true."""
        vectors = self.items * self.lengths if items is None else items
        ids = self.item_ids if item_ids is None else item_ids
        (self.folder / "items").mkdir(parents=True, exist_ok=True)
        for shard in shards:
            rows = range(shard, len(ids), SHARDS)
            write_parquet(self.folder / "items" / f"part-{shard}.parquet", [ids[r] for r in rows], vectors[list(rows)])
        asked = self.queries if queries is None else queries
        segments = [SEGMENTS[int(name[1:]) % len(SEGMENTS)] for name in self.query_ids]
        write_parquet(self.folder / "queries.parquet", self.query_ids, asked, segment=segments)

    def segment(self, name: str) -> np.ndarray:
        """(queries,) which queries are of a segment."""
        return np.array([SEGMENTS[int(q[1:]) % len(SEGMENTS)] == name for q in self.query_ids])

    def run(self) -> None:
        """Make a snapshot, as promised or not."""
        with contextlib.suppress(TargetError):
            nearcast.run(self.spec, base=self.folder)

    def publish(self) -> list[str]:
        """Publish the newest snapshot; the rules of the audit that stopped it."""
        try:
            nearcast.publish(self.parsed, out=self.folder / "nearcast")
        except AuditError as error:
            return [f.rule for f in error.findings if not f.passed]
        return []

    @property
    def parsed(self) -> Any:
        return nearcast.GeneratorSpec.model_validate(self.spec)

    def look(self) -> MonitorReport:
        """A pass of the monitor."""
        (self.folder / "shop.toml").write_text(toml(self.spec))
        return nearcast.monitor(self.folder / "shop.toml")

    def night(self, churn: float = 0.02) -> list[str]:
        """A healthy day and its run, publish and pass; the checks that found something."""
        self.pass_a_day(churn)
        self.write()
        self.run()
        refused = self.publish()
        return [*(f"audit:{rule}" for rule in refused), *(alert.check for alert in self.look().alerts)]

    def found(self) -> dict[str, str]:
        """Run and look: what was found, by the name of the check."""
        self.run()
        return {alert.check: alert.text for alert in self.look().alerts}


def write_parquet(path: Path, ids: list[str], vectors: np.ndarray, **attributes: Any) -> None:
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({"id": ids, "vector": column, **attributes}), path)


def toml(spec: dict[str, Any]) -> str:
    several = {key: rows for key, rows in spec.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)}
    tables = [f"[{key}]\n{toml(value)}" for key, value in spec.items() if isinstance(value, dict)]
    tables += [f"[[{key}]]\n{toml(row)}" for key, rows in several.items() for row in rows]
    plain = [f"{k} = {json.dumps(v)}" for k, v in spec.items() if not isinstance(v, dict) and k not in several]
    return "\n".join([*plain, *tables]) + "\n"
