"""Child process that loads the vectors, runs commands, and reports seconds, recall and peak memory.

One child per engine and build, so that thread pools and memory do not mix. The peak is of the whole child (the
kernel's high-water mark), including its vectors and the exact neighbors.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import data
import peers

BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "NVPL_BLAS_DEBUG_CPU_TYPE")  # would hold the peers' BLAS to another processor
SAMPLE_QUERIES = 2_000
OPENING_SECONDS = 120  # a child that has not loaded its vectors by then is stuck


class ChildError(Exception):
    """A command of a child failed: a library is missing, fails, or does not run on this processor."""


class Worker:
    """Handle of a child process that runs one command at a time."""

    def __init__(self, pair: data.Pair, k: int, threads: int, truth: Path | None = None) -> None:
        self._arguments = (pair, k, threads, truth)
        self._context = multiprocessing.get_context("spawn")

    def open(self, env: Mapping[str, str]) -> Self:
        """Start the child under this environment, without what others have set for BLAS libraries."""
        kept = dict(os.environ)
        for name in BLAS_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(env)
        try:
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        theirs.close()
        return self

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Have the child do something; ChildError where it cannot."""
        try:
            self._pipe.send((verb, arguments))
            good, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(OPENING_SECONDS)
            raise ChildError(f"the process died with exit code {self._process.exitcode}") from None
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
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, pair: data.Pair, k: int, threads: int, truth: Path | None) -> None:
    os.dup2(sys.stderr.fileno(), 1)  # libraries that print do not spoil the table
    child = _Child(pair, k, threads, truth)
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


class _Child:
    """The verbs of a child, over vectors in its memory."""

    def __init__(self, pair: data.Pair, k: int, threads: int, truth: Path | None) -> None:
        self.pair, self.k, self.threads = pair, k, threads
        self.queries, self.items = pair.load()
        self.truth = None if truth is None else data.load_truth(truth)
        rng = np.random.default_rng(3)
        self.sample_rows = np.sort(
            rng.choice(len(self.queries), min(SAMPLE_QUERIES, len(self.queries) // 2), replace=False)
        )
        self.peer: peers.Peer | None = None
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

    def choose(self, name: str) -> dict[str, Any]:
        """Which peer this child measures: its version, and how its libraries see the processor."""
        self.peer = next(p for p in peers.PEERS if p.name == name)
        return {"version": self.peer.version}

    def build(self, settings: peers.Settings) -> dict[str, float]:
        """Build the index that later verbs search; the time it took."""
        assert self.peer is not None
        self.peer.build(self.items[:1000].copy(), _small(settings), self.threads)  # imports, pools: not the build
        watch = Stopwatch()
        self.index = self.peer.build(self.items, settings, self.threads)
        return watch.read()

    def try_sample(self, settings: peers.Settings) -> tuple[float, float]:
        """(seconds per query, recall) on the sample."""
        assert self.peer is not None
        queries = self.queries[self.sample_rows]
        search = self.peer.sampled_by or self.peer.search
        watch = Stopwatch()
        found = search(self.index, queries, self.k, settings, self.threads)
        return watch.read()["seconds"] / len(queries), self._recall(found, self.sample_rows)

    def search_all(self, settings: peers.Settings) -> dict[str, Any]:
        """Search every query; seconds and recall."""
        assert self.peer is not None
        watch = Stopwatch()
        found = self.peer.search(self.index, self.queries, self.k, settings, self.threads)
        row = {**watch.read(), "peak_bytes": peak_bytes()}
        return {**row, "recall": self._recall(found)}

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

    def _recall(self, found: Any, rows: Any = slice(None)) -> float:
        assert self.truth is not None
        queries = self.queries[rows]
        return float(data.recalls(found, self.truth.rows(rows), queries, self.items, self.pair.metric).mean())


class Stopwatch:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds, and the cores that this process had: fewer than its threads where others used the machine."""
        seconds = time.perf_counter() - self._started
        return {"seconds": seconds, "cores_had": (time.process_time() - self._cpu_started) / max(seconds, 1e-9)}


def _small(settings: peers.Settings) -> peers.Settings:
    """The same settings for a thousand items: fewer cells."""
    return {key: min(v, 16) if key in ("nlist", "leaves") else v for key, v in settings.items()}


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
