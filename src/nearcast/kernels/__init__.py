"""Native kernels of the kNN join: arrays in, arrays out.

Holds the exact join, the cell index, scores of lists, and what they are made of, each with a NumPy twin that takes over
where the extension is missing. Knows no files, ids or specs.
"""

from nearcast.kernels.index import (
    DenseIndex,
    build_index,
    default_cells,
    index_arrays,
    index_of_arrays,
    recall_of,
    ruled_index,
)
from nearcast.kernels.isa import IsaInfo, isa_info
from nearcast.kernels.join import Joined, join_exact
from nearcast.kernels.quantize import width_of
from nearcast.kernels.rescore import ListScorer, list_scorer
from nearcast.kernels.rule_blocks import eligible_counts, shares_under

__all__ = [
    "DenseIndex",
    "IsaInfo",
    "Joined",
    "ListScorer",
    "build_index",
    "default_cells",
    "eligible_counts",
    "index_arrays",
    "index_of_arrays",
    "isa_info",
    "join_exact",
    "list_scorer",
    "recall_of",
    "ruled_index",
    "shares_under",
    "width_of",
]
