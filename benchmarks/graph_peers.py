"""Graph indexes of other libraries: hnswlib, faiss HNSW, usearch, SVS Vamana."""

from __future__ import annotations

from typing import Any

import numpy as np

from peer import Array, Axes, Peer, Settings, steps

__all__ = ["GRAPH_PEERS"]


def _build_hnswlib(items: Array, settings: Settings, threads: int) -> Any:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(len(items), M=settings["degree"], ef_construction=settings["construction"])
    index.add_items(items, num_threads=threads)
    return index


def _search_hnswlib(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.set_ef(settings["width"])
    return index.knn_query(queries, k, num_threads=threads)[0].astype(np.int64)


def _build_faiss_hnsw(items: Array, settings: Settings, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(items.shape[1], settings["degree"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings["construction"]
    index.add(items)
    return index


def _search_faiss_hnsw(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    index.hnsw.efSearch = settings["width"]
    return index.search(queries, k)[1]


def _build_usearch(items: Array, settings: Settings, threads: int) -> Any:
    from usearch.index import Index

    index = Index(
        ndim=items.shape[1],
        metric="ip",
        dtype=settings["type"],
        connectivity=settings["degree"],
        expansion_add=settings["construction"],
        enable_key_lookups=False,
    )
    index.add(np.arange(len(items), dtype=np.uint64), items, threads=threads, copy=True)
    return index


def _search_usearch(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.expansion_search = settings["width"]
    found = index.search(queries, k, threads=threads)
    positions = np.asarray(found.keys).astype(np.int64)
    counts = np.asarray(found.counts)
    positions[np.arange(k)[None, :] >= counts[:, None]] = -1
    return positions


def _build_svs(items: Array, settings: Settings, threads: int) -> Any:
    import svs

    parameters = svs.VamanaBuildParameters(
        alpha=0.95, graph_max_degree=settings["degree"], window_size=settings["construction"]
    )
    return svs.Vamana.build(parameters, items, svs.DistanceType.MIP, num_threads=threads)


def _search_svs(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    index.num_threads = threads
    index.search_window_size = settings["width"]
    return index.search(queries, k)[0].astype(np.int64)


def _widths(_build: Settings, k: int, n: int) -> Axes:
    return {"width": steps(k, min(n, 3_000), 1.15)}


def _graph(name: str, package: str, environment: str, build: Any, search: Any, **types: list[str]) -> Peer:
    def axes(_n: int) -> Axes:
        return {"degree": [8, 12, 16, 24], "construction": [40, 60, 100, 150], **types}

    def start(_n: int) -> Settings:
        return {"degree": 12, "construction": 60, **{name: values[0] for name, values in types.items()}}

    return Peer(name, package, environment, build, search, start, axes, _widths)


GRAPH_PEERS = (
    _graph("hnswlib", "hnswlib", "graphs", _build_hnswlib, _search_hnswlib),
    _graph("faiss HNSW", "faiss-cpu", "faiss", _build_faiss_hnsw, _search_faiss_hnsw),
    _graph("usearch", "usearch", "graphs", _build_usearch, _search_usearch, type=["f16", "f32", "i8"]),
    _graph("SVS Vamana", "scalable-vs", "graphs", _build_svs, _search_svs),
)
