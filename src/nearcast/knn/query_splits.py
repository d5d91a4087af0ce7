"""The ranges of the queries that are joined by a task each. They depend on sizes alone, so that all machines agree."""

from __future__ import annotations

__all__ = ["count_split_rows", "cut_queries"]

TASK_BYTES = 8 << 20  # of queries and results: small enough to lose, large enough for efficient matrix products
LARGE_TASKS = 4  # times as large are those of many queries: a cell in the CPU cache is then scanned by more of them
FEWEST_LARGE_TASKS = 8
MANY_TASKS = 128  # from so many tasks on they grow again, up to four times: at the end of a task a thread waits
SMALLEST_TASK = 1_024


def cut_queries(n_queries: int, dim: int, k: int) -> list[tuple[int, int]]:
    """Cut query positions into tasks (start, stop). Depends on the shape alone, not on the machine."""
    rows = count_split_rows(n_queries, dim, k)
    return [(start, min(n_queries, start + rows)) for start in range(0, n_queries, rows)]


def count_split_rows(n_queries: int, dim: int, k: int) -> int:
    """Return the number of queries of a task."""
    rows = TASK_BYTES // (12 * k + 4 * dim)
    large = min(LARGE_TASKS * rows, -(-n_queries // FEWEST_LARGE_TASKS))
    return max(SMALLEST_TASK, rows, large, min(4 * LARGE_TASKS * rows, -(-n_queries // MANY_TASKS)))
