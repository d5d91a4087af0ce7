"""Labels in files and in memory: what is read, what is left out, and what is refused."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nearcast.errors import InputError, SpecError
from nearcast.evaluation import label_set
from nearcast.evaluation.judge_snapshot import refuse_learning_from
from nearcast.evaluation.label_set import LabelSet, read_labels
from nearcast.evaluation.label_table import open_label_table
from nearcast.evaluation.popular_items import find_popular
from nearcast.settings.label_tables import LabelsSpec, parse_metric

CLICKS = {
    "query": ["a", "a", "b", "c", None, "d"],
    "item": ["x", "y", "x", "z", "x", None],
    "grade": [2.0, 1, 0, 3, 1, 1],
}


def read(data: object, base: Path | None = None, slices: tuple[str, ...] = (), **settings: Any) -> LabelSet:
    return read_labels(open_label_table(data, base or Path()), LabelsSpec(path="labels", **settings), slices)


def pairs(labels: LabelSet) -> list[tuple[object, object, float]]:
    queries, items = labels.queries.to_pylist(), labels.item_ids.to_pylist()
    rows = zip(labels.owners.tolist(), labels.items.tolist(), labels.grades.tolist(), strict=True)
    return [(queries[q], items[i], grade) for q, i, grade in rows]


EXPECTED = [("a", "x", 2.0), ("a", "y", 1.0), ("c", "z", 3.0)]


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv", "tsv", "csv.gz", "arrow", "pandas", "polars"])
def test_labels_are_the_same_from_every_kind_of_table(kind: str, tmp_path: Path) -> None:
    table = pa.table(CLICKS)
    lines = ["query,item,grade", "a,x,2", 'a,"y",1', "b,x,0", "c,z,3.0", ",x,1", "d,,1"]
    data: object = {"arrow": table, "pandas": table.to_pandas(), "polars": pl.from_arrow(table)}.get(kind)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "labels.parquet")
        data = "labels.parquet"
    elif kind == "folder":
        (tmp_path / "labels").mkdir()
        pq.write_table(table.slice(0, 3), tmp_path / "labels" / "1.parquet")
        pq.write_table(table.slice(3), tmp_path / "labels" / "2.parquet")
        data = "labels"
    elif kind in ("csv", "tsv", "csv.gz"):
        text = "\n".join(lines).replace(",", "\t" if kind == "tsv" else ",")
        packed = gzip.compress(text.encode()) if kind == "csv.gz" else text.encode()
        (tmp_path / f"labels.{kind}").write_bytes(packed)
        data = f"labels.{kind}"
    labels = read(data, tmp_path, grade="grade")
    assert pairs(labels) == EXPECTED
    counts = labels.counts
    assert (counts.rows, counts.without_id, counts.queries, counts.queries_without_relevant) == (6, 2, 2, 1)
    assert (counts.not_relevant, counts.pairs, counts.sampled) == (1, 3, 1.0)


def test_ids_in_csv_stay_text_so_that_007_and_na_are_ids(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("query,item\n007,NA\n7,null\n")
    assert pairs(read("l.csv", tmp_path)) == [("007", "NA", 1.0), ("7", "null", 1.0)]


def test_a_repeated_pair_counts_once_with_its_highest_grade() -> None:
    table = pa.table({"query": [1, 1, 1], "item": [5, 5, 6], "grade": [1, 4, 2]})
    labels = read(table, grade="grade")
    assert pairs(labels) == [(1, 5, 4.0), (1, 6, 2.0)]
    assert labels.counts.repeated == 1


def test_a_grade_below_that_of_a_relevant_item_still_has_gain() -> None:
    table = pa.table({"query": ["a", "a", "b"], "item": ["x", "y", "x"], "grade": [3, 1, 1]})
    labels = read(table, grade="grade", relevant=2.0)
    assert pairs(labels) == [("a", "x", 3.0), ("a", "y", 1.0)]
    assert labels.relevant.tolist() == [True, False]
    assert labels.counts.queries_without_relevant == 1


@pytest.mark.parametrize(("grade", "word"), [(float("nan"), "nan"), (None, "None"), (float("inf"), "inf")])
def test_a_grade_that_is_no_number_is_refused_with_its_row(grade: float | None, word: str) -> None:
    with pytest.raises(InputError, match=f"grade of row 2 is {word}"):
        read(pa.table({"query": ["a", "b"], "item": ["x", "y"], "grade": pa.array([1.0, grade])}), grade="grade")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"query": [], "item": []}, "holds no label"),
        ({"query": [None], "item": ["x"]}, "none with a query and an item"),
        ({"query": [1.5], "item": ["x"]}, "ids in 'query' are double"),
        ({"query": ["a"], "item": [True]}, "ids in 'item' are bool"),
        ({"query": ["a"], "thing": ["x"]}, "no column 'item'; its columns are query, thing"),
        ({"query": ["a"], "item": ["x"], "grade": ["good"]}, "grades are numbers"),
        ({"query": ["a"], "item": ["x"], "grade": [0]}, "no grade is above 0"),
        ({"query": ["a"], "item": ["x"], "grade": [-1]}, "no grade is above 0"),
        ({"query": ["a", "a"], "item": ["x", "y"], "grade": [1.0, 1e308]}, "grade of row 2 is 1e\\+308"),
        ({"query": ["a"], "item": ["x"], "grade": [5e-324]}, "grade of row 1 is 5e-324; grades are 0, or between"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_in_words(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(pa.table(columns), grade="grade" if "grade" in columns else None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not a readable CSV"),
        (b"query,item\n", "holds no label"),
        (b"query,item\na,x,1\n", "not a readable CSV"),
        (b"query,item,item\na,x,y\n", "2 columns called 'item'"),
        (b"query,item\n\xff\xfe,x\n", "not a readable CSV"),
        (b"query,item,grade\na,x,good\n", "not a readable CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_words(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(text)
    with pytest.raises(InputError, match=words):
        read("l.csv", tmp_path, grade="grade" if b"grade" in text else None)


def test_files_with_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["a"], "item": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"query": [1], "item": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match="incompatible"):
        read(str(tmp_path))


def test_missing_and_broken_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(InputError, match="check the path"):
            read(name, tmp_path)
    (tmp_path / "l.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"l\.parquet"):
        read("l.parquet", tmp_path)
    (tmp_path / "l.txt").write_text("query,item\na,x\n")
    with pytest.raises(InputError, match=r"l\.txt is not a readable Parquet.*ends in \.csv or \.tsv"):
        read("l.txt", tmp_path)
    with pytest.raises(InputError, match="give a path"):
        read(42)


def test_a_csv_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("query,item\n" + "a,x\n" * 2_000_000)
    batches = open_label_table("l.csv", tmp_path).batches(["query", "item"])
    next(batches)
    writer = threading.Thread(target=lambda: path.write_text("query,item\nb,y\n"))
    writer.start()
    writer.join()
    with pytest.raises(InputError, match="changed while it was read"):
        for _ in batches:
            pass


def test_of_more_labels_than_max_rows_whole_queries_are_sampled_the_same_each_time() -> None:
    rng = np.random.default_rng(2)
    queries = rng.integers(0, 3000, 30_000)
    table = pa.table({"query": queries, "item": rng.integers(0, 10_000, 30_000)})
    everything = read(table, max_rows=100_000)
    sample = read(table, max_rows=5000)
    assert 3000 < len(sample.items) <= 5000
    assert 0 < sample.counts.sampled < 0.3
    assert sample.counts.rows == 30_000
    kept = set(sample.queries.to_pylist())
    assert pairs(sample) == [row for row in pairs(everything) if row[0] in kept]
    shuffled = table.take(pa.array(rng.permutation(30_000)))
    assert sorted(pairs(read(shuffled, max_rows=5000))) == sorted(pairs(sample))
    assert len(kept) == pytest.approx(sample.counts.sampled * 3000, rel=0.3)


def test_the_sample_holds_while_labels_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    texts = [f"user-{n}" for n in rng.integers(0, 4000, 400_000)]
    table = pa.table({"query": texts, "item": rng.integers(0, 100_000, 400_000)})
    seen: list[int] = []
    real = label_set._drop_repeated
    monkeypatch.setattr(label_set, "_drop_repeated", lambda rows, names: seen.append(len(rows)) or real(rows, names))
    sample = read(table, max_rows=10_000)
    assert len(seen) > 2  # cut on the way, not at the end alone
    assert max(seen) < 200_000
    everything = read(table, max_rows=1_000_000)
    kept = set(sample.queries.to_pylist())
    assert pairs(sample) == [row for row in pairs(everything) if row[0] in kept]


def test_a_slice_value_is_that_of_all_labels_of_a_query_or_several() -> None:
    table = pa.table(
        {
            "query": ["a", "a", "b", "b", "c", "d"],
            "item": ["x", "y", "x", "y", "x", "x"],
            "device": ["phone", "phone", "phone", "desk", None, "desk"],
        }
    )
    codes, values = read(table, slices=("device",)).slices["device"]
    words = {-1: None, -2: "several"}
    assert [words.get(c, values[c].as_py() if c >= 0 else None) for c in codes.tolist()] == [
        "phone",
        "several",
        None,
        "desk",
    ]


def test_popular_items_with_ids_beyond_64_bits_are_refused_in_words() -> None:
    log = open_label_table(pa.table({"item": pa.array([2**63 + 5], pa.uint64())}), Path())
    with pytest.raises(InputError, match="the column 'item' of type uint64 cannot be int64"):
        find_popular(log, "item", None, 3)  # type: ignore[arg-type]


def test_a_pandas_frame_with_an_index_is_read_by_its_columns() -> None:
    frame = pd.DataFrame({"query": [3], "item": [4]}, index=[9])
    assert pairs(read(frame)) == [(3, 4, 1.0)]


def test_a_file_of_the_labels_that_lists_are_made_of_is_refused_by_its_contents() -> None:
    labels = [{"name": "clicks.parquet", "blake2b": "1"}, {"name": "b.parquet", "blake2b": "2"}]
    refuse_learning_from(labels, {"items": [{"name": "items.parquet", "blake2b": "3"}]})
    with pytest.raises(SpecError, match=r"copy\.parquet of items has the contents of b\.parquet of the labels"):
        refuse_learning_from(labels, {"items": [{"name": "copy.parquet", "blake2b": "2"}]})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hitrate@10", "hit_rate_at_10"),
        ("ndgc_at_5", "ndcg_at_5"),
        ("recall", "recall_at_10"),
        ("map_at_0", "hit_rate"),
    ],
)
def test_a_metric_that_is_none_is_refused_with_the_likely_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_metric(name)
