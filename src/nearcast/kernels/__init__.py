"""Native kernels of the kNN join: arrays in, arrays out.

Holds the exact join, the cell index, scores of lists, and their parts. Each kernel has a NumPy fallback, used if the
extension is missing. Knows no files, ids or specs.
"""

from nearcast.kernels.index import (
    add_exact_layout,
    build_index,
    build_ruled_index,
    default_cells,
    index_arrays,
    join_exact,
    measure_recall,
    restore_index,
)
from nearcast.kernels.isa import IsaInfo, isa_info
from nearcast.kernels.join import CellIndex, JoinOutput
from nearcast.kernels.probe_curve import ProbeCurve, trace_probes
from nearcast.kernels.quantize import pad_width
from nearcast.kernels.rescore import ListScorer, compute_norms, list_scorer
from nearcast.kernels.rule_blocks import eligible_counts, sample_rule_shares

__all__ = [
    "CellIndex",
    "IsaInfo",
    "JoinOutput",
    "ListScorer",
    "ProbeCurve",
    "add_exact_layout",
    "build_index",
    "build_ruled_index",
    "compute_norms",
    "default_cells",
    "eligible_counts",
    "index_arrays",
    "isa_info",
    "join_exact",
    "list_scorer",
    "measure_recall",
    "pad_width",
    "restore_index",
    "sample_rule_shares",
    "trace_probes",
]
