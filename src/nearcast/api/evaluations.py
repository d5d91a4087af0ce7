"""Functions that judge lists by labels, and find the newest judgement: evaluate, find_evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import Any

from nearcast.api.arguments import (
    SpecLike,
    StoreLike,
    input_path,
    open_target_store,
    report_failure,
    resolve_target,
)
from nearcast.errors import NearcastError, NotFoundError, SpecError, StoreError
from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.evaluation.judge_snapshot import (
    LabelSettings,
    judge_lists,
    open_labels,
    open_snapshot_lists,
    refuse_labels_of,
)
from nearcast.evaluation.label_table import LabelTable, open_label_table
from nearcast.evaluation.ranked_lists import PublishedLists, RankedLists
from nearcast.files import bucket_url
from nearcast.history import event_log
from nearcast.history.record import record_evaluation
from nearcast.join.listener import Listener
from nearcast.publishing.targets import PublishTarget
from nearcast.serve.overlay_state import OverlayState
from nearcast.settings.label_tables import LabelsSpec
from nearcast.spec import parse_model
from nearcast.stores.version_facts import read_facts
from nearcast.table.snapshot import Snapshot, find_snapshot, hold_for_reading
from nearcast.times import parse_utc

__all__ = ["SERVED", "evaluate", "find_evaluation"]

SERVED = "served"
IN_MEMORY = "(a table in memory)"


def evaluate(
    generator: SpecLike,
    labels: object | None = None,
    *,
    version: int | None = None,
    against: Sequence[str | int] | None = None,
    query: str | None = None,
    item: str | None = None,
    grade: str | None = None,
    relevant: float | None = None,
    depths: Sequence[int] | None = None,
    slices: Sequence[str] | None = None,
    unknown: str | None = None,
    popularity: str | Path | None = None,
    popular_by: str | None = None,
    seed: int = 0,
    store: StoreLike | None = None,
    out: str | Path | None = None,
    base: str | Path | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """Measure the lists of a snapshot, the newest by default, by human labels or engagement; see `docs/evaluate.md`.

    generator: a name, or a spec, whose [labels] are the defaults of everything below, and whose [promise] is checked.
    labels: a Parquet or CSV path, a URL, or a table (Arrow, pandas, polars), one label per row. Default: the spec's.
    against: "served" and versions of snapshots to compare with. Default: the served version, if it is another one.
    query, item, grade: columns of the labels. relevant: grade that an item is relevant from, if above 0.
    depths: of the metrics. slices: columns of the labels, or attributes of the queries.
    unknown: labelled queries without a list are a "miss", or "skip" leaves them out.
    popularity: log with the column of items, from before the labels. popular_by: item attribute instead.
    seed: of the intervals. store: overrides the store of the spec. base: folder that paths of a spec are relative to.

    The result is added to the history in `out`. Raises InputError for labels that cannot be used, SpecError for labels
    that the lists were made of, NotFoundError without a snapshot.
    """
    listener = listener or Listener()
    target = resolve_target(generator, out, version, base)
    snapshot = find_snapshot(target.out, target.generator, version)
    given = {
        "query": query,
        "item": item,
        "grade": grade,
        "relevant": relevant,
        "depths": depths,
        "slices": slices,
        "unknown": unknown,
        "popular_by": popular_by,
        "popularity": None if popularity is None else _make_absolute(popularity),
    }
    settings, table = _open(target, labels, {key: value for key, value in given.items() if value is not None})
    for text in table.notes:
        listener.note(text)
    refuse_labels_of(snapshot, table)
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_for_reading(snapshot))
        rivals = [*_open_rivals(target, snapshot, against, store, stack, listener)]
        found = judge_lists(open_snapshot_lists(snapshot), settings, table, rivals, seed)
    report_failure(listener, record_evaluation(target.out, found))
    return found


def find_evaluation(snapshot: Snapshot) -> tuple[float, Mapping[str, Any]] | None:
    """Return time and facts of a snapshot's newest evaluation: by `evaluate`, else by its run. None without one.

    A history that cannot be read counts as empty. Evaluations from before the snapshot judged an earlier one of its
    number.
    """
    made = parse_utc(snapshot.manifest.run.created)
    try:
        events = event_log.read(snapshot.out, snapshot.generator, ("evaluate",))
    except (NearcastError, OSError):
        events = []
    for event in reversed(events):
        if event.version == snapshot.version and event.seconds >= made:
            return event.seconds, event.facts
    return None if snapshot.manifest.labels is None else (made, snapshot.manifest.labels)


def _open(target: PublishTarget, labels: object | None, given: dict[str, Any]) -> tuple[LabelSettings, LabelTable]:
    """Return the settings of the spec with those that were given, and the open labels."""
    settings = target.labels
    known = {} if settings.spec is None else settings.spec.model_dump()
    if labels is None and settings.spec is None:
        raise SpecError(f"{target.generator} has no labels; name their file, or add [labels] to the spec")
    for name, other in (("popularity", "popular_by"), ("popular_by", "popularity")):
        if given.get(name) is not None and given.get(other) is None:
            known.pop(other, None)
    is_path = isinstance(labels, str | Path)
    path = known.get("path") if labels is None else _make_absolute(str(labels)) if is_path else IN_MEMORY
    spec = parse_model(LabelsSpec, known | given | {"path": path}, "labels")
    base = settings.base or Path()
    if labels is not None and not is_path:
        table = open_label_table(labels, base)
    else:
        table = open_labels(spec, base)
        table = replace(table, name=table.name if labels is None else str(labels))
    return replace(settings, spec=spec, base=base), table


def _make_absolute(path: str | Path) -> str:
    return bucket_url(path) or str(Path(input_path(path)).absolute())


def _open_rivals(
    target: PublishTarget,
    snapshot: Snapshot,
    against: Sequence[str | int] | None,
    store: StoreLike | None,
    stack: contextlib.ExitStack,
    listener: Listener,
) -> Iterator[RankedLists]:
    """Yield the lists to compare with. The served version is left out by default where there is none to compare."""
    for name in [SERVED] if against is None else dict.fromkeys(against):
        if name == SERVED:
            try:
                served = _open_served(target, store, stack)
            except StoreError as error:
                if against is not None:
                    raise
                listener.note(f"not compared with the served version: {error}")
                continue
            if against is not None and served is None:
                raise NotFoundError(f"{target.generator} has no published version to compare with")
            if served is not None and (against is not None or served.name != f"{SERVED} {snapshot.name}"):
                yield served
            continue
        if not str(name).isdecimal():
            raise SpecError(f"against is {name!r}; write {SERVED}, or the number of a snapshot")
        other = find_snapshot(target.out, target.generator, int(name))
        stack.enter_context(hold_for_reading(other))
        yield open_snapshot_lists(other).lists


def _open_served(target: PublishTarget, store: StoreLike | None, stack: contextlib.ExitStack) -> RankedLists | None:
    """Open the lists that look-ups read: with live updates, and without items that the overlay removes."""
    opened = stack.enter_context(open_target_store(store, target))
    pointer = opened.pointer(target.generator)
    if pointer is None or pointer.version == 0:
        return None
    reader = opened.open(target.generator, pointer.version, verify=False)
    stack.callback(reader.close)
    facts = read_facts(reader, target.generator, pointer.version)
    overlay = OverlayState(facts.item_ids).apply(opened.overlay(target.generator).changes())
    find_removed = partial(overlay.find_removed, now=time()) if overlay.tombstones else None
    return PublishedLists(reader, (facts.query_ids, facts.item_ids), f"{SERVED} {facts.snapshot}", find_removed)
