"""Values of a look-up: the keys and options that come in, the candidate lists that go out. Knows nothing of stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.stores.canary_share import Canary
from nearcast.stores.value_format import REASONS, IdType, encode_key, encode_keys, parse_key
from nearcast.stores.version_facts import VersionFacts
from nearcast.types import FloatArray, IntArray

__all__ = [
    "ALL_CANDIDATES",
    "NOWHERE",
    "TABLE",
    "Answer",
    "Answers",
    "EncodedKeys",
    "Keys",
    "LookupOptions",
    "LookupState",
    "convert_key",
    "encode_lookup_keys",
]

Keys = Any  # a sequence of ints or strings, a NumPy array of them, or an Arrow array

TABLE = "table"  # the list that the snapshot holds for the key itself
NOWHERE = "none"  # no list
LARGEST = (1 << 63) - 1


class LookupOptions(NamedTuple):
    """Options that apply to every list of a look-up."""

    k: int | None = None  # candidates per list; None: all of them, for a merged list the generator's k
    min_score: float | None = None
    fields: Sequence[str] = ()  # item columns to return
    request: Mapping[str, Any] | None = None  # request.* fields and query columns for the rules


ALL_CANDIDATES = LookupOptions()


@dataclass(frozen=True, slots=True)
class LookupState:
    """The version that a look-up answers from, and whether it follows the store."""

    generator: str
    store: str  # URL without the password
    version: int
    snapshot: str  # for example 000007
    serial: int  # of the pointer that led to this version
    age_seconds: float  # of the snapshot
    refreshed_seconds: float  # since the last successful poll of the store
    overlay: int  # entries in force
    error: str | None  # why a newer version or overlay entry is not applied
    version_facts: VersionFacts
    patch: int = 0  # number of the newest patch in force; 0 if the version has none
    patch_age_seconds: float | None = None  # since that patch was made; None if the version has none
    canary: Canary | None = None  # that answers its share of the keys, or is measured on them

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the version as JSON data; see `docs/store-format.md`."""
        return self.version_facts.to_json()


@dataclass(frozen=True, slots=True)
class Answer:
    """The candidates of one key, best first, from one snapshot and one state of the overlay."""

    key: str | int
    found: bool  # the snapshot has this key; its list may be empty
    ids: Sequence[Any]
    scores: Sequence[float]
    reason: str | None  # why the stored list is short, if it is
    removed: int  # candidates of the stored list that the overlay has removed
    columns: Mapping[str, Sequence[Any]]  # requested item columns, one value per candidate
    source: str  # "table" or "none"; the HTTP service adds the names of its fallbacks
    source_key: str | int | None  # the key that the list belongs to
    snapshot: str  # for example 000007
    age_seconds: float  # since the snapshot was made; never negative
    stored: int = 0  # candidates in the stored lists that were read
    barred: Mapping[str, int] = field(default_factory=dict)  # rule: candidates that it filtered out; first rule counts

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def returned(self) -> int:
        """Number of candidates in this answer."""
        return len(self.ids)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: one dictionary per candidate."""
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
    """The candidates of n keys, flat: list i is ids[offsets[i]:offsets[i + 1]], best first.

    All are from one snapshot, unless a canary answers some of the keys.
    """

    keys: Sequence[str | int | None] | IntArray  # (n,) in the table's key type; None for a key of another type
    found: npt.NDArray[np.bool_]  # (n,)
    offsets: IntArray  # (n + 1,)
    ids: pa.Array  # int64 or string
    scores: FloatArray
    reasons: npt.NDArray[np.uint8]  # (n,) why a stored list is short: index into `REASONS`
    removed: IntArray  # (n,) candidates that the overlay has removed
    snapshot: str
    age_seconds: float
    stored: IntArray  # (n,) candidates of the stored list
    barred: Mapping[str, IntArray]  # rule: (n,) candidates that it filtered out; only rules that filtered any
    snapshots: Sequence[str] | None = None  # (n,) of each list, if a canary answers some; `snapshot` is then the first
    ages_seconds: Sequence[float] | None = None  # (n,) like `snapshots`

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, position: int) -> Answer:
        position = range(len(self))[position]
        start, end = int(self.offsets[position]), int(self.offsets[position + 1])
        key, found = _to_python(self.keys[position]), bool(self.found[position])
        return Answer(
            key=key,
            found=found,
            ids=self.ids[start:end].to_pylist(),
            scores=self.scores[start:end].tolist(),
            reason=REASONS[self.reasons[position]],
            removed=int(self.removed[position]),
            columns={},
            source=TABLE if found else NOWHERE,
            source_key=key if found else None,
            snapshot=self.snapshot if self.snapshots is None else self.snapshots[position],
            age_seconds=self.age_seconds if self.ages_seconds is None else self.ages_seconds[position],
            stored=int(self.stored[position]),
            barred={rule: int(counts[position]) for rule, counts in self.barred.items() if counts[position]},
        )

    def __iter__(self) -> Iterator[Answer]:
        return (self[position] for position in range(len(self)))

    def to_arrow(self) -> pa.Table:
        """Return a row per key: query_id, candidate_ids, scores, found, reason, removed. Other key types: null."""
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


class EncodedKeys(NamedTuple):
    """Keys of a look-up in the table's type, and their bytes in the store."""

    keys: Sequence[str | int | None] | IntArray  # (n,) None for a key that cannot be a key of the table
    encoded: list[bytes]  # one per key that is not None
    positions: IntArray | None  # of the encoded keys in `keys`; None: all of them are encoded


def convert_key(key: Any, ids: IdType) -> str | int | None:
    """Return the key in the table's type, or None if it cannot be a key of the table. "7" becomes 7."""
    if isinstance(key, np.generic):
        key = key.item()
    if not isinstance(key, str | int) or isinstance(key, bool):
        return None
    return parse_key(key, ids)


def encode_lookup_keys(keys: Keys, ids: IdType) -> EncodedKeys:
    """Convert and encode many keys. Keys that have the table's type already need no Python step each."""
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    if ids == "int64":
        numbers = _convert_integers(keys)
        if numbers is not None:
            return EncodedKeys(numbers, encode_keys(pa.array(numbers)), None)
    elif isinstance(keys, list | tuple) and set(map(type, keys)) <= {str}:
        return EncodedKeys(keys, [encode_key(key) for key in keys], None)
    values = keys.to_pylist() if isinstance(keys, pa.Array) else keys.tolist() if isinstance(keys, np.ndarray) else keys
    converted = [convert_key(key, ids) for key in values]
    positions = [position for position, key in enumerate(converted) if key is not None]
    encoded = [encode_key(key) for key in converted if key is not None]
    return EncodedKeys(converted, encoded, None if len(positions) == len(converted) else np.array(positions, np.int64))


def _convert_integers(keys: Keys) -> IntArray | None:
    """Return the keys as int64, or None if one of them is not an integer or does not fit."""
    if isinstance(keys, pa.Array):
        if not pa.types.is_integer(keys.type) or keys.null_count:
            return None
        keys = keys.to_numpy(zero_copy_only=False)
    if isinstance(keys, list | tuple):
        if not set(map(type, keys)) <= {int}:
            return None
        try:
            return np.array(keys, np.int64)
        except OverflowError:
            return None
    if not isinstance(keys, np.ndarray) or keys.dtype.kind not in "iu":
        return None
    if keys.dtype == np.uint64 and len(keys) and keys.max() > LARGEST:
        return None
    return keys.astype(np.int64, copy=False)


def _to_python(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key.as_py() if isinstance(key, pa.Scalar) else key
