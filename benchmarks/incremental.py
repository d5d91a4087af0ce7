"""Processor seconds of an incremental run against a full run, after a night in which some items and queries changed.

    python benchmarks/incremental.py --data ../shared/data/packages

Half of the changed items have another vector, the other half are gone and as many new ones have come; so do 1% of the
queries. Every run is a process of its own, with bytecode as an installed package has it. Both kinds of run start from
a snapshot of the evening before, with its artifacts. Files are written as docs/inputs.md advises; with --dictionary as
pyarrow writes them by default. Prints a table and writes results/incremental.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nearcast import machine

RESULTS = Path(__file__).parent / "results" / "incremental.json"
SHARES = (0.01, 0.05, 0.2)
QUERY_SHARE = 0.01
RECALLS = (0.95, 1.0)
K = 50
JOIN_STAGES = ("build", "calibrate", "join")
TARGETS = {0.01: 0.1, 0.05: 0.22, 0.2: 0.6}
TOTAL_TARGET = 0.35  # of the whole command, at 1%


def main() -> None:
    """Measure all shares and recalls, and write the results."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, required=True, help="folder with items.parquet and queries.parquet")
    arguments.add_argument("--recall", type=float, action="append")
    arguments.add_argument("--share", type=float, action="append")
    arguments.add_argument("--dictionary", action="store_true", help="vectors in dictionary pages, in one row group")
    given = arguments.parse_args()
    write_table = partial(write_file, fast=not given.dictionary)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = {table: pq.read_table(given.data / f"{table}.parquet") for table in ("items", "queries")}
        for table, rows_of in tables.items():
            write_table(folder, table, rows_of)
        for recall in given.recall or RECALLS:
            for kind in ("full", "incremental"):
                made = run(folder, kind, recall, folder / "evening" / kind)
                print(kind, "evening", {key: made[key] for key in ("join", "total", "cpu_seconds", "run")}, flush=True)
            for share in given.share or SHARES:
                for table, changed in (("items", share), ("queries", QUERY_SHARE)):
                    write_table(folder, table, pass_night(tables[table], changed, seed=7))
                row = {"recall": recall, "share": share, **compare(folder, recall)}
                rows.append(row)
                show(row)
            for table, rows_of in tables.items():
                write_table(folder, table, rows_of)
            shutil.rmtree(folder / "evening")
    if given.recall is None and given.share is None:
        result = {"machine": machine.describe(), "k": K, "commit": commit(), "targets": TARGETS, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def pass_night(table: pa.Table, share: float, seed: int) -> pa.Table:
    """Return the table with a share of its vectors changed; half of these rows have new ids."""
    rng = np.random.default_rng(seed)
    column = table.schema.get_field_index("vector")
    lists = table.column(column).combine_chunks()
    width = len(lists.flatten()) // len(lists)
    vectors = lists.flatten().to_numpy().reshape(len(lists), width).copy()
    rows = rng.choice(len(lists), round(share * len(lists)), replace=False)
    vectors[rows] += rng.normal(scale=vectors[:10_000].astype(np.float32).std() * 0.5, size=(len(rows), width)).astype(
        vectors.dtype
    )
    ids = table.column("id").combine_chunks().to_pylist()
    largest = max(ids)
    for number, row in enumerate(rows[: len(rows) // 2].tolist()):
        ids[row] = f"{ids[row]}-new" if isinstance(largest, str) else largest + 1 + number
    changed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width).cast(lists.type)
    table = table.set_column(column, "vector", changed)
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids, table.column("id").type))


def write_file(folder: Path, name: str, table: pa.Table, *, fast: bool) -> None:
    """Write ids and vectors. fast: as docs/inputs.md advises."""
    options: dict[str, Any] = {"use_dictionary": False, "row_group_size": 100_000} if fast else {}
    pq.write_table(table.select(["id", "vector"]), folder / f"{name}.parquet", **options)


def compare(folder: Path, recall: float) -> dict[str, Any]:
    """Run the morning after in both kinds; return their processor seconds and measures."""
    found = {}
    for kind in ("full", "incremental"):
        out = folder / "morning"
        shutil.copytree(folder / "evening" / kind, out)
        found[kind] = run(folder, kind, recall, out)
        shutil.rmtree(out)
    full, inc = found["full"], found["incremental"]
    return {
        "join_share": inc["join"] / full["join"],
        "total_share": inc["total"] / full["total"],
        "same_files": inc.pop("files") == full.pop("files"),
        **found,
    }


def run(folder: Path, kind: str, recall: float, out: Path) -> dict[str, Any]:
    """Run the generator in a process; return processor seconds of its join and of all, and what the snapshot says."""
    spec = folder / "spec.toml"
    incremental = "true" if kind == "incremental" else "false"
    spec.write_text(
        f'name = "packages"\nmetric = "cosine"\nk = {K}\nrecall = {recall}\nout = "{out}"\nthreads = 2\n'
        f'memory = "3GB"\n[items]\npath = "items.parquet"\n[queries]\npath = "queries.parquet"\n'
        f"[run]\nincremental = {incremental}\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["nearcast", "run", str(spec), "--quiet", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 4):
        sys.exit(done.stderr)
    manifest = json.loads(done.stdout)
    spent = manifest["run"]["cpu_seconds"]
    hashes = hashlib.blake2b()
    for path in sorted((out / "packages" / "snapshots").glob("*/candidates/*.parquet"))[-1:]:
        hashes.update(path.read_bytes())
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "join": sum(spent.get(stage, 0.0) for stage in JOIN_STAGES),
        "total": total,
        "cpu_seconds": spent,
        "recall": manifest["measures"]["recall"],
        "run": manifest["run"].get("incremental"),
        "files": hashes.hexdigest(),
    }


def show(row: dict[str, Any]) -> None:
    """Print a line, and whether it reaches its targets."""
    full, inc = row["full"], row["incremental"]
    stages = {stage: (inc["cpu_seconds"].get(stage, 0.0), full["cpu_seconds"][stage]) for stage in full["cpu_seconds"]}
    print(", ".join(f"{stage} {one:.2f} of {other:.2f} s" for stage, (one, other) in stages.items()))
    print(
        f"recall {row['recall']:g}, {row['share']:.0%} of the items: join {inc['join']:.2f} s of {full['join']:.2f} s, "
        f"{row['join_share']:.1%} (target {TARGETS.get(row['share'], 1):.0%}); whole command {inc['total']:.1f} s of "
        f"{full['total']:.1f} s, {row['total_share']:.1%}; recall {inc['recall']:.4f} and {full['recall']:.4f}; "
        f"same files: {row['same_files']}; {inc['run']}",
        flush=True,
    )


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
