"""Candidate sources of a replay: look-up in a version of the table, and search in an online index.

Also says which versions and files the sources answer from, and warns if they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from nearcast.errors import NearcastError
from nearcast.join.context import RunContext
from nearcast.join.inputs import Sources
from nearcast.join.rank import identify_ranker
from nearcast.join.run_plan import make_plan
from nearcast.join.single_search import OnlineIndex
from nearcast.serve.lookup_data import LookupOptions, convert_key
from nearcast.serve.view import View
from nearcast.sources.ingest import Inputs
from nearcast.stores.value_format import IdType, id_type
from nearcast.table.snapshot import find_snapshot
from nearcast.times import format_utc
from nearcast.types import AnyArray, FloatArray, IntArray, Metric

__all__ = [
    "CandidateSource",
    "LookupSource",
    "OnlineSource",
    "RetrievedLists",
    "SourceComparison",
    "compare_sources",
    "make_online_source",
]


@dataclass(frozen=True, slots=True, eq=False)
class RetrievedLists:
    """Candidates of some keys: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    offsets: IntArray
    ids: pa.Array
    scores: FloatArray
    found: int  # number of known keys


class CandidateSource(Protocol):
    """Retrieves the candidates of keys."""

    @property
    def name(self) -> str:
        """The name in the report, for example offline."""
        ...

    @property
    def metric(self) -> Metric:
        """The metric of the scores."""
        ...

    @property
    def item_ids(self) -> IdType:
        """The type of the candidates' ids."""
        ...

    def candidates(self, keys: Sequence[Any], k: int | None) -> RetrievedLists:
        """Return the k best candidates of each key; an unknown key has an empty list."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LookupSource:
    """Look-up in one version of a table."""

    name: str
    view: View

    @property
    def metric(self) -> Metric:
        """The metric of the scores."""
        return Metric(self.view.version.facts.metric or Metric.COSINE)

    @property
    def item_ids(self) -> IdType:
        """The type of the candidates' ids."""
        return self.view.version.item_ids

    def candidates(self, keys: Sequence[Any], k: int | None) -> RetrievedLists:
        """Return the k best candidates of each key."""
        answers = self.view.get_many(keys, LookupOptions(k))
        return RetrievedLists(answers.offsets, answers.ids, answers.scores, int(np.count_nonzero(answers.found)))


@dataclass(frozen=True, slots=True, eq=False)
class OnlineSource:
    """Search in an online index, by the vectors of the keys."""

    name: str
    metric: Metric
    index: OnlineIndex
    k: int
    vectors: AnyArray  # (queries, dim) of all keys
    rows: Mapping[Any, int]  # key: its row in `vectors`
    without_self: bool
    ids: IdType = field(default="string")  # type of the keys
    item_ids: IdType = field(default="string")  # type of the candidates' ids, which may be another

    def candidates(self, keys: Sequence[Any], k: int | None) -> RetrievedLists:
        """Return the k best candidates of each key."""
        k = self.k if k is None else k
        rows = [self.rows.get(convert_key(key, self.ids), -1) for key in keys]
        known = [row for row in rows if row >= 0]
        ids: Sequence[Sequence[Any]] = ()
        scores: Sequence[Sequence[float]] = ()
        if known:
            vectors = np.asarray(self.vectors[known], np.float32)
            ids, scores = self.index.search(vectors, k + self.without_self)
        results = iter(zip(ids, scores, strict=True))
        lists = [
            self._cut_list(key, *next(results), k) if row >= 0 else ([], [])
            for key, row in zip(keys, rows, strict=True)
        ]
        offsets = np.array([0, *accumulate(len(names) for names, _ in lists)], np.int64)
        kind = pa.int64() if self.item_ids == "int64" else pa.string()
        flat = pa.array([name for names, _ in lists for name in names], kind)
        return RetrievedLists(offsets, flat, np.array([s for _, row in lists for s in row], np.float32), len(known))

    def _cut_list(
        self, key: Any, ids: Sequence[Any], scores: Sequence[float], k: int
    ) -> tuple[Sequence[Any], Sequence[float]]:
        """Return the first k candidates, without the key itself if the generator excludes it."""
        if self.without_self and self.ids == self.item_ids:
            own = convert_key(key, self.ids)
            others = [slot for slot, item in enumerate(ids) if item != own]
            ids, scores = [ids[slot] for slot in others], [scores[slot] for slot in others]
        return ids[:k], scores[:k]


def make_online_source(
    index: OnlineIndex, inputs: Inputs, metric: Metric, k: int, *, without_self: bool
) -> OnlineSource:
    """Return a source that searches an open index with the vectors of the generator's queries."""
    ids, items = inputs.queries.ids, inputs.items.ids
    return OnlineSource(
        name="online",
        metric=metric,
        index=index,
        k=k,
        vectors=inputs.queries.vectors.whole(),
        rows={key: row for row, key in enumerate(ids.to_pylist())},
        without_self=without_self,
        ids=id_type(ids.type),
        item_ids=id_type(items.type),
    )


@dataclass(frozen=True, slots=True)
class SourceComparison:
    """The data behind each source, in words, and warnings if they answer from different files."""

    ways: tuple[str, ...] = ()  # one sentence per source
    warnings: tuple[str, ...] = ()


def compare_sources(run: RunContext, lookups: Sequence[LookupSource], sources: Sources | None) -> SourceComparison:
    """Describe the versions that are compared, and warn if the online index is made from other files.

    sources: today's files, which the online index is made from; None without an online source.
    """
    words = [
        f"{source.name}: snapshot {source.view.version.snapshot}, made {format_utc(source.view.version.created)}"
        for source in lookups
    ]
    warnings = []
    if sources is not None:
        words.append("online: today's files")
        for source in lookups:
            changes = _describe_changes(run, source, sources)
            if changes:
                warnings.append(
                    f"{source.name} is snapshot {source.view.version.snapshot}, which was made from other files than "
                    f"the online index ({changes}); a part of the difference comes from the data. To compare look-up "
                    "and search alone, run `nearcast run`, and replay the new snapshot with --snapshot"
                )
    return SourceComparison(tuple(words), tuple(warnings))


def _describe_changes(run: RunContext, source: LookupSource, sources: Sources) -> str:
    """Return how today's files differ from the files of the version; "" if they are the same."""
    facts = source.view.version.facts
    try:
        manifest = find_snapshot(run.workspace.out, run.spec.name, source.view.version.number).manifest
    except NearcastError:
        manifest = None
    if manifest is not None and manifest.fingerprint == facts.fingerprint:
        inputs = manifest.inputs
        then = {table: _list_hashes(inputs[table]["files"]) for table in ("items", "queries") if table in inputs}
        now = {"items": _list_hashes(sources.item_digests), "queries": _list_hashes(sources.query_digests)}
        changed = [table for table, hashes in then.items() if hashes != now[table]]
        return f"the {' and the '.join(changed)} have changed" if changed else ""
    digests = sources.item_digests, sources.query_digests
    ranker = identify_ranker(run.spec, run.workspace.base)
    plan = make_plan(run.spec, run.engine.name, run.settings.model_dump(), *digests, ranker)
    same = plan.fingerprint == facts.fingerprint
    return "" if same else "its snapshot is not here, and its fingerprint differs from that of today's spec and files"


def _list_hashes(digests: list[dict[str, str]]) -> list[str]:
    return [digest["blake2b"] for digest in digests]
