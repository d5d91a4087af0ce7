"""The writer of candidate tables: Parquet files with a fixed number of rows, whose bytes depend on the rows alone."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.table.candidate_schema import rows_per_group

__all__ = ["GROUPS_PER_FILE", "TableWriter"]

GROUPS_PER_FILE = 64


class TableWriter:
    """Writes row groups in order of query id: `with TableWriter(folder, schema, k) as writer: writer.write(...)`.

    Every group but the last must have `group_rows` rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema, k: int) -> None:
        self.group_rows = rows_per_group(k)
        self._folder = folder
        self._schema = schema
        self._groups = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._open()  # a table without rows is a file with the schema
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, group: pa.Table) -> None:
        """Write one row group."""
        assert len(group) <= self.group_rows
        if self._groups and self._groups % GROUPS_PER_FILE == 0:
            self._open()
        assert self._file is not None
        self._file.write_table(group, row_group_size=self.group_rows)
        self._groups += 1

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self._folder / f"part-{self._groups // GROUPS_PER_FILE:05d}.parquet"
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["query_id", "candidate_ids.list.element", "reason"],
            use_byte_stream_split=[
                f"{name}.list.element" for name in ("scores", "rank_scores") if name in self._schema.names
            ],
        )
