"""Measures judge the data: recall against exact truth, fill, coverage, exposure, scores, overlap.

Arrays in, figures out. `measures.py` is the one table of what each figure means; the summary, `--json` and
the docs read it from there. Knows nothing of snapshots or how a figure is shown.
"""
