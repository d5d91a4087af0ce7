"""Vectors come in: readers of Parquet, NumPy files and tables in memory, the checks on them, and the ingest.

A source yields batches of rows. `check` reads them once and judges them; `ingest` writes what is kept in id
order, so that from there on a smaller position is a smaller id. Knows nothing of joins or engines.
"""
