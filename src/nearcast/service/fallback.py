"""Fallbacks for keys without candidates: a chain of sources, all read from one view, so from one snapshot.

    fallback_key    the fallback keys of the request, in order
    online          the online index, if one is served and the request has a vector
    default_key     default_keys of the generator's [serve], in order
    default_items   default_items of the generator's [serve], which have no scores

All fallbacks of a key come from the version that answers it. The chain runs for a key that the table does not have, and
for a list that is empty or that the overlay, the rules or min_score have left empty. The overlay and the rules apply to
every fallback. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nearcast.serve.lookup_data import Answer, LookupOptions, convert_key
from nearcast.serve.view import View
from nearcast.service.answer_batch import AnswerBatch, merge_batches
from nearcast.service.online_search import CandidateList, Key, OnlineSearch, read_columns, search_online
from nearcast.types import FloatArray

__all__ = ["SOURCES", "KeyQuery", "answer_keys", "apply_fallback"]

SOURCES = ("table", "fallback_key", "online", "default_key", "default_items", "none")
TABLE, FALLBACK_KEY, ONLINE, DEFAULT_KEY, DEFAULT_ITEMS, NONE = SOURCES


@dataclass(frozen=True, slots=True, eq=False)
class KeyQuery:
    """A key to look up, with the fallbacks that the request gives for it."""

    key: Key
    fallback_keys: Sequence[Key] = ()
    vector: FloatArray | None = None  # (dim,)


# positions of queries -> (position, candidates) for each query that the source can answer
Source = Callable[[list[int]], Iterator[tuple[int, CandidateList]]]


def apply_fallback(
    view: View, answer: Answer, query: KeyQuery, options: LookupOptions, online: OnlineSearch | None
) -> Answer:
    """Return an answer without candidates with those of the first fallback that has any."""
    answers = _apply_fallbacks(view, [answer], [query], options, online)
    return (_add_columns(view, answers, options.fields) if options.fields else answers)[0]


def answer_keys(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, online: OnlineSearch | None
) -> AnswerBatch:
    """Return the candidates of each key, or of its first fallback that has any. A canary answers its keys alone."""

    def read(arm: View, positions: Sequence[int]) -> AnswerBatch:
        return _answer_arm(arm, [queries[at] for at in positions], options, online)

    parts = view.read_arms([query.key for query in queries], options, read)
    if len(parts) == 1:
        return parts[0][0]
    return merge_batches([part for part, _ in parts], [positions for _, positions in parts])


def _answer_arm(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, online: OnlineSearch | None
) -> AnswerBatch:
    stored = view.get_many([query.key for query in queries], options)
    empty = np.flatnonzero(np.diff(stored.offsets) == 0).tolist()
    unanswered = [queries[row] for row in empty]
    answers = [
        answer if answer.key is not None else replace(answer, key=query.key)  # a key of another type than the table's
        for answer, query in zip([stored[row] for row in empty], unanswered, strict=True)
    ]
    replaced = dict(zip(empty, _apply_fallbacks(view, answers, unanswered, options, online), strict=True))
    version = view.version
    batch = AnswerBatch(stored, replaced, version.query_ids, version.item_ids, column_types=version.facts.columns)
    if not options.fields:
        return batch
    offsets, ids = stored.offsets.tolist(), stored.ids.to_pylist()
    lists = [
        replaced[row].ids if row in replaced else ids[offsets[row] : offsets[row + 1]] for row in range(len(batch))
    ]
    return replace(batch, columns=read_columns(view, lists, options.fields))


def _add_columns(view: View, answers: Sequence[Answer], fields: Sequence[str]) -> list[Answer]:
    columns = read_columns(view, [answer.ids for answer in answers], fields)
    return [replace(answer, columns=row) for answer, row in zip(answers, columns, strict=True)]


def _apply_fallbacks(
    view: View,
    answers: list[Answer],
    queries: Sequence[KeyQuery],
    options: LookupOptions,
    online: OnlineSearch | None,
) -> list[Answer]:
    """Replace the answers without candidates by the first fallback that has any. Item columns are not added."""
    empty = [position for position, answer in enumerate(answers) if not answer.ids]
    if not empty:
        return answers
    answers = list(answers)
    for name, source in _list_fallbacks(view, queries, options, online):
        for position, candidates in source(empty):
            answers[position] = _merge_fallback(answers[position], name, candidates)
        empty = [position for position in empty if not answers[position].ids]
        if not empty:
            break
    for position in empty:
        answers[position] = replace(answers[position], source=NONE, source_key=None)
    return answers


def _list_fallbacks(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, online: OnlineSearch | None
) -> Iterator[tuple[str, Source]]:
    defaults = view.version.facts.serve
    for number in range(max(len(query.fallback_keys) for query in queries)):
        yield FALLBACK_KEY, partial(_read_fallback_keys, view, queries, options, number)
    if online is not None:
        yield ONLINE, partial(_search_vectors, view, queries, options, online)
    for key in defaults.get("default_keys", ()):
        yield DEFAULT_KEY, partial(_read_default_key, view, options, key)
    if defaults.get("default_items"):
        yield DEFAULT_ITEMS, partial(_list_default_items, view, queries, options, defaults["default_items"])


def _merge_fallback(answer: Answer, source: str, candidates: CandidateList) -> Answer:
    """Return the answer with the candidates of a fallback. Counts add up, also if the fallback has no candidates."""
    removed, stored = answer.removed + candidates.removed, answer.stored + candidates.stored
    barred = {
        rule: answer.barred.get(rule, 0) + candidates.barred.get(rule, 0)
        for rule in (*answer.barred, *candidates.barred)
    }
    if not candidates.ids:
        return replace(answer, removed=removed, stored=stored, barred=barred)
    return replace(
        answer,
        ids=candidates.ids,
        scores=candidates.scores,  # type: ignore[arg-type]  # None for default items
        removed=removed,
        stored=stored,
        barred=barred,
        reason=candidates.reason,
        source=source,
        source_key=candidates.key,
    )


def _read_lists(view: View, keys: Sequence[Key], options: LookupOptions) -> list[CandidateList]:
    return [
        CandidateList(
            ids=answer.ids,
            scores=answer.scores,
            removed=answer.removed,
            key=answer.key,
            reason=answer.reason,
            stored=answer.stored,
            barred=answer.barred,
        )
        for answer in view.get_many(keys, options)
    ]


def _read_fallback_keys(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, number: int, positions: list[int]
) -> Iterator[tuple[int, CandidateList]]:
    """Yield the list of the fallback key with this number, for each query that has one."""
    positions = [position for position in positions if number < len(queries[position].fallback_keys)]
    keys = [queries[position].fallback_keys[number] for position in positions]
    return zip(positions, _read_lists(view, keys, options), strict=True)


def _search_vectors(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, online: OnlineSearch, positions: list[int]
) -> Iterator[tuple[int, CandidateList]]:
    """Yield the nearest items of each query that has a vector."""
    vectors = {position: vector for position in positions if (vector := queries[position].vector) is not None}
    if not vectors:
        return iter(())
    keys = [convert_key(queries[position].key, view.version.query_ids) for position in vectors]
    return zip(vectors, search_online(view, online, np.stack(list(vectors.values())), options, keys), strict=True)


def _read_default_key(
    view: View, options: LookupOptions, key: Key, positions: list[int]
) -> Iterator[tuple[int, CandidateList]]:
    """Yield the list of a default key for every query; it is read once."""
    candidates = _read_lists(view, [key], options)[0]
    return ((position, candidates) for position in positions)


def _list_default_items(
    view: View, queries: Sequence[KeyQuery], options: LookupOptions, items: Sequence[Key], positions: list[int]
) -> Iterator[tuple[int, CandidateList]]:
    """Yield the eligible default items for every query. They have no scores, so min_score does not apply."""
    removed = view.removed(items)
    present = [item for item, is_removed in zip(items, removed, strict=True) if not is_removed]
    if view.version.rule_columns is None:
        kept = present[: options.k]
        candidates = CandidateList(kept, [None] * len(kept), sum(removed))
        yield from ((position, candidates) for position in positions)
        return
    converted = [convert_key(item, view.version.item_ids) for item in present]
    for position in positions:
        key = convert_key(queries[position].key, view.version.query_ids)
        eligible, barred = view.filter_by_rules(key, converted, options.request, time.time())
        kept = [present[at] for at in eligible][: options.k]
        yield position, CandidateList(kept, [None] * len(kept), sum(removed), barred=barred)
