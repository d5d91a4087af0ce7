"""A year of nights of many generators: rows as runs, publishes and passes write them, with made-up numbers."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np

from nearcast.history.event_log import FILE, append

DAY = 86_400.0
END = 1_773_369_000.0
NAMES = ("fill_rate", "query_coverage", "item_coverage", "exposure_gini", "exposure_top1", "score_p50", "overlap")
DRIFTS = ("items_drift", "items_shift", "items_moved", "queries_drift", "queries_shift", "queries_moved", "repeats")
STAGES = ("hash", "check", "estimate", "read", "join", "table", "measure", "overlap")


def year_of(out: Path, generators: int, nights: int = 365) -> None:
    """Write the history of a folder that holds no snapshots any more."""
    out.mkdir()
    append(out, "generator-000", "run", 1, {})  # makes the file
    rng = np.random.default_rng(0)
    with contextlib.closing(sqlite3.connect(out / FILE)) as database, database:
        database.execute("delete from events")
        for number in range(generators):
            database.executemany(
                "insert into events (generator, kind, seconds, version, facts) values (?, ?, ?, ?, ?)",
                list(_rows(f"generator-{number:03d}", nights, rng)),
            )


def _rows(name: str, nights: int, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    numbers = rng.random((nights, 40))
    for night in range(nights):
        version, when, drawn = night + 1, END - DAY * (nights - 1 - night), numbers[night]
        run = _run(drawn, zeros=7 if night == nights - 1 and name == "generator-042" else 0)
        yield name, "run", when, version, json.dumps(run)
        yield name, "publish", when + 60, version, json.dumps({"outcome": "published", "accepted": {}})
        broken = night == nights - 1 and name == "generator-042"
        alert = {"check": "items_zeros", "text": "too many zeros", "found": 1.0, "bound": 0, "usual": 0, "follows": []}
        served = {"recall": drawn[30], "recall_low": drawn[31], "recall_high": drawn[32], "dead": drawn[33] / 50}
        served |= {"misses": drawn[34] / 50, "fallbacks": None, "age_seconds": 1e5 * drawn[35], "sample": 1000}
        served |= {"lookups": int(1e6 * drawn[36]), "version": version, "snapshot": f"{version:06d}"}
        seen = {"version": version, "served": served, "alerts": [alert] if broken else []}
        yield name, "monitor", when + 120, version, json.dumps(seen)


def _run(drawn: np.ndarray, *, zeros: int) -> dict[str, object]:
    recall = 0.95 + 0.04 * drawn[0]
    measures = {"recall": recall, "recall_low": recall - 0.004, "recall_high": recall + 0.004}
    measures |= dict(zip((*NAMES, *DRIFTS), drawn[1:], strict=False))
    norms = dict.fromkeys(("min", "p01", "p25", "p50", "p75", "p99", "max"), 1.0 + 0.01 * drawn[20])
    side = {"rows": 1000, "vectors": 1000 + int(100 * drawn[21]), "norms": norms, "problems": {"zero_vector": zeros}}
    return {
        "measures": measures,
        "slices": [
            {"by": "segment", "value": f"s{n}", "queries": 80, "recall": 0.9, "low": 0.8, "high": 1.0} for n in range(8)
        ],
        "promise": {"recall": 0.95, "kept": True, "reason": None},
        "k": 100,
        "metric": "cosine",
        "sides": {"items": side, "queries": side},
        "engine": {"name": "dense", "settings": {}, "effort": {}},
        "seconds": {stage: round(10 * float(drawn[22 + place]), 3) for place, stage in enumerate(STAGES)},
        "seconds_total": 40 * drawn[29],
        "peak_memory_bytes": int(1e9 * drawn[28]),
        "estimate": {"seconds_total": 40.0, "memory_bytes": int(1.1e9 * drawn[27])},
        "created": "2026-01-01T00:00:00Z",
    }
