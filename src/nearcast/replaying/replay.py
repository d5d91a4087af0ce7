"""Replay a log through snapshots and through an online index, compare the results, and record them in the history.

A snapshot that is not in the store is staged in a temporary store and is not published. So a change can be judged
before it is published.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from nearcast.replaying.candidate_sources import (
    CandidateSource,
    LookupSource,
    OnlineSource,
    SourceComparison,
    make_online_source,
)
from nearcast.replaying.outcome import Rate, SourceFigures, compute_figures, estimate_lead, find_hits
from nearcast.replaying.request_funnel import Funnel, FunnelResult, run_funnel
from nearcast.replaying.request_log import LoggedRequest
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

__all__ = ["ReplayReport", "open_lookup_source", "open_online_source", "replay"]

STAGED = "it is only replayed"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The figures of each candidate source over one log, and their differences."""

    generator: str
    version: int | None  # of the first replayed snapshot
    requests: int
    expansion: str | None
    ways: tuple[SourceFigures, ...]  # one per source
    leads: dict[str, dict[str, Rate | None]]  # hit rate of the first source minus that of each other one
    compared: tuple[str, ...] = ()  # the data behind each source, in words
    warnings: tuple[str, ...] = ()  # reasons why the sources are not comparable

    def as_dict(self) -> dict[str, Any]:
        """Return plain data. The keys are a format."""
        leads = {
            name: {what: None if rate is None else asdict(rate) for what, rate in rates.items()}
            for name, rates in self.leads.items()
        }
        return {
            "generator": self.generator,
            "version": self.version,
            "requests": self.requests,
            "expansion": self.expansion,
            "ways": [figures.as_dict() for figures in self.ways],
            "leads": leads,
            "compared": list(self.compared),
            "warnings": list(self.warnings),
        }

    def facts(self) -> dict[str, Any]:
        """Return the facts for the history: the candidates left after each stage by source, and the report."""
        names = [name for name, _, _ in self.ways[0].stages]
        stages = [
            {"name": name, **{figures.name: figures.stages[number][1] for figures in self.ways}}
            for number, name in enumerate(names)
        ]
        rates = {figures.name: None if figures.hit_rate is None else asdict(figures.hit_rate) for figures in self.ways}
        return {"stages": stages, "requests": self.requests, "hit_rate": rates} | self.as_dict()


def replay(
    run: RunContext,
    requests: Sequence[LoggedRequest],
    sources: Sequence[CandidateSource],
    funnel: Funnel,
    *,
    version: int | None,
    compared: SourceComparison | None = None,
) -> tuple[ReplayReport, list[FunnelResult]]:
    """Send the requests through the funnel with each source, and record the figures in the history of the run's folder.

    Engaged ids are converted to the type of the returned ids.
    """
    compared = compared or SourceComparison()
    requests = [_convert_engaged(request, sources, funnel) for request in requests]
    results = [
        run_funnel(source, requests, funnel, partial(run.listener.progress, f"replay {source.name}"))
        for source in sources
    ]
    k = funnel.k if funnel.k is not None or funnel.expansion is None else funnel.expansion.settings.k
    pairs = list(zip(sources, results, strict=True))
    mismatches = [*_list_mismatches(pairs, requests, funnel)]
    for text in mismatches:
        run.listener.note(text)
    report = ReplayReport(
        generator=run.spec.name,
        version=version,
        requests=len(requests),
        expansion=None if funnel.expansion is None else funnel.expansion.name,
        ways=tuple(compute_figures(source.name, result, requests, k) for source, result in pairs),
        leads={source.name: _estimate_leads(results[0], result, requests) for source, result in pairs[1:]},
        compared=compared.ways,
        warnings=(*compared.warnings, *mismatches),
    )
    warning = append(run.workspace.out, run.spec.name, "replay", version, report.facts())
    if warning:
        run.listener.note(warning)
    return report, results


def _list_mismatches(
    pairs: Sequence[tuple[CandidateSource, FunnelResult]], requests: Sequence[LoggedRequest], funnel: Funnel
) -> Iterator[str]:
    """Yield warnings if the log has other keys, items or ads than the sources: its figures mean nothing then."""
    for source, result in pairs:
        if not result.found.any():
            key = next((key for request in requests for key in request.keys), None)
            yield (
                f"no key of the log is a key of {source.name}, for example {key!r}; is it the log of another generator?"
            )
    kinds = [("engaged", [request.engaged for request in requests], pairs[0][0].item_ids)]
    if funnel.expansion is not None:
        kinds.append(("engaged_ad", [request.engaged_ads for request in requests], funnel.expansion.ad_ids))
    for column, engaged, kind in kinds:
        odd = [one for ids in engaged for one in ids if convert_key(one, kind) is None]
        if odd:
            total = sum(map(len, engaged))
            yield (
                f"{len(odd):,} of {total:,} ids in `{column}` cannot be {kind}, for example {odd[0]!r}: "
                "they count as misses"
            )


def _convert_engaged(request: LoggedRequest, sources: Sequence[CandidateSource], funnel: Funnel) -> LoggedRequest:
    """Convert engaged ids to the types of items and ads; an id that cannot be converted counts as a miss."""

    def convert(ids: frozenset[Any], kind: IdType) -> frozenset[Any]:
        return frozenset(one if (converted := convert_key(one, kind)) is None else converted for one in ids)

    ads = request.engaged_ads
    if funnel.expansion is not None:
        ads = convert(ads, funnel.expansion.ad_ids)
    return replace(request, engaged=convert(request.engaged, sources[0].item_ids), engaged_ads=ads)


def _estimate_leads(
    one: FunnelResult, other: FunnelResult, requests: Sequence[LoggedRequest]
) -> dict[str, Rate | None]:
    items = (find_hits(result.items, requests, lambda request: request.engaged) for result in (one, other))
    ads = (find_hits(result.returned_ads, requests, lambda request: request.engaged_ads) for result in (one, other))
    return {"items": estimate_lead(*items), "ads": estimate_lead(*ads)}


@contextlib.contextmanager
def open_lookup_source(
    run: RunContext, store: Store, version: int | None, name: str = "offline"
) -> Iterator[LookupSource]:
    """Open the table of a snapshot: from the store if it is there, else staged. version: None is the current one.

    The store's overlay applies, as for a published table. Raises NotFoundError if there is no such snapshot.
    """
    generator, pointer = run.spec.name, store.pointer(run.spec.name)
    number = version if version is not None else pointer.version if pointer is not None else None
    with contextlib.ExitStack() as stack:
        if number is not None and number in store.versions(generator):
            opened = open_version(store, generator, number, verify=False)
        else:
            snapshot = find_snapshot(run.workspace.out, generator, number)
            run.listener.note(f"{snapshot.name} is not in the store; it is staged for the replay")
            staged = stack.enter_context(_stage_snapshot(snapshot))
            opened = open_version(staged, generator, snapshot.version, verify=False)
        overlay = OverlayState(opened.item_ids).apply(store.overlay(generator).changes())
        yield LookupSource(name, View(opened, overlay, Pointer(opened.number, 0)))


@contextlib.contextmanager
def _stage_snapshot(snapshot: Snapshot) -> Iterator[Store]:
    """Yield a temporary store that holds this snapshot. Every finding of the audit is accepted."""
    findings = audit_snapshot(snapshot, AuditSpec(), None, now=time.time())
    accept = {finding.rule: STAGED for finding in findings if not finding.passed}
    with (
        tempfile.TemporaryDirectory(prefix="nearcast-replay-") as folder,
        contextlib.closing(open_store(f"lmdb:{folder}")) as store,
    ):
        publish_snapshot(snapshot, store, PublishSpec(), AuditSpec(), accept=accept)
        yield store


def open_online_source(
    run: RunContext, *, engine: str = "faiss-hnsw", recall: float | None = None, k: int | None = None
) -> OnlineSource:
    """Open the online index of today's items, or build it; see `nearcast.join.online_index.open_online`."""
    spec = run.spec if k is None else run.spec.model_copy(update={"k": k})
    target = recall if recall is not None else spec.serve.online_recall
    index = open_online(
        spec, run.workspace.base, run.workspace.out, engine=engine, recall=target, listener=run.listener
    )
    sources = open_sources(spec, run.workspace.base, run.listener)
    inputs = open_current_inputs(run, sources, run.workspace.home / "online")
    if inputs.items.fingerprint != f"items-{index.items_fingerprint}":
        raise changed_error(sources.items.name)
    if inputs.queries.vectors.n == 0:
        raise NotFoundError(f"{spec.name} has no queries with vectors to search by")
    return make_online_source(index, inputs, inputs.metric, spec.k, without_self=spec.exclude_self)
