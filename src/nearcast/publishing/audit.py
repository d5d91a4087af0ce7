"""Audit a snapshot: gather its figures and those of the current version, and apply the rules of `audit_rules.py`.

Reads Parquet and a store; writes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearcast.eligibility import collect_columns, parse_rule
from nearcast.eligibility.nodes import Reference
from nearcast.errors import AuditError, DamagedError, SpecError
from nearcast.evaluation.evaluation_report import Evaluation
from nearcast.evaluation.judge_snapshot import LabelSettings, judge_snapshot
from nearcast.evaluation.ranked_lists import PublishedLists
from nearcast.publishing.audit_rules import RULES, apply_rules
from nearcast.publishing.audit_values import AuditFigures, CurrentFigures, Finding
from nearcast.publishing.served_inputs import gather_inputs
from nearcast.publishing.snapshot_rows import SnapshotShape, estimate_payload, find_lists, read_shape
from nearcast.spec import AuditSpec
from nearcast.stores.base import Reader, Space
from nearcast.stores.value_format import decode_lists
from nearcast.stores.version_facts import VersionFacts
from nearcast.table.snapshot import Snapshot
from nearcast.times import parse_utc

__all__ = ["CurrentVersion", "audit_snapshot", "enforce", "validate_accepted"]

SAMPLED_KEYS = 2_000  # the standard error of a share is about one percentage point


@dataclass(frozen=True, slots=True)
class CurrentVersion:
    """The current version of a store, open."""

    version: int
    facts: VersionFacts
    reader: Reader

    @property
    def name(self) -> str:
        """The version as displayed, for example 000007."""
        return f"{self.version:06d}"


def audit_snapshot(
    snapshot: Snapshot,
    settings: AuditSpec,
    against: CurrentVersion | None,
    *,
    now: float,
    rolled_back: bool = False,
    labels: LabelSettings | None = None,
) -> list[Finding]:
    """Return the finding of every rule.

    against: the current version; None: nothing is published. now: seconds since 1970. rolled_back: the snapshot was
    published and rolled back before. labels: what the lists are judged by, and the promises.
    """
    shape = read_shape(snapshot)
    manifest = snapshot.manifest
    return apply_rules(
        AuditFigures(
            name=snapshot.name,
            k=manifest.k,
            measures=manifest.measures,
            recall_target=manifest.target.recall,
            target_met=manifest.target.met,
            keys=shape.keys,
            payload_bytes=estimate_payload(snapshot, shape),
            age_seconds=now - parse_utc(manifest.run.created),
            rolled_back=rolled_back,
            current=_compare_current(snapshot, shape, against) if against else None,
            items=shape.items,
            metric=manifest.metric,
            profile=manifest.profile,
            rule_columns=_find_rule_columns(snapshot),
            labels=_judge_by_labels(snapshot, labels, against) if labels else None,
            promises={} if labels is None else labels.promises,
        ),
        settings,
    )


def _judge_by_labels(snapshot: Snapshot, settings: LabelSettings, against: CurrentVersion | None) -> Evaluation | None:
    """Evaluate the lists, and those of the current version where the labels are here."""
    if settings.spec is None or against is None or settings.base is None:
        return judge_snapshot(snapshot, settings)
    facts = against.facts
    current = PublishedLists(against.reader, (facts.query_ids, facts.item_ids), against.name)
    return judge_snapshot(snapshot, settings, [current])


def validate_accepted(accept: Mapping[str, str]) -> None:
    """Raise SpecError for an unknown rule and for a rule that is accepted without a reason."""
    for rule, why in accept.items():
        if rule not in RULES:
            near = difflib.get_close_matches(rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SpecError(f"{rule!r} is no rule of the audit; {hint}rules are {', '.join(RULES)}")
        if not why.strip():
            raise SpecError(f"say why {rule} is accepted: it is kept with the version")


def enforce(name: str, findings: Sequence[Finding], accept: Mapping[str, str]) -> None:
    """Raise AuditError if a rule failed that is not accepted, SpecError if an accepted rule did not fail."""
    failed = {f.rule: f for f in findings if not f.passed}
    for rule in accept:
        if rule not in failed:
            have = f"failed rules are {', '.join(failed)}" if failed else "no rule has failed"
            raise SpecError(f"{rule} did not fail, so there is nothing to accept; {have}")
    open_ones = [f for f in failed.values() if f.rule not in accept]
    if open_ones:
        lines = "".join(f"\n  {f.rule}: {f.text}" for f in open_ones)
        way_out = "fix the cause, or accept a rule with --accept RULE --why TEXT"
        if all(finding.rule == "withdrawn" for finding in open_ones):
            generator, _, snapshot = name.partition(" ")
            way_out = (
                f"run again for a new one, or publish this one all the same: nearcast publish {generator} {snapshot}"
            )
        raise AuditError(
            f"{name} is not published: {len(open_ones)} of {len(findings)} rules failed{lines}\n{way_out}",
            tuple(findings),
        )


def _compare_current(snapshot: Snapshot, shape: SnapshotShape, current: CurrentVersion) -> CurrentFigures:
    facts = current.facts
    keys = current.reader.some_keys(Space.LISTS, SAMPLED_KEYS, snapshot.version)
    same_keys = facts.query_ids == shape.query_ids  # keys of another type are other keys, also if their bytes are equal
    new = find_lists(snapshot, keys) if same_keys else {}
    published = _read_published_lists(current, list(new))
    k = min(facts.k, snapshot.manifest.k)
    comparable = facts.item_ids == shape.item_ids
    shares = [
        len(set(ids[:k]) & set(new[key][:k])) / len(ids[:k]) if comparable else 0.0
        for key, ids in published.items()
        if ids
    ]
    return CurrentFigures(
        name=current.name,
        keys=facts.keys,
        payload_bytes=facts.payload_bytes,
        sampled=len(keys),
        kept=len(new),
        overlap=sum(shares) / len(shares) if shares else 0.0,
        compared=len(shares),
        inputs=gather_inputs(snapshot, shape, current),
    )


def _find_rule_columns(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """Return by table the columns that rules compare, without columns that a rule tests for null."""
    rules = [parse_rule(rule["name"], rule["keep"]) for rule in snapshot.manifest.spec.get("rules", ())]
    items, queries, _ = collect_columns(rules)
    text = " ".join(str(rule.tree) for rule in rules)
    named = {"items": [("item", name) for name in items], "queries": [("query", name) for name in queries]}
    return {
        table: tuple(name for side, name in pairs if f"{Reference(side, name)} is " not in text)
        for table, pairs in named.items()
    }


def _read_published_lists(current: CurrentVersion, keys: Sequence[bytes]) -> dict[bytes, list[Any]]:
    values = current.reader.get_many(Space.LISTS, keys)
    lists = decode_lists(values, current.facts.item_ids)
    if not lists.found.all():
        raise DamagedError(f"{current.name} in the store lists keys that it does not hold; publish with --repair")
    ids = lists.ids.to_pylist()
    ends = lists.offsets.tolist()
    return {key: ids[a:b] for key, a, b in zip(keys, ends[:-1], ends[1:], strict=True)}
