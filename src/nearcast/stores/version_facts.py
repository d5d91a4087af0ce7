"""Facts of a version: the JSON object that a store keeps with a version and returns as `Reader.facts`.

`VersionFacts` is the typed form. It reads and writes the same JSON: same keys, same order, same values. Three kinds of
versions are published: snapshots of a generator, weight tables and expansion tables. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from nearcast.errors import DamagedError
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import IdType, decode_keys
from nearcast.suggest import describe_nearest

__all__ = ["EXPANSION", "FACTS_FORMAT", "WEIGHT_TABLE", "VersionFacts", "nearest_in_version", "read_facts"]

FACTS_FORMAT = 1
WEIGHT_TABLE = "table"  # kinds of versions; the facts of a snapshot have no kind
EXPANSION = "expansion"
ID_TYPES = ("int64", "string")
MAX_KEYS_COMPARED = 200_000  # about a second

_IDENTITY = ("format", "kind", "generator", "version", "snapshot", "started", "created")
_IDS = ("query_ids", "item_ids", "id_kind")
# by kind: the keys that are written, in this order
LAYOUTS: Mapping[str | None, tuple[str, ...]] = {
    None: (
        *(name for name in _IDENTITY if name != "kind"),
        *("published", "fingerprint", "metric", "k", *_IDS, "columns", "rules", "measures", "promise", "profile"),
        *("serve", "audit", "keys", "items", "payload_bytes", "query_rows", "checksum"),
    ),
    WEIGHT_TABLE: (
        *(*_IDENTITY, "published", "metric", "k", *_IDS, "columns", "measures", "promise", "serve", "audit"),
        *("keys", "items", "payload_bytes", "checksum", "fingerprint", "of"),
    ),
    EXPANSION: (
        *(*_IDENTITY, "as_of", "published", *_IDS, "keys", "items", "links", "k", "columns", "expansion"),
        *("read_back", "measures", "promise", "serve", "source_changed", "checksum", "payload_bytes"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """Facts of one published version. A field with a default may be absent in versions of an older nearcast.

    Times are text in UTC, ISO 8601. `layout` and `other` keep the keys that were read, so that `to_json` returns them.
    """

    generator: str
    version: int
    snapshot: str  # for example 000007
    created: str  # when the run ended
    query_ids: IdType
    item_ids: IdType
    format: int = FACTS_FORMAT
    kind: str | None = None  # None: a snapshot of a generator
    started: str | None = None  # when the inputs were read; absent: `created` counts
    as_of: str | None = None  # of an expansion table: when its source was read, to the microsecond
    published: str = ""
    fingerprint: str | None = None
    metric: str | None = None
    k: int = 0
    id_kind: int | None = None  # how item ids are written, see `value_format`
    columns: Mapping[str, str] = field(default_factory=dict)  # item columns and their Arrow types
    rules: Mapping[str, Any] | None = None  # see `eligibility.serialize_rules`; None: no rules
    measures: Mapping[str, Any] = field(default_factory=dict)
    promise: Mapping[str, Any] = field(default_factory=dict)  # the recall target and its check
    profile: Mapping[str, Any] | None = None  # of the inputs; None: made by an older nearcast
    serve: Mapping[str, Any] = field(default_factory=dict)  # settings of the spec's [serve] table
    audit: Mapping[str, Any] = field(default_factory=dict)  # findings, and the accepted rules with reasons
    keys: int = 0
    items: int = 0
    query_rows: int = 0  # columns of queries, kept beside the items for the rules
    payload_bytes: int = 0  # of keys, ids and scores
    checksum: Mapping[str, int] | None = None  # by space; None: the version cannot be verified
    of: str | None = None  # of a weight table: its generator
    links: int = 0  # of an expansion table: pairs of item and ad
    expansion: Mapping[str, Any] | None = None  # of an expansion table: its settings
    read_back: bool = False  # of an expansion table: it was read as readers do before it became current
    source_changed: int | None = None  # of an expansion table: when its files changed, in nanoseconds
    layout: tuple[str, ...] = ()  # JSON keys in order; empty: those of the kind
    other: Mapping[str, Any] = field(default_factory=dict)  # keys of a newer nearcast, kept as they are

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], what: str) -> Self:
        """Read facts. Raises DamagedError, which names `what`, if a required key is missing or has a wrong value."""
        try:
            _validate(facts)
            known = {name: value for name, value in facts.items() if name in _KNOWN}
            other = {name: value for name, value in facts.items() if name not in _KNOWN}
            return cls(**known, layout=tuple(facts), other=other)
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedError(f"the facts of {what} in the store cannot be used ({error!r})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object: the keys that were read, or all keys of the kind."""
        names = self.layout or LAYOUTS[self.kind]
        return {name: self.other[name] if name in self.other else getattr(self, name) for name in names}

    @property
    def is_expansion(self) -> bool:
        """Whether the version is one of an expansion table."""
        return self.kind == EXPANSION

    @property
    def is_weight_table(self) -> bool:
        """Whether the version is one of a weight table."""
        return self.kind == WEIGHT_TABLE

    @property
    def created_seconds(self) -> float:
        """When the run ended, in seconds since 1970."""
        return datetime.fromisoformat(self.created).timestamp()


_KNOWN = frozenset(VersionFacts.__dataclass_fields__) - {"layout", "other"}


def _validate(facts: Mapping[str, Any]) -> None:
    if facts["format"] != FACTS_FORMAT:
        raise ValueError(f"their format is {facts['format']}, and this version of nearcast reads {FACTS_FORMAT}")
    for kind in (facts["query_ids"], facts["item_ids"]):
        if kind not in ID_TYPES:
            raise ValueError(f"ids are of type {kind!r}")
    if not isinstance(facts["snapshot"], str):
        raise TypeError(f"the snapshot is {facts['snapshot']!r}")
    datetime.fromisoformat(facts["created"])


def read_facts(reader: Reader, generator: str, version: int) -> VersionFacts:
    """Read the facts of an open version. Raises DamagedError if they are unusable or those of another version."""
    what = f"{generator} {version}"
    facts = VersionFacts.from_json(reader.facts, what)
    if (facts.generator, facts.version) != (generator, version):
        error = ValueError(f"they are those of {facts.generator} {facts.version}")
        raise DamagedError(f"the facts of {what} in the store cannot be used ({error!r})")
    return facts


def nearest_in_version(reader: Reader, facts: VersionFacts, space: Space, key: str | int) -> str:
    """Return "the nearest of its 1,000 keys are ...", or "" for an empty version.

    Compares at most MAX_KEYS_COMPARED keys, drawn at random from a larger version. The text names the sample.
    """
    noun, count, ids = "keys", facts.keys, facts.query_ids
    if space is Space.ITEMS:
        noun, count, ids = "items", facts.items, facts.item_ids
    keys = decode_keys(reader.some_keys(space, MAX_KEYS_COMPARED, seed=0), ids)
    some = "some of " if len(keys) == MAX_KEYS_COMPARED else ""
    return describe_nearest(key, keys, f"{some}its {count or len(keys):,} {noun}")
