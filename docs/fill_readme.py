"""Put measured figures and the demo's output between the markers of README.md and of pages in docs/.

make demo | tee demo.txt; python docs/fill_readme.py demo.txt
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Bodies = dict[str, str]  # of markers

ROOT = Path(__file__).parent.parent
ENGINE = "nearcast"
FILTERED_AFTER = "faiss flat"
THREADS = {1: "one thread", 2: "two threads"}
PERFORMANCE = ROOT / "docs" / "performance.md"
BEFORE_THE_SWEEP = (
    "Measured before settings of the peers were found by a sweep ([how](performance.md#how-peers-are-compared)), which "
    "makes ScaNN and exact\npeers much faster; at 0.99 ScaNN then took 3.0 times as long as nearcast in the same run."
)


def main() -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME -->."""
    pages = compute_bodies()
    if len(sys.argv) > 1:
        output = Path(sys.argv[1]).read_text(encoding="utf-8")
        pages["docs/demo.md"] = {"demo": _shown(output, "== 3.", "== 5."), "served": _shown(output, "== 6.", "== 8.")}
    for name, bodies in pages.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        for marker, body in bodies.items():
            text = _put(text, marker, body)
        page.write_text(text, encoding="utf-8")


def compute_bodies() -> dict[str, Bodies]:
    """Return the text of every marker that results in benchmarks/results decide, by page."""
    join, serving, two_step = _result("join"), _result("serving"), _two_step(_result("two_step"))
    return {
        "README.md": {"measured": _measured(join, serving, _result("rules"), _result("update"))},
        "docs/benchmarks.md": {
            "join": _join(join),
            "end-to-end": _end_to_end(_result("end_to_end")),
            "cheaper": _cheaper(serving),
            "serving": _serving(serving["parts"]),
            "two-step": two_step,
            "rules": _rules(_result("rules")),
            "cost": _cost(_result("cost")),
        },
        "docs/performance.md": {"reached": _reached(join)},
        "docs/expansion.md": {"two-step": two_step},
    }


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
    return "```text\n" + "\n".join(lines).strip() + "\n```\n"


def _measured(join: Any, serving: Any, rules: Any, update: Any) -> str:
    """Return five lines for people who decide: the join, look-ups, HTTP, rules, live updates."""
    data, per_million = join["data"], serving["answer"]["in process"]["cpu_seconds_per_million"]
    web, one = serving["parts"]["http"][0], update["one_update"]
    rare = {(row["rule"], row["share"]): row["ratio"] for row in rules["rows"] if 0.005 < row["eligible"] < 0.02}
    after = [row for row in rules["peers"] if (row["rule"], row["share"]) in rare and row["peer"] == FILTERED_AFTER]
    targets = sorted({row["asked"] for row in join["rows"]} & {0.95, 1.0})
    lines = (
        f"**Join**, {data['items']:,} items × {data['queries']:,} queries × {data['dim']} dimensions, k = {data['k']}, "
        f"{_threads(join)}. "
        + " ".join(_beside_the_fastest(join, target) for target in targets)
        + ("" if "method" in join else " Settings of the peers are older than the present sweep."),
        f"**Look-up instead of search**, per million requests in process, in CPU seconds: {per_million['look-up']:,.0f}"
        f" for look-ups, {per_million['faiss-hnsw']:,.0f} for faiss HNSW at recall 0.95 on the same items.",
        f"**HTTP**, one core: {web['requests_per_second']:,.0f} requests a second; at half of that the slowest 1% take "
        f"{web['half']['p99_ms']:.1f} ms.",
        f"**Rules inside the join**, that 1% of the pairs pass: full, exact lists in {_span(rare.values(), '.0%')} of "
        f"the time of a join without rules. {FILTERED_AFTER}, ten times k and filtered afterwards, fills "
        f"{_span([row['fill'] for row in after], '.0%')} of the slots.",
        f"**Live update**: {one['new']:,} new items enter about {round(median(one['lists_changed']), -4):,.0f} of "
        f"{one['queries']:,} lists in {max(one['seconds']):.0f} seconds.",
    )
    return "".join(textwrap.fill(line, 120, initial_indent="- ", subsequent_indent="  ") + "\n" for line in lines)


def _threads(join: Any) -> str:
    return f"{THREADS.get(join['threads'], str(join['threads']) + ' threads')} of an {join['machine']['processor']}"


def _beside_the_fastest(join: Any, target: float) -> str:
    """Return a sentence: our time, and that of the fastest peer, at a recall target."""
    rows = [row for row in join["rows"] if row["asked"] == target and "seconds" in row]
    ours = next(row for row in rows if row["engine"] == ENGINE)
    peers = [row for row in rows if row["engine"] != ENGINE]
    text = f"At recall {target:g}: {ours['seconds']:.1f} s"
    if not peers:
        return text + "."
    best = min(peers, key=lambda row: row["seconds"])
    return text + f"; {best['engine']}, the fastest other library, {best['seconds']:.1f} s."


def _span(values: Collection[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def _join(result: Any) -> str:
    """Return the data, and a row per engine and recall, the fastest first, with the time relative to nearcast."""
    rows: list[dict[str, Any]] = [row for row in result["rows"] if "seconds" in row]  # others were stopped
    ours = {row["asked"]: row["seconds"] for row in rows if row["engine"] == ENGINE}
    data = result["data"]
    text = (
        f"{data['items']:,} items × {data['queries']:,} queries × {data['dim']} dimensions, real text embeddings, "
        f"queries from another catalogue, k = {data['k']},\n{_threads(result)} ({result['isa']['taken']}), "
        f"{result['started'][:10]}, commit {result['commit']} (`python benchmarks/join.py`;\n"
        "[results](../benchmarks/results/join.json), with settings and every repeat):\n\n"
    )
    heads = ("recall target", "engine", "total", "build", "queries", "recall", "relative time")
    cells = (
        (
            f"{row['asked']:g}",
            f"**{row['engine']}**" if row["engine"] == ENGINE else row["engine"],
            f"{row['seconds']:.1f} s",
            f"{row['build_seconds']:.1f} s",
            f"{row['query_seconds']:.1f} s",
            f"{row['recall']:.4f}",
            f"{row['seconds'] / ours[row['asked']]:.1f}x",
        )
        for row in sorted(rows, key=lambda row: (-row["asked"], row["seconds"]))
    )
    return text + _table(heads, cells) + _repeats(rows, result)


def _repeats(rows: Sequence[dict[str, Any]], result: Any) -> str:
    """Say how often each engine was measured, with which settings, and which peers were not."""
    once = dict.fromkeys(row["engine"] for row in rows if len(row["repeats"]) == 1)
    most = max(len(row["repeats"]) for row in rows)
    sentences = [
        f"Medians of up to {most} repeats" + (f"; at least one row of {', '.join(once)} ran once" if once else "") + "."
    ]
    notes: dict[str, dict[str, None]] = {}
    for row in rows:
        if "note" in row:
            notes.setdefault(row["note"], {})[f"{row['asked']:g}"] = None
    sentences += [f"Recall {', '.join(targets)}: {note}." for note, targets in notes.items()]
    unswept = dict.fromkeys(row["engine"] for row in rows if "swept" in row and not row["swept"])
    if unswept:
        sentences.append(f"No sweep of the settings: {', '.join(unswept)}.")
    stopped = [f"{row['engine']} at {row['asked']:g} ({row['stopped']})" for row in result["rows"] if "stopped" in row]
    if stopped:
        sentences.append(f"Stopped: {'; '.join(stopped)}.")
    missing = dict.fromkeys(f"{one['engine']} ({one['reason']})" for one in result["absent"])
    if missing:
        sentences.append(f"Not measured: {'; '.join(missing)}.")
    if "method" not in result:  # by an earlier version of the benchmark
        sentences.append(BEFORE_THE_SWEEP)
    return "\n" + "\n".join(sentences) + "\n"


def _reached(join: Any) -> str:
    """Return the share of the machine's limit that the exact join reaches."""
    data = join["data"]
    exact = {row["engine"]: row["seconds"] for row in join["rows"] if row["asked"] == 1 and "seconds" in row}
    products = data["items"] * data["queries"] * data["dim"]
    limit = re.search(rf"\| {join['isa']['taken']} \| [\d.]+ \| ([\d.]+)", PERFORMANCE.read_text(encoding="utf-8"))
    rate = products / exact[ENGINE] / join["threads"] / 1e9
    peers = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in exact.items() if name != ENGINE)
    text = f"{exact[ENGINE]:.1f} s: {rate:.0f} · 10⁹ products per second and core"
    if limit is not None:
        text += f', **{rate / float(limit[1]):.0%}** of "with loads"'
    return text + (f".\nIn the same comparison: {peers}.\n" if peers else ".\n")


def _end_to_end(result: Any) -> str:
    """Return a row per run."""
    rows: list[dict[str, Any]] = result["rows"]
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
        "(`python benchmarks/rules.py`;\n[results](../benchmarks/results/rules.json)).\n\n"
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
        "(`python benchmarks/cost.py`; [results](../benchmarks/results/cost.json)).\n\n"
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
