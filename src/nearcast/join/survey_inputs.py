"""The survey of a run's inputs: what a worker needs to read a part of them without hashing them all again.

The driver has hashed all files. The survey holds these digests, with the state of each file at that time. A worker that
finds a file in the same state trusts its digest; otherwise it hashes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearcast.errors import InputError
from nearcast.files import write_text
from nearcast.join.inputs import Sources, open_unhashed
from nearcast.join.listener import Listener
from nearcast.sources.row_source import RowSource
from nearcast.sources.user_files import UserFile, changed_error
from nearcast.spec import GeneratorSpec

__all__ = ["reopen_sources", "write_survey"]

SURVEY = "inputs.json"


def write_survey(sources: Sources, folder: Path) -> None:
    """Write digests and states of all files into a folder."""
    tables = {"items": _describe_table(sources.items, sources.item_digests)}
    if sources.queries is not sources.items:
        tables["queries"] = _describe_table(sources.queries, sources.query_digests)
    write_text(folder / SURVEY, json.dumps(tables))


def reopen_sources(spec: GeneratorSpec, base: Path, folder: Path) -> Sources:
    """Open the sources of a survey on this host. Raises InputError if they differ from those of the survey."""
    tables = json.loads((folder / SURVEY).read_text(encoding="utf-8"))
    items, queries = open_unhashed(spec, base, Listener())
    _compare(items, tables["items"])
    if queries is items:
        return Sources(items, items, tables["items"]["digests"], tables["items"]["digests"])
    _compare(queries, tables["queries"])
    return Sources(items, queries, tables["items"]["digests"], tables["queries"]["digests"])


def _describe_table(source: RowSource, digests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"digests": list(digests), "stamps": [[file.stamp() for file in files] for files in _list_files(source)]}


def _list_files(source: RowSource) -> list[tuple[UserFile, ...]]:
    """Return the files of each digest: those of the parts, then the one that `only` names."""
    return [part.reader.files for part in source.parts] + ([] if source.only is None else [(source.only.file,)])


def _compare(source: RowSource, table: Mapping[str, Any]) -> None:
    files, digests = _list_files(source), table["digests"]
    if [part.name for part in source.parts] != [digest["name"] for digest in digests[: len(source.parts)]]:
        raise InputError(f"{source.name} has other files than when the run was planned; run again")
    for part, digest in zip(source.parts, digests, strict=False):
        if not part.reader.files and part.reader.digest()["blake2b"] != digest["blake2b"]:  # a table, or a query
            raise changed_error(part.name)
    for group, digest, stamps in zip(files, digests, table["stamps"], strict=True):
        if [file.stamp() for file in group] != stamps and "".join(f.hash() for f in group) != digest["blake2b"]:
            raise changed_error(digest["name"])
