"""Write the page of a folder as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nearcast.dashboard.document import document
from nearcast.dashboard.page import check_origin, static_page
from nearcast.dashboard.removals import removals_of_store
from nearcast.errors import NotFoundError, SpecError
from nearcast.files import write_text

__all__ = ["FILE", "write_page"]

FILE = "dashboard.html"


def write_page(
    out: Path,
    path: Path | None = None,
    *,
    generators: Sequence[str] = (),
    store: str | None = None,
    lists: bool = True,
    pictures: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML file about these generators of a folder, or about all, and return its path.

    path: <out>/dashboard.html where it is left out. store: URL whose overlay says what is taken out of lists.
    lists: with lists of telling queries, the largest part of the file. pictures: origins that pictures may be loaded
    from, such as https://img.example.com; none: the file needs no network.
    Raises NotFoundError where nothing has run in `out`, SpecError for an origin that is none.
    """
    target = out / FILE if path is None else path
    origins = [check_origin(origin) for origin in pictures]
    if not out.is_dir():
        raise NotFoundError(f"nothing has run in {out}; run a generator first, or say where it ran with --out")
    if not target.parent.is_dir():
        raise SpecError(f"{target.parent} is no folder; make it, or name another file")
    told = document(out, generators, lists=lists, removals=removals_of_store(store)) | {"pictures": origins}
    write_text(target, static_page(told, pictures=origins).decode())
    return target
