"""The result of a SQL query as a source, read by DuckDB. The one user of duckdb.

The files that a query reads cannot be known, so its result is hashed; it is held in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.errors import InputError, MissingExtraError
from nearcast.sources.arrow_types import refuse_twice
from nearcast.sources.user_files import describe_error

__all__ = ["run_query"]


def run_query(sql: str, base: Path, columns: list[str], name: str) -> pa.Table:
    """Return columns of a query's result, in the order of the first; paths in it are relative to `base`.

    Rows of one id are ordered by their other columns, so that equal rows come in an equal order.
    Raises InputError if the query fails, or has one of the columns twice.
    """
    library = _import_library()
    with library.connect(config={"file_search_path": str(base.absolute())}) as connection:
        try:
            kinds = [statement.type for statement in connection.extract_statements(sql)]
            if kinds != [library.StatementType.SELECT]:
                raise InputError(f"{name} must be one query, and has {len(kinds)} statements; write one SELECT")
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


def _quote(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _import_library() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("a source by sql needs DuckDB: pip install 'nearcast[duckdb]'") from error
    return duckdb
