"""The profile of a run's inputs: rows, faults, columns of both tables, and the share of pairs that each rule keeps.

It is stored in the manifest and, on publish, in the store: the audit compares it with the profile of the served
version. Reads each column once, a row group at a time. Distributions are of a sample: the rows whose ids have the
smallest hashes, so that it holds the same ids every day, whatever threads or memory. `measure.profile` compares two
profiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nearcast.eligibility import Rule, collect_columns, compile_rules, request_time
from nearcast.eligibility.rule_types import Kind, convert_arrow_type
from nearcast.join.compile_constraints import parse_rules
from nearcast.knn.eligible import eligible_pairs
from nearcast.measure.profile import compute_quantiles, compute_shares
from nearcast.sources.ids import sample_rows_by_hash
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.sources.validate_rows import Report, TableReport
from nearcast.spec import GeneratorSpec, SourceSpec
from nearcast.types import IntArray

__all__ = ["profile_inputs", "profile_rules"]

SAMPLED_ROWS = 8_192  # whose values make the distribution of a column
RULE_ROWS = 1_024  # of each table: a rule is evaluated on a million pairs
HASHED_AT_ONCE = 1 << 16
LONGEST_TEXT = 100  # characters that tell values apart
LONGEST_LIST = 64  # values of a list that are counted
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}

BoolArray = npt.NDArray[np.bool_]


def profile_inputs(spec: GeneratorSpec, inputs: Inputs, report: Report) -> dict[str, Any]:
    """Profile both tables and the rules. Returns plain data, without `queries` for a self-join."""
    rules = parse_rules(spec)
    item_columns, query_columns, _ = collect_columns(rules)
    if inputs.queries is inputs.items:
        item_columns = tuple(dict.fromkeys((*item_columns, *query_columns)))
    items = _TableProfiler(inputs.items, spec.items, item_columns)
    queries = (
        items if inputs.queries is inputs.items else _TableProfiler(inputs.queries, spec.query_source, query_columns)
    )
    profile: dict[str, Any] = {"items": _table_facts(report.items, spec.items, items)}
    if queries is not items:
        profile["queries"] = _table_facts(report.queries, spec.query_source, queries)
    waiting = request_time(rules)
    bound = [rule for rule in rules if rule not in waiting]
    profile["rules"] = {rule.name: _rule_facts(rule, queries.rule_rows, items.rule_rows) for rule in bound}
    return profile


def profile_rules(spec: GeneratorSpec, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Return by rule the share of sampled pairs that it keeps, and of sampled queries that it leaves without items."""
    rules = parse_rules(spec)
    bound = [rule for rule in rules if rule not in request_time(rules)]
    item_columns, query_columns, _ = collect_columns(bound)
    tables = []
    for table, columns in ((inputs.queries, query_columns), (inputs.items, item_columns)):
        tables.append(_read_rows(table, np.sort(_sample_rows(table.listed_ids)[:RULE_ROWS]), columns))
    return {rule.name: _rule_facts(rule, *tables) for rule in bound}


def _table_facts(report: TableReport, source: SourceSpec, sampled: _TableProfiler) -> dict[str, Any]:
    """Return the figures of one table."""
    faults = {problem.kind: round(problem.count / max(1, report.rows), 6) for problem in report.problems}
    return {
        "rows": report.rows,
        "vectors": report.vectors,
        "dim": report.dim,
        "median_length": report.norms.get("p50"),
        "embedding": source.embedding,
        "id_type": "int64" if pa.types.is_integer(sampled.id_type) else "string",
        "faults": faults,
        "attributes": sampled.attributes,
    }


class _TableProfiler:
    """Profiles of a table's attributes, and the sampled rows that rules are evaluated on.

    Each is read when it is used first: a table without attributes and rules is not sampled.
    """

    def __init__(self, table: IngestedTable, source: SourceSpec, rule_columns: Sequence[str]) -> None:
        """rule_columns: columns of rules, read for the first RULE_ROWS of the sample."""
        self.id_type = table.listed_ids.type
        self._table = table
        self._names = list(dict.fromkeys((*source.attributes, *rule_columns)))
        self._rule_columns = rule_columns

    @cached_property
    def _sample(self) -> IntArray:
        return _sample_rows(self._table.listed_ids)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Return the profile of every attribute by its name."""
        return {name: _profile_column(self._table, name, np.sort(self._sample)) for name in self._names}

    @cached_property
    def rule_rows(self) -> pa.Table:
        """Return the ids and the columns of rules of sampled rows."""
        return _read_rows(self._table, np.sort(self._sample[:RULE_ROWS]), self._rule_columns)


def _sample_rows(ids: pa.Array) -> IntArray:
    """Return up to SAMPLED_ROWS row numbers, the smallest hash first."""
    pieces = (ids[start : start + HASHED_AT_ONCE] for start in range(0, len(ids), HASHED_AT_ONCE))
    return sample_rows_by_hash(pieces, SAMPLED_ROWS)


def _read_row_groups(table: IngestedTable, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield row groups with these columns, each with the number of its first row."""
    first = 0
    for path in table.attribute_files:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, columns=list(columns), use_threads=False)
                yield first, group
                first += file.metadata.row_group(number).num_rows


def _read_rows(table: IngestedTable, rows: IntArray, columns: Sequence[str]) -> pa.Table:
    """Read "id" and these columns of some rows (ascending)."""
    pieces = []
    for first, group in _read_row_groups(table, ["id", *columns]):
        start, stop = np.searchsorted(rows, (first, first + len(group)))
        pieces.append(group.take(pa.array(rows[start:stop] - first)))
    return pa.concat_tables(pieces).combine_chunks()


def _profile_column(table: IngestedTable, name: str, rows: IntArray) -> dict[str, Any]:
    """Profile one column. rows: the sample, ascending."""
    empty = total = 0
    sampled: list[pa.Array] = []
    for first, group in _read_row_groups(table, [name]):
        column = _to_plain_array(group.column(name))
        missing = _is_empty(column)
        empty, total = empty + int(np.count_nonzero(missing)), total + len(column)
        start, stop = np.searchsorted(rows, (first, first + len(column)))
        in_group = rows[start:stop] - first
        sampled.append(column.take(pa.array(in_group[~missing[in_group]])))
    values = pa.concat_arrays(sampled)
    profile: dict[str, Any] = {
        "type": str(values.type),
        "kind": _comparison_kind(values.type),
        "empty": round(empty / max(1, total), 6),
        "count": len(values),
    }
    return profile | (_summarize_values(values) if len(values) else {})


def _to_plain_array(column: pa.ChunkedArray) -> pa.Array:
    """Convert a column to one array without dictionary, and fixed-size lists to lists."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    found = convert_arrow_type(kind)
    return found is not None and found.kind is Kind.TEXT and not found.many


def _is_empty(column: pa.Array) -> BoolArray:
    """Return (n,) whether a value is null, NaN, an empty text or an empty list."""
    missing = column.is_null(nan_is_null=True)
    if _is_list(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.list_value_length(column), 0), True))
    elif _is_text(column.type):
        missing = pc.or_(missing, pc.fill_null(pc.equal(column, pa.scalar("", column.type)), True))
    found: BoolArray = missing.to_numpy(zero_copy_only=False)
    return found


def _comparison_kind(kind: pa.DataType) -> str:
    """Return the kind that values are compared as: number, text, boolean, time, a list of these, or other."""
    if _is_list(kind):
        return f"list of {_comparison_kind(kind.value_type)}s"
    if pa.types.is_null(kind):
        return "null"
    if pa.types.is_decimal(kind):
        return "number"
    found = convert_arrow_type(kind)
    if found is None:
        return "other"
    return "number" if found.kind in (Kind.INTEGER, Kind.NUMBER, Kind.DURATION) else str(found.kind)


def _summarize_values(values: pa.Array) -> dict[str, Any]:
    """Summarize the distribution of values that are not empty: quantiles, or shares of frequent values."""
    kind = values.type
    if _is_list(kind):
        lengths = {"lengths": compute_quantiles(pc.list_value_length(values).to_numpy(zero_copy_only=False))}
        flat = pc.list_slice(values, 0, LONGEST_LIST).flatten().drop_null()
        known = len(flat) and not pa.types.is_nested(flat.type)
        return lengths | (_summarize_values(flat) if known else {})
    if pa.types.is_boolean(kind) or _is_text(kind):
        return _summarize_texts(values)
    if pa.types.is_duration(kind) or _comparison_kind(kind) == str(Kind.TIME):
        return {"quantiles": compute_quantiles(_to_microseconds(values))}
    if _comparison_kind(kind) == "number":
        return {"quantiles": compute_quantiles(_to_numbers(values))}
    return {}


def _summarize_texts(values: pa.Array) -> dict[str, Any]:
    """Return the shares of the frequent values, and the number of distinct values."""
    if pa.types.is_boolean(values.type):
        texts = values.cast(pa.string())
    else:
        texts = pc.utf8_slice_codeunits(values, 0, LONGEST_TEXT)
    counted = texts.value_counts()
    counts = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    return {"distinct": len(counts), "values": compute_shares(counts, len(values))}


def _to_numbers(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        found: npt.NDArray[Any] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        return found
    wide: npt.NDArray[Any] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return wide


def _to_microseconds(values: pa.Array) -> IntArray:
    kind = values.type
    if pa.types.is_date32(kind):
        days: IntArray = values.cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64)
        return days * 86_400_000_000
    whole: IntArray = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":
        return whole // 1_000
    factor = MICROSECONDS[unit]
    most = np.iinfo(np.int64).max // factor
    return np.clip(whole, -most, most) * factor


def _rule_facts(rule: Rule, queries: pa.Table, items: pa.Table) -> dict[str, Any]:
    """Return the share of sampled pairs that one rule keeps, and of sampled queries that it leaves without items.

    `without_items_by_null` counts the latter queries if a column of the rule is null for them.
    """
    compiled = compile_rules([rule], queries, items)
    shape = (len(queries), len(items))
    kept = np.ones(shape, np.bool_) if compiled is None else eligible_pairs(compiled)
    without: BoolArray = np.logical_not(kept.any(axis=1))
    _, query_columns, _ = collect_columns([rule])
    lacking = np.zeros(len(queries), np.bool_)
    for name in query_columns:
        lacking |= _is_empty(_to_plain_array(queries.column(name)))
    return {
        "keep": rule.text,
        "queries": shape[0],
        "items": shape[1],
        "pairs_kept": round(float(kept.mean()) if kept.size else 1.0, 6),
        "queries_without_items": round(float(without.mean()) if len(without) else 0.0, 6),
        "without_items_by_null": round(float((without & lacking).mean()) if len(without) else 0.0, 6),
    }
