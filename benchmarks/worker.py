"""Child process that loads the vectors, runs commands, and reports seconds, processor seconds, recall and peak memory.

One child per engine, so that thread pools, memory and packages do not mix. A child runs under the interpreter of the
peer's environment; it takes `nearcast.knn` from this checkout, for the recall. The peak is of the whole child (the
kernel's high-water mark), including its vectors and the exact neighbors.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import data
import peers

BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NVPL_BLAS_DEBUG_CPU_TYPE")  # would hold the peers' BLAS
# to another processor or cache
SOURCES = Path(__file__).parent.parent / "src"  # of nearcast, for children of other environments
WARM_UP_ITEMS, WARM_UP_QUERIES = 2_000, 64
CLOSING_SECONDS = 20


class ChildError(Exception):
    """A command of a child failed: a library is missing, fails, or does not run on this processor."""


class Worker:
    """Handle of a child process that runs one command at a time."""

    def __init__(
        self, pair: data.Pair, k: int, threads: int, truth: Path | None = None, python: Path = Path(sys.executable)
    ) -> None:
        self._arguments, self._python = (pair, k, threads, truth), python

    def open(self, env: Mapping[str, str]) -> Self:
        """Start the child under this environment, without what others have set for BLAS libraries."""
        kept = {name: value for name, value in os.environ.items() if name not in (*BLAS_VARIABLES, "PYTHONPATH")}
        if self._python != Path(sys.executable):
            kept["PYTHONPATH"] = str(SOURCES)
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [str(self._python), __file__, str(theirs.fileno())],
            env={**kept, **env},
            pass_fds=[theirs.fileno()],
            stdout=sys.stderr,  # libraries that print do not spoil the table
        )
        theirs.close()
        self.ask("load", *self._arguments)
        return self

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Have the child do something; ChildError where it cannot."""
        try:
            self._pipe.send((verb, arguments))
            good, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise ChildError(f"the process died with exit code {self._process.wait(CLOSING_SECONDS)}") from None
        if not good:
            raise ChildError(answer)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and wait for it."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def serve(pipe: Connection) -> None:
    """Run the parent's commands until it closes its end."""
    child = Child()
    while True:
        try:
            verb, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, getattr(child, verb)(*arguments))
        except Exception as error:  # whatever a peer raises is the reason that the table gives
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)


class Child:
    """The verbs of a child, over vectors in its memory."""

    def load(self, pair: data.Pair, k: int, threads: int, truth: Path | None) -> None:
        """Read both tables into memory; reading is part of no time."""
        self.pair, self.k, self.threads = pair, k, threads
        self.queries, self.items = pair.load()
        self.truth = None if truth is None else data.load_truth(truth)
        self.order = np.random.default_rng(3).permutation(len(self.queries))  # its first n are the sample of n
        self.index: Any = None

    def join(self, recall: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """One join by nearcast, as a user would call it."""
        from nearcast import knn_join

        reset_peak()
        watch = Stopwatch()
        found = knn_join(
            self.queries,
            self.items,
            k=self.k,
            metric=self.pair.metric,
            recall=recall,
            threads=self.threads,
            exclude_self=self.pair.self_join,
            **options,
        )
        times = watch.read()
        report = asdict(found.report)
        report["effort"] = report.pop("params")  # the key of earlier results
        row = {
            **times,
            "build_seconds": sum(s for stage, s in report["seconds"].items() if stage != "join"),
            "query_seconds": report["seconds"]["join"],
            "peak_bytes": peak_bytes(),
            "report": report,
            "sha256": hashlib.sha256(found.positions.tobytes() + found.scores.tobytes()).hexdigest(),
        }
        if self.truth is not None:
            row["recall"] = self._recall(found.positions)
        return row

    def write_truth(self, path: Path) -> dict[str, float]:
        """The exact lists by nearcast, held against a float64 product on some queries."""
        from nearcast import knn_join

        found = knn_join(
            self.queries,
            self.items,
            k=self.k,
            metric=self.pair.metric,
            threads=self.threads,
            exclude_self=self.pair.self_join,
        )
        truth = data.Truth(
            found.positions, found.scores[np.arange(len(found.scores)), np.maximum(found.lengths, 1) - 1]
        )
        agreed = data.check_truth(truth, self.queries, self.items, self.pair.metric, self_join=self.pair.self_join)
        data.save_truth(truth, path)
        return {"agrees_with_float64": agreed, "queries_checked": data.CHECKED_QUERIES}

    def choose(self, name: str) -> str:
        """Import the library of the peer that this child measures; its version."""
        self.peer = next(p for p in peers.PEERS if p.name == name)
        return self.peer.version

    def build(self, settings: peers.Settings) -> dict[str, float]:
        """Build the index that later verbs search; the time it took."""
        self.index = None  # the one before would be counted in the peak
        gc.collect()
        return self._timed_build(self.items, settings)

    def warm_up(self, build: peers.Settings, search: peers.Settings) -> None:
        """Join a few vectors: imports and thread pools are part of no time."""
        few = {key: min(v, 16) if key in peers.COUNTS_OF_CELLS else v for key, v in build.items()}
        self._timed_build(self.items[:WARM_UP_ITEMS].copy(), few)
        shallow = {key: min(v, 16) if key in peers.COUNTS_OF_CELLS else v for key, v in search.items()}
        self.peer.search(self.index, self.queries[:WARM_UP_QUERIES].copy(), self.k, shallow, self.threads)

    def try_sample(self, settings: peers.Settings, size: int) -> dict[str, float]:
        """Search a sample of queries; seconds and recall."""
        rows = np.sort(self.order[:size])
        queries = self.queries[rows]
        watch = Stopwatch()
        found = self.peer.search(self.index, queries, self.k, settings, self.threads)
        return {**watch.read(), "recall": self._recall(found, rows)}

    def search_all(self, settings: peers.Settings) -> dict[str, Any]:
        """Search every query; seconds and recall."""
        watch = Stopwatch()
        found = self.peer.search(self.index, self.queries, self.k, settings, self.threads)
        row = {**watch.read(), "peak_bytes": peak_bytes()}
        return {**row, "recall": self._recall(found)}

    def job(self, build: peers.Settings, search: peers.Settings) -> dict[str, Any]:
        """The whole job: build, then search every query. Seconds of both, and recall."""
        reset_peak()
        built = self.build(build)
        searched = self.search_all(search)
        seconds = built["seconds"] + searched["seconds"]
        return {
            "seconds": seconds,
            "build_seconds": built["seconds"],
            "query_seconds": searched["seconds"],
            "build_processor_seconds": built["processor_seconds"],
            "processor_seconds": built["processor_seconds"] + searched["processor_seconds"],
            "cores_had": (built["processor_seconds"] + searched["processor_seconds"]) / max(seconds, 1e-9),
            "peak_bytes": searched["peak_bytes"],
            "recall": searched["recall"],
        }

    def libraries(self) -> list[dict[str, Any]]:
        """The thread pools of this process and the processor that they believe in; faiss' instruction set."""
        import threadpoolctl

        pools = [
            {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads", "filepath")}
            for pool in threadpoolctl.threadpool_info()
        ]
        for pool in pools:
            pool["filepath"] = Path(str(pool["filepath"])).name
        if "faiss" in sys.modules:
            import faiss

            pools.append({"internal_api": "faiss", "architecture": faiss.SIMDConfig.get_level_name()})
        return pools

    def _timed_build(self, items: data.Array, settings: peers.Settings) -> dict[str, float]:
        watch = Stopwatch()
        self.index = self.peer.build(items, settings, self.threads)
        return watch.read()

    def _recall(self, found: Any, rows: Any = slice(None)) -> float:
        assert self.truth is not None
        queries = self.queries[rows]
        return float(data.recalls(found, self.truth.rows(rows), queries, self.items, self.pair.metric).mean())


class Stopwatch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), processor_seconds()

    def read(self) -> dict[str, float]:
        """Seconds; processor seconds; and the cores that this process had: few where others used the machine."""
        seconds, used = time.perf_counter() - self._started, processor_seconds() - self._cpu_started
        return {"seconds": seconds, "processor_seconds": used, "cores_had": used / max(seconds, 1e-9)}


def processor_seconds() -> float:
    """User and system time of this process, its threads, and the children that it waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def peak_bytes() -> int:
    """The most memory that this process has held since its start, or since reset_peak()."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_peak() -> None:
    """Forget the peak so far, where the system can (Linux): what loading took is not the join's."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
