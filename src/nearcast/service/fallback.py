"""What stands in where a key has no candidates: a chain that is asked of one view, and so answers from one snapshot.

    fallback_key    the request's fallback keys, in turn
    online          the online index, where one is served and the request carries a vector
    default_key     default_keys of the generator's [serve], in turn
    default_items   default_items of the generator's [serve], which have no scores

It is asked for a key that the table does not have, and for one whose list is empty, or was left empty by the overlay,
by rules or by the score that was asked for. Everything that stands in is under the same overlay and the same rules.
Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from nearcast.serve.lookup_answers import Answer
from nearcast.serve.lookup_keys import typed_key
from nearcast.serve.view import View
from nearcast.service.online_search import OnlineSearch
from nearcast.types import FloatArray, as_score

__all__ = ["SOURCES", "Found", "Question", "Wanted", "answer_many", "answer_one", "columns_of", "search"]

SOURCES = ("table", "fallback_key", "online", "default_key", "default_items", "none")
TABLE, FALLBACK_KEY, ONLINE, DEFAULT_KEY, DEFAULT_ITEMS, NONE = SOURCES

MOST_GONE = 1000  # that a search makes up for at least, if it must

Key = str | int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of every list."""

    k: int | None = None  # None: the generator's
    min_score: float | None = None
    fields: tuple[str, ...] = ()
    request: Mapping[str, Any] | None = None  # what rules may know of it


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A key, and what to try where there is nothing for it."""

    key: Key
    fallback_keys: Sequence[Key] = ()
    vector: FloatArray | None = None  # (dim,)


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates from anywhere, without what the overlay has taken out."""

    ids: Sequence[Key]
    scores: Sequence[float | None]
    removed: int = 0
    key: Key | None = None  # whose list it is
    reason: str | None = None
    stored: int = 0
    barred: Mapping[str, int] = field(default_factory=dict)


Step = Callable[[list[int]], Iterator[tuple[int, Found]]]  # places of questions -> what was found for some of them


def answer_one(view: View, question: Question, wanted: Wanted, online: OnlineSearch | None) -> Answer:
    """The candidates of one key, or what stands in for them."""
    answer = view.get(
        question.key, k=wanted.k, min_score=wanted.min_score, fields=wanted.fields, request=wanted.request
    )
    if answer.ids:
        return answer
    stood_in = _stood_in(view, [answer], [question], wanted, online)
    return (_with_fields(view, stood_in, wanted.fields) if wanted.fields else stood_in)[0]


def answer_many(view: View, questions: Sequence[Question], wanted: Wanted, online: OnlineSearch | None) -> list[Answer]:
    """The candidates of each key, or what stands in for them."""
    keys = [question.key for question in questions]
    found = view.get_many(keys, k=wanted.k, min_score=wanted.min_score, request=wanted.request)
    answers = [
        answer if answer.key is not None else replace(answer, key=question.key)  # not of the type of the table's keys
        for answer, question in zip(found, questions, strict=True)
    ]
    answers = _stood_in(view, answers, questions, wanted, online)
    return _with_fields(view, answers, wanted.fields) if wanted.fields else answers


def search(
    view: View, online: OnlineSearch, vectors: FloatArray, wanted: Wanted, keys: Sequence[Key | None] | None = None
) -> list[Found]:
    """The nearest items of each of these (n, dim) vectors, under the overlay and the rules of the view.

    Asks for more where items that are gone or barred leave fewer than k: for k and as many, within reason.
    keys: the queries that rules take the vectors for; without one, a query's columns are what the request brings.
    """
    k = wanted.k or view.version.facts.k
    keys = keys if keys is not None else [None] * len(vectors)
    out = max(MOST_GONE, 4 * k)
    if view.version.attributes is None:
        out = min(len(view.overlay.gone), out)
        if wanted.request:
            view.context(None, wanted.request)  # which refuses it
    found = [Found((), ())] * len(vectors)
    places, asked, most = list(range(len(vectors))), k, k + out
    while places:
        ids, scores = online.search(vectors[places], asked)
        for place, row_ids, row_scores in zip(places, ids, scores, strict=True):
            found[place] = _eligible(view, keys[place], row_ids, row_scores, k, wanted)
        if asked >= most:
            break
        full = [len(row) >= asked for row in ids]  # otherwise there are no more
        places = [place for place, more in zip(places, full, strict=True) if more and len(found[place].ids) < k]
        asked = min(most, 2 * asked)
    return [_at_least(row, wanted.min_score) for row in found]


def columns_of(view: View, lists: Sequence[Sequence[Key]], fields: Sequence[str]) -> list[dict[str, list[object]]]:
    """These columns of the items of each list, in one reading."""
    rows = iter(view.items([item for ids in lists for item in ids], fields))
    found = []
    for ids in lists:
        here = [next(rows) for _ in ids]
        found.append({name: [row[name] for row in here] for name in fields})
    return found


def _with_fields(view: View, answers: Sequence[Answer], fields: Sequence[str]) -> list[Answer]:
    columns = columns_of(view, [answer.ids for answer in answers], fields)
    return [replace(answer, columns=held) for answer, held in zip(answers, columns, strict=True)]


def _stood_in(
    view: View, answers: list[Answer], questions: Sequence[Question], wanted: Wanted, online: OnlineSearch | None
) -> list[Answer]:
    """The answers, with something in the place of those without candidates; their fields are added by the caller."""
    empty = [place for place, answer in enumerate(answers) if not answer.ids]
    if not empty:
        return answers
    told = list(answers)
    for source, step in _chain(view, questions, wanted, online):
        for place, found in step(empty):
            told[place] = _with(told[place], source, found)
        empty = [place for place in empty if not told[place].ids]
        if not empty:
            break
    for place in empty:
        told[place] = replace(told[place], source=NONE, source_key=None)
    return told


def _chain(
    view: View, questions: Sequence[Question], wanted: Wanted, online: OnlineSearch | None
) -> Iterator[tuple[str, Step]]:
    defaults = view.version.facts.serve
    for turn in range(max(len(question.fallback_keys) for question in questions)):
        yield FALLBACK_KEY, partial(_from_fallback_keys, view, questions, wanted, turn)
    if online is not None:
        yield ONLINE, partial(_from_online, view, questions, wanted, online)
    for key in defaults.get("default_keys", ()):
        yield DEFAULT_KEY, partial(_from_default_key, view, wanted, key)
    if defaults.get("default_items"):
        yield DEFAULT_ITEMS, partial(_from_default_items, view, questions, wanted, defaults["default_items"])


def _with(answer: Answer, source: str, found: Found) -> Answer:
    """The answer with what was found; without candidates only the count of what the overlay took out grows."""
    removed, stored = answer.removed + found.removed, answer.stored + found.stored
    barred = {rule: answer.barred.get(rule, 0) + found.barred.get(rule, 0) for rule in (*answer.barred, *found.barred)}
    if not found.ids:
        return replace(answer, removed=removed, stored=stored, barred=barred)
    return replace(
        answer,
        ids=found.ids,
        scores=found.scores,  # type: ignore[arg-type]  # None for default items
        removed=removed,
        stored=stored,
        barred=barred,
        reason=found.reason,
        source=source,
        source_key=found.key,
    )


def _lists(view: View, keys: Sequence[Key], wanted: Wanted) -> list[Found]:
    found = view.get_many(keys, k=wanted.k, min_score=wanted.min_score, request=wanted.request)
    return [
        Found(answer.ids, answer.scores, answer.removed, answer.key, answer.reason, answer.stored, answer.barred)
        for answer in found
    ]


def _from_fallback_keys(
    view: View, questions: Sequence[Question], wanted: Wanted, turn: int, places: list[int]
) -> Iterator[tuple[int, Found]]:
    """The lists of the fallback keys whose turn it is."""
    places = [place for place in places if turn < len(questions[place].fallback_keys)]
    return zip(places, _lists(view, [questions[place].fallback_keys[turn] for place in places], wanted), strict=True)


def _from_online(
    view: View, questions: Sequence[Question], wanted: Wanted, online: OnlineSearch, places: list[int]
) -> Iterator[tuple[int, Found]]:
    """What the online index finds near the vectors that came along."""
    vectors = {place: vector for place in places if (vector := questions[place].vector) is not None}
    if not vectors:
        return iter(())
    keys = [typed_key(questions[place].key, view.version.query_ids) for place in vectors]
    return zip(vectors, search(view, online, np.stack(list(vectors.values())), wanted, keys), strict=True)


def _from_default_key(view: View, wanted: Wanted, key: Key, places: list[int]) -> Iterator[tuple[int, Found]]:
    """The list of a default key, read once for all."""
    found = _lists(view, [key], wanted)[0]
    return ((place, found) for place in places)


def _from_default_items(
    view: View, questions: Sequence[Question], wanted: Wanted, items: Sequence[Key], places: list[int]
) -> Iterator[tuple[int, Found]]:
    """The default items that are not gone. They have no scores, so a least score does not keep them out."""
    gone = view.removed(items)
    there = [item for item, is_gone in zip(items, gone, strict=True) if not is_gone]
    if view.version.attributes is None:
        kept = there[: wanted.k]
        found = Found(kept, [None] * len(kept), sum(gone))
        yield from ((place, found) for place in places)
        return
    typed = [typed_key(item, view.version.item_ids) for item in there]
    for place in places:
        key = typed_key(questions[place].key, view.version.query_ids)
        left, barred = view.sift(key, typed, wanted.request, time.time())
        kept = [there[at] for at in left][: wanted.k]
        yield place, Found(kept, [None] * len(kept), sum(gone), barred=barred)


def _eligible(
    view: View, key: Key | None, ids: Sequence[Key], scores: Sequence[float], k: int, wanted: Wanted
) -> Found:
    """The first k that are not gone and that no rule bars."""
    kept: Sequence[int] = range(len(ids))
    removed = 0
    if view.overlay.removes_any(ids):
        gone = view.removed(ids)
        kept = [place for place, is_gone in enumerate(gone) if not is_gone]
        # what is gone further down was in nobody's way
        removed = sum(gone[: kept[k - 1] + 1] if len(kept) >= k else gone)
    barred: Mapping[str, int] = {}
    if view.version.attributes is not None:
        left, barred = view.sift(key, [ids[place] for place in kept], wanted.request, time.time())
        kept = [kept[place] for place in left]
    kept = kept[:k]
    return Found([ids[place] for place in kept], [scores[place] for place in kept], removed, barred=barred)


def _at_least(found: Found, min_score: float | None) -> Found:
    if min_score is None:
        return found
    bound = float(as_score(min_score))
    n = sum(score is not None and score >= bound for score in found.scores)
    return replace(found, ids=found.ids[:n], scores=found.scores[:n])
