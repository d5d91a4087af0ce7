"""Input: readers of Parquet, NumPy files and tables in memory, validation of their rows, and ingestion.

A source yields batches of rows. `validate_rows` reads them once and applies the policies; `ingest` writes the kept rows
in id order, so that a smaller position is a smaller id. Knows nothing of joins or engines.
"""
