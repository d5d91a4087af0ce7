"""Rules inside the join: time, fill and recall at several selectivities, beside filtering after a search.

    python benchmarks/rules.py --data FOLDER [--queries N] [--repeats N] [--no-peers]

Runs every rule exactly and at recall 0.95, in turn with the unfiltered exact join, so that ratios are of one run. The
peers are common practice: faiss searches ten times k and filters afterwards, hnswlib filters inside its search.
They answer a sample of the queries, and their time is scaled to all. Writes results/rules.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import nearcast
from nearcast import machine
from nearcast.kernels import isa_info
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import AllOf, BitsetOverlap, Eligibility, Interval, eligible_pairs
from nearcast.knn.exact_join import exact_join
from nearcast.knn.join_request import JoinRequest, Resources
from nearcast.measure.recall import recall_per_query
from nearcast.types import ArrayVectors, Metric, Neighbors

Array = np.ndarray[Any, Any]

K = 50
WIDER = 10  # times k, that are searched before a filter
PROMISE = 0.95
SHARES = (0.5, 0.1, 0.01, 0.001)
REFEREED = 200  # queries whose lists are held against scoring every pair
PEER_QUERIES = {"faiss flat": 2_000, "faiss ivf": 2_000, "hnswlib": 200}
IVF_CELLS, IVF_PROBES = 2_048, 128
HNSW = {"M": 16, "ef_construction": 100}


@dataclass(frozen=True, slots=True)
class Case:
    """A rule, and its intended share of eligible pairs."""

    name: str
    share: float
    rule: Eligibility


def main() -> None:
    """Measure, show, and write."""
    given = _arguments()
    out = Console()
    items, queries, columns = _load(given.data, given.queries)
    cases = list(_cases(columns, len(queries)))
    base, rows = _measured(items, queries, cases, given.repeats, out)
    path = Path(__file__).parent / "results" / "rules.json"
    here = {
        "machine": machine.describe(),
        "isa": isa_info().taken,
        "versions": {"nearcast": nearcast.__version__},
        "data": {"name": "packages", "items": len(items), "queries": len(queries), "k": K},
    }
    peers = _peers_before(path, here) if given.no_peers else list(_peers(items, queries, cases, out))
    result = here | {"unfiltered_seconds": base, "rows": rows, "peers": peers}
    path.write_text(json.dumps(result, indent=1) + "\n")
    _show(result, out)


def _peers_before(path: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the peers' rows of an earlier run of the same work on the same kind of machine."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    rows: list[dict[str, Any]] = before["peers"] if all(before.get(name) == here[name] for name in here) else []
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with items.parquet and queries.parquet")
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="keep what they did in the run before, if it is alike")
    return parser.parse_args()


def _load(folder: Path, n_queries: int) -> tuple[Array, Array, dict[str, Array]]:
    table = pq.read_table(folder / "items.parquet")
    asked = pq.read_table(folder / "queries.parquet", columns=["vector"]).slice(0, n_queries)
    columns = {}
    for name in ("released", "download_rank"):
        codes = pc.fill_null(table.column(name), -1).to_numpy()
        columns[name] = np.where(codes < 0, -1, np.unique(codes, return_inverse=True)[1]).astype(np.int32)
    return _matrix(table), _matrix(asked), columns


def _matrix(table: Any) -> Array:
    column = table.column("vector").combine_chunks()
    return np.ascontiguousarray(column.values.to_numpy().reshape(len(column), -1), np.float32)


def _cases(columns: dict[str, Array], n: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    m = len(columns["released"])
    for share in SHARES:
        yield Case("released after", share, Eligibility(n, m, (_after(rng, columns["released"], n, share),), 0))
        ranks = np.sort(columns["download_rank"][columns["download_rank"] >= 0])
        if share * m < len(ranks):
            wide = ranks[int(share * m)] - ranks[0]
            low = rng.integers(ranks[0], ranks[-1] - wide, size=n).astype(np.int32)
            leaf = Interval(columns["download_rank"], low, (low + wide).astype(np.int32))
            yield Case("rank within", share, Eligibility(n, m, (leaf,), 0))
        yield Case("sets overlap", share, Eligibility(n, m, (_sets(rng, n, m, share),), 0))
        both = (_after(rng, columns["released"], n, share**0.5), _sets(rng, n, m, share**0.5))
        yield Case("released after, sets overlap", share, Eligibility(n, m, both, AllOf((0, 1))))
    kinds = rng.integers(0, 100, size=m).astype(np.int32)
    asked = rng.integers(0, 100, size=n).astype(np.int32)
    yield Case("equal, 100 values", 0.01, Eligibility(n, m, (Interval(kinds, asked, asked),), 0))


def _after(rng: np.random.Generator, codes: Array, n: int, share: float) -> Interval:
    """Each query asks for items released after a date of its own, about `share` of all."""
    ordered = np.sort(codes)
    wanted = np.clip(share * rng.uniform(0.7, 1.3, size=n), 0, 1)
    low = np.maximum(ordered[np.minimum(((1 - wanted) * len(codes)).astype(np.int64), len(codes) - 1)], 0)
    return Interval(codes, low.astype(np.int32), np.full(n, codes.max(), np.int32))


def _sets(rng: np.random.Generator, n: int, m: int, share: float) -> BitsetOverlap:
    """Items hold values out of 64 at random, each query asks for one."""
    held = np.packbits(rng.random((m, 64)) < share, axis=1, bitorder="little").view(np.uint64)
    return BitsetOverlap(held, (np.uint64(1) << rng.integers(0, 64, size=n).astype(np.uint64))[:, None])


def _measured(
    items: Array, queries: Array, cases: list[Case], repeats: int, out: Console
) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of the unfiltered exact join, and a row per case; all in turn, as often as asked."""
    base: list[float] = []
    times: dict[tuple[int, float], list[float]] = {}
    rows: list[dict[str, Any]] = [{} for _ in cases]
    for repeat in range(repeats):
        base.append(_join(items, queries, 1.0, None)[1])
        for number, case in enumerate(cases):
            constraints = Constraints(case.rule)
            exact, seconds = _join(items, queries, 1.0, constraints)
            pruned, pruned_seconds = _join(items, queries, PROMISE, constraints)
            times.setdefault((number, 1.0), []).append(seconds)
            times.setdefault((number, PROMISE), []).append(pruned_seconds)
            if repeat == 0:
                _referee(items, queries, case, exact)
                recall = recall_per_query(pruned.scores, Neighbors(exact.positions, exact.scores))
                rows[number] = {
                    "rule": case.name,
                    "share": case.share,
                    "eligible": _eligible_share(case),
                    "fill": float((exact.positions >= 0).mean()),
                    "recall_at_95": float(recall.mean()),
                    "effort_at_95": dict(pruned.report.params),
                }
            ratio, other = seconds / base[-1], pruned_seconds / base[-1]
            out.print(f"{case.name} {case.share:g}: exact {seconds:.2f} s, {ratio:.2f}x; 0.95 {other:.2f}x")
    for number, row in enumerate(rows):
        row["seconds"], row["seconds_at_95"] = times[number, 1.0], times[number, PROMISE]
        row["ratio"] = median(row["seconds"]) / median(base)
        row["ratio_at_95"] = median(row["seconds_at_95"]) / median(base)
    return base, rows


def _join(items: Array, queries: Array, recall: float, constraints: Constraints | None) -> tuple[Any, float]:
    given = {} if constraints is None else {"constraints": constraints}
    started = time.perf_counter()
    found = nearcast.knn_join(queries, items, k=K, metric="inner_product", recall=recall, threads=2, **given)
    return found, time.perf_counter() - started


def _sample(n: int, size: int) -> Array:
    return np.sort(np.random.default_rng(1).choice(n, min(n, size), replace=False))


def _referee(items: Array, queries: Array, case: Case, found: Any) -> None:
    rows = _sample(len(queries), REFEREED)
    held = Constraints(case.rule.of_queries(rows))
    truth = exact_join(
        queries[rows], ArrayVectors(items), JoinRequest(Metric.INNER_PRODUCT, K, constraints=held), Resources(2)
    )
    np.testing.assert_array_equal(found.positions[rows], truth.positions)


def _eligible_share(case: Case) -> float:
    return float(eligible_pairs(case.rule.of_queries(_sample(case.rule.n_queries, REFEREED))).mean())


# ---- what people do today ----


def _peers(items: Array, queries: Array, cases: list[Case], out: Console) -> Iterator[dict[str, Any]]:
    for name, search in _searches(items):
        rows = _sample(len(queries), PEER_QUERIES[name])
        for case in cases:
            rule = case.rule.of_queries(rows)
            held = Constraints(rule)
            truth = nearcast.knn_join(queries[rows], items, k=K, metric="inner_product", threads=2, constraints=held)
            allowed = eligible_pairs(rule) if len(rows) * len(items) < 2**30 else None
            started = time.perf_counter()
            positions = search(queries[rows], rule, allowed)
            seconds = (time.perf_counter() - started) / len(rows) * len(queries)
            scores = np.where(
                positions >= 0, np.einsum("nd,nkd->nk", queries[rows], items[np.maximum(positions, 0)]), -np.inf
            )
            near = Neighbors(truth.positions, truth.scores - 1e-5)  # their float32 sums differ in the last bits
            row = {
                "peer": name,
                "rule": case.name,
                "share": case.share,
                "sample": len(rows),
                "seconds": seconds,
                "fill": float((positions >= 0).mean()),
                "fill_possible": float((truth.positions >= 0).mean()),
                "recall": float(recall_per_query(scores.astype(np.float32), near).mean()),
            }
            out.print(f"{name}, {case.name} {case.share:g}: {seconds:.1f} s, recall {row['recall']:.3f}")
            yield row


def _searches(items: Array) -> Iterator[tuple[str, Callable[[Array, Eligibility, Array | None], Array]]]:
    import faiss
    import hnswlib

    faiss.omp_set_num_threads(2)
    d = items.shape[1]
    flat = faiss.IndexFlatIP(d)
    flat.add(items)
    yield "faiss flat", _filtered_after(lambda asked: flat.search(asked, WIDER * K)[1])
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, IVF_CELLS, faiss.METRIC_INNER_PRODUCT)
    ivf.train(items[:: max(1, len(items) // (64 * IVF_CELLS))])
    ivf.add(items)
    ivf.nprobe = IVF_PROBES
    yield "faiss ivf", _filtered_after(lambda asked: ivf.search(asked, WIDER * K)[1])
    graph = hnswlib.Index("ip", d)
    graph.init_index(len(items), **HNSW)
    graph.add_items(items, num_threads=2)

    def inside(asked: Array, _rule: Eligibility, allowed: Array | None) -> Array:
        assert allowed is not None
        graph.set_ef(WIDER * K)
        positions = np.full((len(asked), K), -1, np.int64)
        for row, vector in enumerate(asked):
            legal = allowed[row]
            for wanted in (K, 10, 1):  # it raises where it finds fewer than it was asked for
                try:
                    found = graph.knn_query(vector[None], k=wanted, num_threads=1, filter=legal.__getitem__)[0][0]
                except RuntimeError:
                    continue
                positions[row, : len(found)] = found.astype(np.int64)
                break
        return positions

    yield "hnswlib", inside


def _filtered_after(search: Callable[[Array], Array]) -> Callable[[Array, Eligibility, Array | None], Array]:
    def found(asked: Array, rule: Eligibility, _allowed: Array | None) -> Array:
        wide = search(asked)
        positions = np.full((len(asked), K), -1, np.int64)
        for row, listed in enumerate(wide):
            there = listed[listed >= 0]
            kept = there[eligible_pairs(rule.of_queries(slice(row, row + 1)).of_items(there))[0]][:K]
            positions[row, : len(kept)] = kept
        return positions

    return found


def _show(result: dict[str, Any], out: Console) -> None:
    table = Table(title=f"rules inside the join, {result['isa']}: time against the unfiltered exact join")
    for name in ("rule", "eligible", "exact", "0.95", "recall", "fill"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in result["rows"]:
        table.add_row(
            row["rule"],
            f"{row['eligible']:.2%}",
            f"{row['ratio']:.2f}x",
            f"{row['ratio_at_95']:.2f}x",
            f"{row['recall_at_95']:.4f}",
            f"{row['fill']:.1%}",
        )
    out.print(table)
    if not result["peers"]:
        return
    table = Table(title="filtering after, or inside, a search")
    for name in ("peer", "rule", "eligible", "seconds", "recall", "fill"):
        table.add_column(name, justify="right" if name in ("eligible", "seconds", "recall", "fill") else "left")
    for row in result["peers"]:
        figures = (f"{row['share']:.1%}", f"{row['seconds']:.0f}", f"{row['recall']:.3f}", f"{row['fill']:.1%}")
        table.add_row(row["peer"], row["rule"], *figures)
    out.print(table)


if __name__ == "__main__":
    main()
