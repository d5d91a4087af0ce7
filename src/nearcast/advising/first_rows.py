"""The first rows of a table that a spec is drafted for, and the lines of the spec that name its data.

Reads footers and one batch. Knows the kinds of data (Parquet, tables), not the meaning of columns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from nearcast.errors import InputError
from nearcast.files import bucket_url
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.arrow_types import plain_column, refuse_twice
from nearcast.sources.open_table import open_table
from nearcast.sources.parquet_files import open_parquet
from nearcast.sources.pinned_table import PinnedReader

__all__ = ["SAMPLE_ROWS", "FirstRows", "read_first_rows"]

SAMPLE_ROWS = 4096
READERS = {  # how pyarrow, which is installed, reads what is not Parquet
    ".csv": "import pyarrow.csv as r; t = r.read_csv(",
    ".json": "import pyarrow.json as r; t = r.read_json(",
    ".jsonl": "import pyarrow.json as r; t = r.read_json(",
    ".ndjson": "import pyarrow.json as r; t = r.read_json(",
    ".feather": "import pyarrow.feather as r; t = r.read_table(",
    ".arrow": "import pyarrow.feather as r; t = r.read_table(",
    ".orc": "import pyarrow.orc as r; t = r.read_table(",
}


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The first rows of a table, and where the table is."""

    rows: pa.Table
    n_rows: int  # of the whole table
    key: str  # of the spec: path or table
    location: str  # as the user wrote it; relative paths are relative to the working folder
    notes: tuple[str, ...]  # files that were skipped

    def locate(self, folder: Path) -> str:
        """Return the location for a spec in `folder`."""
        kind, colon, path = self.location.partition(":") if self.key == "table" else ("", "", self.location)
        if kind == "iceberg" or bucket_url(path):
            return self.location
        return kind + colon + Path(os.path.relpath(path, folder)).as_posix()

    def scan_path(self, folder: Path) -> str | None:
        """Return the Parquet files of a spec in `folder` as DuckDB names them; None for a table or a URL."""
        if self.key == "table" or bucket_url(self.location):
            return None
        return self.locate(folder) + ("/**/*.parquet" if os.path.isdir(self.location) else "")


def read_first_rows(location: str, what: str) -> FirstRows:
    """Read the first rows of Parquet files (a file, a folder, a glob, a URL) or of a table such as delta:PATH.

    A folder with a log of Delta is read as a Delta table. what: items or queries. Raises InputError if there are none.
    """
    if not TABLE_LOCATION.fullmatch(location) and os.path.isdir(os.path.join(location, "_delta_log")):
        location = f"delta:{location.rstrip('/')}"
    notes: tuple[str, ...] = ()
    if TABLE_LOCATION.fullmatch(location):
        table = open_table(location, None, Path())
        reader = PinnedReader(table)
        n_rows, names = sum(reader.groups), table.schema.names
        rows = next(iter(reader.read(names, SAMPLE_ROWS)), table.schema.empty_table())
    else:
        _refuse_other_kinds(location, what)
        files = open_parquet(location, Path(), what, f"name a Parquet file of {what}, a folder of them or a glob")
        n_rows, names, notes = files.n_rows, files.schema.names, files.notes
        refuse_twice(names, list(dict.fromkeys(names)), location)
        batches = list(islice(files.batches(names, SAMPLE_ROWS), 1))
        rows = pa.Table.from_batches(batches, batches[0].schema if batches else files.schema)
    if len(rows) == 0:
        raise InputError(f"{what} {location} has no rows; name a file with some")
    rows = pa.table({name: plain_column(rows[name]) for name in names})
    return FirstRows(rows, n_rows, "table" if TABLE_LOCATION.fullmatch(location) else "path", location, notes)


def _refuse_other_kinds(location: str, what: str) -> None:
    """Raise InputError for a file that its ending shows not to be Parquet, with a way to convert it."""
    name = Path(location).name
    ending = Path(name.removesuffix(".gz")).suffix.lower()
    if ending == ".npy":
        raise InputError(
            f"{what} {location} are vectors without ids: write the spec by hand, with path = {name!r} and, for a file "
            'of their ids in the same order, ids = "ids.npy"; `nearcast spec` prints every setting'
        )
    if ending == ".tsv":
        raise InputError(f"{what} {location} is a TSV file; nearcast reads Parquet: convert it with DuckDB or pandas")
    if ending in READERS:
        stem = Path(name.removesuffix(".gz")).stem
        raise InputError(
            f"{what} {location} is a {ending[1:].upper()} file; nearcast reads Parquet. Convert it:\n"
            f'  python -c "{READERS[ending]}{location!r}); '
            f"import pyarrow.parquet as p; p.write_table(t, '{stem}.parquet')\""
        )
