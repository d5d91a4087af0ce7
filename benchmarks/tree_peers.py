"""ScaNN, from two packages that share the folder `scann/`: a tree with hashed residuals, and brute force.

`scann-core` is derived from Google's and picks AVX-512 kernels by itself; `scann` is Google's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from peer import Array, Axes, Peer, Settings, steps

__all__ = ["SCANN_PEERS"]

SOAR_LAMBDA = 1.5  # of the paper
AVQ = 2.5  # anisotropic centroids: weight of the error along the vector


def _builder(items: Array, threads: int) -> Any:
    import scann

    return scann.scann_ops_pybind.builder(items, 50, "dot_product").set_n_training_threads(threads)


def _storage(kind: str) -> Any:
    from scann.scann_ops.py.scann_builder import ReorderType

    return {"float32": ReorderType.FLOAT32, "bf16": ReorderType.BFLOAT16, "int8": ReorderType.INT8}[kind]


def _build_tree(items: Array, settings: Settings, threads: int) -> Any:
    options = {"soar_lambda": SOAR_LAMBDA} if settings["soar"] else {}
    options |= {"avq": AVQ} if settings["avq"] else {}
    builder = _builder(items, threads).tree(
        num_leaves=settings["leaves"],
        num_leaves_to_search=settings["leaves"] // 4,
        training_sample_size=min(len(items), settings["tree_sample"]),
        training_iterations=settings["rounds"],
        **options,
    )
    builder = builder.score_ah(
        settings["block"],
        anisotropic_quantization_threshold=0.2,
        training_sample_size=min(len(items), settings["hash_sample"]),
        training_iterations=settings["hash_rounds"],
    )
    index = builder.reorder(300, quantize=_storage(settings["reorder_type"])).build()
    index.set_num_threads(threads)
    return index


def _search_tree(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    found, _ = index.search_batched_parallel(
        queries,
        final_num_neighbors=k,
        pre_reorder_num_neighbors=settings["reorder"],
        leaves_to_search=settings["searched"],
        batch_size=settings["batch"],
    )
    return np.asarray(found).astype(np.int64)  # uint32; no slot is left empty at these settings


def _tree_axes(n: int) -> Axes:
    root = math.sqrt(n)
    return {
        "leaves": [
            round(factor * root) for factor in (0.3, 0.45, 0.6, 0.8, 1.1, 1.5, 2.0, 2.7)
        ],  # 2.0: 1,265 for 400,000
        "tree_sample": [12_500, 25_000, 50_000, 100_000, 150_000],
        "rounds": [3, 6, 12],
        "hash_sample": [3_000, 10_000, 30_000, 100_000],
        "hash_rounds": [3, 10],
        "block": [2, 4],
        "reorder_type": ["float32", "bf16", "int8"],
        "soar": [False, True],
        "avq": [False, True],
    }


def _tree_start(n: int) -> Settings:
    axes = _tree_axes(n)
    return {name: values[at] for (name, values), at in zip(axes.items(), (2, 2, 1, 1, 0, 0, 0, 0, 0), strict=True)}


def _tree_search_axes(build: Settings, k: int, _n: int) -> Axes:
    return {
        "batch": [256, 1024],
        "reorder": [factor * k for factor in (3, 4, 6, 8, 12, 16)],
        "searched": steps(8, build["leaves"], 1.06),
    }


def _build_brute_force(items: Array, settings: Settings, threads: int) -> Any:
    builder = _builder(items, threads).score_brute_force(quantize=_storage(settings["type"]))
    if settings["type"] != "float32":
        builder = builder.reorder(100)
    index = builder.build()
    index.set_num_threads(threads)
    return index


def _search_brute_force(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    found, _ = index.search_batched_parallel(
        queries, final_num_neighbors=k, pre_reorder_num_neighbors=settings["reorder"], batch_size=settings["batch"]
    )
    return np.asarray(found).astype(np.int64)


def _brute_force_axes(build: Settings, k: int, _n: int) -> Axes:
    return {
        "batch": [256, 1024, 4096],
        "reorder": [k] if build["type"] == "float32" else [k, 2 * k, 3 * k, 4 * k, 6 * k],
    }


def _peers(label: str, package: str) -> tuple[Peer, Peer]:
    return (
        Peer(label, package, package, _build_tree, _search_tree, _tree_start, _tree_axes, _tree_search_axes),
        Peer(
            f"{label} brute force",
            package,
            package,
            _build_brute_force,
            _search_brute_force,
            start=lambda _n: {"type": "float32"},
            build_axes=lambda _n: {"type": ["float32", "bf16", "int8"]},
            search_axes=_brute_force_axes,
            exact=True,
        ),
    )


SCANN_PEERS = (*_peers("ScaNN (scann-core)", "scann-core"), *_peers("ScaNN (Google)", "scann"))
