"""Write a version of any kind into a store, read it back, and verify that readers can open it.

Equal checksums show that the store returned the bytes that were written. They do not show that a reader can use them:
so facts, rules, lists and rows are also decoded as readers do. A version that fails never becomes current, and a
rollback does not go to it. Knows nothing of audits and pointers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from zlib import crc32

from nearcast.eligibility.ruleset import RuleSet
from nearcast.errors import BusyError, DamagedError, InputError, NotFoundError, SpecError, StoreError
from nearcast.stores.base import Pair, Reader, Space, Store, Writer, get_unpatched
from nearcast.stores.value_format import decode_lists
from nearcast.stores.version_facts import VersionFacts, read_facts
from nearcast.table.load_expansion import read_stored
from nearcast.types import Progress

__all__ = [
    "add_checksum",
    "compute_checksum",
    "decode_all",
    "open_writer",
    "read_back",
    "unreadable_versions",
    "validate_facts",
    "verify_version",
]

CHECKSUM_BITS = 64
PAIRS_AT_ONCE = 1 << 12


@contextlib.contextmanager
def open_writer(store: Store, name: str, version: int) -> Iterator[Writer]:
    """Open a writer of a version; the caller finishes it. An error before that discards the data."""
    writer = store.write(name, version)
    try:
        yield writer
    except BusyError:
        raise  # the lock was lost: another publisher may own the data by now
    except BaseException:
        with contextlib.suppress(StoreError):  # the next publish clears it away; this error is the one to report
            writer.discard()
        raise


def verify_version(
    store: Store,
    name: str,
    version: int,
    where: str,
    progress: Progress,
    *,
    compare: Callable[[Reader], None] | None = None,
) -> None:
    """Read a written version back and open it as readers do. Raises DamagedError, which names `where`.

    compare: called last with the open version.
    """
    with contextlib.closing(store.open(name, version, verify=True)) as opened:
        reader = get_unpatched(opened)
        facts = validate_facts(reader, name, version, where)
        read_back(reader, facts, where, progress)
        decode_all(reader, facts, where)
        if compare is not None:
            compare(reader)


def compute_checksum(pairs: Iterable[Pair]) -> tuple[int, int]:
    """Return the checksum of pairs, which does not depend on their order, and their number."""
    total = count = 0
    stream = iter(pairs)
    while batch := list(islice(stream, PAIRS_AT_ONCE)):
        keys, values = zip(*batch, strict=True)
        total, count = add_checksum(total, keys, values), count + len(batch)
    return total, count


def add_checksum(total: int, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    """Return the checksum with these pairs added: the sum of crc32(value, crc32(key)) modulo 2**64."""
    return (total + sum(map(crc32, values, map(crc32, keys)))) % (1 << CHECKSUM_BITS)


def read_back(reader: Reader, facts: VersionFacts, where: str, progress: Progress) -> None:
    """Read all pairs. Raises DamagedError if their number or their checksum differs from the facts."""
    if facts.checksum is None:
        raise DamagedError(f"{where} has no checksum; publish it again")
    expected = {Space.LISTS: facts.keys, Space.ITEMS: facts.items + facts.query_rows}
    for done, space in enumerate(Space):
        total, count = compute_checksum(reader.pairs(space))
        if count != expected[space]:
            raise DamagedError(f"{where} holds {count:,} {space} where {expected[space]:,} were written")
        if total != facts.checksum[space]:
            raise DamagedError(f"{where}: the checksum of its {space} differs from the checksum in its facts")
        progress("read back", done + 1, len(Space))


def validate_facts(reader: Reader, name: str, version: int, where: str) -> VersionFacts:
    """Return the facts, after preparing the rules as readers do. Raises DamagedError, which names `where`."""
    with _translate_errors(where):
        facts = read_facts(reader, name, version)
        if facts.rules:
            RuleSet.prepare(facts.rules)
        return facts


def decode_all(reader: Reader, facts: VersionFacts, where: str) -> None:
    """Decode every list and every row. Raises DamagedError, which names `where`, if a reader could not use them."""
    with _translate_errors(where):
        if facts.is_expansion:
            read_stored(reader, facts, where)
            return
        for space in Space:
            pairs = reader.pairs(space)
            while batch := list(islice(pairs, PAIRS_AT_ONCE)):
                _check_values(space, [value for _, value in batch], facts.item_ids)


@contextlib.contextmanager
def _translate_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (DamagedError, InputError, SpecError, KeyError, ValueError, TypeError) as error:
        raise DamagedError(f"{where} could not be opened by any reader: {error}") from error


def _check_values(space: Space, values: list[bytes], item_ids: str) -> None:
    if space is Space.LISTS:
        decode_lists(values, item_ids)
        return
    for value in values:
        if not isinstance(json.loads(value), dict):
            raise ValueError(f"a row is no JSON object: {value[:50]!r}")


def unreadable_versions(store: Store, name: str, versions: Sequence[int]) -> set[int]:
    """Return the versions that no reader could open. Expansion tables, which are small, are read whole if needed."""
    return {version for version in versions if not _can_open(store, name, version)}


def _can_open(store: Store, name: str, version: int) -> bool:
    try:
        with contextlib.closing(store.open(name, version, verify=False)) as reader:
            facts = validate_facts(reader, name, version, "it")
            if facts.is_expansion and not facts.read_back:  # an older nearcast did not read it back
                decode_all(reader, facts, "it")
    except (DamagedError, NotFoundError):
        return False
    return True
