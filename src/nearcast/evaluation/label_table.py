"""A table of labels, unread: Parquet files, one CSV file, or a table in memory. Reads columns in batches.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pv

from nearcast.errors import InputError
from nearcast.sources.arrow_types import plain_column, refuse_twice
from nearcast.sources.parquet_files import BATCH_ROWS, open_parquet
from nearcast.sources.parquet_listing import open_user_file
from nearcast.sources.user_files import UserFile, describe_error, digest_file, ensure_unchanged

__all__ = ["LabelTable", "open_label_table"]

CSV_ENDINGS = {".csv": ",", ".tsv": "\t"}
CSV_BLOCK = 4 << 20
WAY_OUT = "check the path (it is relative to the spec's own folder, or a URL)"


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table with one label, or one engagement, per row."""

    name: str  # as it was given, for messages and manifests
    columns: tuple[str, ...]
    read: Callable[[Sequence[str], Sequence[str]], Iterator[pa.Table]]  # (columns, those of them that are numbers)
    list_digests: Callable[[], list[dict[str, Any]]]  # name, bytes and hash of each file
    notes: tuple[str, ...] = ()  # skipped files

    def digests(self) -> list[dict[str, Any]]:
        """Return name, size and hash of every file."""
        return self.list_digests()

    def batches(self, columns: Sequence[str], numbers: Sequence[str] = ()) -> Iterator[pa.Table]:
        """Yield these columns of all rows, in plain types. numbers: columns that CSV text is parsed as numbers in.

        Raises InputError if a column is missing or occurs twice, or a file is damaged or changes meanwhile.
        """
        for name in columns:
            if name not in self.columns:
                raise InputError(
                    f"{self.name} has no column {name!r}; its columns are {', '.join(self.columns)}; name those of "
                    "queries and items, as --query and --item do"
                )
        refuse_twice(self.columns, columns, self.name)
        for table in self.read(columns, numbers):
            yield pa.table({name: plain_column(table.column(name)) for name in columns})


def open_label_table(data: object, base: Path, what: str = "the labels") -> LabelTable:
    """Open a path, relative to `base`, a URL, or a table in memory. Raises InputError if it cannot be read."""
    if not isinstance(data, str | Path):
        return _open_memory(data, what)
    text = str(data)
    ending = Path(text.lower().removesuffix(".gz")).suffix
    if ending in CSV_ENDINGS:
        return _open_csv(text, open_user_file(text, base, what, WAY_OUT), CSV_ENDINGS[ending])
    try:
        files = open_parquet(text, base, what, WAY_OUT)
    except InputError as error:
        if Path(text).suffix in ("", ".parquet"):
            raise
        raise InputError(f"{error}; text is read from a file that ends in .csv or .tsv (also .gz)") from error

    def read(columns: Sequence[str], _numbers: Sequence[str]) -> Iterator[pa.Table]:
        files.need_columns(columns)
        for batch in files.batches(columns):
            yield pa.Table.from_batches([batch])

    return LabelTable(text, tuple(files.schema.names), read, files.digests, files.notes)


def _open_memory(data: object, what: str) -> LabelTable:
    try:
        if isinstance(data, pa.Table):
            table = data
        elif hasattr(data, "__arrow_c_stream__"):
            table = pa.table(data)
        else:
            table = pa.Table.from_pandas(data, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{what} cannot be read as a table ({error}); give a path, an Arrow table or a frame"
        ) from error

    def read(columns: Sequence[str], _numbers: Sequence[str]) -> Iterator[pa.Table]:
        for start in range(0, len(table), BATCH_ROWS):
            yield table.select(list(columns)).slice(start, BATCH_ROWS)

    def digests() -> list[dict[str, Any]]:
        hasher = hashlib.blake2b(digest_size=16)
        for batch in table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS):
            hasher.update(batch.serialize())
        return [{"name": "(a table in memory)", "bytes": table.nbytes, "blake2b": hasher.hexdigest()}]

    return LabelTable("(a table in memory)", tuple(table.column_names), read, digests)


def _open_csv(name: str, file: UserFile, delimiter: str) -> LabelTable:
    parse = pv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def open_reader(convert: pv.ConvertOptions) -> pv.CSVStreamingReader:
        stream = file.open()
        packed = name.lower().endswith(".gz")
        return pv.open_csv(
            pa.CompressedInputStream(stream, "gzip") if packed else stream,
            read_options=pv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
            parse_options=parse,
            convert_options=convert,
        )

    def read(columns: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.Table]:
        # ids stay text: 007 is not 7, and an id may be NA
        types = {column: pa.float64() if column in numbers else pa.string() for column in columns}
        convert = pv.ConvertOptions(
            column_types=types,
            include_columns=list(columns),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        with ensure_unchanged([file]), _explain_csv(file):
            for batch in open_reader(convert):
                yield pa.Table.from_batches([batch])

    with ensure_unchanged([file]), _explain_csv(file):
        everything_text = pv.ConvertOptions(strings_can_be_null=False)
        columns = tuple(open_reader(everything_text).schema.names)
    return LabelTable(name, columns, read, lambda: [digest_file(file)])


@contextlib.contextmanager
def _explain_csv(file: UserFile) -> Iterator[None]:
    """Raise InputError with the file's name for an error of the CSV reader."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file.shown} is not a readable CSV file ({describe_error(error)}); write a header line, UTF-8, and as "
            "many values as columns in each row"
        ) from error
