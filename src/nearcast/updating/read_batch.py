"""Read a batch of an update: new and changed items, removed ids, and queries; validated as the inputs of a run are.

Files or tables in memory. Rows come out in id order, with the types of the served version. Writes nothing that lasts.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.errors import BudgetError, InputError
from nearcast.files import bucket_url, fingerprint
from nearcast.join.score_terms import ScoreTerms, check_score_terms, plan_scored_tables
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, Inputs, read_attributes
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.listing_rules import GLOB
from nearcast.sources.memory_tables import is_table, table_source
from nearcast.sources.open_source import NoRowsError, open_source
from nearcast.sources.row_source import RowSource
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.sources.validate_rows import Report, raise_on_errors, report_table
from nearcast.spec import GeneratorSpec, SourceSpec
from nearcast.storage.artifacts import LocalArtifacts
from nearcast.types import AnyArray, IntArray
from nearcast.updating.fit_types import fit_types
from nearcast.updating.live_table import LiveRows, LiveTable
from nearcast.updating.removed_ids import read_removed_ids

__all__ = ["BatchInputs", "BatchRows", "UpdateBatch", "read_batch"]

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
        parts = [part for part in parts if len(part.rows.ids)] or parts[-1:]  # without rows, `originals` have no width
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
    gone = read_removed_ids(spec.items, items.ids.type, inputs.gone)
    both = find_positions(gone, item_rows.rows.ids)
    if (both >= 0).any():
        first = gone[int(np.argmax(both >= 0))].as_py()
        raise InputError(f"{int((both >= 0).sum()):,} ids in both items and gone, the first is {first!r}")
    parts = [_digest_rows(item_rows), _digest_ids(gone), "" if itself else _digest_rows(query_rows)]
    return UpdateBatch(item_rows, gone, query_rows, fingerprint(parts))


def _read_rows(spec: GeneratorSpec, source: SourceSpec, table: LiveTable, data: object | None, name: str) -> BatchRows:
    none = table.added.take(np.empty(0, np.int64))
    if data is None or _has_no_rows(data):
        return BatchRows(none, none.vectors)
    try:
        opened = _open(source, data, name)
    except NoRowsError:  # whatever its types: exporters write an empty table when nothing is new
        return BatchRows(none, none.vectors)
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
        return BatchRows(none, none.vectors)
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
    rows = LiveRows(ids, _as_dtype(scored, table, name), fit_types(attributes, kinds, name))
    return BatchRows(rows, originals)


def _has_no_rows(data: object) -> bool:
    """Return whether this is a table in memory without rows, of whatever types."""
    if isinstance(data, tuple):
        data = data[0] if data else ()
    elif not is_table(data):
        return False
    return hasattr(data, "__len__") and not len(data)


def _open(source: SourceSpec, data: object, name: str) -> RowSource:
    if not isinstance(data, str | Path):
        return table_source(source.with_data(), data, f"the table of {name}")
    if TABLE_LOCATION.fullmatch(str(data)):
        return open_source(source.with_data(table=str(data)), Path())
    if not bucket_url(str(data)) and not GLOB.search(str(data)) and not Path(data).exists():
        raise InputError(f"no file or folder of {name} at {Path(data).absolute()}; check the path")
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
