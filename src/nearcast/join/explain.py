"""Why an item is in a query's list, or not: the one cause, found from what the snapshot was made of.

Scores every item for the one query, so that ranks are exact. Knows nothing of stores: what the overlay or a request
takes out, the answer of a look-up says itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.eligibility import columns_of, failing
from nearcast.errors import NotFoundError
from nearcast.files import is_done
from nearcast.join.attributes import rows_of
from nearcast.join.constraints import open_constraints, rules_of
from nearcast.join.full_items import read_full_items
from nearcast.join.measuring import exclusions
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.exposure import Bars, admitted
from nearcast.knn.scores import pair_scores
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import Side, open_side
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.table.snapshot import Candidates, Snapshot
from nearcast.times import rows_of_table
from nearcast.types import IntArray, Metric, as_score

__all__ = ["Cause", "Explanation", "explain"]

BLOCK_ROWS = 1 << 15

FloatArray = npt.NDArray[np.float32]


class Cause(StrEnum):
    """Why an item is in a list, or not."""

    LISTED = "listed"
    ITSELF = "itself"  # the query is the item, and exclude_self is set
    NO_VECTOR = "no_vector"  # the query was kept without a usable vector
    RULE = "rule"  # a rule bars the pair
    BELOW_MIN_SCORE = "below_min_score"
    CAPPED = "capped"  # better items of its group have filled the cap
    EXPOSED = "exposed"  # it fills as many lists as it may, of queries that score it higher
    ENOUGH = "enough"  # the plan stores fewer than k, and those come first
    NEARER = "nearer"  # k others come first
    NOT_PROBED = "not_probed"  # it belongs into the list, and the join did not meet its cell


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
    rank: int | None  # among all items that the query may get, from 1; caps aside
    last_score: float | None  # of the list
    rule: str | None = None  # that bars the pair
    instead: tuple[str | int, ...] = ()  # the items that fill the cap

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "cause": str(self.cause), "instead": list(self.instead)}


@dataclass(frozen=True, slots=True)
class _Made:
    """What a snapshot was made of."""

    spec: GeneratorSpec
    items: Side
    queries: Side
    constraints: Constraints
    effort: Mapping[str, int]
    full: Bars | None  # of the items that an exposure cap has filled up


def explain(snapshot: Snapshot, artifacts: Path, query: str | int, item: str | int) -> Explanation:
    """Why this item is in the list of this query, or not.

    artifacts: the generator's folder of what its newest snapshot was made of. Raises NotFoundError for a query or an
    item that the snapshot does not have, or where what it was made of is gone.
    """
    listed = snapshot.lookup(query)
    made = _opened(snapshot, artifacts)
    place = _position(made.items, item, "item", snapshot)
    found = Explanation(
        snapshot=f"{snapshot.generator} {snapshot.name}",
        query=listed.query,
        item=made.items.ids[place].as_py(),
        cause=Cause.LISTED,
        words="",
        listed_rank=None,
        score=None,
        rank=None,
        last_score=listed.scores[-1] if listed.scores else None,
    )
    row = int(positions_of(pa.array([listed.query], made.queries.ids.type), made.queries.ids)[0])
    if row < 0:
        return replace(found, cause=Cause.NO_VECTOR, words="the query has no usable vector, and so no list")
    return _explained(found, made, listed, row, place)


def _opened(snapshot: Snapshot, artifacts: Path) -> _Made:
    names: Sequence[str] = snapshot.manifest["artifacts"]
    gone = [name for name in names if not name.startswith("index-") and not is_done(artifacts / name)]
    if gone:
        raise NotFoundError(
            f"what {snapshot.generator} {snapshot.name} was made of is gone ({gone[0]}): only the newest snapshot can "
            "be explained, where it was made"
        )
    folders = {name.partition("-")[0]: artifacts / name for name in names}
    items = open_side(folders.get("scoreditems", folders["items"]))
    asked = folders.get("scoredqueries", folders.get("queries"))
    queries = open_side(asked) if asked is not None else items
    spec = parse_model(GeneratorSpec, snapshot.manifest["spec"], f"the spec of {snapshot.name}")
    if spec.score.columns and spec.metric is Metric.COSINE:
        spec = spec.model_copy(update={"metric": Metric.INNER_PRODUCT})  # of what score terms made of the vectors
    held = open_constraints(folders.get("constraints"))
    full = read_full_items(snapshot.folder, items, queries)
    return _Made(spec, items, queries, held, snapshot.manifest["engine"]["effort"], full)


def _position(side: Side, key: str | int, what: str, snapshot: Snapshot) -> int:
    try:
        value = int(key) if pa.types.is_integer(side.ids.type) else str(key)
        place = int(positions_of(pa.array([value], side.ids.type), side.ids)[0])
    except (ValueError, OverflowError, pa.ArrowInvalid):
        place = -1
    if place < 0:
        near = ", ".join(repr(held.as_py()) for held in side.ids[:3])
        raise NotFoundError(
            f"{snapshot.generator} {snapshot.name} was made without {what} {key!r}, or it had no usable vector; "
            f"its {len(side.ids):,} {what}s are such as {near}"
        )
    return place


def _explained(found: Explanation, made: _Made, listed: Candidates, row: int, place: int) -> Explanation:
    scores = _scores(made, row)
    legal = _eligible(made, row)
    own = float(scores[place])
    order = np.lexsort((np.arange(len(scores)), -scores))
    order = order[legal[order]]
    where = np.flatnonzero(order == place)
    found = replace(found, score=own, rank=int(where[0]) + 1 if len(where) else None)
    if found.item in listed.ids:
        number = listed.ids.index(found.item) + 1
        words = f"it is number {number} of {len(listed.ids)} in the list"
        if found.rank is not None and found.rank > number:
            words += f"; {found.rank - number} better ones are left out, by caps or because the join did not meet them"
        return replace(found, listed_rank=number, words=words)
    barred = _barred(found, made, row, place)
    if barred is not None:
        return barred
    least = made.constraints.min_score
    if least is not None and own < as_score(least):
        words = f"it scores {own:.6g}, and a candidate scores at least {least:g}"
        return replace(found, cause=Cause.BELOW_MIN_SCORE, words=words)
    if made.full is not None:
        through = admitted(order[None, :], scores[order][None, :], np.array([row]), made.full)[0]
        if not through[order == place][0]:
            return _exposed(found, made, made.full, place)
        wide = made.spec.exposure.per_query if made.spec.exposure else 0
        if found.rank is not None and found.rank > wide:
            words = f"{found.rank - 1:,} others come first, and the best {wide:,} are what lists are chosen from"
            return replace(found, cause=Cause.NEARER, words=words)
        order = order[through]
    return _outranked(found, made, order, place, scores)


def _exposed(found: Explanation, made: _Made, full: Bars, place: int) -> Explanation:
    last = made.queries.ids[int(full.queries[place])].as_py()
    most = made.spec.exposure.most if made.spec.exposure else 0
    words = (
        f"it is in {most:,} lists, as many as it may be, of queries that score it at least as high: the last of them "
        f"is {last!r} with {full.scores[place]:.6g}, and this query scores it {found.score:.6g}"
    )
    return replace(found, cause=Cause.EXPOSED, words=words)


def _scores(made: _Made, row: int) -> FloatArray:
    """(items,) the exact scores of all items."""
    query = made.queries.vectors.take(np.array([row]))
    metric, n = Metric(made.spec.metric), made.items.vectors.n
    scores = np.empty(n, np.float32)
    for start in range(0, n, BLOCK_ROWS):
        block = made.items.vectors.read(start, min(n, start + BLOCK_ROWS))
        scores[start : start + len(block)] = pair_scores(np.repeat(query, len(block), axis=0), block, metric)
    return scores


def _eligible(made: _Made, row: int) -> npt.NDArray[np.bool_]:
    """(items,) which items the query may get."""
    rule = made.constraints.eligibility
    legal = np.ones(made.items.vectors.n, np.bool_)
    if rule is not None:
        legal = eligible_pairs(rule.of_queries(slice(row, row + 1)))[0]
    own = exclusions(made.items, made.queries, np.array([row]), exclude_self=made.spec.exclude_self)
    if own is not None and own[0] >= 0:
        legal[own[0]] = False
    return legal


def _barred(found: Explanation, made: _Made, row: int, place: int) -> Explanation | None:
    own = exclusions(made.items, made.queries, np.array([row]), exclude_self=made.spec.exclude_self)
    if own is not None and own[0] == place:
        return replace(found, cause=Cause.ITSELF, words="it is the query itself, and exclude_self is set")
    rules = rules_of(made.spec)
    if not rules:
        return None
    item_columns, query_columns, _ = columns_of(rules)
    query = _facts(made.queries, query_columns, row)
    item = _facts(made.items, item_columns, place)
    name = failing(rules, query, item)
    if name is None:
        return None
    text = next(rule.keep for rule in made.spec.rules if rule.name == name)
    told = [f"query.{column} is {query[column]!r}" for column in query_columns if f"query.{column}" in text]
    told += [f"item.{column} is {item[column]!r}" for column in item_columns if f"item.{column}" in text]
    words = f"rule {name} bars it: {text}" + (f" ({', '.join(told)})" if told else "")
    return replace(found, cause=Cause.RULE, rule=name, words=words)


def _facts(side: Side, columns: Sequence[str], place: int) -> dict[str, Any]:
    facts: dict[str, Any] = rows_of_table(rows_of(side.attributes, side.ids.slice(place, 1), columns))[0]
    return facts


def _outranked(found: Explanation, made: _Made, order: IntArray, place: int, scores: FloatArray) -> Explanation:
    """Walk the eligible items best first, as the selection does, until the item is reached."""
    taken: list[int] = []
    for item in order.tolist():
        full = _full_group(made.constraints, taken, item)
        if item == place:
            if full:
                names = tuple(made.items.ids[held].as_py() for held in full)
                words = f"better items of its group have filled a cap: {', '.join(map(repr, names))}"
                return replace(found, cause=Cause.CAPPED, words=words, instead=names)
            break
        if not full:
            taken.append(item)
        if len(taken) == made.spec.k:
            words = (
                f"{made.spec.k} others come first: it scores {scores[place]:.6g}, rank {found.rank:,} of "
                f"{len(order):,} eligible items, and the last of the best {made.spec.k} scores {scores[item]:.6g}"
            )
            return replace(found, cause=Cause.NEARER, words=words)
    asked, last = made.spec.surplus, found.last_score
    if asked is not None and last is not None and scores[place] <= as_score(last):
        words = (
            f"it would be number {len(taken) + 1}, and the list ends before: the plan for {asked.at_least} survivors "
            f"with probability {asked.probability:g} gives this query no more candidates"
        )
        return replace(found, cause=Cause.ENOUGH, words=words)
    effort = ", ".join(f"{name} {value:,}" for name, value in made.effort.items()) or "full"
    words = (
        f"it belongs into the list, at rank {found.rank:,}, and the join did not meet it: its cell was not probed at "
        f"this effort ({effort}). Raise `recall`, or the engine's effort"
    )
    return replace(found, cause=Cause.NOT_PROBED, words=words)


def _full_group(constraints: Constraints, taken: Sequence[int], item: int) -> list[int]:
    """The taken items of the first group of the item that is full; none where all have room."""
    for cap in constraints.caps:
        group = cap.groups[item]
        held = [other for other in taken if group >= 0 and cap.groups[other] == group]
        if len(held) >= cap.most:
            return held
    return []
