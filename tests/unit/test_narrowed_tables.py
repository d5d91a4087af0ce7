"""Incremental runs on tables with versions read what changed, and make what a run that reads everything makes."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest

from builders import generator
from nearcast.errors import InputError
from nearcast.join.context import RunContext
from nearcast.join.listener import Listener
from nearcast.join.run import run_generator
from nearcast.runners import make_runner
from nearcast.runners.local import LocalRunner
from nearcast.sources.stage_rows import StageSettings
from nearcast.storage.artifacts import LocalArtifacts
from table_kinds import open_kind

KINDS = ("delta", "iceberg", "lance")
SCHEMA = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32())), ("country", pa.string())])
N = 200


class Heard(Listener):
    """Keeps the notes of a run."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def rows(ids, *, seed=0, **columns):
    ids = list(ids)
    vectors = list(np.random.default_rng(seed).random((max(ids) + 1, 4), np.float32)[ids])
    countries = [("de", "fr", None)[number % 3] for number in ids]
    table = pa.table([pa.array(ids), vectors, countries], schema=SCHEMA)
    for name, value in columns.items():
        table = table.append_column(name, value)
    return table


def run(made, folder, *, out="nearcast", runner=None, **settings):
    heard = Heard()
    items = {"table": made.location, "attributes": ["country"], "display": ["country"]}
    spec = generator(k=5, out=out, items=items | settings.pop("items", {}), run={"incremental": True}, **settings)
    return run_generator(spec, folder, listener=heard, runner=runner).snapshot, heard.notes


def files_of(snapshot):
    return {path.relative_to(snapshot.folder): path.read_bytes() for path in snapshot.folder.rglob("*.parquet")}


def ingested_files(folder, out):
    """Every file of the newest ingested tables but their manifests."""
    root = folder / out / "test" / "artifacts"
    tables = sorted(path for path in root.iterdir() if path.name.startswith("items-"))
    assert tables
    return {
        path.relative_to(root): path.read_bytes()
        for table in tables
        for path in table.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def check_equal_to_whole(made, folder, snapshot):
    """Compare with a first run, which reads everything: lists, reports and ingested tables."""
    whole, notes = run(made, folder, out=f"whole{snapshot.version}")
    assert not any("are read" in note for note in notes)
    assert files_of(snapshot) == files_of(whole)
    assert snapshot.manifest.facts["inputs"] == whole.manifest.facts["inputs"]
    expected = ingested_files(folder, f"whole{snapshot.version}")
    found = ingested_files(folder, "nearcast")
    assert {path: found[path] for path in expected} == expected


@pytest.fixture(params=KINDS)
def made(request, tmp_path, monkeypatch):
    opened = open_kind(request.param, str(tmp_path), tmp_path, monkeypatch)
    for start in range(0, N, 50):
        opened.write(rows(range(start, start + 50)))
    return opened


def test_a_version_with_new_rows_reads_their_files_alone(made, tmp_path):
    first, notes = run(made, tmp_path)
    assert not any("are read" in note for note in notes)
    made.write(rows(range(N, N + 10)))

    second, notes = run(made, tmp_path)

    assert f"1 of 5 files of {made.location} are read, the others as {first.name} has them" in notes
    check_equal_to_whole(made, tmp_path, second)
    assert second.n_rows == N + 10


def test_removed_and_changed_rows_are_those_of_the_version(made, tmp_path):
    run(made, tmp_path)
    made.delete("id = 60")
    made.delete("id = 61")
    made.write(rows([60], seed=3))

    second, notes = run(made, tmp_path)

    assert any("are read, the others as 000001 has them" in note for note in notes)
    check_equal_to_whole(made, tmp_path, second)
    assert second.n_rows == N - 1
    assert 61 not in second.lookup(60).ids


def test_a_version_after_several_narrowed_ones_is_still_the_whole(made, tmp_path):
    run(made, tmp_path)
    for night in range(3):
        made.write(rows(range(N + 10 * night, N + 10 * night + 10)))
        made.delete(f"id = {N + 10 * night}")
        snapshot, notes = run(made, tmp_path)
        assert any("are read, the others as" in note for note in notes)
    check_equal_to_whole(made, tmp_path, snapshot)
    assert snapshot.n_rows == N + 27


def test_a_table_that_was_written_anew_is_read_whole(made, tmp_path):
    run(made, tmp_path)
    made.rewrite()

    second, notes = run(made, tmp_path)

    assert not any("are read" in note for note in notes)
    check_equal_to_whole(made, tmp_path, second)


def test_a_version_whose_earlier_one_was_removed_is_read_whole(made, tmp_path):
    made.delete("id = 3")
    run(made, tmp_path)
    version = made.version
    made.write(rows(range(N, N + 10)))
    made.delete("id = 4")
    made.forget(version)

    second, notes = run(made, tmp_path)

    assert any(f"all of {made.location} is read: " in note for note in notes)
    check_equal_to_whole(made, tmp_path, second)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_a_duplicate_in_a_new_file_is_found_as_in_a_whole_read(made, tmp_path, policy):
    run(made, tmp_path, checks={"duplicate_id": policy})
    made.write(rows([7, N], seed=3))  # 7 is in another file

    if policy == "error":
        with pytest.raises(InputError, match="an id that has occurred before"):
            run(made, tmp_path, checks={"duplicate_id": policy})
        return
    second, notes = run(made, tmp_path, checks={"duplicate_id": policy})
    assert not any("are read" in note for note in notes)
    assert [problem["kind"] for problem in second.manifest.facts["inputs"]["items"]["problems"]] == ["duplicate_id"]


def test_a_row_without_a_vector_in_a_new_file_is_found_as_in_a_whole_read(made, tmp_path):
    run(made, tmp_path, checks={"null_vector": "drop"})
    made.write(rows([N, N + 1]).set_column(1, "vector", pa.array([None, [0.5, 0.5, 0.5, 0.5]], pa.list_(pa.float32()))))
    for _ in range(2):  # and the rows of the next version lie on one with a fault
        snapshot, notes = run(made, tmp_path, checks={"null_vector": "drop"})
        assert not any("are read" in note for note in notes)
        made.write(rows([N + 2 + snapshot.version]))
    assert snapshot.n_rows == N + 2


def test_other_columns_of_the_spec_are_read_from_all_files(made, tmp_path):
    run(made, tmp_path)
    made.write(rows([N]))
    second, notes = run(made, tmp_path, items={"attributes": [], "display": []})
    assert not any("are read" in note for note in notes)
    assert second.n_rows == N + 1


def test_a_lost_ingestion_is_no_obstacle(made, tmp_path):
    run(made, tmp_path)
    made.write(rows([N]))
    artifacts = LocalArtifacts(tmp_path / "nearcast" / "test" / "artifacts")
    for path in (tmp_path / "nearcast" / "test" / "artifacts").glob("items-*"):
        artifacts.remove(path.name)
    second, notes = run(made, tmp_path)
    assert not any("are read" in note for note in notes)
    check_equal_to_whole(made, tmp_path, second)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_of_many_id_ranges_is_narrowed_for_all_workers(made, tmp_path, monkeypatch, workers):
    def small_ranges(context):
        return StageSettings(context.read_bytes, 1, context.workspace.artifacts, range_rows=60, unit_rows=40)

    monkeypatch.setattr(RunContext, "stage_settings", property(small_ranges))
    made.write(rows(range(N, N + 50)))
    run(made, tmp_path)
    made.write(rows(range(N + 50, N + 60)))
    made.delete("id = 60")  # a file of 50 rows is gone, and one of 49 is new: together under half of all rows

    with contextlib.closing(make_runner("processes", workers=workers) if workers else LocalRunner()) as runner:
        second, notes = run(made, tmp_path, runner=runner)

    assert any("are read, the others as 000001 has them" in note for note in notes)
    assert len(list((tmp_path / "nearcast" / "test" / "artifacts").glob("items-*-ranges/*"))) > 3
    check_equal_to_whole(made, tmp_path, second)


def test_text_ids_and_integer_vectors_are_narrowed_too(tmp_path, monkeypatch):
    made = open_kind("delta", str(tmp_path), tmp_path, monkeypatch)

    def text_rows(numbers):
        vectors = pa.array([[number % 100, 1, 2, 3] for number in numbers], pa.list_(pa.int8()))
        return pa.table(
            {"id": [f"i{number}" for number in numbers], "vector": vectors, "country": ["de"] * len(numbers)}
        )

    made.write(text_rows(range(80)))
    made.write(text_rows(range(80, 100)))
    run(made, tmp_path)
    made.write(text_rows(range(100, 110)))
    made.delete("id = 'i85'")

    second, notes = run(made, tmp_path)

    assert any("are read, the others as 000001 has them" in note for note in notes)
    check_equal_to_whole(made, tmp_path, second)
    assert second.n_rows == 109
