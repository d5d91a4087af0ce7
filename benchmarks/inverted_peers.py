"""Inverted lists of other libraries: faiss with several codes, rabitqlib, SVS, LoRANN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from peer import Array, Axes, Peer, Settings, steps

__all__ = ["INVERTED_PEERS"]

SVS_QUERIES = 10_000  # SVS IVF refuses more at once


def _build_faiss(items: Array, settings: Settings, threads: int) -> Any:
    """Build an IVF index; its centroids are made from a sample, by faiss or by superkmeans."""
    import faiss

    faiss.omp_set_num_threads(threads)
    rng = np.random.default_rng(0)
    sample = items
    if settings["sample"] < len(items):
        sample = items[np.sort(rng.choice(len(items), settings["sample"], replace=False))]
    factory = f"IVF{settings['nlist']},{settings['code']}"
    if settings.get("refine"):
        factory += f",{settings['refine']}"
    index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.extract_index_ivf(index)
    inverted.cp.niter = settings["rounds"]
    if hasattr(inverted, "pq"):
        inverted.pq.cp.niter = settings["code_rounds"]
    inverted.cp.min_points_per_centroid = 1
    inverted.cp.max_points_per_centroid = 1 << 20  # the sample is drawn above
    if settings.get("clustering") == "superkmeans":
        from superkmeans import SuperKMeans

        means = SuperKMeans(
            n_clusters=settings["nlist"], dimensionality=items.shape[1], iters=settings["rounds"], n_threads=threads
        )
        inverted.quantizer.add(np.ascontiguousarray(means.train(sample), np.float32))
    index.train(sample)
    index.add(items)
    return index


def _search_faiss(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    import faiss

    faiss.extract_index_ivf(index).nprobe = settings["nprobe"]
    if "k_factor" in settings:
        index.k_factor = settings["k_factor"]
    return index.search(queries, k)[1]


def _big_batch_search(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    # "knn_function" took four times as long on a quarter of the data, and raises with threaded > 0, as "index" does.
    from faiss.contrib.big_batch_search import big_batch_search

    index.nprobe = settings["nprobe"]
    return big_batch_search(index, queries, k, method="pairwise_distances", threaded=0, verbose=0)[1]


def _lists(n: int, factors: tuple[float, ...]) -> list[int]:
    return [round(factor * math.sqrt(n)) for factor in factors]


def _faiss_axes(*codes: str, refine: tuple[str, ...] = ("",)) -> Any:
    def axes(n: int) -> Axes:
        return {
            "nlist": _lists(n, (0.8, 1.1, 1.6, 2.4, 3.2, 4.5)),  # 1.6: 1,012 for 400,000
            "sample": [20_000, 40_000, 80_000, 160_000],
            "rounds": [3, 6, 10],
            "code_rounds": [4, 10, 25] if codes[0].startswith("PQ") else [4],
            "code": list(codes),
            "refine": list(refine),
            "clustering": ["faiss", "superkmeans"],
        }

    return axes


def _faiss_start(axes: Any, code: int = 0) -> Any:
    def start(n: int) -> Settings:
        values = axes(n)
        return {
            name: values[name][at]
            for name, at in (
                ("nlist", 2),
                ("sample", 1),
                ("rounds", 0),
                ("code_rounds", 0),
                ("code", code),
                ("refine", 0),
                ("clustering", 0),
            )
        }

    return start


def _probes(build: Settings, _k: int, _n: int) -> Axes:
    return {"nprobe": steps(8, build["nlist"], 1.06)}


def _refined_probes(build: Settings, _k: int, _n: int) -> Axes:
    return {"k_factor": [2, 3, 4, 6, 8, 12, 16, 24], "nprobe": steps(8, build["nlist"], 1.06)}


def _faiss(name: str, *codes: str, refine: tuple[str, ...] = ("",), code: int = 0, **others: Any) -> Peer:
    axes = _faiss_axes(*codes, refine=refine)
    return Peer(
        name,
        "faiss-cpu",
        "faiss",
        _build_faiss,
        others.pop("search", _search_faiss),
        _faiss_start(axes, code),
        axes,
        _probes if refine == ("",) else _refined_probes,
        **others,
    )


def _build_rabitq(items: Array, settings: Settings, threads: int) -> Any:
    import rabitqlib

    means = rabitqlib.RaBitQKMeans(items.shape[1], settings["nlist"], niter=settings["rounds"], num_threads=threads)
    means.train(items)
    index = rabitqlib.IvfIndex(items.shape[1], len(items), settings["nlist"], settings["bits"], metric="ip")
    index.build(items, means.centroids, means.assignments, num_threads=threads, fast_quantization=True)
    return index


def _search_rabitq(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    return index.search(queries, k, settings["nprobe"], num_threads=threads)[0].astype(np.int64)


def _rabitq_axes(n: int) -> Axes:
    return {"nlist": _lists(n, (0.8, 1.1, 1.6, 2.4, 3.2, 4.5, 6.4)), "rounds": [2, 4, 8], "bits": [4, 6, 7, 8, 9, 32]}


def _build_svs_ivf(items: Array, settings: Settings, threads: int) -> Any:
    import svs

    distance = {"MIP": svs.DistanceType.MIP, "L2": svs.DistanceType.L2}[settings["distance"]]
    parameters = svs.IVFBuildParameters(
        num_centroids=settings["nlist"], num_iterations=settings["rounds"], training_fraction=settings["fraction"]
    )
    clustering = svs.Clustering.build(parameters, items, distance, num_threads=threads)
    stored = items.astype(np.float16) if settings["type"] == "f16" else items
    return svs.IVF.assemble_from_clustering(clustering, stored, distance, num_threads=threads)


def _search_svs_ivf(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    import svs

    index.search_parameters = svs.IVFSearchParameters(settings["nprobe"], 1.0)
    parts = range(0, len(queries), SVS_QUERIES)
    return np.concatenate([index.search(queries[at : at + SVS_QUERIES], k)[0] for at in parts]).astype(np.int64)


def _svs_ivf_axes(n: int) -> Axes:
    return {
        "nlist": _lists(n, (0.8, 1.1, 1.6, 2.4, 3.2, 4.5)),
        "fraction": [0.1, 0.25, 0.5],
        "rounds": [3, 6, 10],
        "type": ["f32", "f16"],
        "distance": ["MIP", "L2"],
    }


def _build_lorann(items: Array, settings: Settings, _threads: int) -> Any:
    import lorann

    index = lorann.LorannIndex(items, settings["nlist"], settings["reduced"], rank=settings["rank"], distance=lorann.IP)
    index.build(verbose=False)
    return index


def _search_lorann(index: Any, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    return index.search(queries, k, settings["nprobe"], settings["refined"], n_threads=threads).astype(np.int64)


def _lorann_axes(n: int) -> Axes:
    return {"nlist": _lists(n, (0.8, 1.1, 1.6, 2.4)), "reduced": [64, 128], "rank": [16, 24, 32]}


def _refined_lists(build: Settings, k: int, _n: int) -> Axes:
    return {"refined": [factor * k for factor in (4, 8, 16)], "nprobe": steps(8, build["nlist"], 1.06)}


INVERTED_PEERS = (
    _faiss("faiss IVF PQ fast scan", "PQ32x4fsr", "PQ64x4fsr", refine=("RFlat", "Refine(SQfp16)"), code=1),
    _faiss("faiss IVF RaBitQ fast scan", "RaBitQfs1", "RaBitQfs2", "RaBitQfs4", refine=("RFlat",)),
    _faiss("faiss IVF Panorama", "FlatPanorama4", "FlatPanorama8"),
    _faiss("faiss IVF", "Flat"),
    _faiss("faiss IVF big_batch_search", "Flat", search=_big_batch_search, env={"OMP_WAIT_POLICY": "passive"}),
    # passive: else OpenMP's and OpenBLAS' threads spin against each other
    Peer(
        "rabitqlib IVF",
        "rabitqlib",
        "lists",
        _build_rabitq,
        _search_rabitq,
        lambda n: {"nlist": _rabitq_axes(n)["nlist"][2], "rounds": 4, "bits": 7},
        _rabitq_axes,
        _probes,
    ),
    Peer(
        "SVS IVF",
        "scalable-vs",
        "graphs",
        _build_svs_ivf,
        _search_svs_ivf,
        lambda n: {
            "nlist": _svs_ivf_axes(n)["nlist"][2],
            "fraction": 0.25,
            "rounds": 3,
            "type": "f16",
            "distance": "MIP",
        },
        _svs_ivf_axes,
        _probes,
    ),
    Peer(
        "LoRANN",
        "lorann",
        "lists",
        _build_lorann,
        _search_lorann,
        lambda n: {"nlist": _lorann_axes(n)["nlist"][1], "reduced": 64, "rank": 24},
        _lorann_axes,
        _refined_lists,
    ),
)
