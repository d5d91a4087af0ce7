"""Tables of a spec about labels: what people judged or engaged with. They measure lists, and never change them.

A metric is written as in `hit_rate_at_10`: a kind and a depth.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nearcast.settings.base_table import Share, SpecTable, Whole

__all__ = ["METRIC_KINDS", "LabelsSpec", "Promises", "parse_metric"]

METRIC_KINDS = {
    "hit_rate": "queries whose first k candidates hold a relevant item",
    "recall": "relevant items of a query among its first k candidates",
    "precision": "relevant candidates among the first k; a shorter list counts as k",
    "mrr": "1 / rank of the first relevant candidate among the first k, else 0",
    "ndcg": "discounted gain of the first k candidates, by that of the best possible list",
}
METRIC = re.compile(rf"({'|'.join(METRIC_KINDS)})_at_([1-9][0-9]{{0,4}})")


def parse_metric(name: str) -> tuple[str, int]:
    """Return kind and depth of a metric, for example ("hit_rate", 10). Raises ValueError with the correction."""
    found = METRIC.fullmatch(name)
    if found is not None:
        return found[1], int(found[2])
    kind, depth = re.fullmatch(r"(.*?)(?:(?:_at_|@|_)([0-9]+))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    near = difflib.get_close_matches(kind, METRIC_KINDS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}_at_{depth or 10}'?" if near else "write one like hit_rate_at_10."
    raise ValueError(f"{name!r} is no metric of labels; {hint} Kinds are {', '.join(METRIC_KINDS)}")


def _check_promises(promises: dict[str, float]) -> dict[str, float]:
    for name in promises:
        parse_metric(name)
    return promises


Promises = Annotated[dict[str, Annotated[Share, Field(gt=0, le=1)]], AfterValidator(_check_promises)]


class LabelsSpec(SpecTable):
    """Labels: items that are relevant to queries, by human judgement or engagement. Nothing learns from them."""

    path: str = Field(
        description="Parquet file, folder or glob, or one .csv or .tsv file (also .gz), one label per row. Relative to "
        "this file, or a URL."
    )
    query: str = Field("query", description="Column of the queries: ids of the query table.")
    item: str = Field("item", description="Column of the items: ids of the item table.")
    grade: str | None = Field(
        None, description="Column of grades, relevant above 0. Default: every row is relevant, with grade 1."
    )
    relevant: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Grade that an item is relevant from, if above 0; nDCG uses every grade above 0.",
    )
    depths: tuple[Whole, ...] = Field((), description="Depths k of the metrics. Default: 10 and the spec's k.")
    slices: tuple[str, ...] = Field(
        (), description="Columns of the labels, or attributes of the queries; metrics are also reported per value."
    )
    unknown: Literal["miss", "skip"] = Field(
        "miss", description="Labelled queries without a list count as misses, or are left out (skip)."
    )
    popularity: str | None = Field(
        None,
        description="Log with the same column of items, from before the labels: the most frequent are the baseline.",
    )
    popular_by: str | None = Field(
        None, description="Numeric item attribute whose highest values are the baseline, instead of `popularity`."
    )
    max_rows: Whole = Field(
        4_000_000, ge=1000, description="Labels held in memory; with more, a sample of the queries is measured."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path.strip():
            raise ValueError("path is empty; name a file, a folder or a glob")
        if self.query == self.item or self.grade in (self.query, self.item):
            raise ValueError("query, item and grade are different columns")
        if self.popularity is not None and self.popular_by is not None:
            raise ValueError("popularity and popular_by are two baselines; write one of them")
        for depth in self.depths:
            if not 1 <= depth <= 99_999:
                raise ValueError(f"depths holds {depth}; a depth is a number of candidates, 1 or more")
        return self

    def list_metrics(self, k: int, promises: Mapping[str, float]) -> tuple[str, ...]:
        """Return the metrics to measure: each kind at each depth, and the promised ones. k: candidates per list."""
        depths = self.depths or (min(10, k), k)
        named = (f"{kind}_at_{depth}" for depth in sorted(set(depths)) for kind in METRIC_KINDS)
        return tuple(dict.fromkeys((*promises, *named)))
