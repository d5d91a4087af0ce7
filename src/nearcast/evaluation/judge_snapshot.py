"""Judge the lists of a snapshot by the labels of its spec: open the labels, read them, evaluate.

Figures that a run recorded in the manifest are used again where the labels are the same, or are not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearcast.errors import InputError, SpecError
from nearcast.evaluation.evaluate_lists import LabelQuestion, evaluate_lists
from nearcast.evaluation.evaluation_report import Evaluation, check_promises, parse_figures
from nearcast.evaluation.label_set import describe_labels, read_labels
from nearcast.evaluation.label_slices import list_slices, split_slice_columns
from nearcast.evaluation.label_table import LabelTable, open_label_table
from nearcast.evaluation.popular_items import find_popular, rank_by_attribute
from nearcast.evaluation.ranked_lists import PopularLists, RankedLists, SnapshotLists, open_snapshot_files
from nearcast.measure.slices import FEWEST
from nearcast.settings.label_tables import LabelsSpec, parse_metric
from nearcast.table.snapshot import Snapshot

__all__ = [
    "JudgedLists",
    "LabelSettings",
    "describe_evaluation",
    "judge_lists",
    "judge_snapshot",
    "open_labels",
    "open_snapshot_lists",
    "refuse_labels_of",
    "refuse_learning_from",
]

Digests = Sequence[Mapping[str, Any]]  # of files: name, bytes, blake2b


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """The labels of a spec, and what it promises."""

    spec: LabelsSpec | None = None
    promises: Mapping[str, float] = field(default_factory=dict)
    base: Path | None = None  # folder of relative paths; None: not known here, so only recorded figures count


@dataclass(frozen=True, slots=True)
class JudgedLists:
    """The lists to judge, and what the metrics need to know of them."""

    lists: SnapshotLists
    generator: str
    version: int
    k: int
    exclude_self: bool


def open_snapshot_lists(snapshot: Snapshot, name: str = "") -> JudgedLists:
    """Open the lists of a committed snapshot."""
    lists = SnapshotLists(open_snapshot_files(snapshot), name or snapshot.name, snapshot.explain_damage)
    manifest = snapshot.manifest
    exclude_self = bool(manifest.spec.get("exclude_self"))
    return JudgedLists(lists, snapshot.generator, snapshot.version, manifest.k, exclude_self)


def open_labels(spec: LabelsSpec, base: Path, query_columns: Sequence[str] | None = None) -> LabelTable:
    """Open the labels of a spec. query_columns: of the query table; slices may name them.

    Raises InputError if a file or column is missing, SpecError for a slice by an unknown column.
    """
    table = open_label_table(spec.path, base)
    for name in (spec.query, spec.item, *([spec.grade] if spec.grade else [])):
        if name not in table.columns:
            raise InputError(
                f"{table.name} has no column {name!r}; its columns are {', '.join(table.columns)}; name those of "
                "queries, items and grades: query, item and grade in [labels], or --query, --item and --grade"
            )
    for name in spec.slices if query_columns is not None else ():
        if name not in table.columns and name not in (query_columns or ()):
            raise SpecError(
                f"labels.slices names {name!r}; columns of the labels are {', '.join(table.columns)}, and attributes "
                f"of the queries {', '.join(query_columns or ()) or 'none'}"
            )
    return table


def judge_lists(
    judged: JudgedLists, settings: LabelSettings, table: LabelTable, rivals: Sequence[RankedLists] = (), seed: int = 0
) -> Evaluation:
    """Read the labels and evaluate the lists by them; the popularity baseline of the settings is the last rival."""
    spec, lists = settings.spec, judged.lists
    assert spec is not None
    of_labels, of_queries = split_slice_columns(spec.slices, table.columns, lists)
    metrics = spec.list_metrics(judged.k, settings.promises)
    labels = read_labels(table, spec, of_labels)
    popular = _open_popularity(spec, settings.base, judged, table, max(parse_metric(name)[1] for name in metrics))
    question = LabelQuestion(judged.generator, judged.version, metrics, settings.promises, spec.unknown == "skip", seed)
    slices = list_slices(labels, of_queries, lists)
    described = describe_labels(table, labels)
    found = evaluate_lists(question, labels, described, lists, (*rivals, *popular), slices)
    notes = (*_note_deep_metrics(metrics, judged.k), *_note_missing_slices(spec.slices, found))
    return replace(found, notes=(*found.notes, *notes))


def _note_missing_slices(names: Sequence[str], found: Evaluation) -> Iterator[str]:
    """Yield a note for each column that was to be sliced by, and has no slice."""
    for name in names:
        if not any(part.by == name for part in found.slices):
            yield f"no slices by {name!r}: none of its values has {FEWEST} measured queries or more, or one has all"


def _note_deep_metrics(metrics: Sequence[str], k: int) -> list[str]:
    deep = [name for name in metrics if parse_metric(name)[1] > k]
    return [f"lists hold at most {k} candidates: beyond, {deep[0]} finds nothing"] if deep else []


def judge_snapshot(
    snapshot: Snapshot, settings: LabelSettings, rivals: Sequence[RankedLists] = ()
) -> Evaluation | None:
    """Evaluate a snapshot by the labels of the settings; None without labels.

    Where `base` is not known, or the manifest has the metrics by the same labels and there are no rivals, the recorded
    figures are the answer.
    """
    if settings.spec is None:
        return None
    record = snapshot.manifest.labels
    if settings.base is None:
        return None if record is None else _read_record(snapshot, record, settings.promises)
    table = open_labels(settings.spec, settings.base)
    refuse_labels_of(snapshot, table)
    if record is not None and not rivals and settings.promises.keys() <= record["metrics"].keys():
        same = _list_hashes(record["labels"]["files"]) == _list_hashes(table.digests())
        if same and snapshot.manifest.spec.get("labels") == settings.spec.model_dump(mode="json"):
            return _read_record(snapshot, record, settings.promises)
    return judge_lists(open_snapshot_lists(snapshot), settings, table, rivals, int(snapshot.manifest.spec["seed"]))


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return the value of the manifest's key `labels`."""
    return {key: value for key, value in evaluation.as_dict().items() if key not in ("generator", "version")}


def refuse_learning_from(
    labels: Sequence[Mapping[str, Any]], inputs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Raise SpecError if a file of the labels is also a file that lists, scores or settings are made of.

    labels, inputs: digests of files; inputs by their place in the spec. Files are compared by their contents.
    """
    by_hash = {digest["blake2b"]: digest["name"] for digest in labels}
    for place, digests in inputs.items():
        for digest in digests:
            if digest["blake2b"] in by_hash:
                raise SpecError(
                    f"{digest['name']} of {place} has the contents of {by_hash[digest['blake2b']]} of the labels; "
                    "what learns from labels cannot be judged by them: give labels of another, later time"
                )


def refuse_labels_of(snapshot: Snapshot, table: LabelTable) -> None:
    """Raise SpecError if a file of the labels is also one that the snapshot was made of, by its manifest."""
    manifest = snapshot.manifest
    made_of = {name: facts["files"] for name, facts in manifest.inputs.items()}
    made_of["overfetch.log"] = (manifest.overfetch or {}).get("survival", {}).get("log", ())
    refuse_learning_from(table.digests(), made_of)


def _open_popularity(
    spec: LabelsSpec, base: Path | None, judged: JudgedLists, table: LabelTable, depth: int
) -> list[RankedLists]:
    lists = judged.lists
    if spec.popular_by is not None:
        items = rank_by_attribute(spec.popular_by, lists, depth + 1)
    elif spec.popularity is not None:
        log = open_label_table(spec.popularity, base or Path(), "the log of popularity")
        refuse_learning_from(table.digests(), {"labels.popularity": log.digests()})
        items = find_popular(log, spec.item, lists, depth + 1)
    else:
        return []
    return [PopularLists(items, lists.query_ids, without_self=judged.exclude_self)]


def _read_record(snapshot: Snapshot, record: Mapping[str, Any], promises: Mapping[str, float]) -> Evaluation:
    metrics = parse_figures(record["metrics"])
    if missing := [name for name in promises if name not in metrics]:
        raise SpecError(f"promise names {missing[0]}, which {snapshot.name} was not measured by; publish with the spec")
    return Evaluation(
        snapshot.generator,
        snapshot.version,
        record["labels"],
        record["queries"],
        record["without_list"],
        record["unknown_items"],
        metrics,
        promises=check_promises(metrics, promises),
        notes=tuple(record["notes"]),
    )


def _list_hashes(digests: Digests) -> list[str]:
    return sorted(digest["blake2b"] for digest in digests)
