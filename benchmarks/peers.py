"""nearcast and the peer libraries, each as functions of arrays.

A peer lists the builds and search settings to try; worker.py and join.py time and choose them. Every heavy
library is imported inside its functions, in the child process that measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that joins by inner product: build an index, then search all queries."""

    name: str
    package: str
    build: Callable[[Array, Settings, int], Any]  # items, build settings, threads
    search: Callable[[Any, Array, int, Settings, int], Array]  # index, queries, k, settings, threads -> positions
    builds: Callable[[int], Sequence[Settings]] = lambda _n: [{}]  # of n items
    lanes: Callable[[Settings, int, int], Sequence[Sequence[Settings]]] = lambda _build, _k, _n: [[{}]]
    exact: bool = False
    sampled_by: Callable[[Any, Array, int, Settings, int], Array] | None = None  # where the lists are the same, but
    # a sample's time does not tell that of all queries: such a peer is always run in full
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Of the installed package; raises PackageNotFoundError where it is not."""
        return version(self.package)


def steps(first: int, last: int, ratio: float) -> list[int]:
    """Whole numbers from first to last, each about `ratio` times the one before."""
    values = [min(first, last)]
    while values[-1] < last:
        values.append(min(last, max(values[-1] + 1, round(values[-1] * ratio))))
    return values


def _flat_build(items: Array, _settings: Settings, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return index


def _faiss_search(index: Any, queries: Array, k: int, _settings: Settings, _threads: int) -> Array:
    return index.search(queries, k)[1]


def _ivf_build(items: Array, settings: Settings, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(items.shape[1], f"IVF{settings['nlist']},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(items)
    index.add(items)
    return index


def _ivf_search(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    index.nprobe = settings["nprobe"]
    return index.search(queries, k)[1]


def _big_batch_search(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    # "knn_function" took four times as long on a quarter of the data, and raises with threaded > 0, as "index" does.
    from faiss.contrib.big_batch_search import big_batch_search

    index.nprobe = settings["nprobe"]
    return big_batch_search(index, queries, k, method="pairwise_distances", threaded=0, verbose=1)[1]


def _ivf_builds(n: int) -> Sequence[Settings]:
    return [{"nlist": round(3.24 * math.sqrt(n))}]  # 2,049 for 400,000


def _ivf_lanes(build: Settings, _k: int, _n: int) -> Sequence[Sequence[Settings]]:
    return [[{"nprobe": p} for p in steps(8, build["nlist"], 1.15)]]


def _faiss_hnsw_build(items: Array, settings: Settings, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(items.shape[1], settings["M"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings["efConstruction"]
    index.add(items)
    return index


def _faiss_hnsw_search(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    index.hnsw.efSearch = settings["ef"]
    return index.search(queries, k)[1]


def _ef_lanes(_build: Settings, k: int, n: int) -> Sequence[Sequence[Settings]]:
    return [[{"ef": ef} for ef in steps(k, min(n, 3_000), 1.15)]]


def _graph_builds(_n: int) -> Sequence[Settings]:
    return [{"M": 12, "efConstruction": 60}, {"M": 16, "efConstruction": 100}]


def _hnswlib_build(items: Array, settings: Settings, threads: int) -> Any:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(len(items), M=settings["M"], ef_construction=settings["efConstruction"])
    index.add_items(items, num_threads=threads)
    return index


def _hnswlib_search(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.set_ef(settings["ef"])
    return index.knn_query(queries, k, num_threads=threads)[0].astype(np.int64)


def _usearch_build(items: Array, settings: Settings, threads: int) -> Any:
    from usearch.index import Index

    index = Index(
        ndim=items.shape[1],
        metric="ip",
        dtype=settings["dtype"],
        connectivity=settings["M"],
        expansion_add=settings["efConstruction"],
        enable_key_lookups=False,
    )
    index.add(np.arange(len(items), dtype=np.uint64), items, threads=threads, copy=True)
    return index


def _usearch_search(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.expansion_search = settings["ef"]
    found = index.search(queries, k, threads=threads)
    positions = np.asarray(found.keys).astype(np.int64)
    counts = np.asarray(found.counts)
    positions[np.arange(k)[None, :] >= counts[:, None]] = -1
    return positions


def _usearch(dtype: str) -> Peer:
    def builds(_n: int) -> Sequence[Settings]:
        return [{"dtype": dtype, "M": 16, "efConstruction": 100}]

    return Peer(f"usearch {dtype}", "usearch", _usearch_build, _usearch_search, builds, _ef_lanes)


def _scann_build(items: Array, settings: Settings, threads: int) -> Any:
    import scann

    builder = scann.scann_ops_pybind.builder(items, 50, "dot_product").set_n_training_threads(threads)
    builder = builder.tree(
        num_leaves=settings["leaves"], num_leaves_to_search=10, training_sample_size=min(len(items), 100_000)
    )
    index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(300).build()
    index.set_num_threads(threads)
    return index


def _scann_search(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    found, _ = index.search_batched_parallel(
        queries,
        final_num_neighbors=k,
        pre_reorder_num_neighbors=settings["reorder"],
        leaves_to_search=settings["searched"],
    )
    return np.asarray(found).astype(np.int64)  # uint32; no slot is left empty at these settings


def _scann_builds(n: int) -> Sequence[Settings]:
    return [{"leaves": max(1, round(factor * math.sqrt(n)))} for factor in (0.4, 1.11, 3.16)]  # 253, 702, 1,999


def _scann_lanes(build: Settings, k: int, _n: int) -> Sequence[Sequence[Settings]]:
    searched = steps(8, build["leaves"], 1.15)
    return [[{"searched": s, "reorder": factor * k} for s in searched] for factor in (3, 5, 8, 12, 20)]


def _svs_build(items: Array, settings: Settings, threads: int) -> Any:
    import svs

    parameters = svs.VamanaBuildParameters(
        alpha=0.95, graph_max_degree=settings["degree"], window_size=settings["window"]
    )
    return svs.Vamana.build(parameters, items, svs.DistanceType.MIP, num_threads=threads)


def _svs_search(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.num_threads = threads
    index.search_window_size = settings["window"]
    return index.search(queries, k)[0].astype(np.int64)


def _svs_builds(_n: int) -> Sequence[Settings]:
    return [{"degree": 32, "window": 64}]


def _svs_lanes(_build: Settings, k: int, n: int) -> Sequence[Sequence[Settings]]:
    return [[{"window": w} for w in steps(k, min(n, 3_000), 1.15)]]


PEERS = (
    Peer("faiss IndexFlatIP", "faiss-cpu", _flat_build, _faiss_search, exact=True),
    Peer("ScaNN", "scann", _scann_build, _scann_search, _scann_builds, _scann_lanes),
    Peer(
        "faiss IVF big_batch_search",
        "faiss-cpu",
        _ivf_build,
        _big_batch_search,
        _ivf_builds,
        _ivf_lanes,
        sampled_by=_ivf_search,
        env={"OMP_WAIT_POLICY": "passive"},  # else OpenMP's and OpenBLAS' threads spin against each other
    ),
    Peer("hnswlib", "hnswlib", _hnswlib_build, _hnswlib_search, _graph_builds, _ef_lanes),
    Peer("SVS Vamana", "scalable-vs", _svs_build, _svs_search, _svs_builds, _svs_lanes),
    _usearch("f16"),
    _usearch("f32"),
    Peer("faiss IVF search", "faiss-cpu", _ivf_build, _ivf_search, _ivf_builds, _ivf_lanes),
    Peer("faiss HNSW", "faiss-cpu", _faiss_hnsw_build, _faiss_hnsw_search, lambda n: _graph_builds(n)[:1], _ef_lanes),
)
OPTIONAL = {"faiss HNSW"}  # measured when --peers names it
