"""Rules of listing that hold on this machine and in buckets: which names are hidden, what is a glob, and the notes.

As in Spark, Hive and pyarrow, names that start with `_` or `.` are skipped, except folders like `_day=1`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["GLOB", "claims_parquet", "describe_skipped", "is_hidden", "note_hidden"]

GLOB = re.compile(r"[*?\[]")
ENDINGS = (".parquet", ".parq", ".pq")
TABLE_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
SHOWN = 3


def is_hidden(name: str, *, is_folder: bool) -> bool:
    """Return whether a file or folder of this name is skipped."""
    if name.endswith("._COPYING_"):  # Hadoop is still writing it
        return True
    return name.startswith(("_", ".")) and not (is_folder and "=" in name)


def claims_parquet(name: str) -> bool:
    """Return whether a file of this name must be Parquet."""
    return name.lower().endswith(ENDINGS)


def note_hidden(folders: Sequence[str]) -> list[str]:
    """Return notes on skipped folders, by their paths: logs of tables, and all of them."""
    texts = []
    for name, kind in TABLE_LOGS.items():
        if logs := [folder for folder in folders if folder.rpartition("/")[2] == name]:
            texts.append(
                f"{_name_some(logs)} belongs to a {kind} table, and it alone says which files count; all Parquet "
                "files are read, so export the table if it has been changed or deleted from"
            )
    return texts + ([f"hidden folders were skipped: {_name_some(folders)}"] if folders else [])


def describe_skipped(files: Sequence[str], what: str) -> list[str]:
    """Return a note on skipped files: "2 files are no Parquet and were skipped: a, b". Nothing without files."""
    if not files:
        return []
    count, was = ("1 file is", "was") if len(files) == 1 else (f"{len(files):,} files are", "were")
    return [f"{count} {what} and {was} skipped: {_name_some(files)}"]


def _name_some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
