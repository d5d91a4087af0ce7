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
from nearcast.errors import NearcastError, NotFoundError
from nearcast.files import is_done
from nearcast.join.compile_constraints import open_constraints, rules_of
from nearcast.join.rank import RankSettings, model_scores, rank_settings
from nearcast.join.select_candidates import read_full_items
from nearcast.knn.constraints import Constraints
from nearcast.knn.eligible import eligible_pairs
from nearcast.knn.exposure import AdmissionThresholds, find_admitted
from nearcast.knn.scores import pair_scores
from nearcast.measure.sampled_recall import find_own_items
from nearcast.sources.attribute_columns import rows_of
from nearcast.sources.ids import positions_of
from nearcast.sources.ingest import IngestedTable, Inputs, open_ingested_table
from nearcast.spec import GeneratorSpec, parse_model
from nearcast.suggest import nearest_in_words, quoted
from nearcast.table.snapshot import Candidates, Snapshot
from nearcast.times import rows_of_table
from nearcast.types import IntArray, Metric, as_score

__all__ = ["Cause", "Explanation", "LeftOut", "explain"]

BLOCK_ROWS = 1 << 15
MOST_NAMED = 5  # better items that are left out

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
    RANKED_LOWER = "ranked_lower"  # the join found it, and the ranking model put k others before it
    NOT_PROBED = "not_probed"  # it belongs into the list, and the join did not meet its cell


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A better item that is not in the list."""

    item: str | int
    rank: int  # among all items that the query may get, from 1
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
    rank: int | None  # among all items that the query may get, from 1; caps aside
    last_score: float | None  # of the list; None where a model ranked it, whose scores are no join scores
    rule: str | None = None  # that bars the pair
    instead: tuple[str | int, ...] = ()  # the items that fill the cap
    left_out: tuple[LeftOut, ...] = ()  # better items that are not in the list; the first MOST_NAMED of them
    model_rank: int | None = None  # among what the join fetches for the ranking model, from 1
    model_score: float | None = None
    last_model_score: float | None = None  # of the list

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        left_out = [{**asdict(one), "cause": str(one.cause)} for one in self.left_out]
        return {**asdict(self), "cause": str(self.cause), "instead": list(self.instead), "left_out": left_out}


@dataclass(frozen=True, slots=True)
class _Made:
    """What a snapshot was made of."""

    spec: GeneratorSpec
    items: IngestedTable
    queries: IngestedTable
    constraints: Constraints
    effort: Mapping[str, int]
    full: AdmissionThresholds | None  # of the items that an exposure cap has filled up
    rank: RankSettings | None  # the model that ranked the lists
    rank_fault: str = ""  # why the model cannot be asked again


@dataclass(frozen=True, slots=True)
class _Pool:
    """All items as one query sees them."""

    row: int
    listed: Candidates
    scores: FloatArray  # (items,) of the join
    order: IntArray  # those that the query may get, best first
    last_model_score: float | None
    model: Mapping[int, float]  # score of each item that the join fetches for the model; empty without one
    model_fault: str = ""  # why the model cannot be asked again

    def rank_of(self, place: int) -> int | None:
        """Its rank by the join among all that the query may get, from 1."""
        where = np.flatnonzero(self.order == place)
        return int(where[0]) + 1 if len(where) else None

    def model_rank_of(self, place: int) -> int | None:
        """Its rank by the model, from 1; equal scores go to the smaller position."""
        if place not in self.model:
            return None
        own = (-self.model[place], place)
        return 1 + sum((-score, other) < own for other, score in self.model.items())


def explain(
    snapshot: Snapshot, artifacts: Path, query: str | int, item: str | int, *, base: Path | None = None
) -> Explanation:
    """Why this item is in the list of this query, or not.

    artifacts: the generator's folder of what its newest snapshot was made of. base: the folder that the spec's own
    paths are relative to; by default the one that its `out` is in. A ranking model is asked again. Raises NotFoundError
    for a query or an item that the snapshot does not have, or where what it was made of is gone.
    """
    listed = snapshot.lookup(query)
    made = _opened(snapshot, artifacts, base)
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
        last_score=listed.scores[-1] if listed.scores and made.spec.rank is None else None,
    )
    row = int(positions_of(pa.array([listed.query], made.queries.ids.type), made.queries.ids)[0])
    if row < 0:
        return replace(found, cause=Cause.NO_VECTOR, words="the query has no usable vector, and so no list")
    return _explained(found, made, _pool(snapshot, made, listed, row), place)


def _opened(snapshot: Snapshot, artifacts: Path, base: Path | None) -> _Made:
    names: Sequence[str] = snapshot.manifest.artifacts
    gone = [name for name in names if not name.startswith("index-") and not is_done(artifacts / name)]
    if gone:
        raise NotFoundError(
            f"what {snapshot.generator} {snapshot.name} was made of is gone ({gone[0]}): only the newest snapshot can "
            "be explained, where it was made"
        )
    folders = {name.partition("-")[0]: artifacts / name for name in names}
    items = open_ingested_table(folders.get("scoreditems", folders["items"]))
    asked = folders.get("scoredqueries", folders.get("queries"))
    queries = open_ingested_table(asked) if asked is not None else items
    spec = parse_model(GeneratorSpec, snapshot.manifest.spec, f"the spec of {snapshot.name}", recorded=True)
    if spec.score.columns and spec.metric is Metric.COSINE:
        spec = spec.model_copy(update={"metric": Metric.INNER_PRODUCT})  # of what score terms made of the vectors
    held = open_constraints(folders.get("constraints"))
    full = read_full_items(snapshot.folder, items, queries)
    rank, fault = _rank_of(spec, base or _base_of(spec, artifacts))
    return _Made(spec, items, queries, held, snapshot.manifest.engine.params, full, rank, fault)


def _base_of(spec: GeneratorSpec, artifacts: Path) -> Path:
    """The folder of the spec, which `out` is relative to."""
    out = artifacts.absolute().parent.parent
    depth = 0 if Path(spec.out).is_absolute() else len(Path(spec.out).parts)
    return out.parents[depth - 1] if depth else out


def _rank_of(spec: GeneratorSpec, base: Path) -> tuple[RankSettings | None, str]:
    try:
        return rank_settings(spec, base), ""
    except NearcastError as error:
        return None, str(error)


def _pool(snapshot: Snapshot, made: _Made, listed: Candidates, row: int) -> _Pool:
    """Score every item for a query, and ask the ranking model about those that the join fetches for it."""
    scores, legal = _scores(made, row), _eligible(made, row)
    order = np.lexsort((np.arange(len(scores)), -scores))
    order = order[legal[order]]
    if made.spec.rank is None:
        return _Pool(row, listed, scores, order, None, {})
    stored = snapshot.rank_scores(listed.query)
    last = stored[-1] if stored else None
    fetched = order[: made.spec.rank.fetch]
    if made.constraints.min_score is not None:
        fetched = fetched[scores[fetched] >= as_score(made.constraints.min_score)]
    # what an approximate join has found may lie beyond the best that it fetches
    ids = pa.array(listed.ids, made.items.ids.type)
    own = positions_of(ids, made.items.ids)
    asked = np.array(list(dict.fromkeys([*fetched.tolist(), *own.tolist()])), np.int64)
    if made.rank is None or not len(asked):
        return _Pool(row, listed, scores, order, last, {}, made.rank_fault)
    try:
        found = model_scores(made.rank, made.queries, row, made.items, asked, scores[asked])
    except NearcastError as error:
        return _Pool(row, listed, scores, order, last, {}, str(error))
    model = dict(zip(asked.tolist(), map(float, found), strict=True))
    if not np.allclose([model[place] for place in own.tolist()], stored, rtol=1e-5, atol=0):
        return _Pool(row, listed, scores, order, last, {}, "it scores otherwise than when the snapshot was made")
    return _Pool(row, listed, scores, order, last, model)


WHOLE = {"item": "items", "query": "queries"}


def _position(side: IngestedTable, key: str | int, what: str, snapshot: Snapshot) -> int:
    try:
        value = int(key) if pa.types.is_integer(side.ids.type) else str(key)
        place = int(positions_of(pa.array([value], side.ids.type), side.ids)[0])
    except (ValueError, OverflowError, pa.ArrowInvalid):
        place = -1
    if place < 0:
        words = nearest_in_words(key, side.ids, f"its {len(side.ids):,} {WHOLE[what]}")
        raise NotFoundError(
            f"{snapshot.generator} {snapshot.name} was made without {what} {quoted(key)}, or it had no usable vector; "
            f"{words}"
        )
    return place


def _explained(found: Explanation, made: _Made, pool: _Pool, place: int) -> Explanation:
    found = replace(
        found,
        score=float(pool.scores[place]),
        rank=pool.rank_of(place),
        model_rank=pool.model_rank_of(place),
        model_score=pool.model.get(place),
        last_model_score=pool.last_model_score,
    )
    if found.item in pool.listed.ids:
        return _listed(found, made, pool, place)
    return _absent(found, made, pool, place)


def _listed(found: Explanation, made: _Made, pool: _Pool, place: int) -> Explanation:
    """The words for an item that is in the list, and for the better ones that are not."""
    number = pool.listed.ids.index(found.item) + 1
    words = f"it is number {number} of {len(pool.listed.ids)} in the list"
    better: Sequence[int] = []
    if made.spec.rank is not None:
        words += f", which the model has ordered: join rank {found.rank:,}"
        if found.model_rank is not None:
            words += f", model rank {found.model_rank:,} of {len(pool.model):,}"
            own = (-pool.model[place], place)
            better = sorted(other for other, score in pool.model.items() if (-score, other) < own)
    elif found.rank is not None:
        better = pool.order[: found.rank - 1].tolist()
    names = set(pool.listed.ids)
    missing = [other for other in better if made.items.ids[other].as_py() not in names]
    left_out = tuple(_left_out(found, made, pool, other) for other in missing[:MOST_NAMED])
    if missing:
        parts = [f"{one.item!r} at rank {one.rank:,} ({one.words})" for one in left_out]
        more = [f"and {len(missing) - MOST_NAMED:,} more"] if len(missing) > MOST_NAMED else []
        words += f"; {len(missing):,} better {_ones(len(missing))} left out: {'; '.join([*parts, *more])}"
    return replace(found, listed_rank=number, words=words, left_out=left_out)


def _ones(count: int) -> str:
    return "one is" if count == 1 else "ones are"


def _left_out(found: Explanation, made: _Made, pool: _Pool, place: int) -> LeftOut:
    """Why a better item is not in the list."""
    other = replace(
        found, item=made.items.ids[place].as_py(), score=float(pool.scores[place]), rank=pool.rank_of(place)
    )
    other = replace(other, model_rank=pool.model_rank_of(place), model_score=pool.model.get(place))
    why = _absent(other, made, pool, place)
    return LeftOut(why.item, why.rank or 0, why.cause, why.words)


def _absent(found: Explanation, made: _Made, pool: _Pool, place: int) -> Explanation:
    """Why an item is not in the list."""
    order, own = pool.order, float(pool.scores[place])
    barred = _barred(found, made, pool.row, place)
    if barred is not None:
        return barred
    least = made.constraints.min_score
    if least is not None and own < as_score(least):
        words = f"it scores {own:.6g}, and a candidate scores at least {least:g}"
        return replace(found, cause=Cause.BELOW_MIN_SCORE, words=words)
    if made.spec.rank is not None:
        return _ranked(found, made, pool)
    if made.full is not None:
        scores = pool.scores[order][None, :]
        through = find_admitted(order[None, :], scores, np.array([pool.row]), made.full)[0]
        if not through[order == place][0]:
            return _exposed(found, made, made.full, place)
        wide = made.spec.exposure.candidates_per_query if made.spec.exposure else 0
        if found.rank is not None and found.rank > wide:
            words = f"{found.rank - 1:,} others come first, and the best {wide:,} are what lists are chosen from"
            return replace(found, cause=Cause.NEARER, words=words)
        order = order[through]
    return _outranked(found, made, order, place, pool.scores)


def _ranked(found: Explanation, made: _Made, pool: _Pool) -> Explanation:
    """Why an item is not in a list that a model has ranked."""
    assert made.spec.rank is not None
    fetch, rank = made.spec.rank.fetch, found.rank or 0
    if rank > fetch:
        words = f"{rank - 1:,} others come first, and the join fetches the best {fetch:,} for the model to rank"
        return replace(found, cause=Cause.NEARER, words=words)
    if found.model_score is None:
        words = (
            f"the join fetches it, at rank {rank:,} of {fetch:,}, and the model has put {made.spec.k} others before "
            f"it; its own model rank is not known, since the model cannot be asked again: {pool.model_fault}"
        )
        return replace(found, cause=Cause.RANKED_LOWER, words=words)
    last = pool.last_model_score
    full = len(pool.listed.ids) >= made.spec.k
    if full and last is not None and found.model_score <= last:
        words = (
            f"ranked lower by the model: join rank {rank:,}, model rank {found.model_rank:,} of {len(pool.model):,}; "
            f"its model score is {found.model_score:.6g}, and the last of the list has {last:.6g}"
        )
        return replace(found, cause=Cause.RANKED_LOWER, words=words)
    words = (
        f"it belongs into the list, at join rank {rank:,} and model rank {found.model_rank:,}, and the join did not "
        f"find it for the model: its cell was not probed at this effort ({_effort(made)}). Raise `recall`, or the "
        "engine's effort"
    )
    return replace(found, cause=Cause.NOT_PROBED, words=words)


def _effort(made: _Made) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in made.effort.items()) or "full"


def _exposed(found: Explanation, made: _Made, full: AdmissionThresholds, place: int) -> Explanation:
    last = made.queries.ids[int(full.queries[place])].as_py()
    most = made.spec.exposure.max_lists_per_item if made.spec.exposure else 0
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
    own = _own_item(made, row)
    if own >= 0:
        legal[own] = False
    return legal


def _own_item(made: _Made, row: int) -> int:
    """Return the position of the item that exclude_self leaves out of a query's list, -1 for none."""
    if not made.spec.exclude_self:
        return -1
    return int(find_own_items(Inputs(made.items, made.queries, Metric(made.spec.metric)), np.array([row]))[0])


def _barred(found: Explanation, made: _Made, row: int, place: int) -> Explanation | None:
    if place == _own_item(made, row):
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


def _facts(side: IngestedTable, columns: Sequence[str], place: int) -> dict[str, Any]:
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
        if len(taken) == made.spec.k and found.last_score is not None and scores[place] > as_score(found.last_score):
            words = (
                f"{made.spec.k} others come first, but the join has missed some of them and this one, which scores "
                f"more than the last of the list: their cells were not probed at this effort ({_effort(made)}). Raise "
                "`recall`, or the engine's effort"
            )
            return replace(found, cause=Cause.NOT_PROBED, words=words)
        if len(taken) == made.spec.k:
            words = (
                f"{made.spec.k} others come first: it scores {scores[place]:.6g}, rank {found.rank:,} of "
                f"{len(order):,} eligible items, and the last of the best {made.spec.k} scores {scores[item]:.6g}"
            )
            return replace(found, cause=Cause.NEARER, words=words)
    asked, last = made.spec.overfetch, found.last_score
    if asked is not None and last is not None and scores[place] <= as_score(last):
        words = (
            f"it would be number {len(taken) + 1}, and the list ends before: the plan for {asked.at_least} survivors "
            f"with probability {asked.probability:g} gives this query no more candidates"
        )
        return replace(found, cause=Cause.ENOUGH, words=words)
    words = (
        f"it belongs into the list, at rank {found.rank:,}, and the join did not probe its cell at this effort "
        f"({_effort(made)}). Raise `recall`, or the engine's effort"
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
