"""Answers as plain data, of the shapes that `shapes.py` describes. Made by hand: that is what makes them fast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nearcast.serve.lookup_data import Answer, LookupState
from nearcast.service.generator_service import Searched, Served, columns_in
from nearcast.service.responses import encode

__all__ = ["plain_answer", "plain_generator", "plain_search", "told"]

NOT_FOLLOWED = {
    "code": "not_followed",  # without the text: it names files of the store
    "message": "what is newer in the store is not served; the log of the service says why",
}


def plain_answer(answer: Answer) -> dict[str, Any]:
    """An answer as `Answered` describes it."""
    return {
        "key": answer.key,
        "found": answer.found,
        "source": answer.source,
        "source_key": answer.source_key,
        "snapshot": answer.snapshot,
        "age_seconds": round(answer.age_seconds, 3),
        "reason": answer.reason,
        "stored": answer.stored,
        "removed": answer.removed,
        "barred": dict(answer.barred),
        "returned": len(answer.ids),
        "candidates": _candidates(answer.ids, answer.scores, answer.columns),
    }


def _candidates(ids: Iterable[Any], scores: Iterable[Any], columns: Mapping[str, Iterable[Any]]) -> list[Any]:
    if not columns:
        return [{"id": item, "score": score} for item, score in zip(ids, scores, strict=True)]
    names = ("id", "score", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(ids, scores, *columns.values(), strict=True)]


def told(answers: Iterable[Answer]) -> bytes:
    """Answers as `AnsweredMany` describes them, in JSON: one by one, so that other threads have their turn between."""
    return b'{"answers":[' + b",".join([encode(plain_answer(answer)) for answer in answers]) + b"]}"


def plain_search(found: Searched) -> dict[str, Any]:
    """What a search found, as `Searched` describes it but for the index."""
    columns = found.columns or [{}] * len(found.found)
    answers = [
        {"removed": row.removed, "barred": dict(row.barred), "candidates": _candidates(row.ids, row.scores, held)}
        for row, held in zip(found.found, columns, strict=True)
    ]
    return {"snapshot": found.snapshot, "answers": answers}


def plain_generator(name: str, served: Served, state: LookupState) -> dict[str, Any]:
    """A generator as `Generator` describes it."""
    facts, online = state.version_facts, served.online
    return {
        "name": name,
        "snapshot": state.snapshot,
        "version": state.version,
        "created": facts.created,
        "age_seconds": round(state.age_seconds, 3),
        "keys": facts.keys,
        "items": facts.items,
        "k": facts.k,
        "metric": facts.metric,
        "columns": columns_in(served.lookup.view()),
        "overlay": state.overlay,
        "promise": dict(facts.promise),
        "measures": dict(facts.measures),
        "error": NOT_FOLLOWED if state.error else None,
        "online": {"engine": online.name, "dim": online.dim, "recall": online.recall} if online else None,
    }
