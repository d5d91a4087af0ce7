"""Small things that tests are made of: tables, files, specs, and random joins of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from nearcast.knn import exact_join as reference_join
from nearcast.knn.constraints import FREE
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.spec import GeneratorSpec, SourceSpec, parse_model
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.types import no_progress

METRICS = ("inner_product", "cosine", "l2")
DTYPES = ("float16", "float32", "int8", "uint8")
SHAPES = ("gaussian", "small integers", "copies", "negative", "heavy tails", "zeros among them", "nearly equal")


def vector_column(vectors, *, kind="list", element=None):
    """Vectors (lists, None allowed) as an Arrow column of one of the three kinds of list."""
    element = element or pa.float32()
    if kind == "fixed_size_list":
        return pa.array(vectors, pa.list_(element, len(next(v for v in vectors if v is not None))))
    return pa.array(vectors, pa.large_list(element) if kind == "large_list" else pa.list_(element))


def table(ids, vectors, *, kind="list", element=None, **attributes):
    """A table with the columns id, vector and whatever else is given."""
    return pa.table({"id": ids, "vector": vector_column(vectors, kind=kind, element=element), **attributes})


def write_parquet(path, ids, vectors, *, row_group_size=None, **more):
    """Write such a table; the folder is made. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(ids, vectors, **more), path, row_group_size=row_group_size)
    return path


def generator(**settings):
    """A spec that joins items with themselves under L2, with these settings changed."""
    tables = {"name": "test", "metric": "l2", "k": 1, "items": {"path": "items.parquet"}} | settings
    return parse_model(GeneratorSpec, tables, "the test's spec")


def source_spec(path="items.parquet", **settings):
    return SourceSpec(path=str(path), **settings)


def ingested(source, folder, *, memory_bytes=1 << 26, spec=None):
    """Read a source, keep what the policies keep, and ingest it."""
    staged = stage_table(source, spec or generator(), StageSettings(memory_bytes), "items")
    artifacts = LocalArtifacts(folder.parent)
    artifacts.remove(folder.name)
    return ingest_staged(staged, folder.name, artifacts, {}, memory_bytes=memory_bytes, table="items")


def clustered(n, dim, *, seed, clusters=40):
    """(n, dim) float32 vectors around a few centers: what embeddings look like."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(clusters, dim))
    return (centers[rng.integers(clusters, size=n)] + 0.3 * rng.normal(size=(n, dim))).astype(np.float32)


@dataclass(frozen=True)
class JoinCase:
    """One random join, told by the few numbers that it is made of."""

    seed: int
    n: int
    m: int
    dim: int
    k: int
    metric: str
    query_dtype: str
    item_dtype: str
    shape: str
    excludes: bool

    @cached_property
    def items(self):
        return _vectors(np.random.default_rng([self.seed, 1]), self.m, self.dim, self.item_dtype, self.shape)

    @cached_property
    def queries(self):
        rng = np.random.default_rng([self.seed, 2])
        made = _vectors(rng, self.n, self.dim, self.query_dtype, self.shape)
        if self.shape == "negative":  # every inner product is then below zero
            return np.abs(made.astype(np.float32)).astype(made.dtype)
        if self.query_dtype == self.item_dtype:  # some queries are items: distance zero, or their own best
            copied = rng.random(self.n) < 0.3
            made[copied] = self.items[rng.integers(self.m, size=self.n)][copied]
        return made

    @cached_property
    def exclude(self):
        return np.random.default_rng([self.seed, 3]).integers(-1, self.m, self.n) if self.excludes else None


def _vectors(rng, n, dim, dtype, shape):
    values = rng.normal(size=(n, dim))
    if shape == "small integers":
        values = rng.integers(-2, 3, size=(n, dim)).astype(np.float64)
    elif shape == "copies":
        values = np.random.default_rng(7).normal(size=(3, dim))[rng.integers(3, size=n)]
    elif shape == "negative":
        values = -np.abs(values) - 0.1
    elif shape == "heavy tails":
        values *= np.minimum(rng.pareto(0.6, size=(n, 1)) + 0.01, 1e5)
    elif shape == "zeros among them":
        values[rng.random(n) < 0.3] = 0
    elif shape == "nearly equal":  # differences near the last bits of float32
        values = 1 + values * 1e-6
    if dtype.startswith("float"):
        return np.clip(values, -200, 200).astype(dtype) if dtype == "float16" else values.astype(dtype)
    scaled = np.rint(values if shape == "small integers" else values * 30)
    return np.clip(
        np.abs(scaled) if dtype == "uint8" else scaled, *((0, 255) if dtype == "uint8" else (-128, 127))
    ).astype(dtype)


@st.composite
def join_cases(draw, most_items=1500, most_work=1_500_000):
    """Joins of every metric, dtype, dimension 1 to 300, with ties, duplicates, short lists and exclusions."""
    m = draw(st.one_of(st.integers(1, min(40, most_items)), st.integers(1, most_items)), label="m")
    dim = draw(st.one_of(st.integers(1, 40), st.integers(41, 300)), label="dim")
    n = draw(st.integers(1, 40), label="n")
    query_dtype = draw(st.sampled_from(DTYPES))
    return JoinCase(
        seed=draw(st.integers(0, 9999)),
        n=max(1, min(n, most_work // (m * dim))),
        m=m,
        dim=dim,
        k=draw(st.one_of(st.integers(1, 10), st.integers(11, 120))),
        metric=draw(st.sampled_from(METRICS)),
        query_dtype=query_dtype,
        item_dtype=draw(st.sampled_from((query_dtype, *DTYPES))),
        shape=draw(st.sampled_from(SHAPES)),
        excludes=draw(st.booleans()),
    )


def exact_join(
    queries, items, k, metric, *, exclude=None, constraints=FREE, threads=1, memory_bytes=1 << 30, progress=no_progress
):
    """The exact reference join, called by its values instead of by a request."""
    request = JoinRequest(metric, k, exclude=exclude, constraints=constraints)
    return reference_join.exact_join(queries, items, request, Resources(threads, memory_bytes), progress)
