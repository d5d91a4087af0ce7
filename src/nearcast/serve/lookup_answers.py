"""What a look-up answers: one list, or many as arrays. Values only; knows nothing of stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.stores.value_format import REASONS
from nearcast.types import FloatArray, IntArray

__all__ = ["NOWHERE", "TABLE", "Answer", "Answers"]

TABLE = "table"  # the list that the snapshot holds for the key itself
NOWHERE = "none"  # there is no list


@dataclass(frozen=True, slots=True)
class Answer:
    """The candidates of one key, best first, as one snapshot and the overlay have them."""

    key: str | int
    found: bool  # whether the snapshot has this key; its list may still be empty
    ids: Sequence[Any]
    scores: Sequence[float]
    reason: str | None  # why the stored list is short, if it is
    removed: int  # candidates of the stored list that the overlay has taken out
    columns: Mapping[str, Sequence[Any]]  # the item columns that were asked for, a value per candidate
    source: str  # "table", or "none"; a service that falls back names its own
    source_key: str | int | None  # the key whose list this is
    snapshot: str  # such as 000007
    age_seconds: float  # since the snapshot was made; never negative
    stored: int = 0  # candidates that the store holds in the lists that were looked at
    barred: Mapping[str, int] = field(default_factory=dict)  # rule: candidates that it has barred, the first that did

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def returned(self) -> int:
        """How many candidates are left."""
        return len(self.ids)

    def as_dict(self) -> dict[str, Any]:
        """Plain data: one dictionary per candidate."""
        names = list(self.columns)
        candidates = [
            {"rank": rank + 1, "id": item, "score": score} | {name: self.columns[name][rank] for name in names}
            for rank, (item, score) in enumerate(zip(self.ids, self.scores, strict=True))
        ]
        return {
            "key": self.key,
            "found": self.found,
            "source": self.source,
            "source_key": self.source_key,
            "snapshot": self.snapshot,
            "age_seconds": self.age_seconds,
            "length": len(candidates),
            "stored": self.stored,
            "removed": self.removed,
            "barred": dict(self.barred),
            "reason": self.reason,
            "candidates": candidates,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The candidates of n keys, flat: list i is ids[offsets[i]:offsets[i + 1]], best first. All of one snapshot."""

    keys: (
        Sequence[str | int | None] | IntArray
    )  # (n,) in the type of the table; None where a key cannot be one of its keys
    found: npt.NDArray[np.bool_]  # (n,)
    offsets: IntArray  # (n + 1,)
    ids: pa.Array  # int64 or string
    scores: FloatArray
    reasons: npt.NDArray[np.uint8]  # (n,) why a stored list is short: places in `stores.values.REASONS`
    removed: IntArray  # (n,) candidates that the overlay has taken out
    snapshot: str
    age_seconds: float
    stored: IntArray  # (n,) candidates of the stored list
    barred: Mapping[str, IntArray]  # rule: (n,) candidates that it has barred; only rules that have

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, place: int) -> Answer:
        place = range(len(self))[place]
        start, end = int(self.offsets[place]), int(self.offsets[place + 1])
        key, found = _plain(self.keys[place]), bool(self.found[place])
        return Answer(
            key=key,
            found=found,
            ids=self.ids[start:end].to_pylist(),
            scores=self.scores[start:end].tolist(),
            reason=REASONS[self.reasons[place]],
            removed=int(self.removed[place]),
            columns={},
            source=TABLE if found else NOWHERE,
            source_key=key if found else None,
            snapshot=self.snapshot,
            age_seconds=self.age_seconds,
            stored=int(self.stored[place]),
            barred={rule: int(counts[place]) for rule, counts in self.barred.items() if counts[place]},
        )

    def __iter__(self) -> Iterator[Answer]:
        return (self[place] for place in range(len(self)))

    def to_arrow(self) -> pa.Table:
        """A row per key: query_id, candidate_ids, scores, found, reason, removed. A key of no such type is null."""
        offsets = pa.array(self.offsets)
        return pa.table(
            {
                "query_id": pa.array(self.keys),
                "candidate_ids": pa.LargeListArray.from_arrays(offsets, self.ids),
                "scores": pa.LargeListArray.from_arrays(offsets, pa.array(self.scores)),
                "found": pa.array(self.found),
                "reason": pa.array(REASONS, pa.string()).take(pa.array(self.reasons)),
                "removed": pa.array(self.removed),
            }
        )


def _plain(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key.as_py() if isinstance(key, pa.Scalar) else key
