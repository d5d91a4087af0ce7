"""The format of keys and values in a store: ids as keys, candidate lists and item columns as values. Format 1.

    key     an int64 id: 8 bytes, big-endian, sign bit flipped, so that bytes sort as the numbers do
            a string id: its UTF-8 bytes; of more than 480, the first 448, 0xFF, and the 32 bytes of their BLAKE2b hash;
                         of none, 0x00 0xFF
    list    byte 0      16 * format + kind of the ids: 0 uint32, 1 int64, 2 string
            byte 1      why the list is short: see REASONS
            bytes 2-3   n, the number of candidates, little-endian, as everything that follows
            4n bytes    scores, float32, best first
            ids         n uint32, n int64, or n uint16 lengths and then the UTF-8 bytes of all
    query   the key of a query's columns among the items: 0x00 0xFE, and then the query's key
    item    its columns as JSON, UTF-8; dates as ISO 8601, bytes as hexadecimal digits, NaN and infinities as null

`docs/store-format.md` describes it for readers in other languages. Knows nothing of stores.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nearcast.errors import DamagedError, InputError
from nearcast.times import to_rows

__all__ = [
    "FORMAT",
    "REASONS",
    "STRING",
    "UINT32",
    "CandidateLists",
    "IdType",
    "decode_columns",
    "decode_integer_keys",
    "decode_list",
    "decode_lists",
    "encode_items",
    "encode_key",
    "encode_keys",
    "encode_lists",
    "encode_query_key",
    "encode_texts",
    "id_kind",
    "id_type",
    "parse_key",
]

FORMAT = 1
REASONS = (None, "too_few_eligible", "not_probed", "no_vector", "capped", "below_min_score")
CODES = {reason: code for code, reason in enumerate(REASONS)}
UINT32, INT64, STRING = 0, 1, 2
ID_BYTES = {UINT32: 4, INT64: 8}
LONGEST_KEY, KEPT_OF_LONG = 480, 448  # LMDB takes keys of up to 511 bytes
NO_TEXT = b"\x00\xff"  # LMDB takes no empty key; 0xFF is in no UTF-8, and 0x00 leaves it among the first in order
OF_QUERY = b"\x00\xfe"  # 0xFE is in no UTF-8, and keys of numbers have 8 bytes, not 10
MOST_CANDIDATES = 0xFFFF
SIGN = 1 << 63
HEADER = struct.Struct("<BBH")

IdType = str  # "int64" or "string"


def id_type(kind: pa.DataType) -> IdType:
    """Return the type of ids as the facts record it."""
    return "int64" if pa.types.is_integer(kind) else "string"


def encode_key(key: str | int) -> bytes:
    """Encode an id as a key, by the type of the id."""
    if isinstance(key, str):
        data = key.encode("utf-8", errors="surrogatepass")  # such a key is in no table: the look-up misses
        if len(data) <= LONGEST_KEY:
            return data or NO_TEXT
        return data[:KEPT_OF_LONG] + b"\xff" + hashlib.blake2b(data, digest_size=32).digest()
    if not -SIGN <= key < SIGN:
        return NO_TEXT  # never in a table of integers: its keys have 8 bytes
    return (key + SIGN).to_bytes(8, "big")


def encode_query_key(key: bytes) -> bytes:
    """Return the key of a query's columns in the space of items. No item has such a key."""
    return OF_QUERY + key


def encode_keys(ids: pa.Array) -> list[bytes]:
    """Encode ids as keys."""
    if pa.types.is_integer(ids.type):
        numbers = ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64) ^ np.uint64(SIGN)
        return _split_rows(numbers.astype(">u8").view(np.uint8).reshape(-1, 8))
    offsets, texts = encode_texts(ids)
    if int(np.diff(offsets).max(initial=0)) > LONGEST_KEY:
        return [encode_key(text) for text in ids.to_pylist()]
    return [texts[start:end] or NO_TEXT for start, end in pairwise(offsets.tolist())]


def decode_keys(keys: Sequence[bytes], ids: IdType) -> pa.Array:
    """Decode keys to ids, without text ids that are too long for a key."""
    if ids != "string":
        return pa.array(decode_integer_keys([key for key in keys if len(key) == 8]), pa.int64())
    texts = [b"" if key == NO_TEXT else key for key in keys if not key.startswith(OF_QUERY)]
    return pa.array([text.decode() for text in texts if b"\xff" not in text], pa.string())


def decode_integer_keys(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Decode keys to integer ids. Raises DamagedError for another key."""
    if set(map(len, keys)) - {8}:
        raise DamagedError("the store holds a key that is no number, in a table whose keys are numbers")
    return (np.frombuffer(b"".join(keys), ">u8").astype(np.uint64) ^ np.uint64(SIGN)).view(np.int64)


def parse_key(text: str | int, ids: IdType) -> str | int | None:
    """Convert an id from a URL or a command to the type of the table; None if it cannot be one of its ids."""
    if ids == "string":
        return str(text)
    if isinstance(text, int):
        return text if -SIGN <= text < SIGN else None
    plain = text[1:] if text[:1] == "-" else text
    if not (plain.isascii() and plain.isdigit()) or len(plain) > 19:
        return None
    number = int(text)
    return number if -SIGN <= number < SIGN else None


def id_kind(ids: pa.Array | pa.ChunkedArray) -> int:
    """Return the narrowest encoding that holds all these ids."""
    if not pa.types.is_integer(ids.type):
        return STRING
    if len(ids) == 0:
        return UINT32
    ends = pc.min_max(ids).as_py()
    return UINT32 if ends["min"] >= 0 and ends["max"] < 1 << 32 else INT64


def encode_lists(ids: pa.ListArray, scores: pa.ListArray, reasons: Sequence[str | None], kind: int) -> list[bytes]:
    """Encode candidate lists; ids and scores have equal lengths. Raises InputError if format 1 cannot hold them."""
    lengths = np.asarray(pc.list_value_length(ids).to_numpy(zero_copy_only=False), np.int64)
    if len(lengths) and lengths.max() > MOST_CANDIDATES:
        raise InputError(f"a list holds {lengths.max():,} candidates; a store takes {MOST_CANDIDATES:,} at most")
    codes = np.fromiter(map(CODES.__getitem__, reasons), np.uint8, len(lengths))
    numbers = scores.flatten().to_numpy(zero_copy_only=False).astype("<f4", copy=False)
    starts = np.cumsum(lengths) - lengths
    if kind == STRING:
        return _encode_string_lists(codes, lengths, numbers.tobytes(), ids.flatten())
    flat_ids = ids.flatten().to_numpy(zero_copy_only=False).astype("<u4" if kind == UINT32 else "<i8", copy=False)
    widths = np.unique(lengths).tolist()
    if len(widths) == 1:
        shape = (len(lengths), widths[0])
        return _split_rows(_encode_records(codes, numbers.reshape(shape), flat_ids.reshape(shape), kind))
    values = np.empty(len(lengths), object)
    for width in widths:  # lists of equal length are records of equal size
        rows = np.flatnonzero(lengths == width)
        slots = starts[rows, None] + np.arange(width)
        values[rows] = _split_rows(_encode_records(codes[rows], numbers[slots], flat_ids[slots], kind))
    listed: list[bytes] = values.tolist()
    return listed


def _encode_records(
    codes: npt.NDArray[np.uint8], scores: npt.NDArray[Any], ids: npt.NDArray[Any], kind: int
) -> npt.NDArray[np.uint8]:
    """Return the bytes of n lists of equal length, as (n, size)."""
    n, length = scores.shape
    records = np.empty((n, 4 + (4 + ID_BYTES[kind]) * length), np.uint8)
    records[:, 0], records[:, 1] = 16 * FORMAT + kind, codes
    records[:, 2], records[:, 3] = length & 255, length >> 8
    records[:, 4 : 4 + 4 * length] = scores.view(np.uint8)
    records[:, 4 + 4 * length :] = ids.view(np.uint8)
    return records


def _split_rows(records: npt.NDArray[np.uint8]) -> list[bytes]:
    """Split (n, size) bytes into n objects; done in C."""
    if len(records) == 0:
        return []
    pieces: list[bytes] = np.ascontiguousarray(records).view(f"V{records.shape[1]}").reshape(-1).tolist()
    return pieces


def _encode_string_lists(
    codes: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], scores: bytes, ids: pa.Array
) -> list[bytes]:
    offsets, texts = encode_texts(ids)
    longest = int(np.diff(offsets).max(initial=0))
    if longest > MOST_CANDIDATES:
        raise InputError(f"an item's id has {longest:,} bytes; a store takes {MOST_CANDIDATES:,} at most")
    sizes = np.diff(offsets).astype("<u2").tobytes()
    ends = np.append(0, np.cumsum(lengths))
    places = offsets[ends].tolist()
    heads = np.empty((len(lengths), HEADER.size), np.uint8)
    heads[:, 0], heads[:, 1] = 16 * FORMAT + STRING, codes
    heads[:, 2:] = lengths.astype("<u2")[:, None].view(np.uint8)
    return [
        head + scores[4 * a : 4 * b] + sizes[2 * a : 2 * b] + texts[first:last]
        for head, (a, b), (first, last) in zip(
            _split_rows(heads), pairwise(ends.tolist()), pairwise(places), strict=True
        )
    ]


def encode_texts(ids: pa.Array) -> tuple[npt.NDArray[np.int64], bytes]:
    """Return the offsets of the strings, (n + 1,), and the UTF-8 bytes of all."""
    ids = ids.cast(pa.large_string())
    if len(ids) == 0:
        return np.zeros(1, np.int64), b""
    _, places, data = ids.buffers()
    offsets = np.frombuffer(places, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    return offsets - first, data[first:last].to_pybytes() if data is not None else b""


def encode_items(columns: pa.Table) -> list[bytes]:
    """Encode the columns of items as JSON."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_convert_value, allow_nan=False).encode

    def write(row: dict[str, Any]) -> bytes:
        try:
            return encode(row).encode()
        except ValueError:
            return encode(_replace_nan(row)).encode()

    return [write(row) for row in to_rows(columns)] or [b"{}"] * len(columns)


def _replace_nan(value: Any) -> Any:
    """Replace NaN and infinities by None: JSON has no value for them."""
    if isinstance(value, dict):
        return {name: _replace_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _convert_value(value: Any) -> Any:
    """Convert a value that JSON lacks: dates to ISO 8601, bytes to hexadecimal digits, others to text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class CandidateLists:
    """Decoded lists of n keys, flat: list i is ids[offsets[i]:offsets[i + 1]]. A missing key has an empty list."""

    found: npt.NDArray[np.bool_]  # (n,)
    offsets: npt.NDArray[np.int64]  # (n + 1,)
    ids: pa.Array  # int64 or string
    scores: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.uint8]  # (n,) numbers in REASONS


def decode_list(value: bytes) -> tuple[list[Any], list[float], str | None]:
    """Decode one list to ids, scores and reason. Raises DamagedError."""
    try:
        head, reason, n = HEADER.unpack_from(value)
        kind = _validate_head(head)
        scores = list(struct.unpack_from(f"<{n}f", value, 4))
        start = 4 + 4 * n
        if kind == STRING:
            return _decode_strings(value, start, n), scores, REASONS[reason]
        if start + ID_BYTES[kind] * n != len(value):
            raise ValueError(f"it has {len(value)} bytes and should have {start + ID_BYTES[kind] * n}")
        return list(struct.unpack_from(f"<{n}{'I' if kind == UINT32 else 'q'}", value, start)), scores, REASONS[reason]
    except (struct.error, ValueError, IndexError) as error:
        raise DamagedError(f"a value in the store is no list of candidates ({error})") from error


def _decode_strings(value: bytes, start: int, n: int) -> list[str]:
    """Decode n lengths and the UTF-8 bytes after them. ASCII text is decoded once and then split: half the work."""
    ends = list(accumulate(struct.unpack_from(f"<{n}H", value, start), initial=0))
    packed = value[start + 2 * n :]
    if ends[-1] != len(packed):
        raise ValueError(f"it has {len(value)} bytes and should have {len(value) - len(packed) + ends[-1]}")
    if not packed.isascii():
        return [packed[a:b].decode() for a, b in pairwise(ends)]
    text = packed.decode()
    return [text[a:b] for a, b in pairwise(ends)]


def _validate_head(head: int) -> int:
    form, kind = divmod(head, 16)
    if form != FORMAT:
        raise ValueError(f"its format is {form}, and this version of nearcast reads {FORMAT}")
    if kind > STRING:
        raise ValueError(f"its ids are of kind {kind}")
    return kind


def decode_lists(values: Sequence[bytes | None], ids: IdType) -> CandidateLists:
    """Decode many lists at once. Raises DamagedError if a value is no list."""
    there = [value for value in values if value is not None]
    sizes = np.fromiter(map(len, there), np.int64, len(there))
    if len(there) == len(values):
        found = np.ones(len(values), np.bool_)
    else:
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
    if len(there) and int(sizes.min()) < HEADER.size:
        raise DamagedError("a value in the store is no list of candidates: it is too short")
    data = np.frombuffer(b"".join(there), np.uint8)
    starts = np.cumsum(sizes) - sizes
    kind = _find_kind(data[starts], ids)
    if kind is None:
        return _decode_mixed_lists(values)
    lengths = data[starts + 2].astype(np.int64) + 256 * data[starts + 3].astype(np.int64)
    _check_sizes(sizes, lengths, kind)
    reasons = np.zeros(len(values), np.uint8)
    reasons[found] = data[starts + 1]
    if len(there) and int(reasons.max()) >= len(REASONS):
        raise DamagedError(f"a value in the store is no list of candidates: its reason is {reasons.max()}")
    offsets = np.zeros(len(values) + 1, np.int64)
    offsets[1:][found] = lengths
    np.cumsum(offsets, out=offsets)
    if kind == STRING:
        scores, texts = _decode_string_lists(there, lengths)
        return CandidateLists(found, offsets, texts, scores, reasons)
    width = ID_BYTES[kind] // 4
    floats, numbers = _split_parts(data.view("<u4"), 1, lengths, width * lengths)
    flat_ids = numbers.view("<u4" if kind == UINT32 else "<i8").astype(np.int64, copy=False)
    return CandidateLists(
        found, offsets, pa.array(flat_ids), floats.view("<f4").astype(np.float32, copy=False), reasons
    )


def _decode_mixed_lists(values: Sequence[bytes | None]) -> CandidateLists:
    """Decode lists with integer ids of both widths: those of a version, and of patches with wider ids."""
    lists = [None if value is None else decode_list(value) for value in values]
    there = [part for part in lists if part is not None]
    codes = np.array([CODES[part[2]] if part else 0 for part in lists], np.uint8)
    return CandidateLists(
        np.array([part is not None for part in lists], np.bool_),
        np.append(0, np.cumsum([len(part[0]) if part else 0 for part in lists])),
        pa.array([number for part in there for number in part[0]], pa.int64()),
        np.array([score for part in there for score in part[1]], np.float32),
        codes,
    )


def _find_kind(heads: npt.NDArray[np.uint8], ids: IdType) -> int | None:
    """Return the encoding of ids; None for integers of both widths."""
    try:
        kinds = {_validate_head(head) for head in np.unique(heads).tolist()}
    except ValueError as error:
        raise DamagedError(f"a value in the store is no list of candidates ({error})") from error
    if kinds == {UINT32, INT64}:
        return None
    if len(kinds) > 1:
        raise DamagedError("the lists of one version have ids of several kinds")
    return kinds.pop() if kinds else (STRING if ids == "string" else UINT32)


def _check_sizes(sizes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], kind: int) -> None:
    wrong = sizes < 4 + 6 * lengths if kind == STRING else sizes != 4 + (4 + ID_BYTES[kind]) * lengths
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise DamagedError(f"a value in the store is cut short: {lengths[at]} candidates in {sizes[at]} bytes")


def _split_parts(
    words: npt.NDArray[Any], skipped: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Split records of `skipped` words and two parts of given lengths; return both parts, flat."""
    counts = np.stack([np.full(len(first), skipped), first, second], axis=1).reshape(-1)
    part = np.repeat(np.tile(np.arange(3, dtype=np.uint8), len(first)), counts)
    return words[part == 1], words[part == 2]


def _decode_string_lists(
    values: Sequence[bytes], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], pa.Array]:
    """Decode lists with string ids to scores and ids."""
    ends = (4 + 6 * lengths).tolist()  # of the scores and sizes; the rest is text
    heads = b"".join([value[:end] for value, end in zip(values, ends, strict=True)])
    text = b"".join([value[end:] for value, end in zip(values, ends, strict=True)])
    halves, sizes = _split_parts(np.frombuffer(heads, "<u2"), 2, 2 * lengths, lengths)
    offsets = np.append(0, np.cumsum(sizes, dtype=np.int64))
    of_lists = np.diff(offsets[np.append(0, np.cumsum(lengths))])
    there = np.fromiter(map(len, values), np.int64, len(values)) - np.array(ends, np.int64)
    if (of_lists != there).any():
        raise DamagedError("a value in the store is cut short: its ids do not add up")
    kind, width = (pa.string(), np.int32) if len(text) < 1 << 31 else (pa.large_string(), np.int64)
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(text)]
    ids = pa.Array.from_buffers(kind, len(sizes), buffers)
    try:
        ids.validate(full=True)  # readers would fail otherwise; takes a tenth of the time
    except pa.ArrowInvalid as error:
        raise DamagedError(f"a value in the store is no list of candidates ({error})") from error
    return halves.view("<f4").astype(np.float32, copy=False), ids


def decode_columns(value: bytes) -> dict[str, Any]:
    """Return the columns that a value of the store holds. Raises DamagedError if it is not a JSON object."""
    try:
        row = json.loads(value)
        if not isinstance(row, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise DamagedError(f"a value in the store holds no columns of an item ({error})") from error
    return row
