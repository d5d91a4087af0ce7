"""Counts of survival from a log of look-ups in Parquet: a row per candidate, and whether it survived.

Reads the log in batches. Knows nothing of how rates are estimated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nearcast.errors import InputError
from nearcast.files import bucket_url
from nearcast.sources.ids import SearchedIds, find_positions
from nearcast.sources.parquet_files import ParquetFiles, open_parquet
from nearcast.sources.parquet_listing import show_location
from nearcast.sources.user_files import ChangedInputError
from nearcast.types import IntArray

__all__ = ["ITEM", "SURVIVED", "SurvivalCounts", "open_log", "read_counts"]

ITEM, SURVIVED = "item", "survived"
BATCH_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class SurvivalCounts:
    """The counts of a log for m items."""

    survived: IntArray  # (m,)
    seen: IntArray  # (m,)
    unknown: int  # look-ups of ids that are no item today


def open_log(path: Path | str, base: Path) -> ParquetFiles:
    """Open a log: a Parquet file, a folder of files, or a glob, relative to `base`, or a URL.

    Raises InputError if none exists.
    """
    shown = show_location(path, base)
    way_out = f"overfetch.log names {shown}, which is not there; write look-ups to it, or use overfetch.survival"
    try:
        return open_parquet(path, base, "overfetch.log", way_out)
    except ChangedInputError:
        raise
    except InputError as error:
        if bucket_url(path, base) is None and os.path.lexists(base / path):
            raise InputError(f"the log of look-ups {shown} is no Parquet: {error}") from error
        raise


def read_counts(log: Path | ParquetFiles, item_ids: pa.Array | SearchedIds) -> SurvivalCounts:
    """Count the look-ups of each item in a log, opened or not, with the columns item and survived.

    Raises InputError for a missing file or column, ids of another type than the items', a null in `survived`, and a log
    that changes while it is read.
    """
    rows = log if isinstance(log, ParquetFiles) else open_log(log, Path())
    path = rows.listing.shown
    _validate_schema(path, rows.schema, item_ids.type)
    rows.need_columns([ITEM, SURVIVED])
    survived, seen = np.zeros(len(item_ids), np.int64), np.zeros(len(item_ids), np.int64)
    unknown = 0
    for batch in rows.batches([ITEM, SURVIVED], BATCH_ROWS):
        outcome = batch.column(SURVIVED)
        if outcome.null_count:
            raise InputError(
                f"{path} has look-ups with {SURVIVED} null; leave them out of the log, or write true or false"
            )
        try:
            items = batch.column(ITEM).cast(item_ids.type)
        except pa.ArrowException as error:
            raise InputError(
                f"column {ITEM!r} of {path} holds a value that is no id ({error}); write the items' ids"
            ) from error
        places = find_positions(items, item_ids)
        known = places >= 0
        unknown += int(np.count_nonzero(~known))
        seen += np.bincount(places[known], minlength=len(seen))
        good = known & outcome.to_numpy(zero_copy_only=False)
        survived += np.bincount(places[good], minlength=len(seen))
    return SurvivalCounts(survived, seen, unknown)


def _validate_schema(path: str, schema: pa.Schema, id_type: pa.DataType) -> None:
    for name in (ITEM, SURVIVED):
        if name not in schema.names:
            raise InputError(f"the log of look-ups {path} has no column {name!r}; it has {', '.join(schema.names)}")
    if not pa.types.is_boolean(schema.field(SURVIVED).type):
        raise InputError(f"column {SURVIVED!r} of {path} holds {schema.field(SURVIVED).type}; write true or false")
    found = schema.field(ITEM).type
    if pa.types.is_integer(found) != pa.types.is_integer(id_type):
        raise InputError(
            f"column {ITEM!r} of {path} holds {found}, and the items' ids are {id_type}; write the same ids"
        )
