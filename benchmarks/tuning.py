"""Measure whether tune + run meet the recall target on all queries, and their cost relative to a full sweep.

    python benchmarks/tuning.py --data ../shared/data/packages [--sets packages glove-cosine glove-l2 products]

For every data set and target: tune, put the suggestion into the spec, run, and compare every list with exact neighbors.
The sweep runs the same job with several numbers of cells and exactly; cost is build + calibration + join. Also
repeats the sample of the report, to count how often the stated interval contains the true recall. Writes
results/tuning.json row by row, and keeps the rows of other data sets, so that data sets can be measured one at a time.
Rows of another machine or instruction set are deleted. Then: python docs/fill_tuning.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import data
import nearcast
from nearcast import machine
from nearcast.errors import TargetError
from nearcast.join.listener import Listener
from nearcast.kernels import isa_info
from nearcast.measure.recall import estimate_recall
from worker import BLAS_VARIABLES

RESULTS = Path(__file__).parent / "results"
PRODUCTS = Path(__file__).parent.parent / "examples" / "similar_products" / "data" / "products.parquet"
SETS = ("packages", "glove-cosine", "glove-l2", "products")
PROMISES = (0.8, 0.9, 0.95, 0.99)
SWEEP = (1.5, 3.0, 6.5, 13.0)  # cells by the root of the items
SAMPLE, SAMPLINGS = 2_000, 1_000
K = 50

console = Console(width=150)


class Quiet(Listener):
    """Says nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


def pair_of(name: str, given: argparse.Namespace, folder: Path) -> data.Pair:
    """Both sides on disk, with their positions as ids."""
    if name == "packages":
        pair = data.packages_pair(given.data, folder)
    elif name == "products":
        pair = data.products_pair(given.products, folder)
    else:
        pair = data.glove_pair(folder, name.removeprefix("glove-"))
    for side in (pair.items, pair.queries):
        np.save(side.with_suffix(".ids.npy"), np.arange(len(np.load(side, mmap_mode="r"))))
    return pair


def spec_of(pair: data.Pair, recall: float, folder: Path, **more: Any) -> dict[str, Any]:
    """The spec of the whole job."""

    def source(path: Path) -> dict[str, str]:
        return {"path": str(path), "ids": str(path.with_suffix(".ids.npy"))}

    spec = {
        "name": pair.name,
        "metric": pair.metric,
        "k": K,
        "recall": recall,
        "out": str(folder / "out"),
        "threads": 2,
    }
    sides = {"items": source(pair.items)} | ({} if pair.self_join else {"queries": source(pair.queries)})
    return spec | sides | {"exclude_self": pair.self_join, "checks": {"zero_vector": "keep"}, "threads": 2} | more


def truth_of(pair: data.Pair) -> data.Truth:
    """Of all queries, by the exact join, which is itself held against a float64 product."""
    queries, items = pair.load()
    found = nearcast.knn_join(queries, items, k=K, metric=pair.metric, exclude_self=pair.self_join, memory="4GB")
    positions, scores = np.asarray(found.positions), np.asarray(found.scores)
    last = np.maximum(np.count_nonzero(positions >= 0, axis=1) - 1, 0)
    truth = data.Truth(positions, np.take_along_axis(scores, last[:, None], 1)[:, 0])
    assert data.check_truth(truth, queries, items, pair.metric, self_join=pair.self_join) == 1.0
    return truth


def run(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run from the inputs on, whatever its promise came to: seconds, effort and the folder."""
    shutil.rmtree(folder / "out" / spec["name"] / "snapshots", ignore_errors=True)
    for index in (folder / "out" / spec["name"] / "artifacts").glob("index-*"):
        shutil.rmtree(index)
    try:
        snapshot = nearcast.run(spec, listener=Quiet(), again=True).snapshot
    except TargetError as error:
        snapshot = error.snapshot
    seconds = snapshot.manifest.run.seconds
    cost = {stage: seconds.get(stage, 0.0) for stage in ("build", "calibrate", "join")}
    kept = {"seconds": sum(cost.values()), "stages": cost, "effort": snapshot.manifest.engine.params}
    return kept | {"reported": snapshot.manifest.measures["recall"], "folder": snapshot.folder}


def recall_of_all(folder: Path, truth: data.Truth, pair: data.Pair) -> np.ndarray[Any, Any]:
    """(queries,) recall of every list of the snapshot, read from its files."""
    table = pq.read_table(folder / "candidates").sort_by("query_id")
    found = np.full((len(table), K), -1, np.int64)
    lengths = table["length"].to_numpy()
    found[np.arange(K)[None, :] < lengths[:, None]] = table["candidate_ids"].combine_chunks().flatten().to_numpy()
    queries, items = pair.load()
    return data.recalls(found, truth, queries, items, pair.metric)


def held(shares: np.ndarray[Any, Any]) -> float:
    """How often a sample's 95% interval holds the recall of all."""
    rng, true, n = np.random.default_rng(3), float(shares.mean()), len(shares)
    size = min(SAMPLE, n // 2)
    told = (estimate_recall(shares[rng.choice(n, size, replace=False)], n) for _ in range(SAMPLINGS))
    return sum(recall.low <= true <= recall.high for recall in told) / SAMPLINGS


def study(pair: data.Pair, promise: float, truth: data.Truth, folder: Path) -> dict[str, Any]:
    """Tune and run for one target, and run the sweep."""
    n_items = len(np.load(pair.items, mmap_mode="r"))
    shutil.rmtree(folder / "out" / pair.name / "tuning", ignore_errors=True)
    shutil.rmtree(folder / "out" / pair.name / "artifacts" / "truth", ignore_errors=True)  # no promise helps the next
    base = spec_of(pair, promise, folder)
    tuned, _ = nearcast.tune(base, listener=Quiet())
    point = tuned.suggestion.trial.point
    mine = run(base | {"engine": point.engine, "engine_settings": dict(point.settings)}, folder)
    shares = recall_of_all(mine.pop("folder"), truth, pair)
    sweep = {}
    for cells in [1, *(round(times * math.sqrt(n_items)) for times in SWEEP)]:
        row = run(base | {"engine": "dense", "engine_settings": {"cells": cells}}, folder)
        row["recall"] = float(recall_of_all(row.pop("folder"), truth, pair).mean())
        sweep[f"{cells} cells"] = row
    best = min((name for name in sweep if sweep[name]["recall"] >= promise), key=lambda name: sweep[name]["seconds"])
    return {
        "data": pair.name,
        "promise": promise,
        "suggested": point.name,
        "recall": float(shares.mean()),
        "run": mine,
        "predicted": asdict(tuned.suggestion.costs[promise]),
        "held_out": asdict(tuned.held_out),
        "tuning_seconds": tuned.seconds,
        "tuning_budget": tuned.budget_seconds,
        "exact_seconds": tuned.exact_seconds,
        "intervals_that_hold": held(shares),
        "sweep": sweep,
        "best": best,
        "times_best": mine["seconds"] / sweep[best]["seconds"],
    }


def show(rows: list[dict[str, Any]]) -> Table:
    """Print the rows."""
    table = Table(box=None, pad_edge=False)
    for name in (
        "data",
        "promise",
        "recall of all",
        "suggested",
        "s",
        "predicted",
        "best of the sweep",
        "s",
        "times",
        "tuning s",
    ):
        table.add_column(name, justify="left" if name in ("data", "suggested", "best of the sweep") else "right")
    table.add_column("intervals")
    for row in rows:
        predicted = sum(row["predicted"].values())
        table.add_row(
            row["data"],
            f"{row['promise']:g}",
            f"{row['recall']:.4f}",
            row["suggested"],
            f"{row['run']['seconds']:.2f}",
            f"{predicted:.2f}",
            row["best"],
            f"{row['sweep'][row['best']]['seconds']:.2f}",
            f"{row['times_best']:.2f}",
            f"{row['tuning_seconds']:.1f}",
            f"{row['intervals_that_hold']:.1%}",
        )
    return table


def commit() -> str:
    """What was measured."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip()


def begun(path: Path) -> dict[str, Any]:
    """The result so far, without rows where it is of another machine."""
    here: dict[str, Any] = {"machine": machine.describe(), "isa": isa_info().taken}
    before = json.loads(path.read_text()) if path.is_file() else {}
    alike = all(before.get(name) == here[name] for name in here)
    return here | {"rows": before["rows"] if alike else []}


def main() -> None:
    """Measure the requested data sets and targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet and queries.parquet; GloVe without")
    parser.add_argument("--products", type=Path, default=PRODUCTS, help="products.parquet of the example")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--promises", nargs="+", type=float, default=PROMISES)
    parser.add_argument("--results", type=Path, default=RESULTS / "tuning.json")
    given = parser.parse_args()
    for name in BLAS_VARIABLES:
        os.environ.pop(name, None)
    result = begun(given.results)
    stamp = {"commit": commit(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    for name in given.sets:
        with tempfile.TemporaryDirectory() as temporary:
            pair = pair_of(name, given, Path(temporary))
            truth = truth_of(pair)
            for promise in given.promises:
                row = study(pair, promise, truth, Path(temporary)) | stamp
                kept = [r for r in result["rows"] if (r["data"], r["promise"]) != (row["data"], promise)]
                result["rows"] = sorted([*kept, row], key=lambda r: (r["data"], r["promise"]))
                console.print(show([row]))
                given.results.write_text(json.dumps(result, indent=1, default=str) + "\n")
    console.print(show(result["rows"]))


if __name__ == "__main__":
    main()
