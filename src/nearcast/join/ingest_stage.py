"""Ingestion as stages of tasks, for tables of several id ranges whose rows no worker holds together.

    survey -> sample -> bounds -> split -> resplit -> range -> tables

`survey` says which tables are split. `sample` reads the ids of a unit, `bounds` chooses the ranges, `split` reads a
unit and cuts its rows by range, `resplit` does so again where another length of vectors was assumed than that of most,
`range` sorts a range and writes it as an artifact, and `tables` writes the table's manifest with its report. Smaller
tables, and the whole ingestion of a run in one process, are left to the task `ingest`, with the same functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from nearcast.join.inputs import Sources, ingested_names
from nearcast.join.narrowed_inputs import apply_narrowing, plan_narrowing
from nearcast.join.survey_inputs import reopen_sources, write_survey
from nearcast.join.task_context import TaskContext
from nearcast.join.task_times import add_up_times
from nearcast.runners.base import TaskCall
from nearcast.sources.id_splitters import choose_splitters, sample_ids
from nearcast.sources.ids import read_ids, write_ids
from nearcast.sources.ingest_rows import RangeLayout, describe_ranges, range_name, write_range_files
from nearcast.sources.norms import summarize_norms
from nearcast.sources.pieces import PieceFolder, piece_name
from nearcast.sources.range_rows import RangeRows, keep_states, select_range
from nearcast.sources.row_source import RowSource
from nearcast.sources.row_units import cut_units
from nearcast.sources.split_rows import SplitSettings, split_unit, vector_dtype
from nearcast.sources.stage_rows import dropped_duplicates, measure_range
from nearcast.sources.table_facts import count_lengths, find_lost_units, merge_facts
from nearcast.sources.validate_rows import report_table

__all__ = [
    "INGEST_STAGES",
    "INGEST_TASKS",
    "list_bounds_calls",
    "list_range_calls",
    "list_resplit_calls",
    "list_sample_calls",
    "list_split_calls",
    "list_survey_calls",
    "list_tables_calls",
    "open_inputs",
    "sweep_pieces",
]

SURVEY = "survey"
BOUNDS_FILE, SAMPLE_FILE = "bounds.arrow", "ids.arrow"

Args = Mapping[str, Any]


def list_survey_calls(context: TaskContext) -> list[TaskCall]:
    """Return the call of the survey; none for tables in memory, which only the driver has."""
    if context.tables.any:
        return []
    settings = context.run.stage_settings
    sizes = {"range_rows": settings.range_rows, "unit_rows": settings.unit_rows}
    return [TaskCall(SURVEY, SURVEY, sizes)]


def do_survey(context: TaskContext, args: Args, folder: Path) -> dict[str, Any]:
    """List the tables that are split, each with its name, units and rows; write the state of all files.

    An incremental run finds here what it need not read; see `narrowed_inputs`.
    """
    sources = context.open_sources().sources
    write_survey(sources, folder)
    narrowed = plan_narrowing(context, sources, folder)
    sources = apply_narrowing(context, sources, narrowed, lambda: folder)
    tables: dict[str, dict[str, Any]] = {}
    names = ingested_names(context.run.spec, sources)
    for table, source, name in zip(("items", "queries"), (sources.items, sources.queries), names, strict=True):
        is_large = source.n_rows > args["range_rows"]
        if is_large and name not in {one["name"] for one in tables.values()}:
            tables[table] = {"name": name, "units": len(cut_units(source, args["unit_rows"])), "rows": source.n_rows}
    return {**args, "tables": tables, "narrowed": narrowed}


def list_sample_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per unit of the tables that are split and not ingested yet."""
    return [_call("sample", table, unit) for table, facts in _waiting(context) for unit in range(facts["units"])]


def do_sample(context: TaskContext, args: Args, folder: Path) -> dict[str, Any]:
    """Read the ids of a unit, and write a sample of them."""
    source = _source(context, args["table"])
    unit = cut_units(source, _survey(context)["unit_rows"])[args["number"]]
    rows, ids = sample_ids(source, unit, context.run.read_bytes, _survey(context)["range_rows"])
    write_ids(folder / SAMPLE_FILE, ids)
    return {"rows": rows}


def list_bounds_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per table."""
    return [TaskCall(f"bounds/{table}", "bounds", {"table": table}) for table, _ in _waiting(context)]


def do_bounds(context: TaskContext, args: Args, folder: Path) -> dict[str, Any]:
    """Choose the id ranges of a table from the samples of its units."""
    results, table = context.run.results, args["table"]
    names = [_call("sample", table, unit).name for unit in range(_survey(context)["tables"][table]["units"])]
    rows = sum(context.read_facts(name)["rows"] for name in names)
    samples = (read_ids(results.open(name) / SAMPLE_FILE) for name in names)
    bounds = choose_splitters(rows, samples, _survey(context)["range_rows"])
    write_ids(folder / BOUNDS_FILE, bounds)
    return {"rows": rows, "ranges": len(bounds) + 1}


def list_split_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per unit."""
    return [_call("split", table, unit) for table, facts in _waiting(context) for unit in range(facts["units"])]


def list_resplit_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per unit that was split with another length of vectors than that of most."""
    calls = []
    for table, facts in _waiting(context):
        units = [context.read_facts(_call("split", table, unit).name) for unit in range(facts["units"])]
        dim = count_lengths(units)
        calls += [_call("resplit", table, unit, dim=dim) for unit in find_lost_units(units, dim)]
    return calls


def do_split(context: TaskContext, args: Args, folder: Path) -> dict[str, Any]:
    """Read a unit once, check its rows, and write them by id range. args: `dim`, of good vectors, if it is known."""
    source = _source(context, args["table"])
    unit = cut_units(source, _survey(context)["unit_rows"])[args["number"]]
    settings = SplitSettings(_bounds(context, args["table"]), context.run.read_bytes // 2, args.get("dim"))
    with context.run.meter.stage("check"):
        facts = split_unit(source, unit, settings, PieceFolder(folder), lambda _rows: None)
    return {name: value for name, value in facts.items() if name != "ranges"}


def list_range_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per id range of the tables that have several."""
    ranges = ((table, context.read_facts(f"bounds/{table}")["ranges"]) for table, _ in _waiting(context))
    return [_call("range", table, number) for table, n in ranges if n > 1 for number in range(n)]


def do_range(context: TaskContext, args: Args, _folder: Path) -> dict[str, Any]:
    """Sort the rows of a range, and write those that are kept as an artifact."""
    table, number = args["table"], args["number"]
    units = _split_facts(context, table)
    rows = _open_range(context, table, number)
    facts = measure_range(rows, dropped_duplicates(units), sum(unit["rows"] for unit in units))
    if facts["listed"] or number == 0:
        write = partial(_write_range, context, table, rows)
        context.run.artifacts.ensure(range_name(_survey(context)["tables"][table]["name"], number), write)
    return facts


def list_tables_calls(context: TaskContext) -> list[TaskCall]:
    """Return a call per table."""
    return [TaskCall(f"tables/{table}", "tables", {"table": table}) for table, _ in _waiting(context)]


def do_tables(context: TaskContext, args: Args, _folder: Path) -> dict[str, Any]:
    """Write the manifest of a table, with its report and its ranges. A table of one range is written in its folder."""
    table, source, spec = args["table"], _source(context, args["table"]), context.run.spec
    name = _survey(context)["tables"][table]["name"]
    units, bounds = _split_facts(context, table), _bounds(context, table).to_pylist()
    rows = None if bounds else _open_range(context, table, 0)
    if rows is None:
        calls = [_call("range", table, number) for number in range(len(bounds) + 1)]
        ranges, norms = [context.read_facts(call.name) for call in calls], None
    else:
        ranges = [measure_range(rows, dropped_duplicates(units), None)]
        norms = summarize_norms(rows.lengths)
    facts = merge_facts(units, ranges, vector_dtype(source), norms)
    source.check()
    side = {"side": asdict(report_table(table, facts, source, spec))}

    def write(folder: Path) -> dict[str, Any]:
        if rows is not None:
            return side | _write_range(context, table, rows, folder)
        return side | {"ranges": describe_ranges(name, source.id_type, bounds, ranges)}

    context.run.artifacts.ensure(name, write)
    return {"name": name, "vectors": facts.vectors}


def open_inputs(context: TaskContext) -> Sources:
    """Open the sources as the survey found them, without hashing them again; without a survey as they are now."""
    run = context.run
    if context.tables.any:
        return context.open_sources().sources

    def open_unsurveyed() -> Sources:
        sources = context.open_sources().sources
        with tempfile.TemporaryDirectory(prefix="nearcast-narrow-") as folder:
            return apply_narrowing(
                context, sources, plan_narrowing(context, sources, Path(folder)), lambda: Path(folder)
            )

    def open_surveyed() -> Sources:
        survey = partial(run.results.open, SURVEY)
        is_open = context.opened is not None
        sources = context.open_sources().sources if is_open else reopen_sources(run.spec, run.workspace.base, survey())
        return apply_narrowing(context, sources, _survey(context).get("narrowed", {}), survey)

    is_surveyed = run.results.facts(SURVEY) is not None
    return context.keep("sources", open_surveyed if is_surveyed else open_unsurveyed)


def sweep_pieces(context: TaskContext) -> dict[str, Any]:
    """Remove samples and pieces. All tables are ingested: no task reads them. Return the times of these tasks."""
    results, stages = context.run.results, ("sample", "split", "resplit")
    times = add_up_times(results, [name for stage in stages for name in results.list_names(stage)])
    for stage in stages:
        results.remove(stage)
    return times


def _write_range(context: TaskContext, table: str, rows: RangeRows, folder: Path) -> dict[str, Any]:
    layout = RangeLayout.of(_source(context, table), count_lengths(_split_facts(context, table)))
    with context.run.meter.stage("read"):
        write_range_files(rows, folder, layout, context.run.read_bytes, lambda _rows: None)
    return {}


def _open_range(context: TaskContext, table: str, number: int) -> RangeRows:
    """Sort and select the rows of a range."""
    results, source = context.run.results, _source(context, table)
    pieces = [
        (unit, piece)
        for unit, name in enumerate(_split_names(context, table))
        for piece in PieceFolder(results.open(name, [piece_name(number)])).read(number)
    ]
    return select_range(pieces, source.id_type, keep_states(context.run.spec))


def _call(kind: str, table: str, number: int, **more: Any) -> TaskCall:
    return TaskCall(f"{kind}/{table}/{number:06d}", kind, {"table": table, "number": number, **more})


def _waiting(context: TaskContext) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables that are split and not ingested yet, with what the survey says about them."""
    if context.tables.any:
        return
    for table, facts in _survey(context)["tables"].items():
        if context.run.artifacts.facts(facts["name"]) is None:
            yield table, facts


def _survey(context: TaskContext) -> dict[str, Any]:
    return context.read_facts(SURVEY)


def _source(context: TaskContext, table: str) -> RowSource:
    sources = open_inputs(context)
    return sources.items if table == "items" else sources.queries


def _bounds(context: TaskContext, table: str) -> pa.Array:
    return read_ids(context.run.results.open(f"bounds/{table}") / BOUNDS_FILE)


def _split_names(context: TaskContext, table: str) -> list[str]:
    """Return the names of the artifacts with the pieces of each unit: of the second split, where there was one."""
    numbers = range(_survey(context)["tables"][table]["units"])
    first = [_call("split", table, unit).name for unit in numbers]
    units = [context.read_facts(name) for name in first]
    lost = find_lost_units(units, count_lengths(units))
    return [_call("resplit", table, unit).name if unit in lost else first[unit] for unit in numbers]


def _split_facts(context: TaskContext, table: str) -> Sequence[dict[str, Any]]:
    return [context.read_facts(name) for name in _split_names(context, table)]


INGEST_TASKS: dict[str, Callable[[TaskContext, Args, Path], dict[str, Any]]] = {
    SURVEY: do_survey,
    "sample": do_sample,
    "bounds": do_bounds,
    "split": do_split,
    "resplit": do_split,
    "range": do_range,
    "tables": do_tables,
}

INGEST_STAGES: dict[str, Callable[[TaskContext], Sequence[TaskCall]]] = {
    SURVEY: list_survey_calls,
    "sample": list_sample_calls,
    "bounds": list_bounds_calls,
    "split": list_split_calls,
    "resplit": list_resplit_calls,
    "range": list_range_calls,
    "tables": list_tables_calls,
}
