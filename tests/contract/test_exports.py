"""The contract of exports: the lists of a snapshot are in a table of others once, whole, or not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import generator, write_parquet
from nearcast.errors import SpecError, StorageError
from nearcast.join.run import run_generator
from nearcast.table.export_snapshot import ExportedRows, describe_rows
from needs import require_module
from table_kinds import configure_catalog

KINDS = ("delta", "iceberg", "parquet")


class Target:
    """A table to export to, and its rows as others read them."""

    def __init__(self, kind, folder, monkeypatch):
        self.kind, self.folder = kind, folder / "exported"
        require_module({"delta": "deltalake", "iceberg": "pyiceberg"}.get(kind, "pyarrow"))
        self.catalog = configure_catalog(str(folder), folder, monkeypatch) if kind == "iceberg" else None
        self.location = "iceberg:lake.shop.lists" if kind == "iceberg" else f"{kind}:{self.folder}"

    def read(self):
        if self.kind == "delta":
            import deltalake

            return deltalake.DeltaTable(self.folder).to_pyarrow_table()
        if self.kind == "iceberg":
            return self.catalog.load_table("shop.lists").scan().to_arrow()
        return ds.dataset(self.folder).to_table()


@pytest.fixture(params=KINDS)
def target(request, tmp_path, monkeypatch):
    return Target(request.param, tmp_path, monkeypatch)


@pytest.fixture
def snapshot(tmp_path):
    return make_snapshot(tmp_path, 20)


def make_snapshot(folder, n, **settings):
    write_parquet(folder / "items.parquet", list(range(n)), [[float(number), 1.0] for number in range(n)])
    return run_generator(generator(k=3, exclude_self=True, **settings), folder).snapshot


def test_a_row_per_query_holds_its_list(target, snapshot):
    assert nearcast.export(snapshot, target.location)

    rows = sorted(target.read().to_pylist(), key=lambda row: row["query_id"])

    expected = pq.read_table(snapshot.fetch("candidates")).to_pylist()
    marks = {"generator": "test", "version": 1}
    assert [{key: row[key] for key in expected[0]} for row in rows] == expected
    assert all({key: row[key] for key in marks} == marks for row in rows)
    assert {row["made"].isoformat() for row in rows} == {rows[0]["made"].isoformat()}
    assert rows[0]["made"].isoformat()[:19] == snapshot.manifest.run.created[:19]


def test_a_row_per_candidate_holds_its_rank_and_score(target, snapshot):
    nearcast.export(snapshot, target.location, rows="candidate")

    found = {(row["query_id"], row["rank"]): (row["item_id"], row["score"]) for row in target.read().to_pylist()}

    expected = {}
    for row in pq.read_table(snapshot.fetch("candidates")).to_pylist():
        for rank, pair in enumerate(zip(row["candidate_ids"], row["scores"], strict=True)):
            expected[row["query_id"], rank + 1] = pair
    assert found == expected


def test_a_snapshot_is_exported_once_and_versions_are_side_by_side(target, snapshot, tmp_path):
    assert nearcast.export(snapshot, target.location)
    assert not nearcast.export(snapshot, target.location)
    other = make_snapshot(tmp_path, 25)

    assert nearcast.export(other, target.location)
    assert not nearcast.export(snapshot, target.location)

    versions = target.read().column("version").to_pylist()
    assert (versions.count(1), versions.count(2)) == (20, 25)


def test_exports_at_the_same_time_append_once(target, snapshot):
    results, errors = [], []

    def append():
        try:
            results.append(nearcast.export(snapshot, target.location))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=append) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert True in results
    assert len(target.read()) == 20


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_is_read(target, tmp_path):
    """Killed again and again, a little later each time, until one is done."""
    snapshot = make_snapshot(tmp_path, 4_000)
    code = (
        "import nearcast; from nearcast.table.snapshot import open_snapshot; from pathlib import Path;"
        f"snapshot = open_snapshot(Path({str(snapshot.folder)!r})); print('go', flush=True);"
        f"nearcast.export(snapshot, {target.location!r}); print('done', flush=True)"
    )
    for attempt in range(12):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "go\n"
            time.sleep(0.05 * 1.7**attempt)
            process.kill()
            is_done = "done" in process.stdout.read()
        try:
            rows = len(target.read())
        except Exception:  # no table yet
            rows = 0
        assert rows in (0, 4_000)
        assert rows == 4_000 or not is_done
        if is_done:
            break
    nearcast.export(snapshot, target.location)
    assert len(target.read()) == 4_000


def test_a_table_with_other_columns_is_an_error_and_stays(target, snapshot):
    nearcast.export(snapshot, target.location)
    before = len(target.read())
    for made in (snapshot, make_snapshot(target.folder.parent, 8)):
        with pytest.raises(StorageError, match=r"cannot be written: it has no column 'rank', it has .*another table"):
            nearcast.export(made, target.location, rows="candidate")
    assert len(target.read()) == before


def test_a_table_that_requires_a_column_is_an_error(snapshot, tmp_path, monkeypatch):
    target = Target("iceberg", tmp_path, monkeypatch)
    exported = describe_rows(snapshot, ExportedRows.QUERY).schema
    target.catalog.create_table("shop.lists", pa.schema([exported.field(0).with_nullable(False), *list(exported)[1:]]))
    with pytest.raises(StorageError, match="its column 'generator' is required"):
        nearcast.export(snapshot, target.location)


def test_a_damaged_file_of_an_export_is_no_export(snapshot, tmp_path, monkeypatch):
    target = Target("parquet", tmp_path, monkeypatch)
    nearcast.export(snapshot, target.location)
    [file] = target.folder.glob("*.parquet")
    os.truncate(file, 100)
    with pytest.raises(StorageError, match=r"is damaged .*; remove it, and export again"):
        nearcast.export(snapshot, target.location)


def test_a_table_with_more_columns_is_appended_to(target, snapshot, tmp_path):
    if target.kind == "parquet":
        pytest.skip("a folder of files has no columns of its own")
    nearcast.export(snapshot, target.location)
    if target.kind == "delta":
        import deltalake

        more = target.read().slice(0, 0).append_column("note", pa.array([], pa.string()))
        deltalake.write_deltalake(target.folder, more, mode="append", schema_mode="merge")
    else:
        with target.catalog.load_table("shop.lists").update_schema() as change:
            change.union_by_name(pa.schema([("note", pa.string())]))

    assert nearcast.export(make_snapshot(tmp_path, 25), target.location)

    assert len(target.read()) == 45
    assert target.read().column("note").null_count == 45


def test_a_table_of_others_is_an_error_and_stays(target, snapshot):
    if target.kind == "parquet":
        (target.folder).mkdir()
        (target.folder / "notes.parquet").write_text("no table")
        assert nearcast.export(snapshot, target.location)
        return
    others = pa.table({"id": pa.array([1, 2])})
    if target.kind == "delta":
        import deltalake

        deltalake.write_deltalake(target.folder, others)
    else:
        target.catalog.create_table("shop.lists", others.schema).append(others)
    with pytest.raises(StorageError, match="it has no column 'generator', it has id"):
        nearcast.export(snapshot, target.location)
    assert target.read().column("id").to_pylist() == [1, 2]


def test_a_table_with_other_types_is_an_error_and_stays(target, snapshot, tmp_path):
    assert nearcast.export(snapshot, target.location)
    write_parquet(tmp_path / "items.parquet", ["a", "b", "c"], [[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]])
    named = run_generator(generator(k=2, exclude_self=True, out="named"), tmp_path).snapshot
    with pytest.raises(
        StorageError, match=r"its column 'query_id' has integers, and these rows have text; name another"
    ):
        nearcast.export(named, target.location)
    assert len(target.read()) == 20


def test_a_table_with_wider_numbers_is_appended_to(target, snapshot):
    if target.kind == "parquet":
        pytest.skip("a folder of files has no types of its own")
    nearcast.export(snapshot, target.location, rows="candidate")
    wider = target.read().slice(0, 0)
    for name in ("score", "rank"):
        at, kind = wider.schema.get_field_index(name), pa.float64() if name == "score" else pa.int64()
        wider = wider.set_column(at, name, pa.array([], kind))
    if target.kind == "delta":
        import deltalake

        deltalake.write_deltalake(target.folder, wider, mode="overwrite", schema_mode="overwrite")
    else:
        target.catalog.drop_table("shop.lists")
        target.catalog.create_table("shop.lists", wider.schema)
    assert nearcast.export(snapshot, target.location, rows="candidate")
    assert target.read().schema.field("score").type == pa.float64()
    assert len(target.read()) == 60


@pytest.mark.parametrize("rows", ["query", "candidate"])
def test_a_snapshot_without_candidates_is_exported(target, tmp_path, rows):
    snapshot = make_snapshot(tmp_path, 20, min_score=1.0)  # no L2 score is above 0
    assert nearcast.export(snapshot, target.location, rows=rows)
    assert len(target.read()) == (20 if rows == "query" else 0)
    nearcast.export(snapshot, target.location, rows=rows)
    assert len(target.read()) == (20 if rows == "query" else 0)


@pytest.mark.slow
def test_exports_of_several_processes_append_once(target, snapshot):
    code = (
        "import sys, nearcast; from nearcast.table.snapshot import open_snapshot; from pathlib import Path;"
        f"snapshot = open_snapshot(Path({str(snapshot.folder)!r})); print('ready', flush=True); sys.stdin.readline();"
        f"nearcast.export(snapshot, {target.location!r})"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert len(target.read()) == 20


@pytest.mark.slow
def test_an_export_to_an_iceberg_table_in_a_bucket_is_read_there(snapshot, s3_url, tmp_path, monkeypatch):
    require_module("pyiceberg")
    catalog = configure_catalog(s3_url, tmp_path, monkeypatch)
    assert nearcast.export(snapshot, "iceberg:lake.shop.lists")
    assert not nearcast.export(snapshot, "iceberg:lake.shop.lists")
    table = catalog.load_table("shop.lists")
    assert table.location().startswith(s3_url)
    assert len(table.scan().to_arrow()) == 20


@pytest.mark.slow
def test_an_export_to_a_bucket_is_read_there(snapshot, s3_url):
    require_module("deltalake")
    for kind in ("parquet", "delta"):
        location = f"{kind}:{s3_url}/{kind}"
        assert nearcast.export(snapshot, location)
        assert not nearcast.export(snapshot, location)
    import deltalake

    table = pa.RecordBatchReader.from_stream(deltalake.DeltaTable(f"{s3_url}/delta").scan()).read_all()
    assert len(table) == 20


def test_other_rows_are_refused(snapshot):
    with pytest.raises(SpecError, match="rows must be query or candidate, got 'item'"):
        nearcast.export(snapshot, "parquet:lists", rows="item")


@pytest.mark.parametrize("to", ["lance:x", "items.parquet", "parquet:", "delta:", "iceberg:a.b"])
def test_another_target_is_refused(snapshot, to):
    with pytest.raises(SpecError, match="write delta:PATH, parquet:FOLDER or iceberg:CATALOG"):
        nearcast.export(snapshot, to)


def test_the_command_says_what_it_did(tmp_path, snapshot, capfd, monkeypatch):
    from nearcast.cli import main

    def call():
        monkeypatch.setattr(sys, "argv", ["nearcast", "export", "test", "--to", f"parquet:{tmp_path}/lists"])
        main()
        return capfd.readouterr().out

    monkeypatch.chdir(tmp_path)
    assert "test 000001: appended 20 lists to" in call()
    assert "its lists are already in" in call()
