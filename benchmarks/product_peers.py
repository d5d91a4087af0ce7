"""Exact joins by other libraries: faiss' flat indexes, and matrix products with a top-k in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from peer import Array, Axes, Peer, Settings

__all__ = ["PRODUCT_PEERS"]


def _build_flat(items: Array, settings: Settings, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.index_factory(items.shape[1], settings["index"], faiss.METRIC_INNER_PRODUCT)
    index.add(items)
    return index


def _search_flat(index: Any, queries: Array, k: int, settings: Settings, _threads: int) -> Array:
    import faiss

    faiss.cvar.distance_compute_blas_query_bs = settings["query_block"]
    faiss.cvar.distance_compute_blas_database_bs = settings["item_block"]
    return index.search(queries, k)[1]


def _flat(name: str, index: str) -> Peer:
    def axes(_build: Settings, _k: int, _n: int) -> Axes:
        blocks = {"query_block": [1024, 4096], "item_block": [1024, 4096]}
        return blocks if index == "Flat" else {"query_block": [4096], "item_block": [1024]}

    return Peer(
        name, "faiss-cpu", "faiss", _build_flat, _search_flat, lambda _n: {"index": index}, search_axes=axes, exact=True
    )


@dataclass(slots=True)
class TorchItems:
    """The items as tiles of a type, and as they were."""

    tiles: list[Any]  # (tile, dim) tensors
    scale: float  # of int8
    items: Any  # (n, dim) float32


def _build_torch(items: Array, settings: Settings, threads: int) -> TorchItems:
    import torch

    torch.set_num_threads(threads)
    whole = torch.from_numpy(items)
    scale = 127 / max(float(np.abs(items).max()), 1e-30)
    tiles = []
    for start in range(0, len(items), settings["tile"]):
        tile = torch.zeros(settings["tile"], items.shape[1])
        part = whole[start : start + settings["tile"]]
        tile[: len(part)] = part
        tiles.append(_convert(tile, settings["type"], scale))
    return TorchItems(tiles, scale, whole)


def _search_torch(index: TorchItems, queries: Array, k: int, settings: Settings, threads: int) -> Array:
    """Score all items of a tile, and keep the best score of each group; the best k items lie in the best k groups."""
    import torch

    torch.set_num_threads(threads)
    kind = {torch.int8: "int8", torch.bfloat16: "bf16", torch.float32: "float32"}[index.tiles[0].dtype]
    tile, n = len(index.tiles[0]), len(index.items)
    group_size = settings["group"]  # items whose best score stands for all of them
    columns = tile // group_size
    found = np.empty((len(queries), k), np.int64)
    kept = min(settings["refine"], columns * len(index.tiles))
    # Buffers are made once: fresh ones cost a page fault for each 4 KiB of scores.
    kind_of_scores = torch.int32 if kind == "int8" else index.tiles[0].dtype
    all_scores = torch.empty(len(index.tiles), settings["batch"], tile, dtype=kind_of_scores)
    all_best = torch.empty(settings["batch"], len(index.tiles), columns, dtype=kind_of_scores)
    for start in range(0, len(queries), settings["batch"]):
        exact = torch.from_numpy(queries[start : start + settings["batch"]])
        rows = len(exact)
        scale = 127 / exact.abs().amax(1, keepdim=True).clamp(min=1e-30)
        batch = _convert(exact, kind, scale)
        scores, best = all_scores[:, :rows], all_best[:rows]
        for at, part in enumerate(index.tiles):
            if kind == "int8":
                torch._int_mm(batch, part.t(), out=scores[at])
            else:
                torch.mm(batch, part.t(), out=scores[at])
            torch.amax(scores[at].view(rows, group_size, columns), 1, out=best[:, at])
        groups = best.flatten(1).topk(kept, dim=1, sorted=False).indices  # (rows, kept)
        of_tile, column = groups // columns, groups % columns
        members = all_scores.view(len(index.tiles), -1, group_size, columns)[
            of_tile, torch.arange(rows)[:, None], :, column
        ]
        chosen = members.flatten(1).topk(kept, dim=1, sorted=False).indices
        group, member = chosen // group_size, chosen % group_size
        positions = of_tile.gather(1, group) * tile + member * columns + column.gather(1, group)
        real = positions < n
        vectors = index.items[positions.clamp(max=n - 1)]
        again = torch.bmm(vectors, exact[:, :, None])[:, :, 0].masked_fill(~real, -torch.inf)
        order = again.topk(k, dim=1).indices
        found[start : start + rows] = positions.gather(1, order).numpy()
    return found


def _convert(vectors: Any, kind: str, scale: Any) -> Any:
    import torch

    if kind == "int8":
        return (vectors * scale).round_().to(torch.int8)
    return vectors.to(torch.bfloat16) if kind == "bf16" else vectors.contiguous()


def _torch(kind: str, refine: list[int]) -> Peer:
    def build_axes(_n: int) -> Axes:
        return {"tile": [2_048, 4_096, 8_192, 32_768]}

    def search_axes(_build: Settings, _k: int, _n: int) -> Axes:
        return {"batch": [64, 128, 256], "group": [16, 32, 64], "refine": refine}

    return Peer(
        f"torch {kind} product",
        "torch",
        "torch",
        _build_torch,
        _search_torch,
        lambda _n: {"type": kind, "tile": 8_192},
        build_axes,
        search_axes,
        exact=True,
    )


PRODUCT_PEERS = (
    _flat("faiss IndexFlatIP", "Flat"),
    _flat("faiss IndexFlatIPPanorama", "FlatIPPanorama8"),
    _torch("int8", [64, 96, 128, 192, 256]),
    _torch("bf16", [64, 96, 128, 192, 256]),
    _torch("float32", [50]),
)
