"""A simulated catalogue that is refreshed every night: attributes of every kind, rules, natural churn, and bad days."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import nearcast
from nearcast.errors import AuditError

DIM = 16
COUNTRIES = ("DE", "FR", "NL", "ES", "IT", "PL", "AT", "BE")
FIRST_DAY = datetime.date(2026, 1, 5)  # a Monday
TYPES = {
    "bought": pa.list_(pa.string()),
    "countries": pa.list_(pa.string()),
    "country": pa.string(),
    "rating": pa.float64(),
}

Columns = dict[str, Any]


@dataclass
class Catalogue:
    """Items and customers of a shop, and the day it is."""

    folder: Path
    n_items: int = 300
    n_queries: int = 200
    seed: int = 1
    metric: str = "cosine"
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.day = 0
        self.born = 0
        self.centres = self.rng.normal(size=(12, DIM)) + 0.5
        self.categories = [f"category {n}" for n in range(9)]
        self.popularity = self.rng.dirichlet(np.full(9, 2.0))
        self.items = self._new_items(self.n_items)
        self.queries = self._new_queries(self.n_queries)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "shop.toml").write_text(_toml(self.spec()))

    def spec(self) -> dict[str, Any]:
        """The spec of the generator, as plain tables."""
        tables = {
            "name": "shop",
            "metric": self.metric,
            "k": 5,
            "engine": "exact",
            "threads": 1,
            "memory": "1GB",
            "items": {"path": "items.parquet", "attributes": [n for n in self.items if n not in ("id", "vector")]},
            "queries": {
                "path": "queries.parquet",
                "attributes": [n for n in self.queries if n not in ("id", "vector")],
            },
            "rules": [
                {"name": "sold-there", "keep": "item.countries has query.country"},
                {"name": "not-bought", "keep": "not (query.bought has item.id)"},
                {"name": "affordable", "keep": "item.price <= query.budget"},
                {"name": "active", "keep": "item.active"},
            ],
            "measure": {"sample": 100},
        }
        return {key: value for key, value in (tables | self.more).items() if value is not None}

    # ---- what is natural ----

    def _new_items(self, n: int) -> Columns:
        rng, today = self.rng, FIRST_DAY + datetime.timedelta(days=self.day)
        ids = [f"i{self.born + place:06d}" for place in range(n)]
        self.born += n
        category = rng.choice(len(self.categories), n, p=self.popularity)
        prices = np.round(rng.lognormal(3 + 0.2 * (category % 3), 0.8), 2)
        released = [today - datetime.timedelta(days=int(d)) for d in rng.exponential(200 if self.day == 0 else 3, n)]
        return {
            "id": ids,
            "vector": self._vectors(n),
            "title": [f"{self.categories[c]}, the {name}" for c, name in zip(category, ids, strict=True)],
            "category": [self.categories[c] for c in category],
            "price": prices.tolist(),
            "cents": [round(100 * float(price)) for price in prices],
            "stars": rng.choice([1, 2, 3, 4, 5], n, p=[0.05, 0.05, 0.2, 0.4, 0.3]).tolist(),
            "discount": np.where(rng.random(n) < 0.8, 0.0, np.round(rng.random(n) * 0.5, 2)).tolist(),
            "active": (rng.random(n) < 0.9).tolist(),
            "gift": (rng.random(n) < 0.5).tolist(),
            "countries": [sorted(rng.choice(COUNTRIES, rng.integers(1, 5), replace=False).tolist()) for _ in range(n)],
            "released": released,
            "sold": rng.poisson(rng.lognormal(2, 1.5, n) if self.day == 0 else 1.0, n).tolist(),
            "views": rng.lognormal(4, 1, n).tolist(),
            "updated_at": [today] * n,
            "vat": [0.19] * n,
            "rating": [None if rng.random() < 0.3 else round(float(rng.uniform(1, 5)), 1) for _ in range(n)],
            "notes": [None] * n,
        }

    def _new_queries(self, n: int) -> Columns:
        rng = self.rng
        known = self.items["id"]
        return {
            "id": [f"q{self.born + place:06d}" for place in range(n)] if self.day else [f"q{p:06d}" for p in range(n)],
            "vector": self._vectors(n),
            "country": [None if rng.random() < 0.03 else str(rng.choice(COUNTRIES)) for _ in range(n)],
            "budget": np.round(rng.lognormal(4, 0.8, n), 2).tolist(),
            "bought": [rng.choice(known, rng.integers(0, 6), replace=False).tolist() for _ in range(n)],
        }

    def _vectors(self, n: int) -> list[np.ndarray]:
        rows = self.centres[self.rng.integers(len(self.centres), size=n)] + 0.5 * self.rng.normal(size=(n, DIM))
        return list(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def pass_a_day(self) -> None:
        """Churn of 2% to 5%, growth, prices, weekdays, a new category now and then, models that learn."""
        rng, items, queries = self.rng, self.items, self.queries
        self.day += 1
        today = FIRST_DAY + datetime.timedelta(days=self.day)
        if self.day % 7 == 3:
            self.categories.append(f"category {len(self.categories)}")
            self.popularity = np.append(self.popularity * 0.9, 0.1)
        for table, make in ((items, self._new_items), (queries, self._new_queries)):
            n = len(table["id"])
            stay = np.flatnonzero(rng.random(n) >= rng.uniform(0.02, 0.05))
            fresh = make(n - len(stay) + int(rng.poisson(0.01 * n)))
            if table is queries:
                fresh["id"] = [f"q{self.day:03d}-{place}" for place in range(len(fresh["id"]))]
            for name, values in table.items():
                table[name] = [values[place] for place in stay] + fresh[name]
        n = len(items["id"])
        moved = rng.random(n) < 0.3
        items["price"] = np.where(moved, np.round(np.array(items["price"]) * rng.normal(1, 0.08, n), 2), items["price"])
        items["price"] = np.maximum(items["price"], 0.01).tolist()
        items["cents"] = [round(100 * price) for price in items["price"]]
        items["sold"] = (np.array(items["sold"]) + rng.poisson(1.5, n)).tolist()
        weekend = 1.4 if today.weekday() >= 5 else 1.0
        items["views"] = (np.array(self._views_of_a_day(n)) * weekend).tolist()
        items["updated_at"] = [today] * n
        flipped = rng.random(n) < 0.02
        items["active"] = [
            bool(a) != bool(f) and rng.random() < 0.99 for a, f in zip(items["active"], flipped, strict=True)
        ]
        items["active"] = [a or rng.random() < 0.3 for a in items["active"]]
        on_sale = 0.3 if today.weekday() == 4 else 0.2
        items["discount"] = np.where(rng.random(n) > on_sale, 0.0, np.round(rng.random(n) * 0.5, 2)).tolist()
        for table in (items, queries):
            rows = np.array(table["vector"]) + 0.004 * rng.normal(size=(len(table["id"]), DIM))
            table["vector"] = list(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        for place in np.flatnonzero(rng.random(len(queries["id"])) < 0.2):
            queries["bought"][place] = [*queries["bought"][place], str(rng.choice(items["id"]))][-8:]

    def _views_of_a_day(self, n: int) -> list[float]:
        views = self.items["views"]
        kept = [views[place] if place < len(views) else 50.0 for place in range(n)]
        return (np.array(kept) * self.rng.lognormal(0, 0.3, n) ** 0.9).tolist()

    # ---- a night ----

    def write(self, spoil: Callable[[Columns, Columns], Any] | None = None) -> None:
        """Write the files; `spoil` changes a copy of the columns of items and queries first."""
        items, queries = dict(self.items), dict(self.queries)
        if spoil is not None:
            spoil(items, queries)
        _write(self.folder / "items.parquet", items)
        _write(self.folder / "queries.parquet", queries)

    def refresh(self, **accept: str) -> dict[str, str]:
        """Refresh; the texts of the rules that refused the night, by name; none if it was published."""
        try:
            nearcast.refresh(self.folder / "shop.toml")
        except AuditError as error:
            return {finding.rule: finding.text for finding in error.findings if not finding.passed}
        return {}

    def served(self) -> int:
        """The version that is served."""
        return nearcast.published("shop", out=self.folder / "nearcast")[0].pointer.version


def _write(path: Path, columns: Columns) -> None:
    vectors = np.ascontiguousarray(np.array(columns["vector"]), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({n: column if n == "vector" else _column(n, v) for n, v in columns.items()}), path)


def _column(name: str, values: Any) -> pa.Array:
    """The values with the type that the column has on other days, if they fit it; an array as it is."""
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(values, TYPES.get(name))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(values)


def _toml(spec: dict[str, Any]) -> str:
    plain = [f"{key} = {json.dumps(value)}" for key, value in spec.items() if not _is_nested(value)]
    tables = [f"[{key}]\n{_toml(value)}" for key, value in spec.items() if isinstance(value, dict)]
    rows = [
        f"[[{key}]]\n{_toml(row)}"
        for key, value in spec.items()
        if _is_nested(value)
        for row in value
        if isinstance(value, list)
    ]
    return "\n".join([*plain, *tables, *rows]) + "\n"


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
