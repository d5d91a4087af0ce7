"""The contract of table formats as sources: tables that their own libraries write, read at one version."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import re
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import generator, source_spec, write_parquet
from nearcast.errors import InputError, MissingExtraError, SpecError
from nearcast.join.listener import Listener
from nearcast.join.measure_snapshot import EarlierSnapshot
from nearcast.join.run import gather, run_generator
from nearcast.join.shared_plan import write_plan
from nearcast.sources.open_source import open_source
from nearcast.spec import SourceSpec
from table_kinds import open_kind

KINDS = ("delta", "iceberg", "lance")
SCHEMA = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32())), ("country", pa.string())])


def rows(start, stop, *, seed=0):
    vectors = np.random.default_rng(seed).random((stop, 4), np.float32)[start:]
    countries = [("de", "fr", "es")[number % 3] for number in range(start, stop)]
    return pa.table([pa.array(range(start, stop)), list(vectors), countries], schema=SCHEMA)


def spec_of(made, **settings):
    return SourceSpec(table=made.location, **{"attributes": ("country",)} | settings)


def read(spec, base):
    """All rows of a source by id: vectors and attributes."""
    source = open_source(spec, base)
    found = {}
    for batch in source.batches(vectors=True, attributes=True, memory_bytes=1 << 20):
        lists, attributes = batch.vectors.to_pylist(), batch.attributes.to_pylist() or [{}] * len(batch.ids)
        found |= dict(zip(batch.ids.to_pylist(), zip(lists, attributes, strict=True), strict=True))
    return found


def rows_by_id(table):
    return {row["id"]: (row["vector"], {"country": row["country"]}) for row in table.to_pylist()}


def bytes_of(snapshot):
    """Every Parquet file of a snapshot."""
    return {path.relative_to(snapshot.folder): path.read_bytes() for path in snapshot.folder.rglob("*.parquet")}


@pytest.fixture(params=KINDS)
def made(request, tmp_path, monkeypatch):
    return open_kind(request.param, str(tmp_path), tmp_path, monkeypatch)


def test_the_newest_version_is_read_with_its_digest(made, tmp_path):
    made.write(rows(0, 150))
    version = made.write(rows(150, 300, seed=1))

    source = open_source(spec_of(made), tmp_path)

    assert read(spec_of(made), tmp_path) == rows_by_id(pa.concat_tables([rows(0, 150), rows(150, 300, seed=1)]))
    [digest] = source.digests()
    assert (digest["name"], digest["version"]) == (made.location, version)
    assert digest["made"].endswith("+00:00")
    assert source.unlisted == ()


def test_an_earlier_version_is_read_by_number_and_by_time(made, tmp_path):
    first = made.write(rows(0, 20))
    made_at = open_source(spec_of(made), tmp_path).digests()[0]["made"]
    made.write(rows(20, 30))

    assert read(spec_of(made, at=first), tmp_path) == rows_by_id(rows(0, 20))
    assert read(spec_of(made, at=made_at), tmp_path) == rows_by_id(rows(0, 20))
    assert len(read(spec_of(made, at="2100-01-01"), tmp_path)) == 30


def test_a_number_may_be_text_and_a_name_comes_before_a_time(made, tmp_path):
    first = made.write(rows(0, 20))
    made.write(rows(20, 30))
    assert len(read(spec_of(made, at=str(first)), tmp_path)) == 20
    if not hasattr(made, "tag"):
        return
    made.tag("2100-01-01", first)
    assert len(read(spec_of(made, at="2100-01-01"), tmp_path)) == 20
    assert len(read(spec_of(made, at="2100-01-02"), tmp_path)) == 30


def test_digests_differ_by_version_and_agree_by_time_and_number(made, tmp_path):
    first = made.write(rows(0, 20))
    newest = open_source(spec_of(made), tmp_path).digests()
    assert open_source(spec_of(made, at=first), tmp_path).digests() == newest

    made.delete("id = 3")

    assert open_source(spec_of(made), tmp_path).digests()[0]["blake2b"] != newest[0]["blake2b"]
    assert open_source(spec_of(made, at=first), tmp_path).digests() == newest


def test_deleted_rows_are_not_read(made, tmp_path):
    made.write(rows(0, 250))
    made.delete("id = 3")
    assert read(spec_of(made), tmp_path).keys() == set(range(250)) - {3}


def test_a_column_that_was_added_later_is_null_in_earlier_rows(made, tmp_path):
    made.write(rows(0, 5))
    if hasattr(made, "add_column"):
        made.add_column("price", pa.float64())
    made.write(rows(5, 8).append_column("price", pa.array([1.0, 2.0, 3.0])))

    found = read(spec_of(made, attributes=("price",)), tmp_path)

    assert [found[number][1]["price"] for number in range(8)] == [None] * 5 + [1.0, 2.0, 3.0]


def test_a_renamed_column_is_read_under_its_name_at_that_version(made, tmp_path):
    first = made.write(rows(0, 5))
    if not hasattr(made, "rename_column"):
        pytest.skip("the library renames no column")
    made.rename_column("country", "land")
    assert read(spec_of(made, attributes=("land",)), tmp_path)[3][1] == {"land": "de"}
    made.write(rows(5, 8).rename_columns(["id", "vector", "land"]))

    found = read(spec_of(made, attributes=("land",)), tmp_path)

    assert [found[number][1]["land"] for number in range(8)] == rows(0, 8)["country"].to_pylist()
    assert read(spec_of(made, at=first), tmp_path) == rows_by_id(rows(0, 5))


ATTRIBUTES = {
    "decimal": pa.array([decimal.Decimal("1.20"), None, decimal.Decimal("-3.40")], pa.decimal128(10, 2)),
    "binary": pa.array([b"a", None, b"\xff\x00"], pa.binary()),
    "struct": pa.array(
        [{"a": 1, "b": "x"}, None, {"a": 3, "b": None}], pa.struct([("a", pa.int64()), ("b", pa.string())])
    ),
    "list": pa.array([["a", "b"], None, []], pa.list_(pa.string())),
    "time": pa.array([datetime.datetime(2026, 1, 1, 6, 30), None, None], pa.timestamp("us", "UTC")),
    "day": pa.array([datetime.date(2026, 1, 1), None, datetime.date(1969, 12, 31)], pa.date32()),
    "flag": pa.array([True, None, False]),
    "small": pa.array([1, None, -3], pa.int32()),
    "real": pa.array([0.1, None, 1e30], pa.float64()),
}


def test_attributes_of_every_type_are_those_of_parquet(made, tmp_path):
    table = rows(0, 3)
    for name, values in ATTRIBUTES.items():
        table = table.append_column(name, values)
    pq.write_table(table, tmp_path / "items.parquet")
    made.write(table)
    expected = read(SourceSpec(path="items.parquet", attributes=tuple(ATTRIBUTES)), tmp_path)
    assert read(spec_of(made, attributes=tuple(ATTRIBUTES)), tmp_path) == expected


def test_columns_that_are_not_named_are_not_read(made, tmp_path):
    made.write(rows(0, 5))
    assert read(spec_of(made, attributes=()), tmp_path)[3][1] == {}
    with pytest.raises(SpecError, match=r"has no column 'contry'.*did you mean 'country'"):
        open_source(spec_of(made, attributes=("contry",)), tmp_path)


def test_only_keeps_rows_of_a_table(made, tmp_path):
    made.write(rows(0, 50))
    pq.write_table(pa.table({"id": [7, 9, 1000]}), tmp_path / "keys.parquet")
    assert read(spec_of(made, only="keys.parquet"), tmp_path).keys() == {7, 9}


def test_units_of_a_table_cover_every_row_once(made, tmp_path):
    made.write(rows(0, 350))
    made.write(rows(350, 400))
    source = open_source(spec_of(made), tmp_path)
    [part] = source.parts
    edges = np.cumsum((0, *part.groups))
    assert len(edges) > 2

    found = []
    for start, stop in itertools.pairwise(edges.tolist()):
        span = type(source.spans[0])(0, start, stop)
        for batch in source.batches(vectors=False, attributes=False, memory_bytes=1 << 14, spans=[span]):
            found += batch.ids.to_pylist()

    assert sorted(found) == list(range(400))


@pytest.mark.parametrize("at", [99, "1999-01-01T00:00:00Z", "no-such-name", 8_000_000_000_000_000_000])
def test_a_version_that_never_was_is_an_error(made, tmp_path, at):
    made.write(rows(0, 5))
    with pytest.raises(InputError, match="at = "):
        open_source(spec_of(made, at=at), tmp_path)


def test_a_version_whose_files_were_removed_is_an_error(made, tmp_path):
    first = made.write(rows(0, 5))
    made.delete("id = 3")
    made.forget(first)
    with pytest.raises(InputError, match=r"vacuumed|expired|cleaned up"):
        open_source(spec_of(made, at=first), tmp_path)
    assert read(spec_of(made), tmp_path).keys() == {0, 1, 2, 4}


def test_a_table_without_rows_is_an_empty_input(made, tmp_path):
    made.write(rows(0, 1))
    made.delete("id = 0")
    with pytest.raises(InputError, match=r"no rows|no row|empty"):
        run_generator(generator(items={"table": made.location}), tmp_path)


def test_a_table_that_was_never_written_is_an_empty_input(made, tmp_path):
    made.create(SCHEMA)
    with pytest.raises(InputError, match=r"no rows|no row"):
        run_generator(generator(items={"table": made.location}), tmp_path)


def test_a_table_whose_files_were_compacted_has_the_same_rows(made, tmp_path):
    for start in range(0, 60, 20):
        made.write(rows(start, start + 20))
    made.delete("id = 3")
    before = read(spec_of(made), tmp_path)
    made.compact()
    assert read(spec_of(made), tmp_path) == before
    assert len(before) == 59


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_not_there_is_an_error(kind, tmp_path, monkeypatch):
    made = open_kind(kind, str(tmp_path), tmp_path, monkeypatch)
    with pytest.raises(InputError, match=made.location):
        open_source(spec_of(made), tmp_path)
    (tmp_path / "items").mkdir()
    (tmp_path / "items.lance").mkdir()
    with pytest.raises(InputError, match=made.location):
        open_source(spec_of(made), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_library_is_named_with_its_extra(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"delta": "deltalake", "iceberg": "pyiceberg.catalog"}.get(kind, kind), None)
    location = {"iceberg": "iceberg:a.b.c"}.get(kind, f"{kind}:items")
    with pytest.raises(MissingExtraError, match=rf"nearcast\[{kind}\]"):
        open_source(SourceSpec(table=location), tmp_path)


def test_a_catalog_that_is_not_configured_is_an_error(tmp_path):
    pytest.importorskip("pyiceberg")
    with pytest.raises(InputError, match=r"catalog 'nowhere' cannot be opened.*PYICEBERG_CATALOG__NOWHERE__URI"):
        open_source(SourceSpec(table="iceberg:nowhere.shop.items"), tmp_path)


def test_a_run_at_an_unchanged_version_returns_the_snapshot(made, tmp_path):
    made.write(rows(0, 60))
    spec = generator(k=5, items={"table": made.location})

    first = run_generator(spec, tmp_path)
    again = run_generator(spec, tmp_path)
    made.write(rows(60, 70))
    third = run_generator(spec, tmp_path)

    assert (first.reused, again.reused, third.reused) == (False, True, False)
    recorded = json.loads((third.snapshot.folder / "manifest.json").read_text())
    assert recorded["spec"]["items"]["at"] == made.version
    assert recorded["inputs"]["items"]["files"][0]["version"] == made.version


@pytest.mark.slow
def test_every_format_gives_the_same_bytes_while_a_writer_commits(tmp_path, monkeypatch):
    """Parquet is the reference. The writer appends rows that would change every list."""
    items = rows(0, 300)
    pq.write_table(items, tmp_path / "items.parquet")
    reference = run_generator(generator(k=10, items={"path": "items.parquet", "attributes": ["country"]}), tmp_path)
    expected = bytes_of(reference.snapshot)
    asked = f"select * from read_parquet('{tmp_path}/items.parquet')"
    by_query = generator(k=10, out="sql", items={"sql": asked, "attributes": ["country"]})
    assert bytes_of(run_generator(by_query, tmp_path).snapshot) == expected

    for kind in KINDS:
        made = open_kind(kind, str(tmp_path), tmp_path, monkeypatch)
        version = made.write(items)
        stop, commits = threading.Event(), itertools.count()

        def write_more(made=made, stop=stop, commits=commits):
            while not stop.wait(0.01):
                number = 1000 + 10 * next(commits)
                made.write(rows(0, 10).set_column(0, "id", pa.array(range(number, number + 10))))

        writer = threading.Thread(target=write_more)
        writer.start()
        try:
            spec = generator(k=10, out=kind, items={"table": made.location, "at": version, "attributes": ["country"]})
            outcome = run_generator(spec, tmp_path)
        finally:
            stop.set()
            writer.join()
        assert next(commits) > 1
        assert bytes_of(outcome.snapshot) == expected, kind


def test_workers_of_a_plan_read_the_version_that_was_planned(made, tmp_path):
    made.write(rows(0, 60))
    spec = generator(k=5, items={"table": made.location})
    planned = write_plan(spec, tmp_path, tmp_path / "work", earlier=EarlierSnapshot(None, False), listener=Listener())
    version = made.version
    made.write(rows(60, 90))

    outcome = gather(planned, Listener(), lambda _snapshot: None)

    assert planned.plan["spec"]["items"]["at"] == version
    assert outcome.snapshot.n_rows == 60


@pytest.mark.slow
def test_an_update_reads_tables(made, tmp_path):
    write_parquet(tmp_path / "items.parquet", list(range(50)), rows(0, 50)["vector"].to_pylist())
    nearcast.run(generator(k=5), base=tmp_path)
    nearcast.publish("test", store=tmp_path / "store", out=tmp_path / "nearcast")
    made.write(rows(50, 60).select(["id", "vector"]))

    result = nearcast.update(
        "test", items=made.location, max_lists_changed=1.0, store=tmp_path / "store", out=tmp_path / "nearcast"
    )
    gone = nearcast.update(
        "test", gone=made.location, max_lists_changed=1.0, store=tmp_path / "store", out=tmp_path / "nearcast"
    )

    assert result.counts["items"] == 10
    assert gone.counts["gone"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_a_bucket_gives_the_bytes_of_a_local_file(kind, s3_url, tmp_path, monkeypatch):
    items = rows(0, 100)
    pq.write_table(items, tmp_path / "items.parquet")
    expected = run_generator(generator(k=5, items={"path": "items.parquet"}), tmp_path)
    made = open_kind(kind, s3_url, tmp_path, monkeypatch)
    made.write(items)

    outcome = run_generator(generator(k=5, out="s3", items={"table": made.location}), tmp_path)

    assert bytes_of(outcome.snapshot) == bytes_of(expected.snapshot)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "hudi:items"}, "write delta:PATH"),
        ({"table": "iceberg:items"}, "iceberg:CATALOG.NAMESPACE.TABLE"),
        ({"table": "delta:"}, "write delta:PATH"),
        ({"table": "delta:items", "path": "items.parquet"}, "path and table are given"),
        ({"path": "items.parquet", "at": 3}, "at is the version of a table"),
        ({"table": "delta:items", "at": True}, "it is a version or a time"),
        ({"sql": "select 1", "only": "keys.parquet"}, "only goes with path and table"),
        ({"table": "delta:items", "ids": "ids.npy"}, "ids goes with a .npy file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        generator(items=settings)


@pytest.mark.parametrize(
    "location", ["s3a://bucket/items", "~/items", "file:///items", "s3://user:secret/x@bucket/items"]
)
def test_a_location_that_can_never_be_read_is_refused_and_shows_no_password(tmp_path, location):
    with pytest.raises(SpecError) as raised:
        open_source(SourceSpec(table=f"delta:{location}"), tmp_path)
    assert re.search("write s3://|write the whole path|write the path|credentials come from", str(raised.value))
    assert "secret" not in str(raised.value)


def test_a_tag_of_another_branch_is_refused_since_its_number_is_of_that_branch(tmp_path, monkeypatch):
    made = open_kind("lance", str(tmp_path), tmp_path, monkeypatch)
    made.write(rows(0, 20))
    made.branch("trial", rows(20, 30))
    with pytest.raises(InputError, match="the tag 'trial-tag' is of trial; write table = "):
        open_source(spec_of(made, at="trial-tag"), tmp_path)
    on_branch = spec_of(made).model_copy(update={"table": f"{made.location}/tree/trial", "at": "trial-tag"})
    assert len(read(on_branch, tmp_path)) == 30


def test_a_path_that_takes_no_table_says_so(tmp_path):
    with pytest.raises(InputError, match="only items and queries are read from tables"):
        open_source(source_spec("delta:items"), tmp_path)
