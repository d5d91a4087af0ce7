"""The result of a SQL query as a source, read by DuckDB. The one user of duckdb.

The files that a query reads cannot be known, so its result is hashed; it is held in memory.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.errors import InputError, MissingExtraError
from nearcast.sources.arrow_types import refuse_twice
from nearcast.sources.user_files import describe_error

__all__ = ["run_query"]

# texts and names of a query that may be a file: 'items.parquet', "items.parquet", items.parquet
MAYBE_FILE = re.compile(r"""'([^']+)'|"([^"]+)"|([\w./-]*\.\w+)""")


def run_query(sql: str, base: Path, columns: list[str], name: str) -> pa.Table:
    """Return columns of a query's result, in the order of the first; paths in it are relative to `base`.

    Rows of one id are ordered by their other columns, so that equal rows come in an equal order.
    Raises InputError if the query fails, or has one of the columns twice.
    """
    library = _import_library()
    _refuse_other_folder(sql, base, name)
    # a name that the query has and the connection has not is none of this program's variables
    settings = {"python_enable_replacements": False}
    with _search_path(base) as folder, library.connect(config=settings | {"file_search_path": folder}) as connection:
        try:
            kinds = [statement.type.name for statement in connection.extract_statements(sql)]
            if kinds != ["SELECT"]:
                raise InputError(f"{name} must be one SELECT, got {', '.join(kinds) or 'nothing'}; write one SELECT")
            refuse_twice(connection.sql(sql).columns, columns, f"the result of {name}")  # a subquery renames the second
            query = connection.sql(f"from ({sql.strip().rstrip(';')}\n)")
            have = list(query.columns)
            chosen = [column for column in columns if column in have]
            listed = ", ".join(_quote(column) for column in chosen)
            if not chosen:
                return pa.table({column: pa.array([], pa.null()) for column in have})
            order = f"{_quote(chosen[0])}, hash({listed})"
            return query.query("result", f"select {listed} from result order by {order}").to_arrow_table()
        except library.Error as error:
            raise InputError(f"{name} failed in DuckDB ({describe_error(error)}); correct the query") from error


def _refuse_other_folder(sql: str, base: Path, name: str) -> None:
    """Raise InputError for a relative path of a file in the current folder, where DuckDB looks before `base`."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed, and no relative path is found in it
        return
    if here == base.absolute():
        return
    for found in MAYBE_FILE.finditer(sql):
        path = next(text for text in found.groups() if text)
        if not os.path.isabs(path) and os.path.isfile(path) and not _is_same(path, base / path):
            raise InputError(
                f"{name} names {path}, and there is one in the current folder {here}, which DuckDB would take "
                f"instead of {base.absolute() / path}; write the whole path, or start in another folder"
            )


def _is_same(one: str, other: Path) -> bool:
    return other.exists() and os.path.samefile(one, other)


@contextmanager
def _search_path(base: Path) -> Iterator[str]:
    """Yield a name of the folder without a comma, which would separate two folders."""
    if "," not in str(base.absolute()):
        yield str(base.absolute())
        return
    with tempfile.TemporaryDirectory(prefix="nearcast-query-") as folder:
        link = Path(folder, "base")
        link.symlink_to(base.absolute())
        yield str(link)


def _quote(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _import_library() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("a source by sql needs DuckDB: pip install 'nearcast[duckdb]'") from error
    return duckdb
