"""Names in a store: generators, versions and weight tables, and the keys of weight tables.

A weight table maps a key to items of a generator with weights: "red shoes" -> pin 7 (12.0), pin 3 (4.5). It is
published, rolled back and looked up under the name GENERATOR.TABLE; its lists hold weights in place of scores. Names
are validated before they become part of a path or key. Knows nothing of stores.
"""

from __future__ import annotations

import re
import unicodedata

from nearcast.errors import SpecError

__all__ = [
    "PEOPLE",
    "PHRASES",
    "format_version",
    "is_generator",
    "normalize_table_key",
    "table_name",
    "validate_generator",
]

GENERATOR = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")  # as `spec.Name`; a test compares them
PHRASES = "phrases"  # weight table by search phrase: the items with most engagements after it
PEOPLE = "people"  # weight table by person: the items that the person engaged with most


def is_generator(name: str) -> bool:
    """Return whether a generator may have this name."""
    return GENERATOR.fullmatch(name) is not None


def validate_generator(name: str) -> str:
    """Return the name. Raises SpecError if a generator cannot have it."""
    if not is_generator(name):
        raise SpecError(
            f"generator is {name[:120]!r}: use lower-case letters, digits and - _ . and start with a letter or digit"
        )
    return name


def format_version(version: int) -> str:
    """Return a version as displayed, for example 000007. Raises SpecError for a number below 1."""
    if version < 1:
        raise SpecError(f"version is {version}: versions are whole numbers from 1")
    return f"{version:06d}"


def table_name(generator: str, table: str) -> str:
    """Return the name of a weight table in a store. Raises SpecError if the table's name is not one word."""
    if not table or "." in table:
        raise SpecError(f"table is {table!r}: use one word, for example {PHRASES} or {PEOPLE}")
    return validate_generator(f"{generator}.{table}")


def normalize_table_key(table: str, key: str | int) -> str | int:
    """Return the key as a weight table stores it. Only the keys of the table of phrases change.

    Phrases are compared without regard to case, to the width and composition of characters, and to blanks around words:
    " Red  SHOES" is "red shoes". Another word form or another word order is another phrase.
    """
    if table != PHRASES:
        return key
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(key)).casefold()).split())
