"""Measures judge the data: recall against exact truth, fill, coverage, exposure, scores, overlap.

Arrays in, figures out. `measures.py` defines every figure in one table, for the summary, `--json` and
the docs. Knows nothing of snapshots and of output.
"""
