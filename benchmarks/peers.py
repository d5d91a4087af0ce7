"""The peers that join.py compares with; each imports its library inside its functions, in its child."""

from __future__ import annotations

from graph_peers import GRAPH_PEERS
from inverted_peers import INVERTED_PEERS
from peer import Array, Peer, Settings
from product_peers import PRODUCT_PEERS
from tree_peers import SCANN_PEERS

__all__ = ["COUNTS_OF_CELLS", "LEADING", "PEERS", "Array", "Peer", "Settings"]

PEERS = (*SCANN_PEERS, *INVERTED_PEERS, *PRODUCT_PEERS, *GRAPH_PEERS)
LEADING = {  # the fastest of each recall; the others are measured on request
    "ScaNN (scann-core)",
    "ScaNN (Google)",
    "faiss IVF PQ fast scan",
    "ScaNN (scann-core) brute force",
    "torch int8 product",
    "faiss IndexFlatIP",
}
COUNTS_OF_CELLS = {
    "leaves",
    "nlist",
    "clusters",
    "searched",
    "nprobe",
}  # settings that a join of a few vectors needs small
