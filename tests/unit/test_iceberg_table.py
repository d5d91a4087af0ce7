"""Iceberg tables: position deletes, equality deletes, partitions, columns that change their type or come again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearcast.errors import InputError
from nearcast.sources.open_source import open_source
from nearcast.spec import SourceSpec
from needs import require_module
from table_kinds import configure_catalog

require_module("pyiceberg", allow_module_level=True)
require_module("sqlalchemy", allow_module_level=True)

VECTORS = pa.array([[float(number), 1.0] for number in range(10)], pa.list_(pa.float32()))
NAME = "shop.items"


def rows(**columns):
    return pa.table({"id": pa.array(range(10)), "vector": VECTORS} | columns)


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    return configure_catalog(str(tmp_path), tmp_path, monkeypatch)


def make(catalog, data, **options):
    table = catalog.create_table(NAME, schema=data.schema, **options)
    table.append(data)
    return table


def open_items(folder, *attributes, **settings):
    return open_source(SourceSpec(table=f"iceberg:lake.{NAME}", attributes=attributes, **settings), folder)


def read(folder, *attributes, **settings):
    """The attributes by id; the vectors are those of their ids."""
    batches = list(
        open_items(folder, *attributes, **settings).batches(vectors=True, attributes=True, memory_bytes=1 << 20)
    )
    ids = [number for batch in batches for number in batch.ids.to_pylist()]
    values = [row for batch in batches for row in batch.attributes.to_pylist() or [{}] * len(batch.ids)]
    vectors = [vector for batch in batches for vector in batch.vectors.to_pylist()]
    assert sorted(zip(ids, vectors, strict=True)) == [(number, VECTORS[number].as_py()) for number in sorted(ids)]
    return dict(zip(ids, values, strict=True))


def delete(table, monkeypatch, data_file, positions, *, content=None):
    """Commit a delete file, as engines that merge on read do. PyIceberg itself writes none."""
    import pyiceberg.manifest as manifest

    class DeleteManifest(manifest.ManifestWriterV2):
        def content(self):
            return manifest.ManifestContent.DELETES

        @property
        def _meta(self):
            return {**super()._meta, "content": "deletes"}

    n = len(list(Path(table.location().removeprefix("file://")).rglob("deletes-*")))
    path = Path(table.location().removeprefix("file://")) / "data" / f"deletes-{n}.parquet"
    fields = [
        pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": "2147483546"}),
        pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": "2147483545"}),
    ]
    pq.write_table(pa.table([[data_file.file_path] * len(positions), positions], schema=pa.schema(fields)), path)
    deletes = manifest.DataFile.from_args(
        content=content or manifest.DataFileContent.POSITION_DELETES,
        file_path=str(path),
        file_format=manifest.FileFormat.PARQUET,
        partition=data_file.partition,
        record_count=len(positions),
        file_size_in_bytes=path.stat().st_size,
    )
    deletes.spec_id = table.spec().spec_id
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "ManifestWriterV2", DeleteManifest)
        with table.transaction() as change, change.update_snapshot().fast_append() as append:
            append.append_data_file(deletes)
    return table.current_snapshot().snapshot_id


def data_files(table):
    return [task.file for task in table.scan().plan_files()]


def test_rows_of_position_deletes_are_not_read_and_change_the_digest(tmp_path, catalog, monkeypatch):
    table = make(catalog, rows(price=pa.array(range(10))))
    [file] = data_files(table)
    before, first = open_items(tmp_path).digests(), table.current_snapshot().snapshot_id

    delete(table, monkeypatch, file, [0, 3])
    second = delete(table, monkeypatch, file, [3, 9])

    assert read(tmp_path, "price") == {number: {"price": number} for number in (1, 2, 4, 5, 6, 7, 8)}
    assert open_items(tmp_path).digests()[0]["blake2b"] != before[0]["blake2b"]
    assert read(tmp_path, at=first).keys() == set(range(10))
    assert open_items(tmp_path, at=second).digests() == open_items(tmp_path).digests()
    table.append(rows().slice(0, 1))  # deletes hold for the files before them alone
    assert read(tmp_path).keys() == {0, 1, 2, 4, 5, 6, 7, 8}


def test_position_deletes_below_partitions_are_those_of_their_file(tmp_path, catalog, monkeypatch):
    data = rows(country=["de", "fr"] * 5)
    table = catalog.create_table(NAME, schema=data.schema)
    with table.update_spec() as change:
        change.add_identity("country")
    table.append(data)
    french = next(file for file in data_files(table) if "country=fr" in file.file_path)

    delete(table, monkeypatch, french, [0, 4])

    assert read(tmp_path, "country") == {
        number: {"country": ["de", "fr"][number % 2]} for number in range(10) if number not in (1, 9)
    }


def test_a_file_whose_rows_are_all_deleted_is_read_as_none(tmp_path, catalog, monkeypatch):
    table = make(catalog, rows().slice(0, 6))
    [file] = data_files(table)
    table.append(rows().slice(6))
    delete(table, monkeypatch, file, list(range(6)))

    assert read(tmp_path).keys() == {6, 7, 8, 9}


def test_equality_deletes_are_an_error_that_says_what_to_do(tmp_path, catalog, monkeypatch):
    from pyiceberg.manifest import DataFileContent

    table = make(catalog, rows())
    first = table.current_snapshot().snapshot_id
    delete(table, monkeypatch, data_files(table)[0], [0], content=DataFileContent.EQUALITY_DELETES)

    with pytest.raises(InputError, match=r"cannot be read .*equality deletes.*rewrite its data files without delete"):
        open_items(tmp_path)
    assert read(tmp_path, at=first).keys() == set(range(10))


def test_partition_columns_are_read_as_columns_also_below_a_transform(tmp_path, catalog):
    import datetime

    from pyiceberg.transforms import DayTransform

    days = [datetime.datetime(2026, 1, 1 + number % 3) for number in range(10)]
    data = rows(country=["a b/ü%", None] * 5, day=pa.array(days, pa.timestamp("us")), price=pa.array(range(10)))
    table = catalog.create_table(NAME, schema=data.schema)
    with table.update_spec() as change:
        change.add_identity("country")
        change.add_field("day", DayTransform(), "on")
    table.append(data)

    found = read(tmp_path, "country", "day", "price")

    expected = data.select(["country", "day", "price"]).to_pylist()
    assert {number: row | {"day": row["day"].replace(tzinfo=None)} for number, row in found.items()} == dict(
        enumerate(expected)
    )


def test_a_table_whose_partitions_changed_is_read_whole(tmp_path, catalog):
    data = rows(country=["de", "fr"] * 5)
    table = make(catalog, data.slice(0, 5))
    with table.update_spec() as change:
        change.add_identity("country")
    table.append(data.slice(5))

    assert read(tmp_path, "country") == {number: {"country": ["de", "fr"][number % 2]} for number in range(10)}


def test_a_column_of_a_wider_type_is_read_in_the_type_of_its_version(tmp_path, catalog):
    from pyiceberg.types import LongType

    data = rows(price=pa.array(range(10), pa.int32()))
    table = make(catalog, data.slice(0, 5))
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as change:
        change.update_column("price", field_type=LongType())
    table.append(data.slice(5).set_column(2, "price", pa.array([1 << 40] * 5)))

    assert read(tmp_path, "price") == {number: {"price": number if number < 5 else 1 << 40} for number in range(10)}
    assert read(tmp_path, "price", at=first) == {number: {"price": number} for number in range(5)}


def test_a_column_that_was_dropped_and_comes_again_has_none_of_its_earlier_values(tmp_path, catalog):
    table = make(catalog, rows(price=pa.array(range(10))).slice(0, 5))
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as change:
        change.delete_column("price")
    with table.update_schema() as change:
        change.union_by_name(pa.schema([("price", pa.int64())]))
    table.append(rows(price=pa.array([7] * 10)).slice(5))

    assert read(tmp_path, "price") == {number: {"price": None if number < 5 else 7} for number in range(10)}
    assert read(tmp_path, "price", at=first) == {number: {"price": number} for number in range(5)}


@pytest.mark.parametrize("what", ["data", "manifests"])
def test_a_snapshot_whose_files_are_gone_is_an_error(tmp_path, catalog, what):
    table = make(catalog, rows())
    if what == "data":
        Path(data_files(table)[0].file_path.removeprefix("file://")).unlink()
    else:
        for path in Path(table.location().removeprefix("file://")).rglob("*.avro"):
            path.unlink()

    with pytest.raises(InputError, match=r"expired meanwhile|were removed"):
        read(tmp_path)
