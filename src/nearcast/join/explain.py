"""Explain why an item is in a query's list or not: one cause, with figures.

Scores every item for the one query, so that ranks are exact. Knows nothing of stores: the answer of a look-up names
the items that the overlay or the request removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nearcast.eligibility import collect_columns, failing
from nearcast.errors import NotFoundError
from nearcast.join.compile_constraints import parse_rules
from nearcast.join.scored_items import (
    ScoredItems,
    SnapshotInputs,
    find_excluded_item,
    open_snapshot_inputs,
    score_items,
)
from nearcast.knn.constraints import Constraints
from nearcast.knn.exposure import AdmissionThresholds, find_admitted
from nearcast.sources.ids import find_positions
from nearcast.sources.ingest import IngestedTable, read_rows
from nearcast.storage.artifacts import Artifacts
from nearcast.suggest import describe_nearest, quote_key
from nearcast.table.snapshot import Snapshot
from nearcast.times import to_rows
from nearcast.types import IntArray, as_score

__all__ = ["Cause", "Explanation", "LeftOut", "explain"]

MOST_NAMED = 5  # left-out items to name
PLURALS = {"item": "items", "query": "queries"}


class Cause(StrEnum):
    """Why an item is in a list, or not."""

    LISTED = "listed"
    ITSELF = "itself"  # the query is the item, and exclude_self is set
    NO_VECTOR = "no_vector"  # the query has no usable vector
    RULE = "rule"  # a rule makes the pair ineligible
    BELOW_MIN_SCORE = "below_min_score"
    CAPPED = "capped"  # better items of its group fill the cap
    EXPOSED = "exposed"  # the item is in as many lists as the exposure cap allows, of queries that score it higher
    ENOUGH = "enough"  # the over-fetch plan stores fewer than k candidates, and they come first
    NEARER = "nearer"  # k others come first
    RANKED_LOWER = "ranked_lower"  # the join found it, and the ranking model put k others before it
    NOT_PROBED = "not_probed"  # it belongs into the list, and the join did not probe its cell


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A better item that is not in the list."""

    item: str | int
    rank: int  # among all eligible items, from 1
    cause: Cause
    words: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The cause, and the figures that show it."""

    snapshot: str
    query: str | int
    item: str | int
    cause: Cause
    words: str
    listed_rank: int | None  # in the list, from 1
    score: float | None
    rank: int | None  # among all eligible items, from 1; regardless of caps
    last_score: float | None  # of the list; None for a list that a model ranked, whose scores are not the join's
    rule: str | None = None  # that makes the pair ineligible
    instead: tuple[str | int, ...] = ()  # the items that fill the cap
    left_out: tuple[LeftOut, ...] = ()  # better items that are not in the list, at most MOST_NAMED
    model_rank: int | None = None  # among the items that the join fetches for the ranking model, from 1
    model_score: float | None = None
    last_model_score: float | None = None  # of the list

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        left_out = [{**asdict(one), "cause": str(one.cause)} for one in self.left_out]
        return {**asdict(self), "cause": str(self.cause), "instead": list(self.instead), "left_out": left_out}


def explain(
    snapshot: Snapshot,
    artifacts: Path,
    query: str | int,
    item: str | int,
    *,
    base: Path | None = None,
    remote: Artifacts | None = None,
) -> Explanation:
    """Explain why this item is in the list of this query, or not.

    artifacts: the generator's folder of artifacts; remote: those in a bucket, read where the folder lacks them.
    base: the folder that the spec's paths are relative to; derived from its `out` by default. A ranking model scores
    again. Raises NotFoundError for a query or item that the snapshot does not have, and if its artifacts are removed.
    """
    listed = snapshot.lookup(query)
    opened = open_snapshot_inputs(snapshot, artifacts, base, remote)
    items, queries = opened.inputs.items, opened.inputs.queries
    position = _find_position(items, item, "item", snapshot)
    draft = Explanation(
        snapshot=f"{snapshot.generator} {snapshot.name}",
        query=listed.query,
        item=items.ids[position].as_py(),
        cause=Cause.LISTED,
        words="",
        listed_rank=None,
        score=None,
        rank=None,
        last_score=listed.scores[-1] if listed.scores and opened.spec.rank is None else None,
    )
    row = int(find_positions(pa.array([listed.query], queries.ids.type), queries.ids)[0])
    if row < 0:
        return replace(draft, cause=Cause.NO_VECTOR, words="the query has no usable vector, and so no list")
    scored = score_items(snapshot, opened, listed, row)
    draft = replace(_add_figures(draft, scored, position), last_model_score=scored.last_model_score)
    if draft.item in listed.ids:
        return _explain_listed(draft, opened, scored, position)
    return _explain_absent(draft, opened, scored, position)


def _find_position(table: IngestedTable, key: str | int, what: str, snapshot: Snapshot) -> int:
    """Return the position of an id. Raises NotFoundError that names the nearest ids."""
    try:
        value = int(key) if pa.types.is_integer(table.ids.type) else str(key)
        position = int(find_positions(pa.array([value], table.ids.type), table.ids)[0])
    except (ValueError, OverflowError, pa.ArrowInvalid):
        position = -1
    if position < 0:
        words = describe_nearest(key, table.ids.slice(), f"its {len(table.ids):,} {PLURALS[what]}")
        raise NotFoundError(
            f"{snapshot.generator} {snapshot.name} was made without {what} {quote_key(key)}, "
            f"or it had no usable vector; {words}"
        )
    return position


def _add_figures(draft: Explanation, scored: ScoredItems, position: int) -> Explanation:
    return replace(
        draft,
        score=float(scored.scores[position]),
        rank=scored.rank_of(position),
        model_rank=scored.model_rank_of(position),
        model_score=scored.model.get(position),
    )


def _explain_listed(draft: Explanation, opened: SnapshotInputs, scored: ScoredItems, position: int) -> Explanation:
    """Explain an item of the list, and the better items that are left out."""
    number = scored.listed.ids.index(draft.item) + 1
    words = f"it is number {number} of {len(scored.listed.ids)} in the list"
    better: Sequence[int] = []
    if opened.spec.rank is not None:
        words += f", which the model has ordered: join rank {draft.rank:,}"
        if draft.model_rank is not None:
            words += f", model rank {draft.model_rank:,} of {len(scored.model):,}"
            own = (-scored.model[position], position)
            better = sorted(other for other, score in scored.model.items() if (-score, other) < own)
    elif draft.rank is not None:
        better = scored.order[: draft.rank - 1].tolist()
    ids, names = opened.inputs.items.ids, set(scored.listed.ids)
    missing = [other for other in better if ids[other].as_py() not in names]
    left_out = tuple(_explain_left_out(draft, opened, scored, other) for other in missing[:MOST_NAMED])
    if missing:
        parts = [f"{one.item!r} at rank {one.rank:,} ({one.words})" for one in left_out]
        more = [f"and {len(missing) - MOST_NAMED:,} more"] if len(missing) > MOST_NAMED else []
        verb = "one is" if len(missing) == 1 else "ones are"
        words += f"; {len(missing):,} better {verb} left out: {'; '.join([*parts, *more])}"
    return replace(draft, listed_rank=number, words=words, left_out=left_out)


def _explain_left_out(draft: Explanation, opened: SnapshotInputs, scored: ScoredItems, position: int) -> LeftOut:
    """Explain why a better item is not in the list."""
    other = _add_figures(replace(draft, item=opened.inputs.items.ids[position].as_py()), scored, position)
    result = _explain_absent(other, opened, scored, position)
    return LeftOut(result.item, result.rank or 0, result.cause, result.words)


def _explain_absent(draft: Explanation, opened: SnapshotInputs, scored: ScoredItems, position: int) -> Explanation:
    """Explain why an item is not in the list."""
    order, own = scored.order, float(scored.scores[position])
    ineligible = _explain_ineligible(draft, opened, scored.row, position)
    if ineligible is not None:
        return ineligible
    min_score = opened.constraints.min_score
    if min_score is not None and own < as_score(min_score):
        words = f"it scores {own:.6g}, and a candidate scores at least {min_score:g}"
        return replace(draft, cause=Cause.BELOW_MIN_SCORE, words=words)
    if opened.spec.rank is not None:
        return _explain_ranked(draft, opened, scored)
    if opened.thresholds is not None:
        scores = scored.scores[order][None, :]
        is_admitted = find_admitted(order[None, :], scores, np.array([scored.row]), opened.thresholds)[0]
        if not is_admitted[order == position][0]:
            return _explain_exposed(draft, opened, opened.thresholds, position)
        width = opened.spec.exposure.candidates_per_query if opened.spec.exposure else 0
        if draft.rank is not None and draft.rank > width:
            words = f"{draft.rank - 1:,} others come first, and the best {width:,} are what lists are chosen from"
            return replace(draft, cause=Cause.NEARER, words=words)
        order = order[is_admitted]
    return _explain_outranked(draft, opened, scored, order, position)


def _explain_ineligible(draft: Explanation, opened: SnapshotInputs, row: int, position: int) -> Explanation | None:
    """Explain an item that exclude_self or a rule excludes; None for an eligible item."""
    if position == find_excluded_item(opened, row):
        return replace(draft, cause=Cause.ITSELF, words="it is the query itself, and exclude_self is set")
    rules = parse_rules(opened.spec)
    if not rules:
        return None
    item_columns, query_columns, _ = collect_columns(rules)
    query = _read_attributes(opened.inputs.queries, query_columns, row)
    item = _read_attributes(opened.inputs.items, item_columns, position)
    name = failing(rules, query, item)
    if name is None:
        return None
    text = next(rule.keep for rule in opened.spec.rules if rule.name == name)
    values = [f"query.{column} is {query[column]!r}" for column in query_columns if f"query.{column}" in text]
    values += [f"item.{column} is {item[column]!r}" for column in item_columns if f"item.{column}" in text]
    words = f"rule {name} bars it: {text}" + (f" ({', '.join(values)})" if values else "")
    return replace(draft, cause=Cause.RULE, rule=name, words=words)


def _read_attributes(table: IngestedTable, columns: Sequence[str], position: int) -> dict[str, Any]:
    row: dict[str, Any] = to_rows(read_rows(table, table.ids.slice(position, 1), columns))[0]
    return row


def _explain_ranked(draft: Explanation, opened: SnapshotInputs, scored: ScoredItems) -> Explanation:
    """Explain why an item is not in a list that a model has ranked."""
    assert opened.spec.rank is not None
    fetch, rank = opened.spec.rank.fetch, draft.rank or 0
    if rank > fetch:
        words = f"{rank - 1:,} others come first, and the join fetches the best {fetch:,} for the model to rank"
        return replace(draft, cause=Cause.NEARER, words=words)
    if draft.model_score is None:
        words = (
            f"the join fetches it, at rank {rank:,} of {fetch:,}, and the model has put {opened.spec.k} others before "
            f"it; its own model rank is not known, since the model cannot be run again: {scored.model_fault}"
        )
        return replace(draft, cause=Cause.RANKED_LOWER, words=words)
    last = scored.last_model_score
    is_full = len(scored.listed.ids) >= opened.spec.k
    if is_full and last is not None and draft.model_score <= last:
        words = (
            f"ranked lower by the model: join rank {rank:,}, model rank {draft.model_rank:,} of {len(scored.model):,}; "
            f"its model score is {draft.model_score:.6g}, and the last of the list has {last:.6g}"
        )
        return replace(draft, cause=Cause.RANKED_LOWER, words=words)
    words = (
        f"it belongs into the list, at join rank {rank:,} and model rank {draft.model_rank:,}, and the join did not "
        "find it for the model: its cell was not probed"
    )
    return _explain_not_probed(draft, opened, words)


def _explain_exposed(
    draft: Explanation, opened: SnapshotInputs, thresholds: AdmissionThresholds, position: int
) -> Explanation:
    """Explain why the exposure cap leaves an item out."""
    last = opened.inputs.queries.ids[int(thresholds.queries[position])].as_py()
    max_lists = opened.spec.exposure.max_lists_per_item if opened.spec.exposure else 0
    words = (
        f"it is in {max_lists:,} lists, as many as it may be, of queries that score it at least as high: the last of "
        f"them is {last!r} with {thresholds.scores[position]:.6g}, and this query scores it {draft.score:.6g}"
    )
    return replace(draft, cause=Cause.EXPOSED, words=words)


def _explain_outranked(
    draft: Explanation, opened: SnapshotInputs, scored: ScoredItems, order: IntArray, position: int
) -> Explanation:
    """Select from the eligible items, best first, until the item is reached."""
    k, item_ids, own = opened.spec.k, opened.inputs.items.ids, float(scored.scores[position])
    selected: list[int] = []
    for item in order.tolist():
        full_group = _find_full_group(opened.constraints, selected, item)
        if item == position:
            if full_group:
                names = tuple(item_ids[other].as_py() for other in full_group)
                words = f"better items of its group have filled a cap: {', '.join(map(repr, names))}"
                return replace(draft, cause=Cause.CAPPED, words=words, instead=names)
            break
        if not full_group:
            selected.append(item)
        if len(selected) == k:
            return _explain_full_list(draft, opened, len(order), own, float(scored.scores[item]))
    overfetch, last = opened.spec.overfetch, draft.last_score
    if overfetch is not None and last is not None and own <= as_score(last):
        words = (
            f"it would be number {len(selected) + 1}, and the list ends before: the plan for {overfetch.at_least} "
            f"survivors with probability {overfetch.probability:g} gives this query no more candidates"
        )
        return replace(draft, cause=Cause.ENOUGH, words=words)
    words = f"it belongs into the list, at rank {draft.rank:,}, and the join did not probe its cell"
    return _explain_not_probed(draft, opened, words)


def _explain_full_list(
    draft: Explanation, opened: SnapshotInputs, n_eligible: int, own: float, kth: float
) -> Explanation:
    """Explain an item that k others precede. own: its score; kth: score of the last of them."""
    k = opened.spec.k
    if draft.last_score is not None and own > as_score(draft.last_score):
        words = (
            f"{k} others come first, but the join has missed some of them and this one, which scores more than the "
            "last of the list: their cells were not probed"
        )
        return _explain_not_probed(draft, opened, words)
    words = (
        f"{k} others come first: it scores {own:.6g}, rank {draft.rank:,} of {n_eligible:,} eligible items, and the "
        f"last of the best {k} scores {kth:.6g}"
    )
    return replace(draft, cause=Cause.NEARER, words=words)


def _explain_not_probed(draft: Explanation, opened: SnapshotInputs, words: str) -> Explanation:
    """Explain an item whose cell the join did not probe: `words`, the search parameters, and the way out."""
    params = ", ".join(f"{name} {value:,}" for name, value in opened.params.items()) or "the default parameters"
    words = f"{words} with {params}. Raise `recall`, or the engine's search parameters"
    return replace(draft, cause=Cause.NOT_PROBED, words=words)


def _find_full_group(constraints: Constraints, selected: Sequence[int], item: int) -> list[int]:
    """Return the selected items of the first full group of an item; an empty list if all its groups have room."""
    groups_of_caps = constraints.find_groups(np.array([*selected, item]))
    for groups, most in zip(groups_of_caps, constraints.max_per_group, strict=True):
        members = [other for other, group in zip(selected, groups.tolist(), strict=False) if group == groups[-1] >= 0]
        if len(members) >= most:
            return members
    return []
