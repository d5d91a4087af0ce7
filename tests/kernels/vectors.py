"""Vectors with what goes wrong: equal rows, zero rows, rows of very different length."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from nearcast import kernels
from nearcast.kernels import quantize
from nearcast.knn.constraints import FREE, Constraints
from nearcast.knn.join_request import JoinRequest, Resources

METRICS = ("inner_product", "cosine", "l2")
DTYPES = (np.float16, np.float32, np.int8, np.uint8)


def draw_vectors(rng: np.random.Generator, n: int, d: int, dtype: type, shape: str) -> np.ndarray:
    values = rng.standard_normal((n, d))
    if shape == "heavy_tailed":
        values *= rng.pareto(1.2, size=(n, 1)) + 0.01
    if shape == "one_sided":
        values = values - 3.0
    if shape == "spiky":
        values *= rng.random((n, d)) < 0.1
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values * 20 + (64 if dtype is np.uint8 else 0)), info.min, info.max)
    values = np.clip(values, -60000, 60000).astype(dtype)
    if n > 3:
        values[rng.integers(n, size=n // 4)] = values[0]
        values[rng.integers(n)] = 0
    return values


@st.composite
def joins(draw, most_items: int = 700):
    """(queries, items, k, metric, exclude, threads)"""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.sampled_from([1, 2, 5, 16, 17, 31, 33, 64, 65, 100, 128, 200, 384]))
    n, m = draw(st.integers(0, 60)), draw(st.integers(0, most_items))
    dtypes = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(["plain", "heavy_tailed", "one_sided", "spiky"]))
    queries, items = draw_vectors(rng, n, d, dtypes[0], shape), draw_vectors(rng, m, d, dtypes[1], shape)
    exclude = rng.integers(-1, max(1, m), size=n) if draw(st.booleans()) else None
    k = draw(st.sampled_from([1, 2, 10, 50, 100, 1000]))
    return queries, items, k, draw(st.sampled_from(METRICS)), exclude, draw(st.integers(1, 3))


def join_exact(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    metric: str,
    *,
    exclude: np.ndarray | None = None,
    constraints: Constraints = FREE,
    threads: int = 1,
    memory_bytes: int = 1 << 30,
    progress=None,
) -> kernels.JoinOutput:
    """The exact native join, called by its values instead of by a request."""
    request = JoinRequest(metric, k, exclude=exclude, constraints=constraints)
    return kernels.join_exact(queries, items, request, Resources(threads, memory_bytes), progress)


def join_cells(
    index: kernels.CellIndex,
    queries: np.ndarray,
    k: int,
    *,
    radius: float = np.inf,
    exclude: np.ndarray | None = None,
    constraints: Constraints = FREE,
    threads: int = 1,
    memory_bytes: int = 1 << 30,
) -> kernels.JoinOutput:
    """The join of an index, called by its values instead of by a request."""
    request = JoinRequest(index.metric, k, exclude=exclude, constraints=constraints)
    return index.join(queries, request, radius=radius, resources=Resources(threads, memory_bytes))


def calibrate_radius(index: kernels.CellIndex, queries: np.ndarray, k: int, recall: float) -> float:
    """The least probe radius, to 1%, at which these queries find `recall` of their true neighbours."""
    truth = join_cells(index, queries, k).positions
    low, high = -4.0, 8.0
    for _ in range(10):
        radius = (low + high) / 2
        positions = join_cells(index, queries, k, radius=radius).positions
        low, high = (low, radius) if kernels.measure_recall(positions, truth) >= recall else (radius, high)
    return high


def coarsen(codes: quantize.Codes) -> quantize.Codes:
    """Return item codes on the levels of every instruction set, as the kernels that choose cells round them."""
    coarse = np.rint(codes.codes * (quantize.COMMON_LEVELS / quantize.ITEM_LEVELS)).astype(np.int8)
    return replace(codes, codes=coarse, scales=codes.scales * (quantize.ITEM_LEVELS / quantize.COMMON_LEVELS))
