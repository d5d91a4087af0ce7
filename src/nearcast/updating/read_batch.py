"""Read a batch of an update: new and changed items, removed ids, and queries; validated as the inputs of a run are.

Files or tables in memory. Rows come out in id order, with the types of the served version. Writes nothing that lasts.
"""

from __future__ import annotations

import errno
import io
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast.errors import BudgetError, InputError
from nearcast.files import bucket_url, fingerprint
from nearcast.join.score_terms import ScoreTerms, check_score_terms, plan_scored_tables
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.column_roles import id_array, plain_id_type
from nearcast.sources.ids import are_distinct, argsort_ids, find_positions
from nearcast.sources.ingest import IngestedTable, Inputs, read_attributes
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.memory_tables import is_table, table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.open_table import open_table
from nearcast.sources.pinned_table import PinnedReader
from nearcast.sources.row_source import MAX_BATCH_ROWS, RowSource
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.sources.validate_rows import Report, raise_on_errors, report_table
from nearcast.spec import GeneratorSpec, SourceSpec
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.types import AnyArray, IntArray
from nearcast.updating.live_table import LiveRows, LiveTable

__all__ = ["BatchInputs", "BatchRows", "UpdateBatch", "read_batch"]

INTEGER = re.compile("[+-]?[0-9]{1,40}")
READ_BYTES = 256 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """The data of an update: paths, URLs, or tables in memory as `nearcast.run` takes them."""

    items: object | None = None
    gone: object | None = None  # a file of ids, one per line or Parquet; or ids in memory
    queries: object | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BatchRows:
    """Validated rows of a batch, in id order."""

    rows: LiveRows
    originals: AnyArray  # (n, dim) vectors without score terms

    def take(self, rows: IntArray) -> BatchRows:
        """Return some of the rows."""
        taken = self.rows.take(rows)
        return BatchRows(taken, taken.vectors if self._has_no_terms else self.originals[rows])

    @property
    def _has_no_terms(self) -> bool:
        """Return whether the vectors are the originals, in one array."""
        return self.rows.vectors is self.originals

    @classmethod
    def concat(cls, parts: Sequence[BatchRows]) -> BatchRows:
        """Return the rows of several batches, one after the other; an id may occur again."""
        rows = LiveRows(
            pa.concat_arrays([part.rows.ids for part in parts]),
            np.concatenate([part.rows.vectors for part in parts]),
            pa.concat_tables([part.rows.attributes for part in parts]),
        )
        if all(part._has_no_terms for part in parts):
            return cls(rows, rows.vectors)
        return cls(rows, np.concatenate([part.originals for part in parts]))


@dataclass(frozen=True, slots=True, eq=False)
class UpdateBatch:
    """A validated batch. In a join of a table with itself, `queries` are the items."""

    items: BatchRows
    gone: pa.Array  # sorted ids of items
    queries: BatchRows
    digest: str  # of the contents

    @property
    def is_empty(self) -> bool:
        """Return whether the batch has no rows and no ids."""
        return not len(self.items.rows.ids) and not len(self.gone) and not len(self.queries.rows.ids)


def read_batch(spec: GeneratorSpec, items: LiveTable, queries: LiveTable, inputs: BatchInputs) -> UpdateBatch:
    """Read and validate a batch for a version with these tables.

    Raises InputError with every problem whose policy is "error", and for ids, vectors or attributes of types that the
    version cannot take; SpecError for a table of queries in a join of a table with itself.
    """
    itself = queries is items
    if itself and inputs.queries is not None:
        raise InputError("this generator joins its items with themselves: its queries are the items; pass items alone")
    item_rows = _read_rows(spec, spec.items, items, inputs.items, "items")
    query_rows = item_rows if itself else _read_rows(spec, spec.query_source, queries, inputs.queries, "queries")
    gone = _read_gone(spec.items, items.ids.type, inputs.gone)
    both = find_positions(gone, item_rows.rows.ids)
    if (both >= 0).any():
        first = gone[int(np.argmax(both >= 0))].as_py()
        raise InputError(f"{int((both >= 0).sum()):,} ids in both items and gone, the first is {first!r}")
    parts = [_digest_rows(item_rows), _digest_ids(gone), "" if itself else _digest_rows(query_rows)]
    return UpdateBatch(item_rows, gone, query_rows, fingerprint(parts))


def _read_rows(spec: GeneratorSpec, source: SourceSpec, table: LiveTable, data: object | None, name: str) -> BatchRows:
    if data is None:
        none = table.added.take(np.empty(0, np.int64))
        return BatchRows(none, none.vectors)
    opened = _open(source, data, name)
    if opened.n_rows and opened.id_type != table.ids.type:
        raise InputError(
            f"the ids of the {name} are {opened.id_type}, and those of the served version {table.ids.type}; write one "
            "type"
        )
    settings = StageSettings(READ_BYTES)
    staged = stage_table(opened, spec, settings, name)
    report = report_table(name, staged.facts, opened, spec)
    raise_on_errors(Report(report, report, ()))
    if report.listed != report.vectors:
        raise InputError(f"{report.listed - report.vectors:,} {name} have no vector; an update takes rows with vectors")
    if not report.vectors:
        return _read_rows(spec, source, table, None, name)
    try:
        with tempfile.TemporaryDirectory(prefix="nearcast-update-") as folder:
            artifacts = LocalArtifacts(Path(folder))
            facts = {"dim": report.dim, "dtype": report.dtype}
            ingested = ingest_staged(staged, name, artifacts, facts, memory_bytes=READ_BYTES, table=name)
            originals = np.array(ingested.vectors.whole())
            scored = _add_score_terms(spec, ingested, is_items=name == "items")
            attributes = read_attributes(ingested, table.columns).drop_columns(["id"]).combine_chunks()
            ids = ingested.ids.take(pa.array(np.arange(report.vectors)))  # a copy: the file is removed
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise BudgetError(
            f"no room for the {name} in {tempfile.gettempdir()} ({error}); make room, or set TMPDIR to another disk"
        ) from error
    kinds = table.added.attributes.schema
    rows = LiveRows(ids, _as_dtype(scored, table, name), _cast_attributes(attributes, kinds, name))
    return BatchRows(rows, originals)


def _open(source: SourceSpec, data: object, name: str) -> RowSource:
    if not isinstance(data, str | Path):
        return table_source(source.with_data(), data, f"the table of {name}")
    if TABLE_LOCATION.fullmatch(str(data)):
        return open_source(source.with_data(table=str(data)), Path())
    return open_source(source.with_data(path=bucket_url(str(data)) or str(Path(data).absolute())), Path())


def _add_score_terms(spec: GeneratorSpec, ingested: IngestedTable, *, is_items: bool) -> AnyArray:
    """Return the vectors of the rows with the score terms of the spec."""
    inputs = Inputs(ingested, ingested, spec.metric)
    if not spec.score.columns:
        return np.array(ingested.vectors.whole())
    terms = check_score_terms(spec, inputs) if is_items else ScoreTerms(spec.score, 0.0)
    assert terms is not None
    scored = plan_scored_tables(inputs, terms)[0 if is_items else 1]
    return np.concatenate(list(scored.score(0, ingested.vectors.n)))


def _as_dtype(vectors: AnyArray, table: LiveTable, name: str) -> AnyArray:
    """Return vectors in the type of the version's. Raises InputError if they do not fit."""
    expected = table.vectors
    if vectors.shape[1] != expected.dim:
        raise InputError(
            f"the vectors of the {name} have {vectors.shape[1]} components, and those of the served version "
            f"{expected.dim}; embed them with the model of the served version"
        )
    cast = vectors.astype(expected.dtype)
    if not np.array_equal(cast.astype(np.float64), vectors.astype(np.float64)):
        raise InputError(
            f"the vectors of the {name} are {vectors.dtype} and do not fit {expected.dtype}, the type of the served "
            f"version; write them as {expected.dtype}"
        )
    return cast


def _cast_attributes(attributes: pa.Table, kinds: pa.Schema, name: str) -> pa.Table:
    try:
        return attributes.cast(kinds)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise InputError(
            f"the attributes of the {name} do not fit the types of the served version ({error}); write the same types"
        ) from error


def _read_gone(source: SourceSpec, kind: pa.DataType, data: object | None) -> pa.Array:
    """Return sorted, distinct ids. Raises InputError that names the line for a text that is no id."""
    if data is None:
        return pa.array([], kind)
    where = "the removed ids"
    if isinstance(data, str | Path):
        where = str(data)
        read = _read_id_table if TABLE_LOCATION.fullmatch(where) else _read_id_file
        ids = read(where, source.id, kind)
    elif is_table(data) and not isinstance(data, tuple):
        ids = _pick_column(pa.table(data), source.id, where)
    elif not isinstance(data, Iterable):
        raise InputError(f"{where} must be ids or a file of them, got {data!r}; give one id as a list")
    else:
        values = data if isinstance(data, pa.Array | pa.ChunkedArray) else list(data)
        ids = id_array(np.asarray(values), where) if len(values) else pa.array([], kind)
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if len(ids) and plain_id_type(ids.type, where, source.id) != kind:
        raise InputError(f"{where} are {ids.type}, and the ids of the served version are {kind}; write one type")
    if ids.null_count:
        raise InputError(f"{where}: {ids.null_count:,} ids are null; leave them out")
    ids = ids.cast(kind)
    ids = ids.take(pa.array(argsort_ids(ids)))
    return ids if are_distinct(ids) else ids.unique()


def _read_id_table(where: str, column: str, _kind: pa.DataType) -> pa.ChunkedArray:
    opened = open_table(where, None, Path())
    _pick_column(opened.schema.empty_table(), column, opened.name)
    tables = list(PinnedReader(opened).read([column], MAX_BATCH_ROWS))
    return pa.concat_tables([pa.schema([opened.schema.field(column)]).empty_table(), *tables]).column(column)


def _read_id_file(where: str, column: str, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    path = Path(where)
    try:
        with path.open("rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if data[:4] == b"PAR1":
        try:
            return _pick_column(pq.read_table(pa.BufferReader(data)), column, str(path))
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} is no whole Parquet file ({error}); write it again") from error
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline=None)  # an id may hold a separator that is no line end
        lines = [line.strip() for line in text]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is neither Parquet nor text in UTF-8 ({error}); write one id per line") from error
    if not pa.types.is_integer(kind):
        return pa.array([line for line in lines if line], kind)
    numbers = []
    for row, line in enumerate(lines):
        if line and not INTEGER.fullmatch(line):  # `int` takes 1_000 too
            raise InputError(f"{path} line {row + 1} is {line[:40]!r}, and ids are integers")
        numbers += [int(line)] if line else []
    try:
        return pa.array(numbers, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise InputError(f"{path}: an id does not fit int64 ({error})") from error


def _pick_column(table: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    if column not in table.column_names:
        raise InputError(f"{where} has no column {column!r}; it has {', '.join(table.column_names)}")
    return table.column(column)


def _digest_rows(batch: BatchRows) -> list[Any]:
    return [
        _digest_ids(batch.rows.ids),
        fingerprint(batch.originals.tobytes().hex()),
        _digest_table(batch.rows.attributes),
    ]


def _digest_ids(ids: pa.Array) -> str:
    return fingerprint(ids.to_pylist())


def _digest_table(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return fingerprint(sink.getvalue().to_pybytes().hex())
