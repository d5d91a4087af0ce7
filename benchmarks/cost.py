"""Measure a day of traffic, offline and online, in processor seconds, and compare with `nearcast advise`.

    python benchmarks/cost.py --data ../shared/data/packages [--quick] [--all]

Both variants answer the same day: 10 requests for every key of the packages data, at recall 0.95. Offline: run,
publish, and a look-up for every request. Online: the index is made (faiss-hnsw, faiss-ivf) and searched. Every look-up
of the day runs. Of the searches, the first one for each key runs (--all: all of them), and the others count the same
time, since their vectors are the same. The rates behind the prediction are measured before, on samples. Writes
results/cost.json. Takes about ten minutes on two idle cores; --quick, on a part of the data, two; --all, half an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import nearcast
from nearcast import machine
from nearcast.advising.recommend import AdviceQuestion, Numbers, recommend
from nearcast.join.listener import Listener
from nearcast.join.online_index import open_online
from nearcast.spec import GeneratorSpec

RESULTS = Path(__file__).parent / "results" / "cost.json"
ENGINES = ("faiss-hnsw", "faiss-ivf")
PER_KEY, RECALL, K = 10, 0.95, 50
LARGEST_SHARE, LARGEST_ERROR = 0.10, 0.25  # goals: share of online's seconds; error of a prediction
QUICK = (40_000, 10_000)  # items, queries
KEPT, NEVER = ", the index there anyway", 1e9  # hours
AGREED = 200  # keys whose lists of both sides are compared

console = Console(width=150)
Row = dict[str, Any]


def cpu(do: Callable[[], Any]) -> tuple[float, Any]:
    """Return processor seconds of all threads of this process, and the result of the call."""
    began = time.process_time()
    done = do()
    return time.process_time() - began, done


def each(do: Callable[[Any], Any], asked: Sequence[Any]) -> float:
    """Return processor seconds of one call per element. Answers are not kept, as in a service."""

    def all_of_them() -> None:
        for one in asked:
            do(one)

    return cpu(all_of_them)[0]


def write_spec(data: Path, folder: Path, sizes: tuple[int, int] | None) -> Path:
    """Write the spec of the generator; with --quick, for the first rows only."""
    if sizes is not None:
        small = folder / "data"
        small.mkdir(exist_ok=True)
        for side, n in zip(("items", "queries"), sizes, strict=True):
            pq.write_table(pq.read_table(data / f"{side}.parquet").slice(0, n), small / f"{side}.parquet")
        data = small
    spec = folder / "packages.toml"
    spec.write_text(
        f'name = "packages"\nmetric = "inner_product"\nk = {K}\nrecall = {RECALL}\n'
        f'[items]\npath = "{data}/items.parquet"\n[queries]\npath = "{data}/queries.parquet"\n'
    )
    return spec


def predict(spec: Path, folder: Path) -> dict[str, Any]:
    """Return the prediction of `advise` per engine, from rates measured on samples, with and without the index cost.

    An index that exists anyway, for other uses, costs nothing here.
    """
    parsed, found = nearcast.load_spec(spec), {}
    for engine in ENGINES:
        console.print(f"[dim]measuring rates with {engine}")
        for name, numbers in ((engine, Numbers()), (f"{engine}{KEPT}", Numbers(online_refresh_hours=NEVER))):
            advice = folder / "advice"
            question = AdviceQuestion(parsed, spec.parent, numbers, None, engine, rates_file=None, cache=advice)
            asked = recommend(question, Listener())
            found[name] = asked.as_dict()
    return found


def day_of(keys: Sequence[str]) -> list[str]:
    """Return the requests of the day, in random order."""
    order = np.random.default_rng(3).permutation(len(keys) * PER_KEY) % len(keys)
    return [keys[place] for place in order.tolist()]


def offline(spec: Path) -> tuple[Row, list[str], dict[str, list[Any]]]:
    """Run, publish, and look up every request of the day."""
    run, outcome = cpu(lambda: nearcast.run(spec))
    publish, _ = cpu(lambda: nearcast.publish(str(spec)))
    keys = pq.read_table(outcome.snapshot.folder / "candidates", columns=["query_id"])["query_id"].to_pylist()
    requests = day_of(keys)
    store = spec.parent / "nearcast" / "store"
    with nearcast.open(store, "packages") as lookup:
        for key in keys[:1000]:
            lookup.get(key)
        seconds = each(lookup.get, requests)
        answers = {key: lookup.get(key).ids for key in keys[:: max(1, len(keys) // AGREED)]}
    measures = outcome.snapshot.manifest.measures
    parts = {"join": run, "publish": publish, "look-up": seconds}
    row = {
        "way": "offline",
        "cpu_seconds": parts,
        "total": sum(parts.values()),
        "stages": outcome.snapshot.manifest.run.cpu_seconds,
        "recall": [measures[name] for name in ("recall_low", "recall", "recall_high")],
        "requests": len(requests),
    }
    return row, keys, answers


def online(spec: Path, engine: str, keys: Sequence[str], answers: dict[str, list[Any]], everything: bool) -> Row:
    """Make the index, and search for the requests of the day."""
    parsed = nearcast.load_spec(spec)
    out = spec.parent / f"online-{engine}"  # of its own: nothing that the run has left is used
    made, index = cpu(lambda: open_online(parsed, spec.parent, out, engine=engine, recall=RECALL))
    vectors = vectors_of(parsed, keys)
    for row in vectors[:200]:
        index.search(row[None], K)
    times = PER_KEY if everything else 1
    order = np.random.default_rng(4).permutation(len(keys) * times) % len(keys)
    rows = [vectors[place : place + 1] for place in order.tolist()]
    seconds = each(lambda row: index.search(row, K), rows)
    place_of = {key: place for place, key in enumerate(keys)}
    same = [len(set(ids) & set(index.search(vectors[place_of[k]][None], K)[0][0])) / K for k, ids in answers.items()]
    parts = {"index": made, "search": seconds * PER_KEY / times}
    reached = index.reached
    return {
        "way": engine,
        "cpu_seconds": parts,
        "total": sum(parts.values()),
        "effort": dict(index.params),
        "recall": None if reached is None else [reached.low, reached.value, reached.high],
        "searches_done": len(rows),
        "agreement_with_offline": float(np.mean(same)),
    }


def vectors_of(spec: GeneratorSpec, keys: Sequence[str]) -> np.ndarray[Any, Any]:
    """(keys, dim) the queries' vectors, in the order of the keys."""
    table = pq.read_table(spec.query_source.path, columns=["id", "vector"])
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    place = {key: row for row, key in enumerate(table["id"].to_pylist())}
    return flat.reshape(len(table), -1).astype(np.float32)[[place[key] for key in keys]]


def compare(rows: Sequence[Row], predicted: dict[str, Any]) -> Row:
    """Compare offline with online, and both with the prediction."""
    measured = {row["way"]: row["total"] for row in rows}
    found: Row = {"share_of_online": {}, "prediction": {}}
    for engine in ENGINES:
        found["share_of_online"][engine] = measured["offline"] / measured[engine]
        costs = {cost["way"]: cost for cost in predicted[engine]["advice"]["costs"]}
        for way, name in (("offline", "offline"), ("online", engine)):
            told = costs[way]["total_cpu_seconds"]
            found["prediction"][f"{name}, advised with {engine}" if way == "offline" else name] = {
                "predicted": told,
                "measured": measured[name],
                "error": told / measured[name] - 1,
                "predicted_parts": costs[way]["cpu_seconds"],
            }
    found["holds"] = {
        "cost": all(share <= LARGEST_SHARE for share in found["share_of_online"].values()),
        "prediction": all(abs(p["error"]) <= LARGEST_ERROR for p in found["prediction"].values()),
    }
    return found


def show(result: Row) -> None:
    """Print what there is."""
    table = Table(title=f"A day of {result['data']['requests']:,} requests, processor seconds")
    for name in ("way", "join or index", "publish", "look-ups or searches", "all", "predicted", "recall", "of online"):
        table.add_column(name, justify="left" if name == "way" else "right")
    predictions = result["comparison"]["prediction"]
    for row in result["rows"]:
        parts = row["cpu_seconds"]
        told = [p["predicted"] for name, p in predictions.items() if name.split(",")[0] == row["way"]]
        shares = result["comparison"]["share_of_online"]
        share = ", ".join(f"{s:.1%}" for s in shares.values()) if row["way"] == "offline" else ""
        made = parts.get("join", parts.get("index", 0.0))
        asked = parts.get("look-up", parts.get("search", 0.0))
        copied = f"{parts['publish']:,.1f}" if "publish" in parts else ""
        recall = "" if row["recall"] is None else f"{row['recall'][1]:.4f}"
        cells = (f"{made:,.1f}", copied, f"{asked:,.1f}", f"{row['total']:,.1f}")
        table.add_row(row["way"], *cells, " / ".join(f"{t:,.1f}" for t in told), recall, share)
    console.print(table)
    for engine, predicted in result["predicted"].items():
        advice = predicted["advice"]
        turns = Table(title=f"Against {engine}: cheapest way (share of online), by skew and requests per key and day")
        turns.add_column("Zipf exponent")
        turns.add_column("the mix beats online from")
        for per_key in advice["per_key"]:
            turns.add_column(f"{per_key:g}", justify="right")
        for turn in advice["turns"]:
            cells = [f"{way} {s:.1%}" for way, s in zip(turn["cheapest"], turn["of_online"], strict=True)]
            turns.add_row(f"{turn['exponent']:g}", f"{turn['mix_pays_from']:.3g}", *cells)
        console.print(turns)
        console.print(f"lists for all keys pay from {advice['offline_pays_from']:.2f} requests per key and day")
    for name, holds in result["comparison"]["holds"].items():
        console.print(f"[bold]{name}: {'holds' if holds else 'DOES NOT HOLD'}")


def commit() -> str:
    """Of this checkout, and whether it was changed since."""
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=RESULTS.parent).stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet and queries.parquet")
    parser.add_argument("--quick", action="store_true", help="a part of the data: to see that the script works")
    parser.add_argument("--all", action="store_true", help="do every search of the day")
    parser.add_argument("--results", type=Path, help="file to write; results/cost.json, or cost-quick.json")
    parser.add_argument("--show", action="store_true", help="print what was saved, and measure nothing")
    given = parser.parse_args()
    given.results = given.results or (RESULTS.with_name("cost-quick.json") if given.quick else RESULTS)
    if not given.show and (given.data is None or not (given.data / "items.parquet").is_file()):
        sys.exit("--data must name a folder with items.parquet and queries.parquet")
    return given


def main() -> None:
    given = parse()
    if given.show:
        show(json.loads(given.results.read_text()))
        return
    started = time.perf_counter()
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nearcast-cost-")))
        spec = write_spec(given.data.absolute(), folder, QUICK if given.quick else None)
        predicted = predict(spec, folder)
        first, keys, answers = offline(spec)
        rows = [first, *(online(spec, engine, keys, answers, given.all) for engine in ENGINES)]
    result: Row = {
        "machine": machine.describe(),
        "load_average": os.getloadavg(),
        "commit": commit(),
        "libraries": {name: version(name) for name in ("faiss-cpu", "numpy", "pyarrow", "lmdb")},
        "data": {"keys": len(keys), "requests": len(keys) * PER_KEY, "k": K, "recall": RECALL, "quick": given.quick},
        "warm_up": "1,000 look-ups and 200 searches are not counted; runs and index builds are counted from the first",
        "seconds": time.perf_counter() - started,
        "rows": rows,
        "predicted": predicted,
        "comparison": compare(rows, predicted),
    }
    given.results.write_text(json.dumps(result, indent=1, default=str) + "\n")
    show(result)
    console.print(f"[dim]written to {given.results} after {result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
