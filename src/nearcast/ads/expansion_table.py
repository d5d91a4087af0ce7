"""An open expansion table: looks up candidates and returns the ads that a request may see.

The columns of the ads are in memory, and so are the links, unless there are too many. The look-up's polling thread
applies changes of the overlay; a new version is read on its own thread while the old one answers. Knows nothing of
HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearcast.ads.ad_answer import AdAnswer, AdRequest
from nearcast.ads.ads_view import AdsTable, AdsView, apply_overlay, read_table
from nearcast.ads.candidate_lists import WeightedLists, answer_request, weight_lists
from nearcast.ads.targeting import AdFilter, AdRules, check_fields
from nearcast.errors import GoneError, NearcastError, SpecError
from nearcast.serve.follow_store import REFRESH_SECONDS, RETRY_SECONDS, TRANSIENT_ERRORS, ClosesOnExit
from nearcast.serve.lookup import Lookup, open_lookup
from nearcast.serve.lookup_data import Keys, LookupOptions, LookupState
from nearcast.serve.table_version import TableVersion
from nearcast.serve.view import View
from nearcast.stores import StoreLike
from nearcast.stores.value_format import IdType
from nearcast.table.expansion_settings import AdSettings
from nearcast.types import Metric

TRANSIENT_SECONDS = 1.0  # until a version is read again after a transient error of the store
LATE_SECONDS = 1.0  # after the end of an overlay entry, until a request applies the overlay itself

__all__ = ["Expansion", "open_expansion"]


def open_expansion(
    store: StoreLike,
    name: str,
    *,
    eligible: AdFilter | None = None,
    refresh_seconds: float = REFRESH_SECONDS,
    verify: bool = True,
) -> Expansion:
    """Open a published expansion table. It follows every refresh and the overlay.

    store: a URL, a path (of an LMDB store), or an open store. eligible: a filter that replaces the table's own targets
    and rules, see `AdFilter`.
    Raises NotFoundError if the name is not published, SpecError if it is a generator's, and the errors of
    `nearcast.open`.
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
class _UnreadableTable:
    """A version that could not be read."""

    version: TableVersion
    text: str  # of the error
    retry: float  # on the monotonic clock: when to read it again


class Expansion(ClosesOnExit):
    """An open expansion table, see `nearcast.open_expansion`. Safe to use from many threads."""

    def __init__(self, lookup: Lookup, *, eligible: AdFilter | None = None) -> None:
        self.name = lookup.generator
        self.lookup = lookup
        self._eligible = eligible
        self._view: AdsView | None = None  # replaced as a whole, by any thread
        self._reading: threading.Thread | None = None
        self._unreadable: _UnreadableTable | None = None
        lookup.call_after_poll(self._keep_up)

    def close(self) -> None:
        """Stop following the store, and close it."""
        self.lookup.close()
        self._view = None

    @property
    def settings(self) -> AdSettings:
        """Return the settings of the version in use."""
        return self._now().table.settings

    @property
    def ad_ids(self) -> IdType:
        """Return the type of the ids of ads."""
        return self._now().table.version.item_ids

    @property
    def columns(self) -> list[str]:
        """Return the columns of the ads that a request can name in `fields`."""
        live = self._now()
        return sorted({*live.table.version.facts.columns, *live.overlay.fields})

    @property
    def error(self) -> str | None:
        """Return why a newer version in the store is not followed, or None."""
        unreadable = self._unreadable
        return unreadable.text if unreadable is not None else self.lookup.error

    @property
    def state(self) -> LookupState:
        """Return the version in use, its age, and the last error."""
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
        """Poll the store now, and apply newer versions and overlay entries before returning."""
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
    ) -> AdAnswer:
        """Look up the candidates of keys, and return the ads of the candidates.

        weights: of the keys, 0 or larger. Default: 1 each. candidates_per_key: number of candidates used of each key.
        request, k, fields, now: see `AdRequest`.
        Raises InputError for an invalid request, NotFoundError for a field that the ads do not have, StoreError if the
        store does not answer. An unknown key is no error: see `AdAnswer.found`.
        """
        options = AdRequest(request, k, fields, now)
        return candidates.ask(lambda view: self.ads_of(view, keys, weights, candidates_per_key, options))

    def ads_of(
        self,
        view: View,
        keys: Keys,
        weights: Sequence[float] | None,
        candidates_per_key: int | None,
        request: AdRequest,
    ) -> AdAnswer:
        """Do the same as `ads` for one view of the generator."""
        metric = Metric(view.version.facts.metric or Metric.COSINE)
        request, generator_fields = self._split_request(view, request)
        options = LookupOptions(candidates_per_key, request=generator_fields)
        if isinstance(keys, list | tuple) and len(keys) == 1:  # the most frequent request: a fifth of the time
            answer = view.get(keys[0], options)
            one = np.array([0, len(answer.ids)])
            lists = weight_lists(one, answer.ids, np.array(answer.scores), metric, weights)
            ads = self.of_lists(lists, request)
            return replace(ads, snapshot=answer.snapshot, found=int(answer.found), looked_up=(answer,))
        many = view.get_many(keys, options)
        lists = weight_lists(many.offsets, many.ids, many.scores, metric, weights)
        found = int(np.count_nonzero(many.found))
        return replace(self.of_lists(lists, request), snapshot=many.snapshot, found=found, looked_up=many)

    def _split_request(self, view: View, request: AdRequest) -> tuple[AdRequest, Mapping[str, Any] | None]:
        """Return the request with the fields that rules of the ads read, and the fields for the generator's rules.

        Raises InputError for a field that neither reads.
        """
        ad_fields = self.request_fields
        if not request.request:
            return request, None
        generator_fields = view.request_fields
        if ad_fields is not None:
            check_fields(request.request, ad_fields | generator_fields)
        for_ads = {name: value for name, value in request.request.items() if ad_fields is None or name in ad_fields}
        for_generator = {name: value for name, value in request.request.items() if name in generator_fields}
        return replace(request, request=for_ads), for_generator or None

    @property
    def request_fields(self) -> frozenset[str] | None:
        """Return the fields of a request that targets and rules read; None if a filter of the caller replaces them."""
        eligible = self._now().table.eligible
        return eligible.fields if isinstance(eligible, AdRules) else None

    def of_lists(self, lists: WeightedLists, request: AdRequest) -> AdAnswer:
        """Return the ads of candidates from any source, see `weight_lists`."""
        try:
            return answer_request(self._now(), lists, request)
        except GoneError:  # the network store has deleted the version
            self.refresh()
            return answer_request(self._now(), lists, request)

    def _now(self) -> AdsView:
        """Return the ads under the overlay, as the last poll has left them."""
        view, ads = self.lookup.view(), self._view
        if ads is None:
            return self._follow()
        if ads.ads.until + LATE_SECONDS < time.time():  # the polling thread is late
            return self._apply(ads.table, view)
        return ads

    def _keep_up(self) -> None:
        """Apply the changes of a poll in advance, so that no request waits for them."""
        view, ads = self.lookup.view(), self._view
        if ads is None:
            return
        unreadable = self._unreadable
        if ads.table.version is view.version:
            self._unreadable = None
        elif unreadable is None or unreadable.version is not view.version or time.monotonic() >= unreadable.retry:
            self._read_in_background()
        now = time.time()
        if ads.overlay is not view.overlay or ads.ads.until <= now:
            newer = apply_overlay(ads.table, view.overlay, ads, now)
            if self._view is ads:  # else a new table has been read meanwhile
                self._view = newer

    def _apply(self, table: AdsTable, view: View) -> AdsView:
        self._view = ads = apply_overlay(table, view.overlay, self._view, time.time())
        return ads

    def _follow(self) -> AdsView:
        """Read the current version if it is another one than the version in use."""
        view, ads = self.lookup.view(), self._view
        if not view.version.facts.is_expansion:
            raise SpecError(f"{self.name!r} is a generator, and no expansion table; open it with nearcast.open")
        if ads is None or ads.table.version is not view.version:
            return self._apply(read_table(view.version, self._eligible), view)
        return ads

    def _read_in_background(self) -> None:
        """Start a thread that reads the current version. After a fork, the parent's thread counts as ended."""
        if self._reading is None or not self._reading.is_alive():
            self._reading = threading.Thread(target=self._read, name=f"nearcast-{self.name}-read", daemon=True)
            self._reading.start()

    def _read(self) -> None:
        version = self.lookup.view().version
        try:
            self._follow()
            self._unreadable = None
        except Exception as error:  # the old version answers; a dead thread would follow no version
            text = str(error) if isinstance(error, NearcastError) else f"{type(error).__name__}: {error}"
            wait = TRANSIENT_SECONDS if isinstance(error, TRANSIENT_ERRORS) else RETRY_SECONDS
            self._unreadable = _UnreadableTable(version, text, time.monotonic() + wait)
