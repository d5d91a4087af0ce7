"""`nearcast.spark.knn_join`: join two Spark DataFrames, as a run on Spark.

Spark writes both sides to the work location as Parquet, the run reads them there, and Spark reads the candidates back:
no row passes through the driver. Works in a classic session and through Spark Connect.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearcast.api.arguments import resolve_spec
from nearcast.api.distributed import gather_run, plan_run
from nearcast.errors import InputError, MissingExtraError, SpecError
from nearcast.join.listener import Listener
from nearcast.runners.spark_runner import SparkRunner
from nearcast.storage.locations import absolute_location, parse_location
from nearcast.storage.open_storage import join_location, open_storage

__all__ = ["knn_join"]

GENERATOR = "knn-join"
SPARK_SCHEMES = {"s3": "s3a", "gs": "gs"}  # as Hadoop's connectors name them
NUMBERS = ("float", "double")
INTEGERS = ("byte", "short", "integer", "long", "tinyint", "smallint", "int", "bigint")


def knn_join(
    queries_df: Any,
    items_df: Any,
    *,
    k: int,
    metric: str = "inner_product",
    recall: float = 1.0,
    keep: str | Mapping[str, str] | None = None,
    id: str = "id",
    vector: str = "vector",
    work: str | Path,
    spark_work: str | None = None,
    exclude_self: bool = False,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    listener: Listener | None = None,
) -> Any:
    """Return a DataFrame (query_id, rank, candidate_id, score): the k best items of every query, the best with rank 1.

    queries_df, items_df: DataFrames with a column of ids (integers or strings) and one of vectors (array of float or
    double). metric: "inner_product", "cosine" or "l2" (the score is minus the squared distance). recall: below 1, fewer
    items may be scanned; the result is measured, and TargetError is raised if it misses the target.
    keep: a rule such as "item.country == query.country", or rules by name (docs/rules.md); they read other columns.
    work: folder that the driver and all executors share, or s3://, gs://, az://BUCKET/FOLDER. It holds the result: the
    DataFrame is read from there when it is used, so remove the new folder below `work` only after that.
    spark_work: the URL of `work` as Spark names it. Default: file: for a folder, s3a: for s3:.
    exclude_self: never give a query the item with the same id. settings: other keys of a spec, see docs/spec.md.
    workers: tasks at once; default: the cores of the session divided by spark.task.cpus.

    Raises InputError for vectors or ids that cannot be joined, SpecError for invalid settings, StorageError if `work`
    cannot be reached, MissingExtraError if Spark has no connector for it, WorkerError if the executors cannot take part
    (for example, they lack nearcast).
    """
    name = f"{GENERATOR}-{secrets.token_hex(6)}"
    ours = join_location(absolute_location(parse_location(work)), name)
    theirs = f"{(spark_work or _spark_url(absolute_location(parse_location(work)))).rstrip('/')}/{name}"
    rules = _make_rules(keep)
    words = set(re.findall(r"\w+", json.dumps([rules, settings])))  # columns that rules, caps and so on may read
    sides = {"queries": queries_df, "items": items_df}
    spec = {
        "name": GENERATOR,
        "metric": metric,
        "k": k,
        "recall": recall,
        "exclude_self": exclude_self,
        "out": f"{ours}/out",
        **rules,
    }
    for side, frame in sides.items():
        more = [name for name in frame.columns if name in words and name not in (id, vector)]
        spec[side] = {"path": f"{ours}/{side}", "id": id, "vector": vector, "attributes": more}
    _refuse_keys(settings or {}, spec)
    parsed, base = resolve_spec({**spec, **(settings or {})}, os.getcwd(), None, None)  # before anything is written
    selected = {side: _select(frame, side, spec[side]) for side, frame in sides.items()}
    for side, frame in selected.items():
        _write(frame, f"{theirs}/{side}")
    try:
        plan_run(parsed, f"{ours}/run", base=base, listener=listener)
        runner = SparkRunner(workers, session=queries_df.sparkSession)
        snapshot = gather_run(f"{ours}/run", runner=runner, listener=listener).snapshot
    finally:
        _remove(ours, ("queries", "items", "run"))
    return _read_candidates(queries_df.sparkSession, f"{theirs}/out/{GENERATOR}/snapshots/{snapshot.name}/candidates")


def _write(frame: Any, url: str) -> None:
    """Write a table with Spark. Raises MissingExtraError if the session has no connector for the location."""
    try:
        frame.write.mode("error").parquet(url)
    except Exception as error:  # of classic Spark and of Spark Connect, which have no common class
        missing = re.search(r"Class org\.apache\.hadoop\.fs\.\S+ not found|No FileSystem for scheme \S+", str(error))
        if missing is None:
            raise
        raise MissingExtraError(
            f"Spark cannot write to {url}: {missing[0]}; start the session with the connector of this storage (for "
            "s3a: spark.jars.packages = org.apache.hadoop:hadoop-aws of the version of Spark's Hadoop), or pass a "
            "folder that all executors share as work"
        ) from error


def _select(frame: Any, side: str, table: Mapping[str, Any]) -> Any:
    """Return the columns to write: ids as long or string, vectors as arrays of float. Raises InputError for others."""
    kinds = dict(frame.dtypes)
    id, vector = table["id"], table["vector"]
    for name in (id, vector):
        if name not in kinds:
            raise InputError(
                f"{side}_df has no column {name!r}, its columns are {', '.join(kinds)}; pass id= and vector="
            )
    element = re.fullmatch(r"array<(\w+)>", kinds[vector])
    if element is None or element[1] not in NUMBERS:
        raise InputError(
            f"column {vector!r} of {side}_df must be an array of float or double, got {kinds[vector]}; convert it, for "
            "example with pyspark.ml.functions.vector_to_array"
        )
    if kinds[id] not in (*INTEGERS, "string"):
        raise InputError(f"column {id!r} of {side}_df must hold integers or strings, got {kinds[id]}; cast it")
    number = "bigint" if kinds[id] in INTEGERS else "string"
    return frame.selectExpr(
        f"CAST({_quote(id)} AS {number}) AS {_quote(id)}",
        f"CAST({_quote(vector)} AS array<float>) AS {_quote(vector)}",
        *map(_quote, table["attributes"]),
    )


def _quote(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _make_rules(keep: str | Mapping[str, str] | None) -> dict[str, Any]:
    rules = {"keep": keep} if isinstance(keep, str) else dict(keep or {})
    return {"rules": [{"name": name, "keep": text} for name, text in rules.items()]} if rules else {}


def _refuse_keys(settings: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    twice = [key for key in settings if key in spec]
    if twice:
        raise SpecError(f"settings has {', '.join(twice)}, which knn_join sets itself; use its arguments")


def _spark_url(location: str) -> str:
    """Return the URL of a location as Spark names it."""
    scheme, colon, rest = location.partition("://")
    if not colon:
        return Path(location).as_uri()
    if scheme not in SPARK_SCHEMES:
        raise SpecError(
            f"work is {location}, and Spark names such a location by its account; pass spark_work, for example "
            "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER"
        )
    return f"{SPARK_SCHEMES[scheme]}://{rest}"


def _remove(root: str, folders: tuple[str, ...]) -> None:
    """Delete what only the run needed: copies of the inputs, indexes, task results."""
    storage = open_storage(root)
    for folder in folders:
        for found in list(storage.list_objects(folder)):
            storage.delete(found.name)


def _read_candidates(session: Any, url: str) -> Any:
    """Return the lists as rows."""
    pairs = session.read.parquet(url).selectExpr(
        "query_id", "posexplode(arrays_zip(candidate_ids, scores)) AS (position, candidate)"
    )
    return pairs.selectExpr(
        "query_id", "position + 1 AS rank", "candidate.candidate_ids AS candidate_id", "candidate.scores AS score"
    )
