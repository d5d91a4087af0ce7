"""`nearcast.spark.knn_join` on a real cluster, in a classic session and through Spark Connect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_run import write_inputs

import nearcast

TESTS = Path(__file__).resolve().parents[1]

SCRIPT = """
import json, sys
from pathlib import Path
from pyspark.sql import SparkSession
import nearcast.spark
from nearcast.errors import InputError, MissingExtraError, SpecError

url, conf, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
builder = SparkSession.builder.remote(url) if url.startswith("sc:") else SparkSession.builder.master(url)
for key, value in conf.items():
    builder = builder.config(key, value)
session = builder.getOrCreate()
queries, items = (session.read.parquet((folder / f"{name}.parquet").as_uri()) for name in ("queries", "items"))
told = {"connect": type(session).__module__}

plain = nearcast.spark.knn_join(queries, items, k=5, metric="l2", work=folder / "work")
told["columns"] = plain.dtypes
told["plain"] = [list(row) for row in plain.orderBy("query_id", "rank").limit(500).collect()]
told["rows"] = plain.count()
ruled = nearcast.spark.knn_join(
    queries, items, k=5, metric="l2", recall=0.9, keep="item.country == query.country", work=folder / "work",
    settings={"caps": [{"by": "brand", "max_per_list": 2}]},
)
told["ruled"] = [list(row) for row in ruled.orderBy("query_id", "rank").limit(500).collect()]
files = (path.relative_to(folder / "work") for path in (folder / "work").rglob("*") if path.is_file())
told["left"] = sorted({path.parts[1] for path in files})
for name, call in {
    "type": lambda: nearcast.spark.knn_join(queries, items, k=5, vector="brand", work=folder / "work"),
    "column": lambda: nearcast.spark.knn_join(queries, items, k=5, id="key", work=folder / "work"),
    "twice": lambda: nearcast.spark.knn_join(queries, items, k=5, settings={"k": 7}, work=folder / "work"),
    "metric": lambda: nearcast.spark.knn_join(queries, items, k=5, metric="hamming", work=folder / "work"),
    "connector": lambda: nearcast.spark.knn_join(queries, items, k=5, work="s3://bucket/joined"),
}.items():
    try:
        call()
    except (InputError, MissingExtraError, SpecError) as error:
        told[name] = f"{type(error).__name__}: {error}"
print("TOLD" + json.dumps(told))
session.stop()
"""


@pytest.fixture(scope="module", params=[pytest.param("classic", marks=pytest.mark.slow), "connect"])
def told(request, spark_cluster, tmp_path_factory):
    """What the script has seen; it runs in a process of its own, since one process has one kind of session."""
    folder = tmp_path_factory.mktemp(request.param)
    write_inputs(folder)
    url = spark_cluster.start_connect() if request.param == "connect" else spark_cluster.url
    conf = {} if request.param == "connect" else spark_cluster.conf()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, url, json.dumps(conf), str(folder)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.rpartition("TOLD")[2])
    assert ("connect" in seen["connect"]) == (request.param == "connect")
    return folder, seen


def vectors_of(folder, name):
    table = pq.read_table(folder / f"{name}.parquet")
    return table["id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32), table.to_pydict()


def test_the_lists_are_those_of_the_reference_one_row_for_each_candidate(told):
    folder, seen = told
    query_ids, queries, _ = vectors_of(folder, "queries")
    item_ids, items, _ = vectors_of(folder, "items")
    assert seen["columns"] == [["query_id", "string"], ["rank", "int"], ["candidate_id", "string"], ["score", "float"]]
    assert seen["rows"] == 5 * len(queries)
    exact = nearcast.knn_join(queries[:100], items, k=5, metric="l2", engine="exact")
    assert [(row[0], row[1], row[2]) for row in seen["plain"]] == [
        (query_ids[query], rank + 1, item_ids[exact.positions[query, rank]])
        for query in range(100)
        for rank in range(5)
    ]
    assert np.array_equal(np.array([row[3] for row in seen["plain"]], np.float32), exact.scores.ravel())


def test_rules_and_caps_read_the_other_columns(told):
    folder, seen = told
    queries, items = (vectors_of(folder, name)[2] for name in ("queries", "items"))
    country_of_query = dict(zip(queries["id"], queries["country"], strict=True))
    item_of = {key: (items["country"][row], items["brand"][row]) for row, key in enumerate(items["id"])}
    brands: dict[str, list[str]] = {}
    for query, _, item, _ in seen["ruled"]:
        assert item_of[item][0] == country_of_query[query]
        brands.setdefault(query, []).append(item_of[item][1])
    assert len(brands) == 100
    assert all(names.count(name) <= 2 for names in brands.values() for name in names)


def test_only_the_result_is_left_in_the_work_location(told):
    assert told[1]["left"] == ["out"]


def test_wrong_arguments_say_what_to_pass(told):
    seen = told[1]
    assert seen["type"].startswith(
        "InputError: column 'brand' of queries_df must be an array of float or double, got str"
    )
    assert seen["column"].startswith("InputError: queries_df has no column 'key', its columns are id, vector, country,")
    assert seen["twice"] == "SpecError: settings has k, which knn_join sets itself; use its arguments"
    assert seen["metric"].startswith("SpecError: ")


def test_a_session_without_a_connector_for_the_storage_is_an_error_that_names_it(told):
    assert told[1]["connector"].startswith("MissingExtraError: Spark cannot write to s3a://bucket/joined/knn-join-")
    assert "S3AFileSystem not found; start the session with the connector" in told[1]["connector"]
