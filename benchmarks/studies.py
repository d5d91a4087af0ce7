"""Measure the join of nearcast alone: growth with size, recall targets on other data sets, and memory.

Each study prints a table and adds its rows to the result. Every join runs in a separate child process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import data
from worker import Worker

PRODUCTS = Path(__file__).parent.parent / "examples" / "similar_products" / "data" / "products.parquet"
K = 50
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of both sides: 50,000 to 400,000 items
PRUNED = 0.95
PROMISES = (0.8, 0.9, 0.95, 0.99)
SPARE_BYTES = 300_000_000  # beside twice the fp32 bytes of both inputs


def growth(
    given: argparse.Namespace,
    pair: data.Pair,
    folder: Path,
    result: dict[str, Any],
    env: Mapping[str, str],
    out: Console,
) -> None:
    """Measure the seconds of each stage while both tables grow in proportion, and fit an exponent."""
    table = Table(title="growth: items and queries in proportion", title_justify="left")
    for name in ("recall", "items", "queries", "build s", "calibrate s", "join s", "whole s", "settings"):
        table.add_column(name, justify="right")
    rows, whole = [], result["data"]
    for recall in (1.0, PRUNED):
        for share in SHARES:
            part = data.part_of(pair, round(whole["items"] * share), round(whole["queries"] * share), folder)
            row = median_join(part, recall, given, env)
            row |= {"asked": recall, "items": round(whole["items"] * share), "queries": round(whole["queries"] * share)}
            rows.append(row)
            stages = row["report"]["seconds"]
            table.add_row(
                f"{recall:g}",
                f"{row['items']:,}",
                f"{row['queries']:,}",
                *(f"{stages[name]:.2f}" for name in ("build", "calibrate", "join")),
                f"{row['seconds']:.2f}",
                str(row["report"]["effort"]),
            )
    out.print(table)
    result["rows"], result["exponents"] = rows, {}
    for recall in (1.0, PRUNED):
        mine = [r for r in rows if r["asked"] == recall]
        fits = {"whole": exponent(mine, lambda r: r["seconds"])}
        for stage in ("build", "calibrate", "join"):
            fits[stage] = exponent(mine, lambda r, stage=stage: r["report"]["seconds"][stage])
        result["exponents"][f"{recall:g}"] = fits
        out.print(
            f"seconds grow as items ** e at recall {recall:g}: "
            + ", ".join(f"{s} {e:.2f}" for s, e in fits.items() if e is not None)
        )


def median_join(
    pair: data.Pair, recall: float, given: argparse.Namespace, env: Mapping[str, str], truth: Path | None = None
) -> dict[str, Any]:
    """The join of median time, with every time."""
    with Worker(pair, K, given.threads, truth).open(env) as worker:
        runs = sorted((worker.ask("join", recall, {}) for _ in range(given.repeats)), key=lambda run: run["seconds"])
    return {**runs[len(runs) // 2], "every_seconds": [run["seconds"] for run in runs]}


def exponent(rows: list[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> float | None:
    """The slope of seconds over items, both as logarithms; None for a stage that takes no time."""
    times = np.array([seconds(row) for row in rows])
    if (times < 1e-3).any():
        return None
    return float(np.polyfit(np.log([row["items"] for row in rows]), np.log(times), 1)[0])


def datasets(
    given: argparse.Namespace,
    pair: data.Pair,
    folder: Path,
    result: dict[str, Any],
    env: Mapping[str, str],
    out: Console,
) -> None:
    """Compare the recall of all queries with the target, on all available data sets."""
    pairs = [pair] if not pair.name.startswith("glove") else []
    for metric in ("cosine", "l2"):
        found = data.glove_pair(folder, metric)
        small = given.size == "small"
        pairs.append(data.part_of(found, 20_000, 5_000, folder) if small else found)
    result["absent"] = []
    if given.products.is_file():
        pairs.append(data.products_pair(given.products, folder))
    else:
        reason = f"no {given.products}: make demo writes it"
        out.print(f"[yellow]products were not joined: {reason}")
        result["absent"].append({"data": "products", "reason": reason})
    table = Table(title="recall target and measured recall, on all queries", title_justify="left")
    for name in ("data", "metric", "target", "reached", "held-out", "met", "whole s", "exact s", "settings"):
        table.add_column(name, justify="right")
    result["rows"] = []
    for one in pairs:
        truth = folder / "truth.npz"
        with Worker(one, K, given.threads).open(env) as worker:
            checked = worker.ask("write_truth", truth)
        assert checked["agrees_with_float64"] == 1, (one, checked)
        with Worker(one, K, given.threads, truth).open(env) as worker:
            exact = worker.ask("join", 1.0, {})
            for promise in PROMISES:
                row = worker.ask("join", promise, {})
                row |= {"data": one.name, "metric": one.metric, "promise": promise, "truth": checked}
                row["exact_seconds"], row["exact_recall"] = exact["seconds"], exact["recall"]
                result["rows"].append(row)
                report = row["report"]
                said = (
                    "exact" if report["reached"] is None else f"{report['reached']:.4f} (≥ {report['reached_low']:.4f})"
                )
                table.add_row(
                    one.name,
                    one.metric,
                    f"{promise:g}",
                    f"{row['recall']:.4f}",
                    said,
                    "yes" if row["recall"] >= promise else "[red]no",
                    f"{row['seconds']:.2f}",
                    f"{exact['seconds']:.2f}",
                    str(report["effort"]),
                )
    out.print(table)


def memory(
    given: argparse.Namespace,
    pair: data.Pair,
    _folder: Path,
    result: dict[str, Any],
    env: Mapping[str, str],
    out: Console,
) -> None:
    """The most memory a join holds, inputs and libraries included, and whether a quarter gives the same bytes."""
    whole = result["data"]
    input_bytes = 4 * whole["dim"] * (whole["items"] + whole["queries"])
    bound = 2 * input_bytes + SPARE_BYTES
    table = Table(title=f"peak memory; the bound is {bound / 1e6:.0f} MB", title_justify="left")
    for name in ("recall", "budget MB", "peak MB", "of the bound", "whole s", "same bytes"):
        table.add_column(name, justify="right")
    result["bound_bytes"], result["rows"] = bound, []
    for recall in (1.0, PRUNED):
        first = None
        for budget in (bound, bound // 4):
            with Worker(pair, K, given.threads).open(env) as worker:
                row = worker.ask("join", recall, {"memory": budget})
            first = first or row["sha256"]
            row |= {"asked": recall, "budget_bytes": budget, "same_bytes": row["sha256"] == first}
            result["rows"].append(row)
            table.add_row(
                f"{recall:g}",
                f"{budget / 1e6:.0f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{row['peak_bytes'] / bound:.2f}",
                f"{row['seconds']:.2f}",
                "yes" if row["same_bytes"] else "[red]no",
            )
    out.print(table)


STUDIES: dict[str, Callable[..., None]] = {"growth": growth, "datasets": datasets, "memory": memory}
