"""Counts of survival from a log of look-ups in Parquet: which item was in a list, and whether it was still good.

Reads the file in batches and keeps counts alone. Knows nothing of how rates are made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import InputError
from nearcast.parquet import open_dataset
from nearcast.types import IntArray

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

__all__ = ["ITEM", "SURVIVED", "Counts", "read_counts"]

ITEM, SURVIVED = "item", "survived"
BATCH_ROWS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """What a log says of m items."""

    survived: IntArray  # (m,)
    seen: IntArray  # (m,)
    unknown: int  # look-ups of items that are none any more


def read_counts(path: Path, item_ids: pa.Array) -> Counts:
    """Count the look-ups of each item. `path`: a Parquet file or a folder of them, with the columns item and survived.

    Raises InputError where there is no such file or column, where the ids are of another type than the items', and
    where a row leaves open whether the item survived.
    """
    rows = _open(path)
    _check(path, rows.schema, item_ids.type)
    survived, seen = np.zeros(len(item_ids), np.int64), np.zeros(len(item_ids), np.int64)
    unknown = 0
    for batch in rows.to_batches(columns=[ITEM, SURVIVED], batch_size=BATCH_ROWS):
        outcome = batch.column(SURVIVED)
        if outcome.null_count:
            raise InputError(
                f"{path} has look-ups with {SURVIVED} null; leave them out of the log, or say what came of it"
            )
        places = pc.fill_null(pc.index_in(batch.column(ITEM).cast(item_ids.type), value_set=item_ids), -1).to_numpy()
        known = places >= 0
        unknown += int(np.count_nonzero(~known))
        seen += np.bincount(places[known], minlength=len(seen))
        good = known & outcome.to_numpy(zero_copy_only=False)
        survived += np.bincount(places[good], minlength=len(seen))
    return Counts(survived, seen, unknown)


def _open(path: Path) -> Dataset:
    if not path.exists():
        raise InputError(f"surplus.log names {path}, which is not there; write look-ups to it, or use surplus.survival")
    try:
        return open_dataset(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"the log of look-ups {path} is no Parquet: {error}") from error


def _check(path: Path, schema: pa.Schema, id_type: pa.DataType) -> None:
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
