"""A canary: a second version of a generator that answers a share of the keys, chosen by a hash of the key.

The hash is the same in all processes and languages, and docs/canary.md has an example. A key that is in the share stays
in it while the share grows. Knows nothing of pointers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, get_args

__all__ = ["Canary", "CanaryMode", "hash_key", "hash_keys"]

CanaryMode = Literal["canary", "shadow"]


@dataclass(frozen=True, slots=True)
class Canary:
    """The second version. `canary`: it answers the keys of the share; `shadow`: it is only measured on them."""

    version: int
    share: float  # of the keys, in (0, 1]
    mode: CanaryMode
    since: str  # UTC; tells this canary from an earlier one of the same version

    @property
    def threshold(self) -> float:
        """A key is in the share if its hash is below this number."""
        return self.share * 2.0**64

    def is_same(self, other: Canary | None) -> bool:
        """Return whether both are one canary, whatever its share is now."""
        return other is not None and (self.version, self.mode, self.since) == (other.version, other.mode, other.since)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Canary:
        """Build it from the JSON data of `asdict`. Raises KeyError, TypeError or ValueError."""
        share, mode = float(fields["share"]), fields["mode"]
        if not 0 < share <= 1 or mode not in get_args(CanaryMode):
            raise ValueError(f"a canary with share {share} and mode {mode!r}")
        return Canary(int(fields["version"]), share, mode, str(fields["since"]))


def hash_key(generator: str, version: int, text: str) -> int:
    """Return the hash of a key, a number below 2**64. text: the key as text; of an integer its decimal digits."""
    return hash_keys(generator, version, [text])[0]


def hash_keys(generator: str, version: int, texts: Iterable[str]) -> list[int]:
    """Return the hashes of keys; about a microsecond each."""
    head, join = f"{generator}\0{version}\0".encode("utf-8", "surrogatepass"), int.from_bytes
    return [
        join(blake2b(head + text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") for text in texts
    ]
