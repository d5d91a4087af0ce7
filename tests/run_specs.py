"""Settings of runs of every kind, for shops whose items have price, countries, model, maker, bonus and alive, and whose
queries have budget and country. Tests compare ways to make one result with them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CAPS", "CHEAP", "ITEM_ATTRIBUTES", "QUERY_ATTRIBUTES", "RANK", "RUN_SPECS", "SHOWN"]

ITEM_ATTRIBUTES = ["price", "countries", "model", "maker", "bonus", "alive"]
QUERY_ATTRIBUTES = ["budget", "country"]
CHEAP = {"name": "cheap", "keep": "item.price <= query.budget"}
SHOWN = {"name": "shown", "keep": "item.countries has query.country"}
CAPS = [{"by": "maker", "max_per_list": 3}, {"by": "model", "max_per_list": 1}]

RANK = """
import numpy as np
def score(batch):
    return -batch["item.price"].fill_null(99).to_numpy() + np.asarray(batch["score"]) * 1e-3
"""

RUN_SPECS: dict[str, dict[str, Any]] = {  # a ranking model is the function of RANK in ranker.py
    "free": {},
    "cosine without the item itself": {"metric": "cosine", "exclude_self": True, "queries": None, "k": 7},
    "the engine exact": {"engine": "exact"},
    "rules": {"rules": [CHEAP, SHOWN]},
    "rules and caps": {"rules": [CHEAP], "caps": CAPS},
    "caps and a minimum score": {"caps": CAPS, "min_score": -9.0},
    "score terms": {"metric": "inner_product", "score": {"add": "bonus", "weight": 0.5}},
    "an exposure cap": {"exposure": {"max_lists_per_item": 20, "candidates_per_query": 40}},
    "over-fetch": {"k": 30, "overfetch": {"at_least": 4, "survival": "alive", "correlated_group": "maker"}},
    "a ranking model": {"rank": {"function": "ranker:score", "fetch": 25}, "rules": [CHEAP]},
}
