"""A candidate table written by many tasks is the table of one task, with the same measures, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.test_ranged_runs import write_tables

import nearcast
from nearcast.errors import BudgetError
from nearcast.join import perform_task
from nearcast.join.context import prepare
from nearcast.join.joined_lists import JoinedLists, ListRange
from nearcast.join.listener import Listener
from nearcast.join.select_candidates import SelectedLists
from nearcast.join.table_stage import TableSource, write_table_part
from nearcast.join.validate_run import check_columns
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.table_parts import measure_table
from nearcast.measure.tally import PartSums, TableShape
from nearcast.runners.local import LocalRunner
from nearcast.sources.ids import write_ids
from nearcast.sources.ingest import IngestedTable, Inputs
from nearcast.sources.ranged_table import IdRanges, RangedIds, RangedVectors
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.types import ArrayVectors, Metric, no_progress

FILES = ("nearcast.table.write_table", "nearcast.table.snapshot_reader", "nearcast.join.table_stage")

SPECS = {
    "plain": {},
    "of items alone": {"queries": None},
    "short lists of every reason": {
        "min_score": 0.0,
        "engine": "dense",
        "recall": 0.5,
        "caps": [{"by": "shop", "max_per_list": 1}],
        "rules": [{"name": "country", "keep": "item.country == query.country"}],
        "measure": {"sample": 100, "calibration": 30, "fill_at": 3},
    },
    "exposure": {"exposure": {"max_lists_per_item": 4, "candidates_per_query": 20}},
    "over-fetch": {"overfetch": {"at_least": 2, "probability": 0.9, "survival": "bonus"}},
    "both, with slots for some": {
        "exposure": {"max_lists_per_item": 9, "candidates_per_query": 20},
        "overfetch": {"at_least": 2, "probability": 0.9, "survival": "bonus", "slots": 3},
        "queries": {"path": "queries.parquet", "attributes": ["country"], "weight": "weight"},
    },
}


def spec_of(name, out):
    columns = {"attributes": ["country", "shop", "bonus"]}
    spec = {
        "name": "test",
        "out": out,
        "metric": "inner_product",
        "k": 5,
        "engine": "exact",
        "checks": {"null_vector": "keep"},
        "items": {"path": "items.parquet"} | columns,
        "queries": {"path": "queries.parquet", "attributes": ["country"]},
    }
    return {key: value for key, value in (spec | SPECS[name]).items() if value is not None}


def write_small_files(patch, group_rows, groups):
    patch.setattr("nearcast.table.candidate_schema.LARGEST_GROUP", group_rows)
    for module in FILES:
        patch.setattr(f"{module}.GROUPS_PER_FILE", groups)


def read(folder):
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).combine_chunks()


def run(name, base, out, **more):
    try:
        return nearcast.run(spec_of(name, out), base=base, **more).snapshot
    except nearcast.TargetError as below:
        return below.snapshot


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("group_rows", "groups"),
    [pytest.param(150, 1, marks=pytest.mark.slow), (16, 3), pytest.param(7, 1, marks=pytest.mark.slow)],
)
def test_a_table_in_any_number_of_files_has_the_same_rows_and_measures(name, group_rows, groups, tmp_path, monkeypatch):
    write_tables(tmp_path)
    one = run(name, tmp_path, "one")
    assert len(list((one.folder / "candidates").iterdir())) == 1
    write_small_files(monkeypatch, group_rows, groups)
    many = run(name, tmp_path, "many")
    rows = pq.read_table(one.folder / "candidates").num_rows
    assert len(list((many.folder / "candidates").iterdir())) == -(-rows // (group_rows * groups))
    assert read(many.folder / "candidates").equals(read(one.folder / "candidates"))
    assert many.manifest.measures == one.manifest.measures
    for part in ("surplus", "exposure"):
        assert (many.folder / part).is_dir() == (one.folder / part).is_dir()
        if (one.folder / part).is_dir():
            assert read(many.folder / part).equals(read(one.folder / part))


@pytest.mark.parametrize("stage", ["choose", "table", "measure"])
def test_a_run_that_stops_within_a_stage_goes_on_there(stage, tmp_path, monkeypatch):
    write_tables(tmp_path)
    write_small_files(monkeypatch, 16, 2)
    whole = run("exposure", tmp_path, "whole")
    performed = []

    def watch(kind, function, fails):
        def perform(context, args, folder):
            performed.append((kind, args.get("number")))
            if fails and kind == stage and args.get("number", 2) == 2:
                function(context, args, folder)
                raise RuntimeError("the power is gone")
            return function(context, args, folder)

        return perform

    own = dict(perform_task.TASKS)
    monkeypatch.setattr(perform_task, "TASKS", {kind: watch(kind, call, True) for kind, call in own.items()})
    with pytest.raises(RuntimeError, match="the power is gone"):
        run("exposure", tmp_path, "stopped")
    before = performed[:-1]
    performed.clear()
    monkeypatch.setattr(perform_task, "TASKS", {kind: watch(kind, call, False) for kind, call in own.items()})
    stopped = run("exposure", tmp_path, "stopped")
    assert performed
    assert not set(performed) & set(before)
    assert read(stopped.folder / "candidates").equals(read(whole.folder / "candidates"))
    assert stopped.manifest.measures == whole.manifest.measures


def test_the_driver_of_a_run_reads_no_ids_vectors_or_lists(tmp_path, monkeypatch):
    write_tables(tmp_path)
    inside = []

    class WatchedRunner(LocalRunner):
        def run(self, perform, area, calls):
            def watched(area, call):
                inside.append(call)
                try:
                    return perform(area, call)
                finally:
                    inside.pop()

            return super().run(watched, area, calls)

    def in_tasks_only(name):
        module, _, function = name.rpartition(".")
        own = getattr(__import__(module, fromlist=[function]), function)

        def checked(*args, **kwargs):
            assert inside, f"the driver calls {name}"
            return own(*args, **kwargs)

        monkeypatch.setattr(name, checked)

    for name in (
        "nearcast.sources.ingest.read_ids",
        "nearcast.types.map_array",
        "nearcast.join.joined_lists.map_array",
    ):
        in_tasks_only(name)
    snapshot = run("both, with slots for some", tmp_path, "out", runner=WatchedRunner())
    assert snapshot.manifest.measures["surplus_slots"] > 0


def ranged_table(folder, n, dim, range_rows):
    """A table of n rows in ranges; its ids are 0, 3, 6 and so on, its vectors repeat."""
    starts = list(range(0, n, range_rows))
    block = np.random.default_rng(0).normal(size=(range_rows, dim)).astype(np.float32)
    for number, start in enumerate(starts):
        home = folder / str(number)
        home.mkdir(parents=True)
        for name in ("ids", "listed"):
            write_ids(home / f"{name}.arrow", pa.array(np.arange(start, min(n, start + range_rows)) * 3))
        np.save(home / "vectors.npy", block[: min(n, start + range_rows) - start])
    counts = np.diff([*starts, n])
    names = tuple(map(str, range(len(starts))))
    ranges = IdRanges(
        names,
        pa.array([start * 3 for start in starts[1:]], pa.int64()),
        counts,
        counts,
        lambda name: folder / name,
    )
    ids = RangedIds(ranges, counts, "ids.arrow")
    vectors = RangedVectors(ranges, dim, np.dtype(np.float32), folder)
    return IngestedTable(folder, vectors, ids, ids, folder / "attributes", ranges)


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def lists_of(folder, n, k, split):
    """Lists of n queries; all splits have the same ones, and some of them are short."""
    rng = np.random.default_rng(1)
    positions = np.sort(rng.integers(0, n, (split, k)), axis=1)
    positions[::7, 8:] = -1
    np.save(folder / "positions.npy", positions)
    np.save(folder / "scores.npy", np.where(positions < 0, -np.inf, rng.normal(size=(split, k))).astype(np.float32))
    return JoinedLists(tuple(ListRange(start, start + split, lambda: folder) for start in range(0, n, split)), k)


def peaks_of_tables(folder, n, k=10):
    """Peak memory of the tasks of two files of a table of n items and queries, and of adding their tallies up."""
    table = ranged_table(folder / "table", n, 4, 1 << 17)
    joined = lists_of(folder, n, k, 1 << 16)
    request, shape = JoinRequest(Metric.INNER_PRODUCT, k, recall=1.0), TableShape(n, n, k, 4_096)
    inputs = Inputs(table, table, Metric.INNER_PRODUCT)
    source = TableSource(inputs, SelectedLists(joined, joined), request, True, shape)
    sums, parts, writing = PartSums(), [], 0

    def write(number):
        nonlocal sums
        facts = write_table_part(source, number, folder / str(number), Resources(1, 256 << 20), no_progress)
        sums += PartSums(**facts["sums"])

    for number in (0, 3):
        writing = max(writing, peak_of(lambda number=number: write(number)))
        parts.append(folder / str(number) / "tally")
    return writing, peak_of(lambda: measure_table(shape, n, sums, parts))


def test_the_memory_of_a_table_task_and_of_the_sum_does_not_grow_with_the_table(tmp_path, monkeypatch):
    write_small_files(monkeypatch, 4_096, 4)
    monkeypatch.setattr("nearcast.measure.appearances.DENSE_ITEMS", 0)
    small, large = (peaks_of_tables(tmp_path / str(n), n) for n in (1 << 21, 1 << 22))  # two and four ranges of items
    assert large[0] < 1.05 * small[0]
    assert large[1] < 1.05 * small[1]


def test_overfetch_is_refused_before_the_join_if_its_numbers_of_all_queries_do_not_fit_the_memory(tmp_path):
    settings = {"at_least": 2, "probability": 0.9, "survival": "bonus"}
    spec = spec_of("plain", "out") | {"memory": "1GB", "overfetch": settings}
    context = prepare(parse_model(GeneratorSpec, spec, "the test's spec"), tmp_path, Listener())
    zeros = ArrayVectors(np.broadcast_to(np.zeros(1, np.float32), (1 << 26, 4)))
    ids = pa.array([], pa.int64())
    many = IngestedTable(tmp_path, zeros, ids, ids, tmp_path)
    with pytest.raises(BudgetError, match="67,108,864 queries"):
        check_columns(context, Inputs(many, many, Metric.INNER_PRODUCT))
