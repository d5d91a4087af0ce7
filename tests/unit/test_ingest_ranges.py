"""Ingestion by id range: whatever the ranges, the memory and the files, the table is that of a plain reading."""

from __future__ import annotations

import gc
import io
import math
import resource
import signal
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import generator, source_spec, table
from nearcast.errors import DamagedError
from nearcast.sources.ingest import read_attributes, read_rows
from nearcast.sources.ingest_rows import ingest_staged
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.parquet_files import read_batches
from nearcast.sources.stage_rows import StageSettings, stage_table
from nearcast.sources.user_files import LocalFile
from nearcast.sources.validate_rows import report_table
from nearcast.storage.artifacts import LocalArtifacts

POLICIES = ("error", "drop", "keep")
MANY = StageSettings(1 << 26, range_rows=1 << 20)
NORM_NAMES = ("p01", "p25", "p50", "p75", "p99")


@st.composite
def sources(draw):
    """Rows as (id, vector, attributes), good and bad ones."""
    ids = draw(st.sampled_from([st.integers(-3, 40), st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=3)]))
    vector = st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.5, 3.0, math.nan, math.inf, 1e30]), max_size=3)
    usual = st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=2, max_size=2)
    return draw(
        st.lists(
            st.tuples(
                st.none() | ids | ids | ids, st.none() | vector | usual | usual | usual, st.none() | st.integers(0, 9)
            ),
            min_size=1,
            max_size=30,
        ).filter(lambda rows: any(row[0] is not None for row in rows) and any(row[1] is not None for row in rows))
    )


def as_table(rows):
    ids, vectors, prices = zip(*rows, strict=True)
    kind = pa.string() if any(isinstance(one, str) for one in ids) else pa.int64()
    return table(
        pa.array(ids, kind), list(vectors), price=pa.array(prices, pa.int64()), tags=[[str(p)] for p in prices]
    )


def plain_ingest(rows, spec):
    """Ingest rows one by one: the ids, vectors and listed ids, and the count and first rows of each fault."""
    sizes = [len(vector) for _, vector, _ in rows if vector]
    dim = min(set(sizes), key=lambda size: (-sizes.count(size), size), default=0)
    faults, seen, joined, listed = {}, {}, {}, {}
    for number, (key, vector, price) in enumerate(rows):
        kind = find_fault(vector, dim)
        for fault in filter(None, (kind, "null_id" if key is None else None, "duplicate_id" if key in seen else None)):
            faults.setdefault(fault, []).append(number)
        if key is None or key in seen:
            continue
        seen[key] = number
        keeps = kind is None or spec.checks.policy(kind, spec.metric) == "keep"
        if keeps:
            listed[key] = price
        if kind is None or (keeps and kind == "zero_vector"):
            joined[key] = vector
    order = sorted(listed, key=lambda key: key.encode() if isinstance(key, str) else key)
    return dim, {key: joined.get(key) for key in order}, {key: listed[key] for key in order}, faults, seen


def find_fault(vector, dim):
    if vector is None:
        return "null_vector"
    if len(vector) != dim or not vector:
        return "wrong_dimension"
    if not all(math.isfinite(value) for value in vector) or max(abs(value) for value in vector) > 1e18:
        return "not_finite"
    return "zero_vector" if not any(vector) else None


def stage(source, spec, folder, **limits):
    settings_ = StageSettings(**({"memory_bytes": 1 << 22, "scratch": folder} | limits))
    return stage_table(source, spec, settings_, "items")


def ingest(source, spec, folder, **limits):
    """Stage and ingest a source. Returns the table and its report."""
    staged = stage(source, spec, folder, **limits)
    report = report_table("items", staged.facts, source, spec)
    memory = limits.get("memory_bytes", 1 << 22)
    artifacts = LocalArtifacts(folder / "artifacts")
    opened = ingest_staged(staged, "items-1", artifacts, asdict(report), memory_bytes=memory, table="items")
    return opened, report


def cut_files(data, folder, places):
    """Write a table into several files with small row groups."""
    edges = [0, *sorted(places), len(data)]
    (folder / "parts").mkdir(parents=True)
    for number, (start, stop) in enumerate(pairwise(edges)):
        pq.write_table(data.slice(start, stop - start), folder / "parts" / f"{number}.parquet", row_group_size=3)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(rows=sources(), data=st.data())
def test_a_table_is_that_of_a_plain_reading_whatever_the_ranges_and_the_memory(rows, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    kinds = ("null_vector", "wrong_dimension", "not_finite", "zero_vector")
    spec = generator(checks={kind: data.draw(st.sampled_from(POLICIES)) for kind in kinds}, metric="inner_product")
    whole = as_table(rows)
    columns = source_spec("parts", attributes=("price",), display=("tags",))
    if data.draw(st.booleans()):
        cut_files(whole, folder, data.draw(st.sets(st.integers(0, len(rows)), max_size=3)))
        if not any(part.n_rows for part in open_source(columns, folder).parts):
            return
        source = open_source(columns, folder)
    else:
        source = table_source(columns, whole, "items")
    dim, joined, listed, faults, seen = plain_ingest(rows, spec)
    tables = {}
    for range_rows in (1, 3, 7, 1 << 20):
        memory = data.draw(st.sampled_from([1, 500, 1 << 22]))
        opened, report = ingest(source, spec, folder / str(range_rows), range_rows=range_rows, memory_bytes=memory)
        tables[range_rows] = report
        assert (report.rows, report.vectors, report.listed, report.dim) == (
            len(rows), sum(vector is not None for vector in joined.values()), len(listed), dim,
        )  # fmt: skip
        assert opened.listed_ids.to_pylist() == list(listed)
        with_vectors = [key for key, vector in joined.items() if vector is not None]
        assert opened.ids.to_pylist() == with_vectors
        expected = np.array([joined[key] for key in with_vectors], np.float32).reshape(len(with_vectors), max(dim, 1))
        assert opened.vectors.read(0, opened.vectors.n).tobytes() == expected.tobytes()
        assert read_attributes(opened, ["price"]).to_pydict() == {
            "id": with_vectors, "price": [listed[key] for key in with_vectors],
        }  # fmt: skip
        some = list(listed)[::2]
        assert read_rows(opened, pa.array(some, opened.ids.type), ["price"])["price"].to_pylist() == [
            listed[key] for key in some
        ]
        assert {p.kind: p.count for p in report.problems} == {kind: len(found) for kind, found in faults.items()}
        for problem in report.problems:
            assert len(problem.examples) == min(3, problem.count)
            for number, text in zip(faults[problem.kind], problem.examples, strict=False):
                where = source.where(number)
                assert text == (where if problem.kind == "null_id" else f"{rows[number][0]!r} ({where})")
            if problem.kind == "duplicate_id":
                firsts = dict.fromkeys(seen[rows[number][0]] for number in faults["duplicate_id"][:3])
                assert problem.first_places == tuple(f"{rows[n][0]!r} ({source.where(n)})" for n in firsts)
    one = tables[1 << 20]
    for report in tables.values():
        assert report.problems == one.problems
        assert report.norms == pytest.approx(one.norms, abs=2e-6)


def random_rows(n, *, seed=0):
    rng = np.random.default_rng(seed)
    return table(
        [f"key-{i}" for i in rng.permutation(n)],
        list(rng.normal(size=(n, 4)).astype(np.float32)),
        price=[None if i % 7 == 0 else i for i in range(n)],
    )


def contents(folder: Path):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("range_rows", [50, 1 << 20])
def test_memory_files_and_threads_do_not_change_the_bytes(range_rows, tmp_path):
    data = random_rows(600)
    cut_files(data, tmp_path, [100, 350])
    columns = {"attributes": ("price",)}
    inputs = {
        "memory": table_source(source_spec(**columns), data, "items"),
        "files": open_source(source_spec("parts", **columns), tmp_path),
    }
    made = []
    for name, source in inputs.items():
        for memory, threads in ((1 << 24, 1), (20_000, 3)):
            folder = tmp_path / f"{name}-{memory}"
            ingest(source, generator(), folder, range_rows=range_rows, memory_bytes=memory, threads=threads)
            made.append(contents(folder / "artifacts"))
    assert all(one == made[0] for one in made[1:])
    assert len(made[0]) == (5 if range_rows == 1 << 20 else 1 + 5 * 17)


def test_threads_share_the_rows_of_one_file_and_do_not_change_the_bytes(tmp_path):
    rows = 3 << 14
    data = pa.table({"id": np.random.default_rng(0).permutation(rows), "vector": [[1.0, 2.0]] * rows})
    pq.write_table(data, tmp_path / "items.parquet", row_group_size=5000)
    source = open_source(source_spec(), tmp_path)
    assert len(stage(source, generator(), tmp_path, threads=2, memory_bytes=1 << 26).units) == 4
    made = []
    for threads in (1, 2):
        ingest(source, generator(), tmp_path / str(threads), threads=threads, memory_bytes=1 << 26)
        made.append(contents(tmp_path / str(threads) / "artifacts"))
    assert made[0] == made[1]


def test_a_large_row_group_is_read_in_small_pieces(tmp_path):
    sizes = []

    class Recording(io.FileIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    n = 1 << 17
    vectors = np.random.default_rng(0).normal(size=n * 16).astype(np.float32)
    data = pa.table({"vector": pa.FixedSizeListArray.from_arrays(vectors, 16)})
    pq.write_table(data, tmp_path / "items.parquet", row_group_size=n, use_dictionary=False)
    file = LocalFile(tmp_path / "items.parquet", "items.parquet")
    with Recording(file.path) as opened:
        file.open = lambda: pa.PythonFile(opened, mode="r")
        assert sum(len(batch) for batch in read_batches(file, n, ["vector"], 10_000)) == n
    assert sum(sizes) > 8_000_000
    assert max(sizes) <= 1 << 21  # a page may be larger than the buffer


def test_a_range_holds_about_as_many_rows_as_the_others(tmp_path):
    opened, _ = ingest(table_source(source_spec(), random_rows(5000), "items"), generator(), tmp_path, range_rows=100)
    assert opened.ranges is not None
    assert len(opened.ranges.names) == 67
    assert opened.ranges.listed.max() <= 100


def test_an_id_in_every_row_does_not_fill_a_range(tmp_path):
    data = table(["same"] * 900 + ["other"], [[i, 1] for i in range(901)])
    pq.write_table(data, tmp_path / "items.parquet", row_group_size=10)
    spec = generator(checks={"duplicate_id": "drop"})
    staged = stage(open_source(source_spec(), tmp_path), spec, tmp_path, range_rows=20)
    assert (staged.facts.listed, staged.facts.faults[0].count) == (2, 899)
    assert sum(sum(unit["ranges"].values()) for unit in staged.units) == 2


def test_a_unit_whose_first_vector_is_odd_is_read_again(tmp_path):
    (tmp_path / "parts").mkdir()
    for number in range(3):
        first = [1.0] if number == 1 else [1.0, 2.0]
        data = table([f"{number}-{i}" for i in range(4)], [first, [1, 2], [3, 4], [5, 6]])
        pq.write_table(data, tmp_path / "parts" / f"{number}.parquet")
    spec = generator(checks={"wrong_dimension": "drop"})
    _, report = ingest(open_source(source_spec("parts"), tmp_path), spec, tmp_path, range_rows=5)
    assert (report.dim, report.vectors) == (2, 11)
    assert report.problems[0].examples == ("'1-0' (parts/1.parquet row 0)",)


def test_pieces_go_to_the_scratch_folder_when_memory_is_short_and_vanish_with_the_table(tmp_path):
    source = table_source(source_spec(), random_rows(500), "items")
    staged = stage(source, generator(), tmp_path, memory_bytes=5_000, range_rows=100)
    assert list(tmp_path.glob(".attempt-pieces-*/*/*"))
    del staged
    assert not list(tmp_path.iterdir())


def test_a_table_with_room_in_memory_writes_nothing_before_it_is_ingested(tmp_path):
    stage(table_source(source_spec(), random_rows(500), "items"), generator(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_piece_that_was_cut_is_damaged(tmp_path):
    source = table_source(source_spec(), random_rows(500), "items")
    staged = stage(source, generator(), tmp_path, memory_bytes=5_000, range_rows=100)
    paths = sorted(tmp_path.glob(".attempt-pieces-*/*/*"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DamagedError, match=r"range-000000\.arrows is damaged"):
        staged.open_range(0)


@pytest.mark.parametrize("full_after", [0, 200_000])
def test_a_full_disk_stops_the_split_and_leaves_nothing(full_after, tmp_path):
    source = table_source(source_spec(), random_rows(5000), "items")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full_after // 50, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            stage(source, generator(), tmp_path, memory_bytes=5_000, range_rows=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    gc.collect()
    assert not list(tmp_path.iterdir())
