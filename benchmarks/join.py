"""Measure the whole-job time of a kNN join by nearcast and its peers, at equal recall, on the same data.

    python benchmarks/join.py --data ../shared/data/packages [--size full|small] [--recall 1.0 0.95 0.99]
    python benchmarks/join.py --data ... --growth | --datasets | --memory

Whole job = build + all queries, from float32 vectors in memory to final lists. Every build runs in a separate child
process. A sample of the queries finds the cheapest settings of each peer that reach the recall; all queries are then
searched with them. Prints a table; writes results/join.json and join.svg as rows come in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import data
import peers
import picture
import studies
from nearcast import machine
from nearcast.kernels import isa_info
from worker import BLAS_VARIABLES, ChildError, Worker

RESULTS = Path(__file__).parent / "results"
US = "nearcast"
K = 50
SMALL = (20_000, 5_000)  # items, queries: to see that the script works
SLACK = 0.002  # a peer may miss the recall by this on all queries: its settings were found on a sample
LEAST_LIMIT_SECONDS = 20  # no peer is given up below: small data would drop all graphs
RUNGS = 4  # climbed at once, before halving
RERUNS = 3  # with larger search parameters, if the sample was too optimistic
AVX2_BLAS = {"OPENBLAS_CORETYPE": "Haswell"}  # the peers' BLAS is held to AVX2 too where we are

console = Console(width=160)


@dataclass(slots=True)
class Walk:
    """Time and recall of the search settings of one build, on a sample of the queries."""

    worker: Worker
    peer: peers.Peer
    settings: peers.Settings
    build: dict[str, float]
    lanes: Sequence[Sequence[peers.Settings]]
    n_queries: int
    tried: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def look(self, lane: int, rung: int) -> tuple[float, float]:
        """(estimated seconds of the whole job, recall) by the sample, tried once."""
        if (lane, rung) not in self.tried:
            self.tried[lane, rung] = self.worker.ask("try_sample", self.lanes[lane][rung])
        per_query, recall = self.tried[lane, rung]
        return self.build["seconds"] + per_query * self.n_queries, recall

    def cheapest(self, recall: float, limit: float) -> tuple[float, int, int] | None:
        """(estimated seconds, lane, rung) of the cheapest settings that reach the recall, below the limit."""
        best = None
        for lane, rungs in enumerate(self.lanes):
            low, high = -1, 0
            while True:
                seconds, reached = self.look(lane, high)
                if reached >= recall or seconds > limit or high == len(rungs) - 1:
                    break
                low, high = high, min(high + RUNGS, len(rungs) - 1)
            if reached < recall:
                continue
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.look(lane, middle)[1] >= recall else (middle, high)
            seconds = self.look(lane, high)[0]
            if seconds <= limit:
                limit, best = seconds, (seconds, lane, high)
        return best

    def record(self) -> list[dict[str, Any]]:
        """Every setting tried, for the results."""
        return [
            {**self.settings, **self.lanes[lane][rung], "query_seconds_estimated": s * self.n_queries, "recall": r}
            for (lane, rung), (s, r) in sorted(self.tried.items())
        ]


@dataclass(slots=True)
class Comparison:
    """One run of the benchmark: its engines and the rows so far."""

    pair: data.Pair
    truth: Path
    given: argparse.Namespace
    n_queries: int
    result: dict[str, Any]
    out: Path

    def ours(self, recall: float) -> None:
        """Measure nearcast, as often as was asked for."""
        with self.worker().open(our_env(self.given)) as worker:
            repeats = [worker.ask("join", recall, {}) for _ in range(self.given.repeats)]
        self.add(
            {
                "engine": US,
                "asked": recall,
                "seconds": statistics.median(r["seconds"] for r in repeats),
                "build_seconds": statistics.median(r["build_seconds"] for r in repeats),
                "query_seconds": statistics.median(r["query_seconds"] for r in repeats),
                "recall": repeats[0]["recall"],
                "peak_bytes": max(r["peak_bytes"] for r in repeats),
                "settings": {"engine": repeats[0]["report"]["engine"], **repeats[0]["report"]["effort"]},
                "version": version("nearcast"),
                "builds_measured": len(repeats),
                "repeats": repeats,
            }
        )

    def peer(self, peer: peers.Peer, recalls: Sequence[float]) -> None:
        """Tune one peer for each recall and measure what was chosen; say why where it does not run."""
        recalls = [r for r in recalls if (r == 1) == peer.exact]
        if not recalls:
            return
        try:
            _ = peer.version
        except PackageNotFoundError:
            self.absent(peer, f"{peer.package} is not installed (pip install --group peers)")
            return
        with ExitStack() as children:
            try:
                walks = [self.built(peer, settings, children) for settings in peer.builds(self.result["data"]["items"])]
                for recall in recalls:
                    self.measure(peer, walks, recall)
            except ChildError as error:
                self.absent(peer, str(error))

    def built(self, peer: peers.Peer, settings: peers.Settings, children: ExitStack) -> Walk:
        """A child with one of the peer's builds."""
        worker = children.enter_context(self.worker().open(peer_env(self.given, peer)))
        worker.ask("choose", peer.name)
        build = worker.ask("build", settings)
        console.print(f"[dim]{peer.name} {short(settings)}: built in {build['seconds']:.1f} s")
        lanes = peer.lanes(settings, K, self.result["data"]["items"])
        return Walk(worker, peer, settings, build, lanes, self.n_queries)

    def measure(self, peer: peers.Peer, walks: Sequence[Walk], recall: float) -> None:
        """Search all queries with the cheapest settings, larger parameters if they miss the recall, then repeat."""
        limit = self.limit() if peer.sampled_by is None else math.inf
        chosen: tuple[float, int, int] | None = None
        walk = walks[0]
        for candidate in walks if not peer.exact else []:
            found = candidate.cheapest(recall, limit if chosen is None else chosen[0])
            if found is not None:
                walk, chosen = candidate, found
        if peer.exact:
            chosen = (0.0, 0, 0)
        row: dict[str, Any] = {
            "engine": peer.name,
            "asked": recall,
            "version": peer.version,
            "sweep": [tried for w in walks for tried in w.record()],
            "builds": [{**w.settings, **w.build} for w in walks],
        }
        if chosen is None:
            best = max((r["recall"] for r in row["sweep"]), default=0.0)
            reason = f"by its sample, over {limit:.0f} s ({self.given.give_up:g} × IndexFlatIP) or never reached"
            self.add({**row, "stopped": f"{reason}; best recall tried {best:.4f}"})
            return
        _, lane, rung = chosen
        for _ in range(RERUNS):
            first = walk.worker.ask("search_all", walk.lanes[lane][rung])
            if peer.exact or first["recall"] >= recall - SLACK or rung + 1 == len(walk.lanes[lane]):
                break
            rung += 1
        repeats = [first]
        while len(repeats) < self.given.repeats and sum(r["seconds"] for r in repeats) < self.given.repeat_seconds:
            repeats.append(walk.worker.ask("search_all", walk.lanes[lane][rung]))
        query_seconds = statistics.median(r["seconds"] for r in repeats)
        self.add(
            {
                **row,
                "seconds": walk.build["seconds"] + query_seconds,
                "build_seconds": walk.build["seconds"],
                "query_seconds": query_seconds,
                "recall": first["recall"],
                "peak_bytes": max(r["peak_bytes"] for r in repeats),
                "settings": {**walk.settings, **walk.lanes[lane][rung]},
                "builds_measured": 1,
                "repeats": repeats,
                "libraries": walk.worker.ask("libraries"),
            }
        )

    def limit(self) -> float:
        """Whole-job seconds beyond which an approximate peer is not measured: exact would be far cheaper."""
        exact = [r["seconds"] for r in self.result["rows"] if r["asked"] == 1 and r["engine"] != US]
        return max(LEAST_LIMIT_SECONDS, self.given.give_up * exact[0]) if exact else math.inf

    def worker(self) -> Worker:
        """A child that knows the truth, not yet started."""
        return Worker(self.pair, K, self.given.threads, self.truth)

    def absent(self, peer: peers.Peer, reason: str) -> None:
        """Report a peer that was not measured."""
        console.print(f"[yellow]{peer.name} was not measured: {reason}")
        self.result["absent"].append({"engine": peer.name, "reason": reason})
        save(self.result, self.out)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, on disk too."""
        row["load_average"] = os.getloadavg()
        self.result["rows"].append(row)
        save(self.result, self.out)
        told = row.get("stopped") or f"{row['seconds']:.1f} s, recall {row['recall']:.4f}, {short(row['settings'])}"
        console.print(f"[dim]{row['engine']} at {row['asked']:g}: {told}")


def compare(given: argparse.Namespace, pair: data.Pair, folder: Path, result: dict[str, Any], out: Path) -> None:
    """Measure nearcast and the peers at every recall."""
    truth = folder / "truth.npz"
    with Worker(pair, K, given.threads).open(our_env(given)) as worker:
        result["truth"] = worker.ask("write_truth", truth)
    if result["truth"]["agrees_with_float64"] < 1:
        sys.exit(f"the truth is wrong: {result['truth']}")
    result["complete"], result["rows"], result["absent"] = False, [], []
    comparison = Comparison(pair, truth, given, result["data"]["queries"], result, out)
    for recall in sorted(given.recall, reverse=True):
        comparison.ours(recall)
    for peer in peers.PEERS:
        wanted = peer.name not in peers.OPTIONAL if given.peers is None else peer.name in given.peers
        if wanted:
            comparison.peer(peer, sorted(given.recall))
    result["complete"] = True
    save(result, out)
    present(result, out)


def present(result: dict[str, Any], out: Path) -> None:
    """Print the tables and draw the picture of a result, finished or not."""
    show(result)
    try:
        picture.draw(result, out.with_suffix(".svg"), US)
    except ImportError:
        console.print("[yellow]no picture: matplotlib is not installed (pip install --group peers)")


def show(result: dict[str, Any]) -> None:
    """One table per recall, fastest first."""
    for asked in sorted({r["asked"] for r in result["rows"]}):
        rows = [r for r in result["rows"] if r["asked"] == asked]
        measured = sorted((r for r in rows if "seconds" in r), key=lambda r: r["seconds"])
        us = next((r["seconds"] for r in measured if r["engine"] == US), math.nan)
        table = Table(title=f"recall {asked:g}", title_justify="left")
        for name in (
            "engine",
            "whole job s",
            "build s",
            "queries s",
            "recall",
            "× ours",
            "cores",
            "peak MB",
            "n",
            "settings",
        ):
            table.add_column(name, justify="left" if name in ("engine", "settings") else "right")
        for row in measured:
            numbers = [f"{row[key]:.1f}" for key in ("seconds", "build_seconds", "query_seconds")]
            ratio, peak = f"{row['seconds'] / us:.2f}", f"{row['peak_bytes'] / 1e6:.0f}"
            cores = f"{statistics.median(r['cores_had'] for r in row['repeats']):.2f}"
            repeats, settings = str(len(row["repeats"])), short(row["settings"])
            style = "bold" if row["engine"] == US else None
            table.add_row(
                row["engine"], *numbers, f"{row['recall']:.4f}", ratio, cores, peak, repeats, settings, style=style
            )
        for row in rows:
            if "stopped" in row:
                table.add_row(row["engine"], *[""] * 8, row["stopped"], style="dim")
        console.print(table)
    for row in result["absent"]:
        console.print(f"{row['engine']}: not measured, {row['reason']}")
    if not result.get("complete"):
        console.print("[yellow]this run was stopped before its end: peers and recalls without a row were not measured")


def short(settings: peers.Settings) -> str:
    """Return a short text of the settings."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def our_env(given: argparse.Namespace) -> dict[str, str]:
    """Return the environment of nearcast's child processes."""
    return {"NEARCAST_ISA": given.isa} if given.isa else {}


def peer_env(given: argparse.Namespace, peer: peers.Peer) -> dict[str, str]:
    """Return the environment of a peer's child processes."""
    return {**peer.env, **(AVX2_BLAS if given.isa == "avx2" else {})}


def save(result: dict[str, Any], out: Path) -> None:
    """Write the rows so far."""
    result["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def commit() -> str:
    """Of this checkout, and whether it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return done.stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with items.parquet and queries.parquet; GloVe without")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--recall", type=float, nargs="+", default=[1.0, 0.95, 0.99])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeat-seconds", type=float, default=60, help="a peer's queries are not repeated beyond")
    parser.add_argument("--give-up", type=float, default=2.0, help="times IndexFlatIP, beyond which no peer is run")
    parser.add_argument("--peers", nargs="*", choices=[p.name for p in peers.PEERS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold our kernels to this instruction set; avx2 holds the peers' BLAS too")
    parser.add_argument("--products", type=Path, default=studies.PRODUCTS, help="products.parquet of the example")
    parser.add_argument("--results", type=Path, default=RESULTS)
    study = parser.add_mutually_exclusive_group()
    study.add_argument("--show", action="store_true", help="print and draw what was saved, and measure nothing")
    for name in studies.STUDIES:
        study.add_argument(f"--{name}", dest="study", action="store_const", const=name)
    return parser.parse_args()


def main() -> None:
    given = parse()
    for name in BLAS_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(our_env(given))  # so that isa_info() tells what our children take
    name = "-".join(filter(None, ("join", given.study, given.isa, "small" if given.size == "small" else "")))
    out = given.results / f"{name}.json"
    if given.show:
        present(json.loads(out.read_text()), out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pair = data.packages_pair(given.data, folder)
        if given.size == "small":
            pair = data.part_of(pair, *SMALL, folder)
        queries, items = (shape(path) for path in (pair.queries, pair.items))
        result: dict[str, Any] = {
            "machine": machine.describe(),
            "isa": asdict(isa_info()),
            "commit": commit(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "load_average": os.getloadavg(),
            "command": [Path(word).name for word in sys.argv[1:]],
            "data": {
                "name": pair.name,
                "items": items[0],
                "queries": queries[0],
                "dim": items[1],
                "k": K,
                "metric": pair.metric,
            },
            "threads": given.threads,
            "warm_up": "a build of 1,000 items for peers; none for us. Peers build once, their queries are repeated; "
            "ours is repeated whole",
            "slack": f"a peer counts as reaching a recall from {SLACK} below it on all queries, we only from it",
            "environment": f"without {', '.join(BLAS_VARIABLES)}"
            + (f"; peers with {AVX2_BLAS}" if given.isa == "avx2" else ""),
        }
        run: Callable[..., None] = compare if given.study is None else studies.STUDIES[given.study]
        if given.study is None:
            run(given, pair, folder, result, out)
        else:
            run(given, pair, folder, result, our_env(given), console)
            save(result, out)
    console.print(f"[dim]written to {out}")


def shape(path: Path) -> tuple[int, int]:
    """Of an array on disk."""
    import numpy as np

    rows, columns = np.load(path, mmap_mode="r").shape
    return rows, columns


if __name__ == "__main__":
    main()
