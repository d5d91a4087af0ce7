"""Measure the whole-job time of a kNN join by nearcast and its peers, at equal recall, on the same data.

    python benchmarks/join.py --prepare                                 # the environments of the peers
    python benchmarks/join.py --data ../shared/data/packages --sweep --peers faiss --recall 0.95
    python benchmarks/join.py --data ../shared/data/packages [--peers all] [--recall 1 0.95 0.99]
    python benchmarks/join.py --data ... --growth | --datasets | --memory

Whole job = build + all queries, from float32 vectors in memory to final lists. A sweep finds the settings that make a
peer's whole job cheapest (sweep.py) and keeps them in peer_settings.json. A run takes these, tries their neighbours,
and then does whole jobs, ours and the peers' in turn. Every engine has a child process; a peer's runs in an environment
of its own. Prints a table; writes results/join.json and join.svg as rows come in.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import data
import environments
import peers
import picture
import studies
import sweep
from nearcast import machine
from nearcast.kernels import isa_info
from worker import BLAS_VARIABLES, ChildError, Worker

RESULTS = Path(__file__).parent / "results"
SETTINGS = Path(__file__).parent / "peer_settings.json"
US = "nearcast"
K = 50
SMALL = (20_000, 5_000)  # items, queries: to see that the script works
CLIMBS = 8  # steps along the depth on all queries, if the sample was too optimistic
AVX2_BLAS = {"OPENBLAS_CORETYPE": "Haswell"}  # the peers' BLAS is held to AVX2 too where we are
SPIN_LESS = {"OMP_WAIT_POLICY": "passive"}  # threads that wait for work would count as processor time

console = Console(width=160)


@dataclass(slots=True)
class Entrant:
    """A peer in one column of the table: its child, its settings, and the jobs done so far."""

    peer: peers.Peer
    worker: Worker
    version: str
    swept: dict[str, Any] | None
    tried: list[dict[str, Any]] = field(default_factory=list)
    build: peers.Settings = field(default_factory=dict)
    search: peers.Settings = field(default_factory=dict)
    depths: Sequence[Any] = ()
    jobs: list[dict[str, Any]] = field(default_factory=list)
    libraries: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """One run of the benchmark: its engines and the rows so far."""

    pair: data.Pair
    truth: Path
    given: argparse.Namespace
    result: dict[str, Any]
    out: Path

    def column(self, recall: float) -> None:
        """Measure nearcast and the peers at one recall: tune each peer, then do whole jobs in turn."""
        with ExitStack() as children:
            entrants = self.entrants(recall, children)
            ours = children.enter_context(
                Worker(self.pair, K, self.given.threads, self.truth).open(our_env(self.given))
            )
            repeats: list[dict[str, Any]] = []
            for turn in range(self.given.repeats):
                repeats.append(ours.ask("join", recall, {}))
                console.print(f"[dim]{US} at {recall:g}: {repeats[-1]['seconds']:.1f} s")
                best = min((e.jobs[0]["seconds"] for e in entrants if e.jobs), default=math.inf)
                for entrant in list(entrants):
                    if turn > 0 and entrant.jobs[0]["seconds"] > self.given.repeat_within * best:
                        continue
                    try:
                        self.do_job(entrant, recall)
                    except ChildError as error:
                        self.absent(entrant.peer, recall, str(error))
                        entrants.remove(entrant)
                        if entrant.jobs:  # a later turn failed: earlier ones count
                            self.add_peer(recall, entrant)
            self.add_ours(recall, repeats)
            for entrant in entrants:
                self.add_peer(recall, entrant)

    def entrants(self, recall: float, children: ExitStack) -> list[Entrant]:
        """Start and tune the peers of a column; say why where one does not run."""
        found = []
        for peer in chosen_peers(self.given, recall):
            try:
                entrant = self.tune(peer, recall, children)
            except ChildError as error:
                self.absent(peer, recall, str(error))
                continue
            if entrant is not None:
                found.append(entrant)
        return found

    def tune(self, peer: peers.Peer, recall: float, children: ExitStack) -> Entrant | None:
        """Choose among the sweep's settings and their neighbours, by a sample; None if the job would take too long."""
        job = self.result["data"]
        worker = children.enter_context(open_peer(self.pair, peer, self.given, self.truth))
        peer_version = worker.ask("choose", peer.name)
        key = sweep.get_key(job, self.result["isa"]["taken"], self.given.threads)
        swept = sweep.find_settings(sweep.SweepFile(self.given.settings), key, job, peer, recall)
        start = swept["build"] if swept else peer.start(job["items"])
        search = dict(swept["search"]) if swept else {}
        axes, clock = peer.build_axes(job["items"]), sweep.Clock(False, self.given.threads)
        builds = [start, *sweep.neighbours(start, axes)][: 1 if peer.exact else 1 + self.given.neighbours]
        entrant, best = Entrant(peer, worker, peer_version, swept), math.inf
        target = recall - sweep.EXACT_SLACK if recall == 1 else recall
        for build in builds:
            walk = sweep.open_walk(worker, peer, build, job, clock, search or None)
            rung = sweep.place(search[walk.depth], walk.depths) if walk.depth in search else len(walk.depths) // 3
            found = walk.cheapest(target, (0, rung))
            entrant.tried.append(
                {**build, "build_seconds": walk.build_seconds, "recall": target, "found": found and found[0]}
            )
            if found is not None and found[0] < best:
                best, entrant.build, entrant.search, entrant.depths = (
                    found[0],
                    build,
                    walk.settings(*found[1:]),
                    walk.depths,
                )
        console.print(
            f"[dim]{peer.name} at {recall:g}: about {best:.1f} s with {short({**entrant.build, **entrant.search})}"
        )
        if best > self.given.limit:
            reason = "never reached the recall on a sample" if best == math.inf else f"about {best:.0f} s by a sample"
            self.add({"engine": peer.name, "asked": recall, "stopped": reason, "sweep": entrant.tried})
            return None
        return entrant

    def do_job(self, entrant: Entrant, recall: float) -> None:
        """Do the whole job of a peer; search deeper if it misses the recall on all queries (builds vary)."""
        slack = sweep.EXACT_SLACK if recall == 1 else sweep.SLACK
        job = entrant.worker.ask("job", entrant.build, entrant.search)
        depth = next(reversed(entrant.search), "")
        climbs = 0
        while job["recall"] < recall - slack and climbs < CLIMBS and depth:
            at = sweep.place(entrant.search[depth], entrant.depths) + 1
            if at == len(entrant.depths):
                break
            entrant.search, climbs = {**entrant.search, depth: entrant.depths[at]}, climbs + 1
            row = entrant.worker.ask("search_all", entrant.search)
            job |= {
                "seconds": job["build_seconds"] + row["seconds"],
                "query_seconds": row["seconds"],
                "processor_seconds": job["build_processor_seconds"] + row["processor_seconds"],
                "cores_had": row["cores_had"],
                "recall": row["recall"],
            }
        if job["recall"] < recall - slack:
            raise ChildError(f"recall {job['recall']:.4f} on all queries with {short(entrant.search)}")
        entrant.jobs.append({**job, "search": entrant.search})
        entrant.libraries = entrant.libraries or entrant.worker.ask("libraries")
        console.print(f"[dim]{entrant.peer.name} at {recall:g}: {job['seconds']:.1f} s, recall {job['recall']:.4f}")

    def add_ours(self, recall: float, repeats: list[dict[str, Any]]) -> None:
        """Add the row of nearcast."""
        report = repeats[0]["report"]
        self.add(
            {
                "engine": US,
                "asked": recall,
                **medians(repeats),
                "recall": min(r["recall"] for r in repeats),
                "settings": {"engine": report["engine"], **report["effort"]},
                "version": version("nearcast"),
                "repeats": repeats,
            }
        )

    def add_peer(self, recall: float, entrant: Entrant) -> None:
        """Add the row of a peer."""
        self.add(
            {
                "engine": entrant.peer.name,
                "asked": recall,
                **medians(entrant.jobs),
                "recall": min(job["recall"] for job in entrant.jobs),
                "settings": {**entrant.build, **entrant.search},
                "version": entrant.version,
                "package": entrant.peer.package,
                "swept": entrant.swept,
                "sweep": entrant.tried,
                "repeats": entrant.jobs,
                "libraries": entrant.libraries,
            }
        )

    def absent(self, peer: peers.Peer, recall: float, reason: str) -> None:
        """Report a peer that was not measured."""
        console.print(f"[yellow]{peer.name} was not measured: {reason}")
        self.result["absent"].append({"engine": peer.name, "asked": recall, "reason": reason})
        save(self.result, self.out)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, on disk too."""
        row["load_average"] = os.getloadavg()
        self.result["rows"].append(row)
        save(self.result, self.out)


def medians(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of whole jobs, and the highest peak of memory."""
    keys = ("seconds", "build_seconds", "query_seconds", "processor_seconds")
    found: dict[str, Any] = {key: statistics.median(r[key] for r in repeats) for key in keys}
    return found | {"peak_bytes": max(r["peak_bytes"] for r in repeats)}


def chosen_peers(given: argparse.Namespace, recall: float) -> list[peers.Peer]:
    """Return the peers of a column: those named, all, all but the leading ones, or the leading ones."""
    named = given.peers or ["leading"]
    return [
        peer
        for peer in peers.PEERS
        if peer.exact == (recall == 1)
        and (peer.name in named or "all" in named or ("leading" if peer.name in peers.LEADING else "others") in named)
    ]


def open_peer(pair: data.Pair, peer: peers.Peer, given: argparse.Namespace, truth: Path) -> Worker:
    """Start a child in the environment of a peer; ChildError where the peer did not install."""
    reason = environments.get_reason(given.environments, peer.environment, peer.package)
    if reason is not None:
        raise ChildError(reason)
    python = environments.get_interpreter(given.environments, peer.environment)
    return Worker(pair, K, given.threads, truth, python).open(peer_env(given, peer))


def compare(given: argparse.Namespace, pair: data.Pair, folder: Path, result: dict[str, Any], out: Path) -> None:
    """Measure nearcast and the peers at every recall."""
    truth = get_truth(given, pair, folder, result)
    result["complete"], result["rows"], result["absent"] = False, [], []
    comparison = Comparison(pair, truth, given, result, out)
    for recall in sorted(given.recall, reverse=True):
        comparison.column(recall)
    result["complete"] = True
    save(result, out)
    present(result, out)


def run_sweep(given: argparse.Namespace, pair: data.Pair, folder: Path, result: dict[str, Any]) -> None:
    """Find the best settings of the peers; stop in time, and go on at the next call."""
    truth, deadline = get_truth(given, pair, folder, result), time.monotonic() + given.seconds
    for recalls in ([r for r in given.recall if r < 1], [r for r in given.recall if r == 1]):
        for peer in chosen_peers(given, recalls[0]) if recalls else []:
            try:
                with open_peer(pair, peer, given, truth) as worker:
                    sweep_peer(given, peer, worker, recalls, result, deadline)
            except ChildError as error:
                console.print(f"[yellow]{peer.name}: {error}")


def sweep_peer(
    given: argparse.Namespace,
    peer: peers.Peer,
    worker: Worker,
    recalls: Sequence[float],
    result: dict[str, Any],
    deadline: float,
) -> None:
    """Find the best settings of one peer and store them."""
    label, job = f"{peer.name} at {' '.join(f'{r:g}' for r in recalls)}", result["data"]
    key = sweep.get_key(job, result["isa"]["taken"], given.threads)
    trials, settings = sweep.SweepFile(given.results / "join-sweep.json"), sweep.SweepFile(given.settings)
    alike = next((p for p in peers.PEERS if p.name == given.start_from), peer)
    start = sweep.find_settings(settings, key, job, alike, recalls[0]) or {"build": peer.start(job["items"])}
    found = sweep.Sweep(
        worker,
        peer,
        recalls,
        job,
        sweep.Clock(given.clock == "processor", given.threads),
        start["build"],
        trials.get(key, label) or [],
        lambda found: trials.put(found, key, label),
        lambda text: console.print(f"[dim]{text}", highlight=False),
        given.builds,
        deadline,
    )
    if not found.run():
        console.print(f"{label}: not finished; the same command goes on")
    about = {"clock": given.clock, "version": worker.ask("choose", peer.name), "machine": result["machine"]}
    for asked, best in found.get_best().items():
        settings.put({**best, **about, "when": time.strftime("%Y-%m-%d")}, key, peer.name, asked)
        console.print(f"{peer.name} at {asked}: {best}", highlight=False)


def get_truth(given: argparse.Namespace, pair: data.Pair, folder: Path, result: dict[str, Any]) -> Path:
    """Return the file of the exact lists, made if the folder has none; exit if a float64 product disagrees."""
    truth = folder / f"{pair.name}-{result['data']['items']}x{result['data']['queries']}-truth.npz"
    about = truth.with_suffix(".json")
    if not (given.keep and about.is_file()):
        with Worker(pair, K, given.threads).open(our_env(given)) as worker:
            about.write_text(json.dumps(worker.ask("write_truth", truth)))
    result["truth"] = json.loads(about.read_text())
    if result["truth"]["agrees_with_float64"] < 1:
        sys.exit(f"the truth is wrong: {result['truth']}")
    return truth


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
    patient = SPIN_LESS if given.sweep and given.clock == "processor" else {}
    return {**peer.env, **(AVX2_BLAS if given.isa == "avx2" else {}), **patient}


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
    parser.add_argument("--share", type=float, default=1.0, help="join this share of both tables, drawn at random")
    parser.add_argument("--recall", type=float, nargs="+", default=[1.0, 0.95, 0.99])
    names = [p.name for p in peers.PEERS]
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=["leading", "others", "all", *names],
        help="default: the leading ones of each recall",
    )
    parser.add_argument("--peer", dest="peers", action="append", choices=names, help="one peer; can be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="whole jobs of each engine, in turn")
    parser.add_argument(
        "--repeat-within", type=float, default=1.5, help="times the fastest peer, beyond which one job is enough"
    )
    parser.add_argument("--neighbours", type=int, default=2, help="builds tried beside the sweep's, below recall 1")
    parser.add_argument(
        "--limit", type=float, default=300, help="estimated seconds beyond which a peer's job is not done"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold our kernels to this instruction set; avx2 holds the peers' BLAS too")
    parser.add_argument("--products", type=Path, default=studies.PRODUCTS, help="products.parquet of the example")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", help="write results/join-NAME.json")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="what sweeps found")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER, help="of the peers")
    parser.add_argument("--keep", type=Path, help="folder that keeps the vectors and the exact lists for later calls")
    parser.add_argument("--start-from", help="a sweep begins with what was found for this peer of equal settings")
    parser.add_argument("--builds", type=int, default=12, help="of a sweep, for each peer, at most")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="a sweep starts no trial after; call again to go on"
    )
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="of a sweep: processor on a busy machine"
    )
    study = parser.add_mutually_exclusive_group()
    study.add_argument("--show", action="store_true", help="print and draw what was saved, and measure nothing")
    study.add_argument("--prepare", action="store_true", help="make the environments of the chosen peers")
    study.add_argument("--sweep", action="store_true", help="find the best settings of the chosen peers")
    for name in studies.STUDIES:
        study.add_argument(f"--{name}", dest="study", action="store_const", const=name)
    return parser.parse_args()


def main() -> None:
    given = parse()
    for name in BLAS_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(our_env(given))  # so that isa_info() tells what our children take
    if given.prepare:
        wanted = {p.environment for p in peers.PEERS if given.peers is None or p.name in given.peers} - {""}
        environments.prepare(given.environments, sorted(wanted))
        return
    name = "-".join(
        filter(None, ("join", given.study, given.name, given.isa, "small" if given.size == "small" else ""))
    )
    out = given.results / f"{name}.json"
    if given.show:
        present(json.loads(out.read_text()), out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pair = data.packages_pair(given.data, folder)
        items, queries = shape(pair.items)[0], shape(pair.queries)[0]
        if given.size == "small":
            pair = data.part_of(pair, *SMALL, folder)
        elif given.share < 1:
            pair = data.part_of(pair, round(items * given.share), round(queries * given.share), folder)
        result = describe(given, pair)
        if given.sweep:
            run_sweep(given, pair, folder, result)
            return
        if given.study is None:
            compare(given, pair, folder, result, out)
        else:
            run: Callable[..., None] = studies.STUDIES[given.study]
            run(given, pair, folder, result, our_env(given), console)
            save(result, out)
    console.print(f"[dim]written to {out}")


def describe(given: argparse.Namespace, pair: data.Pair) -> dict[str, Any]:
    """Return the head of a result: machine, data and method."""
    queries, items = (shape(path) for path in (pair.queries, pair.items))
    return {
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
        "method": "whole jobs, ours and the peers' in turn; a peer's settings are those of its sweep, or neighbours "
        f"that a sample found cheaper; not repeated: a peer whose first job takes over {given.repeat_within:g} times "
        "the fastest peer's",
        "warm_up": "a join of a few vectors for peers; none for us",
        "slack": f"a peer counts as reaching a recall from {sweep.SLACK} below it on all queries "
        f"({sweep.EXACT_SLACK:g} at recall 1), we only from it",
        "environment": f"without {', '.join(BLAS_VARIABLES)}"
        + (f"; peers with {AVX2_BLAS}" if given.isa == "avx2" else ""),
    }


def shape(path: Path) -> tuple[int, int]:
    """Of an array on disk."""
    import numpy as np

    rows, columns = np.load(path, mmap_mode="r").shape
    return rows, columns


if __name__ == "__main__":
    main()
