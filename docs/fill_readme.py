"""Put the demo's output and measured figures into README.md and docs/expansion.md, between their markers.

make demo | tee demo.txt; python docs/fill_readme.py demo.txt
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME -->."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if len(sys.argv) > 1:
        output = Path(sys.argv[1]).read_text(encoding="utf-8")
        text = _put(text, "demo", _shown(output, "== 3.", "== 5."))
        text = _put(text, "served", _shown(output, "== 6.", "== 8."))
    text = _put(text, "end-to-end", _end_to_end(ROOT / "benchmarks" / "results" / "end_to_end.json"))
    text = _put(text, "join", _join(ROOT / "benchmarks" / "results" / "join.json"))
    text = _put(text, "rules", _rules(_result("rules")))
    text = _put(text, "cost", _cost(_result("cost")))
    serving = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text(encoding="utf-8"))
    text = _put(text, "cheaper", _cheaper(serving))
    text = _put(text, "serving", _serving(serving["parts"]))
    two_step = _two_step(_result("two_step"))
    readme.write_text(_put(text, "two-step", two_step), encoding="utf-8")
    page = ROOT / "docs" / "expansion.md"
    page.write_text(_put(page.read_text(encoding="utf-8"), "two-step", two_step), encoding="utf-8")


def _result(name: str) -> Any:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _put(text: str, name: str, body: str) -> str:
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + body + m[2], text, flags=re.DOTALL)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _shown(output: str, first: str, end: str) -> str:
    """Return the part of the demo's output between two headings."""
    shown = output[output.index(first) : output.index(end)]
    lines = [line.rstrip() for line in shown.splitlines()]
    return "```\n" + "\n".join(lines).strip() + "\n```\n"


def _join(path: Path) -> str:
    """Return a row per engine and recall, the fastest first, with the time relative to nearcast."""
    result = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = [row for row in result["rows"] if "seconds" in row]  # others were stopped
    ours = {row["asked"]: row["seconds"] for row in rows if row["engine"] == "nearcast"}
    heads = ("recall target", "engine", "total", "build", "queries", "recall", "relative time")
    cells = (
        (
            f"{row['asked']:g}",
            f"**{row['engine']}**" if row["engine"] == "nearcast" else row["engine"],
            f"{row['seconds']:.1f} s",
            f"{row['build_seconds']:.1f} s",
            f"{row['query_seconds']:.1f} s",
            f"{row['recall']:.4f}",
            f"{row['seconds'] / ours[row['asked']]:.1f}x",
        )
        for row in sorted(rows, key=lambda row: (-row["asked"], row["seconds"]))
    )
    return _table(heads, cells) + _repeats(rows, result["absent"])


def _repeats(rows: Sequence[dict[str, Any]], absent: Sequence[dict[str, Any]]) -> str:
    """Say how often each engine was measured, and which peers were not."""
    once = dict.fromkeys(row["engine"] for row in rows if len(row["repeats"]) == 1)
    most = max(len(row["repeats"]) for row in rows)
    text = (
        f"\nMedians of up to {most} repeats"
        + (f"; at least one row of {', '.join(once)} ran once" if once else "")
        + "."
    )
    missing = dict.fromkeys(f"{one['engine']} ({one['reason']})" for one in absent)
    return text + (f" Not measured: {'; '.join(missing)}." if missing else "") + "\n"


def _end_to_end(path: Path) -> str:
    """Return a row per run."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    heads = (
        "engine",
        "recall target",
        "stated recall (95% interval)",
        "independent",
        "seconds",
        "peak memory",
        "estimate, budget",
    )
    cells = (
        (
            f"`{row['engine']}`",
            f"{row['promise']:g}",
            "{1:.4f} ({0:.4f} to {2:.4f})".format(*row["recall"]),
            f"{row['independent_recall']:.4f}",
            f"{row['seconds']:.0f}",
            f"{row['kernel_peak_bytes'] / 1e6:.0f} MB",
            f"{row['estimated_bytes'] / 1e6:.0f} MB, {row['budget_bytes'] / 1e9:g} GB",
        )
        for row in rows
    )
    return _table(heads, cells)


def _cheaper(result: dict[str, Any]) -> str:
    """Processor seconds per million requests: a look-up, and searches by the online indexes."""
    heads = ("per million requests", "look-up", "faiss-hnsw", "faiss-ivf", "a look-up is cheaper")
    rows = []
    for where, answer in result["answer"].items():
        seconds, times = answer["cpu_seconds_per_million"], answer["times_cheaper"]
        each = [f"{seconds[by]:,.0f} s" for by in ("look-up", "faiss-hnsw", "faiss-ivf")]
        rows.append([where, *each, f"{times['faiss-hnsw']:.0f}x, {times['faiss-ivf']:.0f}x"])
    return _table(heads, rows)


def _serving(parts: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of the made-up table, beside Redis by redis-py."""

    def rate(part: str, **wanted: Any) -> str:
        row = next(row for row in parts[part] if all(row.get(name) == value for name, value in wanted.items()))
        return f"{row['keys_per_second']:,.0f}"

    here = {"part": "lookup", "keys": "uniform", "overlay": 0}
    there = {"part": "redis", "by": "redis-py"}
    web = parts["http"][0]
    rows = [
        (
            "1,000 keys a call, keys per second",
            rate(**here, call="get_many", batch=1000),
            rate("redis", by="nearcast", call="get_many", batch=1000),
            rate(**there, call="MGET, decoded", batch=1000),
        ),
        ("the same with 10,000 items removed", rate(**here | {"overlay": 10_000}, call="get_many", batch=1000), "", ""),
        ("one key a call, keys per second", rate(**here, call="get"), "", rate(**there, call="GET, decoded")),
        (
            "bulk load, keys per second",
            rate("load", store="lmdb"),
            rate("load", store="redis"),
            rate("redis", call="SET, pipelined"),
        ),
        ("file against raw payload", f"{parts['size'][0]['ratio']:.2f}x", "", ""),
        ("over HTTP, requests per second", f"{web['requests_per_second']:,.0f}", "", ""),
        ("over HTTP, p99 at half of that", f"{web['half']['p99_ms']:.1f} ms", "", ""),
    ]
    return _table(("one core", "nearcast, LMDB", "nearcast, Redis", "redis-py alone"), rows)


def _rules(result: Any) -> str:
    """Return a row per rule, with the results of the peers."""
    if result is None:
        return "Not measured yet.\n"
    data = result["data"]
    text = (
        f"{data['items']:,} items × {data['queries']:,} queries, k = {data['k']}, {result['isa']}, two threads; time "
        "relative to the unfiltered\nexact join of the same run. Peers ran on a sample of the queries, with the time "
        "scaled to all queries: faiss searches ten\ntimes k (500) and filters afterwards; hnswlib filters inside its "
        "search, by a Python function "
        "(`python benchmarks/rules.py`;\n[results](benchmarks/results/rules.json)).\n\n"
    )
    peers = list(dict.fromkeys(row["peer"] for row in result["peers"]))
    ours = ("rule", "pairs left", "exact", "at 0.95", "recall at 0.95")
    heads = [*ours, *(f"{peer}: recall, fill, time" for peer in peers)]
    base, rows = median(result["unfiltered_seconds"]), []
    found = {(row["peer"], row["rule"], row["share"]): row for row in result["peers"]}
    for row in result["rows"]:
        cells = [row["rule"], f"{row['eligible']:.2%}", f"{row['ratio']:.2f}x", f"{row['ratio_at_95']:.2f}x"]
        cells.append(f"{row['recall_at_95']:.4f}")
        for peer in peers:
            other = found.get((peer, row["rule"], row["share"]))
            cells.append("" if other is None else _of_peer(other, base))
        rows.append(cells)
    return text + _table(heads, rows)


def _two_step(result: Any) -> str:
    """Return a row per case."""
    if result is None:
        return "Not measured yet.\n"
    heads = ("meanwhile", "p50", "p99", "p99.9", "of a core, a request", "errors")
    words = {"budgets": "400 budgets a second are written", "budgets and tables": "and a table every five seconds"}
    cells = (
        (
            words.get(name, name),
            *(f"{row[key]:.1f} ms" for key in ("p50_ms", "p99_ms", "p999_ms")),
            f"{row['cpu_us_per_request'] / 1000:.1f} ms",
            str(row["errors"]),
        )
        for name, row in result["http"].items()
    )
    made = sum(len(row["repeats"]) - 1 for row in result["http"].values())
    alone = [row["left_alone"] for row in result["http"].values()]
    text = f"One core of an {result['machine']['processor']}, {result['rate']:.0f} requests a second. Medians of "
    if all(alone):
        text += f"{sum(alone)} of {made} repeats: those in\nwhich the host took less than 2% of a core for others.\n\n"
    else:
        text += f"{made} repeats, in some of which the\nhost took more than 2% of a core for others.\n\n"
    return text + _table(heads, cells)


def _of_peer(row: Any, base: float) -> str:
    return f"{row['recall']:.3f}, {row['fill']:.0%}, {row['seconds'] / base:.1f}x"


def _cost(result: Any) -> str:
    """Return a row per variant, with the prediction."""
    if result is None:
        return "Not measured yet.\n"
    data, cores, processor = result["data"], result["machine"]["cores"], result["machine"]["processor"]
    text = (
        f"A day of {data['requests']:,} requests for {data['keys']:,} keys in process, in CPU seconds of "
        f"{cores} cores of an {processor}. Of the searches\n"
        "each key's first ran and counts ten times; the prediction is by `nearcast advise`\n"
        "(`python benchmarks/cost.py`; [results](benchmarks/results/cost.json)).\n\n"
    )
    heads = [
        "variant",
        "join or index",
        "publish",
        "look-ups or searches",
        "total",
        "predicted",
        "recall",
        "offline's share",
    ]
    rows = []
    predictions, shares = result["comparison"]["prediction"], result["comparison"]["share_of_online"]
    for row in result["rows"]:
        parts = row["cpu_seconds"]
        told = [f"{p['predicted']:,.0f}" for name, p in predictions.items() if name.split(",")[0] == row["way"]]
        made, asked = parts.get("join", parts.get("index", 0.0)), parts.get("look-up", parts.get("search", 0.0))
        copied = f"{parts['publish']:,.0f}" if "publish" in parts else ""
        recall = "" if row["recall"] is None else f"{row['recall'][1]:.4f}"
        share = f"{shares[row['way']]:.1%}" if row["way"] in shares else ""
        costs = (f"{made:,.0f}", copied, f"{asked:,.0f}", f"{row['total']:,.0f}")
        rows.append((row["way"], *costs, ", ".join(told), recall, share))
    return text + _table(heads, rows) + _turns(result)


def _turns(result: Any) -> str:
    """Return the break-even traffic of a mix by skew, if the index exists anyway."""
    text = (
        "\nBreak-even: requests per key and day above which a mix (lists for the busiest keys, the index for the\n"
        "others) costs less than the index alone, by the skew of traffic (`nearcast advise`)."
    )
    advised = {name: found["advice"] for name, found in result["predicted"].items()}
    kept = [name for name in advised if name.endswith("anyway")]
    if all(advised[name]["offline_pays_from"] == 0 for name in advised if name not in kept):
        text += " If the\nindex is built every day, lists for all keys cost less at any traffic."
    rows = (
        [f"{turns[0]['exponent']:g}", *(f"{turn['mix_pays_from']:.2f}" for turn in turns)]
        for turns in zip(*(advised[name]["turns"] for name in kept), strict=True)
    )
    return f"{text}\n\n" + _table(("Zipf exponent", *kept), rows)


if __name__ == "__main__":
    main()
