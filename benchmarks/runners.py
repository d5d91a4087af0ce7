"""Compare runners and shards on one data set: the same bytes, and wall and processor time against a local run.

    python benchmarks/runners.py --data DIR --recall 0.95 --cases local processes spark ray array shards-4 --repeats 3
    python benchmarks/runners.py --data DIR --rules --recall 1 --cases local processes spark ray array shards-3 shards-8

DIR holds items.parquet and queries.parquet. Each case runs with an empty output folder, in turn with the others. The
engines are started, and have run a tiny generator, before the clock starts. `array` is two `nearcast work` processes, a
cache each and an S3 server between them; then `nearcast gather`. Clusters listen on loopback, in a network namespace.
Writes benchmarks/results/runners-*.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "tests", ROOT / "tests" / "cluster", ROOT):
    sys.path.insert(0, str(folder))

import nearcast  # noqa: E402
from nearcast import kernels, machine  # noqa: E402
from nearcast.files import read_manifest  # noqa: E402
from nearcast.runners import make_runner  # noqa: E402
from nearcast.table.snapshot import Snapshot, find_snapshot  # noqa: E402

RULES: dict[str, Any] = {
    "rules": [{"name": "recent", "keep": "item.released >= 202001 or item.download_rank <= 15000"}],
    "caps": [{"by": "released", "max_per_list": 5}],
}
TINY = {"k": 3, "measure": {"sample": 20, "calibration": 20}}


def main() -> int:
    """Run the cases in turn, print a line each, and write the result. Exit with 1 if bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rules", action="store_true", help="a rule and a cap over the attributes of packages")
    parser.add_argument("--cases", nargs="+", default=["local", "processes"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if {"spark", "ray"} & set(options.cases):
        from namespace import enter_namespace

        os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        refusal = enter_namespace()
        if refusal is not None:
            sys.exit(refusal)
    with tempfile.TemporaryDirectory(prefix="nearcast-runners-") as name, ExitStack() as stack:
        folder = Path(name)
        runs = {case: open_case(case, options, folder, stack) for case in options.cases}
        rows = [
            measure(case, runs[case], folder, repeat) for repeat in range(options.repeats) for case in options.cases
        ]
    return report(options, rows)


def spec_of(options: argparse.Namespace, out: str) -> dict[str, Any]:
    """Return the spec of the generator."""
    attributes = {"attributes": ["released", "download_rank"]} if options.rules else {}
    return {
        "name": "packages",
        "metric": "inner_product",
        "k": options.k,
        "recall": options.recall,
        "out": out,
        "items": {"path": str(options.data / "items.parquet"), **attributes},
        "queries": {"path": str(options.data / "queries.parquet")},
        **(RULES if options.rules else {}),
    }


def open_case(case: str, options: argparse.Namespace, folder: Path, stack: ExitStack) -> Callable[[str], Snapshot]:
    """Start what a case needs. Return the function that makes a snapshot in an output folder."""
    if case == "array":
        return open_array(options, folder, stack)
    if case.startswith("shards-"):
        shards = int(case.removeprefix("shards-"))
        return lambda out: nearcast.run(spec_of(options, out), shards=shards).snapshot
    if case == "spark":
        from spark_cluster import SparkCluster

        cluster = SparkCluster(folder)
        stack.callback(cluster.stop)
        runner = make_runner(
            "spark", options={"master": cluster.start().url, "conf": {**cluster.conf(), "spark.executor.memory": "1g"}}
        )
    elif case == "ray":
        runner = make_runner("ray", options={"address": stack.enter_context(ray_running())})
    else:
        runner = make_runner(case, None if case == "local" else 2)
    stack.enter_context(closing(runner))
    tiny = write_tiny(folder)
    nearcast.run(tiny | {"out": str(folder / f"tiny-{case}")}, runner=runner)
    return lambda out: nearcast.run(spec_of(options, out), runner=runner).snapshot


@contextmanager
def ray_running() -> Iterator[str]:
    """Run two Ray nodes with a core each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        cluster.add_node(**small)
        cluster.wait_for_nodes(timeout=60)
        yield cluster.address
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


def open_array(options: argparse.Namespace, folder: Path, stack: ExitStack) -> Callable[[str], Snapshot]:
    """Start an S3 server with the inputs in a bucket. The case plans, works in two processes, and gathers."""
    from nearcast.storage.open_storage import open_storage
    from s3_server import BUCKET, s3_running

    (folder / "s3").mkdir()
    server = stack.enter_context(s3_running(folder / "s3"))
    environment = {**os.environ, **server.environment}
    os.environ |= server.environment
    for name in ("items", "queries"):
        open_storage(f"s3://{BUCKET}/data").upload(f"{name}.parquet", options.data / f"{name}.parquet")

    def run(out: str) -> Snapshot:
        work = f"s3://{BUCKET}/runs/{Path(out).name}"
        spec = spec_of(options, f"s3://{BUCKET}/out/{Path(out).name}")
        for name in ("items", "queries"):
            spec[name]["path"] = f"s3://{BUCKET}/data/{name}.parquet"
        path = folder / "array.toml"
        path.write_text(to_toml(spec))
        command = [str(Path(sys.executable).with_name("nearcast"))]

        def start(*words: str, cache: str) -> subprocess.Popen[bytes]:
            own = {"NEARCAST_CACHE": str(Path(out) / cache), "NEARCAST_THREADS": "1"}
            return subprocess.Popen([*command, *words], env=environment | own, stdout=subprocess.DEVNULL)

        def finish(*processes: subprocess.Popen[bytes]) -> None:
            for process in processes:
                if process.wait() != 0:
                    raise SystemExit(f"{process.args} ended with exit code {process.returncode}")

        finish(start("plan", str(path), "--work", work, cache="a"))
        finish(*(start("work", work, "--index", str(i), "--of", "2", cache="ab"[i]) for i in range(2)))
        finish(start("gather", work, cache="c"))
        return find_snapshot(spec["out"], "packages")

    return run


def write_tiny(folder: Path) -> dict[str, Any]:
    """Write a generator that takes a second: the first run of an engine imports the libraries of its workers."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "tiny.parquet"
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    pq.write_table(pa.table({"id": list(range(200)), "vector": list(vectors)}), path)
    return {"name": "tiny", "metric": "inner_product", "items": {"path": str(path)}, **TINY}


def to_toml(spec: dict[str, Any]) -> str:
    """Write a spec as TOML; JSON values are TOML values."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in spec.items() if not isinstance(value, dict | list)]
    for key, value in spec.items():
        if isinstance(value, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(one)}" for name, one in value.items())]
        elif isinstance(value, list):
            for table in value:
                lines += [f"[[{key}]]", *(f"{name} = {json.dumps(one)}" for name, one in table.items())]
    return "\n".join(lines) + "\n"


def measure(case: str, run: Callable[[str], Snapshot], folder: Path, repeat: int) -> dict[str, Any]:
    """Run a case once: seconds, processor seconds of its tasks, and the hash of its files."""
    out = folder / f"{case}-{repeat}"
    out.mkdir()
    started = time.perf_counter()
    snapshot = run(str(out))
    seconds = time.perf_counter() - started
    facts = snapshot.manifest.as_dict()
    row = {
        "case": case,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(facts["run"]["cpu_seconds"].values()), 2),
        "stages": facts["run"]["seconds"],
        "cpu_stages": facts["run"]["cpu_seconds"],
        "recall": facts["measures"]["recall"],
        "hash": hash_snapshot(snapshot),
        "peak_memory_bytes": facts["run"]["peak_memory_bytes"],
        "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps({key: row[key] for key in ("case", "seconds", "cpu_seconds", "recall", "hash")}), flush=True)
    shutil.rmtree(out)
    return row


def hash_snapshot(snapshot: Snapshot) -> str:
    """Hash all files of a snapshot but the manifest, and of that the measures."""
    snapshot.verify()
    facts = snapshot.manifest.as_dict()
    if "files" not in facts:  # committed a moment ago
        facts = read_manifest(snapshot.folder)
    hashed = hashlib.blake2b(digest_size=8)
    for name, file in sorted(facts["files"].items()):
        hashed.update(f"{name} {file['blake2b']}\n".encode())
    hashed.update(json.dumps(facts["measures"], sort_keys=True).encode())
    return hashed.hexdigest()


def report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    """Print ratios of medians against `local`, and write everything as JSON."""
    cases = list(dict.fromkeys(row["case"] for row in rows))

    def median(case: str, key: str) -> float:
        return statistics.median(row[key] for row in rows if row["case"] == case)

    ratios = {}
    if "local" in cases:
        ratios = {
            case: {key: round(median(case, key) / median("local", key), 3) for key in ("seconds", "cpu_seconds")}
            for case in cases
        }
    hashes = {case: sorted({row["hash"] for row in rows if row["case"] == case}) for case in cases}
    same = len({one for found in hashes.values() for one in found}) == 1
    result = {
        "machine": machine.describe() | {"isa": kernels.isa_info().taken},
        "settings": {"recall": options.recall, "k": options.k, "rules": options.rules, "repeats": options.repeats},
        "ratios": ratios,
        "hashes": hashes,
        "rows": rows,
    }
    name = f"runners-{'rules-' if options.rules else ''}{options.recall:g}.json"
    path = options.out or ROOT / "benchmarks" / "results" / name
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"ratios": ratios, "hashes": hashes, "same bytes": same}, indent=1))
    sharded_below = options.recall < 1 and any(case.startswith("shards") for case in cases)
    return 0 if same or sharded_below else 1


if __name__ == "__main__":
    sys.exit(main())
