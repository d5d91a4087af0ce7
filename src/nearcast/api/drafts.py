"""Draft a spec from files of items and queries."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from nearcast.advising import draft_spec as drafts
from nearcast.settings.spec_tables import TABLE_LOCATION
from nearcast.spec import GeneratorSpec, parse_model

__all__ = ["Draft", "draft_spec"]

USUAL_NAME = "candidates"
LONGEST_NAME = 100
PLAIN_STEMS = ("items", "item", "data", "vectors", "embeddings", "part-0", "part-00000", "*", "")


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec that was drafted, and the file that it is for."""

    path: Path
    text: str


def draft_spec(
    items: str | Path, queries: str | Path | None = None, *, name: str | None = None, spec: str | Path | None = None
) -> Draft:
    """Draft a commented spec for Parquet files or tables of items and queries; write nothing.

    items, queries: a file, a folder, a glob, a URL or a table (delta:PATH). None: the items are the queries.
    name: name of the generator; default: that of `spec`, else of the items' file or its folder. spec: file that the
    draft is for, default: NAME.toml.
    Raises InputError if a table has no column of ids or of vectors, SpecError for a name that cannot be.
    """
    name = name or (Path(spec).stem if spec is not None else _derive_name(str(items)))
    path = Path(spec) if spec is not None else Path(f"{name}.toml")
    text = drafts.draft_spec(
        str(items), None if queries is None else str(queries), name=name, folder=path.resolve().parent
    )
    parse_model(GeneratorSpec, tomllib.loads(text), "the draft")
    return Draft(path, text)


def _derive_name(items: str) -> str:
    """Return the first telling part of a path, from its end: "shop/items/*.parquet" is "shop"."""
    kind, _, location = items.partition(":") if TABLE_LOCATION.fullmatch(items) else ("", "", items)
    parts = location.split(".") if kind == "iceberg" else location.removesuffix("/").split("/")
    for part in reversed(parts):
        stem = unicodedata.normalize("NFKD", part.removesuffix(".parquet"))  # in two parts: "ü" is "u" and two dots
        stem = "".join(letter for letter in stem if not unicodedata.combining(letter))
        if stem.lower() not in PLAIN_STEMS and not set("*?:=") & set(stem):
            return re.sub(r"[^a-z0-9]+", "-", stem.lower())[:LONGEST_NAME].strip("-") or USUAL_NAME
    return USUAL_NAME
