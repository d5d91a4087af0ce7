"""Delta tables: partition values, deletion vectors, physical column names, features that are not known."""

from __future__ import annotations

import base64
import datetime
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearcast.errors import InputError
from nearcast.sources.open_source import open_source
from nearcast.spec import SourceSpec
from needs import require_module

deltalake = require_module("deltalake", allow_module_level=True)

VECTORS = pa.array([[float(number), 1.0] for number in range(10)], pa.list_(pa.float32()))


def rows(**columns):
    return pa.table({"id": pa.array(range(10)), "vector": VECTORS} | columns)


def read(folder, *attributes):
    source = open_source(SourceSpec(table="delta:items", attributes=attributes), folder)
    batches = list(source.batches(vectors=True, attributes=True, memory_bytes=1 << 20))
    ids = [number for batch in batches for number in batch.ids.to_pylist()]
    values = [row for batch in batches for row in batch.attributes.to_pylist() or [{}] * len(batch.ids)]
    vectors = [vector for batch in batches for vector in batch.vectors.to_pylist()]
    assert sorted(zip(ids, vectors, strict=True)) == [(number, VECTORS[number].as_py()) for number in sorted(ids)]
    return dict(zip(ids, values, strict=True))


def add_to_log(folder, *actions):
    """Append a commit of these actions, as another writer does."""
    log = folder / "items" / "_delta_log"
    version = len(list(log.glob("*.json")))
    (log / f"{version:020}.json").write_text("\n".join(json.dumps(action) for action in actions) + "\n")


def last_actions(folder, kind):
    found = []
    for path in sorted((folder / "items" / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        found += [action[kind] for action in actions if kind in action]
    return found


def inline_vector(deleted):
    """A deletion vector in the log: Z85 of a magic number and a portable 64-bit Roaring bitmap."""
    bitmap = require_module("pyroaring").BitMap(deleted).serialize()
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    padded = data + b"\0" * (-len(data) % 4)
    to_z85 = bytes.maketrans(
        b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~",
        b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#",
    )
    text = base64.b85encode(padded).translate(to_z85).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(deleted)}


@pytest.mark.parametrize("mapping", ["none", "name"])
def test_partition_values_have_the_types_of_the_table(tmp_path, mapping):
    country, day = ["a b/ü%", None] * 5, pa.array([1, 2] * 5, pa.int32())
    deltalake.write_deltalake(
        tmp_path / "items",
        rows(country=country, day=day),
        partition_by=["country", "day"],
        configuration={"delta.columnMapping.mode": mapping},
    )

    found = read(tmp_path, "day", "country")

    assert found == {number: {"country": country[number], "day": day[number].as_py()} for number in range(10)}


def test_rows_that_a_deletion_vector_deletes_are_not_read(tmp_path):
    enabled = {"delta.enableDeletionVectors": "true"}
    deltalake.write_deltalake(tmp_path / "items", rows(price=pa.array(range(10))), configuration=enabled)
    before = open_source(SourceSpec(table="delta:items"), tmp_path).digests()
    [add] = last_actions(tmp_path, "add")
    removed = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    add_to_log(tmp_path, {"remove": removed}, {"add": add | {"deletionVector": inline_vector([0, 3, 9])}})

    assert read(tmp_path, "price") == {number: {"price": number} for number in (1, 2, 4, 5, 6, 7, 8)}
    assert open_source(SourceSpec(table="delta:items"), tmp_path).digests()[0]["blake2b"] != before[0]["blake2b"]


def test_deletion_vectors_are_matched_with_files_below_partitions(tmp_path):
    enabled = {"delta.enableDeletionVectors": "true"}
    country = ["a b/ü%"] * 10
    deltalake.write_deltalake(
        tmp_path / "items", rows(country=country), partition_by=["country"], configuration=enabled
    )
    [add] = last_actions(tmp_path, "add")
    removed = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    add_to_log(tmp_path, {"remove": removed}, {"add": add | {"deletionVector": inline_vector([0, 3, 9])}})

    assert read(tmp_path, "country").keys() == {1, 2, 4, 5, 6, 7, 8}


def test_a_renamed_column_is_found_by_its_physical_name(tmp_path):
    mapped = {"delta.columnMapping.mode": "name"}
    deltalake.write_deltalake(tmp_path / "items", rows(country=["de"] * 10), configuration=mapped)
    [metadata] = last_actions(tmp_path, "metaData")
    metadata["schemaString"] = metadata["schemaString"].replace('"country"', '"land"')
    add_to_log(tmp_path, {"metaData": metadata})

    assert read(tmp_path, "land")[3] == {"land": "de"}


def test_nested_columns_are_found_by_their_physical_names(tmp_path):
    mapped = {"delta.columnMapping.mode": "name"}
    made = pa.array([[{"size": number}] if number else None for number in range(10)])
    deltalake.write_deltalake(tmp_path / "items", rows(offers=made), configuration=mapped)
    [metadata] = last_actions(tmp_path, "metaData")
    metadata["schemaString"] = metadata["schemaString"].replace('"size"', '"width"')
    add_to_log(tmp_path, {"metaData": metadata})

    assert [read(tmp_path, "offers")[number]["offers"] for number in (0, 3)] == [None, [{"width": 3}]]


def test_partition_values_of_bytes_are_bytes(tmp_path):
    made = pa.array([b"a\xff", None] * 5, pa.binary())
    deltalake.write_deltalake(tmp_path / "items", rows(made=made), partition_by=["made"])
    assert [read(tmp_path, "made")[number]["made"] for number in (0, 1)] == [b"a\xff", None]


def test_the_times_of_spark_are_read_until_the_year_9999(tmp_path):
    until = [datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC), datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)] * 5
    table = rows(until=pa.array(until, pa.timestamp("us", "UTC")))
    deltalake.write_deltalake(tmp_path / "items", table)
    [add] = last_actions(tmp_path, "add")
    pq.write_table(table, tmp_path / "items" / add["path"], use_deprecated_int96_timestamps=True)

    assert [read(tmp_path, "until")[number]["until"] for number in range(10)] == until


def test_files_that_the_log_names_absolutely_are_those_of_a_clone(tmp_path):
    deltalake.write_deltalake(tmp_path / "items", rows())
    (tmp_path / "items").rename(tmp_path / "a source")
    [log] = (tmp_path / "a source" / "_delta_log").glob("*.json")
    (tmp_path / "items" / "_delta_log").mkdir(parents=True)
    path = f"file://{tmp_path}/a%20source/"
    (tmp_path / "items" / "_delta_log" / log.name).write_text(log.read_text().replace('"path":"', f'"path":"{path}'))

    assert read(tmp_path).keys() == set(range(10))


@pytest.mark.parametrize("at", [None, 0, "2100-01-01"])
def test_a_damaged_log_is_an_error_at_any_version(tmp_path, at):
    for _ in range(2):
        deltalake.write_deltalake(tmp_path / "items", rows(), mode="append")
    (tmp_path / "items" / "_delta_log" / f"{1:020}.json").write_text('{"add": nothing')
    with pytest.raises(InputError, match=r"delta:items cannot be read .*; check the location and its log"):
        open_source(SourceSpec(table="delta:items", at=at), tmp_path)


def test_a_feature_that_is_not_known_is_an_error(tmp_path):
    deltalake.write_deltalake(tmp_path / "items", rows())
    feature = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["rowsAreSecret"], "writerFeatures": []}
    feature["writerFeatures"] = ["rowsAreSecret"]
    add_to_log(tmp_path, {"protocol": feature})

    with pytest.raises(InputError, match="rowsAreSecret"):
        read(tmp_path)


def test_a_file_that_vanishes_while_it_is_read_is_an_error(tmp_path):
    deltalake.write_deltalake(tmp_path / "items", rows())
    source = open_source(SourceSpec(table="delta:items"), tmp_path)
    next((tmp_path / "items").glob("*.parquet")).unlink()
    with pytest.raises(InputError, match="changed while it was read"):
        list(source.batches(vectors=True, attributes=True, memory_bytes=1 << 20))


def test_a_table_that_is_made_again_has_another_digest(tmp_path):
    for _ in range(2):
        deltalake.write_deltalake(tmp_path / "items", rows())
        (tmp_path / "items").rename(tmp_path / f"items{len(list(tmp_path.iterdir()))}")
    digests = [
        open_source(SourceSpec(table=f"delta:{folder.name}"), tmp_path).digests()[0]["blake2b"]
        for folder in tmp_path.iterdir()
    ]
    assert len(set(digests)) == 2
