"""Replay a log through snapshots and through an online index, compare, and keep the figures in the history.

A snapshot that is not in the store is staged in one of its own for as long as it is needed, without being published to
anybody: this is how a change is judged before it is.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nearcast.errors import NotFoundError
from nearcast.history.event_log import append
from nearcast.join.context import RunContext
from nearcast.join.current_tables import open_current_inputs
from nearcast.join.inputs import open_sources
from nearcast.join.online_index import open_online
from nearcast.publishing.audit import audit_snapshot
from nearcast.publishing.publish import publish_snapshot
from nearcast.replaying.candidate_sources import LookUp, OnlineWay, Way, online_way
from nearcast.replaying.compared_versions import Compared
from nearcast.replaying.outcome import Figures, Rate, figures_of, hits_of, lead
from nearcast.replaying.request_funnel import Funnel, Passed, run_funnel
from nearcast.replaying.request_log import Logged
from nearcast.serve.lookup_data import convert_key
from nearcast.serve.overlay_state import OverlayState
from nearcast.serve.table_version import open_version
from nearcast.serve.view import View
from nearcast.sources.user_files import changed_error
from nearcast.spec import AuditSpec, PublishSpec
from nearcast.stores import open_store
from nearcast.stores.base import Pointer, Store
from nearcast.stores.value_format import IdType
from nearcast.table.snapshot import Snapshot, find_snapshot

__all__ = ["Replayed", "looked_up", "replay", "searched"]

STAGED = "it is only replayed"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What ways of answering a log came to."""

    generator: str
    version: int | None  # of the first snapshot that was replayed
    requests: int
    expansion: str | None
    ways: tuple[Figures, ...]
    leads: dict[str, dict[str, Rate | None]]  # of the first way over each other one, by what was engaged with
    compared: tuple[str, ...] = ()  # what each way answers from
    warnings: tuple[str, ...] = ()  # why ways are not alike in anything but how they answer

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        leads = {
            way: {what: None if rate is None else _plain(rate) for what, rate in rates.items()}
            for way, rates in self.leads.items()
        }
        return {
            "generator": self.generator,
            "version": self.version,
            "requests": self.requests,
            "expansion": self.expansion,
            "ways": [way.as_dict() for way in self.ways],
            "leads": leads,
            "compared": list(self.compared),
            "warnings": list(self.warnings),
        }

    def facts(self) -> dict[str, Any]:
        """What the history keeps: each stage with what is left of a request by each way."""
        names = [name for name, _, _ in self.ways[0].stages]
        stages = [
            {"name": name, **{way.name: way.stages[place][1] for way in self.ways}} for place, name in enumerate(names)
        ]
        rates = {way.name: None if way.hit_rate is None else _plain(way.hit_rate) for way in self.ways}
        return {"stages": stages, "requests": self.requests, "hit_rate": rates} | self.as_dict()


def _plain(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "of": rate.of}


def replay(
    run: RunContext,
    requests: Sequence[Logged],
    ways: Sequence[Way],
    funnel: Funnel,
    *,
    version: int | None,
    compared: Compared | None = None,
) -> tuple[Replayed, list[Passed]]:
    """Send the requests through the funnel by every way, and keep the figures in the history of the run's folder.

    Ids that were engaged with are taken in the type of the ids that are returned.
    """
    compared = compared or Compared()
    requests = [_typed(logged, ways, funnel) for logged in requests]
    passed = [run_funnel(way, requests, funnel, partial(run.listener.progress, f"replay {way.name}")) for way in ways]
    k = funnel.k if funnel.k is not None or funnel.expansion is None else funnel.expansion.settings.k
    figures = [figures_of(way.name, one, requests, k) for way, one in zip(ways, passed, strict=True)]
    leads = {way.name: _leads(passed[0], one, requests) for way, one in zip(ways[1:], passed[1:], strict=True)}
    expansion = None if funnel.expansion is None else funnel.expansion.name
    unknown = [*_unknown(ways, passed, requests, funnel)]
    for words in unknown:
        run.listener.note(words)
    warnings = (*compared.warnings, *unknown)
    replayed = Replayed(
        run.spec.name, version, len(requests), expansion, tuple(figures), leads, compared.ways, warnings
    )
    trouble = append(run.workspace.home.parent, run.spec.name, "replay", version, replayed.facts())
    if trouble:
        run.listener.note(trouble)
    return replayed, passed


def _unknown(
    ways: Sequence[Way], passed: Sequence[Passed], requests: Sequence[Logged], funnel: Funnel
) -> Iterator[str]:
    """Lines where the log is of other keys, items or ads: then its figures say nothing of the lists."""
    for way, one in zip(ways, passed, strict=True):
        if not one.found.any():
            key = next((key for logged in requests for key in logged.keys), None)
            yield f"no key of the log is a key of {way.name}, such as {key!r}; is it the log of another generator?"
    kinds = [("engaged", [logged.engaged for logged in requests], ways[0].item_ids)]
    if funnel.expansion is not None:
        kinds.append(("engaged_ad", [logged.engaged_ads for logged in requests], funnel.expansion.ad_ids))
    for column, engaged, kind in kinds:
        odd = [one for ids in engaged for one in ids if convert_key(one, kind) is None]
        if odd:
            total = sum(map(len, engaged))
            yield f"{len(odd):,} of {total:,} ids in `{column}` are no {kind}, such as {odd[0]!r}: misses"


def _typed(logged: Logged, ways: Sequence[Way], funnel: Funnel) -> Logged:
    """The request with the ids that were engaged with in the types of items and ads; one that cannot be is a miss."""

    def typed(ids: frozenset[Any], kind: IdType) -> frozenset[Any]:
        return frozenset(one if (found := convert_key(one, kind)) is None else found for one in ids)

    ads = logged.engaged_ads
    if funnel.expansion is not None:
        ads = typed(ads, funnel.expansion.ad_ids)
    return replace(logged, engaged=typed(logged.engaged, ways[0].item_ids), engaged_ads=ads)


def _leads(one: Passed, other: Passed, requests: Sequence[Logged]) -> dict[str, Rate | None]:
    return {
        "items": lead(*(hits_of(p.items, requests, lambda logged: logged.engaged) for p in (one, other))),
        "ads": lead(*(hits_of(p.returned_ads, requests, lambda logged: logged.engaged_ads) for p in (one, other))),
    }


@contextlib.contextmanager
def looked_up(run: RunContext, store: Store, version: int | None, name: str = "offline") -> Iterator[LookUp]:
    """A snapshot's table to look things up in: from the store where it is there, else staged. None: the current one.

    The store's overlay counts, as it does for what is published. NotFoundError where there is no such snapshot.
    """
    generator, pointer = run.spec.name, store.pointer(run.spec.name)
    wanted = version if version is not None else pointer.version if pointer is not None else None
    with contextlib.ExitStack() as held:
        if wanted is not None and wanted in store.versions(generator):
            opened = open_version(store, generator, wanted, verify=False)
        else:
            snapshot = find_snapshot(run.workspace.home.parent, generator, wanted)
            run.listener.note(f"{snapshot.name} is not in the store; it is staged for the replay")
            opened = open_version(held.enter_context(_staged(snapshot)), generator, snapshot.version, verify=False)
        overlay = OverlayState(opened.item_ids).apply(store.overlay(generator).changes())
        yield LookUp(name, View(opened, overlay, Pointer(opened.number, 0)))


@contextlib.contextmanager
def _staged(snapshot: Snapshot) -> Iterator[Store]:
    """A store of its own with this snapshot, which goes away again. Whatever an audit would say is no matter here."""
    findings = audit_snapshot(snapshot, AuditSpec(), None, now=time.time())
    accept = {finding.rule: STAGED for finding in findings if not finding.passed}
    with (
        tempfile.TemporaryDirectory(prefix="nearcast-replay-") as folder,
        contextlib.closing(open_store(f"lmdb:{folder}")) as store,
    ):
        publish_snapshot(snapshot, store, PublishSpec(), AuditSpec(), accept=accept)
        yield store


def searched(
    run: RunContext, *, engine: str = "faiss-hnsw", recall: float | None = None, k: int | None = None
) -> OnlineWay:
    """The online index of today's items, opened or built, asked for k; see `join.online.open_online`."""
    spec = run.spec if k is None else run.spec.model_copy(update={"k": k})
    aimed = recall if recall is not None else spec.serve.online_recall
    index = open_online(
        spec, run.workspace.base, run.workspace.home.parent, engine=engine, recall=aimed, listener=run.listener
    )
    sources = open_sources(spec, run.workspace.base, run.listener)
    inputs = open_current_inputs(run, sources, run.workspace.home / "online")
    if inputs.items.fingerprint != f"items-{index.items_fingerprint}":
        raise changed_error(sources.items.name)
    if inputs.queries.vectors.n == 0:
        raise NotFoundError(f"{spec.name} has no queries with vectors to search by")
    return online_way(index, inputs, inputs.metric, spec.k, without_self=spec.exclude_self)
