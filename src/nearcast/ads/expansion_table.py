"""An expansion table of a store, open: candidates become the ads that a request may see.

The ads are held in memory as columns, and which ads each item has, unless there are too many. It follows refreshes and
the overlay as any look-up does: what is new is taken in on the look-up's watching thread, and a new version is read on
one of its own, beside the old one. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nearcast.ads.ad_answer import Promoted
from nearcast.ads.ad_funnel import Chosen, choose
from nearcast.ads.ads_view import AdsTable, Live, read_table, under_overlay
from nearcast.ads.sum_scores import merged, similarity
from nearcast.ads.targeting import AdFilter, AdRules, check_fields
from nearcast.errors import GoneError, InputError, NearcastError, NotFoundError, SpecError
from nearcast.serve.follow_store import REFRESH_SECONDS, RETRY_SECONDS, TRANSIENT_ERRORS
from nearcast.serve.lookup import Lookup, open_lookup
from nearcast.serve.lookup_data import Keys, LookupOptions, LookupState, encode_lookup_keys
from nearcast.serve.table_version import TableVersion
from nearcast.serve.view import View
from nearcast.stores import StoreLike
from nearcast.stores.base import Space
from nearcast.stores.value_format import IdType, decode_lists, numbers_of_keys
from nearcast.table.ad_columns import seconds_of_time
from nearcast.table.expansion_settings import AdSettings
from nearcast.types import FloatArray, IntArray, Metric

PASSING_SECONDS = 1.0  # until a version is tried again that the store did not give
LATE_SECONDS = 1.0  # after the end of something in the overlay, until a request sees to it itself

__all__ = ["Asked", "Expansion", "Promoted", "open_expansion"]


def open_expansion(
    store: StoreLike,
    name: str,
    *,
    eligible: AdFilter | None = None,
    refresh_seconds: float = REFRESH_SECONDS,
    verify: bool = True,
) -> Expansion:
    """Open an expansion table that is published, to be asked for ads. It follows every refresh and the overlay.

    store: a URL, a path (of an LMDB store), or an open store. eligible: rules in place of the table's own targeting.
    Raises NotFoundError where there is none, SpecError where the name is a generator's, and as `nearcast.open`.
    """
    lookup = open_lookup(store, name, refresh_seconds=refresh_seconds, verify=verify)
    try:
        expansion = Expansion(lookup, eligible=eligible)
        expansion.refresh()
    except BaseException:
        lookup.close()
        raise
    return expansion


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A version that could not be read, and when to try it again."""

    version: TableVersion
    text: str
    retry: float  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of an expansion, whatever the candidates are."""

    request: Mapping[str, Any] | None = None  # plain data that targeting is asked with
    k: int | None = None  # ads at most; None: the table's own
    fields: Sequence[str] = ()  # columns of the ads to add
    now: Any = None  # by which flights are judged: seconds since 1970, a datetime or ISO 8601; None: the present


class Expansion:
    """An expansion table, open. Made by `nearcast.open_expansion`; safe to use from many threads."""

    def __init__(self, lookup: Lookup, *, eligible: AdFilter | None = None) -> None:
        self.name = lookup.generator
        self.lookup = lookup
        self._eligible = eligible
        self._live: Live | None = None  # put in place whole by whichever thread
        self._reading: threading.Thread | None = None
        self._refusal: _Refusal | None = None
        lookup.call_after_poll(self._keep_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop following and let go of the store."""
        self.lookup.close()
        self._live = None

    @property
    def settings(self) -> AdSettings:
        """Those of the version that answers."""
        return self._now().table.settings

    @property
    def ad_ids(self) -> IdType:
        """The type of the ids of ads."""
        return self._now().table.version.item_ids

    @property
    def columns(self) -> list[str]:
        """Columns of the ads that an answer may show."""
        live = self._now()
        return sorted({*live.table.version.facts.columns, *live.overlay.fields})

    @property
    def error(self) -> str | None:
        """Why what is newer in the store is not followed, if it is not."""
        refusal = self._refusal
        return refusal.text if refusal is not None else self.lookup.error

    @property
    def state(self) -> LookupState:
        """Where the table stands that answers."""
        live = self._now()
        version = live.table.version
        return replace(
            self.lookup.state,
            version=version.number,
            snapshot=version.snapshot,
            age_seconds=max(0.0, time.time() - live.table.as_of),
            error=self.error,
            version_facts=version.facts,
        )

    def refresh(self) -> None:
        """Follow what is newer in the store before this returns."""
        self.lookup.refresh()
        self._follow()
        self._keep_up()

    def ads(
        self,
        candidates: Lookup,
        keys: Keys,
        *,
        weights: Sequence[float] | None = None,
        candidates_per_key: int | None = None,
        request: Mapping[str, Any] | None = None,
        k: int | None = None,
        fields: Sequence[str] = (),
        now: Any = None,
    ) -> Promoted:
        """What is promoted for these keys of a generator: both steps in one call.

        weights: of the keys, from 0 on; 1 each by default. candidates_per_key: of each key only the first so many.
        request, k, fields, now: see `Asked`. InputError for what cannot be asked, NotFoundError for a field that the
        ads do not have, StoreError where the store cannot say. Keys that are not there are no error: see `found`.
        """
        asked = Asked(request, k, fields, now)
        return candidates.ask(lambda view: self.ads_of(view, keys, weights, candidates_per_key, asked))

    def ads_of(
        self, view: View, keys: Keys, weights: Sequence[float] | None, candidates_per_key: int | None, asked: Asked
    ) -> Promoted:
        """The same for one view of the generator."""
        metric = Metric(view.version.facts.metric or Metric.COSINE)
        asked, of_rules = self._shared_out(view, asked)
        options = LookupOptions(candidates_per_key, request=of_rules)
        if isinstance(keys, list | tuple) and len(keys) == 1:  # the most frequent question: a fifth of the time
            answer = view.get(keys[0], options)
            one = np.array([0, len(answer.ids)])
            lists = _lists(one, answer.ids, np.array(answer.scores), metric, weights)
            promoted = self._promoted(lists, asked)
            return replace(promoted, snapshot=view.snapshot, found=int(answer.found), looked_up=(answer,))
        many = view.get_many(keys, options)
        lists = _lists(many.offsets, many.ids, many.scores, metric, weights)
        found = int(np.count_nonzero(many.found))
        return replace(self._promoted(lists, asked), snapshot=view.snapshot, found=found, looked_up=many)

    def _shared_out(self, view: View, asked: Asked) -> tuple[Asked, Mapping[str, Any] | None]:
        """What targeting is asked, and what of the request the generator's rules ask for.

        InputError for a field of the request that neither asks for.
        """
        known, rules = self.request_fields, view.version.rule_columns
        if not asked.request:
            return asked, None
        of_rules = frozenset(rules.rules.request_types) if rules is not None else frozenset()
        if known is not None:
            check_fields(asked.request, known | of_rules)
        kept = {name: value for name, value in asked.request.items() if known is None or name in known}
        brought = {name: value for name, value in asked.request.items() if name in of_rules}
        return replace(asked, request=kept), brought or None

    @property
    def request_fields(self) -> frozenset[str] | None:
        """The fields of a request that targeting asks for; None where rules of the caller's own judge requests."""
        eligible = self._now().table.eligible
        return eligible.fields if isinstance(eligible, AdRules) else None

    def of_lists(
        self,
        offsets: IntArray,
        ids: pa.Array,
        scores: FloatArray,
        metric: Metric,
        weights: Sequence[float] | None,
        asked: Asked,
    ) -> Promoted:
        """What is promoted for candidates from anywhere: list i is ids[offsets[i]:offsets[i + 1]], best first."""
        return self._promoted(_lists(offsets, ids, scores, metric, weights), asked)

    def _promoted(self, lists: _Lists, asked: Asked) -> Promoted:
        try:
            return _promoted(self._now(), lists, asked)
        except GoneError:  # of a network store: what this version says is no longer there
            self.refresh()
            return _promoted(self._now(), lists, asked)

    def _now(self) -> Live:
        """The ads under the overlay, as the last round of the watching thread has left them."""
        view, live = self.lookup.view(), self._live
        if live is None:
            return self._follow()
        if live.ads.until + LATE_SECONDS < time.time():  # there was no round
            return self._put(live.table, view)
        return live

    def _keep_up(self) -> None:
        """A round of the watching thread: no request has to wait until what is new has been taken in."""
        view, live = self.lookup.view(), self._live
        if live is None:
            return
        refusal = self._refusal
        if live.table.version is view.version:
            self._refusal = None
        elif refusal is None or refusal.version is not view.version or time.monotonic() >= refusal.retry:
            self._read_in_background()
        now = time.time()
        if live.overlay is not view.overlay or live.ads.until <= now:
            newer = under_overlay(live.table, view.overlay, live, now)
            if self._live is live:  # else a new table has been read meanwhile
                self._live = newer

    def _put(self, table: AdsTable, view: View) -> Live:
        self._live = live = under_overlay(table, view.overlay, self._live, time.time())
        return live

    def _follow(self) -> Live:
        view, live = self.lookup.view(), self._live
        if not view.version.facts.is_expansion:
            raise SpecError(f"{self.name!r} is a generator, and no expansion table; open it with nearcast.open")
        if live is None or live.table.version is not view.version:
            return self._put(read_table(view.version, self._eligible), view)
        return live

    def _read_in_background(self) -> None:
        """Read the current version. After a fork the parent's thread is not here, and counts as ended."""
        if self._reading is None or not self._reading.is_alive():
            self._reading = threading.Thread(target=self._read, name=f"nearcast-{self.name}-read", daemon=True)
            self._reading.start()

    def _read(self) -> None:
        version = self.lookup.view().version
        try:
            self._follow()
            self._refusal = None
        except Exception as error:  # the old version goes on answering: a thread that dies would follow nothing more
            text = str(error) if isinstance(error, NearcastError) else f"{type(error).__name__}: {error}"
            wait = PASSING_SECONDS if isinstance(error, TRANSIENT_ERRORS) else RETRY_SECONDS
            self._refusal = _Refusal(version, text, time.monotonic() + wait)


Ids = IntArray | list[Any]  # numbers as an array, text as a list


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """Candidates and what each counts: list i is ids[offsets[i]:offsets[i + 1]], best first."""

    offsets: IntArray
    ids: pa.Array | list[Any]
    scores: npt.NDArray[np.float64]  # from 0 on, weighted


def _lists(
    offsets: IntArray,
    ids: pa.Array | list[Any],
    scores: npt.NDArray[Any],
    metric: Metric,
    weights: Sequence[float] | None,
) -> _Lists:
    rated = similarity(scores, metric)
    if weights is not None:
        rated = rated * np.repeat(_checked(weights, len(offsets) - 1), np.diff(offsets))
    return _Lists(offsets, ids, rated)


def _promoted(live: Live, lists: _Lists, asked: Asked) -> Promoted:
    table, settings = live.table, live.table.settings
    now = time.time() if asked.now is None else seconds_of_time(asked.now)
    k = settings.k if asked.k is None else asked.k
    if k < 1:
        raise InputError(f"k is {k}; ask for one ad at least")
    for name in asked.fields:
        if name not in table.version.facts.columns and name not in live.overlay.fields:
            held = ", ".join(table.version.facts.columns) or "none"
            raise NotFoundError(f"the ads of {table.version.facts.generator} have no column {name!r}; they have {held}")
    candidates, scores = _distinct(lists, settings.keys)
    places, positions = _links(table, candidates)
    request = asked.request or {}
    if isinstance(table.eligible, AdRules):  # rules of the caller's own judge a request themselves
        table.eligible.check(request, live.ads.columns)
    chosen = choose(scores, places, positions, live.ads, table.eligible, request, settings, k=k, now=now)
    return _told(live, candidates, chosen, asked.fields)


def _checked(weights: Sequence[float], n: int) -> npt.NDArray[np.float64]:
    if len(weights) != n:
        raise InputError(f"there are {len(weights):,} weights for {n:,} keys")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise InputError("a weight is below 0 or no number; weights are from 0 on")
    return np.asarray(weights, np.float64)


def _distinct(lists: _Lists, how: str) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Every candidate once. One list holds none twice."""
    if len(lists.offsets) <= 2:
        return _plain(lists.ids), lists.scores
    assert isinstance(lists.ids, pa.Array)  # as several lists always are
    encoded = lists.ids.dictionary_encode()
    groups = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _plain(encoded.dictionary), merged(groups, len(encoded.dictionary), lists.scores, how)[0]


def _plain(ids: pa.Array | list[Any]) -> Ids:
    if isinstance(ids, pa.Array):
        return np.asarray(ids.to_numpy()) if pa.types.is_integer(ids.type) else list(ids.to_pylist())
    return np.array(ids, np.int64) if ids and isinstance(ids[0], int) else ids


def _links(table: AdsTable, candidates: Ids) -> tuple[IntArray, IntArray]:
    """(pairs,) places of candidates, ascending, and positions of their ads."""
    version, held = table.version, table.links
    numbers = version.query_ids == "int64"
    if held is not None and numbers and isinstance(candidates, np.ndarray):
        return held.of(candidates)
    typed, keys, known = encode_lookup_keys(candidates, version.query_ids)
    there = np.arange(len(typed)) if known is None else known
    if held is None:
        lists = decode_lists(version.reader.get_many(Space.LISTS, keys), version.item_ids)
        return np.repeat(there, np.diff(lists.offsets)), table.ads.positions(lists.ids)
    places, positions = held.of(numbers_of_keys(keys) if numbers else keys)
    return there[places], positions


def _told(live: Live, candidates: Ids, chosen: Chosen, fields: Sequence[str]) -> Promoted:
    version, table = live.table.version, live.table.ads
    return Promoted(
        ads=table.ids_at(chosen.positions),
        items=_some(candidates, chosen.candidates),
        scores=chosen.scores.tolist(),
        columns=live.ads.rows(chosen.positions, fields) if fields else [{}] * len(chosen.positions),
        stages=chosen.stages,
        table=version.snapshot,
        age_seconds=max(0.0, time.time() - live.table.as_of),
    )


def _some(ids: Ids, places: IntArray) -> list[Any]:
    return list(ids[places].tolist()) if isinstance(ids, np.ndarray) else [ids[place] for place in places.tolist()]
