"""Compare two checkouts byte by byte: snapshots, store values and look-ups of equal inputs. For restructurings.

    python benchmarks/same_bytes.py ../before .     # each with its own .venv; exits with 1 if a value differs

Synthetic generators cover engines, metrics, a minimum score, a rule and a score term. Each checkout runs and publishes
them with its own command line. Fields of manifests that depend on the clock or the machine are left out (TIMES).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TIMES = {"run", "created", "published", "started", "seconds", "audit"}
N_ITEMS, N_QUERIES, DIM = 4_000, 1_500, 24
SPECS = {
    "plain": 'metric = "inner_product"\n',
    "pruned": 'metric = "cosine"\nrecall = 0.95\n',
    "l2": 'metric = "l2"\nengine = "exact"\nmin_score = -60.0\n',
    "ivf": 'metric = "cosine"\nrecall = 0.9\nengine = "faiss-ivf"\n',
    "rules": 'metric = "cosine"\n[[rules]]\nname = "country"\nkeep = "item.country == query.country"\n',
    "score": 'metric = "inner_product"\n[score]\nadd = "price"\nweight = 0.1\n',
}


def main() -> int:
    """Run both checkouts and print the names of the values that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    first, second = (produce_values(path.resolve()) for path in parser.parse_args().checkouts)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print(f"{len(first.keys() | second.keys()) - len(differing):,} values equal, {len(differing):,} differ")
    print(*differing[:50], sep="\n")
    return 1 if differing else 0


def produce_values(checkout: Path) -> dict[str, str]:
    """Run and publish all generators with a checkout; return the hash of each value by name."""
    with tempfile.TemporaryDirectory(prefix="nearcast-same-") as name:
        folder = Path(name)
        write_inputs(folder)
        values: dict[str, str] = {}
        for generator in SPECS:
            for command in ("run", "publish"):
                call(checkout, folder, command, f"{generator}.toml")
            values |= hash_snapshot(folder / "nearcast" / generator / "snapshots" / "000001", generator)
            values |= hash_version(folder / "nearcast" / "store" / generator / "versions" / "000001", generator)
            for key in range(0, N_QUERIES, 300):
                answer = call(checkout, folder, "lookup", generator, f"q{key:05}", "--json")
                values[f"{generator}/lookup/{key}"] = hash_json(json.loads(answer))
        return values


def write_inputs(folder: Path) -> None:
    """Write the items, the queries and a spec for each generator; equal in every call."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, DIM))
    for file, letter, n in (("items", "i", N_ITEMS), ("queries", "q", N_QUERIES)):
        vectors = centres[rng.integers(0, 40, n)] + 0.7 * rng.standard_normal((n, DIM))
        columns = {
            "id": [f"{letter}{number:05}" for number in range(n)],
            "vector": list(vectors.astype(np.float32)),
            "country": [("de", "fr", "us")[number % 3] for number in range(n)],
            "price": rng.random(n).astype(np.float32),
        }
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")
    for name, text in SPECS.items():
        top, brace, tables = text.partition("[")
        (folder / f"{name}.toml").write_text(
            f'name = "{name}"\nk = 20\nseed = 1\n{top}'
            '[items]\npath = "items.parquet"\nattributes = ["country", "price"]\n'
            '[queries]\npath = "queries.parquet"\nattributes = ["country"]\n'
            f'[publish]\nstore = "lmdb:store"\n[measure]\nsample = 300\ncalibration = 300\n{brace}{tables}',
            encoding="utf-8",
        )


def call(checkout: Path, folder: Path, *words: str) -> str:
    """Return the standard output of a command of a checkout. Raises CalledProcessError if it fails."""
    command = [str(checkout / ".venv" / "bin" / "nearcast"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


def hash_snapshot(folder: Path, name: str) -> dict[str, str]:
    """Return the hash of every file of a snapshot; of the manifest without TIMES."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        f"{name}/{path.relative_to(folder)}": hash_json(json.loads(path.read_text()))
        if path.suffix == ".json"
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def hash_version(folder: Path, name: str) -> dict[str, str]:
    """Return the hash of every pair of a version in LMDB."""
    values = {}
    with lmdb.open(str(folder), readonly=True, lock=False, max_dbs=8) as environment:
        with environment.begin() as transaction:
            spaces = [key for key, _ in transaction.cursor()]
        for space in spaces:
            database = environment.open_db(space, create=False)
            with environment.begin(db=database) as transaction:
                for key, value in transaction.cursor():
                    values[f"{name}/{space.decode()}/{key.hex()}"] = hashlib.sha256(value).hexdigest()
    return values


def hash_json(data: Any) -> str:
    """Return the hash of JSON without TIMES, at any depth."""
    return hashlib.sha256(json.dumps(_without_times(data)).encode()).hexdigest()


def _without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_times(value) for key, value in data.items() if key not in TIMES}
    return [_without_times(value) for value in data] if isinstance(data, list) else data


if __name__ == "__main__":
    sys.exit(main())
