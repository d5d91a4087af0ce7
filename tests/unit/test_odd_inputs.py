"""Columns, files and paths that are out of the ordinary: an answer that is right, or an error that says the way out."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nearcast
from builders import source_spec, vector_column, write_parquet
from nearcast.advising.traffic import read_traffic
from nearcast.errors import InputError, SpecError
from nearcast.overfetch.survival_log import read_counts
from nearcast.publishing.engagement import LogColumns, compute_weights
from nearcast.publishing.engagement import read_log as read_engagement
from nearcast.replaying.request_log import read_log
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.spec import SourceSpec

IDS, VECTORS = ["a", "b", "c"], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
COLUMNS = {"id": IDS, "vector": vector_column(VECTORS), "price": [1, 2, 3], "other": [4, 5, 6]}


def spec(**more):
    return {"name": "test", "metric": "l2", "k": 1, "exclude_self": True, "items": {"path": "items.parquet"}} | more


def refusal(base, error=InputError, *, items=None, **more):
    with pytest.raises(error) as caught:
        nearcast.check(spec(**more), base=base, items=items)
    return str(caught.value)


def with_twice(name):
    """The columns, one of them twice."""
    names = [*COLUMNS, name]
    return pa.Table.from_arrays([pa.array(COLUMNS[column]) for column in names], names=names)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("place", ["file", "table", "pandas"])
def test_two_columns_of_one_name_are_an_error_where_they_are_used_and_nothing_where_not(name, place, tmp_path):
    data = with_twice(name)
    source = {"path": "items.parquet", "attributes": ["price"]}
    if place == "file":
        pq.write_table(data, tmp_path / "items.parquet")
    given = None if place == "file" else data
    if place == "pandas":
        given = pd.concat([pd.DataFrame(COLUMNS | {"vector": VECTORS}), pd.DataFrame({name: IDS})], axis=1)
    if name == "other":
        assert nearcast.check(spec(items=source), base=tmp_path, items=given)[0].items.vectors == 3
    else:
        with pytest.raises(InputError, match=f"has 2 columns called '{name}'; give each its own name"):
            nearcast.check(spec(items=source), base=tmp_path, items=given)


def test_two_columns_of_one_name_in_the_files_beside_are_errors_too(tmp_path):
    twice = pa.Table.from_arrays([pa.array(IDS), pa.array(IDS)], names=["id", "id"])
    pq.write_table(twice, tmp_path / "ids.parquet")
    np.save(tmp_path / "v.npy", np.array(VECTORS, np.float32))
    write_parquet(tmp_path / "items.parquet", IDS, VECTORS)
    for source in ({"path": "v.npy", "ids": "ids.parquet"}, {"path": "items.parquet", "only": "ids.parquet"}):
        with pytest.raises(InputError, match=r"ids\.parquet has 2 columns called 'id'"):
            nearcast.check(spec(items=source), base=tmp_path)


@pytest.mark.parametrize(
    "frame",
    [
        lambda: pd.DataFrame(COLUMNS | {"vector": VECTORS}),
        lambda: pl.DataFrame(COLUMNS | {"vector": VECTORS}),
        lambda: pa.table(COLUMNS),
        None,
    ],
    ids=["pandas", "polars", "arrow", "file"],
)
def test_a_missing_column_is_told_with_all_columns_that_there_are(frame, tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "items.parquet")
    data = None if frame is None else frame()
    with pytest.raises(InputError, match="has no column 'prize'; its columns are id, vector, price, other"):
        nearcast.check(spec(items={"path": "items.parquet", "attributes": ["prize"]}), base=tmp_path, items=data)


EMPTY_PARTS = {
    "objects": pd.DataFrame({"id": [], "vector": []}).astype(object),
    "floats": pd.DataFrame({"id": [], "vector": []}, dtype=float),
    "no columns": pd.DataFrame(),
    "other attribute": pd.DataFrame({"id": [], "vector": [], "price": []}).astype(object),
}


@pytest.mark.parametrize("name", ["0.parquet", "9.parquet"])
@pytest.mark.parametrize("empty", EMPTY_PARTS)
def test_a_part_without_rows_and_of_other_types_is_skipped_with_a_note(empty, name, tmp_path):
    write_parquet(tmp_path / "items" / "5.parquet", IDS, VECTORS, price=["1", "2", "3"])
    EMPTY_PARTS[empty].to_parquet(tmp_path / "items" / name)
    source = open_source(source_spec("items", attributes=("price",)), tmp_path)
    assert (source.n_rows, len(source.parts)) == (3, 1)
    assert source.notes == (f"items/{name} has no rows and columns of other types, and was skipped",)
    report, _ = nearcast.check(spec(items={"path": "items", "attributes": ["price"]}), base=tmp_path)
    assert report.items.vectors == 3


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_without_rows_and_types_alone_are_no_rows(parts, tmp_path):
    (tmp_path / "items").mkdir()
    for number in range(parts):
        EMPTY_PARTS["objects"].to_parquet(tmp_path / "items" / f"{number}.parquet")
    with pytest.raises(InputError, match="items has no rows in any of its"):
        nearcast.check(spec(items={"path": "items"}), base=tmp_path)


def test_a_column_of_nulls_in_one_part_takes_the_type_of_the_others(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", IDS, VECTORS)
    pq.write_table(pa.table({"id": ["x"], "vector": pa.nulls(1)}), tmp_path / "items" / "2.parquet")
    pq.write_table(
        pa.table({"id": pa.nulls(1), "vector": vector_column([[2.0, 2.0]])}), tmp_path / "items" / "3.parquet"
    )
    checks = {"null_vector": "drop", "null_id": "drop"}
    report, _ = nearcast.check(spec(items={"path": "items"}, checks=checks), base=tmp_path)
    assert [(p.kind, p.count) for p in report.problems] == [("null_vector", 1), ("null_id", 1)]
    assert report.items.vectors == 3


@pytest.mark.parametrize("policy", ["error", "drop", "keep"])
@pytest.mark.parametrize(
    "vectors", [[[], [], []], [[], None, []], pa.array([[], [], []], pa.list_(pa.float32(), 0))], ids=str
)
def test_vectors_that_are_all_empty_are_called_so(vectors, policy, tmp_path):
    column = vectors if isinstance(vectors, pa.Array) else vector_column(vectors)
    pq.write_table(pa.table({"id": IDS, "vector": column}), tmp_path / "items.parquet")
    checks = {"wrong_dimension": policy, "null_vector": policy}
    assert "all vectors are empty" in refusal(tmp_path, checks=checks)


MASKED = np.ma.masked_array(np.array(VECTORS, np.float32), mask=[[0, 0], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    "data",
    [
        (IDS, MASKED),
        (IDS, list(MASKED)),
        (np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]), np.array(VECTORS)),
        pd.DataFrame({"id": IDS, "vector": list(MASKED)}),
    ],
    ids=["vectors", "a list of vectors", "ids", "pandas"],
)
def test_a_masked_array_is_refused_since_its_mask_would_be_lost(data, tmp_path):
    assert "masked array, whose mask would be ignored" in refusal(tmp_path, items=data)


def test_a_join_of_arrays_refuses_a_mask_on_either_side():
    plain = np.array(VECTORS, np.float32)
    for queries, items, side in ((MASKED, plain, "queries"), (plain, MASKED, "items")):
        with pytest.raises(InputError, match=f"{side} are a masked array"):
            nearcast.knn_join(queries, items, k=1)


def test_a_duplicate_id_is_told_with_both_its_places(tmp_path):
    write_parquet(tmp_path / "items" / "1.parquet", IDS, VECTORS)
    write_parquet(tmp_path / "items" / "2.parquet", ["x", "b"], VECTORS[:2])
    with pytest.raises(InputError) as caught:
        nearcast.check(spec(items={"path": "items"}), base=tmp_path)
    said = str(caught.value)
    assert "first: 'b' (items/1.parquet row 1); again: 'b' (items/2.parquet row 1) [duplicate_id]" in said


ELSEWHERE = [
    "s3a://bucket/x",
    "gcs://bucket/x",
    "hdfs://host:8020/x",
    "https://host/x",
    "file:///x",
    "~/x",
    "$HOME/x",
    "${D}/x",
]


@pytest.mark.parametrize("text", ELSEWHERE)
def test_paths_that_nobody_expands_or_fetches_say_what_is_supported(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "items.parquet", IDS, VECTORS)
    np.save(tmp_path / "v.npy", np.array(VECTORS, np.float32))
    words = "is not supported|write the path without|is not expanded|are not expanded"
    file = {"path": "items.parquet"}
    for more, error in (
        ({"items": {"path": text}}, InputError),
        ({"items": {"path": f"{text}/*.parquet"}}, InputError),
        ({"items": {"path": f"{text}.npy", "ids": "ids.npy"}}, InputError),
        ({"items": {"path": "v.npy", "ids": text}}, InputError),
        ({"items": file | {"only": text}}, InputError),
        ({"queries": {"path": text}}, InputError),
        ({"overfetch": {"at_least": 1, "log": text}}, InputError),
        ({"rank": {"model": text, "fetch": 2}}, SpecError),
        ({"out": text}, SpecError),
    ):
        with pytest.raises(error, match=words):
            nearcast.run(spec(**more), base=tmp_path)
    with pytest.raises(InputError, match=words):
        nearcast.head(text)
    with pytest.raises(InputError, match=words):
        nearcast.publish_table("test", "phrases", text, key="key", item="item", store=str(tmp_path / "store"))
    for source in ("ads", "links"):
        tables = {"ads": {"path": "items.parquet"}, "links": {"path": "items.parquet"}} | {source: {"path": text}}
        with pytest.raises(InputError, match=words):
            nearcast.expand({"name": "ads", **tables}, base=tmp_path, store=str(tmp_path / "store"))
    assert {path.name for path in tmp_path.iterdir()} <= {"items.parquet", "v.npy", "nearcast", "store"}


def test_a_folder_that_has_such_a_name_is_read(tmp_path):
    for name in ("~", "$HOME", "s3:"):
        write_parquet(tmp_path / name / "items.parquet", IDS, VECTORS)
        assert open_source(source_spec(f"{name}/items.parquet"), tmp_path).n_rows == 3


SPECIAL = ["pr'ice\"", "", "日本", "a.b", "with space", "x[0]", "path/like", "-", "item.price"]


@pytest.mark.parametrize("name", SPECIAL)
def test_columns_may_have_any_name_also_beside_nested_ones(name, tmp_path):
    nested = pa.array([{"b": 1.0, "price": 2.0}] * 3)
    data = pa.table({"a": nested, "item": nested, "id": IDS, "vector": vector_column(VECTORS), name: [1, 2, 3]})
    pq.write_table(data, tmp_path / "items.parquet")
    source = open_source(source_spec("items.parquet", attributes=(name,)), tmp_path)
    (batch,) = source.batches(vectors=True, attributes=True, memory_bytes=1 << 20)
    assert batch.attributes.to_pydict() == {name: [1, 2, 3]}
    by_name = open_source(source_spec("items.parquet", id=name), tmp_path)
    assert next(by_name.batches(vectors=True, attributes=False, memory_bytes=1 << 20)).ids.to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("place", ["file", "memory"])
@pytest.mark.parametrize(
    "vectors",
    [pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(VECTORS, np.float32)), vector_column(VECTORS)],
    ids=["tensors", "lists"],
)
@pytest.mark.parametrize(
    "ids", [pa.array([1, 2, 3]).dictionary_encode(), pa.array(IDS).dictionary_encode(), pa.array(IDS, pa.string_view())]
)
def test_ids_and_vectors_may_be_encoded_or_of_an_extension_type(ids, vectors, place, tmp_path):
    data = pa.table({"id": ids, "vector": vectors})
    if place == "file":
        pq.write_table(data, tmp_path / "items.parquet")
        source = open_source(source_spec("items.parquet"), tmp_path)
    else:
        source = table_source(source_spec(), data, "items")
    (batch,) = source.batches(vectors=True, attributes=False, memory_bytes=1 << 20)
    assert batch.ids.to_pylist() == ids.to_pylist()
    assert batch.vectors.to_pylist() == VECTORS


@pytest.fixture
def as_nobody():
    """A folder that everybody may enter, and a way to become a user who may not read all that is in it."""

    @contextlib.contextmanager
    def become():
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder), become


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_what_may_not_be_read_is_told_with_its_path(as_nobody):
    base, become = as_nobody
    write_parquet(base / "items" / "1.parquet", IDS, VECTORS)
    write_parquet(base / "closed" / "1.parquet", IDS, VECTORS)
    for name in ("v", "i", "open"):
        np.save(base / f"{name}.npy", np.array(VECTORS, np.float32) if name == "v" else np.arange(3))
    for name in ("items/1.parquet", "closed", "v.npy", "i.npy"):
        os.chmod(base / name, 0)
    cases = [
        ({"path": "items"}, "items/1.parquet"),
        ({"path": "items/*"}, "items/1.parquet"),
        ({"path": "items/1.parquet"}, "items/1.parquet"),
        ({"path": "closed"}, "closed"),
        ({"path": "closed/1.parquet"}, "closed/1.parquet"),
        ({"path": "clos*/*"}, "closed"),
        ({"path": "v.npy", "ids": "open.npy"}, "v.npy"),
        ({"path": "items", "only": "i.npy"}, "i.npy"),
    ]
    for source, path in cases:
        with become(), pytest.raises(InputError) as caught:
            open_source(SourceSpec(**source), base)
        assert str(caught.value).startswith(f"{base / path} may not be read: permission denied"), source


def odd_path(folder, name):
    """A path whose name is not UTF-8, as Python has such names."""
    return folder / os.fsdecode(os.fsencode(name).replace(b"?", b"\xe9"))


def test_logs_and_what_is_written_may_have_names_that_are_not_utf8(tmp_path):
    log, keys = odd_path(tmp_path, "l?g.parquet"), odd_path(tmp_path, "k?ys.parquet")
    with pa.OSFile(os.fsencode(log), "wb") as file:
        pq.write_table(pa.table({"key": ["a", "b"], "item": ["b", "c"]}), file)
    assert nearcast.head(log, to=keys).chosen.keys == 2
    with pa.OSFile(os.fsencode(keys), "rb") as file:
        assert pq.read_table(file)["id"].to_pylist() == ["a", "b"]
    for read in (lambda: nearcast.head(log, key="none"), lambda: nearcast.replay(spec(), tmp_path / "none")):
        with pytest.raises(InputError) as caught:
            read()
        str(caught.value).encode()


def test_a_folder_that_parquet_cannot_be_written_to_is_refused_before_the_work(tmp_path):
    base = odd_path(tmp_path, "f?lder")
    base.mkdir()
    with pytest.raises(SpecError, match=r"out is .*f\\xe9lder.*not UTF-8"):
        nearcast.run(spec(), base=base, items=(IDS, np.array(VECTORS)))
    assert list(base.iterdir()) == []


def test_a_file_of_keys_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "log.parquet")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        nearcast.head(tmp_path / "log.parquet", to=tmp_path / "file" / "keys.parquet")


# --- columns of logs that mean something, in every type that Parquet has ---------------------------------------------

DAY, MOMENT = datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1)
KINDS = {
    "integers": pa.array([1, 2, 3]),
    "beyond int64": pa.array([1, 2**63 + 5, 3], pa.uint64()),
    "negative": pa.array([-1, -2, -3]),
    "text": pa.array(["a", "b", "c"]),
    "floats": pa.array([1.0, 2.0, float("nan")]),
    "infinite": pa.array([float("inf")] * 3),
    "nulls": pa.nulls(3),
    "booleans": pa.array([True, False, None]),
    "dates": pa.array([DAY] * 3),
    "moments": pa.array([MOMENT] * 3),
    "nanoseconds": pa.array([1_767_225_600_000_000_001] * 3, pa.timestamp("ns")),
    "far nanoseconds": pa.array([2**62] * 3, pa.timestamp("ns")),
    "far seconds": pa.array([2**50] * 3, pa.timestamp("s")),
    "zoned": pa.array([MOMENT] * 3, pa.timestamp("us", "Europe/Berlin")),
    "decimals": pa.array([decimal.Decimal("1.5")] * 3),
    "lists": pa.array([["a"], [], None]),
    "lists with null": pa.array([[1, None], [2], None]),
    "structs": pa.array([{"a": 1}] * 3),
    "maps": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"a", b"\xff", b"c"]),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "times of a day": pa.array([datetime.time(1)] * 3),
    "durations": pa.array([datetime.timedelta(1)] * 3),
    "dates as text": pa.array(["2026-01-01"] * 3),
}
WEIGHED = LogColumns("key", "item", "weight", "time", 100.0)
LOG_READERS = {
    "head": (["key", "time", "weight"], lambda path: read_traffic(path, key="key", time="time", count="weight")),
    "replay": (["key", "time", "weight", "engaged", "engaged_ad", "other"], read_log),
    "table": (
        ["key", "item", "time", "weight"],
        lambda p: compute_weights(read_engagement(p, WEIGHED), WEIGHED, "people"),
    ),
    "phrases": (["key", "item"], lambda p: compute_weights(read_engagement(p, WEIGHED), WEIGHED, "phrases")),
    "survival": (["item", "survived"], lambda path: read_counts(path, pa.array(["a", "b"]))),
    "survival of integers": (["item"], lambda path: read_counts(path, pa.array([1, 2]))),
}
LOG = {"key": ["a", "b", "c"], "item": ["a", "b", "c"], "time": [MOMENT] * 3, "weight": [1, 2, 3]}
LOG |= {"survived": [True, False, True], "engaged": ["a", "b", None], "engaged_ad": [1, 2, None], "other": ["x"] * 3}


@pytest.mark.parametrize("reader", LOG_READERS)
def test_a_log_of_any_types_is_read_or_refused_as_an_input(reader, tmp_path):
    columns, read = LOG_READERS[reader]
    read_once = 0
    for column in columns:
        for kind, values in KINDS.items():
            path = tmp_path / "log.parquet"
            pq.write_table(pa.table(LOG | {column: values}), path)
            try:
                read(path)
                read_once += 1
            except InputError:
                continue
            except Exception as error:
                raise AssertionError(f"{column} of {kind}") from error
    assert read_once


@pytest.mark.parametrize("column", ["key", "item", "time", "weight"])
def test_two_columns_of_one_name_in_a_log_are_an_error_in_files_and_in_tables(column, tmp_path):
    twice = pa.Table.from_arrays([*pa.table(LOG).columns, pa.array(LOG[column])], names=[*LOG, column])
    pq.write_table(twice, tmp_path / "log.parquet")
    for read in (
        lambda: read_traffic(tmp_path / "log.parquet"),
        lambda: read_log(tmp_path / "log.parquet"),
        lambda: read_log(twice),
        lambda: compute_weights(twice, WEIGHED, "people"),
        lambda: read_counts(tmp_path / "log.parquet", pa.array(["a"])),
    ):
        with pytest.raises(InputError, match=f"has 2 columns called '{column}'"):
            read()


def test_times_below_a_microsecond_are_times(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(LOG | {"time": KINDS["nanoseconds"]}), path)
    assert [day.name for day in read_traffic(path, time="time").days] == ["2026-01-01"]
    assert len(compute_weights(read_engagement(path, WEIGHED), WEIGHED, "people")) == 3
