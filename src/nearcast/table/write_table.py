"""The files of candidate tables: Parquet files with a fixed number of rows, whose bytes depend on the rows alone."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["GROUPS_PER_FILE", "cut_files", "file_name", "write_file"]

GROUPS_PER_FILE = 64


def cut_files(n_rows: int, group_rows: int) -> list[tuple[int, int]]:
    """Return the rows (start, stop) of each file of a table. A table without rows is one file with the schema."""
    rows = GROUPS_PER_FILE * group_rows
    return [(start, min(n_rows, start + rows)) for start in range(0, max(1, n_rows), rows)]


def file_name(number: int) -> str:
    """Return the name of a file of a table, counted from 0."""
    return f"part-{number:05d}.parquet"


def write_file(path: Path, schema: pa.Schema, group_rows: int, groups: Iterable[pa.Table]) -> None:
    """Write row groups in order of query id. Every group but the table's last must have `group_rows` rows.

    A thread encodes and writes a group while the caller makes the next one.
    """
    last = Future[None]()
    last.set_result(None)
    with (
        pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["query_id", "candidate_ids.list.element", "reason"],
            use_byte_stream_split=[
                f"{name}.list.element" for name in ("scores", "rank_scores") if name in schema.names
            ],
        ) as writer,
        ThreadPoolExecutor(1, "nearcast-table") as thread,
    ):
        for group in groups:
            assert len(group) <= group_rows
            last.result()
            last = thread.submit(writer.write_table, group, row_group_size=group_rows)
        last.result()
