"""What other parts of nearcast may have recorded: a tuning, a replay, pictures of items, what was removed."""

from __future__ import annotations

import copy
from typing import Any

PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
COSTS = {"0.8": 4.0, "0.9": 5.5, "0.95": 8.0, "0.99": 20.0}


def with_everything(document: Any) -> Any:
    """The document with every panel filled, in its first generator."""
    full = copy.deepcopy(document)
    page = full["generators"][0]
    points = [
        {"engine": "dense", "settings": {"cells": 800}, "costs": COSTS},
        {"engine": "dense", "settings": {"cells": 1600}, "costs": {p: 1.3 * s for p, s in COSTS.items()}},
        {"engine": "faiss-ivf", "settings": {"nlist": 512}, "costs": {p: 3 * s for p, s in COSTS.items()}},
    ]
    page["frontier"] = {
        "promise": 0.95,
        "points": points,
        "frontier": [],
        "chosen": {"engine": "dense", "settings": {"cells": 800}},
        "reason": "it is the cheapest that keeps the promise",
        "lines": 'engine = "dense"',
        "exact_seconds": 60.0,
    }
    stages = [("asked", 1000, 1000), ("eligible", 940, 930), ("shown", 700, 720), ("clicked", 41, 40)]
    page["replay"] = {
        "stages": [{"name": name, "offline": offline, "online": online} for name, offline, online in stages],
        "requests": 1000,
        "hit_rate": {"offline": 0.041, "online": 0.04},
    }
    figure = {"low": 0.19, "mid": 0.2, "high": 0.21}
    names = ["hit_rate_at_10", "ndcg_at_10"]
    nights = page["runs"]["at"]
    page["labels"] = {
        "metrics": names,
        "series": {"at": nights, "promise": [0.25 for _ in nights]}
        | {f"{name}{end}": [0.2 for _ in nights] for name in names for end in ("", "_low", "_high")},
        "version": page["version"],
        "path": "clicks.parquet",
        "rows": 1_203_441,
        "queries": 12_481,
        "without_list": 1203,
        "promises": [{"metric": names[0], "bound": 0.25, "value": 0.2, "low": 0.19, "high": 0.21, "kept": False}],
        "newest": [{"name": name, **figure} for name in names],
        "rivals": [{"name": "hit_rate_at_10, served 000004", "low": 0.01, "mid": 0.02, "high": 0.03}],
        "slices": [{"by": "market", "value": market, "queries": 900, **figure} for market in ("de", "fr")],
    }
    for row in page["explorer"]["queries"]:
        for place, candidate in enumerate(row["now"]["candidates"]):
            candidate["columns"] = {"title": f"item {candidate['id']}", "image": PIXEL}
            if place == 1:
                candidate["removed"] = "removed by the overlay until 2026-03-14T00:00:00Z (out of stock)"
    page["explorer"]["columns"] = ["title", "image"]
    return full
