"""Tables of weights: what is known of a phrase or a person, kept in a store as a version of a generator is.

A table gives keys of a generator with weights: "red shoes" -> pin 7 (12.0), pin 3 (4.5). It is published, rolled back
and looked up under the name GENERATOR.TABLE, and its values are lists as `values.py` writes them, with weights in the
place of scores. Here is what those who write a table and those who read it must agree on. Knows nothing of stores.
"""

from __future__ import annotations

import unicodedata

from nearcast.errors import SpecError
from nearcast.stores.names import checked_generator

__all__ = ["PEOPLE", "PHRASES", "table_key", "table_name"]

PHRASES = "phrases"  # a search phrase: the items that were engaged with most after it
PEOPLE = "people"  # a person: the items that were engaged with most by them


def table_name(generator: str, table: str) -> str:
    """What a table of a generator is called in a store; SpecError where that is no name."""
    if not table or "." in table:
        raise SpecError(f"table is {table!r}: use one word, such as {PHRASES} or {PEOPLE}")
    return checked_generator(f"{generator}.{table}")


def table_key(table: str, key: str | int) -> str | int:
    """The key under which a table keeps something. Phrases that people take for the same are one key.

    A phrase is compared without regard to case, to the width and composition of its characters, and to blanks around
    its words: " Red  SHOES" is "red shoes". A word in another form, or in another order, is another phrase.
    """
    if table != PHRASES:
        return key
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(key)).casefold()).split())
