"""Decide which cause a candidate that came or went is charged to: what changed for its pair of query and item.

Reads attributes of both snapshots, no vectors. A candidate that only took, or left, a slot by the change of others has
no cause of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nearcast.eligibility import collect_columns, failing
from nearcast.join.candidate_causes import Id, MovedVectors, Pair, SnapshotSample, Went

__all__ = ["CauseDecider", "ChangeCause", "PairCauses", "open_decider"]

PairCauses = tuple[Mapping[Pair, str], Mapping[Pair, str]]  # of pairs that came, and that went: see `find_causes`


class ChangeCause(StrEnum):
    """What changed between two snapshots."""

    NEW_ITEMS = "new items"
    GONE_ITEMS = "gone items"
    VECTORS = "vectors"  # of the query or of an item
    ATTRIBUTES = "attributes"  # values that a rule, a cap or a score term reads
    RULES = "rules"
    SETTINGS = "settings"  # k, caps, metric and all else of the spec that decides a list
    ENGINE = "engine"  # an approximate join missed the candidate, in one of the snapshots
    UNEXPLAINED = "unexplained"  # nothing kept of the two snapshots decides between the causes


def open_decider(
    before: SnapshotSample,
    after: SnapshotSample,
    causes: PairCauses,
    vectors: MovedVectors,
    scores_now: Mapping[Pair, float],
) -> CauseDecider:
    """Read the attributes that decide about these pairs.

    scores_now: scores of pairs of the older lists by the newer snapshot's vectors.
    """
    by_rule, revalued = _find_rule_causes(before, after, causes), _find_revalued(before, after, causes)
    return CauseDecider(before, after, vectors, scores_now, by_rule, revalued)


def _find_rule_causes(before: SnapshotSample, after: SnapshotSample, causes: PairCauses) -> dict[Pair, ChangeCause]:
    """Return whether attributes or rules made pairs eligible or ineligible.

    A pair that today's rules keep with the earlier attributes came by the rules, and went by the attributes.
    """
    chosen = [(pair, number == 0) for number, found in enumerate(causes) for pair in found if _is_rule(found[pair])]
    if not chosen:
        return {}
    item_columns, query_columns, _ = collect_columns(after.rules)
    items = before.read_attributes("items", item_columns, {item for (_, item), _ in chosen})
    queries = before.read_attributes("queries", query_columns, {query for (query, _), _ in chosen})
    found = {}
    for (query, item), came in chosen:
        keeps = failing(after.rules, queries.get(query, {"id": query}), items.get(item, {"id": item})) is None
        found[query, item] = ChangeCause.RULES if keeps == came else ChangeCause.ATTRIBUTES
    same_columns = _lists_columns(before, item_columns, query_columns)
    return found if same_columns else dict.fromkeys(found, ChangeCause.RULES)


def _find_revalued(before: SnapshotSample, after: SnapshotSample, causes: PairCauses) -> frozenset[Id]:
    """Return the items of changed lists whose values of a cap's column, or of a score term, differ."""
    names = {cap.by for cap in (*before.spec.caps, *after.spec.caps) if cap.by is not None}
    names |= {*before.spec.score.columns, *after.spec.score.columns}
    queries = {query for found in causes for query, _ in found}
    if not names or not queries:
        return frozenset()
    ids = {item for query in queries for sample in (before, after) for item in sample.lists[query].ids}
    then, now = (sample.read_attributes("items", sorted(names), ids) for sample in (before, after))
    return frozenset(item for item in then.keys() & now.keys() if then[item] != now[item])


def _is_rule(cause: str) -> bool:
    return cause.startswith(f"{Went.RULE} ")


def _lists_columns(sample: SnapshotSample, item_columns: Sequence[str], query_columns: Sequence[str]) -> bool:
    """Return whether a snapshot has the columns of rules: one that reads another column is another rule."""
    of_items, of_queries = sample.spec.items.columns, sample.spec.query_source.columns
    return set(item_columns) <= {"id", *of_items} and set(query_columns) <= {"id", *of_queries}


@dataclass(frozen=True, slots=True)
class CauseDecider:
    """Decides the cause of one candidate that came or went."""

    before: SnapshotSample
    after: SnapshotSample
    vectors: MovedVectors
    scores_now: Mapping[Pair, float]
    rule_causes: Mapping[Pair, ChangeCause]
    revalued: frozenset[Id]  # items with another value of a cap's column, or of a score term

    def decide(self, query: Id, item: Id, cause: str, *, came: bool) -> ChangeCause | None:
        """Return the cause; None if the candidate only took, or left, a slot by the change of others."""
        if cause == Went.ITEM:
            return ChangeCause.NEW_ITEMS if came else ChangeCause.GONE_ITEMS
        if _is_rule(cause):
            return self.rule_causes[query, item]
        if cause == Went.CROWDED:
            return ChangeCause.SETTINGS if self._is_beyond_k(query, item, came=came) else None
        if cause == Went.CAPPED:
            return ChangeCause.SETTINGS if self._differ("caps") else self._decide_by_groups(query, item)
        if cause == Went.EXPOSED:
            return ChangeCause.SETTINGS if self._differ("exposure") else None
        if self._is_barred_by_settings(query, item, came=came):
            return ChangeCause.SETTINGS
        if item in self.revalued and self.after.spec.score.columns:
            return ChangeCause.ATTRIBUTES
        moved = self.vectors.has_moved(query, item)
        if cause == Went.RANKED:
            return ChangeCause.VECTORS if moved else ChangeCause.UNEXPLAINED
        return self._decide_by_vectors(query, item, moved, came=came)

    def _decide_by_groups(self, query: Id, item: Id) -> ChangeCause | None:
        """Return ATTRIBUTES if the item, or one of the lists, is in another group of a cap now."""
        ids = {item, *self.before.lists[query].ids, *self.after.lists[query].ids}
        return ChangeCause.ATTRIBUTES if not self.revalued.isdisjoint(ids) else None

    def _decide_by_vectors(self, query: Id, item: Id, moved: bool | None, *, came: bool) -> ChangeCause:
        """Tell a changed vector from a candidate that the other join missed."""
        other = self.before if came else self.after
        now = self.scores_now.get((query, item))
        if not came and now is not None and moved is not False:
            missed = now > self.after.lists[query].threshold
            return ChangeCause.ENGINE if missed and other.approximate else ChangeCause.VECTORS
        if moved is None and other.approximate and self.vectors.seems_kept(query):
            return ChangeCause.ENGINE
        if moved is None:
            return ChangeCause.UNEXPLAINED if other.approximate else ChangeCause.VECTORS
        if moved:
            return ChangeCause.VECTORS
        return ChangeCause.ENGINE if other.approximate else ChangeCause.UNEXPLAINED

    def _differ(self, *names: str) -> bool:
        return any(getattr(self.before.spec, name) != getattr(self.after.spec, name) for name in names)

    def _is_beyond_k(self, query: Id, item: Id, *, came: bool) -> bool:
        """Return whether the candidate is at a rank that the other snapshot's k does not have."""
        there, other = (self.after, self.before) if came else (self.before, self.after)
        return other.spec.k <= there.lists[query].ids.index(item)

    def _is_barred_by_settings(self, query: Id, item: Id, *, came: bool) -> bool:
        """Return whether settings that differ decide about the pair."""
        if self._differ("metric", "score", "rank", "overfetch", "exposure"):
            return True
        other = self.before if came else self.after
        if self._differ("exclude_self") and query == item and other.spec.exclude_self:
            return True
        there = self.after if came else self.before
        score = dict(zip(there.lists[query].ids, there.lists[query].scores, strict=True))[item]
        least = other.spec.min_score
        return self._differ("min_score") and least is not None and score < least
