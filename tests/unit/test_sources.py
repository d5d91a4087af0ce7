from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import generator, ingested, source_spec, table, vector_column, write_parquet
from nearcast.errors import InputError
from nearcast.files import verify
from nearcast.sources import ids, write_range
from nearcast.sources.ids import argsort_ids, find_positions, read_ids, repeats, shared_positions, write_ids
from nearcast.sources.memory_tables import table_source
from nearcast.sources.open_source import open_source
from nearcast.sources.stage_rows import StageSettings, stage_table

IDS = ["b", "c", "a"]
VECTORS = [[1, 2], [3, 4], [5, 6]]
IN_ID_ORDER = [[5, 6], [1, 2], [3, 4]]


def read(side):
    """(ids, vectors) of an ingested side, as plain lists."""
    return side.ids.to_pylist(), side.vectors.read(0, side.vectors.n).tolist()


def attributes_of(side):
    return pa.concat_tables([pq.read_table(path) for path in sorted(side.attributes.glob("*.parquet"))])


def from_table(data, tmp_path, **settings):
    return ingested(table_source(source_spec(**settings), data, "items"), tmp_path / "side")


def from_path(path, tmp_path, **settings):
    return ingested(open_source(source_spec(path, **settings), tmp_path), tmp_path / "side")


@pytest.mark.parametrize("kind", ["fixed_size_list", "list", "large_list"])
@pytest.mark.parametrize(
    ("element", "kept_as"),
    [
        (pa.float16(), "float16"),
        (pa.float32(), "float32"),
        (pa.float64(), "float32"),
        (pa.int8(), "int8"),
        (pa.uint8(), "uint8"),
    ],
)
@pytest.mark.parametrize("place", ["file", "memory"])
def test_lists_of_every_kind_come_out_as_the_same_vectors(kind, element, kept_as, place, tmp_path):
    vectors = np.array(VECTORS, "float16").tolist() if element != pa.float16() else list(np.array(VECTORS, "float16"))
    if pa.types.is_integer(element):
        vectors = VECTORS
    if place == "file":
        write_parquet(tmp_path / "items.parquet", IDS, vectors, kind=kind, element=element)
        side = from_path("items.parquet", tmp_path)
    else:
        side = from_table(table(IDS, vectors, kind=kind, element=element), tmp_path)
    assert read(side) == (["a", "b", "c"], IN_ID_ORDER)
    assert side.vectors.dtype.name == kept_as


def test_a_folder_is_all_its_parquet_files_save_for_the_hidden_ones(tmp_path):
    write_parquet(tmp_path / "items" / "2.parquet", ["d"], [[7, 8]])
    write_parquet(tmp_path / "items" / "deep" / "1.parquet", IDS, VECTORS)
    write_parquet(tmp_path / "items" / "_temporary.parquet", ["x"], [[0, 0]])
    write_parquet(tmp_path / "items" / ".hidden.parquet", ["y"], [[0, 0]])
    (tmp_path / "items" / "_SUCCESS").write_text("")
    assert read(from_path("items", tmp_path)) == (["a", "b", "c", "d"], [*IN_ID_ORDER, [7, 8]])


def test_a_glob_takes_the_files_that_it_names(tmp_path):
    write_parquet(tmp_path / "day=1" / "items.parquet", ["b"], [[1, 2]])
    write_parquet(tmp_path / "day=2" / "items.parquet", ["a"], [[3, 4]])
    write_parquet(tmp_path / "day=2" / "other.parquet", ["x"], [[0, 0]])
    assert read(from_path("*/items.parquet", tmp_path)) == (["a", "b"], [[3, 4], [1, 2]])
    assert read(from_path("**/items.parquet", tmp_path)) == (["a", "b"], [[3, 4], [1, 2]])


def test_an_absolute_path_is_taken_as_it_is(tmp_path):
    path = write_parquet(tmp_path / "elsewhere" / "items.parquet", IDS, VECTORS)
    assert read(from_path(path.absolute(), tmp_path / "base"))[0] == ["a", "b", "c"]


def test_id_and_vector_columns_may_have_any_name(tmp_path):
    data = table(IDS, VECTORS).rename_columns(["product key", "item.embedding"])
    pq.write_table(data, tmp_path / "items.parquet")
    names = {"id": "product key", "vector": "item.embedding"}
    assert read(from_path("items.parquet", tmp_path, **names)) == (["a", "b", "c"], IN_ID_ORDER)
    assert read(from_table(data, tmp_path, **names)) == (["a", "b", "c"], IN_ID_ORDER)


def save_ids(path, ids):
    if path.suffix == ".npy":
        np.save(path, np.array(ids))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    else:
        pq.write_table(pa.table({"id": ids}), path)
    return path.name


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8"])
def test_npy_vectors_take_their_ids_from_a_file_beside_them(suffix, dtype, tmp_path):
    np.save(tmp_path / "vectors.npy", np.array(VECTORS, dtype))
    ids = save_ids(tmp_path / f"ids{suffix}", ["b", "ü", "a"])
    side = from_path("vectors.npy", tmp_path, ids=ids)
    assert read(side) == (["a", "b", "ü"], IN_ID_ORDER)
    assert side.vectors.dtype.name == ("float32" if dtype == "float64" else dtype)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_npy_vectors_may_have_integer_ids(suffix, tmp_path):
    np.save(tmp_path / "vectors.npy", np.array(VECTORS, "float32"))
    ids = save_ids(tmp_path / f"ids{suffix}", [10, 9, -1])
    assert read(from_path("vectors.npy", tmp_path, ids=ids)) == ([-1, 9, 10], [[5, 6], [3, 4], [1, 2]])


def test_npy_vectors_may_be_in_fortran_order(tmp_path):
    np.save(tmp_path / "vectors.npy", np.asfortranarray(np.array(VECTORS, "float32")))
    ids = save_ids(tmp_path / "ids.txt", IDS)
    assert read(from_path("vectors.npy", tmp_path, ids=ids)) == (["a", "b", "c"], IN_ID_ORDER)


def test_npy_vectors_may_have_been_written_on_a_machine_of_the_other_byte_order(tmp_path):
    np.save(tmp_path / "vectors.npy", np.array(VECTORS, ">f4"))
    ids = save_ids(tmp_path / "ids.txt", IDS)
    assert read(from_path("vectors.npy", tmp_path, ids=ids)) == (["a", "b", "c"], IN_ID_ORDER)


def test_attributes_of_npy_vectors_are_in_the_parquet_file_of_their_ids(tmp_path):
    np.save(tmp_path / "vectors.npy", np.array(VECTORS, "float32"))
    pq.write_table(pa.table({"id": IDS, "name": ["Bread", "Cheese", "Apple"]}), tmp_path / "ids.parquet")
    side = from_path("vectors.npy", tmp_path, ids="ids.parquet", display=("name",))
    assert attributes_of(side).to_pydict() == {"id": ["a", "b", "c"], "name": ["Apple", "Bread", "Cheese"]}


@pytest.mark.parametrize(
    "ids",
    [IDS, np.array(IDS), np.array(IDS, object), np.array(IDS, "S1"), np.array(IDS, np.dtypes.StringDType())],
    ids=["list", "unicode", "object", "bytes", "StringDType"],
)
def test_a_pair_of_arrays_is_a_table(ids, tmp_path):
    assert read(from_table((ids, np.array(VECTORS, "float32")), tmp_path)) == (["a", "b", "c"], IN_ID_ORDER)


def test_a_pair_may_hold_integer_ids_and_vectors_of_any_layout(tmp_path):
    vectors = np.array(VECTORS, "float64")
    for given in (vectors, np.asfortranarray(vectors), vectors.tolist(), np.repeat(vectors, 2, axis=0)[::2]):
        assert read(from_table((np.array([2, 3, 1]), given), tmp_path)) == ([1, 2, 3], IN_ID_ORDER)


@pytest.mark.parametrize(
    "frame",
    [
        lambda: pd.DataFrame({"id": IDS, "vector": VECTORS, "name": ["B", "C", "A"]}),
        lambda: pd.DataFrame(
            {"id": IDS, "vector": list(np.array(VECTORS, "float32")), "name": ["B", "C", "A"]}, index=[7, 7, 9]
        ),
        lambda: pl.DataFrame(
            {"id": IDS, "vector": VECTORS, "name": ["B", "C", "A"]}, schema_overrides={"vector": pl.List(pl.Float32)}
        ),
        lambda: pl.DataFrame(
            {"id": IDS, "vector": np.array(VECTORS, "float32"), "name": ["B", "C", "A"]},
        ),
        lambda: table(IDS, VECTORS, name=["B", "C", "A"]),
        lambda: table(IDS, VECTORS, name=["B", "C", "A"]).to_reader().read_all(),
        lambda: pa.RecordBatch.from_pydict({"id": IDS, "vector": vector_column(VECTORS), "name": ["B", "C", "A"]}),
        lambda: pa.concat_tables(
            [table(IDS[:1], VECTORS[:1], name=["B"]), table(IDS[1:], VECTORS[1:], name=["C", "A"])]
        ),
    ],
    ids=["pandas", "pandas of arrays", "polars", "polars Array", "arrow", "reader", "record batch", "chunks"],
)
def test_tables_of_every_library_are_read_with_their_attributes(frame, tmp_path):
    data = frame()
    if isinstance(data, pd.DataFrame) and isinstance(data["vector"].iloc[0], list):
        data["vector"] = [[float(x) for x in v] for v in data["vector"]]  # lists of ints are int64 and refused
    side = from_table(data, tmp_path, attributes=("name",))
    assert read(side) == (["a", "b", "c"], IN_ID_ORDER)
    assert attributes_of(side).column("name").to_pylist() == ["A", "B", "C"]


def test_a_table_of_an_unknown_kind_is_refused_with_the_kinds_that_work():
    with pytest.raises(InputError, match="items is a dict; give an Arrow, pandas or polars table"):
        table_source(source_spec(), {"id": [1]}, "items")


@pytest.mark.parametrize("kind", ["fixed_size_list", "list", "large_list"])
def test_a_sliced_table_is_only_its_slice(kind, tmp_path):
    whole = table(["x", *IDS, "y"], [[9, 9], *VECTORS, [9, 9]], kind=kind, name=["X", "B", "C", "A", "Y"])
    side = from_table(whole.slice(1, 3), tmp_path, attributes=("name",))
    assert read(side) == (["a", "b", "c"], IN_ID_ORDER)
    assert attributes_of(side).column("name").to_pylist() == ["A", "B", "C"]


@pytest.mark.parametrize("kind", ["fixed_size_list", "list", "large_list"])
def test_nulls_before_a_slice_do_not_move_its_vectors(kind, tmp_path):
    whole = table(["x", "y", *IDS], [None, [9, 9], *VECTORS], kind=kind)
    assert read(from_table(whole.slice(2), tmp_path)) == (["a", "b", "c"], IN_ID_ORDER)
    spec = generator(checks={"null_vector": "drop"})
    dropped = ingested(table_source(source_spec(), whole, "items"), tmp_path / "side", spec=spec)
    assert read(dropped) == (["a", "b", "c", "y"], [*IN_ID_ORDER, [9, 9]])


def test_several_chunks_row_groups_and_files_are_one_set(tmp_path):
    ids, vectors = [f"{i:03d}" for i in range(100)], [[float(i), 1.0] for i in range(100)]
    chunks = pa.concat_tables([table(ids[i : i + 7], vectors[i : i + 7]) for i in range(0, 100, 7)])
    write_parquet(tmp_path / "parts" / "1.parquet", ids[50:], vectors[50:], row_group_size=3)
    write_parquet(tmp_path / "parts" / "2.parquet", ids[:50], vectors[:50], row_group_size=11)
    assert read(from_table(chunks, tmp_path)) == (ids, vectors)
    assert read(from_path("parts", tmp_path)) == (ids, vectors)


def test_files_that_keep_vectors_differently_are_kept_as_float32_together(tmp_path):
    write_parquet(tmp_path / "parts" / "1.parquet", ["b"], [[1, 2]], element=pa.int8(), kind="fixed_size_list")
    write_parquet(tmp_path / "parts" / "2.parquet", ["a"], [[0.5, 4]], element=pa.float64(), kind="large_list")
    side = from_path("parts", tmp_path)
    assert read(side) == (["a", "b"], [[0.5, 4], [1, 2]])
    assert side.vectors.dtype.name == "float32"


@pytest.mark.parametrize("value", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("place", ["file", "memory"])
def test_ids_may_be_dictionary_encoded(value, place, tmp_path):
    ids = pa.array(IDS, value).dictionary_encode()
    if place == "file":
        write_parquet(tmp_path / "items.parquet", ids, VECTORS)
        side = from_path("items.parquet", tmp_path)
    else:
        side = from_table(table(ids, VECTORS), tmp_path)
    assert read(side) == (["a", "b", "c"], IN_ID_ORDER)


def test_ids_of_a_pandas_or_polars_category_are_strings(tmp_path):
    frame = pd.DataFrame({"id": pd.Categorical(IDS), "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    assert read(from_table(frame, tmp_path)) == (["a", "b", "c"], IN_ID_ORDER)
    frame = pl.DataFrame({"id": pl.Series(IDS, dtype=pl.Categorical), "vector": frame["vector"].to_list()})
    assert read(from_table(frame, tmp_path)) == (["a", "b", "c"], IN_ID_ORDER)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_ids_may_be_strings_of_every_arrow_kind(kind, tmp_path):
    assert read(from_table(table(pa.array(IDS, kind), VECTORS), tmp_path)) == (["a", "b", "c"], IN_ID_ORDER)


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_ids_may_be_integers_of_every_width(kind, tmp_path):
    ids = pa.array([2, 100, 1], getattr(pa, kind)())
    side = from_table(table(ids, VECTORS), tmp_path)
    assert read(side) == ([1, 2, 100], IN_ID_ORDER)
    assert side.ids.type == pa.int64()


def test_integers_that_int64_does_not_hold_are_refused_with_the_way_out(tmp_path):
    ids = pa.array([1, 2**63, 3], pa.uint64())
    with pytest.raises(InputError, match=r"items: ids do not fit int64 .*9223372036854775808.*store them as strings"):
        from_table(table(ids, VECTORS), tmp_path)


def test_the_largest_and_smallest_integers_are_ids_like_any_other(tmp_path):
    ids = [2**63 - 1, -(2**63), 0]
    assert read(from_table(table(ids, VECTORS), tmp_path)) == (sorted(ids), [[3, 4], [5, 6], [1, 2]])


def test_string_ids_are_in_the_order_of_their_utf8_bytes(tmp_path):
    ids = ["ä", "z", "Z", "10", "9", "", "é", "a b", "日", "𝄞", "ﬀ", "a"]
    side = from_table(table(ids, [[float(i), 0] for i in range(len(ids))]), tmp_path)
    expected = sorted(ids, key=lambda text: text.encode())
    assert side.ids.to_pylist() == expected
    assert side.vectors.read(0, len(ids))[:, 0].tolist() == [ids.index(name) for name in expected]
    assert expected.index("ﬀ") < expected.index("𝄞")  # UTF-16 would have them the other way round


def test_integer_ids_are_in_the_order_of_numbers_and_not_of_their_digits(tmp_path):
    assert read(from_table(table([10, 9, -5], VECTORS), tmp_path))[0] == [-5, 9, 10]


def random_table(n=500, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"key-{i}" for i in rng.permutation(n)]
    return table(
        ids,
        rng.normal(size=(n, 6)).astype(np.float32).tolist(),
        name=[f"name of {i}" for i in ids],
        price=[None if i % 7 == 0 else i / 8 for i in range(n)],
        tags=[[f"tag {i}"] * (i % 3) for i in range(n)],
        shop=pa.array([f"shop {i % 3}" for i in range(n)]).dictionary_encode(),
    )


COLUMNS = {"attributes": ("name", "price", "tags"), "display": ("shop",)}


@pytest.mark.parametrize(("rows", "memory_bytes"), [(20, 1), (60, 2_000), (500, 50_000), (500, 1 << 26)])
def test_attributes_stay_beside_their_ids_however_many_passes_it_takes(rows, memory_bytes, tmp_path):
    data = random_table(rows)
    side = ingested(table_source(source_spec(**COLUMNS), data, "items"), tmp_path / "side", memory_bytes=memory_bytes)
    expected = sorted(data.drop(["vector"]).to_pylist(), key=lambda row: row["id"])
    assert attributes_of(side).select(["id", "name", "price", "tags", "shop"]).to_pylist() == expected
    by_id = dict(zip(data["id"].to_pylist(), data["vector"].to_pylist(), strict=True))
    assert read(side) == ([row["id"] for row in expected], [by_id[row["id"]] for row in expected])


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("rows", "memory_bytes"), [(20, 1), (300, 4_000), (500, 100_000)])
def test_vectors_and_ids_have_the_same_bytes_under_a_tiny_and_a_large_budget(rows, memory_bytes, tmp_path, monkeypatch):
    pq.write_table(random_table(rows), tmp_path / "items.parquet", row_group_size=37)
    source = open_source(source_spec(), tmp_path)
    large = contents(ingested(source, tmp_path / "large").folder)
    monkeypatch.setattr(ids, "COMPARED_BYTES", 100)  # of ids, which are put in order in blocks
    monkeypatch.setattr(ids, "LONG_ID_BYTES", 0)
    monkeypatch.setattr(write_range, "LONG_IDS_BYTES", 100)
    small = contents(ingested(source, tmp_path / "small", memory_bytes=memory_bytes).folder)
    for name in ("vectors.npy", "ids.arrow", "listed.arrow"):
        assert small[name] == large[name], name


def test_attributes_have_the_same_bytes_under_a_tiny_and_a_large_budget(tmp_path):
    pq.write_table(random_table(100), tmp_path / "items.parquet", row_group_size=37)
    source = open_source(source_spec(**COLUMNS), tmp_path)
    large = contents(ingested(source, tmp_path / "large").folder)
    small = contents(ingested(source, tmp_path / "small", memory_bytes=20_000).folder)
    assert sorted(small) == sorted(large)
    assert small == large


def test_the_order_of_the_rows_does_not_change_what_is_ingested(tmp_path):
    data = random_table()
    shuffled = data.take(np.random.default_rng(1).permutation(len(data)))
    first, second = (
        ingested(table_source(source_spec(**COLUMNS), rows, "items"), tmp_path / name)
        for name, rows in (("one", data), ("other", shuffled))
    )
    assert read(first) == read(second)
    assert attributes_of(first).drop(["shop"]) == attributes_of(second).drop(["shop"])


def test_attributes_keep_their_types_from_several_files(tmp_path):
    write_parquet(tmp_path / "parts" / "1.parquet", ["b"], [[1, 2]], size=pa.array([1], pa.int32()))
    write_parquet(tmp_path / "parts" / "2.parquet", ["a"], [[3, 4]], size=pa.array([2], pa.int64()))
    side = from_path("parts", tmp_path, attributes=("size",))
    assert attributes_of(side).to_pydict() == {"id": ["a", "b"], "size": [2, 1]}


def test_attributes_whose_types_do_not_go_together_are_refused(tmp_path):
    write_parquet(tmp_path / "parts" / "1.parquet", ["b"], [[1, 2]], size=[1])
    write_parquet(tmp_path / "parts" / "2.parquet", ["a"], [[3, 4]], size=["large"])
    with pytest.raises(InputError, match="size"):
        from_path("parts", tmp_path, attributes=("size",))


def test_columns_that_are_not_asked_for_are_not_kept(tmp_path):
    side = from_table(table(IDS, VECTORS, name=["B", "C", "A"], secret=[1, 2, 3]), tmp_path, attributes=("name",))
    assert attributes_of(side).column_names == ["id", "name"]


def test_an_ingested_side_is_done_and_undamaged(tmp_path):
    side = from_table(table(IDS, VECTORS), tmp_path)
    assert set(verify(side.folder, contents=True)["files"]) >= {"vectors.npy", "ids.arrow", "listed.arrow"}


def test_equal_rows_have_equal_digests_and_a_changed_one_has_another(tmp_path):
    source = source_spec(attributes=("name",))
    digests = [
        table_source(source, table(IDS, vectors, name=names), "items").digests()[0]["blake2b"]
        for vectors, names in ((VECTORS, "BCA"), (VECTORS, "BCA"), ([[1, 2], [3, 4], [5, 7]], "BCA"), (VECTORS, "BCD"))
        for names in [list(names)]
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_digest_of_a_table_does_not_depend_on_its_chunks_or_its_slice():
    whole = table(["x", *IDS], [[0, 0], *VECTORS])
    chunked = pa.concat_tables([table(IDS[:2], VECTORS[:2]), table(IDS[2:], VECTORS[2:])])
    prints = {
        table_source(source_spec(), data, "items").digests()[0]["blake2b"]
        for data in (table(IDS, VECTORS), chunked, whole.slice(1))
    }
    assert len(prints) == 1


def test_digests_of_files_name_them_relative_to_the_spec(tmp_path):
    write_parquet(tmp_path / "parts" / "1.parquet", IDS, VECTORS)
    digest = open_source(source_spec("parts"), tmp_path).digests()[0]
    assert digest["name"] == "parts/1.parquet"
    assert digest["bytes"] == (tmp_path / "parts" / "1.parquet").stat().st_size


def test_a_table_is_read_in_small_batches_under_a_small_budget(tmp_path):
    source = table_source(source_spec(), random_table(50), "items")
    told = []
    staged = stage_table(source, generator(), StageSettings(1), "items", lambda *p: told.append(p))
    assert told[-1] == ("check items", 50, 50)
    assert len(told) == 50
    assert staged.facts.dim == 6


def test_ids_are_found_at_their_positions():
    ids = pa.array(["a", "b", "c"], pa.large_string())
    assert find_positions(pa.array(["c", "x", "a"]), ids).tolist() == [2, -1, 0]
    assert shared_positions(pa.array([1, 2]), ids).tolist() == [-1, -1]
    assert shared_positions(pa.array(["b"], pa.large_string()), ids).tolist() == [1]


def test_equal_ids_keep_the_order_of_their_rows_and_nulls_go_last():
    ids = pa.array(["b", None, "a", "b", None, "a"], pa.large_string())
    order = argsort_ids(ids)
    assert order.tolist() == [2, 5, 0, 3, 1, 4]
    assert repeats(ids, order).tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize("ids", [pa.array([], pa.int64()), pa.array(["ü", "b"], pa.large_string())])
def test_ids_are_read_back_as_written(ids, tmp_path):
    write_ids(tmp_path / "ids.arrow", ids)
    assert read_ids(tmp_path / "ids.arrow").equals(ids)
