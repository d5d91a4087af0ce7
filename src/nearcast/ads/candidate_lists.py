"""Candidate lists and the ads under them: merge the lists, look up the links, and select the ads of an answer.

Knows nothing of how candidates are looked up, nor of refreshes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.ads.ad_answer import AdAnswer, AdRequest
from nearcast.ads.ad_funnel import (
    AdQuery,
    CandidateAds,
    SelectedAds,
    convert_scores,
    merge_scores,
    select_ads,
)
from nearcast.ads.ads_view import AdsTable, AdsView
from nearcast.ads.targeting import AdRules
from nearcast.errors import InputError, NotFoundError
from nearcast.serve.lookup_data import encode_lookup_keys
from nearcast.stores.base import Space
from nearcast.stores.value_format import decode_integer_keys, decode_lists
from nearcast.table.ad_columns import to_seconds
from nearcast.types import IntArray, Metric

__all__ = ["WeightedLists", "answer_request", "weight_lists"]

Ids = IntArray | list[Any]  # numbers as an array, text as a list


@dataclass(frozen=True, slots=True, eq=False)
class WeightedLists:
    """Lists of candidates: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    offsets: IntArray  # (lists + 1,)
    ids: pa.Array | list[Any]
    scores: npt.NDArray[np.float64]  # weighted similarities, 0 or larger


def weight_lists(
    offsets: IntArray,
    ids: pa.Array | list[Any],
    scores: npt.NDArray[Any],
    metric: Metric,
    weights: Sequence[float] | None,
) -> WeightedLists:
    """Return lists with their similarities times the weight of each list; without weights, 1.

    Raises InputError for weights below 0, or as many as there are no lists.
    """
    similarities = convert_scores(scores, metric)
    if weights is not None:
        similarities = similarities * np.repeat(_read_weights(weights, len(offsets) - 1), np.diff(offsets))
    return WeightedLists(offsets, ids, similarities)


def answer_request(view: AdsView, lists: WeightedLists, request: AdRequest) -> AdAnswer:
    """Return the ads of the candidates.

    Raises InputError for an invalid request, NotFoundError for a field that the ads do not have.
    """
    table, settings = view.table, view.table.settings
    now = time.time() if request.now is None else to_seconds(request.now)
    k = settings.k if request.k is None else request.k
    if k < 1:
        raise InputError(f"k is {k}; ask for one ad at least")
    facts = table.version.facts
    for name in request.fields:
        if name not in facts.columns and name not in view.overlay.fields:
            known = ", ".join(facts.columns) or "none"
            raise NotFoundError(f"the ads of {facts.generator} have no column {name!r}; they have {known}")
    candidates, scores = _merge_lists(lists, settings.keys)
    pairs = CandidateAds(scores, *_find_links(table, candidates))
    fields = request.request or {}
    if isinstance(table.eligible, AdRules):  # a filter of the caller checks the request itself
        table.eligible.check(fields, view.ads.columns)
    selected = select_ads(pairs, view.ads, table.eligible, settings, AdQuery(fields, k, now))
    return _make_answer(view, candidates, selected, request.fields)


def _read_weights(weights: Sequence[float], n: int) -> npt.NDArray[np.float64]:
    if len(weights) != n:
        raise InputError(f"there are {len(weights):,} weights for {n:,} keys")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise InputError("a weight is below 0 or no number; weights are from 0 on")
    return np.asarray(weights, np.float64)


def _merge_lists(lists: WeightedLists, how: str) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Return every candidate once, with its score. A single list has no duplicates."""
    if len(lists.offsets) <= 2:
        return _plain_ids(lists.ids), lists.scores
    assert isinstance(lists.ids, pa.Array)  # as several lists always are
    encoded = lists.ids.dictionary_encode()
    groups = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _plain_ids(encoded.dictionary), merge_scores(groups, len(encoded.dictionary), lists.scores, how)[0]


def _plain_ids(ids: pa.Array | list[Any]) -> Ids:
    if isinstance(ids, pa.Array):
        return np.asarray(ids.to_numpy()) if pa.types.is_integer(ids.type) else list(ids.to_pylist())
    return np.array(ids, np.int64) if ids and isinstance(ids[0], int) else ids


def _find_links(table: AdsTable, candidates: Ids) -> tuple[IntArray, IntArray]:
    """Return (pairs,) indices of candidates, ascending, and (pairs,) positions of their ads."""
    version, links = table.version, table.links
    numbers = version.query_ids == "int64"
    if links is not None and numbers and isinstance(candidates, np.ndarray):
        return links.find(candidates)
    keys_of_table = encode_lookup_keys(candidates, version.query_ids)
    keys, positions_of_keys = keys_of_table.encoded, keys_of_table.positions
    indices = np.arange(len(keys_of_table.keys)) if positions_of_keys is None else positions_of_keys
    if links is None:
        lists = decode_lists(version.reader.get_many(Space.LISTS, keys), version.item_ids)
        return np.repeat(indices, np.diff(lists.offsets)), table.ads.positions(lists.ids)
    found, positions = links.find(decode_integer_keys(keys) if numbers else keys)
    return indices[found], positions


def _make_answer(view: AdsView, candidates: Ids, selected: SelectedAds, fields: Sequence[str]) -> AdAnswer:
    version, ads = view.table.version, view.table.ads
    return AdAnswer(
        ads=ads.ids_at(selected.positions),
        items=_take(candidates, selected.candidates),
        scores=selected.scores.tolist(),
        columns=view.ads.rows(selected.positions, fields) if fields else [{}] * len(selected.positions),
        stages=selected.stages,
        table=version.snapshot,
        age_seconds=max(0.0, time.time() - view.table.as_of),
    )


def _take(ids: Ids, indices: IntArray) -> list[Any]:
    return list(ids[indices].tolist()) if isinstance(ids, np.ndarray) else [ids[index] for index in indices.tolist()]
